"""The tar of torch 0.1, built by hand and against torch.load, which still reads it."""

import io
import pickle
import struct
import tarfile
from typing import Any

import pytest
import torch
from hypothesis import given, settings

from cgpt_convert.archives.tar import members
from cgpt_convert.core import findings
from cgpt_convert.core.errors import CgptError, Malformed, Unsupported
from cgpt_convert.formats.torch import tar_reader
from cgpt_convert.sources.local import LocalFile, MemoryBytes
from tests.helpers.mutations import mutated

pytestmark = pytest.mark.filterwarnings(  # torch's, of files and functions as old as these
    "ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"
)
SYSTEM = {
    "protocol_version": 1000,
    "little_endian": True,
    "type_sizes": {"short": 2, "int": 4, "long": 4},
}


class Reference:
    """An object that is pickled as a persistent id."""

    def __init__(self, number):
        self.number = number


class Pickler(pickle.Pickler):
    def persistent_id(self, obj):
        return obj.number if isinstance(obj, Reference) else None


def pickled(value, protocol=2):
    file = io.BytesIO()
    Pickler(file, protocol).dump(value)
    return file.getvalue()


def storages(*items, windows=()):
    """Items are (key, class, struct code, values)."""
    out = pickled(len(items))
    for key, cls, code, values in items:
        out += pickled((key, "cpu", cls)) + struct.pack("<q", len(values))
        out += struct.pack(f"<{len(values)}{code}", *values)
    return out + pickled(list(windows))


def tensors(*items):
    """Items are (key, storage's key, class, shape, strides, start)."""
    out = pickled(len(items))
    for key, storage, cls, shape, strides, start in items:
        out += pickled((key, storage, cls)) + struct.pack("<ii", len(shape), 0)
        out += struct.pack(f"<{2 * len(shape) + 1}q", *shape, *strides, start)
    return out


def tar(parts, form=tarfile.PAX_FORMAT, mtime=1500000000.25):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:", format=form) as archive:
        for name, data in parts.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), mtime  # a float, as os.stat gives it
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


PARTS = {
    "sys_info": pickled(SYSTEM),
    "pickle": pickled(
        {
            "w": Reference(20),
            "t": Reference(21),
            "nested": [Reference(22), {"i": Reference(23)}],
            "again": Reference(20),
            "param": torch.nn.Parameter.__new__,
        }
        | {"param": 5}
    ),
    "tensors": tensors(
        (20, 10, torch.FloatTensor, (2, 3), (3, 1), 0),
        (21, 10, torch.FloatTensor, (3, 2), (1, 3), 0),
        (22, 12, torch.FloatTensor, (2,), (1,), 1),
        (23, 11, torch.LongTensor, (2,), (2,), 1),
    ),
    "storages": storages(
        (10, torch.FloatStorage, "f", [0, 1, 2, 3, 4, 5]),
        (11, torch.LongStorage, "q", [7, 8, 9, -1]),
        windows=[(12, 10, 2, 4)],
    ),
}


def read(data):
    return tar_reader.read(MemoryBytes("memory", data))


def with_parts(**changed):
    return tar(PARTS | changed)


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT])
def test_what_torch_reads(tmp_path, form):
    path = tmp_path / "old.pt"
    path.write_bytes(tar(PARTS, form, mtime=1500000000.25))
    expected = torch.load(path, weights_only=False)
    checkpoint = tar_reader.read(LocalFile(path))
    flat = {
        "w": expected["w"],
        "t": expected["t"],
        "nested.0": expected["nested"][0],
        "nested.1.i": expected["nested"][1]["i"],
        "again": expected["again"],
    }
    assert list(checkpoint) == list(flat)
    for name, values in flat.items():
        assert checkpoint[name].shape == tuple(values.shape)
        assert checkpoint[name].numpy().tolist() == values.tolist()
    assert checkpoint.ties == {"again": "w"}
    assert [storage.key for storage in checkpoint.storages] == ["10", "11"]
    assert not checkpoint.findings


def test_members_are_where_tarfile_finds_them():
    data = tar(PARTS | {"x" * 150: b"long"})
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        expected = {m.name: (m.offset_data, m.size) for m in archive}
    found, end = members(MemoryBytes("memory", data))
    assert {m.name: (m.offset, m.nbytes) for m in found.values()} == expected
    assert not any(data[end:])


def test_modules_and_their_old_parameters(tmp_path):
    class Old:
        def __reduce__(self):
            return torch.nn.Parameter, (Reference(20),), (True, False, {})

    linear = torch.nn.Linear(3, 2, bias=False)
    weights: Any = linear._parameters  # noqa: SLF001  torch takes no such weight otherwise
    weights["weight"] = Old()
    parts = PARTS | {"pickle": pickled({"m": linear})}
    path = tmp_path / "old.pt"
    path.write_bytes(tar(parts))
    expected = torch.load(path, weights_only=False)["m"].weight
    checkpoint = tar_reader.read(LocalFile(path))
    assert checkpoint["m.weight"].numpy().tolist() == expected.tolist()


def test_a_class_with_its_source():
    reference = Reference((torch.nn.Linear, "linear.py", "class Linear: ..."))
    checkpoint = read(with_parts(pickle=pickled({"cls": reference})))
    leaves = {leaf.path: leaf.value for leaf in checkpoint.others}
    assert str(leaves["cls"]) == "torch.nn.modules.linear.Linear"
    assert leaves["source of torch.nn.modules.linear.Linear"] == ("linear.py", "class Linear: ...")


