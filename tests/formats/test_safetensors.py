"""safetensors: byte for byte the library's files, and no more lenient a reader."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors as library
from huggingface_hub import split_state_dict_into_shards_factory
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.core.errors import BadRequest, CgptError, Malformed, Unsupported
from cgpt_convert.formats.safetensors import reader, writer
from cgpt_convert.sources.local import MemoryBytes
from cgpt_convert.tensors.dtypes import BY_NAME
from tests.helpers import samples
from tests.helpers.render import dense, render, request, tensor_bytes, write

theirs_of: Any = library.deserialize  # untyped: bytes -> [(name, {"shape", "dtype", "data"})]

I8, F32 = BY_NAME["int8"], BY_NAME["float32"]


def opened(data: bytes) -> Checkpoint:
    return reader.from_source(MemoryBytes("f.safetensors", data), "f.safetensors")


def packed(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def ours(*tensors: Any, **rest: Any) -> bytes:
    return render(writer.plan(request("f.safetensors", *tensors, **rest)))["f.safetensors"]


@pytest.mark.slow  # torch
def test_bytes_equal_the_librarys_for_every_type_and_shape() -> None:
    from safetensors.torch import save

    tensors = [t for t in samples.every(writer.DTYPES) if t.shape or t.dtype.name[:6] != "float4"]
    theirs = save({t.name: samples.as_torch(t) for t in tensors}, {"format": "pt"})
    assert ours(*tensors) == theirs


@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=5).filter("__metadata__".__ne__),
        unique=True,
        max_size=5,
    )
)
@example(['"', "\\", "\x00", "\x1f", "\x7f", "é", "🦊", "\u2028", "/", "\b\f\n\r\t"])
@example(["\uffff", "\U00010000"])  # UTF-16 would sort them the other way
def test_bytes_equal_the_librarys_for_any_names(names: list[str]) -> None:
    types = [BY_NAME[name] for name in ("float32", "int8", "bool", "float16")]
    tensors = [samples.tensor(n, types[i % 4], (i,)) for i, n in enumerate(names)]
    theirs = save({t.name: t.numpy() for t in tensors}, {"format": "pt"})
    assert ours(*tensors) == theirs
    assert sorted(opened(theirs)) == sorted(names)


def test_the_library_reads_what_the_metadata_says(tmp_path: Path) -> None:
    data = ours(
        samples.tensor("wte", F32),
        aliases={"lm_head": "wte"},
        metadata={"license": "MIT", "a": "1"},
    )
    (tmp_path / "f").write_bytes(data)
    with safe_open(tmp_path / "f", "np") as found:
        assert found.metadata() == {"format": "pt", "lm_head": "wte", "license": "MIT", "a": "1"}
    keys = list(json.loads(data[8:].split(b"}", 1)[0] + b"}}")["__metadata__"])
    assert keys == sorted(keys)


@pytest.mark.slow  # torch
def test_aliases_are_written_and_read_as_save_model_has_them(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_model

    model = torch.nn.Module()
    model.a = torch.nn.Linear(2, 3, bias=False)
    model.b = model.a
    save_model(model, str(tmp_path / "f.safetensors"), {"format": "pt"})
    found = writer.read(str(tmp_path / "f.safetensors"))
    assert found.ties == {"b.weight": "a.weight"}
    assert found.metadata == {"format": "pt"}
    kept = samples.from_torch("a.weight", model.a.weight.detach())
    with safe_open(tmp_path / "f.safetensors", "pt") as theirs:
        header = theirs.metadata()
    mine = ours(kept, aliases={"b.weight": "a.weight"})
    assert json.loads(mine[8:].split(b"}", 1)[0] + b"}}")["__metadata__"] == header


def test_metadata_that_would_read_as_an_alias_is_refused() -> None:
    wte = samples.tensor("wte", F32)
    for bad in (
        {"metadata": {"best": "wte"}},
        {"aliases": {"x": "wte"}, "metadata": {"x": "y"}},
        {"aliases": {"format": "wte"}},
    ):
        with pytest.raises(Unsupported):
            ours(wte, **bad)
    with pytest.raises(Unsupported, match="reserves"):
        ours(samples.tensor("__metadata__", F32))


def test_a_tensor_named_like_a_framework_has_no_alias() -> None:
    found = opened(ours(samples.tensor("pt", F32)))
    assert list(found) == ["pt"]
    assert found.metadata == {"format": "pt"}


@pytest.mark.slow  # torch
def test_float4_counts_elements_in_the_file_and_bytes_in_torch(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    tensor = samples.tensor("f", BY_NAME["float4_e2m1fn_x2"], (2, 3))
    (tmp_path / "f").write_bytes(ours(tensor))
    assert load_file(tmp_path / "f")["f"].shape == (2, 3)
    assert opened(ours(tensor))["f"].shape == (2, 3)
    scalar = samples.tensor("f", BY_NAME["float4_e2m1fn_x2"], ())
    with pytest.raises(Unsupported, match="float4"):
        ours(scalar)


SIZES = st.lists(st.integers(0, 12), min_size=1, max_size=12)


@given(SIZES, st.integers(1, 20))
@example([6, 6, 2, 6, 2, 2], 10)
@example([2, 30, 2], 10)
@example([0, 0, 12, 0], 1)
def test_shards_are_those_of_huggingface_hub(sizes: list[int], most: int) -> None:
    tensors = [dense(f"t{i}", "int8", (size,), bytes(size)) for i, size in enumerate(sizes)]
    theirs = split_state_dict_into_shards_factory(
        {t.name: t for t in tensors},
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern="m{suffix}.safetensors",
        max_shard_size=most,
    )
    files = render(writer.plan(request("m.safetensors", *tensors, max_shard_nbytes=most)))
    index = files.pop("m.safetensors.index.json", None)
    found = {name: sorted(opened(data)) for name, data in files.items()}
    assert found == {name: sorted(t) for name, t in theirs.filename_to_tensors.items()}
    assert (index is not None) == theirs.is_sharded
    if index:
        content = {"metadata": theirs.metadata, "weight_map": theirs.tensor_to_filename}
        assert index.decode() == json.dumps(content, indent=2, sort_keys=True) + "\n"


def test_an_alias_is_recorded_in_its_keepers_shard() -> None:
    tensors = [samples.tensor(name, I8, (4,)) for name in ("a", "b")]
    plans = writer.plan(
        request("dir/m.safetensors", *tensors, aliases={"c": "b"}, max_shard_nbytes=4)
    )
    files = render(plans)
    assert list(files) == [
        "m-00001-of-00002.safetensors",
        "m-00002-of-00002.safetensors",
        "m.safetensors.index.json",
    ]
    assert list(opened(files["m-00001-of-00002.safetensors"])) == ["a"]
    assert opened(files["m-00002-of-00002.safetensors"]).ties == {"c": "b"}


@pytest.mark.slow  # torch
def test_transformers_loads_our_shards(tmp_path: Path) -> None:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=8, n_embd=8, n_layer=1, n_head=2))
    state = {k: v for k, v in model.state_dict().items() if k != "lm_head.weight"}
    tensors = [samples.from_torch(name, value) for name, value in state.items()]
    plans = writer.plan(
        request(
            "model.safetensors",
            *tensors,
            aliases={"lm_head.weight": "transformer.wte.weight"},
            max_shard_nbytes=2000,
        )
    )
    assert len(plans) > 2
    write(render(plans), tmp_path)
    model.config.save_pretrained(tmp_path)
    back = GPT2LMHeadModel.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(back[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("most", [0, -1])
def test_a_shard_size_below_one_is_refused(most: int) -> None:
    with pytest.raises(BadRequest, match="less than 1 byte"):
        writer.plan(request("m.safetensors", max_shard_nbytes=most))


def test_a_header_that_no_reader_takes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "HEADER_BYTES", 100)
    with pytest.raises(Unsupported, match="header"):
        ours(*(samples.tensor(str(i), I8) for i in range(9)))


def entry(*offsets: int, dtype: object = "I8", shape: object = None) -> dict[str, object]:
    return {"dtype": dtype, "shape": [offsets[1] - offsets[0]] if shape is None else shape,
            "data_offsets": list(offsets)}  # fmt: skip


GOOD = entry(0, 2)
DEEP = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"

MALFORMED = {
    "empty file": b"",
    "seven bytes": b"\x02\0\0\0\0\0\0",
    "header too large": (100_000_001).to_bytes(8, "little") + b"{}",
    "header length overflows": b"\xff" * 8 + b"{}",
    "header cut off": (9).to_bytes(8, "little") + b"{}",
    "empty header": bytes(8),
    "leading space": packed(b" {}"),
    "not JSON": packed(b"{"),
    "an array": packed(b"[]"),
    "zero padding": packed(b"{}\0\0"),
    "not UTF-8": packed(b'{"\xff":{}}'),
    "surrogate": packed({"\ud800": GOOD}, b"ab"),
    "nesting": packed(DEEP),
    "NaN": packed(b'{"a":NaN}'),
    "float offset": packed(b'{"a":{"dtype":"I8","shape":[2],"data_offsets":[0,2.0]}}', b"ab"),
    "minus zero": packed(b'{"a":{"dtype":"I8","shape":[2],"data_offsets":[-0,2]}}', b"ab"),
    "huge number": packed(b'{"a":' + b"9" * 10_000 + b"}"),
    "name twice": packed(
        b'{"a":{"dtype":"I8","shape":[2],"data_offsets":[0,2]},'
        b'"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}',
        b"ab",
    ),
    "field twice": packed(
        b'{"a":{"dtype":"I8","shape":[2],"shape":[2],"data_offsets":[0,2]}}', b"ab"),
    "hole at the start": packed({"a": entry(1, 2)}, b"ab"),
    "hole": packed({"a": entry(0, 1), "b": entry(2, 3)}, b"abc"),
    "overlap": packed({"a": entry(0, 2), "b": entry(1, 3)}, b"abc"),
    "shared bytes": packed({"a": entry(0, 2), "b": entry(0, 2)}, b"ab"),
    "file too long": packed({"a": GOOD}, b"abc"),
    "file too short": packed({"a": GOOD}, b"a"),
    "data without tensors": packed({}, b"a"),
    "size too small": packed({"a": entry(0, 2, shape=[3])}, b"ab"),
    "size too large": packed({"a": entry(0, 2, shape=[1])}, b"ab"),
    "backwards": packed({"a": entry(2, 0, shape=[2])}, b"ab"),
    "bool dim": packed({"a": entry(0, 1, shape=[True])}, b"a"),
    "bool offset": packed({"a": {**entry(0, 1), "data_offsets": [False, True]}}, b"a"),
    "negative dim": packed({"a": entry(0, 1, shape=[-1, -1])}, b"a"),
    "overflow": packed({"a": entry(0, 0, shape=[1 << 62, 1 << 62, 0])}),
    "overflow to zero": packed({"a": entry(0, 0, shape=[1 << 32, 1 << 32])}),
    "three offsets": packed({"a": entry(0, 2, 2)}, b"ab"),
    "offsets no list": packed({"a": {**GOOD, "data_offsets": {"0": 2}}}, b"ab"),
    "shape null": packed(b'{"a":{"dtype":"I8","shape":null,"data_offsets":[0,2]}}', b"ab"),
    "missing field": packed({"a": {"dtype": "I8", "shape": [2]}}, b"ab"),
    "entry no object": packed({"a": 1}),
    "metadata number": packed({"__metadata__": {"a": 1}}),
    "metadata nested": packed({"__metadata__": {"a": {}}}),
    "metadata list": packed({"__metadata__": ["a"]}),
    "half a byte": packed({"a": entry(0, 2, dtype="F4", shape=[3])}, b"ab"),
}  # fmt: skip
UNSUPPORTED = {
    "unknown type": packed({"a": entry(0, 2, dtype="X9")}, b"ab"),
    "type is a number": packed({"a": entry(0, 2, dtype=1)}, b"ab"),
    "float6": packed({"a": entry(0, 3, dtype="F6_E2M3", shape=[4])}, b"abc"),
    "float4 rows of odd length": packed({"a": entry(0, 3, dtype="F4", shape=[2, 3])}, b"abc"),
    "rank": packed({"a": entry(0, 1, shape=[1] * 65)}, b"a"),
    "unknown field": packed({"a": {**GOOD, "scale": 1}}, b"ab"),
}
STRICTER = {"leading space", "name twice", "unknown field", "overflow", "rank", "float6",
            "float4 rows of odd length"}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
def test_contradictions_are_malformed(case: str) -> None:
    with pytest.raises(Malformed) as caught:
        opened(MALFORMED[case])
    assert caught.value.where.startswith("f.safetensors")


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_the_unknown_is_unsupported(case: str) -> None:
    with pytest.raises(Unsupported):
        opened(UNSUPPORTED[case])


@pytest.mark.parametrize("case", sorted((MALFORMED | UNSUPPORTED).keys() - STRICTER))
def test_the_library_refuses_it_too(case: str) -> None:
    with pytest.raises(SafetensorError):
        theirs_of((MALFORMED | UNSUPPORTED)[case])


def test_a_header_of_too_many_values_is_refused_before_it_costs_memory() -> None:
    with pytest.raises(Unsupported, match="values"):
        opened(packed(b'{"a":[' + b"[]," * 6_000_000 + b"1]}"))


def test_files_of_other_writers_are_read_in_the_order_of_their_data() -> None:
    header = {"b": entry(2, 3), "__metadata__": None, "a": entry(0, 2)}
    found = opened(packed(json.dumps(header).encode() + b" \n\t", b"xyz"))
    assert [(name, tensor_bytes(tensor)) for name, tensor in found.items()] == [
        ("a", b"xy"),
        ("b", b"z"),
    ]
    assert len(found.storages) == 2


SAMPLE = ours(
    samples.tensor("wte", F32),
    samples.tensor("h.0.bias", BY_NAME["bfloat16"], (4,)),
    samples.tensor("empty", BY_NAME["int64"], (0, 2)),
    aliases={"lm_head": "wte"},
    metadata={"license": "MIT"},
)


@settings(max_examples=400)
@given(st.data())
def test_a_mutated_file_is_read_or_refused_and_never_where_the_library_refuses(
    data: st.DataObject,
) -> None:
    mutated = bytearray(SAMPLE)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(mutated) - 1))
        piece = data.draw(
            st.binary(max_size=4) | st.sampled_from([b"0", b"-", b"9" * 20, b"[", b","])
        )
        mutated[at : at + data.draw(st.integers(0, 4))] = piece
    try:
        found = opened(bytes(mutated))
    except CgptError:
        return
    if found.exotic:  # of a type that neither knows: the library rejects the whole file
        return
    theirs = dict(theirs_of(bytes(mutated)))
    assert {name for name in found if name not in found.ties} == set(theirs)
    for name, value in theirs.items():
        assert tensor_bytes(found[name]) == bytes(value["data"])


@given(st.binary(max_size=200))
def test_noise_is_refused(noise: bytes) -> None:
    for data in (noise, packed(noise), packed(b"{" + noise)):
        try:
            opened(data)
        except CgptError:
            continue
        theirs_of(data)
