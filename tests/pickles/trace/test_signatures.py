"""Allowed names are accepted as their writers call them, and in no other way."""

from __future__ import annotations

import collections
import io
import pathlib
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint import metadata
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.tensor import Partial, Replicate, Shard

from cgpt_convert.core.errors import BadRequest
from cgpt_convert.pickles.torch_calls.rebuild import KNOWN
from cgpt_convert.scanning.allowlist import ALLOWED, Allowlist
from cgpt_convert.scanning.result import Verdict
from tests.helpers import torch_names
from tests.helpers.hostile_pickles import short
from tests.helpers.scan_files import scanned
from tests.helpers.zips import saved

HELD = b"c_codecs\nencode\n"  # an allowed function where none belongs


def glob(name: str) -> bytes:
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def test_every_name_that_our_readers_know_has_a_signature() -> None:
    assert KNOWN <= ALLOWED


@pytest.mark.parametrize("name", sorted(ALLOWED))
def test_no_name_takes_keywords_or_a_function_or_attributes(name: str, tmp_path: Path) -> None:
    made = glob(name)
    for data in (
        made + b")}" + short("allocator") + b"K\5s\x92.",
        made + HELD + b"\x85R.",
        made + HELD + b"\x85\x81.",
        b"(" + made[1:-1].join((b"i", b"\n")) + b".",
        b"(" + made + HELD + b"o.",
        made + b"}" + short("__setstate__") + HELD + b"sb.",
        made + HELD + b"a.",
        made + b"K\1" + HELD + b"s.",
    ):
        assert scanned(b"\x80\4" + data, tmp_path).verdict not in (
            Verdict.CLEAN,
            Verdict.NOTHING,
        ), data


