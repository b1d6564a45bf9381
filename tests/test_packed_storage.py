"""A deflated storage that many tensors share can only be read forward: it is read in its order."""

import zlib
from pathlib import Path

import pytest
import torch

from cgpt_convert.errors import Malformed
from cgpt_convert.source import Deflated, MemoryBytes, read
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


@pytest.mark.parametrize("command", COMMANDS)
def test_it_is_unpacked_a_few_times_and_not_for_each_tensor(
    packed: Path, unpackings: list[Deflated], tmp_path: Path, command: str
) -> None:
    words = [str(word).replace("IN", str(packed)) for word in COMMANDS[command]]
    words = [word.replace("OUT", str(tmp_path)) for word in words]
    assert run(*words).code == 0
    times = [sum(each is source for source in unpackings) for each in unpackings]
    assert max(times) < TENSORS // 2


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
