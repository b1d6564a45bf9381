"""model.properties and its raw files, read by an imitation of the program that wants them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from cgpt_convert import open_checkpoint
from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.core.errors import Unsupported
from cgpt_convert.targets.java_program import properties
from cgpt_convert.targets.java_program.properties import PropertiesFiles
from cgpt_convert.tensors.tensor import Tensor, replace
from cgpt_convert.writing.writer import WriteOptions, write_folder
from tests.helpers import vendor
from tests.helpers.bpe import change
from tests.helpers.java_program import Program
from tests.helpers.java_program import properties as parsed

WILD = json.loads((Path(__file__).parents[2] / "data/wild_mappings.json").read_text())
IDS = [(37 * number) % vendor.TINY.vocab_size for number in range(40)]
# the raw names, typed from demo-gpt-java's models/CEREBRAS/111M/model.properties
IN_LAYER = {
    "ln_1": "att.norm",
    "attn.c_attn": "att.query.key.value",
    "attn.c_proj": "att.proj",
    "ln_2": "mlp.norm",
    "mlp.c_fc": "mlp.layer1",
    "mlp.c_proj": "mlp.layer2",
}


def source(
    folder: Path, state: vendor.State, shape: vendor.Shape = vendor.TINY, **config: Any
) -> Path:
    """A model folder that holds `state`; its activation is the program's unless it is given."""
    folder.mkdir(exist_ok=True)
    vendor.save(state, folder / "pytorch_model.bin")
    said = {"activation_function": "gelu_new", "eos_token_id": 7} | config
    change(vendor.write_config(shape, folder), **said)
    return folder


def export(folder: Path, out: Path) -> PropertiesFiles:
    exported = properties.plan(open_checkpoint(folder))
    write_folder(exported.model_folder(), str(out), WriteOptions())
    return exported


def said(exported: PropertiesFiles) -> dict[str, str]:
    (text,) = exported.properties.parts
    assert isinstance(text, bytes)
    lines = [line for line in text.decode("ascii").splitlines() if line]
    return dict(line.split(" = ") for line in lines)


def raw_name(name: str) -> str:
    """`file.X` of a parameter under its canonical name."""
    outside = {"wte.weight": "input/wte", "wpe.weight": "input/wpe"}
    outside |= {"ln_f.weight": "output/norm.w", "ln_f.bias": "output/norm.b"}
    bare = name.removeprefix("transformer.")
    if bare in outside:
        return f"file.{outside[bare]}"
    number, inner = bare.removeprefix("h.").split(".", 1)
    module, kind = inner.rsplit(".", 1)
    return f"file.decoder{int(number) + 1}/{IN_LAYER[module]}.{kind[0]}"


def expected(state: vendor.State, activation: str = "gelu_new") -> np.ndarray[Any, Any]:
    """transformers' logits of the same tensors."""
    config = GPT2Config(**vendor.TINY._asdict(), activation_function=activation)
    model = GPT2LMHeadModel(config).eval()
    named = {
        name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}": tensor
        for name, tensor in state.items()
        if not name.endswith((".attn.bias", ".attn.masked_bias"))
    }
    model.load_state_dict(named, strict=False)
    model.tie_weights()
    with torch.no_grad():
        logits: np.ndarray[Any, Any] = model(torch.tensor([IDS])).logits[0].numpy()
    return logits


@pytest.mark.parametrize("layout", vendor.LAYOUTS)
def test_the_program_gives_transformers_logits(tmp_path: Path, layout: str) -> None:
    state = vendor.state_dict(vendor.TINY, layout)
    exported = export(source(tmp_path / "source", state), tmp_path / "out")
    program = Program(tmp_path / "out")
    merged = layout == "cs"
    assert program.said["merged.qkv"] == str(merged).lower()
    assert program.said["weights.transposed"] == str(not merged).lower()
    assert np.abs(program.logits(IDS) - expected(state)).max() < 1e-5
    assert any("contain second copies of tensors" in line for line in exported.lines) != merged


