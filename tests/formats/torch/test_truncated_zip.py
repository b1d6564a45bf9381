"""A torch zip that is cut off: what is whole of it, at every byte."""

import io
import struct
import time
import zipfile
import zlib

import pytest
import torch
from hypothesis import given, settings

from cgpt_convert.core import findings
from cgpt_convert.core.errors import CgptError, Malformed
from cgpt_convert.formats.torch import truncated_zip, zip_reader
from cgpt_convert.sources.local import MemoryBytes
from tests.helpers.mutations import mutated

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
VALUE = {
    "a": torch.arange(6.0),
    "b": torch.ones(2, 30).t(),
    "empty": torch.ones(0, 3),
    "c": torch.arange(5, dtype=torch.int16),
    "epoch": 3,
}


def saved(value):
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def whole(data):
    return truncated_zip.salvage(MemoryBytes("cut", data))


def numbers(checkpoint):
    return {name: tensor.numpy().tolist() for name, tensor in checkpoint.items()}


SAMPLE = saved(VALUE)
FULL = zip_reader.read(MemoryBytes("full", SAMPLE))
NUMBERS = numbers(FULL)


def expected_whole(nbytes):
    """The names of the tensors whose storages end by then; of the empty one, always."""
    return {
        name
        for name, tensor in FULL.items()
        if not tensor.numel or tensor.storage.offset + tensor.storage.nbytes <= nbytes
    }


def test_every_truncation_keeps_exactly_what_is_whole():
    pickle_end = SAMPLE.index(b"PK\7\x08")
    for nbytes in range(4, len(SAMPLE)):
        data = SAMPLE[:nbytes]
        error = truncated_zip.diagnose(MemoryBytes("cut", data))
        assert isinstance(error, Malformed)
        assert f"{nbytes:,}" in str(error)
        assert "\n" not in error.message
        if nbytes < pickle_end:
            first = "inside the pickle" if nbytes >= 64 else "no data.pkl"
            assert first in error.message
            continue
        partial = whole(data)
        assert set(partial.checkpoint) == expected_whole(nbytes)
        assert set(partial.lost) == set(FULL) - expected_whole(nbytes)
        assert numbers(partial.checkpoint).items() <= NUMBERS.items()
        assert nbytes < partial.needed <= len(SAMPLE)
        assert all(s.offset + s.nbytes <= nbytes for s in partial.checkpoint.storages)


def test_the_words():
    text = str(truncated_zip.diagnose(MemoryBytes("cut", SAMPLE[:-10])))
    assert text.startswith(f"cut: the file is truncated at byte {len(SAMPLE) - 10:,} of at least ")
    assert "(99 %); 4 of 4 tensors are intact" in text
    assert "hint: download or copy the file again, or use --salvage with convert or extract" in text
    assert "(lost: " in str(truncated_zip.diagnose(MemoryBytes("cut", SAMPLE[:900])))


def test_a_salvaged_checkpoint_has_the_rest_of_the_file_too():
    partial = whole(SAMPLE[:-10])
    assert [leaf.value for leaf in partial.checkpoint.others] == [3]
    assert partial.checkpoint.findings[-1].rule is findings.CUT_OFF
    assert [s.crc32 for s in partial.checkpoint.storages] == [s.crc32 for s in FULL.storages]


def test_a_storage_that_is_cut_gives_the_views_before_the_cut():
    flat = torch.arange(1000.0)
    data = saved({"first": flat[:500], "second": flat[500:]})
    offset = zip_reader.read(MemoryBytes("full", data))["first"].storage.offset
    partial = whole(data[: offset + 2500])
    assert partial.lost == ("second",)
    assert partial.checkpoint["first"].numpy().tolist() == list(range(500))
    assert partial.checkpoint["first"].storage.nbytes == 2500
    assert partial.checkpoint["first"].storage.crc32 is None


def test_zeros_at_the_end_are_an_unfinished_download():
    value = {f"w{index}": torch.full((500,), index + 1.5) for index in range(5)}
    data = saved(value)
    offsets = [t.storage.offset for t in zip_reader.read(MemoryBytes("full", data)).values()]
    for cut in (offsets[2] + 700, offsets[3], offsets[3] - 20):
        partial = whole(data[:cut] + bytes(len(data) - cut))
        kept = [index for index in range(5) if offsets[index] + 2000 <= cut]
        assert list(partial.checkpoint) == [f"w{index}" for index in kept]
        assert partial.needed == len(data)
        message = str(partial.error())
        assert "only zeros or damage from byte" in message


def test_records_without_checksums():
    torch.serialization.set_crc32_options(False)
    try:
        data = saved(VALUE)
    finally:
        torch.serialization.set_crc32_options(True)
    partial = whole(data[:-30])
    assert not partial.lost
    assert numbers(partial.checkpoint) == NUMBERS
    assert {s.crc32 for s in partial.checkpoint.storages} == {None}


def test_an_archive_zipped_again_whose_headers_have_sizes():
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(SAMPLE)) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    data = file.getvalue()
    partial = whole(data[: data.rindex(b"PK\1\2")])
    assert not partial.lost
    assert numbers(partial.checkpoint) == NUMBERS


