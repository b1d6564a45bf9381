"""Loaders that people open files with: each is given a path, and does what it does.

Those that unpickle are run with C's unpickler and, where they allow another one, with those of
`fuzz.recorder`. What a container holds is loaded in the same way, a few levels deep.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import os
import pickle
import re
import tarfile
import types
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import joblib
import numpy as np
import pandas as pd
import torch
import torch.export
from torch.package.package_importer import PackageImporter

from fuzz.recorder import Events, Stopped, recording

DEPTH = 3  # of containers in containers
MEMBERS = 40  # of one container
MOST = 4 << 20  # bytes of one member
PICKLES = 12  # one behind another

Loader = Callable[[str, Events], None]


def several(stream: Any, load: Callable[[Any], object]) -> None:
    """Load one pickle after another, until one fails."""
    for _ in range(PICKLES):
        load(stream)


def c_pickles(path: str, _events: Events) -> None:
    """Load with C's unpickler, buffered."""
    with open(path, "rb") as file:
        several(file, pickle.load)


def c_unbuffered(path: str, _events: Events) -> None:
    """Load with C's unpickler from a file without peek(), with texts of Python 2 as bytes."""
    with open(path, "rb", 0) as file:
        several(file, lambda stream: pickle.load(stream, encoding="bytes"))


def c_from_memory(path: str, _events: Events) -> None:
    """Load with C's unpickler from bytes."""
    with open(path, "rb") as file:
        pickle.loads(file.read(), encoding="latin1")


class Referring(pickle.Unpickler):
    """C's unpickler as programs extend it that keep some objects elsewhere."""

    def persistent_load(self, reference: object) -> object:
        """Return the reference itself."""
        return reference


def c_referring(path: str, _events: Events) -> None:
    """Load with C's unpickler, taking any persistent id."""
    with open(path, "rb") as file:
        several(file, lambda stream: Referring(stream).load())


def python_pickles(path: str, events: Events) -> None:
    """Load with Python's unpickler."""
    unpickler = recording(events)
    with open(path, "rb") as file:
        several(file, lambda stream: unpickler(stream).load())


def python2_pickles(path: str, events: Events) -> None:
    """Load with the memo of Python 2.7."""
    unpickler = recording(events, python2=True)
    with open(path, "rb") as file:
        several(file, lambda stream: unpickler(stream, encoding="bytes").load())


def torch_load(path: str, _events: Events) -> None:
    """Load as torch does if told to load everything."""
    torch.load(path, weights_only=False)


def torch_recorded(path: str, events: Events) -> None:
    """Load as torch does, with the recording unpickler."""
    torch.load(path, weights_only=False, pickle_module=_module(events))


def torch_weights_only(path: str, _events: Events) -> None:
    """Load as torch does by default."""
    torch.load(path, weights_only=True)


def torch_mapped(path: str, _events: Events) -> None:
    """Load as torch does with the file mapped into memory."""
    torch.load(path, weights_only=False, mmap=True)


def torch_legacy(path: str, events: Events) -> None:
    """Load as torch's legacy loader does, also what begins as a zip."""
    with open(path, "rb") as file:
        torch.serialization._legacy_load(file, "cpu", _module(events))  # noqa: SLF001


def torch_from_memory(path: str, _events: Events) -> None:
    """Load as torch does from bytes, which skips its tar reader."""
    with open(path, "rb") as file:
        torch.load(io.BytesIO(file.read()), weights_only=False)


def _module(events: Events) -> Any:
    unpickler = recording(events)

    def load(stream: Any, **how: Any) -> object:
        return unpickler(stream, **how).load()

    return types.SimpleNamespace(Unpickler=unpickler, load=load, __name__="recorder")


def script(path: str, _events: Events) -> None:
    """Load a TorchScript module."""
    torch.jit.load(path, map_location="cpu")


def exported(path: str, _events: Events) -> None:
    """Load an exported program."""
    with open(path, "rb") as file:
        torch.export.load(file)


def package(path: str, _events: Events) -> None:
    """Load every pickle of a torch.package."""
    importer = PackageImporter(path)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    for name in names[:MEMBERS]:
        _, _, inside = name.partition("/")
        folder, _, resource = inside.rpartition("/")
        if resource.endswith(".pkl"):
            _quietly(importer.load_pickle, folder.replace("/", "."), resource)


