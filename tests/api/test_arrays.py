"""Dicts of arrays and tensors as a source of the public functions; safetensors is the oracle."""

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from cgpt_convert import BadRequest, CgptError, convert, diff, digest, open_checkpoint, verify
from cgpt_convert.api.arrays import in_memory
from tests.helpers.torch_agreement import ignore_deprecation
from tests.helpers.torch_save import saved

DTYPES = ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?", "c8"]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_written_as_safetensors_has_it(tmp_path, dtype, order):
    values = np.random.default_rng(0).integers(0, 2, (4, 3)) * 3
    array = values.astype(np.dtype(dtype).newbyteorder(order))
    state = {
        "w": array,
        "t": array.T,
        "step": array[::2, ::-1],
        "none": array[:0],
        "one": array[1, 2],
    }
    convert(state, tmp_path / "out.safetensors", tied="copy")
    written = load_file(tmp_path / "out.safetensors")
    assert written.keys() == state.keys()
    for name, expected in state.items():
        assert written[name].dtype == np.dtype(dtype)
        assert written[name].shape == np.shape(expected)
        assert np.array_equal(written[name], expected)


def test_the_file_is_that_of_a_saved_checkpoint(tmp_path):
    state = {"a": np.arange(12, dtype="<f4").reshape(3, 4), "b": np.ones(5, "<f2")}
    save_file(state, tmp_path / "one.safetensors")
    convert(tmp_path / "one.safetensors", tmp_path / "two.safetensors")
    convert(state, tmp_path / "three.safetensors", verify=True)
    assert (tmp_path / "two.safetensors").read_bytes() == (
        tmp_path / "three.safetensors"
    ).read_bytes()
    assert digest(state).digest == digest(tmp_path / "one.safetensors").digest
    assert verify(state, tmp_path / "two.safetensors")
    assert diff(state, tmp_path / "two.safetensors").equal
    state["a"][1, 1] += 1
    assert not verify(state, tmp_path / "two.safetensors")
    assert not diff(state, tmp_path / "two.safetensors").equal


@pytest.mark.slow  # torch
def test_casts_are_torchs(tmp_path):
    import torch
    from safetensors.torch import load_file as load_torch

    array = np.random.default_rng(0).standard_normal((50, 20), "<f4")
    convert({"w": array, "n": np.arange(3)}, tmp_path / "out.safetensors", dtype="bfloat16")
    written = load_torch(tmp_path / "out.safetensors")
    assert torch.equal(written["w"], torch.from_numpy(array).bfloat16())
    assert torch.equal(written["n"], torch.arange(3))


def test_names_of_one_array_are_tied(tmp_path):
    array = np.ones((3, 2), "<f4")
    equal = array.copy()
    made = convert({"a": array, "b": array, "c": equal, "t": array.T}, tmp_path / "o.safetensors")
    assert made.aliases == {"b": "a"}
    with safe_open(tmp_path / "o.safetensors", "np") as file:
        assert set(file.keys()) == {"a", "c", "t"}
    assert in_memory({"a": array[:0], "b": array[:0]}).ties == {}


def test_tensors_of_a_checkpoint_are_taken_with_arrays(tmp_path):
    weight = np.random.default_rng(0).standard_normal((8, 4), "<f4")
    (tmp_path / "model.bin").write_bytes(saved({"w": weight}))
    checkpoint = open_checkpoint(tmp_path / "model.bin")
    state = {"rows": checkpoint["w"][2:5], "half": checkpoint["w"].cast("float16"), "x": np.ones(2)}
    convert(state, tmp_path / "out.safetensors")
    written = load_file(tmp_path / "out.safetensors")
    assert np.array_equal(written["rows"], weight[2:5])
    assert np.array_equal(written["half"], weight.astype("<f2"))
    assert np.array_equal(written["x"], np.ones(2))


