"""npz: byte for byte numpy.savez's files, read by numpy and zipfile; theirs read by us."""

import contextlib
import io
import json
import struct
import sys
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cgpt_convert.archives import zip_writer
from cgpt_convert.archives.zip_archive import open_archive
from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.core import findings
from cgpt_convert.core.errors import CgptError, Malformed, Unsupported
from cgpt_convert.formats.npz import archive as npz_archive
from cgpt_convert.plan import Crc32, part_nbytes
from cgpt_convert.sources.local import MemoryBytes
from cgpt_convert.targets.selection import TensorSelection, select
from cgpt_convert.tensors.dtypes import BY_NAME, BY_NUMPY
from cgpt_convert.tensors.tensor import Storage, Tensor
from tests.helpers import samples
from tests.helpers.render import render, request, tensor_bytes

F32 = BY_NAME["float32"]


def ours(*tensors: Tensor, **rest: Any) -> bytes:
    return render(npz_archive.plan(request("dir/f.npz", *tensors, **rest)))["f.npz"]


def opened(data: bytes) -> Checkpoint:
    return npz_archive.from_source(MemoryBytes("f.npz", data), "f.npz")


def savez(arrays: Mapping[str, Any], *, compressed: bool = False) -> bytes:
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return file.getvalue()


def as_array(tensor: Tensor) -> "np.ndarray[Any, Any]":
    return np.frombuffer(tensor_bytes(tensor), tensor.dtype.numpy).reshape(tensor.shape)


PLAIN = samples.every(BY_NUMPY.values())
as_zipfile_writes = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="zipfile then wrote other version numbers into headers"
)


@as_zipfile_writes
def test_bytes_equal_savez_for_every_type_and_shape() -> None:
    assert ours(*PLAIN) == savez({tensor.name: as_array(tensor) for tensor in PLAIN})


@as_zipfile_writes
def test_bytes_equal_savez_for_no_arrays_and_for_unicode_names() -> None:
    assert ours() == savez({})
    tensor = samples.tensor("größe/重み", F32)
    assert ours(tensor) == savez({tensor.name: as_array(tensor)})


def test_numpy_and_zipfile_read_everything() -> None:
    tensors = [*PLAIN, samples.tensor("b", BY_NAME["bfloat16"])]
    data = ours(*tensors, aliases={"tied": "b"}, metadata={"license": "MIT"})
    with np.load(io.BytesIO(data)) as found:
        assert found.files == [*(t.name for t in tensors), "__metadata__"]
        for tensor in PLAIN:
            assert found[tensor.name].dtype == np.dtype(tensor.dtype.numpy)
            assert found[tensor.name].shape == tensor.shape
            assert found[tensor.name].tobytes() == tensor_bytes(tensor)
        assert found["b"].dtype == np.uint16
        assert found["b"].tobytes() == tensor_bytes(tensors[-1])
        notes = bytes(found["__metadata__"])
    assert json.loads(notes) == {
        "aliases": {"tied": "b"},
        "dtypes": {"b": "bfloat16"},
        "metadata": {"license": "MIT"},
    }
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


@pytest.mark.parametrize("compressed", [False, True])
def test_numpys_files_are_read(compressed: bool) -> None:
    arrays = {tensor.name: as_array(tensor) for tensor in PLAIN}
    arrays |= {
        "fortran": np.arange(24, dtype="<f4").reshape(2, 3, 4).T,
        "big": np.arange(6, dtype=">i4").reshape(2, 3),
        "big complex": np.array([1 + 2j, 3 - 4j], ">c8"),
        "both": np.asfortranarray(np.arange(6, dtype=">f8").reshape(2, 3)),
    }
    found = opened(savez(arrays, compressed=compressed))
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].shape == array.shape
        little = array.astype(array.dtype.newbyteorder("<"))
        assert tensor_bytes(found[name]) == little.tobytes("C")
    rules = {finding.rule for finding in found.findings}
    assert findings.BIG_ENDIAN in rules
    assert (findings.COMPRESSED in rules) == compressed


@pytest.mark.parametrize("compressed", [False, True])
def test_the_checksum_of_a_member_gives_that_of_its_elements(compressed: bool) -> None:
    arrays = {"a": np.arange(1000), "empty": np.zeros((0, 3)), "scalar": np.array(7.0)}
    found = opened(savez(arrays, compressed=compressed))
    for name, array in arrays.items():
        assert found[name].storage.crc32 == zlib.crc32(array.tobytes())


