"""The documentation says what the program does: commands, options, JSON keys, findings, output."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from cgpt_convert.architectures.known_models import models
from cgpt_convert.cli import COMMANDS, group
from cgpt_convert.core import findings
from cgpt_convert.core.checks import Check
from cgpt_convert.core.findings import FindingRule
from cgpt_convert.formats import registry
from cgpt_convert.scanning.result import CodeReference
from cgpt_convert.targets.model_targets import MODEL_TARGETS
from cgpt_convert.targets.plan_conversion import targets
from tests.helpers import format_table
from tests.helpers.running import environ

TOP = Path(__file__).parents[2]
PAGES = [*TOP.glob("*.md"), *TOP.glob("docs/**/*.md")]
DOCS = {path.name: path.read_text() for path in PAGES}


def section(page: str, title: str) -> str:
    """The text under the heading `title`, up to the next of its level."""
    match = re.search(
        rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", DOCS[page], re.MULTILINE | re.DOTALL
    )
    assert match, f"{page} has no heading {title!r}"
    return match[1]


def command(name: str) -> click.Command:
    found = group.get_command(click.Context(group), name)
    assert found is not None
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_is_documented(name: str) -> None:
    text = section("commands.md", name)
    for param in command(name).params:
        if isinstance(param, click.Option):
            for spelling in param.opts:
                assert f"`{spelling}" in text, (
                    f"{name} {spelling} is not in docs/reference/commands.md"
                )
            if isinstance(param.type, click.Choice):
                for choice in param.type.choices:
                    assert str(choice) in text, f"{name} {param.name}={choice} is not documented"


@pytest.mark.parametrize("name", COMMANDS)
def test_no_option_is_documented_that_does_not_exist(name: str) -> None:
    exist = {spelling for param in command(name).params for spelling in param.opts} | {"--help"}
    if name == "models":
        exist |= {"--mapping"}  # its text tells what the names are good for
    for spelling in re.findall(r"`(--[a-z-]+)", section("commands.md", name)):
        assert spelling in exist | {"--root", "--version"}, f"{name} has no {spelling}"


def written_commands() -> list[tuple[str, str]]:
    """Return the page and the words of each command in blocks that are not sessions with output."""
    lines = []
    for name, text in DOCS.items():
        for block in re.findall(r"^```(?:sh|yaml)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            for line in block.replace("\\\n", " ").split("\n"):
                match = re.search(r"(?:cgpt-convert|-m cgpt_convert) (?=[a-z]+ )(.*)", line)
                if match:
                    lines.append((name, match[1]))
    return lines


@pytest.mark.parametrize(("page", "line"), written_commands())
def test_the_commands_of_blocks_without_output_exist(page: str, line: str) -> None:
    name, *words = shlex.split(re.split(r" [>|] ", line)[0], comments=True)
    context = click.Context(command(name))
    _, rest, order = command(name).make_parser(context).parse_args(words)
    assert rest == [], f"{page}: {line}"
    assert order, f"{page}: {line}"


def test_every_finding_has_a_section_with_its_title_and_level() -> None:
    rules = [value for value in vars(findings).values() if isinstance(value, FindingRule)]
    assert len({rule.id for rule in rules}) == len(rules) > 10
    for rule in rules:
        text = section("findings.md", f"{rule.id} {rule.title}")
        assert text.strip().startswith(f"Level: {rule.level}."), rule.id
        assert rule.text in " ".join(text.split()), rule.id


def rows(text: str) -> list[list[str]]:
    """The cells of the rows of the first table in a text, less its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_table_of_written_formats_is_that_of_the_registry() -> None:
    table = {row[0].strip("`"): row[1:] for row in rows(section("formats.md", "Written"))}
    assert sorted(table) == targets()
    for form in map(registry.by_name, registry.names()):
        output, *rest = table[form.name]
        assert rest == [format_table.suffixes(form), format_table.types(form)]
        assert output.startswith("a folder") == form.folder
        assert ("shards" in output) == form.sharded
        assert (f"`{form.folder_index}`" in output) == bool(form.folder_index)
    for name, target in MODEL_TARGETS.items():
        assert table[name][0].startswith("a folder") == target.folder
        assert ("shards" in table[name][0]) == target.shards


