"""What `pip install` of the built wheel gives: the package, the mappings, the demo, the types."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
TOP = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    line = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(TOP)]
    subprocess.run(line, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_every_module_and_all_data(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    for path in (TOP / "cgpt_convert").rglob("*.py"):
        assert path.relative_to(TOP).as_posix() in inside
    for path in (TOP / "mappings").rglob("*.toml"):
        assert f"cgpt_convert/_mappings/{path.relative_to(TOP / 'mappings').as_posix()}" in inside
    for path in (TOP / "cgpt_convert" / "demo").iterdir():
        assert path.relative_to(TOP).as_posix() in inside
    assert "cgpt_convert/py.typed" in inside
    assert not any(name.startswith(("tests/", "benchmarks/", "docs/")) for name in inside)


def test_the_wheel_is_small(wheel: Path) -> None:
    assert wheel.stat().st_size < 7_000_000


def test_the_package_in_the_wheel_finds_its_mappings(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    line = [sys.executable, "-c", "from cgpt_convert.cli import main; main()", "models"]
    done = subprocess.run(
        line,
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "12,853,386,240" in done.stdout