def test_a_flipped_bit_shows_in_the_checksum() -> None:
    data = bytearray(savez({"a": np.arange(1000, dtype="<i4")}))
    data[1000] ^= 1
    found = opened(bytes(data))["a"]
    assert zlib.crc32(tensor_bytes(found)) != found.storage.crc32


def test_members_that_are_no_arrays_are_reported() -> None:
    file = io.BytesIO(savez({"a": np.arange(3)}))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("readme.txt", "hello")
    found = opened(file.getvalue())
    assert list(found) == ["a"]
    assert found.findings == [findings.Finding(findings.UNREFERENCED, "not read: 'readme.txt'")]


def test_a_zip_of_something_else_is_not_an_npz() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", "x")
    with pytest.raises(Unsupported, match="contains no arrays"):
        opened(file.getvalue())


@pytest.mark.parametrize(
    "array",
    [
        np.array([{}, None], object),
        np.array(["text"]),
        np.array([b"bytes"]),
        np.array(["2020-01-01"], "datetime64[D]"),
        np.zeros(2, [("x", "<f4"), ("y", "<i4")]),
        np.zeros(2, "V2"),
        np.zeros(2, np.longdouble),
    ],
    ids=lambda array: str(array.dtype),
)
def test_arrays_that_are_no_numbers_are_listed_and_the_others_read(array: Any) -> None:
    found = opened(savez({"fine": np.arange(2), "bad": array}))
    assert found["fine"].numpy().tolist() == [0, 1]
    assert list(found) == ["fine"]
    assert list(found.exotic) == ["bad"]
    error = found.exotic["bad"].error
    assert isinstance(error, Unsupported)
    assert ("unpickling" in error.message) == (array.dtype == object)
    assert [each.rule.id for each in found.findings] == ["CGPT031"]
    with pytest.raises(Unsupported, match="tensor 'bad' cannot be read"):
        select(found, TensorSelection())
    assert [each.name for each in select(found, TensorSelection(exclude=["bad"])).tensors] == [
        "fine"
    ]
    with pytest.raises(Unsupported):  # no other entry is left
        opened(savez({"bad": array}))


@pytest.mark.parametrize(
    "name",
    ["", "/etc/passwd", "../x", "a/../b", "a//b", "a/", "./a", "C:\\x", "C:x", "a\\b", "a\0b",
     "a\nb", "x" * 4093],
)  # fmt: skip
def test_names_that_leave_the_archive_are_refused(name: str) -> None:
    with pytest.raises(Unsupported, match="archive"):
        ours(samples.tensor(name, F32), samples.tensor("fine", F32))


@pytest.mark.parametrize(
    "names", [("W", "w"), ("é", "e\u0301"), ("x", "x.npy"), ("x.npy", "x"), ("__metadata__",),
              ("__Metadata__",)]
)  # fmt: skip
def test_names_that_readers_would_mix_up_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(Unsupported, match="cannot distinguish") as caught:
        ours(*(samples.tensor(name, F32) for name in names), samples.tensor("fine", F32))
    assert "fine" not in caught.value.message


def test_numpy_would_mix_up_a_name_that_ends_in_npy() -> None:
    """The reason for the refusal; remove both if this fails."""
    data = savez({"x": np.arange(3), "x.npy": np.arange(5)})
    with np.load(io.BytesIO(data)) as found:
        assert len(found["x.npy"]) == 3


def with_notes(notes: object, **arrays: Any) -> bytes:
    text = notes if isinstance(notes, bytes) else json.dumps(notes).encode()
    return savez({**arrays, "__metadata__": np.frombuffer(text, np.uint8)})


def test_notes_past_the_limit_are_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npz_archive, "INDEX_BYTES", 10)
    with pytest.raises(Unsupported, match="bytes"):
        opened(with_notes(EMPTY))


EMPTY: dict[str, dict[str, str]] = {"aliases": {}, "dtypes": {}, "metadata": {}}
BAD_NOTES: dict[str, object] = {
    "no JSON": b"hello",
    "no bytes": b"",
    "no object": [],
    "missing key": {"aliases": {}},
    "another key": {**EMPTY, "more": {}},
    "no text": {**EMPTY, "metadata": {"a": 1}},
    "unknown type": {**EMPTY, "dtypes": {"a": "float7"}},
    "unknown array": {**EMPTY, "dtypes": {"z": "bfloat16"}},
    "type of another size": {**EMPTY, "dtypes": {"a": "float8_e5m2"}},
    "type numpy has": {**EMPTY, "dtypes": {"a": "float16"}},
    "quantized": {**EMPTY, "dtypes": {"b": "quint8"}},
    "type of floats": {**EMPTY, "dtypes": {"f": "bfloat16"}},
    "alias of nothing": {**EMPTY, "aliases": {"y": "z"}},
    "alias that is an array": {**EMPTY, "aliases": {"a": "b"}},
    "alias of an alias": {**EMPTY, "aliases": {"x": "a", "y": "x"}},
    "alias of the notes": {**EMPTY, "aliases": {"x": "__metadata__"}},
}


