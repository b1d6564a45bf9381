"""What our decoder makes of a pickle, as Python values and as names; and what it may cost."""

from __future__ import annotations

import codecs
import collections
import resource
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.formats.torch.zip_reader import ZipStorages
from cgpt_convert.pickles.decode.decoder import decode
from cgpt_convert.pickles.flatten.flatten import fill
from cgpt_convert.pickles.nodes import Call, Dict, Set, Value
from cgpt_convert.sources.local import MemoryBytes

PROTOCOLS = range(6)


def loaded(value: Value) -> Any:
    """What Python's pickle would have made of an inert tree of plain values."""
    match value:
        case Dict():
            return {loaded(key): loaded(item) for key, item in value.items}
        case Set():
            members = map(loaded, value.members)
            return frozenset(members) if value.frozen else set(members)
        case Call():
            return _called(value)
        case list():
            return [loaded(item) for item in value]
        case tuple():
            return tuple(loaded(item) for item in value)
    return value


def _called(call: Call) -> Any:
    """The builtins and codecs that old protocols write plain values with."""
    known: dict[str, Callable[..., Any]] = {
        "_codecs.encode": codecs.encode,
        "builtins.bytearray": bytearray,
        "builtins.bytes": bytes,
        "builtins.complex": complex,
        "builtins.frozenset": frozenset,
        "builtins.set": set,
        "collections.OrderedDict": collections.OrderedDict,
    }
    name = str(call.func).replace("__builtin__", "builtins")
    made = known[name](*loaded(call.args))
    for key, item in call.items:
        made[loaded(key)] = loaded(item)
    return made


def same(one: Any, other: Any) -> bool:
    """Equal, with types, order of dicts, the sign of zero and NaN taken into account."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return struct.pack("<d", one) == struct.pack("<d", other)
    if isinstance(one, dict):
        return len(one) == len(other) and all(map(same, one.items(), other.items()))
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def tree(data: bytes) -> Checkpoint:
    """What the walk over names makes of a pickle without storages."""
    checkpoint = Checkpoint("x.bin", "test", (MemoryBytes("x.bin", b""),), {})
    fill(checkpoint, decode(data), _NoStorages())
    return checkpoint


class _NoStorages(ZipStorages):
    def __init__(self) -> None:
        pass


@contextmanager
def bounded(seconds: float = 60, nbytes: int = 1 << 30) -> Iterator[None]:
    """Generous bounds, far below what the attacks ask for: hours, and terabytes."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < nbytes
