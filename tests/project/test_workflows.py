"""The workflows of GitHub, as far as they can be checked without it: schema, pins, steps."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import cgpt_convert
from tests.helpers.running import environ
from tests.project.test_project_files import schema

TOP = Path(__file__).parents[2]
FILES = sorted((TOP / ".github" / "workflows").glob("*.yml"))
WORKFLOWS = {path.name: yaml.safe_load(path.read_text("utf-8")) for path in FILES}
JOBS = [(file, name) for file, workflow in WORKFLOWS.items() for name in workflow["jobs"]]
STEPS = [
    (file, name, step)
    for file, name in JOBS
    for step in WORKFLOWS[file]["jobs"][name].get("steps", ())
]
SHELL = [(file, name, step) for file, name, step in STEPS if "run" in step]
# programs of the host, and those that would install or publish: each writes down how it is called
RECORDED = ("gh", "nox", "pip", "pipx", "sudo")


@pytest.mark.parametrize("name", WORKFLOWS)
def test_it_fits_githubs_schema(name: str) -> None:
    # YAML 1.1 reads the key `on` as true
    workflow = {"on" if key is True else key: value for key, value in WORKFLOWS[name].items()}
    jsonschema.validate(workflow, schema("github-workflows"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_actions_are_pinned_by_commit(path: Path) -> None:
    for line in path.read_text("utf-8").splitlines():
        if used := re.search(r"uses: ([^ ]+)(.*)", line):
            local = used[1].startswith("./") and (TOP / used[1]).is_file()
            pinned = re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", used[1])
            assert local or (pinned and re.fullmatch(r" # v\d+(\.\d+)*", used[2])), line


@pytest.mark.parametrize(("file", "name"), JOBS)
def test_a_job_has_only_the_permissions_that_it_needs(file: str, name: str) -> None:
    """None by default; only a release may write, and then never in a job that runs our code."""
    assert WORKFLOWS[file]["permissions"] == {}
    job = WORKFLOWS[file]["jobs"][name]
    if job["permissions"] == {"contents": "read"}:
        return
    assert file == "release.yml"
    assert not any("checkout" in step.get("uses", "") for step in job["steps"])
    assert not any("pip" in step.get("run", "") for step in job["steps"])


def test_a_release_is_published_only_after_all_checks() -> None:
    jobs = WORKFLOWS["release.yml"]["jobs"]

    def before(name: str) -> set[str]:
        needs = jobs[name].get("needs", [])
        direct = {needs} if isinstance(needs, str) else set(needs)
        return direct.union(*map(before, direct))

    assert {"checks", "build", "attest"} <= before("publish")
    assert "publish" in before("announce")
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert jobs["publish"]["environment"] == "pypi"


def test_the_fast_tier_runs_on_every_python_and_on_three_systems() -> None:
    matrix = WORKFLOWS["ci.yml"]["jobs"]["fast"]["strategy"]["matrix"]
    assert matrix["python"] == [f"3.{minor}" for minor in range(10, 15)]
    systems = [*matrix["system"], *(row["system"] for row in matrix["include"])]
    assert [name.split("-")[0] for name in systems] == ["ubuntu", "macos", "windows"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files that steps read, in a folder of their own, with a release in the changelog."""
    folder = tmp_path / "checkout"
    shutil.copytree(TOP / ".ci", folder / ".ci")
    (folder / "cgpt_convert").mkdir()
    shutil.copy(TOP / "cgpt_convert" / "__init__.py", folder / "cgpt_convert")
    log = f"# Changelog\n\n## [{cgpt_convert.__version__}] - 2026-01-02\n\nText.\n"
    (folder / "CHANGELOG.md").write_text(log)
    (folder / ".ci" / "run").write_text('#!/bin/sh\necho "[.ci/run]" >>"$CALLS"\n')
    return folder


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder of programs that record how they are called, and of a Python that does for pip."""
    folder = tmp_path / "programs"
    folder.mkdir()
    record = 'printf "[%s]" "$(basename "$0")" "$@" >>"$CALLS"; echo >>"$CALLS"\n'
    python = f'case "$1" in -m) {record};; *) exec "{sys.executable}" "$@";; esac\n'
    for name in RECORDED:
        (folder / name).write_text("#!/bin/sh\n" + record)
    (folder / "python").write_text("#!/bin/sh\n" + python)
    for path in folder.iterdir():
        path.chmod(0o755)
    return folder


def values(file: str, name: str) -> dict[str, str]:
    """A value for each expression that the job's steps have in their environment."""
    matrix = WORKFLOWS[file]["jobs"][name].get("strategy", {}).get("matrix", {})
    picked = {f"matrix.{key}": rows[0] for key, rows in matrix.items() if key != "include"}
    return {**picked, "github.token": "t", "github.repository": "o/r"}


