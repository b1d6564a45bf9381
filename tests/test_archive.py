"""Our zip reader against Python's, and against archives that lie. Numbers are hostile.md's."""

from __future__ import annotations

import io
import os
import pickle
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cgpt_convert import findings
from cgpt_convert.containers.archive import Archive, open_archive
from cgpt_convert.containers.directory import NoDirectory
from cgpt_convert.containers.torchzip import read as read_checkpoint
from cgpt_convert.errors import CgptError, Malformed, Unsupported
from cgpt_convert.source import LocalFile, MemoryBytes, read
from tests import zips
from tests.mutations import mutated
from tests.zips import Entry

STATE = {"w": torch.arange(6.0).view(2, 3), "n": torch.arange(40)}


def opened(data: bytes) -> Archive:
    return open_archive(MemoryBytes("x.bin", data))


def contents(archive: Archive) -> dict[str, bytes]:
    return {name: archive.read(name, 1 << 20) for name in archive.members}


def rules(archive: Archive) -> list[findings.Rule]:
    return [finding.rule for finding in archive.findings]


def python_reads(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        return {info.filename: file.read(info) for info in file.infolist()}


def torch_reads(data: bytes) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(io.BytesIO(data))
    return state


def two(**second: object) -> list[Entry]:
    """Two plain records; the second with these fields."""
    return [Entry("a/data.pkl", b"first"), Entry("a/data/0", b"second").but(**second)]


def zipped(method: int, *, force_zip64: bool = False) -> bytes:
    """An archive that Python wrote."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in (("a/one", b"1" * 1000), ("a/two", b""), ("a/three", b"xyz")):
            with archive.open(name, "w", force_zip64=force_zip64) as member:
                member.write(data)
    return file.getvalue()


# -- against Python's zipfile


@pytest.mark.parametrize(
    "data",
    [
        zips.saved(STATE),
        zips.saved([torch.zeros(3)] * 2 + [torch.ones(0)]),
        zipped(zipfile.ZIP_STORED),
        zipped(zipfile.ZIP_DEFLATED),
        zipped(zipfile.ZIP_STORED, force_zip64=True),
        zips.build(two()),
        zips.build(two(), comment=b"a comment"),
        zips.build(two(), zip64=True),
        zips.build([]),
    ],
    ids=[
        *("torch", "torch-empty-storage", "stored", "deflated", "zip64-records", "crafted"),
        *("comment", "zip64-end", "empty"),
    ],
)
def test_members_are_those_that_python_reads(data: bytes) -> None:
    archive = opened(data)
    assert contents(archive) == python_reads(data)
    assert list(archive.members) == list(python_reads(data))
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        for info in file.infolist():
            member = archive.members[info.filename]
            assert member.header_offset == info.header_offset
            assert member.crc32 == info.CRC == zlib.crc32(archive.read(info.filename, 1 << 20))
            assert (member.nbytes, member.compressed) == (info.file_size, info.compress_size)


def test_torch_files_have_nothing_odd_and_aligned_storages() -> None:
    archive = opened(zips.saved(STATE))
    assert archive.findings == []
    assert all(m.offset % 64 == 0 for m in archive.members.values())


@settings(max_examples=150, deadline=None)
@given(damaged=mutated(zips.saved(STATE)))
def test_damage_raises_only_our_errors(damaged: bytes) -> None:
    try:
        archive = opened(damaged)
        for name in archive.members:
            archive.read(name, 1 << 20)
    except CgptError:
        pass


def test_every_truncation_is_noticed() -> None:
    data = zips.saved({"w": torch.zeros(2)})
    for length in range(len(data)):
        with pytest.raises(CgptError):
            opened(data[:length])


def test_cut_off_archive_says_so() -> None:
    with pytest.raises(NoDirectory, match="cut off"):
        opened(zips.saved(STATE)[:-200])


# -- the container classes of hostile.md


def test_1_duplicate_names_are_refused() -> None:
    data = zips.build([*two(), Entry("a/data/0", b"other")])
    with pytest.raises(Malformed, match="two records are named 'a/data/0'"):
        opened(data)


def test_1_torch_takes_the_first_of_two_records_and_python_the_last() -> None:
    """Why duplicates are refused: here are the two readers that differ."""
    entries = zips.entries_of(zips.saved({"w": torch.tensor([1.0])}))
    twice = [*entries.values(), entries["archive/data/0"].but(data=struct.pack("<f", 2.0))]
    data = zips.build(twice)
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        assert file.read("archive/data/0") == struct.pack("<f", 2.0)
    assert torch_reads(data)["w"].item() == 1.0
    with pytest.raises(Malformed):
        opened(data)


@pytest.mark.parametrize("other", ["a/DATA/0", "a/data/İ", "a/data/é"])
def test_2_names_equal_under_case_folding_are_refused(other: str) -> None:
    twin = {"a/DATA/0": "a/data/0", "a/data/İ": "a/data/i̇", "a/data/é": "a/data/é"}[other]
    with pytest.raises(Malformed, match="two records are named"):
        opened(zips.build([Entry(twin, b""), Entry(other, b"")]))


def test_3_second_root_is_refused() -> None:
    entries = [*zips.entries_of(zips.saved(STATE)).values(), Entry("other/data.pkl", b"N.")]
    with pytest.raises(Malformed, match="outside the folder"):
        read_checkpoint(MemoryBytes("x.bin", zips.build(entries)))


def test_3_second_root_is_refused_by_torch_too() -> None:
    entries = [*zips.entries_of(zips.saved(STATE)).values(), Entry("other/data.pkl", b"N.")]
    with pytest.raises(RuntimeError):
        torch_reads(zips.build(entries))


def test_4_local_name_that_differs_is_refused() -> None:
    for local in (b"a/data/1", b"a/data/00", b"a/data/"):
        with pytest.raises(Malformed, match="names another record"):
            opened(zips.build(two(local_name=local)))


def test_4_second_name_in_an_extra_field_is_refused() -> None:
    field = b"\1" + bytes(4) + b"a/evil"
    extra = struct.pack("<2H", 0x7075, len(field)) + field
    with pytest.raises(Malformed, match="two names"):
        opened(zips.build(two(extra=extra)))


@pytest.mark.parametrize("bit", [0x1, 0x20, 0x40])
def test_5_local_flags_that_differ_are_refused(bit: int) -> None:
    with pytest.raises(Malformed, match="other flags"):
        opened(zips.build(two(local_flags=bit)))


@pytest.mark.parametrize("bit", [0x1, 0x20, 0x40, 0x2000])
def test_5_encryption_and_unknown_flags_are_not_supported(bit: int) -> None:
    with pytest.raises(Unsupported, match=r"encrypted|flags"):
        opened(zips.build(two(flags=bit)))


def test_5_torch_reads_a_record_that_is_marked_encrypted_in_its_local_header() -> None:
    entries = zips.entries_of(zips.saved(STATE))
    entries["archive/data/0"] = entries["archive/data/0"].but(local_flags=1)
    data = zips.build(entries.values())
    assert torch_reads(data).keys() == STATE.keys()
    with pytest.raises(Malformed):
        opened(data)


def test_6_wrong_checksum_of_the_pickle_is_refused() -> None:
    entries = zips.entries_of(zips.saved(STATE))
    entries["archive/data.pkl"] = entries["archive/data.pkl"].but(crc=1)
    with pytest.raises(Malformed, match="checksum"):
        read_checkpoint(MemoryBytes("x.bin", zips.build(entries.values())))


def test_6_checksum_of_a_storage_is_kept_for_whoever_reads_it() -> None:
    checkpoint = read_checkpoint(MemoryBytes("x.bin", zips.saved(STATE)))
    raw = STATE["w"].numpy().tobytes()
    assert checkpoint["w"].storage.crc32 == zlib.crc32(raw)


def test_6_no_checksums_at_all_is_a_note_and_no_damage() -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        data = zips.saved(STATE)
    finally:
        torch.serialization.set_crc32_options(before)
    checkpoint = read_checkpoint(MemoryBytes("x.bin", data))
    assert [f.rule for f in checkpoint.findings] == [findings.NO_CRC]
    assert checkpoint["w"].storage.crc32 is None


def test_6_local_checksum_that_differs_is_refused() -> None:
    with pytest.raises(Malformed, match="other sizes"):
        opened(zips.build(two(local_crc=1)))
    with pytest.raises(Malformed, match="other sizes"):
        opened(zips.build(two(local_nbytes=5)))


def test_7_deflated_records_are_inflated() -> None:
    entries = [zips.deflated(entry) for entry in zips.entries_of(zips.saved(STATE)).values()]
    data = zips.build(entries)
    assert rules(opened(data)) == [findings.COMPRESSED]
    checkpoint = read_checkpoint(MemoryBytes("x.bin", data))
    expected = torch_reads(data)
    assert {name: tensor.numpy().tolist() for name, tensor in checkpoint.items()} == {
        name: tensor.tolist() for name, tensor in expected.items()
    }


def test_7_torch_with_mmap_reads_a_deflated_file_wrongly(tmp_path: Path) -> None:
    """Why a deflated record is never mapped: torch does so, and says nothing."""
    entries = zips.entries_of(zips.saved({"w": torch.zeros(1000)}))
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
        with pytest.raises(Malformed, match="deflated data"):
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
    with pytest.raises(Unsupported, match="at most"):
        opened(zips.build([entry])).read("a/data.pkl", 1 << 20)


def test_8_number_of_entries_and_size_of_the_directory_are_bounded() -> None:
    with pytest.raises(Unsupported, match="1,099,511,627,776 records"):
        opened(zips.build(two(), zip64=True, end={"count": 0xFFFF, "w_count": 1 << 40}))


def test_8_entries_that_share_data_are_refused() -> None:
    """The way of the 42 MB that inflate to petabytes: all entries are one."""
    with pytest.raises(Malformed, match="another record"):
        opened(zips.build([Entry("a/1", b"data"), Entry("a/2", b"", offset=0)]))
    inner = Entry("a/2", b"data")
    outer = zips._local(inner) + inner.data
    first = Entry("a/1", outer)
    at = len(zips._local(first))
    with pytest.raises(Malformed, match="overlaps"):
        opened(zips.build([first, inner.but(offset=at)]))


@pytest.mark.parametrize("offset", [10**6, zips.FULL32 - 1])
def test_9_record_outside_the_file_is_refused(offset: int) -> None:
    with pytest.raises(Malformed, match="outside"):
        opened(zips.build(two(offset=offset)))


def test_9_record_that_reaches_into_the_directory_is_refused() -> None:
    with pytest.raises(Malformed, match="outside"):
        opened(zips.build(two(compressed=7, nbytes=7, crc=0)))


def test_9_record_inside_the_directory_is_refused() -> None:
    data = zips.build(two())
    directory = data.index(b"PK\1\2")
    with pytest.raises(Malformed):
        opened(zips.build(two(offset=directory)))


def test_10_bytes_before_the_archive_are_refused() -> None:
    """Python's zipfile reads them, with the offsets moved or not; torch does not."""
    data = zips.build(two())
    assert len(python_reads(b"#!/bin/sh\n" + data)) == 2
    with pytest.raises(Malformed):
        opened(b"#!/bin/sh\n" + data)
    with pytest.raises(pickle.UnpicklingError):
        torch_reads(b"#!/bin/sh\n" + zips.saved(STATE))


def test_10_bytes_before_the_first_record_are_refused_where_offsets_allow_for_them() -> None:
    entry = Entry("a/x", b"data")
    directory = 4 + len(zips._local(entry)) + len(entry.data)
    shifted = b"ELF." + zips.build([entry.but(offset=4)], end={"offset": directory})
    assert python_reads(shifted) == {"a/x": b"data"}
    with pytest.raises(Malformed, match="before the first record"):
        opened(shifted)


def test_10_bytes_after_the_archive_are_a_finding() -> None:
    archive = opened(zips.build(two(), tail=b"what is this?"))
    assert [str(f) for f in archive.findings] == [
        "CGPT003 bytes after the end of the archive: 13 bytes"
    ]
    assert contents(archive) == {"a/data.pkl": b"first", "a/data/0": b"second"}


def test_10_bytes_between_records_are_a_finding() -> None:
    archive = opened(zips.build(two(), before_directory=b"hidden payload"))
    assert [str(f) for f in archive.findings] == [
        "CGPT004 bytes between records that belong to none: 14 bytes"
    ]


@pytest.mark.parametrize("size", [12, 16, 20, 24])
def test_10_payload_as_long_as_a_data_descriptor_is_a_finding_too(size: int) -> None:
    archive = opened(zips.build(two(), before_directory=bytes(size)))
    assert rules(archive) == [findings.GAP]


def test_10_two_directories_are_refused() -> None:
    first = zips.build(two())
    second = zips.build([Entry("a/data.pkl", b"other")])
    start, at = (len(first) + second.index(mark) for mark in (b"PK\1\2", b"PK\5\6"))
    end = zips.END.pack(b"PK\5\6", 0, 0, 1, 1, at - start, start, 0)
    with pytest.raises(Malformed, match="two central directories"):
        opened(first + second[:-22] + end)


def test_10_end_record_in_the_comment_is_refused_as_python_does() -> None:
    data = zips.build(two(), comment=b"a comment with PK\5\6 in it")
    with pytest.raises(zipfile.BadZipFile):
        python_reads(data)
    with pytest.raises(Malformed):
        opened(data)


@pytest.mark.parametrize(
    ("field", "value"), [("w_count", 1), ("w_nbytes", 9), ("w_offset", 3), ("locator", 0)]
)
def test_11_zip64_end_record_that_disagrees_is_refused(field: str, value: int) -> None:
    with pytest.raises(Malformed, match="zip64"):
        opened(zips.build(two(), zip64=True, end={field: value}))


def test_11_zip64_end_record_somewhere_else_is_refused() -> None:
    """Python looks right before the locator, torch where the locator says."""
    data = zips.build(two(), zip64=True)
    at = data.index(b"PK\6\6")
    record = data[at : at + 56]
    locator = zips.LOCATOR64.pack(b"PK\6\7", 0, at, 1)
    evil = zips.END64.pack(b"PK\6\6", 44, 45, 45, 0, 0, 0, 0, 0, at)
    with pytest.raises(Malformed, match="not in its place"):
        opened(data[:at] + record + evil + locator + data[-22:])


def test_11_split_archives_are_not_supported() -> None:
    with pytest.raises(Unsupported, match="split"):
        opened(zips.build(two(), end={"disk": 1}))
    with pytest.raises(Unsupported, match="split"):
        opened(zips.build(two(), zip64=True, end={"disks": 2}))


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


@pytest.mark.parametrize("inner", [zips.saved(STATE), zips.build(two())], ids=["torch", "plain"])
def test_13_archive_inside_a_record_is_just_bytes(inner: bytes) -> None:
    """Its end record lies among the last 64 kB too, but tells offsets of its own."""
    archive = opened(zips.build([Entry("a/data.pkl", b"N."), Entry("a/data/0", inner)]))
    assert contents(archive)["a/data/0"] == inner
    assert archive.findings == []


def test_13_ordinary_zip_is_told_from_a_checkpoint() -> None:
    with pytest.raises(CgptError, match=r"data\.pkl"):
        read_checkpoint(MemoryBytes("x.bin", zips.build([Entry("readme.txt", b"hello")])))


# -- past 4 GiB, with files that have holes

GiB = 1 << 30


def sparse(path: Path, sizes: list[int], ends: Callable[[int], bytes]) -> list[int]:
    """A zip64 archive with uint8 tensors of those sizes, which begin and end with `ends(number)`.

    Returns the offsets of their data. Only the ends are written; the rest of the file is a hole.
    """
    records = [("archive/data.pkl", _pickle_of(sizes), 0)]
    records += [(f"archive/data/{n}", ends(n), size) for n, size in enumerate(sizes)]
    offsets, directory = [], bytearray()
    with path.open("wb") as file:
        for name, content, size in records:
            at, nbytes = file.tell(), size or len(content)
            full = zips.FULL32
            entry = Entry(name, b"", crc=0, nbytes=full, compressed=full, offset=full)
            wide = struct.pack("<2H3Q", 1, 24, nbytes, nbytes, at)
            directory += zips._central(entry.but(extra=wide), at)
            file.write(zips._local(entry.but(local_extra=wide)))
            offsets.append(file.tell())
            file.write(content)
            if size:
                file.seek(offsets[-1] + size - len(content))
                file.write(content)
        at, count = file.tell(), len(records)
        file.write(directory)
        end = file.tell()
        file.write(zips.END64.pack(b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(directory), at))
        file.write(zips.LOCATOR64.pack(b"PK\6\7", 0, end, 1))
        file.write(zips.END.pack(b"PK\5\6", 0, 0, count, count, len(directory), zips.FULL32, 0))
    return offsets[1:]


def _pickle_of(sizes: list[int]) -> bytes:
    """What torch writes for one-element tensors, with their sizes replaced."""
    state = {str(number): torch.zeros(1, dtype=torch.uint8) for number in range(len(sizes))}
    pickle = zips.entries_of(zips.saved(state))["archive/data.pkl"].data
    for size in sizes:
        wide = b"\x8a\x05" + size.to_bytes(5, "little")  # LONG1, where torch wrote BININT1 1
        for before, after in ((b"", b"tq"), (b"K\0", b"\x85")):  # numel; offset and shape
            assert before + b"K\1" + after in pickle
            pickle = pickle.replace(before + b"K\1" + after, before + wide + after, 1)
    return pickle


@pytest.mark.large
def test_storages_past_4_gib_are_found_at_both_ends(tmp_path: Path) -> None:
    path = tmp_path / "large.bin"
    sizes = [5 * GiB, 1000, 6 * GiB + 7]
    offsets = sparse(path, sizes, lambda number: bytes([65 + number]) * 16)
    assert path.stat().st_blocks * 512 < 1 << 20  # it is sparse
    checkpoint = read_checkpoint(LocalFile(path))
    for number, size in enumerate(sizes):
        tensor = checkpoint[str(number)]
        assert tensor.shape == (size,)
        assert tensor.storage.offset == offsets[number]
        mark = bytes([65 + number]) * 16
        assert read(tensor.storage.source, tensor.storage.offset, 17)[:16] == mark
        assert read(tensor.storage.source, tensor.storage.offset + size - 16, 16) == mark
    with zipfile.ZipFile(path) as file:
        told = {info.filename: info.file_size for info in file.infolist()}
    assert [told[f"archive/data/{i}"] for i in range(3)] == sizes


@pytest.mark.large
def test_view_at_the_far_end_of_a_large_storage_has_its_elements(tmp_path: Path) -> None:
    path = tmp_path / "large.bin"
    sparse(path, [5 * GiB], lambda _: bytes(range(16)))
    tensor = read_checkpoint(LocalFile(path))["0"]
    last = replace(tensor, shape=(4,), start=5 * GiB - 4)
    assert last.numpy().tolist() == [12, 13, 14, 15]
    strided = replace(tensor, shape=(2,), strides=(5 * GiB - 1,), start=0)
    assert strided.numpy().tolist() == [0, 15]


@pytest.mark.large
def test_cut_off_large_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "large.bin"
    sparse(path, [5 * GiB], lambda _: b"x")
    os.truncate(path, 5 * GiB - 1)
    with pytest.raises(NoDirectory):
        read_checkpoint(LocalFile(path))


# -- whole-archive properties


@settings(max_examples=60, deadline=None)
@given(
    records=st.dictionaries(
        st.text("abcXYZ09_", min_size=1, max_size=8).map(lambda name: f"r/{name}"),
        st.binary(max_size=200),
        max_size=6,
    ).filter(lambda records: len({name.casefold() for name in records}) == len(records)),
    deflate=st.booleans(),
    zip64=st.booleans(),
)
def test_any_records_come_back(records: dict[str, bytes], *, deflate: bool, zip64: bool) -> None:
    entries = [Entry(name, data) for name, data in records.items()]
    if deflate:
        entries = [zips.deflated(entry) for entry in entries]
    data = zips.build(entries, zip64=zip64)
    assert contents(opened(data)) == records == python_reads(data)


def test_reading_in_any_order_inflates_the_same_bytes() -> None:
    raw = random.Random(1).randbytes(3000) * 3
    archive = opened(zips.build([zips.deflated(Entry("a/x", raw))]))
    source, offset, nbytes = archive.open("a/x")
    assert nbytes == len(raw)
    for at in (8000, 10, 4000, 0, 8999):
        assert read(source, offset + at, 1) == raw[at : at + 1]
