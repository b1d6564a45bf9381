"""Formats of other packages, registered by entry points: every command takes their files."""

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cgpt_convert.formats import registry
from cgpt_convert.tensors.dtypes import BY_NAME
from tests.helpers import samples
from tests.helpers.render import render, request, write
from tests.helpers.running import ROOT, Result, environ, spawn

DEMO = ROOT / "cgpt_convert" / "demo" / "pytorch_model.bin"
MODULE = """
import json
import os

from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.core.errors import Malformed
from cgpt_convert.formats import planning
from cgpt_convert.formats.registry import Format, FormatFile
from cgpt_convert.plan import FilePlan
from cgpt_convert.sources.local import read
from cgpt_convert.sources.paths import open_source
from cgpt_convert.tensors.dtypes import BY_NAME
from cgpt_convert.tensors.shapes import c_strides
from cgpt_convert.tensors.tensor import Storage, Tensor


def plan(magic, request):
    planning.check(request, "toy", lambda tensor: True)
    rows, at = {}, 0
    for tensor in request.tensors:
        rows[tensor.name] = [tensor.dtype.name, tensor.shape, at, tensor.nbytes]
        at += tensor.nbytes
    header = json.dumps([rows, request.aliases, request.metadata]).encode()
    start = magic + len(header).to_bytes(4, "little") + header
    return [FilePlan(os.path.basename(request.name), (start, *request.tensors))]


def plan_toy(request):
    return plan(b"\\x9fTOY", request)


def read_file(file):
    source = file.source
    size = 8 + int.from_bytes(read(source, 4, 4), "little")
    if size > source.nbytes:
        raise Malformed("a toy file cut off in its header", where=source.name)
    rows, aliases, metadata = json.loads(read(source, 8, size - 8))
    tensors = {}
    for name, (dtype, shape, at, nbytes) in rows.items():
        if size + at + nbytes > source.nbytes:
            raise Malformed(f"a toy file cut off in tensor {name}", where=source.name)
        storage = Storage(source, size + at, nbytes, name)
        shape = tuple(shape)
        tensors[name] = Tensor(name, BY_NAME[dtype], shape, c_strides(shape), 0, storage)
    for name, kept in aliases.items():
        tensors[name] = tensors[kept].renamed(name)
    storages = [tensor.storage for tensor in tensors.values()]
    return Checkpoint(file.path, "toy", (source,), tensors, storages, metadata=metadata)


def detect_old(start):
    return len(start.head) >= 8 and start.head.startswith(b"\\x9fOLD")


def detect_folder(inside):
    return "toys.txt" in inside


def read_path(path):
    with open(os.path.join(path, "toys.txt")) as listed:
        name = listed.read().strip()
    source = open_source(os.path.join(path, name))
    return read_file(FormatFile(source, path))


def diagnose(file):
    where = file.source.name
    if not where.endswith(".toy"):
        return None
    return Malformed("a toy file without its first bytes", where=where, hint="fetch it again")


def scan(source, scanner):
    rows = json.loads(read(source, 8, int.from_bytes(read(source, 4, 4), "little")))[0]
    end = 8 + int.from_bytes(read(source, 4, 4), "little") + sum(row[3] for row in rows.values())
    if end != source.nbytes:
        raise Malformed("a toy file with bytes that belong to nothing", where=source.name)


READ_WRITE = Format(
    "toy",
    (".toy",),
    read_file=read_file,
    plan=plan_toy,
    dtypes=lambda: tuple(BY_NAME.values()),
    magic=((0, b"\\x9fTOY"),),
    diagnose=diagnose,
    scan=scan,
)
READ_ONLY = Format(
    "toy-old",
    (".toy0",),
    detect=detect_old,
    detect_folder=detect_folder,
    read_file=read_file,
    read_path=read_path,
)


def fails(*_arguments):
    raise KeyError("a mistake in the plug-in")


FAILING = Format(
    "failing",
    (".fail",),
    magic=((0, b"\\x9fBAD"),),
    detect_folder=lambda inside: "bad.txt" in inside,
    read_file=fails,
    read_path=fails,
    plan=fails,
    dtypes=fails,
    scan=fails,
)
RETURNS_NOTHING = Format(
    "nothing", (".none",), magic=((0, b"\\x9fNIL"),), read_file=lambda file: None
)
SPENDING = Format(
    "spending",
    magic=((0, b"\\x9fPKL"),),
    read_file=fails,
    scan=lambda source, scanner: [scanner.pickles(4, certain=True) for _ in range(1000000)],
)
"""


