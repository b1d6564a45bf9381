"""The GitHub action, the hooks of pre-commit and GitLab's example: run as far as they go here."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from junitparser import JUnitXml
from packaging.requirements import Requirement

from tests.helpers import torch_save
from tests.helpers.hostile_pickles import FOREIGN, payload
from tests.helpers.running import environ, run

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TOP = Path(__file__).parents[2]
ACTION = yaml.safe_load((TOP / "action.yml").read_text())
HOOKS = yaml.safe_load((TOP / ".pre-commit-hooks.yaml").read_text())
STEPS = {step["name"]: step for step in ACTION["runs"]["steps"]}


def schema(name: str) -> Any:
    vendored = files("check_jsonschema.builtin_schemas.vendor").joinpath(name)
    return json.loads(vendored.read_text("utf-8"))


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A folder with this program in it under its own name."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "cgpt-convert"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m cgpt_convert "$@"\n')
    script.chmod(0o755)
    python = folder / "python"  # as in a venv, where -I keeps what is installed
    python.write_text(f'#!/bin/sh\ntest "$1" = -I && shift && exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return folder


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder with weights and with classes of a team."""
    folder = tmp_path / "work" / "models"
    folder.mkdir(parents=True)
    (folder / "good one.bin").write_bytes(torch_save.saved({"a": 1}))
    (folder / "config.bin").write_bytes(FOREIGN["a class"][0])
    return folder


# -- GitHub


def test_the_action_fits_githubs_schema() -> None:
    jsonschema.validate(ACTION, schema("github-actions.json"))


def step(name: str, work: Path, program: Path | None, **given: str) -> tuple[int, str, str]:
    """A step as the runner runs it: its inputs in the environment. Exit code, output, outputs.

    `program` is the folder of the one to run; None is what the step "Install" installed.
    """
    runner = work.parent / "runner"
    runner.mkdir(exist_ok=True)
    if program and not (runner / "cgpt-convert").exists():
        (runner / "cgpt-convert").mkdir()
        (runner / "cgpt-convert" / "bin").symlink_to(program)
    inputs = {name: row.get("default", "") for name, row in ACTION["inputs"].items()} | given
    variables = {
        key: re.sub(r"\$\{\{ inputs\.(\w+) \}\}", lambda m: inputs[m[1]], value)
        for key, value in STEPS[name].get("env", {}).items()
    }
    assert "${{" not in STEPS[name]["run"]  # an input there would be code
    outputs = work.parent / "outputs"
    outputs.write_text("")
    variables |= {"RUNNER_TEMP": str(runner), "GITHUB_OUTPUT": str(outputs)}
    variables["GITHUB_ACTION_PATH"] = str(TOP)
    if not program:
        variables["PYTHONPATH"] = ""  # what is installed, and not what lies here
    variables |= {name: value for name, value in given.items() if name.isupper()}
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", STEPS[name]["run"]],
        cwd=work,
        env=environ(**variables),
        capture_output=True,
        check=False,
        text=True,
    )
    return done.returncode, done.stdout, outputs.read_text()


def test_the_actions_scan(models: Path, program: Path) -> None:
    work = models.parent
    code, out, outputs = step("Scan", work, program, paths="models\n")
    assert (code, outputs) == (1, "exit-code=1\n")
    assert out.startswith("::error file=models/config.bin,title=CGPT008 ")
    allowed = {"paths": "models\nmodels/good one.bin\n", "allow": "team.models.Config\n"}
    code, out, outputs = step("Scan", work, program, **allowed, sarif="weights.sarif")
    assert (code, outputs) == (0, "exit-code=0\n")
    assert json.loads((work / "weights.sarif").read_text())["runs"][0]["results"] == []
    (models / "cut.bin").write_bytes(torch_save.saved({"a": 1})[:-9])
    assert step("Scan", work, program, paths="models")[0] == 3
    assert step("Scan", work, program, paths="$(touch owned); --help")[0] == 2
    assert not (work / "owned").exists()


def test_the_actions_verify_says_what_to_compare_with_what(tmp_path: Path) -> None:
    echo = tmp_path / "bin" / "python"
    echo.parent.mkdir()
    echo.write_text('#!/bin/sh\nprintf "[%s]" "$@"\n')
    echo.chmod(0o755)
    (tmp_path / "work").mkdir()
    given = {"target": "my model.bin", "lock": "w.lock.json"}
    code, out, _ = step("Verify", tmp_path / "work", echo.parent, **given)
    words = "[verify][--format][github][--lock][w.lock.json][--][my model.bin]"
    assert (code, out) == (0, "[-I][-m][cgpt_convert]" + words)


