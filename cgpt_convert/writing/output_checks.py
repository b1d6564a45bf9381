"""Where may the output go? What stands there, whose it is, and the errors that say why not."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from typing import Any

from cgpt_convert.core.errors import CannotWrite, CgptError
from cgpt_convert.core.limits import INDEX_BYTES
from cgpt_convert.core.text import printable
from cgpt_convert.sources.local import LocalFile, read

# A folder is replaced only if one of these lists all that it holds: it is then an output of ours
_PARAMETERS = "parameters/mapping.json"
SIDECARS = ("mapping.json", "tensors.json", "cgpt-convert.json")


def components(path: str, most: int | None = None) -> list[str]:
    """The parts of a planned path, which comes from names in a file: nothing leads elsewhere."""
    parts = path.split("/")
    if any(p in ("", ".", "..") or "\0" in p for p in parts) or (most and len(parts) > most):
        raise CannotWrite("not a path inside the output", where=printable(path))
    return parts


def not_ours(folder: str) -> str | None:
    """A file in `folder` that no sidecar of ours lists; None if there is none."""
    listed = set(SIDECARS)
    for name in SIDECARS:
        listed |= set(_files(os.path.join(folder, name)))
    inner = set(_files(os.path.join(folder, *_PARAMETERS.split("/"))))
    if inner:  # what `extract --properties` wrote
        listed |= {"model.properties", _PARAMETERS, *(f"parameters/{name}" for name in inner)}
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        for name in (*files, *links):
            path = os.path.relpath(os.path.join(parent, name), folder).replace(os.sep, "/")
            if path not in listed:
                return path
    return None


def _files(sidecar: str) -> list[str]:
    """The files that a sidecar lists; none if it is not there or is no JSON."""
    try:
        file = LocalFile(sidecar)
        return list(_listed([json.loads(read(file, 0, min(file.nbytes, INDEX_BYTES)))]))
    except (CgptError, ValueError, RecursionError):
        return []


def _listed(value: dict[str, Any] | list[Any]) -> Iterator[str]:
    """Every string that stands under the key "file" in a sidecar."""
    if isinstance(value, dict) and isinstance(value.get("file"), str):
        yield value["file"]
    for inner in value.values() if isinstance(value, dict) else value:
        if isinstance(inner, dict | list):
            yield from _listed(inner)


def check_space(folder: str, nbytes: int) -> None:
    """Raise CannotWrite now if the file system has no room for `nbytes`, not hours from now."""
    if not hasattr(os, "statvfs"):
        return
    status = os.statvfs(folder or ".")
    free = status.f_bavail * status.f_frsize
    if status.f_blocks and free < nbytes:
        raise CannotWrite(f"{nbytes:,} bytes are needed and {free:,} are free", where=folder or ".")


RESERVED = 16 << 20  # bytes: smaller files are not worth a call
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def reserve(temporary: str, nbytes: int, final: str) -> None:
    """Give the new file `temporary` all its blocks at once; CannotWrite if there are too few.

    Nobody else can fill the disk then while the file is written, which may take hours. Where the
    file system cannot, C libraries write a byte to every block instead, but not through a
    descriptor that cannot be read: posix_fallocate(3), EBADF.
    """
    if nbytes < RESERVED or not hasattr(os, "posix_fallocate"):
        return
    try:
        descriptor = os.open(temporary, os.O_WRONLY)
        try:
            os.posix_fallocate(descriptor, 0, nbytes)
        finally:
            os.close(descriptor)
    except OSError as error:  # of any other kind: writing will tell
        if error.errno in _FULL:
            raise cannot(error, final) from error


def lies(path: str) -> bool:
    """Is there anything of that name? CannotWrite if there cannot be: the name is too long."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise cannot(error, path) from error
    return True


def exists(path: str) -> CannotWrite:
    """The error for an output that is there already."""
    return CannotWrite("exists already", where=path, hint="--overwrite replaces it")


def cannot(error: OSError, path: str) -> CannotWrite:
    """What the system says of the output at `path`, as an error of ours."""
    if isinstance(error, FileExistsError) or error.errno == errno.ENOTEMPTY:
        return exists(path)
    return CannotWrite(os.strerror(error.errno or 0), where=path)
