"""Every name and call that an unpickler comes by is one that we saw: compared with Python's two."""

from __future__ import annotations

import argparse
import collections
import io
import pickle
import pickletools
import random
from typing import Any

import numpy as np
import pytest

from cgpt_convert.core.errors import Malformed
from cgpt_convert.pickles.decode.decoder import decode
from cgpt_convert.pickles.trace.tracer import trace
from cgpt_convert.sources.local import MemoryBytes
from tests.helpers.hostile_pickles import DANGEROUS, FOREIGN, HARMLESS, payload
from tests.helpers.python_pickle import PythonUnpickler

Log = list[tuple[str, ...]]
COMPUTED = ("", "what another call returns")


class Stranger:
    """What the oracles make of every class: it takes anything, and does nothing."""

    name: tuple[str, str]
    log: Log

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        self.log.append(("call", *self.name))

    def __setstate__(self, _state: Any) -> None:
        pass

    def __call__(self, *_args: Any, **_kwargs: Any) -> Any:
        self.log.append(("call", *COMPUTED))

    def append(self, _value: Any) -> None:
        pass

    def __setitem__(self, _key: Any, _value: Any) -> None:
        pass


def oracle(base: type, data: bytes) -> Log:
    """The names and calls, in order, up to the oracle's first error."""
    log: Log = []

    class Recorder(base):  # type: ignore[misc]
        def find_class(self, module: str, name: str) -> Any:
            log.append(("name", module, name))
            return type("S", (Stranger,), {"name": (module, name), "log": log})

        def persistent_load(self, _reference: Any) -> Any:
            return object()

    try:
        Recorder(io.BytesIO(data), fix_imports=False).load()
    except Exception:  # noqa: BLE001  of any kind: what came before it counts
        return log
    return log


def ours(data: bytes) -> tuple[set[tuple[str, ...]], str]:
    traced = trace(MemoryBytes("fuzzed", data), 0, lambda _module, _name: False)
    seen: set[tuple[str, ...]] = {("name", use.module, use.name) for use in traced.uses}
    seen |= {("call", use.module, use.name) for use in traced.uses if use.count}
    return seen, traced.odd


def missed(data: bytes) -> list[tuple[str, ...]]:
    """What an oracle did that we do not tell of; nothing where we refuse the pickle anyway."""
    seen, odd = ours(data)
    if odd:
        return []
    logs = [oracle(base, data) for base in (pickle.Unpickler, PythonUnpickler)]
    return [each for log in logs for each in log if each not in seen]


def seeds() -> list[bytes]:
    values: list[Any] = [
        {"a": [1, 2.5, "x" * 30, b"y" * 30, None, True, 1 << 80, {3}, frozenset([4])]},
        argparse.Namespace(a=1),
        collections.OrderedDict(b=2),
        np.arange(5),
        np.array([1, "a"], dtype=object),
    ]
    found = [pickle.dumps(value, protocol) for value in values for protocol in range(6)]
    found += [data for data, _ in (*DANGEROUS.values(), *FOREIGN.values())]
    return [*found, *HARMLESS.values()]


SEEDS = seeds()
PIECES = (
    *(b"cos\nsystem\n", b"(S'id'\nt", b"\x8c\x02os\x8c\x06system\x93", b"(ios\nsystem\n", b"h\0"),
    *(b"q\0", b"p1\n", b"g1\n", b"K\1", b"X\1\0\0\0a", b"\x95\6\0\0\0\0\0\0\0", b"Px\n", b"C\1b"),
    *(bytes((code,)) for code in b"R012(\x94bo\x81\x92saeu\x90\x91]})\x8fNtQ.\x85\x86\x87"),
)
OPCODES = [ord(info.code) for info in pickletools.opcodes]


def mutated(rng: random.Random) -> bytes:
    if rng.random() < 0.5:
        data = b"".join(rng.choice(PIECES) for _ in range(rng.randint(3, 25)))
        return b"\x80\x04" + data if rng.random() < 0.5 else data
    data = rng.choice(SEEDS)
    for _ in range(rng.randint(1, 4)):
        at, kind = rng.randrange(len(data) + 1), rng.random()
        if kind < 0.4:
            byte = rng.choice(OPCODES) if rng.random() < 0.6 else rng.randrange(256)
            data = data[:at] + bytes((byte,)) + data[at + 1 :]
        elif kind < 0.75:
            data = data[:at] + rng.choice(PIECES) + data[at:]
        elif kind < 0.9:
            data = data[:at] + data[at + rng.randint(1, 5) :]
        else:
            data = data[:at]
        if not data:
            return b"."
    return data