@pytest.mark.parametrize("case", BAD_NOTES)
def test_notes_that_contradict_the_arrays_are_malformed(case: str) -> None:
    arrays = {"a": np.zeros(2, "<u2"), "b": np.zeros(2, "u1"), "f": np.zeros(2, "<f2")}
    with pytest.raises(Malformed):
        opened(with_notes(BAD_NOTES[case], **arrays))


def test_another_programs_array_called_metadata_is_an_array() -> None:
    assert list(opened(savez({"__metadata__": np.zeros(3)}))) == ["__metadata__"]


def test_notes_are_written_only_if_there_is_something_to_note() -> None:
    assert b"__metadata__" not in ours(samples.tensor("w", F32))
    assert b"__metadata__" in ours(samples.tensor("w", BY_NAME["float8_e5m2"]))


class Zeros:
    """A source of any size."""

    name = "zeros"
    nbytes = 1 << 40

    def readinto(self, _offset: int, buffer: memoryview) -> None:
        buffer[:] = bytes(len(buffer))

    def check_unchanged(self) -> None: ...


@pytest.mark.large
def test_archives_past_four_gigabytes_are_laid_out_as_zipfile_expects(tmp_path: Path) -> None:
    storage = Storage(Zeros(), 0, 5 << 30, "zeros")
    tensors = [
        Tensor(name, BY_NAME["uint8"], (size,), (1,), 0, storage)
        for name, size in (("big", 5 << 30), ("middle", (1 << 31) + 7), ("small", 10_000))
    ]
    [plan] = npz_archive.plan(request("f.npz", *tensors))
    path = tmp_path / "f.npz"
    with path.open("wb") as file:  # sparse; checksums stay 0
        for part in plan.parts:
            if isinstance(part, bytes):
                file.write(part)
            else:
                file.seek(4 if isinstance(part, Crc32) else part_nbytes(part), io.SEEK_CUR)
    assert path.stat().st_size == plan.nbytes
    with zipfile.ZipFile(path) as archive:
        sizes = {info.filename: info.file_size - 128 for info in archive.infolist()}
        assert sizes == {f"{tensor.name}.npy": tensor.nbytes for tensor in tensors}
        for tensor in tensors:
            with archive.open(f"{tensor.name}.npy") as member:
                assert np.lib.format.read_magic(member) == (1, 0)
                shape, _, _ = np.lib.format.read_array_header_1_0(member)
                assert shape == tensor.shape
    found = npz_archive.read(str(path))
    assert [t.shape for t in found.values()] == [t.shape for t in tensors]


@pytest.mark.slow  # seconds
def test_more_members_than_sixteen_bits_count() -> None:
    count = 65_537
    parts = zip_writer.stored((f"{i}.npy", ()) for i in range(count))
    data = b"".join(part if isinstance(part, bytes) else bytes(4) for part in parts)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert len(archive.infolist()) == count
    assert len(open_archive(MemoryBytes("f.npz", data)).members) == count


SAMPLE = ours(
    samples.tensor("w", F32),
    samples.tensor("b", BY_NAME["bfloat16"], (4,)),
    samples.tensor("e", BY_NAME["int64"], (0, 2)),
    aliases={"lm_head": "w"},
    metadata={"license": "MIT"},
)
DEFLATED = savez({"w": np.arange(50), "z": np.zeros((30, 30))}, compressed=True)


@settings(max_examples=400)
@given(st.sampled_from([SAMPLE, DEFLATED]), st.data())
def test_a_mutated_file_is_read_or_refused(sample: bytes, data: st.DataObject) -> None:
    mutated = bytearray(sample)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(mutated) - 1))
        piece = data.draw(
            st.binary(max_size=4) | st.sampled_from([b"\xff" * 4, b"9" * 9, b"PK\5\6"])
        )
        mutated[at : at + data.draw(st.integers(0, 4))] = piece
    with contextlib.suppress(CgptError):
        for tensor in opened(bytes(mutated)).values():
            assert len(tensor_bytes(tensor)) == tensor.nbytes


@given(st.binary(max_size=100))
@example(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0, 0, 0, 0, 0))
def test_noise_is_refused(noise: bytes) -> None:
    with contextlib.suppress(CgptError):
        assert not opened(noise)