def test_references_as_text():
    checkpoint = read(with_parts(pickle=pickled([Reference("20")], protocol=0)))
    assert checkpoint["0"].shape == (2, 3)


def test_what_nothing_uses_is_said():
    parts = {"pickle": pickled([Reference(20), Reference(11)]) + b"tail", "extra": b"hidden"}
    checkpoint = read(with_parts(**parts) + b"behind")
    details = {str(f) for f in checkpoint.findings}
    assert any("6 bytes of 'extra'" in detail for detail in details)
    assert any("4 bytes of 'pickle'" in detail for detail in details)
    assert any("32 bytes of storages" in detail for detail in details)
    assert any(finding.rule is findings.TRAILING for finding in checkpoint.findings)


FLOATS = (10, torch.FloatStorage, "f", [0, 1, 2, 3, 4, 5])


def one_tensor(*item):
    return {"tensors": tensors(item), "pickle": pickled([Reference(item[0])])}


@pytest.mark.parametrize(
    ("parts", "kind", "message"),
    [
        ({"pickle": pickled([Reference(99)])}, Malformed, "99 is not a storage, tensor or class"),
        (one_tensor(20, 10, torch.FloatTensor, (7,), (1,), 0), Malformed, "need 28 bytes"),
        (one_tensor(20, 10, torch.FloatTensor, (2,), (-1,), 1), Malformed, "negative"),
        (one_tensor(20, 99, torch.FloatTensor, (2,), (1,), 0), Malformed, "the tensor description"),
        (
            one_tensor(20, 10, torch.LongTensor, (2,), (1,), 0),
            Malformed,
            "LongTensor, its storage has the type float32",
        ),
        (one_tensor(10, 10, torch.FloatTensor, (2,), (1,), 0), Malformed, "10 is used twice"),
        (one_tensor(20, 10, torch.FloatTensor, (1,) * 65, (1,) * 65, 0), Unsupported, "65 dim"),
        (one_tensor(20, 12, torch.FloatTensor, (5,), (1,), 0), Malformed, "need 20 bytes"),
        ({"storages": storages(FLOATS, FLOATS)}, Malformed, "occurs twice"),
        ({"storages": storages(FLOATS, windows=[(12, 10, 4, 3)])}, Malformed, "which has 24"),
        ({"storages": storages(FLOATS, windows=[(12, 13, 0, 1)])}, Malformed, "the storage view"),
        ({"storages": pickled(10**9)}, Malformed, "ends"),
        ({"storages": pickled(-1)}, Malformed, "the number of storages is not valid"),
        ({"storages": pickled(1) + pickled((1, "cpu", dict))}, Unsupported, "storage class"),
        ({"tensors": pickled("x")}, Malformed, "the number of tensors is not valid"),
        ({"sys_info": pickled(1)}, Malformed, "is not a dict"),
        (
            {"storages": pickled(1) + pickled(5)},
            Malformed,
            "the storage description 5 is not valid",
        ),
        (
            {"storages": pickled(1) + pickled((1, "cpu", torch.UntypedStorage))},
            Malformed,
            "no element type",
        ),
        ({"pickle": pickled(Reference(10))[:-1]}, Malformed, "ends before its STOP"),
    ],
)
def test_contradictions_are_refused(parts, kind, message):
    with pytest.raises(kind, match=message) as caught:
        read(with_parts(**parts))
    assert "memory" in str(caught.value)


def test_other_tars_are_refused():
    with pytest.raises(Malformed, match="has no pickle"):
        read(tar({name: data for name, data in PARTS.items() if name != "pickle"}))
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:") as archive:
        link = tarfile.TarInfo("storages")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(Unsupported, match="not a regular file"):
        read(file.getvalue())
    twice = tar(PARTS)[: -tarfile.RECORDSIZE] + tar({"pickle": b"x"})
    assert not tar_reader.is_torch_tar(MemoryBytes("memory", file.getvalue()))
    with pytest.raises(CgptError):
        read(twice)


def test_a_second_member_of_one_name_is_refused():
    file = io.BytesIO(tar(PARTS))
    with tarfile.open(fileobj=file, mode="a:") as archive:
        info = tarfile.TarInfo("pickle")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    with pytest.raises(Malformed, match="two tar members"):
        read(file.getvalue())


@pytest.mark.parametrize(
    "pax",
    [b"11 size=-1\n", b"9 size=1", b"x size=3\n", b"99 path=a\n", b"21 GNU.sparse.map=1\n", b"7\n"],
)
def test_tar_keywords_that_could_move_data_are_refused(pax):
    header = tarfile.TarInfo("PaxHeader")
    header.type, header.size = tarfile.XHDTYPE, len(pax)
    block = header.tobuf(tarfile.USTAR_FORMAT) + pax.ljust(512, b"\0")
    with pytest.raises(CgptError, match="memory"):
        read(block + tar(PARTS))


SAMPLE = tar(PARTS)


def test_every_truncation_is_an_error_of_ours():
    whole = len(SAMPLE.rstrip(b"\0"))
    for nbytes in range(0, whole, 3):
        with pytest.raises(CgptError):
            read(SAMPLE[:nbytes])


@settings(max_examples=300, deadline=2000)
@given(mutated(SAMPLE[: -(-len(SAMPLE.rstrip(b"\0")) // 512) * 512]))
def test_damage_is_an_error_of_ours_or_harmless(data):
    try:
        checkpoint = read(data)
    except CgptError:
        return
    for values in checkpoint.values():
        if values.nbytes < 1 << 20:
            values.numpy()
