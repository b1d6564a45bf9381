"""A deflated storage can only be read forward: in its order then, and few times."""

import gc
import os
import random
import tempfile
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import cgpt_convert
from cgpt_convert.core.errors import Malformed
from cgpt_convert.sources import inflate, temp_cache
from cgpt_convert.sources.inflate import SHELF, DeflatedMember
from cgpt_convert.sources.local import MemoryBytes, read
from tests.helpers import torch_save, zips
from tests.helpers.running import run

TENSORS = 16


def pack(tensors: dict[str, torch_save.Array], path: Path) -> Path:
    """The tensors in a torch archive whose records are deflated."""
    entries = zips.entries_of(torch_save.saved(tensors)).values()
    path.write_bytes(zips.build(map(zips.deflated, entries)))
    return path


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """The tensors' order is against that of their bytes."""
    whole = np.arange(TENSORS << 14, dtype=np.float32)
    parts = {f"t{i}": whole[i << 14 : (i + 1) << 14] for i in reversed(range(TENSORS))}
    return pack(parts, tmp_path / "packed.bin")


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


def unpacked(command: str, path: Path, folder: Path, begun: list[DeflatedMember]) -> int:
    """How often the command begins to unpack the same storage, at most."""
    words = [str(word).replace("IN", str(path)) for word in COMMANDS[command]]
    assert run(*[word.replace("OUT", str(folder)) for word in words]).code == 0
    return max(sum(each is source for source in begun) for each in begun)


@pytest.mark.parametrize("command", COMMANDS)
def test_it_is_unpacked_a_few_times_and_not_for_each_tensor(
    packed: Path, unpackings: list[DeflatedMember], tmp_path: Path, command: str
) -> None:
    assert unpacked(command, packed, tmp_path, unpackings) < TENSORS // 2


def test_the_last_bytes_are_there_when_all_that_is_packed_was_taken() -> None:
    nbytes = 4 << 20  # of zeros: a match's last bytes are still to come then
    packed = zips.raw_deflate(bytes(nbytes))
    source = DeflatedMember(MemoryBytes("x", packed), 0, len(packed), nbytes, "x")
    assert read(source, 4, 4) == bytes(4)
    assert read(source, nbytes - 4, 4) == bytes(4)


def test_packed_bytes_that_end_early_are_told() -> None:
    packed = zips.raw_deflate(bytes(4 << 20))[:-100]
    source = DeflatedMember(MemoryBytes("x", packed), 0, len(packed), 4 << 20, "x")
    with pytest.raises(Malformed, match="ends early"):
        read(source, (4 << 20) - 4, 4)


FAR = 100


@pytest.fixture
def far(tmp_path: Path) -> Path:
    """Elements that lie far apart, each pair another way back."""
    n = 1 << 18
    whole = np.arange(n, dtype=np.float32)
    pairs = {f"t{k}": whole[k :: n - 1 - k][:2] for k in range(FAR)}
    return pack(pairs, tmp_path / "far.bin")


@pytest.mark.parametrize("command", COMMANDS)
def test_elements_far_apart_do_not_cost_an_unpacking_each(
    far: Path, unpackings: list[DeflatedMember], tmp_path: Path, command: str
) -> None:
    assert unpacked(command, far, tmp_path, unpackings) < FAR // 10


