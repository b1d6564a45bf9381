"""Zip archives built field by field, so that a test can make any of them lie."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

LOCAL = struct.Struct("<4s5H3L2H")
CENTRAL = struct.Struct("<4s6H3L5H2L")
END = struct.Struct("<4s4H2LH")
END64 = struct.Struct("<4sQ2H2L4Q")
LOCATOR64 = struct.Struct("<4sLQL")
FULL32 = 0xFFFFFFFF


@dataclass(frozen=True)
class Entry:
    """A record. A field left None is what it should be; set, it is written as it is given."""

    name: str | bytes
    data: bytes  # as it lies in the file
    method: int = 0
    flags: int = 0
    crc: int | None = None
    nbytes: int | None = None  # uncompressed
    compressed: int | None = None
    offset: int | None = None  # of the local header, as the directory tells it
    external: int = 0
    extra: bytes = b""  # in the directory
    local_name: str | bytes | None = None
    local_flags: int | None = None
    local_crc: int | None = None
    local_nbytes: int | None = None
    local_extra: bytes = b""

    def raw(self) -> bytes:
        """The record's content, inflated."""
        return zlib.decompress(self.data, -15) if self.method else self.data

    def but(self, **fields: Any) -> Entry:
        return replace(self, **fields)


def raw_deflate(data: bytes, level: int = 9) -> bytes:
    """Deflate `data` without a header, as a member of a zip is stored."""
    packer = zlib.compressobj(level, zlib.DEFLATED, -15)  # zlib.compress: from Python 3.11 on
    return packer.compress(data) + packer.flush()


def deflated(entry: Entry) -> Entry:
    """The same record, compressed."""
    return entry.but(method=8, data=raw_deflate(entry.data))


def build(
    entries: Iterable[Entry],
    *,
    comment: bytes = b"",
    before_directory: bytes = b"",
    tail: bytes = b"",
    zip64: bool = False,
    end: Mapping[str, int] | None = None,
) -> bytes:
    """An archive of those records.

    `end` sets fields of the end record (disk, count, nbytes, offset), of the zip64 one (the same
    after `w_`), and of its locator (locator, disks).
    """
    end = end or {}
    out = bytearray()
    directory = bytearray()
    count = 0
    for entry in entries:
        directory += central_header(entry, len(out))
        out += local_header(entry) + entry.data
        count += 1
    out += before_directory
    told = {"disk": 0, "count": count, "nbytes": len(directory), "offset": len(out)}
    told |= {key: value for key, value in end.items() if key in told}
    out += directory
    if zip64:
        wide = told | {key[2:]: value for key, value in end.items() if key.startswith("w_")}
        at = end.get("locator", len(out))
        out += END64.pack(
            *(b"PK\6\6", END64.size - 12, 45, 45, wide["disk"], wide["disk"]),
            *(wide["count"], wide["count"], wide["nbytes"], wide["offset"]),
        )
        out += LOCATOR64.pack(b"PK\6\7", 0, at, end.get("disks", 1))
    out += END.pack(
        *(b"PK\5\6", told["disk"], told["disk"], told["count"], told["count"]),
        *(told["nbytes"], told["offset"], len(comment)),
    )
    return bytes(out + comment + tail)


def local_header(entry: Entry) -> bytes:
    name = _bytes(entry.name if entry.local_name is None else entry.local_name)
    crc, nbytes, compressed = _sizes(entry)
    return (
        LOCAL.pack(
            *(b"PK\3\4", 20, entry.flags if entry.local_flags is None else entry.local_flags),
            *(entry.method, 0, 0, crc if entry.local_crc is None else entry.local_crc, compressed),
            nbytes if entry.local_nbytes is None else entry.local_nbytes,
            *(len(name), len(entry.local_extra)),
        )
        + name
        + entry.local_extra
    )


def central_header(entry: Entry, at: int) -> bytes:
    name = _bytes(entry.name)
    crc, nbytes, compressed = _sizes(entry)
    return (
        CENTRAL.pack(
            *(b"PK\1\2", 20, 20, entry.flags, entry.method, 0, 0, crc, compressed, nbytes),
            *(len(name), len(entry.extra), 0, 0, 0, entry.external),
            at if entry.offset is None else entry.offset,
        )
        + name
        + entry.extra
    )


def _sizes(entry: Entry) -> tuple[int, int, int]:
    return (
        zlib.crc32(entry.raw()) if entry.crc is None else entry.crc,
        len(entry.raw()) if entry.nbytes is None else entry.nbytes,
        len(entry.data) if entry.compressed is None else entry.compressed,
    )


def _bytes(name: str | bytes) -> bytes:
    return name if isinstance(name, bytes) else name.encode()


def saved(value: Any, **options: Any) -> bytes:
    """What torch.save writes, under the root folder `archive`."""
    import torch

    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def entries_of(data: bytes) -> dict[str, Entry]:
    """The records of an archive, as Python's zipfile reads them: name -> a plain stored record."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        return {info.filename: Entry(info.filename, file.read(info)) for info in file.infolist()}


def changed(data: bytes, **contents: bytes | None) -> bytes:
    """The archive with records replaced or, where None, left out. `__` stands for a slash."""
    entries = entries_of(data)
    for key, content in contents.items():
        name = "archive/" + key.replace("__", "/")
        entries.pop(name, None) if content is None else None
        if content is not None:
            entries[name] = Entry(name, content)
    return build(entries.values())


def streamed(name: str, data: bytes) -> bytes:
    """A record as torch writes it, without a directory: its sizes come after it (4.3.9)."""
    raw = _bytes(name)
    header = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 8, 0, 0, 0, 0, 0, 0, len(raw), 0)
    return (
        header
        + raw
        + data
        + struct.pack("<4s3L", b"PK\7\x08", zlib.crc32(data), len(data), len(data))
    )
