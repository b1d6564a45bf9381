"""The targets of fuzz/, on their seeds and on small damage to them; what fuzzing found."""

import random
import tarfile

import pytest

from cgpt_convert.formats.open import open_checkpoint
from cgpt_convert.sources.local import MemoryBytes
from fuzz.seeds import seeds
from fuzz.targets import TARGETS, run
from tests.helpers.scan_files import scanned

ROUNDS = 40


def _pax(line):
    """A tar with a file of which an extended header says that line."""
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, len(line)
    plain = tarfile.TarInfo("x").tobuf(tarfile.USTAR_FORMAT)
    return info.tobuf(tarfile.USTAR_FORMAT) + line.ljust(512, b"\0") + plain + bytes(1024)


FOUND = (
    ("scan", _pax(b"0 a=b\n")),  # a line of no length, which was read again and again
    ("tar", _pax(b"0 a=b\n")),
    ("gguf", b"GGUF\3" + bytes(24)),  # no tensors, and no padding before where they would begin
)


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_takes_its_seeds_and_damaged_ones(name):
    dice = random.Random(name)
    for seed in seeds(name):
        assert len(seed) < 16384
        run(name, seed)
        for _ in range(ROUNDS):
            data = bytearray(seed)
            for _ in range(dice.randint(1, 4)):
                data[dice.randrange(len(data))] = dice.randrange(256)
            run(name, bytes(data[: dice.choice([len(data), dice.randrange(len(data))])]))


READ = ["archive", "cut-archive", "legacy", "cut-legacy", "tar", "safetensors", "gguf", "npz"]


@pytest.mark.parametrize("name", READ)
def test_the_seeds_are_files_that_are_read(name, tmp_path):
    for seed in seeds(name):
        (tmp_path / "seed").write_bytes(seed)
        assert open_checkpoint(tmp_path / "seed", salvage=True)


@pytest.mark.parametrize("name", ["unpickler", "tracer", "npy"])
def test_the_seeds_that_are_no_checkpoints_are_read_too(name):
    for seed in seeds(name):
        TARGETS[name](MemoryBytes("seed", seed))


@pytest.mark.parametrize(("name", "data"), FOUND)
def test_what_was_found_once(name, data):
    run(name, data)


def test_a_tar_keyword_of_no_length_is_damage(tmp_path):
    found = scanned(_pax(b"0 a=b\n"), tmp_path)
    assert any("the extended tar header is damaged" in str(problem) for problem in found.problems)
    assert not scanned(_pax(b"6 a=b\n"), tmp_path).problems
