"""The sink: what it writes is what was planned, and a fault leaves the old output or none."""

import errno
import os
import random
import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cgpt_convert.core.errors import CannotWrite, Malformed, Unreadable
from cgpt_convert.formats import registry
from cgpt_convert.formats.open import open_checkpoint
from cgpt_convert.plan import AvailableDigests, Crc32, DeferredPart, FilePlan, Part
from cgpt_convert.sources.inflate import DeflatedMember
from cgpt_convert.sources.local import CHUNK, LocalFile, MemoryBytes
from cgpt_convert.tensors import checksums
from cgpt_convert.tensors.dtypes import BY_NAME
from cgpt_convert.tensors.tensor import Storage, Tensor, replace
from cgpt_convert.writing import local_stage, output_checks, writer
from cgpt_convert.writing.writer import WriteOptions
from tests.helpers import torch_save, zips
from tests.helpers.render import dense, render, request
from tests.helpers.running import contents

BIG = CHUNK * 3 + 17  # more than one read


class Failing(MemoryBytes):
    """A disk with an unreadable place: bytes from `bad` on cannot be had."""

    def __init__(self, data: bytes, bad: int, error: BaseException) -> None:
        super().__init__("failing", data)
        self.bad, self.error = bad, error

    def readinto(self, offset: int, buffer: memoryview) -> None:
        if offset + len(buffer) > self.bad:
            raise self.error
        super().readinto(offset, buffer)


class Changing(MemoryBytes):
    """A file that somebody writes to meanwhile."""

    def check_unchanged(self) -> None:
        raise Unreadable("the file changed while it was read", where=self.name)


