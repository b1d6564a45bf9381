"""Single arrays in NumPy's npy encoding: a text header, then the elements.

The specification is NEP 1 and numpy/lib/_format_impl.py. NumPy has no bfloat16, float8 or float4;
those are stored as unsigned integers of the same size, and the container records the true type.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from cgpt_convert.core.errors import Malformed, Unsupported
from cgpt_convert.core.findings import BIG_ENDIAN, Finding
from cgpt_convert.core.limits import INT64, NPY_HEADER_BYTES
from cgpt_convert.core.text import quoted, quoted_list
from cgpt_convert.formats import read_checks
from cgpt_convert.sources.local import read
from cgpt_convert.tensors.dtypes import BY_NAME, BY_NUMPY, TABLE, DType
from cgpt_convert.tensors.shapes import c_strides
from cgpt_convert.tensors.tensor import Storage, Tensor, replace

SUFFIX = ".npy"
MAGIC = b"\x93NUMPY"
_ALIGN = 64
_GROWTH_DIGITS = 21  # NumPy leaves room for the first dimension to grow in place
_LENGTHS = {(1, 0): (2, "latin-1"), (2, 0): (4, "latin-1"), (3, 0): (4, "utf-8")}

_DISGUISES = {1: BY_NAME["uint8"], 2: BY_NAME["uint16"]}
# not complex32 and the quantized types, whose integers would lose their meaning
DISGUISED = tuple(
    row for row in TABLE if not row.numpy and (row.is_float or row.name == "float4_e2m1fn_x2")
)
DTYPES = (*BY_NUMPY.values(), *DISGUISED)

# A dict of plain literals. Python's own parser would also recurse and parse long integers before
# anything can be checked. Python 2 wrote 3L for long dimensions.
_BLANKS = " \t\n\r\f"  # allowed between Python's tokens; not \v or other Unicode spaces
_GAP = rf"[{_BLANKS}]*"
_ITEM = re.compile(
    rf"""{_GAP}(['"])(?P<key>\w+)\1{_GAP}:{_GAP}
    (?:(['"])(?P<descr>[^'"\\]*)\3 | (?P<flag>True|False) | \((?P<shape>[\d{_BLANKS}L,]*)\))
    {_GAP}(?P<end>[,}}])""",
    re.VERBOSE | re.ASCII,
)
_START = re.compile(rf"{_GAP}\{{")
_END = re.compile(rf"{_GAP}\}}{_GAP}")
_STRUCTURED = re.compile(rf"""{_GAP}\{{{_GAP}['"]descr['"]{_GAP}:{_GAP}[\[(]""")
# (3) is a number in Python, not a tuple; Python rejects leading zeros, which once meant octal
_DIM = rf"(?:0|[1-9]\d{{0,{len(str(INT64)) - 1}}})L?{_GAP}"
_SHAPE = re.compile(rf"{_GAP}(?:{_DIM},{_GAP}(?:{_DIM},{_GAP})*(?:{_DIM})?)?", re.ASCII)
_DIGITS = re.compile(r"\d+", re.ASCII)
_PYTHON_2 = (1, 2)  # versions in which NumPy reads Python 2 headers


class NpyHeader(NamedTuple):
    """The contents of an npy header."""

    dtype: DType
    byteorder: str
    shape: tuple[int, ...]
    fortran_order: bool

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides in elements."""
        return c_strides(self.shape[::-1])[::-1] if self.fortran_order else c_strides(self.shape)


def header_bytes(tensor: Tensor) -> bytes:
    """Return the header that `numpy.save` writes for the row-major tensor, in version 1.0.

    Version 2.0 is for headers over 64 KiB; a tensor of 64 dimensions needs 2 KiB.
    """
    descr = (tensor.dtype if tensor.dtype.numpy else _DISGUISES[tensor.dtype.nbytes]).numpy
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {tensor.shape!r}, }}"
    if tensor.shape:
        text += " " * (_GROWTH_DIGITS - len(str(tensor.shape[0])))
    used = len(MAGIC) + 2 + 2 + len(text) + 1  # version, length, and the final newline
    text += " " * (_ALIGN - used % _ALIGN) + "\n"
    return MAGIC + bytes((1, 0)) + len(text).to_bytes(2, "little") + text.encode("ascii")


def parse_header(raw: bytes, where: str) -> NpyHeader:
    """Parse the header in `raw`. Raises Unsupported for arrays of anything but plain numbers."""
    start = len(MAGIC) + 2
    width, encoding = _LENGTHS[raw[start - 2], raw[start - 1]]
    try:
        text = raw[start + width :].decode(encoding)
    except UnicodeDecodeError as error:
        raise Malformed("the npy header is not valid UTF-8", where=where) from error
    if _STRUCTURED.match(text):
        message = "the array is structured, which is not supported"
        raise Unsupported(message, where=where, hint="save each of its fields as an array")
    items = _items(text, where)
    descr, fortran, shape = items["descr"], items["fortran_order"], items["shape"]
    if descr["descr"] is None or fortran["flag"] is None or shape["shape"] is None:
        raise Malformed("the values in the npy header have wrong types", where=where)
    if "L" in shape["shape"] and raw[start - 2] not in _PYTHON_2:
        raise _bad_shape(shape["shape"], where)
    dtype, byteorder = _dtype(descr["descr"], where)
    dims = _dims(shape["shape"], where)
    return NpyHeader(dtype, byteorder, dims, fortran["flag"] == "True")


def array(whole: Storage) -> Tensor:
    """Return the tensor of the npy data in `whole`, header included, named by its key.

    Raises Malformed unless the sizes match exactly. If `whole` has a CRC-32, the tensor's storage
    has that of the elements alone.
    """
    raw, where = _read_header(whole), whole.label
    header = parse_header(raw, where)
    nbytes = read_checks.checked_nbytes(header.shape, 8 * header.dtype.nbytes, where)
    if nbytes != whole.nbytes - len(raw):
        stored = whole.nbytes - len(raw)
        message = f"the array has {stored:,} bytes of elements, its shape needs {nbytes:,}"
        raise Malformed(message, where=where)
    crc = None if whole.crc32 is None else _crc_after(raw, nbytes, whole.crc32)
    elements = replace(
        whole,
        offset=whole.offset + len(raw),
        nbytes=nbytes,
        byteorder=header.byteorder,
        crc32=crc,
    )
    return Tensor(whole.key, header.dtype, header.shape, header.strides, 0, elements)


def undisguised(tensor: Tensor, name: str, where: str) -> Tensor:
    """Return the tensor with its true type, called `name`."""
    dtype = next((row for row in DISGUISED if row.name == name), None)
    if dtype is None or tensor.stored != _DISGUISES[dtype.nbytes]:
        message = f"the array {quoted(tensor.name)} of {tensor.stored.name} cannot contain {name}"
        raise Malformed(message, where=where)
    return replace(tensor, stored=dtype)


def big_endian(storages: list[Storage]) -> list[Finding]:
    """Return a finding if any storage is big-endian, else an empty list."""
    big = sum(storage.byteorder == "big" for storage in storages)
    return [Finding(BIG_ENDIAN, f"{big} of {len(storages)} arrays")] if big else []


def _read_header(whole: Storage) -> bytes:
    """Return the unparsed header, from the magic to the last byte before the elements."""
    fixed = len(MAGIC) + 2 + 4  # including the longer length field: no header is shorter
    if whole.nbytes < fixed:
        message = f"the data has {whole.nbytes:,} bytes, too few for an npy array"
        raise Malformed(message, where=whole.label)
    head = read(whole.source, whole.offset, fixed)
    if not head.startswith(MAGIC):
        raise Malformed("the data does not start with the npy magic number", where=whole.label)
    version = (head[len(MAGIC)], head[len(MAGIC) + 1])
    if version not in _LENGTHS:
        message = f"version {version[0]}.{version[1]} of npy is not supported"
        raise Unsupported(message, where=whole.label)
    start = len(MAGIC) + 2
    end = start + _LENGTHS[version][0]
    size = end + int.from_bytes(head[start:end], "little")
    if size > whole.nbytes:
        message = f"the data is truncated inside the npy header of {size:,} bytes"
        raise Malformed(message, where=whole.label)
    if size > NPY_HEADER_BYTES:
        message = f"the npy header has {size:,} bytes, the limit is {NPY_HEADER_BYTES:,}"
        raise Unsupported(message, where=whole.label)
    return read(whole.source, whole.offset, size)


def _crc_after(head: bytes, nbytes: int, crc: int) -> int:
    """Return the CRC-32 of the `nbytes` bytes after `head`, if `crc` is that of both together."""
    from isal import isal_zlib

    # crc(head + rest) is crc(head), moved on by the rest's length, xor crc(rest)
    moved: int = isal_zlib.crc32_combine(isal_zlib.crc32(head), 0, nbytes)
    return crc ^ moved


def _items(text: str, where: str) -> dict[str, re.Match[str]]:
    """Return the matches of the three items, by key."""
    items: dict[str, re.Match[str]] = {}
    start = _START.match(text)
    at = start.end() if start else 0
    while item := _ITEM.match(text, at):
        if item["key"] in items:
            message = f"the key {quoted(item['key'])} occurs twice in the npy header"
            raise Malformed(message, where=where)
        items[item["key"]] = item
        at = item.end()
        if item["end"] == "}":
            at -= 1
            break
    if start is None or not _END.fullmatch(text, at):
        raise Malformed("the npy header is not a dict of plain values", where=where)
    if items.keys() != {"descr", "fortran_order", "shape"}:
        message = f"the npy header has the keys {quoted_list(sorted(items))}"
        raise Malformed(message, where=where)
    return items


def _dtype(descr: str, where: str) -> tuple[DType, str]:
    if "O" in descr:
        raise Unsupported(
            "the array contains Python objects, which can be read only by unpickling",
            where=where,
            hint="save the array with a numeric type",
        )
    order, code = descr[:1], descr[1:]
    dtype = BY_NUMPY.get(f"<{code}") or BY_NUMPY.get(f"|{code}")
    if dtype is None or order not in "<>|" or (order == "|" and dtype.nbytes > 1):
        message = f"the NumPy type {quoted(descr)} is not supported"
        raise Unsupported(message, where=where)
    return dtype, "big" if order == ">" and dtype.nbytes > 1 else "little"


def _dims(text: str, where: str) -> tuple[int, ...]:
    if not _SHAPE.fullmatch(text):
        raise _bad_shape(text, where)
    return tuple(map(int, _DIGITS.findall(text)))


def _bad_shape(text: str, where: str) -> Malformed:
    return Malformed(f"the shape ({text[:80]}) in the npy header is not valid", where=where)
