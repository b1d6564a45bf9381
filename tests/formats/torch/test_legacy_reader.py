"""The stream before torch 1.6, against torch.load; and by hand what torch no longer writes."""

import io
import pickle
import struct
import time
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from cgpt_convert.core import findings
from cgpt_convert.core.errors import CgptError, Malformed, Unsupported
from cgpt_convert.formats.torch import legacy_reader
from cgpt_convert.pickles.nodes import Global
from cgpt_convert.sources.local import MemoryBytes
from tests.helpers import torch_names
from tests.helpers.mutations import mutated

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # torch deprecates its own classes
DTYPES = [
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "bool",
    "complex64",
    "complex128",
]


def saved(value):
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(value, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def read(data):
    return legacy_reader.read(MemoryBytes("memory", data))


def loaded(data, **options):
    return torch.load(io.BytesIO(data), **options)


def agree(tensor, expected):
    """The same shape, and the same numbers as torch has in that memory."""
    assert tensor.shape == tuple(expected.shape)
    assert tensor.stored.name == str(expected.dtype).removeprefix("torch.")
    wide = expected.float() if expected.dtype == torch.bfloat16 else expected
    found = torch.from_numpy(tensor.numpy())
    assert torch.equal(found, wide.detach().resolve_conj().resolve_neg().contiguous())


def ids(rule, checkpoint):
    return [finding.detail for finding in checkpoint.findings if finding.rule is rule]


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("shape", [(), (0, 3), (3, 4)])
def test_every_dtype_that_torch_can_reload(name, shape):
    values = (torch.rand(shape) * 100).to(getattr(torch, name))
    data = saved({"x": values})
    agree(read(data)["x"], loaded(data)["x"])
    assert not read(data).findings


@pytest.mark.parametrize("name", ["uint16", "uint64", "float8_e4m3fn", "complex32"])
def test_untyped_storages_which_torch_itself_cannot_reload(name):
    values = torch.arange(6).to(getattr(torch, name))
    data = saved({"x": values})
    with pytest.raises(AttributeError):
        loaded(data, weights_only=False)
    tensor = read(data)["x"]
    assert tensor.stored.name == name
    found = bytearray(tensor.nbytes)
    tensor.storage.readinto(0, memoryview(found))
    assert bytes(found) == bytes(values.untyped_storage().tolist())


def test_views_shared_storages_and_ties():
    base = torch.arange(24.0).reshape(4, 6)
    value = {"a": base, "b": base.t(), "c": base[1:3, ::2], "d": base, "e": base[0].expand(5, 6)}
    data = saved(value)
    checkpoint = read(data)
    for name, expected in loaded(data).items():
        agree(checkpoint[name], expected)
    assert len(checkpoint.storages) == 1
    assert checkpoint.ties == {"d": "a"}


def test_nested_values_parameters_and_lazy_bits():
    number = torch.rand(3, dtype=torch.complex64)
    value = {"model": {"w": torch.nn.Parameter(torch.rand(2, 2))}, "z": number.conj(), "step": 7}
    checkpoint = read(saved(value))
    agree(checkpoint["model.w"], value["model"]["w"])  # type: ignore[index]
    agree(checkpoint["z"], value["z"])
    assert [leaf.value for leaf in checkpoint.others if leaf.path == "step"] == [7]


def test_a_whole_module_gives_its_tensors_and_the_source_saved_with_it():
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    checkpoint = read(saved(module))
    expected = module.state_dict()
    assert list(checkpoint) == list(expected)
    for name, values in expected.items():
        agree(checkpoint[name], values)
    source = {leaf.path: leaf.value for leaf in checkpoint.others}
    assert "class Linear(Module)" in source["source of torch.nn.modules.linear.Linear"][1]
    assert ids(findings.FOREIGN, checkpoint)


def test_quantized_and_sparse_tensors():
    values = torch.rand(4, 5)
    value = {
        "q": torch.quantize_per_tensor(values, 0.1, 0, torch.quint8),
        "s": values.to_sparse(),
    }
    checkpoint = read(saved(value))
    assert checkpoint["q"].stored.name == "quint8"
    assert [part.shape for part in checkpoint.exotic["s"].parts] == [(2, 20), (20,)]


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_every_binary_pickle_protocol(protocol):
    file = io.BytesIO()
    value = {"a": torch.rand(3), "b": torch.ones(2)}
    torch.save(value, file, pickle_protocol=protocol, _use_new_zipfile_serialization=False)
    assert legacy_reader.is_legacy(file.getvalue())
    checkpoint = read(file.getvalue())
    assert list(checkpoint) == ["a", "b"]
    agree(checkpoint["a"], value["a"])


def test_a_pickle_longer_than_the_bytes_tried_first():
    value = {f"layer.{index}.weight": torch.full((2,), float(index)) for index in range(3000)}
    checkpoint = read(saved(value))
    assert len(checkpoint) == 3000
    agree(checkpoint["layer.2999.weight"], value["layer.2999.weight"])


def test_little_endian_data_whatever_the_system_pickle_says():
    data = saved({"x": torch.arange(5.0)})
    big = data.replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89")
    assert big != data
    agree(read(big)["x"], loaded(big)["x"])
    assert ids(findings.BIG_ENDIAN, read(big))


# -- streams by hand


class Reference:
    """An object that is pickled as a persistent id."""

    def __init__(self, *parts):
        self.parts = parts


class Named:
    """A call that pickles without being made."""

    def __init__(self, function, *args, state=None):
        self.reduced = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.reduced


class Pickler(pickle.Pickler):
    def persistent_id(self, obj):
        return obj.parts if isinstance(obj, Reference) else None


def pickled(value, protocol=2):
    file = io.BytesIO()
    Pickler(file, protocol).dump(value)
    return file.getvalue()


SYSTEM = {
    "protocol_version": 1001,
    "little_endian": True,
    "type_sizes": {"short": 2, "int": 4, "long": 4},
}


def stream(value, keys, *data, system=SYSTEM, version=1001, protocol=2):
    head = [legacy_reader.MAGIC, version, system, value, keys]
    body = [struct.pack("<q", numel) + raw for numel, raw in data]
    return b"".join(pickled(part, protocol=protocol) for part in head) + b"".join(body)


def floats(*values):
    return len(values), struct.pack(f"<{len(values)}f", *values)


def storage(key, numel, window=None, cls=torch.FloatStorage, location="cpu"):
    return Reference("storage", cls, key, location, numel, window)


def tensor(where, start, shape, strides):
    return Named(torch_names.rebuild_tensor, where, start, shape, strides)


def test_windows_on_storages_become_views_of_the_root():
    value = {
        "all": tensor(storage("7", 6), 0, (6,), (1,)),
        "part": tensor(storage("7", 6, ("8", 2, 3)), 1, (2,), (1,)),
        "again": tensor(storage("7", 6, ("8", 2, 3)), 1, (2,), (1,)),
        "direct": tensor(storage("7", 6), 3, (2,), (1,)),
    }
    data = stream(value, ["7"], floats(0, 1, 2, 3, 4, 5))
    checkpoint = read(data)
    for name, expected in loaded(data, weights_only=False).items():
        agree(checkpoint[name], expected)
    assert checkpoint.ties == {"again": "part", "direct": "part"}
    assert [s.key for s in checkpoint.storages] == ["7"]


@pytest.mark.parametrize(
    "window", [("8", 4, 3), ("8", -1, 2), ("8", 0, -1), ("8", 1), (8, 0, 1), 5]
)
def test_a_window_that_does_not_fit_is_refused(window):
    value = {"x": tensor(storage("7", 6, window), 0, (1,), (1,))}
    with pytest.raises(Malformed, match="x"):
        read(stream(value, ["7"], floats(*range(6))))


def test_a_window_declared_twice_is_refused():
    value = {
        "x": tensor(storage("7", 6, ("8", 0, 3)), 0, (1,), (1,)),
        "y": tensor(storage("7", 6, ("8", 1, 3)), 0, (1,), (1,)),
    }
    checkpoint = read(stream(value, ["7"], floats(*range(6))))
    assert list(checkpoint) == ["x"]
    assert isinstance(checkpoint.exotic["y"].error, Malformed)
    assert "two different views" in checkpoint.exotic["y"].detail


@pytest.mark.parametrize(
    "wrap",
    [
        lambda data: Named(torch.nn.Parameter, data, state=(True, False, {})),
        lambda data: Named(torch.nn.Parameter, state=(data, None, {}, True, False)),
    ],
)
def test_parameters_as_torch_pickled_them_up_to_0_3(wrap):
    value = {"w": wrap(tensor(storage("7", 6), 0, (2, 3), (3, 1)))}
    data = stream(value, ["7"], floats(*range(6)))
    checkpoint = read(data)
    agree(checkpoint["w"], loaded(data, weights_only=False)["w"])
    assert not checkpoint.findings


def test_a_class_reference_is_the_class():
    class_reference = Reference("module", torch.nn.Linear, "linear.py", "class Linear: ...")
    checkpoint = read(stream({"cls": class_reference}, []))
    leaf = next(leaf for leaf in checkpoint.others if leaf.path == "cls")
    assert isinstance(leaf.value, Global)
    assert str(leaf.value) == "torch.nn.modules.linear.Linear"


def test_text_that_python_2_wrote_as_bytes():
    reference = Reference(b"storage", torch.FloatStorage, b"7", b"cuda:0", 2, None)
    value = {"x": tensor(reference, 0, (2,), (1,))}
    data = stream(value, [b"7"], floats(1, 2), protocol=3)  # the first with bytes of their own
    checkpoint = read(data)
    assert checkpoint["x"].numpy().tolist() == [1, 2]
    assert checkpoint["x"].storage.device == "cuda:0"


X = {"x": tensor(storage("7", 2), 0, (2,), (1,))}


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        (stream(X, ["7"], floats(1, 2, 3)), Malformed, "'7' has 3 elements, the pickle declares 2"),
        (stream(X, ["7"], (-1, bytes(8))), Malformed, "-1 elements"),
        (stream(X, ["7", "7"], floats(1, 2), floats(1, 2)), Malformed, "twice"),
        (stream(X, []), Malformed, "not in the file: '7'"),
        (stream(X, ["7", "8"], floats(1, 2), floats(1)), Malformed, "types are unknown: '8'"),
        (stream(X, [7], floats(1, 2)), Malformed, "the list of storage keys is not valid"),
        (stream(X, {"7": 1}, floats(1, 2)), Malformed, "the list of storage keys is not valid"),
        (stream(X, ["7"], floats(1, 2), version=1002), Unsupported, "protocol version 1002"),
        (stream(X, ["7"], floats(1, 2), system=3), Malformed, "is not a dict"),
        (
            stream(X, ["7"], floats(1, 2), system={"type_sizes": {"int": 8}}),
            Unsupported,
            "has 8 bytes per C int",
        ),
        (stream(Reference("storage"), []), Malformed, "the storage reference"),
        (stream(Reference("module", 3), []), Malformed, "the class reference"),
        (stream(storage("7", -1), ["7"]), Malformed, "the storage reference"),
        (stream(storage("7", 1 << 63), ["7"]), Malformed, "the storage reference"),
        (
            stream(storage("7", 2, cls=dict), ["7"]),
            Unsupported,
            "the storage class .* is not supported",
        ),
        (stream([storage("7", 2), storage("7", 3)], ["7"]), Malformed, "two types or sizes"),
        (stream([storage("7", 2), storage("7", 2, cls=torch.IntStorage)], ["7"]), Malformed, "two"),
        (pickled(3), Malformed, "magic number"),
    ],
)
def test_contradictions_are_refused(data, kind, message):
    with pytest.raises(kind, match=message) as caught:
        read(data)
    assert "memory" in str(caught.value)