@pytest.mark.slow
def test_the_action_runs_nothing_of_the_checkout(models: Path) -> None:
    """Neither by Python's path nor by PYTHONPATH; without an index, pip fails as the last step."""
    work = models.parent
    for name in ("venv", "ensurepip", "pip", "runpy", "click", "cgpt_convert", "sitecustomize"):
        (work / f"{name}.py").write_text(f"open({str(work / 'owned')!r}, 'a').write({name!r})\n")
    code, _, _ = step("Install", work, None, PYTHONPATH=".", PIP_NO_INDEX="1", PIP_FIND_LINKS="")
    assert code != 0
    python = work.parent / "runner" / "cgpt-convert" / "bin" / "python"
    assert python.exists()
    step("Scan", work, None, PYTHONPATH=".", paths="models")
    assert not (work / "owned").exists()


def test_the_action_installs_what_is_needed() -> None:
    """Every dependency at an exact version with hashes, as `pip --require-hashes` wants it."""
    project = tomllib.loads((TOP / "pyproject.toml").read_text())
    needed = project["project"]["dependencies"] + project["build-system"]["requires"]
    text = (TOP / ".ci" / "action-requirements.txt").read_text().replace("\\\n", "")
    rows = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(re.search(r"^[\w.-]+==\S+ .*--hash=sha256:[0-9a-f]{64}", row) for row in rows)
    pinned = [Requirement(row.partition("--hash")[0]) for row in rows]
    for requirement in map(Requirement, needed):
        versions = [
            next(iter(row.specifier)).version for row in pinned if row.name == requirement.name
        ]
        assert versions, requirement
        assert all(requirement.specifier.contains(version) for version in versions)


@pytest.mark.corpus  # it needs the network, as pip installs what the program depends on
def test_the_action_from_its_installation_on(models: Path) -> None:
    work = models.parent
    weights, lock = work / "w.safetensors", work / "w.lock.json"
    source = TOP / "cgpt_convert" / "demo" / "pytorch_model.bin"
    constraints = work.parent / "constraints.txt"
    constraints.write_text("numpy<1\n")  # the hashes decide, not what a job has set for others
    installed = step("Install", work, None, PIP_CONSTRAINT=str(constraints))
    assert installed == (0, "", "")
    program = str(work.parent / "runner" / "cgpt-convert" / "bin" / "cgpt-convert")
    for words in (("convert", source, "-o", weights), ("lock", weights, "-o", lock)):
        subprocess.run([program, *words], env=environ(PYTHONPATH=""), check=True)
    assert step("Scan", work, None, paths="w.safetensors")[::2] == (0, "exit-code=0\n")
    code, out, _ = step("Scan", work, None, paths="models")
    assert (code, out[:39]) == (1, "::error file=models/config.bin,title=CG")
    given = {"target": "w.safetensors", "lock": "w.lock.json"}
    assert step("Verify", work, None, **given)[0] == 0
    with weights.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")
    code, out, _ = step("Verify", work, None, **given)
    assert (code, out[:29]) == (1, "::error file=w.safetensors,ti")


def test_the_example_gives_the_action_what_it_takes() -> None:
    (example,) = [each for each in examples() if "jobs" in each]
    uses = next(s for s in example["jobs"]["weights"]["steps"] if "cgpt-convert" in s["uses"])
    assert uses["with"].keys() <= ACTION["inputs"].keys()
    jsonschema.validate({"on": "push", **example}, schema("github-workflows.json"))


def examples() -> list[dict[str, Any]]:
    text = (TOP / "docs" / "how-to" / "ci.md").read_text()
    return [yaml.safe_load(each) for each in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]


# -- GitLab


def test_gitlabs_example_runs(models: Path, program: Path) -> None:
    (example,) = [each for each in examples() if "weights" in each]
    jsonschema.validate(example, schema("gitlab-ci.json"))
    job = example["weights"]
    install, *lines = job["script"]
    assert install == 'pip install "$CGPT_CONVERT"'
    path = f"{program}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-eo", "pipefail", "-c", "\n".join(lines)],
        cwd=models.parent,
        env=environ(PATH=path),
        check=False,
    )
    assert done.returncode == 1
    report = JUnitXml.fromfile(str(models.parent / job["artifacts"]["reports"]["junit"]))
    assert (report.tests, report.failures) == (2, 1)


# -- pre-commit


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    line = ["git", "-C", str(folder), *who, *words]
    return subprocess.run(line, capture_output=True, check=True, text=True).stdout.strip()