def compiled(path: str, events: Events) -> None:
    """Unpack a compiled model; report a native library instead of loading it."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any("/aotinductor/" in name and name.endswith(".so") for name in names):
        events.add("loads a native library")


def arrays(path: str, _events: Events) -> None:
    """Load an .npy, an .npz or a pickle as NumPy does if told to unpickle."""
    loaded = np.load(path, allow_pickle=True)
    for name in getattr(loaded, "files", [])[:MEMBERS]:
        _quietly(loaded.__getitem__, name)


def joblibs(path: str, _events: Events) -> None:
    """Load as joblib does, which tells the compression by content."""
    joblib.load(path)


def frames(path: str, _events: Events) -> None:
    """Load as pandas does, by each compression."""
    for how in (None, "zip", "gzip", "bz2", "xz", "tar"):
        _quietly(pd.read_pickle, path, compression=how)


LOADERS: dict[str, Loader] = {
    "Python pickle": python_pickles,
    "C pickle": c_pickles,
    "C pickle, unbuffered": c_unbuffered,
    "C pickle, memory": c_from_memory,
    "C pickle, references": c_referring,
    "Python 2 pickle": python2_pickles,
    "torch.load, recorded": torch_recorded,
    "torch.load": torch_load,
    "torch.load, weights only": torch_weights_only,
    "torch.load, mapped": torch_mapped,
    "torch.load, memory": torch_from_memory,
    "torch legacy": torch_legacy,
    "torch.jit": script,
    "torch.export": exported,
    "torch.package": package,
    "aoti": compiled,
    "numpy": arrays,
    "joblib": joblibs,
    "pandas": frames,
}
_ONLY_ZIPS = {"torch.jit", "torch.export", "torch.package", "aoti", "torch.load, mapped"}


def _quietly(load: Callable[..., object], *args: object, **how: object) -> None:
    with contextlib.suppress(Exception):  # what it did before it failed counts
        load(*args, **how)


def load_all(path: str, events: Events, note: Callable[[str], None], depth: int = 0) -> None:
    """Give the file to every loader, then what is inside it; `note` is told which one is next."""
    is_zip = zipfile.is_zipfile(path)
    for name, loader in LOADERS.items():
        if name in _ONLY_ZIPS and not is_zip:
            continue
        note(name)
        before = len(events.seen)
        with contextlib.suppress(Stopped):
            _quietly(loader, path, events)
        if len(events.seen) > before:
            events.seen[before:] = [f"{name}: {event}" for event in events.seen[before:]]
            return  # one is enough
    if depth == DEPTH:
        return
    for number, (label, data) in enumerate(_inside(path)):
        deeper = DEPTH - 1 if _STORAGE.fullmatch(label) else depth
        inner = f"{path}.{number}"
        with open(inner, "wb") as file:
            file.write(data)
        before = len(events.seen)
        load_all(inner, events, note, deeper + 1)
        os.unlink(inner)
        if len(events.seen) > before:
            events.seen[before:] = [f"{label} > {event}" for event in events.seen[before:]]
            return


_STORAGE = re.compile(r"[^/]+/data/\d+")  # of a torch archive: numbers, in which nobody looks


def _inside(path: str) -> Iterator[tuple[str, bytes]]:
    """What the containers' own readers find in the file, damaged or not."""
    with open(path, "rb") as file:
        data = file.read()
    for label, opened in _STREAMS.items():
        unpacked = _unpacked(opened, data)
        if unpacked:
            yield label, unpacked
    yield from zlib_streams(data)
    for members in (_zip_members, _tar_members):
        found: list[tuple[str, bytes]] = []
        _quietly(_collect, found, members(path))
        yield from found


def _collect(found: list[tuple[str, bytes]], members: Iterator[tuple[str, bytes]]) -> None:
    found.extend(members)  # those before an error are kept


_STREAMS: dict[str, Callable[[io.BytesIO], Any]] = {
    "gzip": lambda file: gzip.GzipFile(fileobj=file),
    "bz2": bz2.BZ2File,
    "lzma": lzma.LZMAFile,
}


def _unpacked(opened: Callable[[io.BytesIO], Any], data: bytes) -> bytes:
    """What a stream gives before it fails."""
    out = bytearray()
    with contextlib.suppress(Exception):
        stream = opened(io.BytesIO(data))
        while len(out) < MOST and (piece := stream.read1(1 << 16)):
            out += piece
    return bytes(out)


def zlib_streams(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield what zlib makes of the data."""
    try:
        yield "zlib", zlib.decompressobj().decompress(data, MOST)
    except zlib.error:
        return


def _zip_members(path: str) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist()[:MEMBERS]:
            if info.file_size <= MOST:
                member = _piecewise(partial(archive.open, info))
                yield info.filename, member


def _tar_members(path: str) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path, ignore_zeros=True) as archive:
        for info, _ in zip(archive, range(MEMBERS), strict=False):
            if info.size <= MOST and (info.isfile() or info.islnk() or info.issym()):
                yield info.name, _piecewise(partial(archive.extractfile, info))


def _piecewise(opened: Callable[[], Any]) -> bytes:
    """What a member gives before it fails: a wrong checksum shows only at its end."""
    out = bytearray()
    with contextlib.suppress(Exception), opened() as stream:
        while len(out) < MOST and (piece := stream.read(512)):
            out += piece
    return bytes(out)
