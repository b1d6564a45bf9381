"""Every class of hostile files: `scan` fails on it, a loader acts on it, and the page lists it."""

from pathlib import Path

import pytest

from fuzz import scoreboard
from fuzz.classes import classes
from fuzz.differential import warm_up
from fuzz.sandbox import Child, scanned
from tests.helpers.running import ROOT

CLASSES = {f"{each.group}: {each.title}": each for each in classes()}
# which loaders that are not installed act on, or that nothing but an error is to be expected of
UNSEEN = {
    *("`_pyrepl.pager.pipe_pager`", "`_interpreters.create`", "LZ4", "zstd", "HDF5"),
    *("encryption flag in both headers", "flag 0x20", "flag 0x40", "an unknown compression"),
    "a name that is not printable",
    *("a 7z archive", "a rar archive", "Keras with a Lambda layer", "TensorFlow's saved model"),
    *("TorchServe's `.mar` with a handler", "a shared library as a weight file"),
    *("a `.pth` file for Python's site module", "ONNX with an external custom library"),
}
PAGE = ROOT / "docs" / "explanation" / "scoreboard.md"


@pytest.fixture(scope="module")
def child():
    warm_up()
    child = Child(trusting=True)
    yield child
    child.close()


@pytest.mark.parametrize("name", CLASSES)
def test_the_scanner_fails_on_each_class(name, tmp_path):
    hostile = CLASSES[name]
    (tmp_path / hostile.file).write_bytes(hostile.make())
    code, report = scanned(str(tmp_path / hostile.file))
    assert code in (1, 3), report


SEEN = [
    name
    for name, each in CLASSES.items()
    if each.group != "Configuration" and each.title not in UNSEEN
]


@pytest.mark.parametrize("name", SEEN)
def test_a_loader_acts_on_each_class(name, child):
    hostile = CLASSES[name]
    data = hostile.make()
    if len(data) <= scoreboard.MOST:
        assert child.run(data, hostile.file).events


def test_the_page_lists_each_class_and_nothing_else():
    assert scoreboard.listed(PAGE).keys() - {"class"} == {each.title for each in classes()}
    ours, *_ = (line for line in PAGE.read_text().splitlines() if "| cgpt-convert scan |" in line)
    assert ours.endswith(" | 0 |")  # passed


def test_titles_are_given_once():
    assert len({each.title for each in classes()}) == len(classes())


def test_a_page_is_made_of_rows():
    rows = {"A group": [["one", "yes", "reported", "**passed**"]]}
    made = scoreboard.page(rows, [["**passed**", "not scanned"]], ["other 1.0"])
    assert "| cgpt-convert scan | 1 | 0 | 0 |" in made
    assert "| cgpt-convert scan | 0 | 0 | 1 |" in made
    assert "| other 1.0 | 0 | 1 | 0 |" in made
    assert "| other 1.0 | 0 | 0 | 1 |" in made
    assert "| one | yes | reported | **passed** |" in made


def test_a_program_is_judged_by_its_exit_code(tmp_path: Path):
    script = ["sh", "-c", "exit $(cat $0)"]
    for code, verdict in ((0, scoreboard.PASSED), (1, scoreboard.REPORTED), (4, "not scanned")):
        (tmp_path / "x").write_text(str(code))
        assert scoreboard.judged(script, tmp_path / "x") == verdict