def test_raw_copies_of_contiguous_weights_would_be_wrong(tmp_path: Path) -> None:
    """The imitation tells: reading the other order gives other logits, without an error."""
    state = vendor.state_dict(vendor.TINY, "hf")
    export(source(tmp_path / "source", state), tmp_path / "out")
    file = tmp_path / "out/model.properties"
    file.write_text(file.read_text().replace("transposed = true", "transposed = false"))
    assert np.abs(Program(tmp_path / "out").logits(IDS) - expected(state)).max() > 1e-2


def test_the_exact_gelu_is_approximated_and_said(tmp_path: Path) -> None:
    state = vendor.state_dict(vendor.TINY)
    folder = source(tmp_path / "source", state, activation_function="gelu")
    exported = export(folder, tmp_path / "out")
    assert any("computes the tanh approximation" in line for line in exported.lines)
    difference = Program(tmp_path / "out").logits(IDS) - expected(state, "gelu")
    assert 1e-7 < np.abs(difference).max() < 1e-3


def test_111m_is_as_its_program_has_it(tmp_path: Path) -> None:
    shape = vendor.SIZES["111M"]._replace(n_embd=96, n_inner=384, vocab_size=99, n_positions=32)
    vendor.write(shape, tmp_path)
    vendor.write_config(shape, tmp_path)
    found = said(properties.plan(open_checkpoint(tmp_path)))
    files = {key: value for key, value in found.items() if key.startswith("file.")}
    assert files == {raw_name(name): at for name, at in WILD["CEREBRAS/111M"].items()}
    assert (found["weights.transposed"], found["merged.qkv"]) == ("false", "true")


def test_13b_is_as_its_program_has_it(tmp_path: Path) -> None:
    """Its real properties say that the weights lie (out, in), so they do here."""
    shape = vendor.SIZES["13B"]._replace(
        n_embd=64, n_head=4, n_inner=128, vocab_size=99, n_positions=32
    )
    state = {
        name: tensor.t().contiguous().t() if ".c_" in name and tensor.ndim == 2 else tensor
        for name, tensor in vendor.state_dict(shape, "hf").items()
    }
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(vendor.split(state, shape), 1):
        path = vendor.save(shard, tmp_path / f"pytorch_model-{number:05}-of-00002.bin")
        weight_map |= dict.fromkeys(shard, path.name)
    index = {"metadata": {}, "weight_map": weight_map}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    vendor.write_config(shape, tmp_path, "hf")
    found = said(properties.plan(open_checkpoint(tmp_path)))
    files = {key: value for key, value in found.items() if key.startswith("file.")}
    assert files == {raw_name(name): at for name, at in WILD["CEREBRAS/13B"].items()}
    assert (found["weights.transposed"], found["merged.qkv"]) == ("false", "true")


def test_the_settings_of_111m(tmp_path: Path) -> None:
    """The storages hold nothing here, but shapes are the real model's."""
    found = said(properties.plan(hollow(vendor.SIZES["111M"], tmp_path)))
    settings = {
        key: value
        for key, value in found.items()
        if not key.startswith(("file.", "attention.type"))
    }
    assert settings == {
        "name": "shape of Cerebras-GPT-111M",
        "source": "unknown",
        "tokenizer": "GPT-2",
        "tokenizer.config": "GPT-2",
        "token.count": "50257",
        "end.of.text.token": "50256",
        "max.length": "2048",
        "position.embedding": "LEARNED",
        "pre.normalization": "true",
        "hidden.size": "768",
        "feedforward.size": "3072",
        "decoder.count": "10",
        "attention.head.count": "12",
        "attention.dividend": "8",
        "epsilon": "1e-5f",
        "data.type": "FLOAT32",
        "byte.order": "LITTLE_ENDIAN",
        "weights.transposed": "false",
        "merged.qkv": "true",
    }
    types = [key for key in found if key.startswith("attention.type.")]
    assert types == [f"attention.type.{number}" for number in range(1, 11)]