def installed(site: Path, *entries: str) -> Path:
    """Install a distribution that registers `entries` into the folder `site`."""
    info = site / "toy_formats-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-formats\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("\n".join([f"[{registry.GROUP}]", *entries, ""]))
    (site / "toy_formats.py").write_text(MODULE)
    return site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plugins") / "site"
    return installed(folder, "toy = toy_formats:READ_WRITE", "toy-old = toy_formats:READ_ONLY")


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed(tmp_path_factory.mktemp("broken") / "site", "toy = toy_formats:MISSING")


def with_plugins(site: Path, *words: object) -> Result:
    return spawn(*words, PYTHONPATH=os.pathsep.join([str(ROOT), str(site)]))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A safetensors file of two tensors."""
    folder = tmp_path_factory.mktemp("source")
    tensors = (
        samples.tensor("a.weight", BY_NAME["float32"], (3, 4)),
        samples.tensor("b", BY_NAME["bfloat16"], (5,), 1),
    )
    form = registry.by_name("safetensors")
    write(render(form.planned(request("m.safetensors", *tensors))), folder)
    return folder / "m.safetensors"


@pytest.fixture(scope="module")
def toy(site: Path, source: Path) -> Path:
    """The same tensors as a toy file, written by `convert`, whose suffix tells the format."""
    path = source.parent / "m.toy"
    done = with_plugins(site, "convert", source, "-o", path, "--verify", "--json")
    assert (done.code, done.json["verified"]) == (0, True), done.err
    return path


@pytest.fixture(scope="module")
def old(toy: Path) -> Path:
    """The same tensors in the read-only format; its name says nothing."""
    path = toy.parent / "old"
    path.write_bytes(b"\x9fOLD" + toy.read_bytes()[4:])
    return path


@pytest.mark.parametrize("name", ["toy", "old"])
def test_every_command_reads_them(
    name: str, site: Path, source: Path, toy: Path, old: Path, tmp_path: Path
) -> None:
    path = toy if name == "toy" else old
    shown = with_plugins(site, "inspect", path, "--json")
    assert [row["name"] for row in shown.json["tensors"]] == ["a.weight", "b"]
    digests = [with_plugins(site, "digest", each, "--json").json for each in (path, source)]
    assert digests[0]["tensors"] == digests[1]["tensors"]
    assert with_plugins(site, "verify", path, source).code == 0
    back = tmp_path / "back.safetensors"
    done = with_plugins(site, "convert", path, "-o", back, "--no-proof")
    assert done.code == 0, done.err
    assert back.read_bytes() == source.read_bytes()


def test_to_takes_the_name_of_one(site: Path, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "any.bytes"
    assert with_plugins(site, "convert", source, "-o", out, "--to", "toy").code == 0
    assert out.read_bytes()[:4] == b"\x9fTOY"


def test_a_read_only_format_is_not_written(site: Path, source: Path, tmp_path: Path) -> None:
    done = with_plugins(site, "convert", source, "-o", tmp_path / "x.toy0")
    assert done.code == 2
    assert "toy-old cannot be written" in done.err
    named = with_plugins(site, "convert", source, "-o", tmp_path / "x", "--to", "toy-old")
    assert named.code == 2
    assert "'toy'" in named.err
    assert not list(tmp_path.iterdir())


def test_a_folder_with_one_such_file_is_opened(site: Path, toy: Path, tmp_path: Path) -> None:
    (tmp_path / "m.toy").write_bytes(toy.read_bytes())
    (tmp_path / "README").write_text("text")
    shown = with_plugins(site, "inspect", tmp_path, "--json")
    assert len(shown.json["tensors"]) == 2


def test_a_folder_is_opened_by_the_names_in_it(site: Path, toy: Path, tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(toy.read_bytes())
    (tmp_path / "toys.txt").write_text("weights\n")
    shown = with_plugins(site, "inspect", tmp_path, "--json")
    assert (shown.code, [row["name"] for row in shown.json["tensors"]]) == (0, ["a.weight", "b"])
    assert with_plugins(site, "verify", tmp_path, toy).code == 0


# what `__init__.py` of a folder in `formats/` is, and a command that finds the folder there
FOLDER = """
from cgpt_convert.core.lazy import LazyReference
from cgpt_convert.formats.file_kinds import FormatKind
from cgpt_convert.formats.registry import Format