ORDERED = glob("collections.OrderedDict") + b")R"
STORAGE = (
    b"(" + short("storage") + glob("torch.FloatStorage") + short("0") + short("cpu") + b"K\4tQ"
)
VIEW = STORAGE + b"K\0K\4\x85K\1\x85"
TENSOR = glob("torch._utils._rebuild_tensor_v2") + b"(" + VIEW + b"\x89" + ORDERED + b"tR"
DTYPE = glob("numpy.dtype") + short("%s") + b"\x89\x88\x87R"
PLAIN_STATE = b"(K\3" + short("<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
INT8 = DTYPE.replace(short("%s"), short("i8")) + PLAIN_STATE
OBJECT = DTYPE.replace(short("%s"), short("O8"))
FORGED = INT8.replace(b"K\0tb", b"K\x3ftb")  # flags of an object type on integers
RECORD = DTYPE.replace(short("%s"), short("V8"))
ARRAY = glob("numpy._core.multiarray._reconstruct") + glob("numpy.ndarray") + b"K\0\x85C\1b\x87R"
BUFFER = glob("numpy._core.numeric._frombuffer")
TYPE_V2 = glob("torch._tensor._rebuild_from_type_v2")
SHAPE = b"K\1\x85"
C = short("C")


def array(dtype: bytes, data: bytes) -> bytes:
    return ARRAY + b"(K\1" + SHAPE + dtype + b"\x89" + data + b"tb"


def attribute(key: bytes, value: bytes = HELD) -> bytes:
    return b"}" + key + value + b"sb"


# what would run code, or leads there: each is made of allowed names only
MISUSED = {
    "a buffer that is an array": BUFFER
    + b"("
    + array(INT8, b"C\x08" + bytes(8))
    + INT8
    + SHAPE
    + C
    + b"tR",
    "a buffer of objects": BUFFER + b"(C\x08" + bytes(8) + OBJECT + SHAPE + C + b"tR",
    "a forged type": BUFFER + b"(C\x08" + bytes(8) + FORGED + SHAPE + C + b"tR",
    "a forged array": array(FORGED, b"]" + HELD + b"a"),
    "bytes as objects": array(OBJECT, b"C\x08" + bytes(8)),
    "fields of objects": (
        RECORD
        + b"(K\3"
        + short("|")
        + b"N"
        + short("a")
        + b"\x85}"
        + short("a")
        + OBJECT
        + b"K\0\x86s"
        + b"K\x08K\1K\x10tb"
    ),
    "fields beyond the element": (
        RECORD
        + b"(K\3"
        + short("|")
        + b"N"
        + short("a")
        + b"\x85}"
        + short("a")
        + INT8
        + b"K\4\x86s"
        + b"K\x08K\1K\x10tb"
    ),
    "a size that is not the code's": (
        DTYPE.replace(short("%s"), short("S8")) + b"(K\3" + short("|") + b"NNNM\0\1K\1K\0tb"
    ),
    "a scalar of objects": glob("numpy._core.multiarray.scalar")
    + OBJECT
    + b"C\x08"
    + bytes(8)
    + b"\x86R",
    "a layout that does not exist": glob("torch.serialization._get_layout")
    + short("exec")
    + b"\x85R",
    "a function's cache": glob("torch.serialization._get_layout") + attribute(short("cache")),
    "another function for a type": (
        TYPE_V2 + b"(" + glob("torch.serialization._get_layout") + b"N" + short("exec") + b"\x85NtR"
    ),
    "another codec": glob("_codecs.encode") + short("x") + short("rot13") + b"\x86R",
    "an allocator": glob("torch.storage.UntypedStorage") + b")}" + short("allocator") + b"K\5s\x92",
    "a storage that is made": glob("torch.storage.UntypedStorage") + b"K\5\x85R",
    "bytes of an array": glob("builtins.bytes") + array(INT8, b"C\x08" + bytes(8)) + b"\x85R",
    "a tuple of an array": glob("builtins.tuple") + array(OBJECT, b"]Na") + b"\x85R",
    "a factory": glob("collections.defaultdict") + HELD + b"\x85R",
    "a set of functions": glob("builtins.set") + b"]" + HELD + b"a\x85R",
    "items that are functions": glob("collections.Counter") + b"}K\1" + HELD + b"s\x85R",
    "pairs of functions": glob("collections.OrderedDict") + b"]]K\1a" + HELD + b"aa\x85R",
    "append": ORDERED + attribute(short("append")),
    "extend": ORDERED + attribute(short("extend")),
    "add": ORDERED + attribute(short("add")),
    "__setstate__": ORDERED + attribute(short("__setstate__")),
    "__class__": ORDERED + attribute(short("__class__"), glob("torch.Tensor")),
    "__dict__": ORDERED + attribute(short("__dict__"), b"}"),
    "a dict's method": ORDERED + attribute(short("items"), b"K\1"),
    "an attribute with an escape": ORDERED + attribute(b"S'\\x61ppend'\n"),
    "an attribute with another escape": ORDERED + attribute(b"V\\u0061ppend\n"),
    "an attribute among many": (
        ORDERED
        + b"}("
        + b"".join(short(f"a{n}") + b"N" for n in range(40))
        + short("append")
        + HELD
        + b"ub"
    ),
    "an attribute of slots": ORDERED + b"N}" + short("append") + HELD + b"s\x86b",
    "an attribute that is a function": ORDERED + attribute(short("_metadata")),
    "a state of a tensor": TENSOR + b"}b",
    "a tensor's attribute": (
        glob("torch._utils._rebuild_parameter_with_state")
        + b"("
        + TENSOR
        + b"\x88"
        + ORDERED
        + b"}"
        + short("__setstate__")
        + HELD
        + b"stR"
    ),
    "items of a tensor": TENSOR + b"K\0K\1s",
    "elements of a tensor": TENSOR + b"K\0a",
    "items of a Counter": glob("collections.Counter") + b"}\x85RK\0" + HELD + b"s",
    "members of an OrderedDict": ORDERED + b"(K\0\x90",
    "a state of a size": glob("torch.Size") + b")\x85R}b",
    "hooks that are a function": TENSOR.replace(ORDERED, HELD),
    "metadata that is a function": TENSOR[:-2] + HELD + b"tR",
    "a size that is a tensor": TENSOR.replace(b"K\4\x85K\1\x85", b"K\4\x85" + TENSOR),
    "an extra argument": TENSOR[:-2] + b"}NtR",
    "a storage that is an object": TENSOR.replace(STORAGE, ORDERED),
    "a call of a result": glob("torch.Size") + b")\x85R)R",
    "a buffer's attribute": (
        glob("_io.BytesIO") + b")\x81C\1aK\0}" + short("close") + HELD + b"s\x87b"
    ),
    "a text buffer": glob("_io.BytesIO") + b"C\1a\x85R",
    "another generator": (
        glob("numpy.random._pickle.__bit_generator_ctor") + glob("builtins.dict") + b"\x85R"
    ),
    "another constructor": (
        glob("numpy.random._pickle.__generator_ctor") + short("PCG64") + HELD + b"\x86R"
    ),
    "a placement's attribute": (
        glob("torch.distributed.tensor.placement_types.Shard")
        + b")\x81"
        + attribute(short("__setstate__"))
    ),
    "a memory format": glob("torch.distributed.checkpoint.metadata._MEM_FORMAT_ENCODING")
    + HELD
    + b"\x85R",
}


@pytest.mark.parametrize("name", MISUSED)
def test_allowed_names_in_another_way_are_foreign(name: str, tmp_path: Path) -> None:
    for data in (b"\x80\4" + MISUSED[name] + b".", MISUSED[name] + b"0N.", MISUSED[name] + b"\xff"):
        found = scanned(data, tmp_path)
        assert found.verdict in (Verdict.FOREIGN, Verdict.DANGEROUS, Verdict.MALFORMED), name
        assert found.sightings, (name, found)


def test_the_parts_of_those_are_accepted(tmp_path: Path) -> None:
    for data in (
        TENSOR,
        ORDERED + b"}" + short("_metadata") + b"}sb" + short("a") + TENSOR + b"s",
        array(INT8, b"C\x08" + bytes(8)),
        BUFFER + b"(C\x08" + bytes(8) + INT8 + SHAPE + C + b"tR",
        glob("torch.Size") + b")\x85R",
    ):
        assert scanned(b"\x80\4" + data + b".", tmp_path).verdict is Verdict.CLEAN, data


def _values() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    buffer = io.BytesIO(b"state of a layer")
    buffer.seek(0, io.SEEK_END)
    generators = [
        np.random.Generator(kind(7))
        for kind in (
            np.random.PCG64,
            np.random.PCG64DXSM,
            np.random.MT19937,
            np.random.Philox,
            np.random.SFC64,
        )
    ]
    return {
        "plain": {
            "a": [1, 2.5, None, True, "x", b"y", bytearray(b"z"), {3}, frozenset([4]), 1 << 90]
        },
        "numbers": [complex(1, 2), range(3), slice(1, None, 2), float("inf"), -1e-300],
        "containers": [
            collections.OrderedDict(a=1),
            collections.Counter("aab"),
            collections.defaultdict(dict, {1: {2: 3}}),
            collections.defaultdict(list),
            collections.defaultdict(None, a=1),
        ],
        "arrays": [
            np.arange(6).reshape(2, 3),
            np.asfortranarray(np.ones((2, 3), np.float32)),
            np.arange(9)[::2],
            np.array(5),
            np.zeros((0, 3), bool),
            np.array(["ab", "c"]),
            np.array([b"ab"]),
            np.array(["2020-01-01"], dtype="M8[D]"),
            np.array([1], dtype="m8[ns]"),
            np.ones(2, ">f4"),
            np.ones(2, complex),
            np.array([1, "a", None, [2]], dtype=object),
            np.zeros(2, [("a", "i4"), ("b", "f8"), ("c", "U3")]),
            np.zeros(2, np.dtype([("a", "i1"), ("b", "f8")], align=True)),
        ],
        "scalars": [
            np.float32(1),
            np.int64(2),
            np.bool_(1),
            np.datetime64("2020-01-01"),
            np.str_("x"),
        ],
        "types": [np.dtype("f4"), np.dtype(">i8"), np.dtype("S5"), torch.float32, torch.bfloat16],
        "generators": [rng, *generators, np.random.RandomState(3)],
        "bit generators": [generator.bit_generator for generator in generators],
        "states": [np.random.RandomState(3).get_state(), rng.bit_generator.state],
        "buffer": {"layer._extra_state": buffer},
        "devices": [
            torch.device("cpu"),
            torch.device("cuda", 1),
            torch.Size([2, 3]),
            torch.strided,
        ],
        "placements": [Shard(1), Replicate(), Partial()],
        "paths": [pathlib.PosixPath("/a/b"), pathlib.PurePosixPath("c")],
        "metadata of a distributed checkpoint": metadata.Metadata(
            {
                "w": metadata.TensorStorageMetadata(
                    metadata.TensorProperties(torch.float32),
                    torch.Size([4]),
                    [metadata.ChunkStorageMetadata(torch.Size([0]), torch.Size([4]))],
                ),
                "step": metadata.BytesStorageMetadata(),
            },
            planner_data={"w": ("w",)},
            storage_data={
                metadata.MetadataIndex("w", torch.Size([0]), 0): _StorageInfo("__0_0.distcp", 0, 9),
                metadata.MetadataIndex("step"): _StorageInfo("__0_0.distcp", 9, 9),
            },
            storage_meta=metadata.StorageMeta(pathlib.PosixPath("/x"), "a", None, []),
        ),
    }


VALUES = _values()
_NEW_ONLY = ("buffer", "placements", "metadata of a distributed checkpoint")


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", VALUES)
def test_data_of_training_programs_are_clean(name: str, protocol: int, tmp_path: Path) -> None:
    value = VALUES[name]
    if protocol < 2 and name in _NEW_ONLY:
        pytest.skip("cannot be pickled so")
    found = scanned(pickle.dumps(value, protocol), tmp_path)
    assert found.verdict is Verdict.CLEAN, found.sightings
    if protocol >= 2:
        found = scanned(saved({"a": value}, pickle_protocol=protocol), tmp_path)
        assert found.verdict is Verdict.CLEAN, found.sightings


def _tensors() -> dict[str, Any]:
    dense = torch.arange(6.0).reshape(2, 3)
    tagged = torch.nn.Parameter(dense)
    tagged.extra = {"a": [1, "x"]}  # type: ignore[attr-defined]
    scales, zeros = torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.int64)
    return {
        "dense": dense,
        "parameter": torch.nn.Parameter(dense),
        "with attributes": tagged,
        "buffer": torch.nn.Buffer(dense),
        "conjugated": torch.ones(2, dtype=torch.complex64).conj(),
        "negated": torch.ones(2, dtype=torch.complex64).conj().imag,
        "quantized": torch.quantize_per_tensor(dense, 0.1, 3, torch.quint8),
        "per channel": torch.quantize_per_channel(dense, scales, zeros, 0, torch.qint8),
        "coo": dense.to_sparse(),
        "csr": dense.to_sparse_csr(),
        "csc": dense.to_sparse_csc(),
        "bsr": torch.eye(4).to_sparse_bsr((2, 2)),
        "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        "meta": torch.empty(3, device="meta"),
        "small types": torch.zeros(3).to(torch.float8_e4m3fn),
        "unsigned": torch.zeros(3, dtype=torch.uint16),
        "state dict": torch.nn.Sequential(
            torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)
        ).state_dict(),
        "rng": torch.get_rng_state(),
    }


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    TENSORS = _tensors()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("name", TENSORS)
def test_every_form_of_tensor_is_clean(name: str, new: bool, tmp_path: Path) -> None:
    value = TENSORS[name]
    for protocol in range(2, 6):
        data = saved({"w": value}, _use_new_zipfile_serialization=new, pickle_protocol=protocol)
        found = scanned(data, tmp_path)
        assert found.verdict is Verdict.CLEAN, found