def test_a_dividend_that_is_no_integer(tmp_path: Path) -> None:
    """13B's head width is 128; the digits are those of the program's own file."""
    found = said(properties.plan(hollow(vendor.SIZES["13B"], tmp_path)))
    assert found["attention.dividend"] == "11.313708498984760390413509793678"


def hollow(shape: vendor.Shape, folder: Path) -> Checkpoint:
    """A checkpoint of that shape, of a lone file; its numbers are not there."""
    from cgpt_convert.sources.local import MemoryBytes
    from cgpt_convert.tensors.dtypes import FLOAT32
    from cgpt_convert.tensors.tensor import Storage

    with torch.device("meta"):
        state = GPT2LMHeadModel(GPT2Config(**shape._asdict())).state_dict()
    del state["lm_head.weight"]
    memory = MemoryBytes("memory", b"")
    tensors = {}
    for number, (name, meta) in enumerate(state.items()):
        sizes = tuple(meta.shape)
        flip = ".c_" in name and len(sizes) == 2
        strides = (1, sizes[0]) if flip else tuple(meta.stride())
        storage = Storage(memory, 0, 4 * meta.numel(), str(number))
        tensors[name] = Tensor(name, FLOAT32, sizes, strides, 0, storage)
    storages = [tensor.storage for tensor in tensors.values()]
    return Checkpoint(str(folder / "pytorch_model.bin"), "test", (memory,), tensors, storages)


def test_tensors_inside_larger_storages_get_files_of_their_own(tmp_path: Path) -> None:
    state = vendor.state_dict(vendor.TINY)
    room = torch.zeros(3, 64)
    for row, name in enumerate(("ln_f.weight", "ln_f.bias")):
        room[row] = state[f"transformer.{name}"]
        state[f"transformer.{name}"] = room[row]
    exported = export(source(tmp_path / "source", state), tmp_path / "out")
    found = said(exported)
    assert found["file.output/norm.w"] == "output/norm.w.dat"
    assert found["file.output/norm.b"] == "output/norm.b.dat"
    assert found["file.input/wte"] == "0"
    assert np.abs(Program(tmp_path / "out").logits(IDS) - expected(state)).max() < 1e-5


def test_mixed_layouts_are_put_right(tmp_path: Path) -> None:
    state = vendor.state_dict(vendor.TINY)
    for name in ("attn.c_attn.weight", "mlp.c_fc.weight"):
        state[f"transformer.h.1.{name}"] = state[f"transformer.h.1.{name}"].contiguous()
    exported = export(source(tmp_path / "source", state), tmp_path / "out")
    assert said(exported)["file.decoder2/mlp.layer1.w"] == "decoder2/mlp.layer1.w.dat"
    assert np.abs(Program(tmp_path / "out").logits(IDS) - expected(state)).max() < 1e-5


def test_big_endian_storages_get_files_of_their_own(tmp_path: Path) -> None:
    checkpoint = hollow(vendor.TINY, source(tmp_path, {}))
    for name, tensor in checkpoint.items():
        storage = replace(tensor.storage, byteorder="big")
        checkpoint.tensors[name] = replace(tensor, storage=storage)
    files = [v for k, v in said(properties.plan(checkpoint)).items() if k.startswith("file.")]
    assert all(file.endswith(".dat") for file in files)


