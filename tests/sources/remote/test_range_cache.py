"""What is fetched for which reads: an object in memory tells what it was asked for."""

import contextlib
import random
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cgpt_convert.core.errors import Malformed, Unreadable
from cgpt_convert.sources.local import expect, read
from cgpt_convert.sources.remote import range_cache, remote_settings, retry
from cgpt_convert.sources.remote.range_cache import MEMORY, RemoteFile
from cgpt_convert.sources.remote.remote_object import HEAD, FirstResponse, TransientError
from cgpt_convert.tensors.dtypes import FLOAT32
from cgpt_convert.tensors.tensor import Storage, Tensor

MiB = 1 << 20


class Memory:
    """An object whose bytes are in memory. `fails` of its answers break off."""

    name = "memory://object"

    def __init__(self, data: bytes, fails: int = 0) -> None:
        self.data = data
        self.fails = fails
        self.asked: list[tuple[int, int]] = []

    def open(self, head: int = HEAD) -> FirstResponse:
        return FirstResponse(len(self.data), self.data[:head])

    def pieces(self, offset: int, nbytes: int) -> Iterator[bytes]:
        self.asked.append((offset, nbytes))
        if self.fails:
            self.fails -= 1
            yield self.data[offset : offset + nbytes // 2]
            raise TransientError("cut")
        for at in range(offset, offset + nbytes, 100_000):
            yield self.data[at : min(at + 100_000, offset + nbytes)]

    @contextlib.contextmanager
    def stream(self, offset: int) -> Iterator[tuple[int, int | None, Iterator[bytes]]]:
        yield offset, len(self.data), self.pieces(offset, len(self.data) - offset)

    def check_unchanged(self) -> None:
        pass

    @property
    def sent(self) -> int:
        return sum(nbytes for _, nbytes in self.asked)


DATA = np.random.default_rng(0).bytes(24 * MiB)


def in_chunks(source: RemoteFile, start: int, end: int, step: int = 256 << 10) -> bytes:
    return b"".join(read(source, at, min(step, end - at)) for at in range(start, end, step))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3 * MiB), st.integers(0, 700_000), st.booleans()), max_size=30
    ),
    st.integers(1, 3 * MiB),
)
def test_reads_give_the_bytes(reads: list[tuple[int, int, bool]], nbytes: int) -> None:
    source = RemoteFile(Memory(DATA[:nbytes]))
    for start, length, expected in reads:
        start, length = min(start, nbytes), min(length, nbytes - min(start, nbytes))  # noqa: PLW2901
        if expected:
            expect([(source, start, length)])
        assert read(source, start, length) == DATA[start : start + length]
    source.close()


def test_threads_may_read_at_once() -> None:
    thing = Memory(DATA)
    source = RemoteFile(thing)
    wrong = []

    def reader(seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(100):
            at = dice.randrange(len(DATA) - 1000)
            if read(source, at, 1000) != DATA[at : at + 1000]:
                wrong.append(at)

    threads = [threading.Thread(target=reader, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    source.close()


def test_reading_in_order_takes_long_ranges_and_each_byte_once() -> None:
    thing = Memory(DATA)
    source = RemoteFile(thing)
    assert in_chunks(source, 0, len(DATA)) == DATA
    assert thing.sent == len(DATA) - HEAD
    assert len(thing.asked) < 12
    source.close()


def test_what_is_expected_is_fetched_once_in_any_order() -> None:
    thing = Memory(DATA)
    source = RemoteFile(thing)
    wanted = [(8 * MiB, 5 * MiB), (MiB, 3 * MiB), (20 * MiB, 100), (20 * MiB + 100, 100)]
    expect((source, *each) for each in wanted)
    for start, nbytes in wanted:
        assert in_chunks(source, start, start + nbytes) == DATA[start : start + nbytes]
    assert thing.sent == sum(nbytes for _, nbytes in wanted)
    assert len(thing.asked) == 4  # 4 and 1 MiB, 3 MiB, and the two small ones together
    source.close()


def test_small_reads_in_many_places_take_little() -> None:
    thing = Memory(DATA)
    source = RemoteFile(thing)
    for at in range(MiB, 20 * MiB, MiB):
        read(source, at, 30)
    assert thing.sent == 19 * (16 << 10)
    assert read(source, len(DATA) - 65557, 65557) == DATA[-65557:]  # a zip's end
    assert thing.asked[-1] == (len(DATA) - (128 << 10), 128 << 10)
    source.close()


def test_memory_is_bounded() -> None:
    sources = [RemoteFile(Memory(DATA)) for _ in range(5)]
    most = 0
    for at in range(0, len(DATA), 256 << 10):
        for source in sources:
            read(source, at, 256 << 10)
            kept = range_cache._kept  # noqa: SLF001  of all files, which no one file tells
            most = max(most, sum(fetch.end - fetch.start for fetch in kept))
    assert most <= MEMORY + 2 * 4 * MiB
    for source in sources:
        source.close()


def test_what_is_cut_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "_FIRST_WAIT", 0.001)
    thing = Memory(DATA, fails=3)
    source = RemoteFile(thing)
    expect([(source, MiB, 2 * MiB)])
    assert read(source, MiB, 2 * MiB) == DATA[MiB : 3 * MiB]
    assert [nbytes for _, nbytes in thing.asked] == [2 * MiB, MiB, MiB // 2, MiB // 4]
    source.close()


def test_patience_ends_and_the_next_read_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "_FIRST_WAIT", 0.001)
    monkeypatch.setattr(remote_settings.settings, "retries", 2)
    thing = Memory(DATA, fails=3)
    source = RemoteFile(thing)
    with pytest.raises(Unreadable, match=r"cut \(3 attempts\)"):
        read(source, MiB, 10)
    assert read(source, MiB, 10) == DATA[MiB : MiB + 10]
    with pytest.raises(Malformed):
        read(source, len(DATA) - 1, 2)
    source.close()


def test_a_transposed_tensor_is_fetched_once_and_not_panel_by_panel() -> None:
    thing = Memory(DATA)
    source = RemoteFile(thing)
    rows, columns = 2048, 2560  # 20 MiB; the panels of blocks of 1 MiB have 2.5
    storage = Storage(source, 4, 4 * rows * columns, "0")
    tensor = Tensor("w", FLOAT32, (columns, rows), (1, columns), 0, storage)
    theirs = np.frombuffer(DATA, "<f4", rows * columns, 4).reshape(rows, columns).T
    assert b"".join(map(bytes, tensor.blocks(MiB))) == theirs.tobytes()
    assert thing.sent <= len(DATA)
    source.close()
