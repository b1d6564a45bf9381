"""Reader for GGUF that applies every rule of ggml's reader, which gguf-py does not.

See ggml/src/gguf.cpp `gguf_init_from_reader` and llama.cpp's src/llama-model-loader.h, which checks
that a tensor's data is inside the file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from cgpt_convert.checkpoint import Checkpoint, CompositeTensor
from cgpt_convert.core.errors import Malformed, Unsupported
from cgpt_convert.core.findings import TRAILING, Finding
from cgpt_convert.core.limits import MEMBERS
from cgpt_convert.core.text import quoted
from cgpt_convert.formats import read_checks, salvage
from cgpt_convert.formats.gguf.fields import FieldReader, StoredValue, parse
from cgpt_convert.formats.registry import FormatFile
from cgpt_convert.sources.local import Source
from cgpt_convert.tensors.dtypes import BY_GGUF
from cgpt_convert.tensors.shapes import c_strides
from cgpt_convert.tensors.tensor import Storage, Tensor

if TYPE_CHECKING:
    from cgpt_convert.formats.scan_interface import PartScanner

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # equal for little-endian readers
ALIGNMENT = 32  # gguf.h GGUF_DEFAULT_ALIGNMENT
ALIGNMENT_KEY = "general.alignment"
NAME_BYTES = 63  # ggml.h GGML_MAX_NAME, minus the NUL
_SHOWN = 80  # characters of a name, in errors
RANK = 4  # ggml.h GGML_MAX_DIMS

_LEAST_INFO = 8 + 4 + 4 + 8  # bytes of a tensor's description: name's length, rank, type, offset
_LEAST_FIELD = 8 + 1 + 4 + 1

# ggml_type -> name, elements and bytes of a block, for types that are listed but not decoded.
# gguf-py/gguf/constants.py GGML_QUANT_SIZES; ggml-common.h.
UNDECODED = {
    9: ("q8_1", 32, 40),
    10: ("q2_k", 256, 84),
    11: ("q3_k", 256, 110),
    12: ("q4_k", 256, 144),
    13: ("q5_k", 256, 176),
    14: ("q6_k", 256, 210),
    15: ("q8_k", 256, 292),
    16: ("iq2_xxs", 256, 66),
    17: ("iq2_xs", 256, 74),
    18: ("iq3_xxs", 256, 98),
    19: ("iq1_s", 256, 50),
    20: ("iq4_nl", 32, 18),
    21: ("iq3_s", 256, 110),
    22: ("iq2_s", 256, 82),
    23: ("iq4_xs", 256, 136),
    29: ("iq1_m", 256, 56),
    34: ("tq1_0", 256, 54),
    35: ("tq2_0", 256, 66),
    39: ("mxfp4", 32, 17),
    40: ("nvfp4", 64, 36),
    41: ("q1_0", 128, 18),
    42: ("q2_0", 64, 18),
}


class _TensorInfo(NamedTuple):
    """A tensor's description. `offset` is relative to the start of the data."""

    name: str
    shape: tuple[int, ...]  # row-major order: the slowest dimension first
    type: int
    offset: int


def fields(source: Source) -> dict[str, StoredValue]:
    """Return the key-value pairs of the file, in file order."""
    cursor = FieldReader(source)
    _tensors, count = _counts(cursor)
    return _fields(cursor, count)


def read_file(file: FormatFile) -> Checkpoint:
    """Return the contents of the file; with `salvage`, the intact tensors of a truncated file."""
    checkpoint, end = described(file.source, file.path)
    if file.salvage and end > file.source.nbytes:
        return salvage.sift(checkpoint, file.source.nbytes, end).checkpoint
    return checked(file.source, checkpoint, end)


def scan(source: Source, scanner: PartScanner) -> None:
    """Check the file and scan its chat templates, the only part that can contain code."""
    if scanner.in_storage:
        return
    from_source(source, source.name)
    for key, stored in fields(source).items():
        if key.startswith("tokenizer.chat_template") and stored.type == "string":
            scanner.template(str(stored.value()), key)


def from_source(source: Source, path: str) -> Checkpoint:
    """Read the GGUF file in `source`; see `formats.gguf.writer.read`."""
    return checked(source, *described(source, path))


def checked(source: Source, checkpoint: Checkpoint, end: int) -> Checkpoint:
    """Return `checkpoint`, whose tensors end at `end`; raise Malformed if `source` is shorter."""
    if end > source.nbytes:
        first = next(s for s in checkpoint.storages if s.offset + s.nbytes > source.nbytes)
        raise Malformed(
            f"the file is truncated at byte {source.nbytes:,}: the data of this tensor ends at "
            f"byte {first.offset + first.nbytes:,}",
            where=first.label,
            hint=read_checks.AGAIN,
        )
    return checkpoint


def described(source: Source, path: str) -> tuple[Checkpoint, int]:
    """Read the header; return its contents and the end of the last tensor.

    The end may be past the end of the file.
    """
    cursor = FieldReader(source)
    n_tensors, n_fields = _counts(cursor)
    stored_fields = _fields(cursor, n_fields)
    alignment = _alignment(cursor, stored_fields)
    infos = [_info(cursor) for _ in range(n_tensors)]
    names: set[str] = set()
    for info in infos:
        if info.name in names:
            raise cursor.malformed(f"two tensors are named {quoted(info.name)}")
        names.add(info.name)
    start = cursor.at + -cursor.at % alignment
    metadata = {key: stored.text() for key, stored in stored_fields.items()}
    checkpoint = Checkpoint(path, "GGUF", (source,), {}, metadata=metadata)
    checkpoint.format = "gguf"
    end = _add_tensors(checkpoint, infos, start, alignment)
    if source.nbytes > start + end + -end % alignment:
        rest = source.nbytes - (start + end)
        checkpoint.findings.append(Finding(TRAILING, f"{rest:,} bytes"))
    return checkpoint, start + end if infos else cursor.at