def test_the_file_of_a_tensor_in_a_dict_is_not_overwritten(tmp_path):
    (tmp_path / "model.bin").write_bytes(saved({"w": np.ones(3)}))
    before = (tmp_path / "model.bin").read_bytes()
    state = {"x": open_checkpoint(tmp_path / "model.bin")["w"], "y": np.ones(2)}
    with pytest.raises(BadRequest, match="the output would replace the input"):
        convert(state, tmp_path / "model.bin", overwrite=True)
    assert (tmp_path / "model.bin").read_bytes() == before


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"w": [1.0, 2.0]}, "is a list"),
        ({"w": {"a": np.ones(2)}}, "is a dict"),
        ({"w": None}, "NoneType"),
        ({1: np.ones(2)}, "1 is not a string"),
        ({"w": np.array(["a"])}, "str"),
        ({"w": np.array([None])}, "object"),
        ({"w": np.zeros(2, "f4,i4")}, "void"),
        ({"w": np.zeros(2, "M8[s]")}, "datetime"),
        ({"w": np.zeros(2, "V2")}, "void"),
        ({"w": np.ma.masked_array([1.0], [True])}, "masked"),
    ],
)
def test_other_values_are_rejected(tmp_path, state, message):
    with pytest.raises(BadRequest, match=message):
        convert(state, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_an_empty_dict_has_no_tensors(tmp_path):
    with pytest.raises(CgptError, match="no tensors"):
        convert({}, tmp_path / "out.safetensors")


def test_no_configuration_of_the_working_folder_is_taken(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CgptError):
        convert({"w": np.ones(2)}, "model.gguf")
    with pytest.raises(BadRequest, match="mapping"):
        convert({"w": np.ones(2)}, "out.safetensors", mapping="111M")


def test_arrays_are_not_copied():
    array = np.ones((3, 2), "<f4")
    tensors = in_memory({"w": array, "t": array.T})
    array[0, 1] = 7
    assert tensors["w"].numpy()[0, 1] == 7
    assert tensors["t"].numpy()[1, 0] == 7


@pytest.mark.slow  # torch
def test_tensors_of_torch_are_written_as_safetensors_writes_them(tmp_path):
    import torch
    from safetensors.torch import load_file as load_torch

    embedding = torch.nn.Parameter(torch.randn(7, 5))
    state = {
        "wte": embedding,
        "head": embedding,
        "turned": torch.randn(4, 6).T,
        "step": torch.arange(10)[::3],
        "half": torch.randn(3).bfloat16(),
        "byte": torch.randn(4).to(torch.float8_e4m3fn),
        "flag": torch.tensor(True),
        "none": torch.empty(0, 3),
        "complex": torch.randn(3, dtype=torch.complex64).conj(),
        "array": np.arange(3),
    }
    made = convert(state, tmp_path / "out.safetensors", verify=True)
    assert made.aliases == {"head": "wte"}
    written = load_torch(tmp_path / "out.safetensors")
    assert written.keys() == state.keys() - {"head"}
    for name, tensor in written.items():
        expected = torch.as_tensor(state[name])
        assert (tensor.dtype, tensor.shape) == (expected.dtype, expected.shape)
        assert np.array_equal(octets(tensor), octets(expected))
    assert verify(state, tmp_path / "out.safetensors")
    with torch.no_grad():
        embedding[0, 0] += 1
    assert not verify(state, tmp_path / "out.safetensors")


def octets(tensor):
    import torch

    return tensor.detach().resolve_conj().contiguous().reshape(-1).view(torch.uint8).numpy()


@ignore_deprecation
@pytest.mark.slow  # torch
def test_tensors_of_torch_without_an_array_of_values_are_rejected(tmp_path):
    import torch

    for tensor, kind in (
        (torch.eye(3).to_sparse(), "sparse_coo"),
        (torch.empty(3, device="meta"), "meta"),
        (torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "quantized"),
    ):
        with pytest.raises(BadRequest, match=f"'w' is a {kind} tensor"):
            convert({"w": tensor}, tmp_path / "out.safetensors")


@pytest.mark.slow  # torch
def test_types_are_those_of_torch_and_numpy_too(tmp_path):
    import torch

    source: dict[str, np.ndarray] = {"w": np.linspace(0, 1, 7, dtype="<f4")}
    written = set()
    for number, dtype in enumerate(("float16", np.float16, np.dtype("<f2"), torch.float16)):
        convert(source, tmp_path / f"{number}.npz", dtype=dtype)
        written.add((tmp_path / f"{number}.npz").read_bytes())
    assert len(written) == 1
    opened = open_checkpoint(tmp_path / "0.npz")["w"]
    assert np.array_equal(opened.numpy(), source["w"].astype("<f2"))
    assert opened.cast(np.float32).dtype == opened.cast("float32").dtype
    assert repr(opened.dtype) == "<DType float16>"
    with pytest.raises(BadRequest, match="int8"):
        opened.cast(torch.int8)


def test_a_shard_size_can_be_a_text(tmp_path):
    source = {"a": np.ones(1000), "b": np.ones(1000)}
    made = convert(source, tmp_path / "m.safetensors", max_shard_size="10kB")
    assert len(made.files) == 3
    with pytest.raises(BadRequest, match="not a size"):
        convert(source, tmp_path / "n.safetensors", max_shard_size="much")
