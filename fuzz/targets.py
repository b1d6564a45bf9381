"""What is fuzzed: each reader of a format, from a file's bytes to the tensors it tells of.

Whatever the bytes, a target returns or raises a CgptError; it never takes long or much memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.core.errors import CgptError
from cgpt_convert.formats.dcp import dcp_reader
from cgpt_convert.formats.dcp.dcp_metadata import read_metadata
from cgpt_convert.formats.diagnose import refuse
from cgpt_convert.formats.gguf import reader as gguf_reader
from cgpt_convert.formats.npy import header
from cgpt_convert.formats.npz.archive import from_source
from cgpt_convert.formats.registry import FormatFile, sniff
from cgpt_convert.formats.safetensors import reader as safetensors_reader
from cgpt_convert.formats.torch import legacy_reader, tar_reader, truncated_zip, zip_reader
from cgpt_convert.pickles.decode.decoder import decode
from cgpt_convert.scanning.allowlist import Allowlist
from cgpt_convert.scanning.scan_budget import ScanBudget
from cgpt_convert.scanning.scanner import FileScanner
from cgpt_convert.sources.local import MemoryBytes
from cgpt_convert.tensors.tensor import Storage, Tensor

Target = Callable[[MemoryBytes], object]

MOST_READ = 64 << 10  # bytes of a tensor that are gathered: more are more of the same


def archive(source: MemoryBytes) -> None:
    """A torch zip."""
    _use(zip_reader.read, source)


def cut_archive(source: MemoryBytes) -> None:
    """A torch zip of which the end, with its directory, may be missing."""
    _use(lambda cut: truncated_zip.salvage(cut).checkpoint, source)


def unpickler(source: MemoryBytes) -> None:
    """A bare pickle, by the machine that decodes."""
    decode(_data(source))


def tracer(source: MemoryBytes) -> None:
    """A bare pickle, by the machine that scans."""
    ScanBudget(source.nbytes).trace(source, 0, Allowlist().allows)


def legacy_stream(source: MemoryBytes) -> None:
    """Torch's stream from before 1.6."""
    _use(legacy_reader.read, source)


def cut_stream(source: MemoryBytes) -> None:
    """The same, of which the end may be missing."""
    _use(lambda cut: legacy_reader.read(cut, salvage=True), source)


def tar(source: MemoryBytes) -> None:
    """Torch's tar of 0.1."""
    _use(tar_reader.read, source)


def safetensors(source: MemoryBytes) -> None:
    """A safetensors file."""
    _use(lambda whole: safetensors_reader.from_source(whole, whole.name), source)


def gguf(source: MemoryBytes) -> None:
    """A GGUF file, the items of its fields too."""
    _use(lambda whole: gguf_reader.from_source(whole, whole.name), source)
    for stored in gguf_reader.fields(source).values():
        stored.value()


def npy(source: MemoryBytes) -> None:
    """A NumPy array."""
    _read([header.array(Storage(source, 0, source.nbytes, "array"))])


def npz_archive(source: MemoryBytes) -> None:
    """A zip of NumPy arrays."""
    _use(lambda whole: from_source(whole, whole.name), source)


def dcp_metadata(source: MemoryBytes) -> None:
    """The metadata of a distributed checkpoint, whose files are not there."""
    found = dcp_reader.merged([read_metadata(source)])
    dcp_reader.items(found, source.name)
    chunks = dcp_reader.DcpChunks(dict.fromkeys(dcp_reader.items(found, ""), source))
    for name, tensor in found.tensors.items():
        chunks.tensor(name, tensor, source.name)


def scan(source: MemoryBytes) -> None:
    """What a file is, what a scan says of it, and why it is refused."""
    kind = sniff(source)
    FileScanner(Allowlist()).file(source, kind)
    str(refuse(FormatFile(source, source.name, kind)))


TARGETS: dict[str, Target] = {
    "archive": archive,
    "cut-archive": cut_archive,
    "unpickler": unpickler,
    "tracer": tracer,
    "legacy": legacy_stream,
    "cut-legacy": cut_stream,
    "tar": tar,
    "safetensors": safetensors,
    "gguf": gguf,
    "npy": npy,
    "npz": npz_archive,
    "dcp": dcp_metadata,
    "scan": scan,
}


def run(name: str, data: bytes) -> None:
    """Feed `data` to a target. What comes out of it is a find."""
    try:
        TARGETS[name](MemoryBytes("fuzzed", data))
    except CgptError as error:
        str(error)


def _use(read: Callable[[MemoryBytes], Checkpoint], source: MemoryBytes) -> None:
    try:
        checkpoint = read(source)
    except CgptError as error:  # the file may go on to another reader
        str(error)
        return
    parts = [part for exotic in checkpoint.exotic.values() for part in exotic.parts]
    _read([*checkpoint.values(), *parts])


def _read(tensors: Iterable[Tensor]) -> None:
    """Read the small tensors, by way of their strides."""
    left = 1 << 20
    for tensor in tensors:
        if tensor.nbytes <= min(MOST_READ, left):
            left -= tensor.nbytes
            for block in tensor.blocks(1 << 12):
                bytes(block)


def _data(source: MemoryBytes) -> bytes:
    data = bytearray(source.nbytes)
    source.readinto(0, memoryview(data))
    return bytes(data)