@pytest.mark.parametrize("data", SEEDS, ids=range(len(SEEDS)))
def test_what_loading_a_pickle_names_and_calls_is_seen(data: bytes) -> None:
    assert missed(data) == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(4))
def test_so_it_is_of_pickles_with_random_damage(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(1_500):
        data = mutated(rng)
        assert missed(data) == [], data


def test_the_oracles_do_come_by_calls() -> None:
    assert any(each[0] == "call" for each in oracle(pickle.Unpickler, payload(4)))
    rng = random.Random(0)
    found = [len(oracle(pickle.Unpickler, mutated(rng))) for _ in range(500)]
    assert sum(map(bool, found)) > 100


def _framed(nbytes: int, data: bytes) -> bytes:
    return b"\x95" + nbytes.to_bytes(8, "little") + data


CALL = b"cbuiltins\nlen\n(VPWNED\ntR."
HIDDEN = b"B" + len(CALL).to_bytes(4, "little")  # makes an argument of what follows
INSIDE = {
    "a longer one": _framed(len(CALL) + 7, HIDDEN),
    # then an argument across the end of the outer frame, of which nobody thinks any more
    "an empty one": _framed(0, b"X" + (10).to_bytes(4, "little") + bytes(5)),
}


@pytest.mark.parametrize("kind", INSIDE)
def test_a_frame_inside_another_is_odd(kind: str) -> None:
    """C's unpickler drops what it had read of the outer frame and goes on behind: there is a call.

    It does that with a file that it cannot look ahead in, as torch.load gives it.
    """
    behind = CALL if kind == "a longer one" else bytes(5) + HIDDEN + CALL
    outer = INSIDE[kind]
    data = b"\x80\4" + _framed(len(outer), outer) + behind + b"0" + b"N0" * 3 + b"N."
    assert [each[2] for each in oracle(pickle.Unpickler, data) if each[0] == "call"] == ["len"]
    assert pickle.loads(data) is None  # of bytes that are all there it drops nothing
    assert ours(data)[1].startswith("a frame begins inside another")
    with pytest.raises(Malformed, match="a frame begins inside another"):
        decode(data)


def test_a_frame_right_behind_another_s_last_byte_is_none_inside_it() -> None:
    """The header of the second is still in the first; no loader drops anything."""
    second = _framed(2, b"K\7")
    data = b"\x80\4" + _framed(len(second) - 2, second) + b"."
    assert pickle.load(io.BytesIO(data)) == PythonUnpickler(io.BytesIO(data)).load() == 7
    assert not ours(data)[1]
    assert decode(data).value == 7


def test_frames_as_pickle_writes_them_are_read() -> None:
    for value in ([list(range(99)), "x" * 70_000, [b"y" * 70_000] * 3], ["z" * 999] * 200):
        for data in (pickle.dumps(value, 4), _dumped(value)):
            assert data.count(b"\x95") > 1 or len(data) < 3000
            assert not ours(data)[1]
            assert decode(data).end == len(data)


def _dumped(value: object) -> bytes:
    pickle.Pickler(file := io.BytesIO(), 4).dump(value)
    return file.getvalue()


def test_a_frame_that_ends_inside_a_name_is_odd() -> None:
    """C's unpickler drops what the frame held of the line, Python's refuses it."""
    data = b"\x80\x04\x95\x06\0\0\0\0\0\0\0\x89cos\nXsystem\n."
    named = [each[2] for each in oracle(pickle.Unpickler, data)]
    assert named == ["system"]
    assert ours(data)[1].startswith("a frame ends inside an argument")
    with pytest.raises(Malformed, match="a frame ends inside an argument"):
        decode(data)


def test_a_memo_index_that_costs_memory_is_odd() -> None:
    assert ours(b"\x80\x02Nr\xff\xff\xff\xff.")[1].startswith("memo index 4,294,967,295")


def test_positions_are_of_the_first_call() -> None:
    data = b"\x80\x02cteam\nA\n0cteam\nA\n)R."
    (use,) = trace(MemoryBytes("x", data), 0, lambda _module, _name: False).uses
    assert data[use.position : use.position + 1] == b"R"
    assert (use.dotted, use.count) == ("team.A", 1)