def test_an_optimizer_and_a_scheduler_are_clean(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2, 2])
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "rng": (torch.get_rng_state(), np.random.RandomState(3).get_state()),
    }
    for protocol in range(2, 6):
        assert scanned(saved(state, pickle_protocol=protocol), tmp_path).verdict is Verdict.CLEAN


def test_a_large_state_dict_is_clean(tmp_path: Path) -> None:
    """More dicts than are kept, and attributes set on the first of them at the end."""
    many = collections.OrderedDict((f"w{n}", {"a": n}) for n in range(120_000))
    vars(many)["_metadata"] = {"": {"version": 1}}  # as torch's state_dict() has it
    assert scanned(pickle.dumps(many, 2), tmp_path).verdict is Verdict.CLEAN


def test_what_a_user_allows_is_accepted_with_any_arguments(tmp_path: Path) -> None:
    made = glob("team.Config")
    state = b"}(" + b"".join(short(f"a{n}") + b"K\1" for n in range(40)) + b"%sub."
    for data in (
        made + b")}" + short("a") + b"K\5s\x92.",
        made + b")\x81" + state % b"",
        made + b")\x81(K\1K\2e.",
        made + b")\x81C\1ab.",
    ):
        assert scanned(b"\x80\4" + data, tmp_path, "team.Config").verdict is Verdict.CLEAN, data
    for key in ("__setstate__", "append", "__class__"):
        data = b"\x80\4" + made + b")\x81" + state % (short(key) + HELD)
        assert scanned(data, tmp_path, "team.Config").verdict is Verdict.FOREIGN