def test_an_archive_zipped_again_with_compression():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/data.pkl", bytes(100))
    with pytest.raises(Malformed, match="compressed"):
        whole(file.getvalue()[:-30])


def record(name, data, form="<4sL2L"):
    """A record as torch writes it: sizes behind the data."""
    header = struct.pack("<4s5H3L2H", b"PK\3\4", 0, 0x0808, 0, 0, 0, 0, 0, 0, len(name), 0)
    crc = zlib.crc32(data)
    descriptor = struct.pack(form, b"PK\7\x08", crc, len(data), len(data)) if data else b""
    return header + name.encode() + data + descriptor


PICKLE = SAMPLE[SAMPLE.index(b"\x80\x02") : SAMPLE.index(b"PK\7\x08")]


def test_descriptors_of_64_bits_and_records_of_unknown_length():
    parts = {t.storage.key: bytes(t.storage.nbytes) for t in FULL.values()}
    data = b""
    for name, content in {"data.pkl": PICKLE, "note": b"PK\7\x08 not one" * 9}.items():
        data += record(f"m/{name}", content, "<4sL2Q")
    for key, content in parts.items():
        data += record(f"m/data/{key}", content, "<4sL2Q")
    partial = whole(data)
    assert not partial.lost
    assert partial.checkpoint["c"].numpy().tolist() == [0] * 5


def test_a_record_longer_than_the_pickle_says():
    storage = FULL["a"].storage
    at = storage.offset + storage.nbytes
    longer = bytearray(SAMPLE[:-400])
    struct.pack_into("<2L", longer, at + 8, storage.nbytes + 4, storage.nbytes + 4)
    longer[at:at] = b"more"
    partial = whole(bytes(longer))
    assert not partial.lost
    rules = [finding.rule for finding in partial.checkpoint.findings]
    assert findings.LONGER_STORAGE in rules


def test_a_pickle_with_bytes_behind_it_is_decoded_once(monkeypatch):
    def never(_data):
        raise AssertionError

    pickle = record("m/data.pkl", PICKLE + bytes(9))
    expected = whole(pickle).checkpoint.lost
    monkeypatch.setattr(zip_reader, "decode", never)
    assert whole(pickle).checkpoint.lost == expected
    assert "a" in expected


def test_a_frame_past_the_record_is_refused_as_in_the_whole_archive():
    framed = b"\x80\4\x95" + struct.pack("<Q", 40) + b"}."
    for behind in (0, 9):
        whole(record("m/data.pkl", framed + bytes(40)))
        with pytest.raises(Malformed, match="a frame is longer than the pickle"):
            whole(record("m/data.pkl", framed + bytes(behind)) + bytes(100))


def test_an_unknown_record_that_ends_in_zeros_was_never_written():
    start = record("m/data.pkl", PICKLE)
    partial = whole(start + record("m/note", b"text")[:-16] + bytes(500))
    assert partial.end == len(start) + 30 + len("m/note") + len("text")
    assert set(partial.checkpoint) == {"empty"}


def test_sparse_tensors_are_whole_when_all_their_parts_are():
    sparse = torch.eye(40).to_sparse()
    data = saved({"first": sparse, "second": sparse * 2})
    parts = zip_reader.read(MemoryBytes("full", data)).exotic["second"].parts
    partial = whole(data[: parts[1].storage.offset + 8])
    assert list(partial.checkpoint.exotic) == ["first"]
    assert partial.lost == ("second",)


def test_damage_in_the_middle_ends_what_is_trusted():
    storage = FULL["b"].storage
    damaged = bytearray(SAMPLE[:-400])
    del damaged[storage.offset + 8]
    partial = whole(bytes(damaged))
    assert "b" in partial.lost
    assert partial.checkpoint["a"].numpy().tolist() == NUMBERS["a"]
    assert "only zeros or damage from" in str(partial.error())


def test_many_losses_are_counted():
    value = {f"w{index}": torch.ones(1) for index in range(9)}
    data = saved(value)
    text = str(truncated_zip.diagnose(MemoryBytes("cut", data[: data.index(b"PK\7\x08") + 16])))
    assert "0 of 9 tensors are intact (lost: 'w0', 'w1', 'w2' and 6 more)" in text


def test_what_cannot_be_salvaged():
    with pytest.raises(Malformed, match=r"no data\.pkl"):
        whole(record("readme", b"text"))
    with pytest.raises(Malformed, match="occurs twice"):
        whole(record("m/note", b"text") * 2)


def test_false_descriptors_cost_little():
    began = time.monotonic()
    with pytest.raises(Malformed):
        whole(record("m/note", b"")[:-1] + b"x" + b"PK\7\x08" * (1 << 20))
    assert time.monotonic() - began < 2


@settings(max_examples=400, deadline=2000)
@given(mutated(SAMPLE[:-300]))
def test_damage_is_an_error_of_ours_or_harmless(data):
    try:
        partial = whole(data)
    except CgptError:
        return
    for values in partial.checkpoint.values():
        if values.nbytes < 1 << 20 and values.dtype.numpy:
            values.numpy()