def test_the_table_of_kinds_is_that_of_the_registry() -> None:
    table = rows(section("formats.md", "Read"))
    told = "\n".join(how for _, how in table)
    for form in registry.built_in():
        for kind in form.kinds:
            assert any(re.match(rf"{kind.value}\b", what) for what, _ in table), kind
        for _, magic in form.magic:
            spelt = ascii(magic.decode("latin-1"))[1:-1]
            assert f"`{spelt}`" in told
        assert f"`{form.folder_index}`" in told or not form.folder_index


@pytest.mark.slow
def test_the_keys_that_json_prints_are_documented(demo: Path) -> None:
    def run(*words: str) -> dict[str, object]:
        line = [sys.executable, "-m", "cgpt_convert", *words, "--json"]
        done = subprocess.run(line, capture_output=True, check=True)
        return dict(json.loads(done.stdout))

    model, out = str(demo / "pytorch_model.bin"), demo.parent
    results = {
        "inspect": run("inspect", model, "--stats", "--check"),
        "extract": run("extract", model, "-o", str(out / "json-parameters")),
        "convert": run("convert", model, "-o", str(out / "json.safetensors")),
        "digest": run("digest", model),
        "lock": run("lock", model, "-o", str(out / "weights.lock.json")),
        "verify": run("verify", model, str(out / "json.safetensors")),
        "diff": run("diff", model, str(out / "json.safetensors")),
        "scan": run("scan", str(demo)),
        "eval": run("eval", model, "--text", str(demo / "held-out.txt"), "--against", model),
        "models": run("models"),
        "generate": run("generate", model, "--ids", "1,2", "--max-new-tokens", "2"),
    }
    for name, result in results.items():
        text = section("json.md", name)
        for key in result:
            assert f"`{key}`" in text, f"{name}: {key}"
    assert isinstance(results["scan"]["files"], list)
    fields = set(CodeReference._fields) - {"option"}  # for the text output
    for key in (*results["scan"]["files"][0], *fields):
        assert f"`{key}`" in section("json.md", "scan"), key
    for key in ("ok", "exit_code", "checks", *Check._fields):
        assert f"`{key}`" in section("json.md", "Reports"), key
    against = results["eval"]["against"]
    assert isinstance(against, dict)
    for key in against:
        assert f"`{key}`" in section("json.md", "eval"), key
    assert isinstance(results["models"]["models"], list)
    for key in results["models"]["models"][0]:
        assert f"`{key}`" in section("json.md", "models"), key
    tensors = results["inspect"]["tensors"]
    assert isinstance(tensors, list)
    for key in {key for row in tensors for key in (*row, *row["stats"])}:
        assert f"`{key}`" in section("json.md", "inspect"), key
    mapping = json.loads((out / "json-parameters" / "mapping.json").read_text())
    rows = [key for row in mapping["tensors"].values() for key in row]
    for key in {*mapping, *rows}:
        assert f"`{key}`" in section("json.md", "mapping.json"), key


@pytest.mark.parametrize(
    ("name", "words", "key"),
    [("digest", [], "tensors"), ("verify", ["MODEL"], "checks"), ("diff", ["MODEL"], "tensors")],
)
def test_the_keys_of_rows_are_documented(demo: Path, name: str, words: list[str], key: str) -> None:
    model = str(demo / "pytorch_model.bin")
    line = [sys.executable, "-m", "cgpt_convert", name, model, *words, "--json"]
    line = [model if word == "MODEL" else word for word in line]
    done = subprocess.run(line, capture_output=True, check=True)
    for inner in {inner for row in json.loads(done.stdout)[key] for inner in row}:
        assert f"`{inner}`" in section("json.md", name), inner


def test_the_keys_of_logits_are_documented(demo: Path) -> None:
    model = str(demo / "pytorch_model.bin")
    line = [sys.executable, "-m", "cgpt_convert", "verify", model, model, "--logits", "--json"]
    done = subprocess.run(line, capture_output=True, check=True)
    compared = json.loads(done.stdout)["logits"]
    for key in (*compared, *compared["states"][0]):
        assert f"`{key}`" in section("json.md", "verify"), key


