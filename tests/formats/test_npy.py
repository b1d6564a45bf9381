"""The npy encoding and the folder of npy files, against numpy."""

import io
import json
import time
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib import format as npformat

from cgpt_convert.core import findings
from cgpt_convert.core.errors import BadRequest, CgptError, Malformed, Unsupported
from cgpt_convert.formats.npy import folder as npy_folder
from cgpt_convert.formats.npy.header import array, header_bytes
from cgpt_convert.sources.local import MemoryBytes
from cgpt_convert.tensors.dtypes import BY_NAME, BY_NUMPY
from cgpt_convert.tensors.tensor import Storage, Tensor
from tests.helpers import samples
from tests.helpers.render import render, request, tensor_bytes, write

Array = np.ndarray[Any, Any]
F32 = BY_NAME["float32"]


def parsed(data: bytes) -> Tensor:
    return array(Storage(MemoryBytes("a.npy", data), 0, len(data), "a"))


def saved(array: Array, version: tuple[int, int] | None = None) -> bytes:
    file = io.BytesIO()
    npformat.write_array(file, array, version, allow_pickle=True)
    return file.getvalue()


def npy_file(header: str | bytes, data: bytes = b"", version: int = 1) -> bytes:
    text = header if isinstance(header, bytes) else header.encode()
    width = 2 if version == 1 else 4
    return b"\x93NUMPY" + bytes((version, 0)) + len(text).to_bytes(width, "little") + text + data


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("descr", [row.numpy for row in BY_NUMPY.values()])
@pytest.mark.parametrize("order", ["<", ">"])
def test_numpys_arrays_are_read(
    version: tuple[int, int], descr: str, order: Literal["<", ">"]
) -> None:
    for shape in samples.SHAPES:
        for layout in ("C", "F"):
            values = samples.raw(BY_NUMPY[descr], shape)
            little: Array = np.frombuffer(values, descr).reshape(shape)
            array = np.array(little, np.dtype(descr).newbyteorder(order), order=layout)
            found = parsed(saved(array, version))
            assert (found.dtype, found.shape) == (BY_NUMPY[descr], shape)
            assert tensor_bytes(found) == array.astype(descr).tobytes("C")


@pytest.mark.parametrize("shape", [(), (0,), (1,), (10**17, 0), (3,) * 32, (12345678901,)])
def test_the_header_is_numpys(shape: tuple[int, ...]) -> None:
    storage = Storage(MemoryBytes("m", b""), 0, 0, "m")
    tensor = Tensor("a", F32, shape, (1,) * len(shape), 0, storage)
    file = io.BytesIO()
    npformat.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    assert header_bytes(tensor) == file.getvalue()


def test_the_header_of_the_highest_rank_fits_version_one() -> None:
    storage = Storage(MemoryBytes("m", b""), 0, 0, "m")
    header = header_bytes(Tensor("a", F32, (2**62,) * 64, (1,) * 64, 0, storage))
    assert len(header) < 1 << 16
    assert len(header) % 64 == 0


@pytest.mark.parametrize(
    "text",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }\n",
        '{"shape": (2L,), "fortran_order": True, "descr": "<f4"}   \n',
        "{ 'shape' :( 2 , ) ,'descr':'<f4','fortran_order':False}",
    ],
)
def test_other_spellings_of_a_header_are_read(text: str) -> None:
    assert parsed(npy_file(text, bytes(8))).shape == (2,)


def item(descr: str = "'<f4'", fortran: str = "False", shape: str = "(2,)") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n"