def noise(nbytes: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(nbytes)


def on(source: MemoryBytes, crc32: int | None = None) -> Tensor:
    """All the bytes of a source as one tensor."""
    return Storage(source, 0, source.nbytes, "key", crc32=crc32).whole()


def plan(*parts: Part, path: str = "out") -> FilePlan:
    return FilePlan(path, parts)


def late(nbytes: int, *paths: str) -> DeferredPart:
    """The SHA-256 and CRC-32 of some files, cut to `nbytes`."""

    def make(digests: AvailableDigests) -> bytes:
        files = digests.files
        texts = (f"{files[path].sha256} {files[path].crc32:08x}" for path in paths)
        return "".join(texts).encode()[:nbytes].ljust(nbytes)

    return DeferredPart(nbytes, make)


def strided(name: str, seed: int) -> Tensor:
    return dense(name, "float32", (37, 53), noise(37 * 53 * 4, seed)).transposed()


def random_parts(source: random.Random, count: int) -> tuple[Part, ...]:
    """Bytes, tensors and checksums in any order; some sums stand before what they cover."""
    parts: list[Part] = []
    for index in range(count):
        kind = source.randrange(5)
        if kind == 0:
            parts.append(noise(source.randrange(50), index))
        elif kind == 1:
            parts.append(dense("t", "uint8", (n := source.randrange(99),), noise(n, index)))
        elif kind == 2:
            parts.append(strided("s", index))
        elif kind == 3:
            halves = dense("c", "float32", (6,), noise(24, index)).cast(BY_NAME["float16"])
            parts.append(halves)
        else:
            parts.append(b"")
    places = [source.randrange(count) for _ in range(4)]
    spans = [sorted(source.sample(range(count + 1), 2)) for _ in places]
    for spot, (first, last) in zip(places, spans, strict=True):
        if not first <= spot < last and parts[spot] == b"":
            parts[spot] = Crc32(first, last)
    covered = {i for part in parts if isinstance(part, Crc32) for i in range(part.first, part.last)}
    return tuple(
        b"" if isinstance(part, Crc32) and index in covered else part
        for index, part in enumerate(parts)
    )


@pytest.mark.parametrize("seed", range(40))
def test_any_plan_is_written_as_the_reference_renders_it(tmp_path: Path, seed: int) -> None:
    parts = random_parts(random.Random(seed), 25)
    plans = [FilePlan("out", parts, hashed=True), plan(late(80, "out"), path="sums")]
    writer.write_files(plans, str(tmp_path), WriteOptions())
    assert contents(tmp_path) == render(plans)


def test_the_random_plans_have_sums_before_and_after_what_they_cover() -> None:
    found = set()
    for seed in range(40):
        for index, part in enumerate(random_parts(random.Random(seed), 25)):
            if isinstance(part, Crc32):
                found.add(index < part.first)
    assert found == {True, False}


def test_a_sum_may_stand_before_and_again_after_many_chunks(tmp_path: Path) -> None:
    data = noise(BIG)
    body = dense("w", "uint8", (BIG,), data)
    writer.write_files(
        [plan(Crc32(1, 3), b"head", body, Crc32(1, 3))], str(tmp_path), WriteOptions()
    )
    crc = zlib.crc32(b"head" + data).to_bytes(4, "little")
    assert (tmp_path / "out").read_bytes() == crc + b"head" + data + crc


def test_late_parts_know_the_digests_of_the_files_before(tmp_path: Path) -> None:
    plans = [
        FilePlan("a", (dense("w", "uint8", (BIG,), noise(BIG)), b"end"), hashed=True),
        FilePlan("deep/b", (strided("s", 1),), hashed=True),
        FilePlan("index", (b"{", late(150, "a", "deep/b"), b"}")),
    ]
    written = writer.write_folder(plans, str(tmp_path / "out"), WriteOptions())
    assert contents(tmp_path / "out") == render(plans)
    assert written == [str(tmp_path / "out" / each.path) for each in plans]


def told(*tensors: Tensor) -> DeferredPart:
    """The digests of tensors."""

    def make(digests: AvailableDigests) -> bytes:
        return "".join(digests.tensors.get(t.content, "0" * 64) for t in tensors).encode()

    return DeferredPart(64 * len(tensors), make, tensors)


@pytest.mark.parametrize("jobs", [1, 3])
def test_digests_of_what_is_written_cast_from_and_not_written(tmp_path: Path, jobs: int) -> None:
    whole, turned = dense("w", "float32", (BIG // 4,), noise(BIG // 4 * 4)), strided("s", 1)
    half, other = strided("h", 2).cast(BY_NAME["float16"]), strided("o", 3)
    late = told(whole, turned, half, half.uncast, other, other.transposed(), whole.renamed("again"))
    plans = [
        FilePlan("hashed", (whole,), hashed=True),
        FilePlan("a", (late, Crc32(2, 5), turned, half, late)),
        FilePlan("last", (b"{", told(turned, other), b"}")),
    ]
    writer.write_folder(plans, str(tmp_path / "out"), WriteOptions(jobs=jobs))
    assert contents(tmp_path / "out") == render(plans)


class Meeting(MemoryBytes):
    """Bytes that are not to be had before so many threads have asked for theirs."""

    def __init__(self, data: bytes, barrier: threading.Barrier) -> None:
        super().__init__("meeting", data)
        self.barrier, self.alone = barrier, True

    def readinto(self, offset: int, buffer: memoryview) -> None:
        if self.alone:
            self.alone = False
            self.barrier.wait(20)
        super().readinto(offset, buffer)


def test_large_tensors_are_copied_several_at_a_time(tmp_path: Path) -> None:
    barrier = threading.Barrier(2)
    data = [noise(BIG, seed) for seed in range(4)]
    parts: list[Part] = [b"head", *(on(Meeting(each, barrier)) for each in data)]
    writer.write_files([plan(*parts)], str(tmp_path), WriteOptions(jobs=2))
    assert (tmp_path / "out").read_bytes() == b"head" + b"".join(data)


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("turned", [False, True])
def test_a_packed_storage_that_many_tensors_share_is_unpacked_once(
    tmp_path: Path, unpackings: list[DeflatedMember], jobs: int, turned: bool
) -> None:
    data = noise(8 * BIG // 4 * 4)
    packed = zips.raw_deflate(data, 1)
    source = DeflatedMember(MemoryBytes("zip", packed), 0, len(packed), len(data), "packed")
    storage = Storage(source, 0, len(data), "key")
    n = BIG // 4
    views = [Tensor("", BY_NAME["float32"], (n,), (1,), n * i, storage) for i in range(8)]
    shared = [*reversed(views)]
    if turned:
        shared = [replace(view, shape=(2, n // 2), strides=(1, 2)) for view in shared]
    octets = {"stored": BY_NAME["uint8"], "shape": (4 * n,), "strides": (1,)}
    shared[::2] = [replace(view, start=4 * view.start, **octets) for view in shared[::2]]
    expected = render([plan(*shared)])
    unpackings.clear()
    writer.write_files([plan(*shared)], str(tmp_path), WriteOptions(jobs=jobs))
    assert contents(tmp_path) == expected
    assert len(unpackings) <= 1


def test_a_late_part_of_the_wrong_size_is_never_published(tmp_path: Path) -> None:
    wrong = DeferredPart(10, lambda _digests: b"short")
    with pytest.raises(CannotWrite, match="5 bytes were written, but 10 were planned"):
        writer.write_files([plan(wrong)], str(tmp_path), WriteOptions())
    assert contents(tmp_path) == {}


def test_ten_thousand_sums_cost_no_more_than_their_spans(tmp_path: Path) -> None:
    parts: list[Part] = []
    for index in range(10_000):
        parts += [Crc32(2 * index + 1, 2 * index + 2), index.to_bytes(4, "little")]
    writer.write_files([plan(*parts)], str(tmp_path), WriteOptions())
    data = (tmp_path / "out").read_bytes()
    assert data[-8:-4] == zlib.crc32(data[-4:]).to_bytes(4, "little")


def test_progress_counts_every_byte_once(tmp_path: Path) -> None:
    told: list[int] = []
    plans = [plan(b"abc", dense("w", "uint8", (BIG,), noise(BIG)), strided("s", 0), Crc32(0, 2))]
    writer.write_files(plans, str(tmp_path), WriteOptions(advance=told.append))
    assert sum(told) == plans[0].nbytes
    assert max(told) <= 8 << 20


FAULTS: dict[str, Callable[[], BaseException]] = {
    "a read error": lambda: Unreadable("Input/output error", where="failing"),
    "a truncated file": lambda: Malformed("the file ends early", where="failing"),
    "Ctrl-C": KeyboardInterrupt,
    "SIGTERM": lambda: SystemExit(143),
    "no memory": MemoryError,
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("old", [None, b"old"])
def test_a_fault_in_the_middle_leaves_the_old_file_or_none(
    tmp_path: Path, fault: str, old: bytes | None
) -> None:
    if old is not None:
        (tmp_path / "out").write_bytes(old)
    before = contents(tmp_path)
    error = FAULTS[fault]()
    broken = on(Failing(noise(BIG), BIG - 5, error))
    with pytest.raises(type(error)):
        writer.write_files([plan(b"head", broken)], str(tmp_path), WriteOptions(overwrite=True))
    assert contents(tmp_path) == before


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_middle_leaves_the_old_folder_or_none(tmp_path: Path, fault: str) -> None:
    out = tmp_path / "out"
    error = FAULTS[fault]()
    plans = [plan(b"whole", path="0"), plan(on(Failing(noise(BIG), BIG - 5, error)), path="1")]
    with pytest.raises(type(error)):
        writer.write_folder(plans, str(out), WriteOptions())
    assert contents(tmp_path) == {}
    ours = plan(b'{"file": "0"}', path="mapping.json")
    writer.write_folder([plan(b"old", path="0"), ours], str(out), WriteOptions())
    with pytest.raises(type(error)):
        writer.write_folder(plans, str(out), WriteOptions(overwrite=True))
    assert contents(tmp_path) == {"out/0": b"old", "out/mapping.json": b'{"file": "0"}'}


def test_bytes_that_do_not_match_their_checksum_are_never_published(tmp_path: Path) -> None:
    data = noise(BIG)
    for damaged in (
        on(MemoryBytes("file", data), zlib.crc32(data) ^ 1),
        Tensor("t", BY_NAME["uint8"], (5, 3), (1, 5), 0, on(MemoryBytes("f", data), 1).storage),
        floats(data[: 1 << 16], "float16", (1 << 14,), 1),
        floats(data[: 1 << 16], "float16", (1 << 7, 1 << 7), 1),  # read in order, then arranged
        floats(b"\xff" * 128, "q8_0", (32,), 1),  # NaNs: damage is what is to be told
    ):
        with pytest.raises(Malformed, match=f"tensor '{damaged.name}' is damaged"):
            writer.write_files([plan(damaged)], str(tmp_path), WriteOptions())
        assert contents(tmp_path) == {}


def floats(data: bytes, target: str, shape: tuple[int, ...], wrong: int) -> Tensor:
    """float32 to be cast, transposed, on a storage whose checksum is off by that much."""
    storage = on(MemoryBytes("f", data), zlib.crc32(data) ^ wrong).storage
    strides = (1, *shape[:-1])
    return Tensor("t", BY_NAME["float32"], shape, strides, 0, storage).cast(BY_NAME[target])


def test_casts_are_compared_with_the_checksum_as_they_are_read(tmp_path: Path) -> None:
    data = struct.pack("<6f", 1, 2, 3, 4, 5, 6)
    for tensor, numbers in (
        (floats(data, "float16", (6,), 0), (1, 2, 3, 4, 5, 6)),
        (floats(data, "float16", (2, 3), 0), (1, 3, 5, 2, 4, 6)),
    ):
        source = Counting("f", data)
        counted = replace(tensor, storage=replace(tensor.storage, source=source))
        writer.write_files([plan(counted)], str(tmp_path), WriteOptions(overwrite=True))
        assert contents(tmp_path) == {"out": struct.pack("<6e", *numbers)}
        assert source.reads == 1


class Counting(MemoryBytes):
    reads = 0

    def readinto(self, offset: int, buffer: memoryview) -> None:
        self.reads += 1
        super().readinto(offset, buffer)


def test_a_part_of_a_storage_is_checked_with_all_of_it(tmp_path: Path) -> None:
    data = noise(BIG)
    storage = on(MemoryBytes("file", data), zlib.crc32(data)).storage
    view = Tensor("t", BY_NAME["uint8"], (9,), (1,), 100, storage)
    writer.write_files([plan(view)], str(tmp_path), WriteOptions())
    assert contents(tmp_path) == {"out": data[100:109]}


def test_damaged_storages_are_all_found() -> None:
    data = noise(BIG)
    storages = [on(MemoryBytes("f", data), zlib.crc32(data) ^ (i % 2)).storage for i in range(6)]
    unrecorded = on(MemoryBytes("f", data)).storage
    assert checksums.check_storages([*storages, unrecorded]) == storages[1::2]


def test_a_source_that_changed_is_noticed_before_anything_appears(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="changed"):
        writer.write_files([plan(on(Changing("f", b"data")))], str(tmp_path), WriteOptions())
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("how", ["written", "shortened", "replaced", "touched"])
def test_a_real_file_that_changes_during_the_conversion_is_noticed(
    tmp_path: Path, how: str
) -> None:
    source = tmp_path / "in"
    source.write_bytes(noise(BIG))
    os.utime(source, ns=(1, 1))
    file = LocalFile(source)
    tensor = Storage(file, 0, file.nbytes, "key").whole()

    def meddle(_nbytes: int) -> None:
        if how == "written":
            with source.open("r+b") as writer:
                writer.write(b"other")
        elif how == "shortened":
            os.truncate(source, CHUNK)
        elif how == "touched":
            os.utime(source, ns=(2, 2))
        else:  # the opened file lives on, so this alone does no harm
            source.with_name("new").write_bytes(b"x" * BIG)
            source.with_name("new").rename(source)

    out = tmp_path / "folder"
    out.mkdir()
    if how == "replaced":
        writer.write_files([plan(tensor)], str(out), WriteOptions(advance=meddle))
        assert contents(out) == {"out": noise(BIG)}
    else:
        with pytest.raises(Unreadable, match=r"changed|shorter"):
            writer.write_files([plan(tensor)], str(out), WriteOptions(advance=meddle))
        assert contents(out) == {}


@pytest.mark.parametrize("folder", [False, True])
def test_of_two_writers_at_once_exactly_one_wins(tmp_path: Path, *, folder: bool) -> None:
    started: list[bytes] = []
    write = writer.write_folder if folder else writer.write_files
    target = str(tmp_path / "out" if folder else tmp_path)

    def second(_nbytes: int) -> None:
        if not started:
            started.append(b"second")
            write([plan(b"second")], target, WriteOptions())

    with pytest.raises(CannotWrite, match="already exists"):
        write([plan(b"first")], target, WriteOptions(advance=second))
    assert contents(tmp_path) == {"out/out" if folder else "out": b"second"}


def test_a_disk_that_is_too_small_is_refused_before_writing(mounted: Callable[..., Path]) -> None:
    small = mounted("size=1m")
    tensor = dense("w", "uint8", (2 << 20,), bytes(2 << 20))
    read: list[int] = []
    with pytest.raises(CannotWrite, match=r"2,097,152 bytes are needed, 1,0\d\d,\d{3} are free"):
        writer.write_files([plan(tensor)], str(small), WriteOptions(advance=read.append))
    with pytest.raises(CannotWrite, match="bytes are needed"):
        writer.write_folder([plan(tensor)], str(small / "out"), WriteOptions(advance=read.append))
    assert not read
    assert contents(small) == {}


@pytest.mark.parametrize("folder", [False, True])
def test_a_disk_that_fills_up_meanwhile_leaves_nothing(
    mounted: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, *, folder: bool
) -> None:
    small = mounted("size=1m")
    monkeypatch.setattr(
        local_stage, "check_space", lambda *_: None
    )  # others fill it after the check
    tensor = dense("w", "uint8", (2 << 20,), bytes(2 << 20))
    write, target = (writer.write_folder, "new") if folder else (writer.write_files, ".")
    with pytest.raises(CannotWrite, match="No space left on device") as caught:
        write([plan(tensor)], os.path.normpath(small / target), WriteOptions())
    assert caught.value.where == str(small / "new/out" if folder else small / "out")
    assert list(small.iterdir()) == []


def test_a_large_file_has_its_blocks_before_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_checks, "RESERVED", 1 << 20)
    seen: list[int] = []

    def look(_nbytes: int) -> None:
        (temporary,) = tmp_path.iterdir()
        seen.append(temporary.stat().st_blocks * 512)

    tensor = dense("w", "uint8", (2 << 20,), bytes(2 << 20))
    writer.write_files([plan(tensor)], str(tmp_path), WriteOptions(advance=look))
    assert seen[0] >= 2 << 20
    assert (tmp_path / "out").read_bytes() == bytes(2 << 20)


def test_a_disk_without_the_blocks_is_refused_before_writing(
    mounted: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = mounted("size=1m")
    monkeypatch.setattr(
        local_stage, "check_space", lambda *_: None
    )  # others fill it after the check
    monkeypatch.setattr(output_checks, "RESERVED", 1 << 20)
    tensor = dense("w", "uint8", (2 << 20,), bytes(2 << 20))
    read: list[int] = []
    with pytest.raises(CannotWrite, match="No space left on device"):
        writer.write_files([plan(tensor)], str(small), WriteOptions(advance=read.append))
    assert not read
    assert contents(small) == {}


@pytest.mark.parametrize("code", [errno.EBADF, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_that_cannot_reserve_is_written_to_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(descriptor: int, _start: int, _nbytes: int) -> None:
        with pytest.raises(OSError, match="Bad file descriptor"):  # so C libraries emulate nothing
            os.read(descriptor, 1)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(output_checks, "RESERVED", 1)
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    writer.write_files([plan(b"data")], str(tmp_path), WriteOptions())
    assert contents(tmp_path) == {"out": b"data"}


def test_a_read_only_disk_is_said_to_be_one(mounted: Callable[..., Path]) -> None:
    fixed = mounted("ro,size=1m")
    with pytest.raises(CannotWrite, match="Read-only file system"):
        writer.write_files([plan(b"data")], str(fixed), WriteOptions())
    with pytest.raises(CannotWrite, match="Read-only file system"):
        writer.write_folder([plan(b"data")], str(fixed / "out"), WriteOptions())


def test_the_output_may_lie_on_another_file_system(
    mounted: Callable[..., Path], tmp_path: Path
) -> None:
    other = mounted("size=8m")
    part = np.arange(24, dtype=np.float32).reshape(4, 6)
    source = tmp_path / "in.bin"
    source.write_bytes(torch_save.saved({"a": part, "t": part.T, "tied": part}))
    checkpoint = open_checkpoint(source)
    tensors = [tensor for name, tensor in checkpoint.items() if name not in checkpoint.ties]
    plans = registry.by_name("npz").planned(request("out.npz", *tensors))
    writer.write_files(plans, str(other), WriteOptions())
    assert contents(other) == render(plans)


def test_a_full_standard_output_is_an_error_of_its_own() -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full")
    descriptor = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(OSError, match="No space left"):
            writer.write_blocks(dense("w", "uint8", (3,), b"abc"), descriptor)
    finally:
        os.close(descriptor)
