"""torch: byte for byte torch.save's files less their id; torch and zipfile read them."""

import io
import json
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.serialization import config

from cgpt_convert.archives.zip_archive import open_archive
from cgpt_convert.archives.zip_directory import find_end
from cgpt_convert.core.errors import Unsupported
from cgpt_convert.formats.open import open_checkpoint
from cgpt_convert.formats.torch import writer, zip_layout
from cgpt_convert.sources.local import MemoryBytes
from cgpt_convert.tensors.dtypes import BY_NAME, TABLE
from cgpt_convert.tensors.tensor import Tensor
from cgpt_convert.writing.writer import WriteOptions, write_files
from tests.helpers import samples
from tests.helpers.render import dense, render, request, tensor_bytes, write

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")

F32, I8 = BY_NAME["float32"], BY_NAME["int8"]
QUANTIZED = [row for row in TABLE if row.kind == "q"]
EVERY = samples.every(writer.DTYPES)
TIES = {"tied": "float32.0", "scalar": "uint16.1", "none": "bool.2"}


def ours(*tensors: Tensor, **rest: Any) -> bytes:
    return render(writer.plan(request("dir/m.bin", *tensors, **rest)))["m.bin"]


def theirs(
    tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None, file: Any = None
) -> bytes:
    state = OrderedDict(tensors)
    if metadata:
        state.metadata = metadata  # type: ignore[attr-defined]
    file = file or io.BytesIO()
    torch.save(state, file)
    return without_id(file.getvalue())


def without_id(data: bytes) -> bytes:
    """The archive less its last record, `.data/serialization_id`."""
    source = MemoryBytes("theirs", data)
    last = list(open_archive(source).members.values())[-1]
    assert last.name == "archive/.data/serialization_id"
    end = find_end(source)
    central = data.rindex(b"PK\1\2", 0, end.offset + end.nbytes)
    directory = data[end.offset : central]
    closing = zip_layout.end_record(end.entries - 1, len(directory), last.header_offset)
    assert (
        zip_layout.end_record(end.entries, end.nbytes, end.offset)
        == data[end.offset + end.nbytes :]
    )
    return data[: last.header_offset] + directory + closing


def as_torch(*tensors: Tensor) -> dict[str, torch.Tensor]:
    return {tensor.name: samples.as_torch(tensor) for tensor in tensors}


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Bit for bit; NaNs included."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return torch.equal(*(t.reshape(-1).view(torch.uint8) for t in (one, other)))


# the bytes of torch.save


@pytest.mark.parametrize("dtype", writer.DTYPES, ids=lambda dtype: dtype.name)
def test_bytes_are_those_of_torch_save_for_every_type_and_shape(dtype: Any) -> None:
    tensors = samples.every([dtype])
    assert ours(*tensors) == theirs(as_torch(*tensors))


def test_bytes_are_those_of_torch_save_for_all_types_at_once() -> None:
    assert ours(*EVERY) == theirs(as_torch(*EVERY))


def test_bytes_are_those_of_torch_save_with_ties_and_metadata() -> None:
    state = as_torch(*EVERY)
    state |= {alias: state[kept].detach() for alias, kept in TIES.items()}
    metadata = {"license": "Apache-2.0", "größe 🦊": 'a\n"b"'}
    assert ours(*EVERY, aliases=TIES, metadata=metadata) == theirs(state, metadata)
    assert ours(metadata={"k": "v"}) == theirs({}, {"k": "v"})


@pytest.mark.parametrize("count", [0, 1, 2, 999, 1000, 1001, 2000, 2001])
def test_bytes_are_those_of_torch_save_for_any_number_of_tensors(count: int) -> None:
    tensors = [dense(f"layers.{i}", "int8", (1,), b"x") for i in range(count)]
    assert ours(*tensors) == theirs(as_torch(*tensors))


@pytest.mark.parametrize("shape", [(255, 1), (256,), (65535,), (65536,), (1, 2, 3, 4, 5), (1,) * 9])
def test_bytes_are_those_of_torch_save_for_numbers_of_all_lengths(shape: tuple[int, ...]) -> None:
    tensor = samples.tensor("w", I8, shape)
    assert ours(tensor) == theirs(as_torch(tensor))