def test_a_state_that_is_not_kept_is_not_accepted(tmp_path: Path) -> None:
    state = b"}" + short("__setstate__") + HELD + b"s"
    data = b"\x80\4" + b"]0" * 130_000 + glob("team.Config") + b")\x81" + state + b"b."
    found = scanned(data, tmp_path, "team.Config")
    assert found.verdict is Verdict.NOT_SCANNED, found


def test_a_persistent_id_of_another_form_is_malformed(tmp_path: Path) -> None:
    for reference in (b"K\1)\x86", short("key"), b"(" + short("storage") + b"K\1tN\x86"):
        data = b"\x80\4" + reference + b"Q."
        assert scanned(data, tmp_path).verdict is Verdict.MALFORMED
    out_of_band = b"\x80\5\x97."
    assert scanned(out_of_band, tmp_path).verdict is Verdict.MALFORMED


RUNNING = (
    "torch.storage._load_from_bytes",
    "torch.ops.load_library",
    "torch._ops.load_library",
    "torch.jit.unsupported_tensor_ops.execWrapper",
    "six.exec_",
    "numpy.testing._private.utils.runstring",
    "timeit.timeit",
    "timeit:Timer.timeit",
    "team:os.system",
    "team.tools:subprocess.run",
    "team.tools.eval_expression",
    "torch.utils._config_module.load_config",
    "builtins.getattr",
    "copyreg.__newobj__",
    "joblib.numpy_pickle.NumpyArrayWrapper",
    "joblib.numpy_pickle_compat.ZNDArrayWrapper",
    "_pyrepl.pager.pipe_pager",
    "pkgutil.resolve_name",
    "types.CodeType",
    "cloudpickle.cloudpickle._make_function",
)
HOLDING = (
    "argparse.Namespace",
    "team.Config",
    "team.models:Outer.Inner",
    "team.types.Loader",
    "omegaconf.dictconfig.DictConfig",
    "scipy.sparse._csr.csr_matrix",
    "sklearn.linear_model._base.LinearRegression",
    "datetime.datetime",
)