@pytest.mark.slow  # torch
def test_what_is_kept_of_a_packed_storage_is_what_torch_reads(far: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    out = tmp_path / "out.safetensors"
    assert run("convert", far, "-o", out).code == 0
    ours, theirs = load_file(out), torch.load(far, weights_only=True)
    assert len(ours) == FAR
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


@pytest.mark.parametrize("noticed", [True, False])
def test_without_room_to_keep_it_it_is_unpacked_again(
    far: Path,
    unpackings: list[DeflatedMember],
    mounted: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    noticed: bool,
) -> None:
    digest = run("digest", far).out
    SHELF.clear()  # a file of the first run is in another folder, and lives with its checkpoint
    monkeypatch.setattr(tempfile, "tempdir", str(mounted("size=256k")))
    if not noticed:  # another program takes it meanwhile
        monkeypatch.setattr(temp_cache, "room", lambda: (1 << 40, ""))
    unpackings.clear()
    assert run("digest", far).out == digest
    assert len(unpackings) > FAR


def packed_noise(nbytes: int) -> tuple[bytes, bytes]:
    data = random.Random(0).randbytes(nbytes)
    return data, zips.raw_deflate(data)


SEVERAL = 48


def is_open(descriptor: str) -> bool:
    return os.path.exists(f"/dev/fd/{descriptor}")


def opened() -> int:
    """How many descriptors are open, less those that earlier tests left behind."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # of whatever ran in this process before
        gc.collect()
    return len(os.listdir("/dev/fd"))


def backwards_in_turn(nbytes: int) -> list[DeflatedMember]:
    """Packed storages that were read from their ends, one after the other, again and again."""
    data, packed = packed_noise(nbytes)
    source = MemoryBytes("x", packed)
    several = [DeflatedMember(source, 0, len(packed), len(data), "x") for _ in range(SEVERAL)]
    for at in range(len(data) - 4, len(data) - 4 * FAR, -4):
        assert [read(each, at, 4) for each in several] == [data[at : at + 4]] * SEVERAL
    return several


def test_many_packed_storages_are_kept_in_one_file(unpackings: list[DeflatedMember]) -> None:
    descriptors = opened()
    several = backwards_in_turn(1 << 16)
    assert len(unpackings) < 8 * SEVERAL  # the first, twice the size in vain, and the last
    assert all(each.in_temp_file for each in several)
    assert opened() == descriptors + 1
    del several
    unpackings.clear()
    assert opened() == descriptors


def test_who_is_told_to_let_go_while_it_unpacks_holds_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write = temp_cache.TempFile.write

    def interrupted(self: temp_cache.TempFile, data: bytes, offset: int) -> None:
        write(self, data, offset)
        inflate.SHELF.clear()

    monkeypatch.setattr(temp_cache.TempFile, "write", interrupted)
    descriptors = opened()
    several = backwards_in_turn(1 << 12)
    assert not any(each.in_temp_file for each in several)
    assert opened() == descriptors


def test_what_is_kept_fills_no_more_than_half_of_the_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nbytes, fit = 1 << 16, 5
    most = 0

    def room() -> tuple[int, str]:
        nonlocal most
        files = [os.stat(f"/dev/fd/{name}") for name in os.listdir("/dev/fd") if is_open(name)]
        held = sum(file.st_blocks * 512 for file in files if not file.st_nlink)
        most = max(most, held)
        return 2 * fit * nbytes - held, ""

    monkeypatch.setattr(temp_cache, "room", room)
    several = backwards_in_turn(nbytes)
    assert fit * nbytes // 2 < most <= fit * nbytes
    assert 1 <= sum(each.in_temp_file for each in several) <= fit


def test_what_is_read_whole_again_and_again_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    data, packed = packed_noise(1 << 16)
    source = DeflatedMember(MemoryBytes("x", packed), 0, len(packed), len(data), "x")
    monkeypatch.delattr(inflate, "TempFile")
    for _ in range(TENSORS):
        assert read(source, 0, len(data)) == data


@pytest.mark.parametrize("spoiled", [lambda packed: packed[:-100], lambda packed: packed + b"more"])
def test_damage_further_on_spares_what_comes_before(
    unpackings: list[DeflatedMember], spoiled: Callable[[bytes], bytes]
) -> None:
    data, packed = packed_noise(1 << 16)
    packed = spoiled(packed)
    source = DeflatedMember(MemoryBytes("x", packed), 0, len(packed), len(data) + 100, "x")
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
    source = DeflatedMember(MemoryBytes("x", packed), 0, len(packed), 2 * len(data), "x")
    for at in range(len(data) - 100, 200_000, -1000):
        assert read(source, at, 4) == data[at : at + 4]
    assert read(source, len(data) - 6, 4) == data[-6:-2]  # zlib looks ahead when a block ends
    with pytest.raises(Malformed, match="damaged"):
        read(source, len(data), 4)


@pytest.fixture
def round_robin(tmp_path: Path) -> Path:
    """Tensors from one packed storage after another, again and again; far apart, and backwards."""
    n = 1 << 14
    wholes = [np.arange(n, dtype=np.float32) + k for k in range(TENSORS)]
    pairs = [(whole, i) for i in reversed(range(FAR)) for whole in wholes]
    parts = {f"{k}": whole[i :: n - 1 - i][:2] for k, (whole, i) in enumerate(pairs)}
    return pack(parts, tmp_path / "round.bin")


@pytest.mark.parametrize("command", COMMANDS)
def test_many_packed_storages_in_turn_cost_no_unpacking_for_each_tensor(
    round_robin: Path, unpackings: list[DeflatedMember], tmp_path: Path, command: str
) -> None:
    assert unpacked(command, round_robin, tmp_path, unpackings) < FAR // 10


@pytest.mark.parametrize("command", ["diff", "verify"])
@pytest.mark.parametrize("packed_first", [True, False])
def test_neither_side_of_a_comparison_costs_an_unpacking_for_each_tensor(
    round_robin: Path,
    unpackings: list[DeflatedMember],
    tmp_path: Path,
    command: str,
    packed_first: bool,
) -> None:
    plain = tmp_path / "plain.safetensors"
    views = cgpt_convert.open_checkpoint(round_robin)
    safetensors.numpy.save_file({name: view.numpy().copy() for name, view in views.items()}, plain)
    sides = (round_robin, plain) if packed_first else (plain, round_robin)
    assert run(command, *sides, "--jobs", 2).code == 0
    assert max(sum(each is source for source in unpackings) for each in unpackings) < FAR // 10


def test_what_is_kept_may_go_while_others_read_it() -> None:
    data, packed = packed_noise(1 << 18)
    source = MemoryBytes("x", packed)
    several = [DeflatedMember(source, 0, len(packed), len(data), "x") for _ in range(TENSORS)]

    def all_of(turn: int) -> bool:
        places = random.Random(turn).choices(range(len(data) - 4), k=50)
        return all(read(each, at, 4) == data[at : at + 4] for at in places for each in several)

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(all_of, range(4)))
