"""Start-up time is a promise: what a command does not need, it does not import."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests import vendor
from tests.running import environ

HEAVY = {"torch", "numpy", "zipfile", "tqdm", "transformers", "safetensors", "gguf"}

REPORT = """
import sys
from cgpt_convert.cli import main
code = main()
print("\\nimported:", code, *sys.modules, file=sys.stderr)
"""


def imported(*words: object) -> set[str]:
    """The modules in memory after the command, which must succeed; standard error is a pipe."""
    done = subprocess.run(
        [sys.executable, "-c", REPORT, *map(str, words)],
        capture_output=True,
        check=True,
        env=environ(),
        text=True,
    )
    code, *names = done.stderr.partition("\nimported: ")[2].split()
    assert code == "0", done.stderr
    return set(names)


@pytest.fixture(scope="module")
def contiguous(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vendor.write(vendor.TINY, tmp_path_factory.mktemp("hf"), "hf")


def test_help_imports_click_and_no_command() -> None:
    names = imported("--help")
    assert "click" in names
    assert not HEAVY & names
    assert {name for name in names if name.startswith("cgpt_convert.")} <= {
        "cgpt_convert.cli",
        "cgpt_convert.errors",
        "cgpt_convert.inert",
    }


def test_help_of_generate_imports_nothing_heavy() -> None:
    assert not HEAVY & imported("generate", "--help")


def test_inspect_imports_nothing_heavy(contiguous: Path) -> None:
    assert not HEAVY & imported("inspect", contiguous)


def test_scan_imports_nothing_heavy(contiguous: Path) -> None:
    assert not HEAVY & imported("scan", contiguous)


def test_contiguous_convert_imports_nothing_heavy(contiguous: Path, tmp_path: Path) -> None:
    assert not HEAVY & imported("convert", contiguous, "-o", tmp_path / "out.safetensors")


@pytest.mark.parametrize("by", ["storage", "name"])
def test_contiguous_extract_imports_nothing_heavy(
    contiguous: Path, tmp_path: Path, by: str
) -> None:
    assert not HEAVY & imported("extract", contiguous, "-o", tmp_path / "out", "--by", by)


def test_transposing_takes_numpy(tmp_path: Path) -> None:
    strided = vendor.write(vendor.TINY, tmp_path, "cs")
    assert HEAVY & imported("convert", strided, "-o", tmp_path / "out.safetensors") == {"numpy"}