@pytest.mark.parametrize("name", RUNNING)
def test_what_runs_what_a_file_chooses_cannot_be_allowed(name: str) -> None:
    with pytest.raises(BadRequest, match="cannot be allowed"):
        Allowlist((name,))


@pytest.mark.parametrize("name", HOLDING)
def test_classes_that_hold_data_can_be(name: str, tmp_path: Path) -> None:
    module, _, attribute = name.replace(":", ".").rpartition(".")
    if ":" in name:
        module, _, attribute = name.partition(":")
    data = b"\x80\4" + short(module) + short(attribute) + b"\x93)\x81}" + short("a") + b"K\1sb."
    assert scanned(data, tmp_path).verdict is Verdict.FOREIGN
    assert scanned(data, tmp_path, name).verdict is Verdict.CLEAN


def test_an_object_of_an_allowed_class_may_be_made_as_protocol_0_does(tmp_path: Path) -> None:
    data = b"ccopy_reg\n_reconstructor\n(cteam\nConfig\nc__builtin__\nobject\nNtR(dVa\nI1\nsb."
    assert scanned(data, tmp_path, "team.Config").verdict is Verdict.CLEAN
    assert scanned(data, tmp_path).verdict is Verdict.FOREIGN
    for base in (b"numpy\nndarray\n", b"torch\nTensor\n"):
        other = data.replace(b"__builtin__\nobject\n", base)
        assert scanned(other, tmp_path, "team.Config").verdict is Verdict.FOREIGN


_FUNCTION = b"ctorch.serialization\n_get_layout\n"
_REPORTED = (Verdict.FOREIGN, Verdict.DANGEROUS)
_LATE = {
    "list": b"(" + b"K\1" * 40 + _FUNCTION + b"K\2" * 40 + b"l",
    "appended": b"]" + b"K\1a" * 40 + _FUNCTION + b"aK\2a",
    "extended": b"](" + b"K\1" * 40 + _FUNCTION + b"K\2" * 3 + b"e",
    "tuple": b"(" + b"K\1" * 400 + _FUNCTION + b"t",
}


@pytest.mark.parametrize("how", _LATE)
@pytest.mark.parametrize("name", ["builtins\nset", "builtins\nfrozenset"])
def test_a_function_late_in_a_list_is_seen(how: str, name: str, tmp_path: Path) -> None:
    data = b"\x80\2c" + name.encode() + b"\n" + _LATE[how] + b"\x85R."
    assert len(pickle.loads(data)) == 2 + (how != "tuple")
    assert scanned(data, tmp_path).verdict is Verdict.DANGEROUS  # of the standard library
    plain = data.replace(_FUNCTION, b"ctorch\nfloat32\n")
    assert scanned(plain, tmp_path).verdict is Verdict.CLEAN


def test_a_function_late_in_a_dict_is_seen(tmp_path: Path) -> None:
    items = b"".join(b"K" + bytes((key,)) + b"K\1" for key in range(60))
    dictionary = b"}(" + items + b"X\1\0\0\0a" + _FUNCTION + b"u"
    data = b"\x80\2ccollections\nCounter\n" + dictionary + b"\x85R."
    assert pickle.loads(data)["a"] is torch_names.get_layout
    assert scanned(data, tmp_path).verdict in _REPORTED
    assert scanned(data.replace(_FUNCTION, b"K\1"), tmp_path).verdict is Verdict.CLEAN
