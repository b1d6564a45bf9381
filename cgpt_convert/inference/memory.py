"""Check the memory that a model needs before loading it.

Linux kills a process that exceeds the available memory, without an error message.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from typing import Protocol

from cgpt_convert.core.errors import Unsupported

_OTHERS = 64 << 20  # bytes: buffers for reading files, and small objects
_UNLIMITED = 1 << 60  # cgroup v1 writes a value near 2^63 for no limit


class MemoryNeeds(Protocol):
    """The memory needs of a model."""

    def outstanding(self) -> int:
        """Return the number of bytes that it still has to allocate."""


_promised: weakref.WeakSet[MemoryNeeds] = weakref.WeakSet()


def require(owner: MemoryNeeds, nbytes: int, free: int | None, where: str) -> None:
    """Raise Unsupported, with the figures, unless `owner` can allocate `nbytes` more.

    Memory that other models of this process still have to allocate is not available. `free` is the
    memory of a device; None means main memory.
    """
    others = sum(other.outstanding() for other in _promised if other is not owner)
    needed = nbytes + others + (0 if free is not None else _OTHERS)
    limit = available() if free is None else free
    if limit is not None and needed > limit:
        what = "memory" if free is None else "memory of the GPU"
        also = f" ({_shown(others)} of it for other models)" if others else ""
        raise Unsupported(
            f"the model needs {_shown(needed)} of {what}{also}; {_shown(limit)} is available",
            where=where,
            hint="free memory, raise the container's limit, or use a smaller model; inspect, "
            "convert and verify need only about 100 MB",
        )
    _promised.add(owner)


def _shown(nbytes: int) -> str:
    return f"{max(nbytes, 0) / 1e9:,.2f} GB"


def available(root: str = "/") -> int | None:
    """Return the bytes that this process can allocate before it is killed; None if unknown.

    This is the minimum of the system's available memory and swap, the rest of its cgroup limits
    (versions 1 and 2), and the rest of `ulimit -v`.
    """
    return min((*_of_system(root), *_of_cgroups(root), *_of_process(root)), default=None)


def _of_system(root: str) -> Iterator[int]:
    rows = dict(line.split(":", 1) for line in _lines(root, "proc/meminfo") if ":" in line)
    if "MemAvailable" in rows:
        kib = (rows.get(name, "0").split()[0] for name in ("MemAvailable", "SwapFree"))
        yield sum(map(int, kib)) << 10


def _of_process(root: str) -> Iterator[int]:
    try:
        import resource
    except ImportError:  # Windows
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    used = next(iter(_lines(root, "proc/self/statm")), "")
    if limit != resource.RLIM_INFINITY and used:
        yield limit - int(used.split()[0]) * resource.getpagesize()


def _of_cgroups(root: str) -> Iterator[int]:
    """Yield the rest of the limits of this process's groups and their parents."""
    for line in _lines(root, "proc/self/cgroup"):
        _, kinds, path = line.split(":", 2)
        if not kinds:
            for mount in ("sys/fs/cgroup", "sys/fs/cgroup/unified"):
                names = ("memory.max", "memory.current", "inactive_file")
                yield from _of_groups(root, mount, path, names)
        elif "memory" in kinds.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            yield from _of_groups(root, "sys/fs/cgroup/memory", path, names)


def _of_groups(root: str, mount: str, path: str, names: tuple[str, str, str]) -> Iterator[int]:
    """Yield limits from the group up to the mount. In a container the path may be the host's."""
    parts = [part for part in path.split("/") if part]
    for depth in range(len(parts), -1, -1):
        folder = "/".join([mount, *parts[:depth]])
        limit = _number(root, f"{folder}/{names[0]}")
        used = _number(root, f"{folder}/{names[1]}")
        if limit is not None and used is not None and limit < _UNLIMITED:
            rows = (line.split() for line in _lines(root, f"{folder}/memory.stat"))
            # the kernel counts reclaimable file pages as used
            cached = sum(int(row[1]) for row in rows if row[:1] == [names[2]])
            yield limit - max(used - cached, 0)


def _number(root: str, path: str) -> int | None:
    text = next(iter(_lines(root, path)), "")
    return int(text) if text.isdecimal() else None


def _lines(root: str, path: str) -> list[str]:
    try:
        with open(os.path.join(root, path), encoding="utf-8") as file:
            return file.read().splitlines()
    except OSError:
        return []
