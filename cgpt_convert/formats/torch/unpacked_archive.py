"""Torch archives that were unpacked into a folder: each record is a file."""

from __future__ import annotations

import os
from collections.abc import Iterator

from cgpt_convert.archives.zip_archive import Archive
from cgpt_convert.archives.zip_directory import STORED, ZipMember
from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.core.errors import Unsupported
from cgpt_convert.core.limits import MEMBERS
from cgpt_convert.formats.torch import zip_reader
from cgpt_convert.formats.torch.torch_files import PICKLE
from cgpt_convert.sources.local import LocalFile, Source
from cgpt_convert.sources.paths import is_url


def read_unpacked(path: str) -> Checkpoint:
    """Read the archive that was unpacked into the folder at `path`.

    There are no checksums. Raises errors as the reader of archives does, and Unsupported for a URL.
    """
    if is_url(path):
        raise Unsupported(
            "the folder is an unpacked torch archive, which cannot be read from a URL",
            where=path,
            hint="download the folder and pass the local path",
        )
    archive = _UnpackedArchive(path)
    checkpoint = zip_reader.of_archive(archive)
    checkpoint.path = path
    checkpoint.kind = f"{checkpoint.kind}, unpacked"
    checkpoint.sources = tuple(archive.files.values())
    return checkpoint


class _UnpackedArchive(Archive):
    """The files of a folder as records of an archive without checksums."""

    def __init__(self, folder: str) -> None:
        root = os.path.basename(os.path.abspath(folder))
        self._paths = {f"{root}/{name}": os.path.join(folder, name) for name in _files(folder)}
        if len(self._paths) > MEMBERS:
            message = f"the folder has {len(self._paths):,} files, the limit is {MEMBERS:,}"
            raise Unsupported(message, where=folder)
        self.files: dict[str, LocalFile] = {}  # those that are open
        pickle = LocalFile(os.path.join(folder, PICKLE))
        super().__init__(pickle, {name: self._member(name) for name in self._paths})

    def _member(self, name: str) -> ZipMember:
        nbytes = os.stat(self._paths[name]).st_size
        return ZipMember(name, 0, 0, nbytes, nbytes, STORED, 0, 0)

    def open(self, name: str) -> tuple[Source, int, int]:
        """Return the file of a record, with the range of all its bytes."""
        if name not in self.files:
            self.files[name] = LocalFile(self._paths[name])
        return self.files[name], 0, self.files[name].nbytes


def _files(folder: str) -> Iterator[str]:
    """Yield the names of the regular files below the folder, the pickle first.

    Hidden files of other programs are skipped.
    """
    yield PICKLE
    for parent, inside, names in os.walk(folder):
        inside[:] = sorted(name for name in inside if not name.startswith(".") or name == ".data")
        for name in sorted(names):
            path = os.path.join(parent, name)
            relative = os.path.relpath(path, folder).replace(os.sep, "/")
            if not name.startswith(".") and relative != PICKLE and os.path.isfile(path):
                yield relative