def calls(file: str, name: str, step: dict[str, Any], checkout: Path, programs: Path) -> str:
    """Run a step as the runner does, and return how it called the recorded programs."""
    known = values(file, name)
    assert "${{" not in step["run"]  # an expression there would be code
    given = {
        key: re.sub(r"\$\{\{ ([\w.]+) \}\}", lambda found: known[found[1]], value)
        for key, value in step.get("env", {}).items()
    }
    temp = checkout.parent / "temp"
    user = temp / "user" / "bin"
    user.mkdir(parents=True, exist_ok=True)
    shutil.copy(programs / "nox", user / "cgpt-convert")
    shutil.copy(programs / "python", user / "python")
    (checkout / "release" / "dist").mkdir(parents=True, exist_ok=True)
    (checkout / "release" / "dist" / "x.whl").write_bytes(b"")
    if "mkdir release\n" in step["run"]:
        shutil.rmtree(checkout / "release")
    log = checkout.parent / "calls"
    log.write_text("")
    variables = {
        "PATH": f"{programs}{os.pathsep}/usr/bin:/bin",
        "CALLS": str(log),
        "RUNNER_TEMP": str(temp),
        "GITHUB_REF_NAME": f"v{cgpt_convert.__version__}",
    }
    subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
        cwd=checkout,
        env=environ(**variables, **given),
        check=True,
    )
    return log.read_text()


@pytest.mark.parametrize(
    ("file", "name", "step"), SHELL, ids=[f"{name}: {step['name']}" for _, name, step in SHELL]
)
def test_the_shell_of_a_step_runs(
    file: str, name: str, step: dict[str, Any], checkout: Path, programs: Path
) -> None:
    called = calls(file, name, step, checkout, programs)
    notes = checkout / "release" / "notes.md"
    assert called or notes.read_text() == "Text.\n"
    for constraints in re.findall(r"\[--constraint\]\[([^]]+)\]", called):
        assert (TOP / constraints).is_file()


def sessions() -> set[str]:
    line = [sys.executable, "-m", "nox", "--list", "-f", str(TOP / "noxfile.py")]
    done = subprocess.run(line, check=True, capture_output=True, text=True)
    return set(re.findall(r"^[*-] (\S+)", done.stdout, re.MULTILINE))


def test_jobs_and_ci_run_sessions_that_exist(checkout: Path, programs: Path) -> None:
    exist = sessions()
    jobs = WORKFLOWS["ci.yml"]["jobs"]
    assert set(jobs["check"]["strategy"]["matrix"]["session"]) < exist
    assert {f"fast-{python}" for python in jobs["fast"]["strategy"]["matrix"]["python"]} < exist
    ran = set()
    for file, name, step in SHELL:
        ran |= set(
            re.findall(r"\[nox\]\[-s\]\[(.*)\]", calls(file, name, step, checkout, programs))
        )
    assert ran == {"lint", "fast-3.10"}  # the first of each matrix
    script = (TOP / ".ci" / "run").read_text()
    assert set(re.findall(r"^(?:here|alone) (\w+)", script, re.MULTILINE)) < exist


def test_the_notes_of_a_release_are_its_section_of_the_changelog(checkout: Path) -> None:
    def notes(tag: str, changelog: str) -> tuple[int, str, str]:
        (checkout / "CHANGELOG.md").write_text(changelog)
        line = [sys.executable, ".ci/release_notes.py", tag]
        done = subprocess.run(line, cwd=checkout, capture_output=True, check=False, text=True)
        return done.returncode, done.stdout, done.stderr

    version = cgpt_convert.__version__
    text = f"# Changelog\n\n## [Unreleased]\n\n- b\n\n## [{version}] - 2026-01-02\n\n- a\n"
    older = "\n## [0.0.9] - 2025-01-02\n\n- z\n\n[0.0.9]: https://example.org\n"
    assert notes(f"v{version}", text + older) == (0, "- a\n", "")
    code, out, err = notes("v9.9.9", text)
    assert (code, out) == (1, "")
    assert "the tag is v9.9.9" in err
    code, out, err = notes(f"v{version}", text.replace("2026-01-02", "unreleased"))
    assert (code, out) == (1, "")
    assert "CHANGELOG.md has no section" in err
