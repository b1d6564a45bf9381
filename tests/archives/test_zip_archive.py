"""Archives as they should be, and damaged ones, against Python's zipfile."""

from __future__ import annotations

import io
import random
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cgpt_convert.archives.zip_archive import open_archive
from cgpt_convert.archives.zip_directory import NoDirectory
from cgpt_convert.core.errors import CgptError
from cgpt_convert.formats.registry import sniff
from cgpt_convert.sources.local import MemoryBytes, read
from tests.helpers import torch_save, zips
from tests.helpers.mutations import mutated
from tests.helpers.zip_agreement import STATE, contents, opened, python_reads, two, zipped
from tests.helpers.zips import Entry


@pytest.mark.parametrize(
    "data",
    [
        torch_save.saved(STATE),
        torch_save.saved([np.zeros(3)] * 2 + [np.ones(0)]),
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


@pytest.mark.slow  # torch
def test_torch_files_have_nothing_odd_and_aligned_storages() -> None:
    import torch

    archive = opened(zips.saved({name: torch.from_numpy(array) for name, array in STATE.items()}))
    assert archive.findings == []
    assert all(m.offset % 64 == 0 for m in archive.members.values())


@settings(max_examples=150, deadline=None)
@given(damaged=mutated(torch_save.saved(STATE)))
def test_damage_raises_only_our_errors(damaged: bytes) -> None:
    try:
        archive = opened(damaged)
        for name in archive.members:
            archive.read(name, 1 << 20)
    except CgptError:
        pass


def test_every_truncation_is_noticed() -> None:
    data = torch_save.saved({"w": np.zeros(2)})
    for length in range(len(data)):
        with pytest.raises(CgptError):
            opened(data[:length])


def test_cut_off_archive_says_so() -> None:
    with pytest.raises(NoDirectory, match="truncated"):
        opened(torch_save.saved(STATE)[:-200])


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


def test_the_end_record_is_parsed_once_for_detection_and_reading() -> None:
    class Counted(MemoryBytes):
        reads = 0

        def readinto(self, offset: int, buffer: memoryview) -> None:
            self.reads += offset + len(buffer) == self.nbytes  # the end record is at the very end
            super().readinto(offset, buffer)

    source = Counted("x.npz", zips.build([Entry("w.npy", b"\0" * 100_000)]))
    assert sniff(source).value == "NumPy archive"
    assert list(open_archive(source).members) == ["w.npy"]
    assert source.reads == 1
    assert list(open_archive(Counted("x.npz", zips.build([]))).members) == []