def test_empty_storages_at_one_address_may_have_two_types():
    value = [storage("7", 0), storage("7", 0, cls=torch.IntStorage)]
    assert len(read(stream(value, ["7"], (0, b""))).storages) == 1


def test_what_no_tensor_uses_is_said():
    checkpoint = read(stream({"bare": storage("7", 2)}, ["7"], floats(1, 2)) + b"hidden")
    assert ids(findings.UNREFERENCED, checkpoint) == ["8 bytes"]
    assert ids(findings.TRAILING, checkpoint) == ["6 bytes"]


def test_a_payload_in_any_of_the_pickles_is_only_shown():
    data = stream({"x": Named(eval, "1/0")}, [])
    assert read(data).globals == ["__builtin__.eval"]


# -- damage

SAMPLE = saved({"a": torch.arange(6.0), "b": torch.ones(2, 2).t(), "c": [torch.tensor(True), "s"]})


def test_every_truncation_says_so_and_keeps_what_is_whole():
    full = read(SAMPLE)
    for nbytes in range(len(SAMPLE)):
        source = MemoryBytes("cut", SAMPLE[:nbytes])
        with pytest.raises(Malformed, match=r"truncated|ends"):
            legacy_reader.read(source)
        try:
            partial = legacy_reader.read(source, salvage=True)
        except CgptError:
            continue
        assert set(partial.lost) | set(partial) == set(full)
        for name, kept in partial.items():
            assert kept.numpy().tolist() == full[name].numpy().tolist()


