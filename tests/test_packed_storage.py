"""A deflated storage can only be read forward: in its order then, and few times."""

import random
import tempfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import safetensors.torch
import torch

from cgpt_convert import deflated
from cgpt_convert.deflated import Deflated
from cgpt_convert.errors import Malformed
from cgpt_convert.source import MemoryBytes, read
from tests import zips
from tests.running import run

TENSORS = 16


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """The tensors' order is against that of their bytes."""
    whole = torch.arange(TENSORS << 14, dtype=torch.float32)
    parts = {f"t{i}": whole[i << 14 : (i + 1) << 14] for i in reversed(range(TENSORS))}
    entries = zips.entries_of(zips.saved(parts)).values()
    (path := tmp_path / "packed.bin").write_bytes(zips.build(map(zips.deflated, entries)))
    return path


COMMANDS: dict[str, list[object]] = {
    "digest": ["digest", "IN", "--jobs", 2],
    "statistics": ["inspect", "IN", "--stats"],
    "check": ["inspect", "IN", "--check"],
    "convert": ["convert", "IN", "-o", "OUT/x.safetensors", "--jobs", 2],
    "convert, read again": ["convert", "IN", "-o", "OUT/x.npz", "--verify", "--jobs", 2],
    "a file each": ["convert", "IN", "-o", "OUT/npy", "--to", "npy", "--jobs", 2],
    "extract": ["extract", "IN", "-o", "OUT/parameters", "--jobs", 2],
    "diff": ["diff", "IN", "IN", "--jobs", 2],
}


def unpacked(command: str, path: Path, folder: Path, begun: list[Deflated]) -> int:
    """How often the command begins to unpack the same storage, at most."""
    words = [str(word).replace("IN", str(path)) for word in COMMANDS[command]]
    assert run(*[word.replace("OUT", str(folder)) for word in words]).code == 0
    return max(sum(each is source for source in begun) for each in begun)


@pytest.mark.parametrize("command", COMMANDS)
def test_it_is_unpacked_a_few_times_and_not_for_each_tensor(
    packed: Path, unpackings: list[Deflated], tmp_path: Path, command: str
) -> None:
    assert unpacked(command, packed, tmp_path, unpackings) < TENSORS // 2


def test_the_last_bytes_are_there_when_all_that_is_packed_was_taken() -> None:
    nbytes = 4 << 20  # of zeros: a match's last bytes are still to come then
    packed = zlib.compress(bytes(nbytes), 9, wbits=-15)
    source = Deflated(MemoryBytes("x", packed), 0, len(packed), nbytes, "x")
    assert read(source, 4, 4) == bytes(4)
    assert read(source, nbytes - 4, 4) == bytes(4)


def test_packed_bytes_that_end_early_are_told() -> None:
    packed = zlib.compress(bytes(4 << 20), 9, wbits=-15)[:-100]
    source = Deflated(MemoryBytes("x", packed), 0, len(packed), 4 << 20, "x")
    with pytest.raises(Malformed, match="ends early"):
        read(source, (4 << 20) - 4, 4)


FAR = 100


@pytest.fixture
def far(tmp_path: Path) -> Path:
    """Elements that lie far apart, each pair another way back."""
    n = 1 << 18
    whole = torch.arange(n, dtype=torch.float32)
    pairs = {f"t{k}": torch.as_strided(whole, (2,), (n - 1 - k,), k) for k in range(FAR)}
    entries = zips.entries_of(zips.saved(pairs)).values()
    (path := tmp_path / "far.bin").write_bytes(zips.build(map(zips.deflated, entries)))
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_elements_far_apart_do_not_cost_an_unpacking_each(
    far: Path, unpackings: list[Deflated], tmp_path: Path, command: str
) -> None:
    assert unpacked(command, far, tmp_path, unpackings) < FAR // 10


