"""Archives that lie about a record: its bytes, its size, its place, its name."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np
import pytest

from cgpt_convert.core import findings
from cgpt_convert.core.errors import CgptError, Malformed, Unsupported
from cgpt_convert.formats.torch.zip_reader import read as read_checkpoint
from cgpt_convert.sources.local import LocalFile, MemoryBytes
from tests.helpers import torch_save, zips
from tests.helpers.zip_agreement import STATE, contents, opened, rules, torch_reads, two
from tests.helpers.zips import Entry


def test_6_wrong_checksum_of_the_pickle_is_refused() -> None:
    entries = zips.entries_of(torch_save.saved(STATE))
    entries["archive/data.pkl"] = entries["archive/data.pkl"].but(crc=1)
    with pytest.raises(Malformed, match="checksum"):
        read_checkpoint(MemoryBytes("x.bin", zips.build(entries.values())))


def test_6_checksum_of_a_storage_is_kept_for_whoever_reads_it() -> None:
    checkpoint = read_checkpoint(MemoryBytes("x.bin", torch_save.saved(STATE)))
    raw = STATE["w"].tobytes()
    assert checkpoint["w"].storage.crc32 == zlib.crc32(raw)


@pytest.mark.slow  # torch
def test_6_no_checksums_at_all_is_a_note_and_no_damage() -> None:
    import torch

    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        data = zips.saved({name: torch.from_numpy(array) for name, array in STATE.items()})
    finally:
        torch.serialization.set_crc32_options(before)
    checkpoint = read_checkpoint(MemoryBytes("x.bin", data))
    assert [f.rule for f in checkpoint.findings] == [findings.NO_CRC]
    assert checkpoint["w"].storage.crc32 is None


def test_6_local_checksum_that_differs_is_refused() -> None:
    with pytest.raises(Malformed, match="size or CRC-32 in the local header"):
        opened(zips.build(two(local_crc=1)))
    with pytest.raises(Malformed, match="size or CRC-32 in the local header"):
        opened(zips.build(two(local_nbytes=5)))


def test_7_deflated_records_are_inflated() -> None:
    entries = [zips.deflated(entry) for entry in zips.entries_of(torch_save.saved(STATE)).values()]
    data = zips.build(entries)
    assert rules(opened(data)) == [findings.COMPRESSED]
    checkpoint = read_checkpoint(MemoryBytes("x.bin", data))
    assert {name: tensor.numpy().tolist() for name, tensor in checkpoint.items()} == {
        name: array.tolist() for name, array in STATE.items()
    }


@pytest.mark.slow  # torch
def test_7_torch_inflates_deflated_records() -> None:
    entries = [zips.deflated(entry) for entry in zips.entries_of(torch_save.saved(STATE)).values()]
    read = torch_reads(zips.build(entries))
    assert {name: tensor.tolist() for name, tensor in read.items()} == {
        name: array.tolist() for name, array in STATE.items()
    }


@pytest.mark.slow  # torch
def test_7_torch_with_mmap_reads_a_deflated_file_wrongly(tmp_path: Path) -> None:
    """Why a deflated record is never mapped: torch does so, and says nothing."""
    import torch

    entries = zips.entries_of(torch_save.saved({"w": np.zeros(1000, np.float32)}))
    entries["archive/data/0"] = zips.deflated(entries["archive/data/0"])
    filler = Entry("archive/data/1", os.urandom(8000))
    path = tmp_path / "x.bin"
    path.write_bytes(zips.build([*entries.values(), filler]))
    assert torch.load(path, mmap=True)["w"].any()
    assert not read_checkpoint(LocalFile(path))["w"].numpy().any()


@pytest.mark.parametrize("method", [9, 12, 14, 99])
def test_7_other_compression_methods_are_not_supported(method: int) -> None:
    with pytest.raises(Unsupported, match=f"method {method}"):
        opened(zips.build(two(method=method, crc=0, nbytes=9)))


def test_7_damaged_deflate_data_is_refused() -> None:
    entry = zips.deflated(Entry("a/x", bytes(range(256)) * 20))
    for broken in (entry.data[:-3], b"\xff" * len(entry.data)):
        told = entry.but(data=broken, nbytes=5120, crc=0)
        with pytest.raises(Malformed, match="compressed data"):
            opened(zips.build([told])).read("a/x", 1 << 20)


def test_7_deflate_data_that_goes_on_is_refused_or_cut() -> None:
    """More comes out than the directory says: whoever reads on would see other bytes."""
    entry = zips.deflated(Entry("a/x", b"abcdef" * 10)).but(nbytes=30)
    assert opened(zips.build([entry])).read("a/x", 100) == b"abcdef" * 5


def test_8_ratio_that_deflate_cannot_have_is_refused() -> None:
    entry = Entry("a/x", b"tiny", method=8, nbytes=1 << 40, crc=0)
    with pytest.raises(Malformed, match="more than deflate"):
        opened(zips.build([entry.but(nbytes=1 << 31)]))


def test_8_bomb_of_a_pickle_is_not_inflated() -> None:
    entry = zips.deflated(Entry("a/data.pkl", bytes(1 << 22)))
    with pytest.raises(Unsupported, match="the limit is 1,048,576"):
        opened(zips.build([entry])).read("a/data.pkl", 1 << 20)


def test_8_number_of_entries_and_size_of_the_directory_are_bounded() -> None:
    with pytest.raises(Unsupported, match="1,099,511,627,776 entries"):
        opened(zips.build(two(), zip64=True, end={"count": 0xFFFF, "w_count": 1 << 40}))


def test_8_entries_that_share_data_are_refused() -> None:
    """The way of the 42 MB that inflate to petabytes: all entries are one."""
    with pytest.raises(Malformed, match="the name in the local header"):
        opened(zips.build([Entry("a/1", b"data"), Entry("a/2", b"", offset=0)]))
    inner = Entry("a/2", b"data")
    outer = zips.local_header(inner) + inner.data
    first = Entry("a/1", outer)
    at = len(zips.local_header(first))
    with pytest.raises(Malformed, match="overlaps"):
        opened(zips.build([first, inner.but(offset=at)]))


@pytest.mark.parametrize("offset", [10**6, zips.FULL32 - 1])
def test_9_record_outside_the_file_is_refused(offset: int) -> None:
    with pytest.raises(Malformed, match="after the start of the directory"):
        opened(zips.build(two(offset=offset)))


def test_9_record_that_reaches_into_the_directory_is_refused() -> None:
    with pytest.raises(Malformed, match="after the start of the directory"):
        opened(zips.build(two(compressed=7, nbytes=7, crc=0)))


def test_9_record_inside_the_directory_is_refused() -> None:
    data = zips.build(two())
    directory = data.index(b"PK\1\2")
    with pytest.raises(Malformed):
        opened(zips.build(two(offset=directory)))


@pytest.mark.parametrize(
    "name",
    [
        *("a/../b", "../b", "/etc/passwd", "a//b", "a/./b", "a\\b", "a/b\0c", ""),
        *("a/" + "x" * 5000, b"a/\xff\xfe"),
    ],
)
def test_12_names_that_leave_their_folder_are_refused(name: str | bytes) -> None:
    with pytest.raises(Malformed):
        opened(zips.build([Entry(name, b"data")]))


def test_12_symbolic_links_are_refused() -> None:
    with pytest.raises(Malformed, match="symbolic link"):
        opened(zips.build(two(external=0o120777 << 16)))


def test_13_directory_entries_are_allowed() -> None:
    archive = opened(zips.build([Entry("a/", b""), *two()]))
    assert list(archive.members) == ["a/", "a/data.pkl", "a/data/0"]


@pytest.mark.parametrize(
    "inner", [torch_save.saved(STATE), zips.build(two())], ids=["torch", "plain"]
)
def test_13_archive_inside_a_record_is_just_bytes(inner: bytes) -> None:
    """Its end record lies among the last 64 kB too, but tells offsets of its own."""
    archive = opened(zips.build([Entry("a/data.pkl", b"N."), Entry("a/data/0", inner)]))
    assert contents(archive)["a/data/0"] == inner
    assert archive.findings == []


def test_13_ordinary_zip_is_told_from_a_checkpoint() -> None:
    with pytest.raises(CgptError, match="the file is a zip archive without supported weights"):
        read_checkpoint(MemoryBytes("x.bin", zips.build([Entry("readme.txt", b"hello")])))
