"""The figures of the package's layout, and those of a small package made for the purpose."""

from pathlib import Path

from benchmarks import layout

ROOT = Path(__file__).parents[2]


def test_the_layout_has_no_circle_and_few_packages() -> None:
    found = layout.measure(ROOT)
    assert found["top-level packages and modules"] <= 22
    assert found["circular imports"] == 0
    assert found["loose modules at the top"] <= 6
    assert found["file names that occur more than once"] == 0
    assert found["class names that occur more than once"] == 0
    assert found['docstrings that begin with "What"'] == 0
    assert found["docstrings that are questions"] == 0


def test_rooms_levels_imports_and_circles_are_counted(tmp_path: Path) -> None:
    modules = {
        "__init__": "from cgpt_convert.api import run",
        "base": "class Thing: ...",
        "api/__init__": '"""What it offers."""',
        "api/run": "def run():\n    from cgpt_convert.left.thing import thing",
        "left/__init__": "",
        "left/thing": "from cgpt_convert import base\nfrom cgpt_convert.right import thing",
        "right/__init__": "from cgpt_convert.base import Thing",
        "right/thing": "from cgpt_convert.left import thing\nclass _Thing:\n    '''Is it one?'''",
    }
    for name, text in modules.items():
        path = tmp_path / "cgpt_convert" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = layout.measure(tmp_path)
    assert list(found.values()) == [4, 3, 5, 1, 1, 4, 4, 11, 1, 1, 1, 1]