@pytest.mark.parametrize("size", [(1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 39, 1 << 40])
def test_large_numbers_are_pickled_as_torch_pickles_them(size: int) -> None:
    shape = (0, size)
    tensor = dense("w", "int8", shape, b"")
    assert ours(tensor) == theirs({"w": torch.empty(shape, dtype=torch.int8)})


@settings(deadline=None)
@given(st.dictionaries(st.text(st.characters(codec="utf-8")), st.sampled_from(EVERY), max_size=9))
def test_any_names_give_what_torch_reads(chosen: dict[str, Tensor]) -> None:
    tensors = [tensor.renamed(name) for name, tensor in chosen.items()]
    state = torch.load(io.BytesIO(ours(*tensors)), weights_only=True)
    assert list(state) == list(chosen)
    assert all(same(state[t.name], samples.as_torch(t)) for t in tensors)


# what torch and zipfile read


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("calculated", [False, True])
def test_torch_reads_everything(
    mmap: bool, calculated: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # torch then compares where it expects each storage with where it is
    monkeypatch.setenv("TORCH_SERIALIZATION_DEBUG", "1")
    path = tmp_path / "m.bin"
    path.write_bytes(ours(*EVERY, aliases=TIES, metadata={"license": "MIT"}))
    with config.patch("load.calculate_storage_offsets", calculated):  # type: ignore[attr-defined]
        state = torch.load(path, weights_only=True, mmap=mmap)
    assert type(state) is OrderedDict
    assert list(state) == [*(t.name for t in EVERY), *TIES]
    assert state.metadata == {"license": "MIT"}  # type: ignore[attr-defined]
    for tensor in EVERY:
        assert same(state[tensor.name], samples.as_torch(tensor))
        assert state[tensor.name].is_contiguous()
        assert not state[tensor.name].requires_grad
    for alias, kept in TIES.items():
        assert same(state[alias], state[kept])
        assert state[alias].data_ptr() == state[kept].data_ptr()
    stored = {state[t.name].untyped_storage().data_ptr() for t in EVERY if t.nbytes}
    assert len(stored) == sum(t.nbytes > 0 for t in EVERY)


def test_zipfile_finds_no_fault_and_data_is_aligned() -> None:
    data = ours(*EVERY)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        assert archive.read("archive/.storage_alignment") == b"64"
        for index, tensor in enumerate(EVERY):
            assert archive.read(f"archive/data/{index}") == tensor_bytes(tensor)
    members = open_archive(MemoryBytes("m.bin", data)).members.values()
    assert all(member.offset % 64 == 0 for member in members)


def test_our_own_reader_finds_nothing_odd(tmp_path: Path) -> None:
    write({"m.bin": ours(*EVERY, aliases=TIES)}, tmp_path)
    found = open_checkpoint(tmp_path / "m.bin")
    assert not found.findings
    assert not found.others
    assert found.ties == TIES
    assert all(t.storage.crc32 is not None for t in found.values())


def test_views_casts_and_lazy_bits_are_written_out() -> None:
    base = torch.arange(24.0).reshape(4, 6) * (1 + 2j)
    view = samples.from_torch("v", base.t()[1:5:2])
    lazy = Tensor(
        "c", view.stored, view.shape, view.strides, view.start, view.storage, conj=True, neg=True
    )
    cast = samples.from_torch("h", torch.arange(6.0).reshape(2, 3).t()).cast(BY_NAME["bfloat16"])
    state = torch.load(io.BytesIO(ours(view, lazy, cast)), weights_only=True)
    expected = base.t()[1:5:2]
    assert torch.equal(state["v"], expected)
    assert torch.equal(state["c"], -expected.conj())
    assert torch.equal(state["h"], torch.arange(6.0).reshape(2, 3).t().bfloat16())
    assert state["v"].untyped_storage().nbytes() == view.nbytes


def test_the_name_of_the_output_does_not_change_the_bytes() -> None:
    tensor = samples.tensor("w", F32)
    one, other = (render(writer.plan(request(name, tensor))) for name in ("ä.pth", "b/c.bin"))
    assert list(one.values()) == list(other.values())
    assert (list(one), list(other)) == (["ä.pth"], ["c.bin"])


def test_quantized_tensors_are_all_refused() -> None:
    tensors = [samples.tensor(row.name, row) for row in QUANTIZED]
    with pytest.raises(Unsupported, match="qint8") as caught:
        writer.plan(request("m.bin", *tensors, samples.tensor("w", F32)))
    assert all(f"'{row.name}' ({row.name})" in caught.value.message for row in QUANTIZED)


def test_a_tensor_named_metadata_is_no_metadata(tmp_path: Path) -> None:
    nested = OrderedDict(y=torch.zeros(1))
    nested.metadata = {"c": "d"}  # type: ignore[attr-defined]
    torch.save({"metadata": {"a": "b"}, "nested": nested}, tmp_path / "m.bin")
    assert writer.read(str(tmp_path / "m.bin")).metadata == {}
    both = ours(samples.tensor("metadata", F32), metadata={"k": "v"})
    write({"n.bin": both}, tmp_path)
    found = writer.read(str(tmp_path / "n.bin"))
    assert list(found) == ["metadata"]
    assert found.metadata == {"k": "v"}


def test_the_sink_writes_what_is_planned(tmp_path: Path) -> None:
    plans = writer.plan(request("m.bin", *EVERY, aliases=TIES))
    write_files(plans, str(tmp_path), WriteOptions())
    assert (tmp_path / "m.bin").read_bytes() == ours(*EVERY, aliases=TIES)


def test_planning_and_reading_do_not_import_torch(tmp_path: Path) -> None:
    write({"m.bin": ours(*EVERY)}, tmp_path)
    script = """
import sys
from cgpt_convert.formats import registry as formats
from cgpt_convert.plan import Request
formats.by_name("torch").planned(Request("m.bin", ()))
formats.by_name("torch").read(sys.argv[1])
heavy = {"torch", "numpy", "zipfile", "pathlib", "hashlib"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", script, tmp_path / "m.bin"], check=True)


# shards


def test_shards_are_those_of_huggingface_hub(tmp_path: Path) -> None:
    shapes = {"a": (6,), "b": (6,), "c": (2,), "huge": (30,), "d": (6,), "e": (2,), "f": (2,)}
    tensors = [samples.tensor(name, I8, shape) for name, shape in shapes.items()]
    state = as_torch(*tensors)
    state["tied"] = state["b"].detach()
    split = split_torch_state_dict_into_shards(
        state, filename_pattern="pytorch_model{suffix}.bin", max_shard_size=10
    )
    aliases = {"tied": "b"}
    plans = writer.plan(
        request("pytorch_model.bin", *tensors, aliases=aliases, max_shard_nbytes=10)
    )
    files = render(plans)
    write(files, tmp_path)
    index = json.loads(files.pop("pytorch_model.bin.index.json"))
    assert index == {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
    for name, data in files.items():
        loaded = torch.load(io.BytesIO(data), weights_only=True)
        assert sorted(loaded) == sorted(split.filename_to_tensors[name])
        assert all(same(value, state[key]) for key, value in loaded.items())
    found = open_checkpoint(tmp_path)
    assert sorted(found) == sorted(state)
    assert found.ties == aliases
    assert not found.findings


@pytest.mark.parametrize(
    ("name", "shard", "index"),
    [
        ("m.pt", "m-00001-of-00002.pt", "m.pt.index.json"),
        ("M.BIN", "M-00001-of-00002.BIN", "M.BIN.index.json"),
        ("m.v2", "m.v2-00001-of-00002.bin", "m.v2.bin.index.json"),
    ],
)
def test_shards_have_the_suffix_of_the_output(name: str, shard: str, index: str) -> None:
    tensors = [samples.tensor(name, I8, (4,)) for name in ("a", "b")]
    plans = writer.plan(request(f"dir.pth/{name}", *tensors, max_shard_nbytes=4))
    assert [plans[0].path, plans[-1].path] == [shard, index]


@pytest.mark.parametrize("most", [None, 2000])
def test_transformers_loads_our_files(most: int | None, tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=8, n_embd=8, n_layer=1, n_head=2))
    state = {k: v for k, v in model.state_dict().items() if k != "lm_head.weight"}
    tensors = [samples.from_torch(name, value) for name, value in state.items()]
    aliases = {"lm_head.weight": "transformer.wte.weight"}
    name = "pytorch_model.bin"
    plans = writer.plan(request(name, *tensors, aliases=aliases, max_shard_nbytes=most))
    assert (len(plans) > 2) == (most is not None)
    write(render(plans), tmp_path)
    model.config.save_pretrained(tmp_path)
    back = GPT2LMHeadModel.from_pretrained(tmp_path, use_safetensors=False).state_dict()
    assert all(torch.equal(back[name], value) for name, value in model.state_dict().items())