def test_what_is_kept_of_a_packed_storage_is_what_torch_reads(far: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    assert run("convert", far, "-o", out).code == 0
    ours, theirs = safetensors.torch.load_file(out), torch.load(far, weights_only=True)
    assert len(ours) == FAR
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


@pytest.mark.parametrize("noticed", [True, False])
def test_without_room_to_keep_it_it_is_unpacked_again(
    far: Path,
    unpackings: list[Deflated],
    mounted: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    noticed: bool,
) -> None:
    digest = run("digest", far).out
    monkeypatch.setattr(tempfile, "tempdir", str(mounted("size=256k")))
    if not noticed:  # another program takes it meanwhile
        monkeypatch.setattr(deflated, "room", lambda: (1 << 40, ""))
    unpackings.clear()
    assert run("digest", far).out == digest
    assert len(unpackings) > FAR


def packed_noise(nbytes: int) -> tuple[bytes, bytes]:
    data = random.Random(0).randbytes(nbytes)
    return data, zlib.compress(data, wbits=-15)


def test_of_many_packed_storages_few_are_kept(unpackings: list[Deflated]) -> None:
    data, packed = packed_noise(1 << 16)
    source = MemoryBytes("x", packed)
    several = [Deflated(source, 0, len(packed), len(data), "x") for _ in range(3 * TENSORS)]
    for at in range(len(data) - 4, len(data) - 4 * TENSORS, -4):
        assert [read(each, at, 4) for each in several] == [data[at : at + 4]] * len(several)
    assert sum(each._spool is not None for each in several) == 4
    unpackings.clear()
    for at in range(len(data) - 4, 0, -256):
        assert read(several[0], at, 4) == data[at : at + 4]
    assert len(unpackings) < TENSORS


def test_what_is_read_whole_again_and_again_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    data, packed = packed_noise(1 << 16)
    source = Deflated(MemoryBytes("x", packed), 0, len(packed), len(data), "x")
    monkeypatch.delattr(deflated, "Spool")
    for _ in range(TENSORS):
        assert read(source, 0, len(data)) == data


@pytest.mark.parametrize("spoiled", [lambda packed: packed[:-100], lambda packed: packed + b"more"])
def test_damage_further_on_spares_what_comes_before(
    unpackings: list[Deflated], spoiled: Callable[[bytes], bytes]
) -> None:
    data, packed = packed_noise(1 << 16)
    packed = spoiled(packed)
    source = Deflated(MemoryBytes("x", packed), 0, len(packed), len(data) + 100, "x")
    for at in range(50_000, 0, -100):
        assert read(source, at, 4) == data[at : at + 4]
    assert len(unpackings) < TENSORS
    with pytest.raises(Malformed, match="ends early"):
        read(source, len(data), 4)
    assert read(source, 4, 4) == data[4:8]


def test_what_lies_before_a_broken_block_is_whole_when_it_is_kept() -> None:
    data = random.Random(0).randbytes(300_000)
    packer = zlib.compressobj(wbits=-15)
    packed = packer.compress(data) + packer.flush(zlib.Z_FULL_FLUSH) + b"\x07"  # no such block
    source = Deflated(MemoryBytes("x", packed), 0, len(packed), 2 * len(data), "x")
    for at in range(len(data) - 100, 200_000, -1000):
        assert read(source, at, 4) == data[at : at + 4]
    assert len(data) - 2 <= source._end <= len(data)  # zlib looks ahead when a block ends
    with pytest.raises(Malformed, match="damaged"):
        read(source, len(data), 4)


def test_statistics_take_one_packed_storage_after_the_other(
    tmp_path: Path, unpackings: list[Deflated]
) -> None:
    n = 1 << 14
    wholes = [torch.arange(n, dtype=torch.float32) + k for k in range(TENSORS)]
    pairs = [(whole, i) for i in range(FAR) for whole in wholes]
    parts = {f"{k}": whole.as_strided((2,), (n - 1 - i,), i) for k, (whole, i) in enumerate(pairs)}
    entries = zips.entries_of(zips.saved(parts)).values()
    (path := tmp_path / "x.bin").write_bytes(zips.build(map(zips.deflated, entries)))
    assert unpacked("statistics", path, tmp_path, unpackings) < FAR // 10


def test_what_is_kept_may_go_while_others_read_it() -> None:
    data, packed = packed_noise(1 << 18)
    source = MemoryBytes("x", packed)
    several = [Deflated(source, 0, len(packed), len(data), "x") for _ in range(TENSORS)]

    def all_of(turn: int) -> bool:
        places = random.Random(turn).choices(range(len(data) - 4), k=50)
        return all(read(each, at, 4) == data[at : at + 4] for at in places for each in several)

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(all_of, range(4)))