def test_the_folder_is_read_by_every_command(tmp_path: Path) -> None:
    """The mapping lists the copies apart: what is read again is the source and no more."""
    state = vendor.state_dict(vendor.TINY, "hf")
    export(source(tmp_path / "source", state), tmp_path / "out")
    again = open_checkpoint(tmp_path / "out/parameters")
    assert set(again) == set(state)
    for name, tensor in state.items():
        assert np.array_equal(again[name].numpy(), tensor.numpy())
    mapping = json.loads((tmp_path / "out/parameters/mapping.json").read_text())
    copies = {row["file"]: row for row in mapping["copies"]}
    assert copies["decoder1/att.key.w.dat"]["shape"] == [64, 64]
    assert all(row["sha256"].strip("0") for row in mapping["copies"])
    files = {
        path.relative_to(tmp_path / "out/parameters").as_posix()
        for path in (tmp_path / "out/parameters").rglob("*")
        if path.is_file() and path.name != "mapping.json"
    }
    assert files == {row["file"] for row in [*mapping["tensors"].values(), *copies.values()]}


def test_weights_under_a_key_of_a_training_checkpoint(tmp_path: Path) -> None:
    state = vendor.state_dict(vendor.TINY)
    export(source(tmp_path / "source", {"model": dict(state), "step": 7}), tmp_path / "out")  # type: ignore[dict-item]
    assert np.abs(Program(tmp_path / "out").logits(IDS) - expected(state)).max() < 1e-5


def test_unscaled_attention_can_be_said(tmp_path: Path) -> None:
    state = vendor.state_dict(vendor.TINY)
    folder = source(tmp_path / "source", state, scale_attn_weights=False)
    assert said(properties.plan(open_checkpoint(folder)))["attention.dividend"] == "1"


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"activation_function": "relu"}, "the activation is relu"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scales attention scores by the layer number"),
        ({"layer_norm_epsilon": "small"}, "layer_norm_epsilon is 'small'"),
        ({"eos_token_id": None}, "the end-of-text token is unknown"),
        ({"n_head": None}, "the number of attention heads is unknown"),
        ({"mup_output_alpha": 2.0}, "a muP model"),
    ],
)
def test_configurations_that_cannot_be_said(
    tmp_path: Path, config: dict[str, Any], why: str
) -> None:
    folder = source(tmp_path, vendor.state_dict(vendor.TINY), **config)
    with pytest.raises(Unsupported, match=why):
        properties.plan(open_checkpoint(folder))


def _half(state: vendor.State) -> vendor.State:
    return {name: t.half() if t.is_floating_point() else t for name, t in state.items()}


def _own_head(state: vendor.State) -> vendor.State:
    return {**state, "lm_head.weight": torch.zeros_like(state["lm_head.weight"])}


def _more(state: vendor.State) -> vendor.State:
    return {**state, "score.weight": torch.zeros(2, 64)}


def _another(_state: vendor.State) -> vendor.State:
    return {"a": torch.zeros(2)}


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        (_half, "supports float32 only; .* transformer.wte.weight .float16."),
        (_own_head, "'lm_head.weight' differs from 'transformer.wte.weight'"),
        (_more, "score.weight: unexpected"),
        (_another, "config.json describes a gpt2 model"),
    ],
)
def test_tensors_that_cannot_be_said(
    tmp_path: Path, changed: Callable[[vendor.State], vendor.State], why: str
) -> None:
    folder = source(tmp_path, changed(vendor.state_dict(vendor.TINY)))
    with pytest.raises(Unsupported, match=why):
        properties.plan(open_checkpoint(folder))


def test_an_equal_copy_of_the_head_does_no_harm(tmp_path: Path) -> None:
    state = vendor.state_dict(vendor.TINY)
    state["lm_head.weight"] = state["lm_head.weight"].clone()
    export(source(tmp_path / "source", state), tmp_path / "out")
    assert np.abs(Program(tmp_path / "out").logits(IDS) - expected(state)).max() < 1e-5


def test_the_grammar(tmp_path: Path) -> None:
    export(source(tmp_path / "source", vendor.state_dict(vendor.TINY)), tmp_path / "out")
    found = parsed(tmp_path / "out/model.properties")
    assert found["end.of.text.token"] == "7"
    assert found["name"] == "gpt2 64 wide"
    with pytest.raises(Unsupported, match="cannot be expressed"):
        list(properties.setting_lines({"name": "a = b"}))
