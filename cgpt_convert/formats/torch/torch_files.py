"""The kinds of PyTorch files and their readers, which are imported when they are needed."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TYPE_CHECKING

from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.core.errors import CgptError
from cgpt_convert.formats.file_kinds import FormatKind, Kind, Start

if TYPE_CHECKING:
    from cgpt_convert.formats.registry import FormatFile

ZIP = FormatKind("PyTorch zip archive", Kind.ZIP)
LEGACY = FormatKind("PyTorch legacy stream", Kind.PICKLE)
TAR = FormatKind("PyTorch tar archive", Kind.TAR)
KINDS = (ZIP, LEGACY, TAR)

PICKLE = "data.pkl"
_BESIDE = frozenset({"data", "version", "byteorder"})  # other records
_RECORDS = (PICKLE, ".data/extern_modules")  # in the root folder of an archive
_NAME_AT = 30  # in a local header, APPNOTE.TXT 4.3.7


def detect(start: Start) -> FormatKind | None:
    """Return the kind of a PyTorch file; None for other files.

    A ZIP with a damaged or crafted directory counts as one: the reader reports the error.
    """
    if start.container is Kind.ZIP:
        return ZIP if _is_torch_zip(start) else None
    if start.container is Kind.TAR:
        from cgpt_convert.formats.torch import tar_reader

        return TAR if tar_reader.is_torch_tar(start.source) else None
    from cgpt_convert.formats.torch import legacy_reader

    return LEGACY if legacy_reader.is_legacy(start.head) else None


def _is_torch_zip(start: Start) -> bool:
    try:
        if start.zip_end is None:
            return False
        first = _begins_as_torch(start.head)  # the most common file; avoids reading its directory
        return first or any(name.partition("/")[2] in _RECORDS for name in start.zip_names)
    except CgptError:
        return True


def is_folder(inside: Collection[str]) -> bool:
    """Return whether a folder with these names is one checkpoint of torch."""
    return is_unpacked(inside) or bool(rank_files(inside) or parallel_files(inside))


def rank_files(inside: Collection[str]) -> list[tuple[str, list[str]]]:
    """Return the sets of files of ranks among names: what they begin with, and all of its files.

    The files are those of ranks 0 to the number that the names tell; some may not be there.
    """
    if not any("_rank_" in name for name in inside):
        return []
    matches = [match for match in (re.fullmatch(_RANK_FILE, name) for name in inside) if match]
    sets = sorted({(match[1], int(match[2]), match[3]) for match in matches})
    return [
        (stem, [f"{stem}_world_size_{count}_rank_{rank}{suffix}" for rank in range(count)])
        for stem, count, suffix in sets
        if count <= _MOST_RANKS
    ]


_RANK_FILE = r"(.+)_world_size_([1-9][0-9]{0,5})_rank_[0-9]+(\.pth?)"
_MOST_RANKS = 100_000


def parallel_files(inside: Collection[str]) -> list[str]:
    """Return the names of the files with the parts of a LLaMA model in a folder; none of others.

    A single file is read as such, and if there are weights in another form, these are read.
    """
    if PARAMETERS not in inside:
        return []
    files = sorted(filter(is_part, inside))
    others = any(name.endswith(_OTHERS) for name in inside)
    return [] if others or files == ["consolidated.00.pth"] else files


def is_part(name: str) -> bool:
    """Return whether a file of this name may be a part of a LLaMA model."""
    return re.fullmatch(r"consolidated\.[0-9]{2}\.pth", name) is not None


PARAMETERS = "params.json"  # beside the files of Meta's releases
_OTHERS = (".safetensors", ".bin", ".index.json")


def is_unpacked(inside: Collection[str]) -> bool:
    """Return whether a folder with these names is an unpacked archive."""
    return PICKLE in inside and not _BESIDE.isdisjoint(inside)


def _begins_as_torch(head: bytes) -> bool:
    """Return whether the first record is `data.pkl` in a folder."""
    root, _, name = head[_NAME_AT:].partition(b"/")
    return head.startswith(b"PK\3\4") and root != b"" and name.startswith(b"data.pkl")


def read_file(file: FormatFile) -> Checkpoint:
    """Return the contents of a file; with `salvage`, the intact tensors of a truncated one.

    Raises Malformed or Unsupported as the reader of its kind does.
    """
    kind = file.kind or detect(Start(file.source))
    if kind == LEGACY:
        from cgpt_convert.formats.torch import legacy_reader

        return legacy_reader.read(file.source, salvage=file.salvage)
    if kind == TAR:
        from cgpt_convert.formats.torch import tar_reader

        return tar_reader.read(file.source)
    if kind is Kind.CUT_ZIP and file.salvage:
        from cgpt_convert.formats.torch import truncated_zip

        return truncated_zip.salvage(file.source).checkpoint
    from cgpt_convert.formats.torch import zip_reader

    return zip_reader.read(file.source)


def diagnose(file: FormatFile) -> CgptError | None:
    """Return the error for a truncated ZIP, with what is intact; None for other files."""
    if file.kind is not Kind.CUT_ZIP:
        return None
    from cgpt_convert.formats.torch import truncated_zip

    return truncated_zip.diagnose(file.source)