MALFORMED = {
    "no bytes": b"",
    "magic alone": b"\x93NUMPY\1\0",
    "other magic": b"\x93NUMPX" + npy_file(item(), bytes(8))[6:],
    "header cut off": npy_file(item(), bytes(8))[:40],
    "header length": b"\x93NUMPY\2\0" + b"\xff" * 200,
    "too little data": npy_file(item(), bytes(7)),
    "too much data": npy_file(item(), bytes(9)),
    "negative dim": npy_file(item(shape="(-2,)"), bytes(8)),
    "float dim": npy_file(item(shape="(2.0,)"), bytes(8)),
    "bool dim": npy_file(item(shape="(True,)"), bytes(4)),
    "number as shape": npy_file(item(shape="(2)"), bytes(8)),
    "list as shape": npy_file(item(shape="[2]"), bytes(8)),
    "two commas": npy_file(item(shape="(2,,)"), bytes(8)),
    "one comma": npy_file(item(shape="(,)"), bytes(4)),
    "two numbers": npy_file(item(shape="(1 2)"), bytes(8)),
    "huge dim": npy_file(item(shape="(99999999999999999999,)"), bytes(8)),
    "overflow": npy_file(item(shape=f"({1 << 62}, {1 << 62}, 0)")),
    "order a number": npy_file(item(fortran="0"), bytes(8)),
    "order a text": npy_file(item(fortran="'False'"), bytes(8)),
    "type a flag": npy_file(item(descr="True"), bytes(8)),
    "missing key": npy_file("{'descr': '<f4', 'shape': (2,)}", bytes(8)),
    "key twice": npy_file(item()[:-3] + "'shape': (2,)}", bytes(8)),
    "another key": npy_file(item()[:-3] + "'more': (2,)}", bytes(8)),
    "after the dict": npy_file(item() + "1", bytes(8)),
    "no dict": npy_file("(2,)", bytes(8)),
    "a call": npy_file("{'descr': __import__('os'), 'fortran_order': False}", bytes(8)),
    "not UTF-8": npy_file(item(descr="'<f4\xff'").encode("latin-1"), bytes(8), 3),
}
UNSUPPORTED = {
    "version": npy_file(item(), bytes(8), 4),
    "objects": npy_file(item(descr="'|O'"), bytes(8)),
    "structured": npy_file(item(descr="[('x', '<f4')]"), bytes(8)),
    "subarray": npy_file(item(descr="('<f4', (2,))"), bytes(8)),
    "native order": npy_file(item(descr="'=f4'"), bytes(8)),
    "no order": npy_file(item(descr="'f4'"), bytes(8)),
    "pipe": npy_file(item(descr="'|f4'"), bytes(8)),
    "empty type": npy_file(item(descr="''"), bytes(8)),
    "long double": npy_file(item(descr="'<f16'"), bytes(32)),
    "rank": npy_file(item(shape="(" + "1, " * 65 + ")"), bytes(4)),
    "long header": npy_file(item() + " " * (2 << 20), bytes(8), 2),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_contradictions_are_malformed(case: str) -> None:
    with pytest.raises(Malformed) as caught:
        parsed(MALFORMED[case])
    assert caught.value.where == "a.npy[a]"


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_the_unknown_is_unsupported(case: str) -> None:
    with pytest.raises(Unsupported):
        parsed(UNSUPPORTED[case])


@pytest.mark.parametrize("piece", [" ", "(", "1,", "'", "{", "'descr':", "\n", "L", "'a':True,"])
def test_a_long_header_costs_no_more_than_its_length(piece: str) -> None:
    text = "{'descr': '<f4', 'shape': (" + piece * (900_000 // len(piece))
    for header in (text, "{'descr': '<f4'" + piece * (900_000 // len(piece)), "{" + text):
        started = time.process_time()
        with pytest.raises(CgptError):
            parsed(npy_file(header, version=2))
        assert time.process_time() - started < 1


ODD = [*map(chr, range(0x21)), *"\x7f\x80\x84\x85\x9f\xa0\xad#\\L0_+"]
PLACES = "^{^'descr^'^:^'<f4'^,^'fortran_order':^False^, 'shape':^(^2^,^1^)^, ^}^"


@pytest.mark.parametrize("version", [1, 2, 3])
def test_odd_characters_are_taken_where_numpy_takes_them_and_nowhere_else(version: int) -> None:
    taken = 0
    for place in range(PLACES.count("^")):
        before, after = (part.replace("^", "") for part in _split(PLACES, place))
        for odd in ODD:
            text = (before + odd + after).encode("utf-8" if version > 2 else "latin-1")
            data = npy_file(text + b"\n", bytes(8), version)
            try:
                found = parsed(data)
            except CgptError:
                if odd in " \t\n\r\f":  # these are to be read wherever numpy reads them
                    assert _numpys_shape(data) is None, (place, odd)
                continue
            taken += 1
            assert found.shape == _numpys_shape(data), (place, odd)
    assert taken > 5 * len(PLACES.split("^")) // 2


def _split(text: str, place: int) -> tuple[str, str]:
    parts = text.split("^")
    return "".join(parts[: place + 1]), "".join(parts[place + 1 :])


def _numpys_shape(data: bytes) -> tuple[int, ...] | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return tuple(np.load(io.BytesIO(data)).shape)
        except Exception:  # noqa: BLE001  whatever it is, numpy does not read it
            return None


@settings(max_examples=500)
@given(st.data())
def test_a_mutated_array_is_read_as_numpy_reads_it_or_refused(data: st.DataObject) -> None:
    mutated = bytearray(saved(np.arange(6, dtype="<i4").reshape(2, 3)))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, 80) | st.integers(0, len(mutated) - 1))
        piece = data.draw(
            st.binary(max_size=3) | st.sampled_from([b"True", b"9", b">", b"L", b" "])
        )
        mutated[at : at + data.draw(st.integers(0, 4))] = piece
    try:
        found = parsed(bytes(mutated))
    except CgptError:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = np.load(io.BytesIO(bytes(mutated)))
    assert found.shape == theirs.shape
    assert tensor_bytes(found) == theirs.astype(theirs.dtype.newbyteorder("<")).tobytes("C")


# the folder


def folder(path: Path, *tensors: Tensor, **rest: Any) -> str:
    write(render(npy_folder.plan(request("out", *tensors, **rest))), path)
    return str(path)


def test_numpy_reads_each_file(tmp_path: Path) -> None:
    tensors = [samples.tensor("transformer.h.0.ln_1.weight", F32), samples.tensor("a/b", F32)]
    folder(tmp_path, *tensors)
    found = np.load(tmp_path / "transformer.h.0.ln_1.weight.npy")
    assert found.tobytes() == tensor_bytes(tensors[0])
    assert np.load(tmp_path / "a%2Fb.npy").shape == (2, 3)


def test_the_sidecar_is_last_and_tells_what_files_cannot() -> None:
    tensor = samples.tensor("W", BY_NAME["bfloat16"])
    plans = npy_folder.plan(request("out", tensor, aliases={"v": "W"}, metadata={"k": "é"}))
    assert [plan.path for plan in plans] == ["W.npy", "tensors.json"]
    assert json.loads(render(plans)["tensors.json"]) == {
        "files": {"W": {"file": "W.npy", "dtype": "bfloat16", "shape": [2, 3]}},
        "aliases": {"v": "W"},
        "metadata": {"k": "é"},
    }


def test_names_that_no_file_system_takes_come_back(tmp_path: Path) -> None:
    names = ["W", "w", "CON", "..", "", "x" * 300, "x" * 300 + "y", "tensors.json", "a\nb"]
    found = npy_folder.read(folder(tmp_path, *(samples.tensor(name, F32) for name in names)))
    assert list(found) == names


def test_a_folder_without_sidecar_is_read_by_its_file_names(tmp_path: Path) -> None:
    tensors = [samples.tensor(name, BY_NAME["bfloat16"]) for name in ("W", "w", "a/b")]
    path = folder(tmp_path, *tensors, aliases={"v": "w"})
    (tmp_path / "tensors.json").unlink()
    found = npy_folder.read(path)
    assert sorted(found) == ["W", "a/b", "w"]
    assert {tensor.dtype.name for tensor in found.values()} == {"uint16"}


def test_a_strangers_folder_is_read_by_its_files_own_names(tmp_path: Path) -> None:
    for stem in ("100%", "A", "%41", "with space"):
        np.save(tmp_path / f"{stem}.npy", np.arange(3))
    (tmp_path / "notes.txt").write_text("hello")
    found = npy_folder.read(str(tmp_path))
    assert sorted(found) == ["%41", "100%", "A", "with space"]
    assert found.findings == [findings.Finding(findings.UNREFERENCED, "not read: 'notes.txt'")]


def test_more_files_than_a_process_may_open(tmp_path: Path) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
    tensor = samples.tensor("t", BY_NAME["int8"], (1,))
    try:
        path = folder(tmp_path, *(tensor.renamed(f"t{i}") for i in range(1100)))
        found = npy_folder.read(path)
        assert {tensor_bytes(one) for one in found.values()} == {tensor_bytes(tensor)}
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_files_that_the_sidecar_does_not_list_are_reported(tmp_path: Path) -> None:
    path = folder(tmp_path, samples.tensor("a", F32))
    np.save(tmp_path / "b.npy", np.arange(3))
    found = npy_folder.read(path)
    assert list(found) == ["a"]
    [finding] = found.findings
    assert finding.rule == findings.UNREFERENCED
    assert "b.npy" in finding.detail


def test_what_is_no_folder_of_arrays_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "none"):
        with pytest.raises(BadRequest):
            npy_folder.read(str(path))
    with pytest.raises(Unsupported, match="no arrays"):
        npy_folder.read(str(tmp_path))


ENTRY = {"file": "a.npy", "dtype": "bfloat16", "shape": [2, 3]}
BAD_SIDECARS: dict[str, object] = {
    "no object": [],
    "missing key": {"files": {}, "aliases": {}},
    "files a list": {"files": [], "aliases": {}, "metadata": {}},
    "entry a number": {"files": {"a": 1}},
    "entry lacks": {"files": {"a": {"file": "a.npy", "dtype": "bfloat16"}}},
    "other field": {"files": {"a": {**ENTRY, "x": 1}}},
    "missing file": {"files": {"a": {**ENTRY, "file": "b.npy"}}},
    "outside": {"files": {"a": {**ENTRY, "file": "../b.npy"}}},
    "absolute": {"files": {"a": {**ENTRY, "file": "/b.npy"}}},
    "backslash": {"files": {"a": {**ENTRY, "file": "..\\b.npy"}}},
    "no array": {"files": {"a": {**ENTRY, "file": "tensors.json"}}},
    "file a number": {"files": {"a": {**ENTRY, "file": 1}}},
    "other shape": {"files": {"a": {**ENTRY, "shape": [3, 2]}}},
    "other type": {"files": {"a": {**ENTRY, "dtype": "float32"}}},
    "unknown type": {"files": {"a": {**ENTRY, "dtype": "x"}}},
    "type a list": {"files": {"a": {**ENTRY, "dtype": ["x"]}}},
    "one file twice": {"files": {"a": ENTRY, "b": ENTRY}},
    "alias of nothing": {"files": {"a": ENTRY}, "aliases": {"b": "c"}},
    "alias a number": {"files": {"a": ENTRY}, "aliases": {"b": 1}},
    "metadata a list": {"files": {"a": ENTRY}, "metadata": []},
}


@pytest.mark.parametrize("case", BAD_SIDECARS)
def test_a_sidecar_that_contradicts_the_files_is_malformed(case: str, tmp_path: Path) -> None:
    path = folder(tmp_path, samples.tensor("a", BY_NAME["bfloat16"]))
    bad = BAD_SIDECARS[case]
    if isinstance(bad, dict) and case != "missing key":
        bad = {"aliases": {}, "metadata": {}, **bad}
    (tmp_path / "tensors.json").write_text(json.dumps(bad))
    with pytest.raises(Malformed):
        npy_folder.read(path)


def test_a_sidecar_past_the_limit_is_unsupported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(npy_folder, "INDEX_BYTES", 10)
    with pytest.raises(Unsupported, match="bytes"):
        npy_folder.read(folder(tmp_path, samples.tensor("a", F32)))


def test_a_sidecar_that_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tensors.json").mkdir()
    with pytest.raises(CgptError):
        npy_folder.read(str(tmp_path))
