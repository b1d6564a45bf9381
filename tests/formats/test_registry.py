"""Formats of other packages, registered by entry points: every command takes their files."""

import json
import os
import pickle
import re
from pathlib import Path

import pytest

from cgpt_convert.formats import registry
from cgpt_convert.tensors.dtypes import BY_NAME
from tests.helpers import samples
from tests.helpers.render import render, request, write
from tests.helpers.running import ROOT, Result, spawn

DEMO = ROOT / "cgpt_convert" / "demo" / "pytorch_model.bin"
MODULE = """
import functools
import json
import os

from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.core.errors import Malformed
from cgpt_convert.formats.registry import Format
from cgpt_convert.plan import FilePlan
from cgpt_convert.sources.local import read
from cgpt_convert.tensors.dtypes import BY_NAME
from cgpt_convert.tensors.shapes import c_strides
from cgpt_convert.tensors.tensor import Storage, Tensor


def plan(magic, request):
    rows, at = {}, 0
    for tensor in request.tensors:
        rows[tensor.name] = [tensor.dtype.name, tensor.shape, at, tensor.nbytes]
        at += tensor.nbytes
    header = json.dumps([rows, request.aliases, request.metadata]).encode()
    start = magic + len(header).to_bytes(4, "little") + header
    return [FilePlan(os.path.basename(request.name), (start, *request.tensors))]


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


def begins(magic, source):
    return source.nbytes >= 8 and read(source, 0, 4) == magic


def diagnose(source):
    if not source.name.endswith(".toy"):
        return None
    return Malformed("a toy file without its first bytes", where=source.name, hint="fetch it again")


def scan(source):
    rows = json.loads(read(source, 8, int.from_bytes(read(source, 4, 4), "little")))[0]
    end = 8 + int.from_bytes(read(source, 4, 4), "little") + sum(row[3] for row in rows.values())
    if end != source.nbytes:
        raise Malformed("a toy file with bytes that belong to nothing", where=source.name)


READ_WRITE = Format(
    "toy",
    (".toy",),
    read_file=read_file,
    plan=functools.partial(plan, b"\\x9fTOY"),
    dtypes=lambda: tuple(BY_NAME.values()),
    detect=functools.partial(begins, b"\\x9fTOY"),
    diagnose=diagnose,
    scan=scan,
)
READ_ONLY = Format(
    "toy-old", (".toy0",), read_file=read_file, detect=functools.partial(begins, b"\\x9fOLD")
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
    assert "toy-old can only be read" in done.err
    named = with_plugins(site, "convert", source, "-o", tmp_path / "x", "--to", "toy-old")
    assert named.code == 2
    assert "'toy'" in named.err
    assert not list(tmp_path.iterdir())


def test_a_folder_with_one_such_file_is_opened(site: Path, toy: Path, tmp_path: Path) -> None:
    (tmp_path / "m.toy").write_bytes(toy.read_bytes())
    (tmp_path / "README").write_text("text")
    shown = with_plugins(site, "inspect", tmp_path, "--json")
    assert len(shown.json["tensors"]) == 2


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
    [("x = toy_formats:read_file", "is not a Format"), ("npz = taken:TAKEN", "another format")],
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