def test_the_keys_of_a_lock_are_documented(demo: Path, tmp_path: Path) -> None:
    out = tmp_path / "weights.lock.json"
    model = str(demo / "pytorch_model.bin")
    line = [sys.executable, "-m", "cgpt_convert", "lock", model, "-o", str(out)]
    subprocess.run(line, capture_output=True, check=True)
    lock = json.loads(out.read_text())
    rows = [key for row in lock["tensors"].values() for key in row]
    for key in {*lock, *lock["model"], *lock["files"][0], *rows}:
        assert f"`{key}`" in section("json.md", "weights.lock.json"), key


def test_published_accuracies_are_those_of_the_mappings() -> None:
    tables = re.findall(
        r"\| (\S+B|\S+M) \|((?: 0\.\d{3} \|){7})", section("evaluation.md", "Published figures")
    )
    assert len(tables) == 14
    shown = [(size, [float(cell) for cell in cells.split("|")[:-1]]) for size, cells in tables]
    rows = [model for model in models() if model.zero_shot]
    for shots, part in (("zero_shot", shown[:7]), ("five_shot", shown[7:])):
        assert part == [(row.published, list(getattr(row, shots).values())) for row in rows]


def test_the_digests_that_are_shown_are_the_demos(demo: Path) -> None:
    line = [sys.executable, "-m", "cgpt_convert", "digest", str(demo / "pytorch_model.bin")]
    done = subprocess.run(line, capture_output=True, check=True, text=True)
    shown = f"$ cgpt-convert digest cgpt-demo/pytorch_model.bin\n{done.stdout}```"
    assert shown in DOCS["digest.md"]


def test_ci_runs_the_readme_test_commands() -> None:
    commands = re.findall(r"^(.*pip install -e .*)$", DOCS["README.md"], re.MULTILINE)
    sessions = (TOP / "noxfile.py").read_text()
    for command, name in zip(commands, ("fast", "tests"), strict=True):
        install, test = command.split(" && ")[-2:]
        extra = install.removeprefix("pip install -e ").strip("'")
        session = sessions[sessions.index(f"def {name}(") :].partition("\n\n\n")[0]
        assert f'_install(session, "{extra}")' in session
        assert (
            f"session.run({', '.join(json.dumps(word) for word in shlex.split(test))}, " in session
        )
    script = (TOP / ".ci" / "run").read_text()
    assert "\nhere tests\n" in script
    assert ' -s "fast-$python"\n' in script


def anchors(page: str) -> set[str]:
    """The anchors of the headings of `page`, as code hosts and the site generator name them."""
    prose = re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if not target.startswith("http"):
            file, _, anchor = target.partition("#")
            aim = page.parent / file if file else page
            assert aim.exists(), f"{page}: {target}"
            assert not anchor or anchor in anchors(aim.read_text()), f"{page}: {target}"


def test_no_two_pages_have_one_name() -> None:
    assert len(DOCS) == len(PAGES)


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("demo")
    line = [sys.executable, "-m", "cgpt_convert", "demo"]
    done = subprocess.run(line, cwd=folder, capture_output=True, check=True, text=True)
    return folder / "cgpt-demo", done.stdout


@pytest.fixture(scope="module")
def demo(demo_run: tuple[Path, str]) -> Path:
    return demo_run[0]


@pytest.mark.slow  # torch
@pytest.mark.parametrize("page", ["library.md", "numerics.md"])
def test_the_python_of_a_page_runs(page: str, demo: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(demo, tmp_path / "demo")
    shutil.copy(folder / "model.gguf", folder / "m.gguf")
    (folder / "model.npz").unlink()  # the page writes it
    blocks = dict.fromkeys(("python", "pycon"), "")
    for kind in blocks:
        blocks[kind] = "\n".join(re.findall(rf"```{kind}\n(.*?)```", DOCS[page], re.DOTALL))
    assert any(blocks.values())
    (tmp_path / "session.txt").write_text(blocks["pycon"])
    session = [sys.executable, "-m", "doctest", "-o", "ELLIPSIS", str(tmp_path / "session.txt")]
    for line in ([sys.executable, "-c", blocks["python"]], session):
        done = subprocess.run(
            line, cwd=folder, env=environ(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