def test_the_message_of_a_truncation():
    with pytest.raises(Malformed) as caught:
        read(SAMPLE[:-1])
    size = f"{len(SAMPLE) - 1:,} of at least {len(SAMPLE):,} (99 %)"
    assert f"the file is truncated at byte {size}; 2 of 3 tensors are intact" in str(caught.value)


def test_zeros_at_the_end_are_an_unfinished_download():
    data = saved({"a": torch.ones(8), "b": torch.ones(8), "c": torch.ones(8)})
    full = read(data)
    last = sorted(full.storages, key=lambda s: s.offset)
    data = data[: last[1].offset + 5] + bytes(len(data) - last[1].offset - 5)
    with pytest.raises(Malformed, match="only zeros or damage"):
        read(data)
    partial = legacy_reader.read(MemoryBytes("cut", data), salvage=True)
    assert len(partial) == 1
    assert len(partial.lost) == 2


@settings(max_examples=400, deadline=2000, suppress_health_check=[HealthCheck.too_slow])
@given(mutated(SAMPLE))
def test_damage_is_an_error_of_ours_or_harmless(data):
    for salvage in (False, True):
        try:
            checkpoint = legacy_reader.read(MemoryBytes("damaged", data), salvage=salvage)
        except CgptError:
            continue
        for values in checkpoint.values():
            if values.nbytes < 1 << 20 and values.dtype.numpy:
                values.numpy()


def test_a_length_that_lies_costs_nothing():
    began = time.monotonic()
    lie = b"\x80\x02X\xff\xff\xff\x7f" + b"a" * 100_000
    with pytest.raises(Malformed, match="truncated"):
        read(stream(X, ["7"])[:200].split(pickled(SYSTEM))[0] + pickled(SYSTEM) + lie)
    assert time.monotonic() - began < 1
