"""The files that hosts, package indexes and contributors read fit their schemas and each other."""

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

import cgpt_convert
from tests.helpers.running import environ

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TOP = Path(__file__).parents[2]
GITHUB = TOP / ".github"
SCHEMAS = {
    **dict.fromkeys(sorted(GITHUB.glob("ISSUE_TEMPLATE/[0-9]*.yml")), "github-issue-forms"),
    GITHUB / "ISSUE_TEMPLATE" / "config.yml": "github-issue-config",
    GITHUB / "dependabot.yml": "dependabot",
    TOP / "CITATION.cff": "citation-file-format",
}


def schema(name: str) -> Any:
    vendored = files("check_jsonschema.builtin_schemas.vendor").joinpath(f"{name}.json")
    return json.loads(vendored.read_text("utf-8"))


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.name)
def test_it_fits_its_schema(path: Path) -> None:
    jsonschema.validate(yaml.safe_load(path.read_text("utf-8")), schema(SCHEMAS[path]))


def test_every_form_is_checked() -> None:
    forms = {path for path in SCHEMAS if path.parent.name == "ISSUE_TEMPLATE"}
    assert forms == set(GITHUB.glob("ISSUE_TEMPLATE/*"))
    assert len(forms) > 3


def test_pre_commit_checks_style_and_spelling(tmp_path: Path) -> None:
    for name in (".pre-commit-config.yaml", "pyproject.toml"):
        shutil.copy(TOP / name, tmp_path)
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)

    def passed(text: str) -> set[str]:
        (tmp_path / "module.py").write_text(text)
        subprocess.run(["git", "add", "--all"], cwd=tmp_path, check=True)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            [sys.executable, "-m", "pre_commit", "run", "--all-files"],
            cwd=tmp_path,
            env=environ(PATH=path, SKIP="mypy", PRE_COMMIT_HOME=str(tmp_path.parent / "hooks")),
            capture_output=True,
            check=False,
            text=True,
        )
        return set(re.findall(r"^([\w ]+?)\.+Passed$", done.stdout, re.MULTILINE))

    assert passed('"""A module."""\n') == {"ruff check", "ruff format", "codespell"}
    assert passed('"""Recieved."""\n') == {"ruff check", "ruff format"}  # codespell:ignore
    assert passed('"""A module."""\nimport os\n\n\n\n') == {"codespell"}


def test_the_version_is_written_once() -> None:
    """The package has it; the build takes it from there, and citations name no version."""
    project = tomllib.loads((TOP / "pyproject.toml").read_text("utf-8"))
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["hatch"]["version"] == {"path": "cgpt_convert/__init__.py"}
    assert "version" not in yaml.safe_load((TOP / "CITATION.cff").read_text("utf-8"))


def test_examples_of_the_documentation_name_this_version() -> None:
    text = (TOP / "docs" / "how-to" / "ci.md").read_text("utf-8")
    named = set(re.findall(r"cgpt-convert@v(\S+)|rev: v(\S+)", text))
    assert {one or other for one, other in named} == {cgpt_convert.__version__}


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "RELEASING.md"])
def test_files_that_a_page_names_exist(page: str) -> None:
    folders = "cgpt_convert|docs|fuzz|mappings|tests|\\.ci|\\.github"
    text = (TOP / page).read_text("utf-8")
    named = re.findall(rf"`((?:{folders})/[\w./-]*)`", text)
    assert named
    for path in named:
        assert (TOP / path).exists() or "NAME" in path, path


def test_the_changelog_keeps_its_form() -> None:
    """As keepachangelog.com has it; .ci/release_notes.py takes a release's section from it."""
    text = (TOP / "CHANGELOG.md").read_text("utf-8")
    versions = re.findall(r"^## (.*)", text, re.MULTILINE)
    assert versions[0] == "[Unreleased]"
    release = r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d( \[YANKED\])?"
    assert all(re.fullmatch(release, version) for version in versions[1:])
    kinds = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
    for section in re.split(r"^## .*\n", text, flags=re.MULTILINE)[1:]:
        found = re.findall(r"^### (.*)", section, re.MULTILINE)
        assert found == [kind for kind in kinds if kind in found]