FORMAT = Format(
    "toy",
    (".toy",),
    kinds=(FormatKind("toy box"),),
    magic=((0, b"\\x9fTOY"),),
    model_files=("box.toy",),
    read_file=LazyReference(f"{__name__}.toys:read_file"),
    diagnose=LazyReference(f"{__name__}.toys:diagnose"),
    plan=LazyReference(f"{__name__}.toys:plan_toy"),
    dtypes=lambda: (),
    scan=LazyReference(f"{__name__}.toys:scan"),
)
"""
WITH_FOLDER = """
import sys
import cgpt_convert.formats
cgpt_convert.formats.__path__.append(sys.argv.pop(1))
from cgpt_convert.cli import main
sys.exit(main())
"""


def test_a_built_in_format_is_a_folder_and_nothing_else(source: Path, tmp_path: Path) -> None:
    package = tmp_path / "formats" / "toybox"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(FOLDER)
    (package / "toys.py").write_text(MODULE)

    def run(*words: object) -> tuple[int, str, str]:
        command = [sys.executable, "-c", WITH_FOLDER, package.parent, *words]
        done = subprocess.run(
            list(map(str, command)), check=False, capture_output=True, env=environ(), text=True
        )
        return done.returncode, done.stdout, done.stderr

    model = tmp_path / "model"
    model.mkdir()
    toy, named, back = model / "box.toy", tmp_path / "named", tmp_path / "back.safetensors"
    assert run("convert", source, "-o", toy, "--verify")[0] == 0
    assert run("convert", source, "-o", named, "--to", "toy")[0] == 0
    assert toy.read_bytes()[:4] == named.read_bytes()[:4] == b"\x9fTOY"
    assert run("convert", model, "-o", back, "--no-proof")[0] == 0
    assert back.read_bytes() == source.read_bytes()
    assert re.search(r"\btoy\b", run("convert", "--help")[1])
    (row,) = json.loads(run("scan", toy, "--json")[1])["files"]
    assert (row["verdict"], row["kind"]) == ("clean", "toy box")
    toy.write_bytes(toy.read_bytes() + b"more")
    assert json.loads(run("scan", toy, "--json")[1])["files"][0]["verdict"] == "malformed"
    toy.write_bytes(toy.read_bytes()[4:])
    code, _, told = run("inspect", toy)
    assert (code, "a toy file without its first bytes" in told) == (3, True)


def test_the_conformance_suite_checks_plugins(site: Path) -> None:
    suite = "tests/formats/test_conformance.py"
    command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-rA", suite, "-k", "toy"]
    path = os.pathsep.join([str(ROOT), str(site)])
    env = environ() | {"PYTHONPATH": path}
    done = subprocess.run(command, check=False, capture_output=True, cwd=ROOT, env=env, text=True)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("[toy]") >= 12
    assert "test_every_claimed_type_and_shape_comes_back[toy]" in done.stdout


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = {"failing": "FAILING", "nothing": "RETURNS_NOTHING", "spending": "SPENDING"}
    entries = [f"{name} = toy_formats:{value}" for name, value in names.items()]
    return installed(tmp_path_factory.mktemp("failing") / "site", *entries)


def test_a_mistake_in_a_plugin_is_no_traceback(failing: Path, source: Path, tmp_path: Path) -> None:
    bad, nothing, folder = tmp_path / "bad", tmp_path / "nothing", tmp_path / "folder"
    bad.write_bytes(b"\x9fBAD" + bytes(100))
    nothing.write_bytes(b"\x9fNIL" + bytes(100))
    folder.mkdir()
    (folder / "bad.txt").write_text("")
    out = tmp_path / "out.fail"
    for words in (("inspect", bad), ("inspect", folder), ("convert", source, "-o", out)):
        done = with_plugins(failing, *words)
        assert done.code == 3, done.err
        assert "the format plug-in failing failed: KeyError('a mistake" in done.err
        assert "Traceback" not in done.err
    assert not out.exists()
    done = with_plugins(failing, "inspect", nothing)
    assert (done.code, "plug-in nothing did not return a Checkpoint" in done.err) == (3, True), (
        done.err
    )
    (row,) = with_plugins(failing, "scan", bad, "--json").json["files"]
    assert row["verdict"] == "not scanned"
    assert any("KeyError" in problem["detail"] for problem in row["problems"])


def test_a_plugin_cannot_spend_more_than_other_files(failing: Path, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"\x9fPKL" + pickle.dumps(list(range(100))))
    (row,) = with_plugins(failing, "scan", path, "--json").json["files"]
    assert row["verdict"] == "not scanned"
    assert any("take longer than" in problem["detail"] for problem in row["problems"])


def test_only_what_a_format_scans_is_clean(
    site: Path, toy: Path, old: Path, tmp_path: Path
) -> None:
    clean = with_plugins(site, "scan", toy, "--json")
    (row,) = clean.json["files"]
    assert (clean.code, row["verdict"], row["kind"]) == (0, "clean", "toy file")
    assert with_plugins(site, "scan", old).code == 3
    (row,) = with_plugins(site, "scan", old, "--json").json["files"]
    assert row["verdict"] == "not scanned"
    longer = tmp_path / "longer.toy"
    longer.write_bytes(toy.read_bytes() + b"more")
    (row,) = with_plugins(site, "scan", longer, "--json").json["files"]
    assert row["verdict"] == "malformed"


def test_what_is_named_like_one_is_not_passed_over(site: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.toy"
    path.write_bytes(b"\x01\x02\x03\x04" * 100)
    (row,) = with_plugins(site, "scan", path, "--json").json["files"]
    assert row["verdict"] == "not scanned"


def test_a_zip_behind_such_a_file_is_found(site: Path, toy: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.toy"
    path.write_bytes(toy.read_bytes())
    with path.open("ab") as file:
        file.write(DEMO.read_bytes())
    (row,) = with_plugins(site, "scan", path, "--json").json["files"]
    assert row["verdict"] == "malformed"
    assert any("zip" in problem["detail"] for problem in row["problems"])


def test_damage_is_diagnosed(site: Path, toy: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.toy"
    cut.write_bytes(toy.read_bytes()[:-3])
    done = with_plugins(site, "inspect", cut)
    assert done.code == 3
    assert "cut off in tensor b" in done.err
    headless = tmp_path / "headless.toy"
    headless.write_bytes(toy.read_bytes()[4:])
    done = with_plugins(site, "inspect", headless)
    assert done.code == 3
    assert "a toy file without its first bytes" in done.err
    assert "fetch it again" in done.err


def test_what_is_built_in_asks_no_plugin(broken: Path, tmp_path: Path) -> None:
    assert with_plugins(broken, "inspect", DEMO).code == 0
    assert with_plugins(broken, "scan", DEMO).code == 0
    assert with_plugins(broken, "convert", DEMO, "-o", tmp_path / "x.npz").code == 0


def test_a_broken_plugin_is_named_and_hides_nothing(broken: Path, tmp_path: Path) -> None:
    path = tmp_path / "unknown"
    path.write_bytes(b"\x01\x02\x03\x04" * 100)
    done = with_plugins(broken, "inspect", path)
    assert done.code == 3
    assert "toy_formats:MISSING cannot be loaded" in done.err
    evil = tmp_path / "evil.pkl"
    evil.write_bytes(pickle.dumps(os.getcwd))
    (row,) = json.loads(with_plugins(broken, "scan", evil, "--json").raw)["files"]
    assert row["sightings"]
    assert any("cannot be loaded" in problem["detail"] for problem in row["problems"])


def test_the_documented_format_works(tmp_path: Path) -> None:
    how_to = (
        (ROOT / "docs" / "reference" / "formats.md").read_text().partition("## Add a format")[2]
    )
    (module,) = re.findall(r"```python\n(.*?)```", how_to, re.DOTALL)
    entry = re.search(r'^vector = "(.*)"$', how_to, re.MULTILINE)
    assert entry
    folder = installed(tmp_path / "site", f"vector = {entry[1]}")
    (folder / "vectors.py").write_text(module)
    tensor = samples.tensor("vector", BY_NAME["float32"], (6,))
    npz = tmp_path / "m.npz"
    write(render(registry.by_name("npz").planned(request("m.npz", tensor))), tmp_path)
    vec = tmp_path / "m.vec"
    assert with_plugins(folder, "convert", npz, "-o", vec, "--verify").code == 0
    assert with_plugins(folder, "verify", vec, npz).code == 0
    assert with_plugins(folder, "scan", vec).code == 0
    vec.write_bytes(vec.read_bytes()[:-1])
    assert with_plugins(folder, "inspect", vec).code == 3
    assert with_plugins(folder, "scan", vec).code == 3


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("x = toy_formats:read_file", "is not an instance of Format"),
        ("npz = taken:TAKEN", "another format"),
    ],
)
def test_an_impossible_plugin_is_named(entry: str, message: str, tmp_path: Path) -> None:
    folder = installed(tmp_path / "site", entry)
    (folder / "taken.py").write_text(
        "from cgpt_convert.formats.registry import Format\nTAKEN = Format('npz')\n"
    )
    path = tmp_path / "unknown"
    path.write_bytes(b"\x01\x02\x03\x04" * 100)
    done = with_plugins(folder, "inspect", path)
    assert done.code == 3
    assert message in done.err