@pytest.fixture
def tool(tmp_path: Path) -> Path:
    """This project as a git repository, as pre-commit clones it."""
    folder = tmp_path / "tool"
    folder.mkdir()
    for name in ("cgpt_convert", "mappings"):
        shutil.copytree(TOP / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", ".pre-commit-hooks.yaml"):
        shutil.copy(TOP / name, folder / name)
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "x")
    return folder


def committed(tool: Path, work: Path, hook: dict[str, Any], **environment: str) -> Any:
    """What pre-commit says when all of `work` is committed."""
    hooks = [{"repo": str(tool), "rev": git(tool, "rev-parse", "HEAD"), "hooks": [hook]}]
    (work / ".pre-commit-config.yaml").write_text(yaml.safe_dump({"repos": hooks}))
    if not (work / ".git").exists():
        git(work, "init", "--quiet")
    git(work, "add", "--all")
    cache = str(tool.parent / "cache")
    return subprocess.run(
        [sys.executable, "-m", "pre_commit", "run", "--verbose"],
        cwd=work,
        env=environ(PRE_COMMIT_HOME=cache, **environment),
        capture_output=True,
        check=False,
        text=True,
    )


@pytest.mark.slow
def test_pre_commit_takes_the_hooks() -> None:
    line = [sys.executable, "-m", "pre_commit", "validate-manifest", ".pre-commit-hooks.yaml"]
    subprocess.run(line, cwd=TOP, check=True)
    assert [hook["id"] for hook in HOOKS] == ["cgpt-scan", "cgpt-verify-lock"]


@pytest.mark.slow
def test_pre_commit_scans_what_is_committed(tool: Path, models: Path, program: Path) -> None:
    """With the program that is here: how pre-commit installs it, the corpus tests see."""
    path = {"PATH": f"{program}{os.pathsep}{os.environ['PATH']}"}
    hook = {"id": "cgpt-scan", "language": "system", "args": ["--allow", "team.models.Config"]}
    done = committed(tool, models.parent, hook, **path)
    assert done.returncode == 0, done.stdout
    assert "clean" in done.stdout
    (models / "notes.txt").write_bytes(payload(0))
    done = committed(tool, models.parent, hook, **path)
    assert done.returncode == 1
    assert "dangerous    models/notes.txt (" in done.stdout


NAMES = ["--help", "--allow=os.system", "-h", "--json", "--"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_pre_commit_scans_a_file_whose_name_is_an_option(
    name: str, tool: Path, tmp_path: Path, program: Path
) -> None:
    path = {"PATH": f"{program}{os.pathsep}{os.environ['PATH']}"}
    work = tmp_path / "work"
    work.mkdir()
    (work / name).write_bytes(payload(0))
    done = committed(tool, work, {"id": "cgpt-scan", "language": "system"}, **path)
    assert done.returncode == 1
    assert f"dangerous    {name} (" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_an_option_is_rejected_and_not_obeyed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `scan *` gives it, and a hook whose args have no `--`."""
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(payload(0))
    Path("good.bin").write_bytes(torch_save.saved({"a": 1}))
    done = run("scan", name, "good.bin")
    assert done.code == 2
    assert f"'{name}' is an option and the name of a file" in done.err
    assert "write -- before the names of files" in done.err
    assert run("scan", "--", name, "good.bin").code == 1
    assert run("scan", f"./{name}", "good.bin").code == 1
    assert run("scan", "--allow", "a.B", "--", "good.bin").code == (2 if name == "--" else 0)


@pytest.mark.slow
def test_pre_commit_verifies_the_lock(tool: Path, models: Path, tmp_path: Path) -> None:
    echo = tmp_path / "echo" / "cgpt-convert"
    echo.parent.mkdir()
    echo.write_text('#!/bin/sh\nprintf "[%s]" "$@"\n')
    echo.chmod(0o755)
    (example,) = [each for each in examples() if "repos" in each]
    hook = next(h for h in example["repos"][0]["hooks"] if h["id"] == "cgpt-verify-lock")
    path = f"{echo.parent}{os.pathsep}{os.environ['PATH']}"
    done = committed(tool, models.parent, {**hook, "language": "system"}, PATH=path)
    assert "[verify][models/model.safetensors][--lock][weights.lock.json]" in done.stdout


@pytest.mark.corpus  # it needs the network, as pip installs what the program depends on
def test_pre_commit_installs_the_program(tool: Path, models: Path) -> None:
    done = committed(tool, models.parent, {"id": "cgpt-scan"})
    assert done.returncode == 1, done.stdout
    assert "foreign      models/config.bin" in done.stdout
