"""Archives that programs read differently: names, headers and directories that disagree."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile

import numpy as np
import pytest

from cgpt_convert.core import findings
from cgpt_convert.core.errors import Malformed, Unsupported
from cgpt_convert.formats.torch.zip_reader import read as read_checkpoint
from cgpt_convert.sources.local import MemoryBytes
from tests.helpers import torch_save, zips
from tests.helpers.zip_agreement import (
    STATE,
    contents,
    opened,
    python_reads,
    rules,
    torch_reads,
    two,
)
from tests.helpers.zips import Entry


def test_1_duplicate_names_are_refused() -> None:
    data = zips.build([*two(), Entry("a/data/0", b"other")])
    with pytest.raises(Malformed, match="the names of two records, 'a/data/0'"):
        opened(data)


@pytest.mark.slow  # torch
def test_1_torch_takes_the_first_of_two_records_and_python_the_last() -> None:
    """Why duplicates are refused: here are the two readers that differ."""
    entries = zips.entries_of(torch_save.saved({"w": np.ones(1, np.float32)}))
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
    with pytest.raises(Malformed, match="the names of two records"):
        opened(zips.build([Entry(twin, b""), Entry(other, b"")]))


def test_3_second_root_is_refused() -> None:
    entries = [*zips.entries_of(torch_save.saved(STATE)).values(), Entry("other/data.pkl", b"N.")]
    with pytest.raises(Malformed, match="is not in the root folder"):
        read_checkpoint(MemoryBytes("x.bin", zips.build(entries)))


@pytest.mark.slow  # torch
def test_3_second_root_is_refused_by_torch_too() -> None:
    entries = [*zips.entries_of(torch_save.saved(STATE)).values(), Entry("other/data.pkl", b"N.")]
    with pytest.raises(RuntimeError):
        torch_reads(zips.build(entries))


def test_4_local_name_that_differs_is_refused() -> None:
    for local in (b"a/data/1", b"a/data/00", b"a/data/"):
        with pytest.raises(Malformed, match="the name in the local header"):
            opened(zips.build(two(local_name=local)))


def test_4_second_name_in_an_extra_field_is_refused() -> None:
    field = b"\1" + bytes(4) + b"a/evil"
    extra = struct.pack("<2H", 0x7075, len(field)) + field
    with pytest.raises(Malformed, match="two different names"):
        opened(zips.build(two(extra=extra)))


@pytest.mark.parametrize("bit", [0x1, 0x20, 0x40])
def test_5_local_flags_that_differ_are_refused(bit: int) -> None:
    with pytest.raises(Malformed, match="flags or method in the local header"):
        opened(zips.build(two(local_flags=bit)))


@pytest.mark.parametrize("bit", [0x1, 0x20, 0x40, 0x2000])
def test_5_encryption_and_unknown_flags_are_not_supported(bit: int) -> None:
    with pytest.raises(Unsupported, match=r"encrypted|flags"):
        opened(zips.build(two(flags=bit)))


@pytest.mark.slow  # torch
def test_5_torch_reads_a_record_that_is_marked_encrypted_in_its_local_header() -> None:
    entries = zips.entries_of(torch_save.saved(STATE))
    entries["archive/data/0"] = entries["archive/data/0"].but(local_flags=1)
    data = zips.build(entries.values())
    assert torch_reads(data).keys() == STATE.keys()
    with pytest.raises(Malformed):
        opened(data)


@pytest.mark.slow  # torch
def test_10_bytes_before_the_archive_are_refused() -> None:
    """Python's zipfile reads them, with the offsets moved or not; torch does not."""
    data = zips.build(two())
    assert len(python_reads(b"#!/bin/sh\n" + data)) == 2
    with pytest.raises(Malformed):
        opened(b"#!/bin/sh\n" + data)
    with pytest.raises(pickle.UnpicklingError):
        torch_reads(b"#!/bin/sh\n" + torch_save.saved(STATE))


def test_10_bytes_before_the_first_record_are_refused_where_offsets_allow_for_them() -> None:
    entry = Entry("a/x", b"data")
    directory = 4 + len(zips.local_header(entry)) + len(entry.data)
    shifted = b"ELF." + zips.build([entry.but(offset=4)], end={"offset": directory})
    assert python_reads(shifted) == {"a/x": b"data"}
    with pytest.raises(Malformed, match="bytes precede the first record"):
        opened(shifted)


def test_10_bytes_after_the_archive_are_a_finding() -> None:
    archive = opened(zips.build(two(), tail=b"what is this?"))
    assert [str(f) for f in archive.findings] == [
        "CGPT003 bytes after the end of the data: 13 bytes"
    ]
    assert contents(archive) == {"a/data.pkl": b"first", "a/data/0": b"second"}


def test_10_bytes_between_records_are_a_finding() -> None:
    archive = opened(zips.build(two(), before_directory=b"hidden payload"))
    assert [str(f) for f in archive.findings] == ["CGPT004 bytes between the records: 14 bytes"]


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
    with pytest.raises(Malformed, match="the zip64 end record is at byte"):
        opened(data[:at] + record + evil + locator + data[-22:])


def test_11_split_archives_are_not_supported() -> None:
    with pytest.raises(Unsupported, match="split"):
        opened(zips.build(two(), end={"disk": 1}))
    with pytest.raises(Unsupported, match="split"):
        opened(zips.build(two(), zip64=True, end={"disks": 2}))