def _counts(cursor: FieldReader) -> tuple[int, int]:
    """Read magic and version; return the numbers of tensors and fields."""
    where = cursor.source.name
    if cursor.take(len(MAGIC)) != MAGIC:
        raise cursor.malformed("the file does not start with GGUF")
    version = cursor.number("uint32")
    if version and not version & 0xFFFF:
        hint = "convert it with gguf-convert-endian, from the Python package gguf"
        raise Unsupported("the file is big-endian, which is not supported", where=where, hint=hint)
    if version not in VERSIONS:
        message = f"version {version:,} of GGUF is not supported; 2 and 3 are"
        raise Unsupported(message, where=where)
    tensors, pairs = cursor.number("uint64"), cursor.number("uint64")
    if tensors * _LEAST_INFO + pairs * _LEAST_FIELD > cursor.source.nbytes:
        raise cursor.malformed(
            f"the file is too short for {tensors:,} tensors and {pairs:,} fields"
        )
    if max(tensors, pairs) > MEMBERS:
        message = f"the file has {tensors:,} tensors and {pairs:,} fields"
        raise Unsupported(f"{message}, the limit is {MEMBERS:,} of each", where=where)
    return tensors, pairs


def _fields(cursor: FieldReader, count: int) -> dict[str, StoredValue]:
    values: dict[str, StoredValue] = {}
    for _ in range(count):
        key, stored = parse(cursor)
        if key in values:
            raise cursor.malformed(f"two fields are named {quoted(key)}")
        values[key] = stored
    return values


def _alignment(cursor: FieldReader, values: dict[str, StoredValue]) -> int:
    stored = values.get(ALIGNMENT_KEY)
    if stored is None:
        return ALIGNMENT
    value = stored.value()
    if (stored.type, stored.length) != ("uint32", None) or not isinstance(value, int):
        raise cursor.malformed(f"{ALIGNMENT_KEY} is not of type uint32")
    if value == 0 or value & (value - 1):
        raise cursor.malformed(f"{ALIGNMENT_KEY} is {value:,}, which is not a power of two")
    return value


def _info(cursor: FieldReader) -> _TensorInfo:
    name = cursor.text()
    if len(name.encode()) > NAME_BYTES:
        raise cursor.malformed(
            f"the tensor name {quoted(name, _SHOWN)} has {len(name.encode()):,} bytes, "
            f"the limit is {NAME_BYTES}"
        )
    rank = cursor.number("uint32")
    if rank > RANK:
        message = f"tensor {quoted(name)} has {rank:,} dimensions, the limit is {RANK}"
        raise cursor.malformed(message)
    shape = tuple(cursor.number("uint64") for _ in range(rank))[::-1]
    return _TensorInfo(name, shape, cursor.number("uint32"), cursor.number("uint64"))


def _add_tensors(
    checkpoint: Checkpoint, infos: list[_TensorInfo], start: int, alignment: int
) -> int:
    """Add all tensors to the checkpoint; return the end of the last, relative to the data."""
    (source,) = checkpoint.sources
    expected = end = 0
    for index, info in enumerate(infos):
        where = f"{source.name}[{info.name}]"
        if info.offset != expected:
            message = f"the data starts at offset {info.offset:,}, expected at {expected:,}"
            raise Malformed(message, where=where)
        rest = infos[index + 1].offset if index + 1 < len(infos) else source.nbytes - start
        nbytes = _nbytes(info, rest, where)
        end = expected + nbytes
        storage = Storage(source, start + expected, nbytes, info.name)
        checkpoint.storages.append(storage)
        _add(checkpoint, info, storage)
        expected = end + -end % alignment
    return end


def _nbytes(info: _TensorInfo, rest: int, where: str) -> int:
    """Return a tensor's size; for an unknown type, up to the next tensor at `rest`."""
    dtype = BY_GGUF.get(info.type)
    if dtype is None and info.type not in UNDECODED:
        if rest < info.offset:
            message = f"the next tensor starts at offset {rest:,}, before this one"
            raise Malformed(message, where=where)
        return rest - info.offset
    block, nbytes = (dtype.block, dtype.nbytes) if dtype else UNDECODED[info.type][1:]
    row = info.shape[-1] if info.shape else 1
    if row % block:
        message = f"its rows of {row:,} elements do not consist of whole blocks of {block}"
        raise Malformed(message, where=where)
    return read_checks.checked_nbytes((*info.shape[:-1], row // block), 8 * nbytes, where)


def _add(checkpoint: Checkpoint, info: _TensorInfo, storage: Storage) -> None:
    dtype = BY_GGUF.get(info.type)
    if dtype is not None:
        tensor = Tensor(info.name, dtype, info.shape, c_strides(info.shape), 0, storage)
        checkpoint.tensors[info.name] = tensor
        return
    name = UNDECODED[info.type][0] if info.type in UNDECODED else f"ggml type {info.type}"
    detail = f"{storage.nbytes:,} bytes, not decoded"
    parts = (storage.whole().renamed("blocks"),)
    checkpoint.exotic[info.name] = CompositeTensor(info.name, name, name, info.shape, detail, parts)
