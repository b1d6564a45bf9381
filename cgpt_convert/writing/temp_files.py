"""Names of temporary files, and the removal of those left by killed processes.

A temporary file is `.NAME.RANDOM.partial` next to the output, locked while its writer runs. An
unlocked one is a leftover and is removed by the next run that writes the same output.
"""

from __future__ import annotations

import contextlib
import os
import re

try:
    import fcntl
except ImportError:  # Windows: leftovers are kept
    fcntl = None  # type: ignore[assignment]

_SUFFIX = ".partial"
_LONGEST = 255 - len("..12345678") - len(_SUFFIX)  # NAME_MAX of ext4, xfs, btrfs, apfs, in bytes


def temporary_name(name: str) -> str:
    """Return a hidden temporary name for `name`, made unique by a random part."""
    short = os.fsdecode(os.fsencode(name)[:_LONGEST])
    return f".{short}.{os.urandom(4).hex()}{_SUFFIX}"


def hold(descriptor: int) -> None:
    """Lock the open file until it is closed or the process ends."""
    if fcntl is not None:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)


def reclaim(folder: str, name: str) -> list[str]:
    """Remove the temporaries of `name` left in `folder` by killed runs; return their paths."""
    with os.scandir(folder) as entries:
        temporary = [entry for entry in entries if is_temporary_of(entry.name, name)]
    return [entry.path for entry in temporary if _remove_unlocked(entry)]


def is_temporary_of(temporary: str, name: str) -> bool:
    """Return whether a file called `temporary` is, or was, a temporary of the output `name`."""
    if not temporary.endswith(_SUFFIX):
        return False
    start = re.escape(temporary_name(name).rsplit(".", 2)[0])
    pattern = rf"{start}\.[0-9a-f]{{8}}{re.escape(_SUFFIX)}"
    return re.fullmatch(pattern, temporary, re.DOTALL) is not None


def _remove_unlocked(entry: os.DirEntry[str]) -> bool:
    """Remove the entry unless its writer is running. The lock keeps writers from using it."""
    if fcntl is None or entry.is_symlink():
        return False
    try:
        descriptor = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if entry.is_dir():
            remove_folder(entry.path)
        else:
            os.unlink(entry.path)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def remove_folder(path: str, *, ignore_errors: bool = False) -> None:
    """Remove the folder and everything in it."""
    import shutil  # imported here because it takes 4 ms and is rarely needed

    shutil.rmtree(path, ignore_errors=ignore_errors)
