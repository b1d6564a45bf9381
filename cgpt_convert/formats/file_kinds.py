"""Kinds of files, and detection of those that no format reads.

The formats define how their own files are detected (`registry.Format`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum
from functools import cached_property
from typing import NamedTuple

from cgpt_convert.archives import zip_directory
from cgpt_convert.sources.local import CHUNK, Source, read

HEAD = 4096  # bytes from the start that identify every kind except ZIP and tar archives


class Kind(Enum):
    """A kind of file that no format reads; the value is its display name."""

    INDEX = "index of shards"
    CUT_ZIP = "truncated zip archive"
    ZIP = "zip archive"
    TAR = "tar archive"
    PICKLE = "plain pickle"
    PREVIEW = "PyTorch preview file"
    LFS_POINTER = "Git LFS pointer"
    WEB_PAGE = "web page"
    XML = "XML document"
    JSON = "JSON document"
    GZIP = "gzip file"
    BZIP2 = "bzip2 file"
    XZ = "xz file"
    ZSTD = "zstd file"
    SEVEN_ZIP = "7z archive"
    RAR = "rar archive"
    HDF5 = "HDF5 file"
    ONNX = "ONNX model"
    TFLITE = "TensorFlow Lite model"
    MOBILE = "PyTorch mobile model"
    OLD_GGML = "GGML file older than GGUF"
    LZ4 = "lz4 file"
    COMPRESSED = "compressed file"
    PROGRAM = "program"
    IMAGE = "image"
    AUDIO = "audio file"
    VIDEO = "video"
    FONT = "font"
    PDF = "PDF document"
    TIME_ZONE = "time zone table"
    EMPTY = "empty file"
    ZEROS = "file of zeros"
    TEXT = "text file"
    UNKNOWN = "file of an unknown kind"

    @property
    def base(self) -> Kind:
        """The kind itself, as in `FormatKind`."""
        return self


class FormatKind(NamedTuple):
    """A kind of file that a format reads."""

    value: str  # its display name
    base: Kind | None = None  # the underlying kind: Kind.ZIP, Kind.TAR or Kind.PICKLE


FileKind = Kind | FormatKind


class Start:
    """The first bytes of a file, and the names in it if it is an archive.

    `record` marks a record of an archive, which may be a tensor of zeros: it is not searched for
    the first byte that is not zero, which would mean reading it whole.
    """

    def __init__(self, source: Source, *, record: bool = False) -> None:
        self.source, self.record = source, record
        self.head = read(source, 0, min(HEAD, source.nbytes))

    @cached_property
    def container(self) -> Kind | None:
        """Kind.ZIP or Kind.TAR if the file is such an archive; it may be damaged."""
        if self.head[:4] in (b"PK\3\4", b"PK\5\6"):
            return Kind.ZIP
        from cgpt_convert.archives import tar

        tarred = tar.is_tar_to_tarfile(self.head[: tar.BLOCK])
        return Kind.TAR if tarred or _is_padded_tar(self) else None

    @cached_property
    def zip_end(self) -> zip_directory.DirectoryLocation | None:
        """The end record of a ZIP, None if it is truncated. Raises CgptError if it is damaged."""
        try:
            return zip_directory.find_end(self.source)
        except zip_directory.NoDirectory:
            return None

    @cached_property
    def zip_names(self) -> Sequence[str]:
        """The names in a ZIP, empty if it is truncated. Raises CgptError if it is damaged."""
        if self.zip_end is None:
            return ()
        return [entry.name for entry in zip_directory.entries(self.source, self.zip_end)]


_MACH_O = (
    b"\xfe\xed\xfa\xce",
    b"\xfe\xed\xfa\xcf",
    b"\xce\xfa\xed\xfe",
    b"\xcf\xfa\xed\xfe",
    b"\xca\xfe\xba\xbe",
)
_HDF5, _USER_BLOCK = b"\x89HDF\r\n\x1a\n", 512
MAGIC = (  # offset, bytes; each from the format's own specification
    (0, b"PYTORCH1", Kind.PREVIEW),  # caffe2/serialize/inline_container.cc, before 1.0
    (0, b"\x1f\x8b", Kind.GZIP),
    (0, b"BZh", Kind.BZIP2),
    (0, b"\xfd7zXZ\0", Kind.XZ),
    (0, b"\x28\xb5\x2f\xfd", Kind.ZSTD),
    (0, b"7z\xbc\xaf\x27\x1c", Kind.SEVEN_ZIP),
    (0, b"Rar!\x1a\x07", Kind.RAR),
    (0, _HDF5, Kind.HDF5),
    (4, b"TFL3", Kind.TFLITE),
    (4, b"PTMF", Kind.MOBILE),  # torch/csrc/jit/serialization/mobile_bytecode.fbs
    (4, b"ET12", Kind.MOBILE),  # ExecuTorch
    (0, b"lmgg", Kind.OLD_GGML),
    (0, b"fmgg", Kind.OLD_GGML),
    (0, b"tjgg", Kind.OLD_GGML),
    (0, b"\x04\x22\x4d\x18", Kind.LZ4),
    (0, b"\x02\x21\x4c\x18", Kind.LZ4),
    *((0, bytes((low,)) + b"\x2a\x4d\x18", Kind.ZSTD) for low in range(0x50, 0x60)),
    (0, b"\x1f\x9d", Kind.COMPRESSED),  # compress
    (0, b"\x89LZO\0\r\n\x1a\n", Kind.COMPRESSED),
    (0, b"\xff\x06\0\0sNaPpY", Kind.COMPRESSED),
    (0, b"\x7fELF", Kind.PROGRAM),
    *((0, magic, Kind.PROGRAM) for magic in _MACH_O),
    (0, b"\x89PNG\r\n\x1a\n", Kind.IMAGE),
    (0, b"\xff\xd8\xff", Kind.IMAGE),
    (0, b"GIF87a", Kind.IMAGE),
    (0, b"GIF89a", Kind.IMAGE),
    (8, b"WEBP", Kind.IMAGE),
    (4, b"ftypavif", Kind.IMAGE),
    (8, b"WAVEfmt ", Kind.AUDIO),
    (0, b"ID3", Kind.AUDIO),
    (0, b"fLaC", Kind.AUDIO),
    (0, b"OggS", Kind.AUDIO),
    (4, b"ftyp", Kind.VIDEO),
    (0, b"\x1a\x45\xdf\xa3", Kind.VIDEO),
    (0, b"wOFF", Kind.FONT),
    (0, b"wOF2", Kind.FONT),
    (0, b"OTTO", Kind.FONT),
    # TrueType: the number of tables is not 0, unlike in the length of a safetensors header of 256
    *((0, b"\0\1\0\0\0" + bytes((tables,)), Kind.FONT) for tables in range(1, 64)),
    (0, b"%PDF-", Kind.PDF),
    (0, b"TZif", Kind.TIME_ZONE),
    (0, b"version https://git-lfs.github.com/spec/", Kind.LFS_POINTER),
    (0, b"version https://hawser.github.com/spec/", Kind.LFS_POINTER),
)
_NEWEST_PICKLE = 5
# patterns are compiled on demand
_ONNX = rb"(?s)\x08[\x01-\x20]\x12.[ -~]{2}"  # ir_version, producer_name
_HTML = rb"(?s)(<!--.*?-->\s*)?<(!doctype\s+html|html|head|body|title|script)\b"


def other_kind(start: Start) -> Kind:
    """Return the kind of a file that no format recognises and no magic number identifies."""
    head = start.head
    if start.container is Kind.ZIP:
        return Kind.CUT_ZIP if start.zip_end is None else Kind.ZIP
    if start.container is Kind.TAR:
        return Kind.TAR
    if not head:
        return Kind.EMPTY
    if not any(head):
        zeros = not start.record and _first_set(start.source) < 0
        return Kind.ZEROS if zeros else Kind.UNKNOWN
    kind = _binary(head) or _text(head)
    return Kind.TAR if kind is Kind.UNKNOWN and _is_damaged_tar(head) else kind


# a checksum of at least three digits, in any form that tarfile accepts
_MAYBE_SUM = rb"[\x80\xff]|[\s\x1c-\x1f+\-0oO_]*[1-7][0-7_]{2}"


def _is_damaged_tar(head: bytes) -> bool:
    """Return whether a tar header follows others that are damaged.

    Python's tarfile skips those if its option `ignore_zeros` is set.
    """
    from cgpt_convert.archives import tar

    if head[257:262] == b"ustar":
        return True
    blocks = (head[at : at + tar.BLOCK] for at in range(0, len(head), tar.BLOCK))
    return any(
        re.match(_MAYBE_SUM, block[148:156]) and tar.is_tar_to_tarfile(block) for block in blocks
    )


def _is_padded_tar(start: Start) -> bool:
    """Return whether a tar begins after blocks of zeros, which some readers skip."""
    from cgpt_convert.archives import tar

    head, source = start.head, start.source
    if any(head[: tar.BLOCK]) or (start.record and not any(head)):
        return False
    first = _first_set(source)
    first -= first % tar.BLOCK
    if first <= 0 or first + tar.BLOCK > source.nbytes:
        return False
    return tar.is_tar_to_tarfile(read(source, first, tar.BLOCK))


def _first_set(source: Source) -> int:
    """Return the position of the first byte that is not zero; -1 if there is none.

    Reads forward, because `source` may be compressed.
    """
    for at in range(0, source.nbytes, CHUNK):
        data = read(source, at, min(CHUNK, source.nbytes - at))
        if data != bytes(len(data)):
            return at + len(data) - len(data.lstrip(b"\0"))
    return -1


def _binary(head: bytes) -> Kind | None:
    """Return the kind of a pickle, program or ONNX model; None if it is none of these."""
    if head[0] == ord("\x80") and len(head) > 1 and head[1] <= _NEWEST_PICKLE:
        return Kind.PICKLE
    if _is_windows_program(head):
        return Kind.PROGRAM
    return Kind.ONNX if re.match(_ONNX, head) else None


def is_hdf5_behind(source: Source) -> bool:
    """Return whether an HDF5 file follows other data: its user block, of 512 * 2^n bytes.

    HDF5 File Format Specification 3.0, II.A: the signature is searched for at these offsets.
    """
    at = _USER_BLOCK
    while at + len(_HDF5) <= source.nbytes:
        if read(source, at, len(_HDF5)) == _HDF5:
            return True
        at *= 2
    return False


def _is_windows_program(head: bytes) -> bool:
    """Return whether the DOS header points to a PE header (or past the bytes available)."""
    at = int.from_bytes(head[60:64], "little")
    return head[:2] == b"MZ" and (head[at : at + 4] == b"PE\0\0" or at + 4 > len(head))


def _text(head: bytes) -> Kind:
    """Return the kind of text, or UNKNOWN if it is not text."""
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    lowered = start[:1024].lower()
    if re.match(_HTML, lowered) or (lowered.startswith(b"<?xml") and b"<html" in lowered):
        return Kind.WEB_PAGE
    if re.match(rb"<(\?xml|[a-z]+[\s/>])", lowered):
        return Kind.XML
    if not _is_text(head):
        return Kind.UNKNOWN
    if start[:1] in (b"{", b"["):
        return Kind.INDEX if b'"weight_map"' in head else Kind.JSON
    return Kind.TEXT


def _is_text(head: bytes) -> bool:
    """Return whether it is UTF-8 without control characters; the last character may be cut."""
    if re.search(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]", head):
        return False
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start > len(head) - 4 and len(head) == HEAD
    return True
