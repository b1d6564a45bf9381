"""Architectures and models, against transformers, strangers' mappings and published counts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

from cgpt_convert import architecture, identity, mapping, mapping_files
from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.dtypes import BY_NAME
from cgpt_convert.errors import BadRequest, Malformed, Unreadable, Unsupported
from cgpt_convert.formats import parameters
from cgpt_convert.mapping import Recognised, recognise, storage_mapping
from cgpt_convert.source import LocalFile, MemoryBytes
from cgpt_convert.tensor import Storage, Tensor, c_strides
from cgpt_convert.torchzip import read
from tests import vendor

WILD = json.loads((Path(__file__).parent / "data/wild_mappings.json").read_text())
GPT2 = mapping.architectures()["gpt2"]
HEAD = "lm_head.weight"
MEMORY = MemoryBytes("memory", b"")

# config.json of openai-community/gpt2, -medium, -large, -xl
SHAPES = {
    f"cerebras-gpt-{size.lower()}": vendor.SIZES[size] for size in vendor.SIZES if "B" in size
}
SHAPES |= {f"cerebras-gpt-{size.lower()}": vendor.SIZES[size] for size in ("111M", "256M", "590M")}
SHAPES |= {
    "gpt2": vendor.Shape(12, 768, 12, 3072, n_positions=1024),
    "gpt2-medium": vendor.Shape(24, 1024, 16, 4096, n_positions=1024),
    "gpt2-large": vendor.Shape(36, 1280, 20, 5120, n_positions=1024),
    "gpt2-xl": vendor.Shape(48, 1600, 25, 6400, n_positions=1024),
}
# counted from the published shapes, once, by hand; GPT-2's are in its model cards' safetensors
PARAMETERS = {
    "cerebras-gpt-111m": 111_050_496,
    "cerebras-gpt-256m": 255_977_024,
    "cerebras-gpt-590m": 590_310_912,
    "cerebras-gpt-1.3b": 1_315_723_264,
    "cerebras-gpt-2.7b": 2_651_553_280,
    "cerebras-gpt-6.7b": 6_658_404_352,
    "cerebras-gpt-13b": 12_853_386_240,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
}
# the last storage of the real archives
LAST = {"111m": "143", "256m": "199", "590m": "255", "1.3b": "339", "2.7b": "451", "6.7b": "451"}
# CerebrasGPT-111_muP/config.json of cerebras/Cerebras-GPT-Intermediate
MUP = {
    "attn_pdrop": 0.0,
    "scale_attn_weights": True,
    "n_inner": 3072,
    "n_embd": 768,
    "n_positions": 2048,
    "mup_embeddings_scale": 10,
    "activation_function": "gelu",
    "n_head": 12,
    "n_layer": 10,
    "position_embedding_type": "learned",
    "mup_scale_qk_dot_by_d": True,
    "tie_word_embeddings": True,
    "vocab_size": 50257,
    "alibi_scaling": None,
    "model_type": "btlm",
}


def transformers_config(shape: vendor.Shape) -> GPT2Config:
    return GPT2Config(**shape._asdict())


@cache
def reference(name: str, *, headless: bool = False) -> Mapping[str, torch.Tensor]:
    """What transformers says the model's tensors are; they have shapes only."""
    with torch.device("meta"):
        config = transformers_config(SHAPES[name])
        model = GPT2Model(config) if headless else GPT2LMHeadModel(config)
    state: dict[str, torch.Tensor] = model.state_dict()
    return state


def bare(shapes: Mapping[str, tuple[int, ...]], dtype: str = "float32") -> dict[str, Tensor]:
    """Tensors of these shapes, each of a storage of its own, with no bytes at all."""
    return {
        name: Tensor(name, BY_NAME[dtype], shape, c_strides(shape), 0, Storage(MEMORY, 0, 0, name))
        for name, shape in shapes.items()
    }


def of_transformers(name: str, *, headless: bool = False) -> dict[str, Tensor]:
    state = reference(name, headless=headless)
    return bare({key: tuple(tensor.shape) for key, tensor in state.items()})


def small() -> dict[str, Tensor]:
    """cerebras-gpt-111m as transformers names it: 10 layers."""
    return of_transformers("cerebras-gpt-111m")


def known(tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> Recognised:
    found = recognise(tensors, config)
    assert found is not None
    return found


def opened(path: Path) -> Checkpoint:
    return read(LocalFile(path))


# --- names and shapes ---


def test_all_models_are_there() -> None:
    assert {model.name for model in mapping.models()} == set(SHAPES)


@pytest.mark.parametrize("name", SHAPES)
def test_names_and_shapes_are_those_of_transformers(name: str) -> None:
    model = mapping.find_model(name)
    shapes = GPT2.shapes(model.sizes)
    assert shapes == {key: tuple(t.shape) for key, t in reference(name).items()}
    without = {key: shape for key, shape in GPT2.shapes(model.sizes, "").items() if key != HEAD}
    headless = reference(name, headless=True)
    assert without == {key: tuple(tensor.shape) for key, tensor in headless.items()}


@pytest.mark.parametrize("name", SHAPES)
def test_exact_parameter_counts(name: str) -> None:
    model = mapping.find_model(name)
    assert model.parameters == PARAMETERS[name]
    with torch.device("meta"):
        counted = GPT2Model(transformers_config(SHAPES[name])).num_parameters()
    assert model.parameters == counted
    assert model.float32_nbytes == 4 * counted


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("headless", [False, True])
def test_model_is_recognised_from_shapes(name: str, headless: bool) -> None:
    found = known(of_transformers(name, headless=headless))
    assert not found.misfits
    assert found.model is not None
    assert found.model.name == name
    assert (found.n_head, found.n_head_source) == (SHAPES[name].n_head, name)
    assert found.prefix == ("" if headless else "transformer.")
    assert found.head == ("absent" if headless else "own copy")
    sizes = SHAPES[name]._asdict()
    del sizes["n_head"]
    assert found.sizes == sizes


def test_activations_are_those_of_the_published_configurations() -> None:
    ways = {model.name: model.activation for model in mapping.models()}
    assert {way for name, way in ways.items() if name.startswith("cerebras")} == {"gelu"}
    assert {way for name, way in ways.items() if name.startswith("gpt2")} == {"gelu_new"}
    assert GPT2Config().activation_function == "gelu_new"


def test_tokens_are_what_steps_and_batches_make() -> None:
    rows = [model for model in mapping.models() if model.training_tokens]
    assert len(rows) == 7
    for model in rows:
        tokens = model.training["steps"] * model.training["batch_sequences"][0] * 2048
        assert model.training_tokens == float(f"{tokens:.2e}")
        assert model.pile_loss == pytest.approx(model.pile_loss_paper, rel=0.025)
        # 6 N D leaves out attention, so it comes short of the paper's count
        assert 6 * model.parameters * tokens < (model.training_flops or 0) * 1.05


# --- names elsewhere ---


def test_gguf_names_are_those_of_the_gguf_library() -> None:
    gguf = pytest.importorskip("gguf")
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, 10)
    for source in (small(), of_transformers("cerebras-gpt-111m", headless=True)):
        names = known(source).names("gguf")
        assert names == {name: table.get_name(name, (".weight", ".bias")) for name in source}


def test_raw_names_are_the_keys_of_the_java_program() -> None:
    names = known(small()).names("raw")
    second = {name: raw for name, raw in names.items() if ".h.1." in name}
    stem = "transformer.h.1."
    assert second == {
        f"{stem}ln_1.weight": "decoder2/att.norm.w",
        f"{stem}ln_1.bias": "decoder2/att.norm.b",
        f"{stem}attn.c_attn.weight": "decoder2/att.query.key.value.w",
        f"{stem}attn.c_attn.bias": "decoder2/att.query.key.value.b",
        f"{stem}attn.c_proj.weight": "decoder2/att.proj.w",
        f"{stem}attn.c_proj.bias": "decoder2/att.proj.b",
        f"{stem}ln_2.weight": "decoder2/mlp.norm.w",
        f"{stem}ln_2.bias": "decoder2/mlp.norm.b",
        f"{stem}mlp.c_fc.weight": "decoder2/mlp.layer1.w",
        f"{stem}mlp.c_fc.bias": "decoder2/mlp.layer1.b",
        f"{stem}mlp.c_proj.weight": "decoder2/mlp.layer2.w",
        f"{stem}mlp.c_proj.bias": "decoder2/mlp.layer2.b",
    }
    assert {name: raw for name, raw in names.items() if ".h." not in name} == {
        "transformer.wte.weight": "input/wte",
        "transformer.wpe.weight": "input/wpe",
        "transformer.ln_f.weight": "output/norm.w",
        "transformer.ln_f.bias": "output/norm.b",
    }


def test_hf_names_have_the_canonical_prefix() -> None:
    names = known(of_transformers("gpt2", headless=True)).names("hf")
    assert set(names.values()) == set(reference("gpt2")) - {HEAD}


def test_conv1d_weights_are_those_that_transformers_makes_of_conv1d() -> None:
    with torch.device("meta"):
        model = GPT2Model(transformers_config(vendor.TINY))
    convs = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if type(module).__name__ == "Conv1D"
    }
    places = known(bare({k: tuple(t.shape) for k, t in model.state_dict().items()})).places
    assert {name for name, place in places.items() if place.rule.conv1d} == convs


# --- storages ---


@pytest.mark.parametrize("size", ["111M", "13B"])
def test_storage_mappings_agree_with_strangers(size: str) -> None:
    stored = storage_mapping(f"Cerebras-GPT-{size}")
    assert {name: where.file for name, where in stored.items()} == WILD[f"CEREBRAS/{size}"]


@pytest.mark.parametrize("size", LAST)
def test_storage_mappings_end_where_the_archives_do(size: str) -> None:
    stored = storage_mapping(f"cerebras-gpt-{size}")
    assert stored["transformer.ln_f.bias"].file == LAST[size]
    assert len({where.file for where in stored.values()}) == len(stored)


@pytest.mark.parametrize("model", [model for model in SHAPES if model.startswith("cerebras")])
def test_storage_mappings_have_every_parameter(model: str) -> None:
    stored = storage_mapping(f"cerebras/{model.upper()}")
    shapes = {name: tuple(tensor.shape) for name, tensor in reference(model).items()}
    del shapes[HEAD]
    assert {name: where.shape for name, where in stored.items()} == shapes
    assert {where.dtype for where in stored.values()} == {"float32"}
    for name, where in stored.items():
        # what the Java program's `weights.transposed = false` means, which all seven have there
        conv = name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
        laid = torch.empty(where.shape[::-1] if conv else where.shape, device="meta")
        assert where.strides == (laid.t() if conv else laid).stride(), name


def test_strides_of_the_vendors_layout(tmp_path: Path) -> None:
    shape = vendor.SIZES["111M"]._replace(n_embd=64, n_inner=256, vocab_size=99, n_positions=32)
    made = opened(vendor.write(shape, tmp_path))
    stored = storage_mapping("cerebras-gpt-111m")
    for name, where in stored.items():
        assert where.file == made[name].storage.key
        steps = [step == 1 for step in where.strides]
        assert steps == [step == 1 for step in made[name].strides], name


def test_a_folder_of_bare_files_is_read_with_a_ready_mapping(tmp_path: Path) -> None:
    stored = storage_mapping("cerebras-gpt-111m")
    shapes = {name: tuple(tensor.shape) for name, tensor in reference("cerebras-gpt-111m").items()}
    for name, where in stored.items():
        with (tmp_path / where.file).open("wb") as file:
            file.truncate(4 * torch.Size(shapes[name]).numel())  # sparse: takes no room
    found = known(parameters.read_mapped(str(tmp_path), stored))
    assert not found.misfits
    assert found.model is mapping.find_model("cerebras-gpt-111m")
    assert (found.conv1d, found.head) == ("transposed", "absent")


def test_models_without_a_ready_mapping_are_refused() -> None:
    with pytest.raises(BadRequest, match=r"no ready mapping of gpt2[\s\S]*cerebras-gpt-13b"):
        storage_mapping("gpt2")
    with pytest.raises(BadRequest, match=r"no model is called 'bert'[\s\S]*gpt2-xl"):
        storage_mapping("bert")


# --- checkpoints ---


def test_the_vendors_checkpoint(tmp_path: Path) -> None:
    found = known(opened(vendor.write(vendor.TINY, tmp_path)))
    assert not found.misfits
    assert (found.prefix, found.head, found.conv1d) == ("transformer.", "tied", "transposed")
    assert set(found.skipped) == {
        f"transformer.h.{layer}.attn.{mask}" for layer in (0, 1) for mask in ("bias", "masked_bias")
    }
    assert (found.model, found.n_head, found.n_head_source) == (None, None, "")
    assert found.refusal == ""


def test_the_headless_checkpoint_that_transformers_wrote(tmp_path: Path) -> None:
    checkpoint = opened(vendor.write(vendor.TINY, tmp_path, "hf"))
    config = json.loads(vendor.write_config(vendor.TINY, tmp_path, "hf").read_text())
    found = known(checkpoint, config)
    assert not found.misfits
    assert (found.prefix, found.head, found.conv1d) == ("", "absent", "contiguous")
    assert (found.n_head, found.n_head_source) == (4, "config.json")
    assert mapping.check_config(found, config) == []
    assert len(found.skipped) == 4


def test_biases_of_c_attn_are_not_taken_for_masks() -> None:
    found = known(small())
    assert "transformer.h.3.attn.c_attn.bias" in found.places
    assert found.skipped == ()


# --- misfits ---


def changed(name: str, shape: tuple[int, ...], dtype: str = "float32") -> dict[str, Tensor]:
    return small() | bare({name: shape}, dtype)


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        (
            "transformer.h.4.mlp.c_fc.weight",
            (3072, 768),
            (
                "shape 3072 x 768, expected 768 x 3072 (n_embd x n_inner); "
                "it is stored as a Linear layer's weight (out, in), not a Conv1D's"
            ),
        ),
        (
            "transformer.wte.weight",
            (768, 50257),
            "shape 768 x 50257, expected 50257 x 768 (vocab_size x n_embd); it is transposed",
        ),
        ("transformer.h.0.ln_1.bias", (769,), "shape 769, expected 768 (n_embd)"),
        ("transformer.h.0.ln_1.bias", (), "shape scalar, expected 768 (n_embd)"),
        ("transformer.h.9.attn.c_attn.bias", (768,), "shape 768, expected 2304 (3*n_embd)"),
        ("transformer.wpe.weight", (2048, 3), "shape 2048 x 3, expected n_positions x 768"),
        ("transformer.h.2.foo.weight", (3, 4), "unexpected (float32, 3 x 4)"),
        ("score.weight", (2, 768), "unexpected (float32, 2 x 768)"),
        ("wte.weight", (50257, 768), "unexpected (float32, 50257 x 768)"),
        ("transformer.h.{i}.ln_1.bias", (768,), "unexpected (float32, 768)"),
        ("transformer.h.01.ln_1.bias", (768,), "unexpected (float32, 768)"),
        ("transformer.h.0.crossattention.bias", (1,), "unexpected (float32, 1)"),
        ("transformer.h.0.attn.c_attn.masked_bias", (1,), "unexpected (float32, 1)"),
    ],
)
def test_one_wrong_tensor_is_one_misfit(name: str, shape: tuple[int, ...], said: str) -> None:
    (line,) = known(changed(name, shape)).misfits
    assert line.startswith(f"{name}: {said}")


def test_unprintable_names_are_escaped() -> None:
    (line,) = known(changed("transformer.\x1b[31m", (1,))).misfits
    assert line.startswith("transformer.\\x1b[31m: unexpected")


def test_weights_that_are_integers_are_misfits() -> None:
    name = "transformer.h.0.mlp.c_fc.weight"
    (line,) = known(changed(name, (768, 3072), "int8")).misfits
    assert line == f"{name}: int8, expected a floating-point type"


def test_missing_tensors_are_named_with_their_shapes() -> None:
    tensors = small()
    del tensors["transformer.ln_f.bias"]
    del tensors["transformer.h.7.attn.c_attn.weight"]
    assert known(tensors).misfits == (
        "transformer.h.7.attn.c_attn.weight: missing, expected 768 x 2304 (n_embd x 3*n_embd)",
        "transformer.ln_f.bias: missing, expected 768 (n_embd)",
    )


@pytest.mark.parametrize(("gone", "said"), [({0}, "layer 0 is"), ({3, 4, 5}, "layers 3 to 5 are")])
def test_missing_layers_are_one_line_each_run(gone: set[int], said: str) -> None:
    lost = tuple(f"transformer.h.{layer}." for layer in gone)
    found = known({n: t for n, t in small().items() if not n.startswith(lost)})
    (line,) = found.misfits
    assert line.startswith(f"{said} missing, expected 12 tensors")
    assert found.sizes["n_layer"] == 10


def test_all_misfits_are_reported_at_once() -> None:
    tensors = changed("transformer.h.0.ln_1.bias", (1,)) | bare({"extra": (2,)})
    tensors["transformer.h.1.mlp.c_proj.weight"] = tensors[
        "transformer.h.1.mlp.c_proj.weight"
    ].transposed()
    del tensors["transformer.wpe.weight"]
    names = [line.split(":")[0] for line in known(tensors).misfits]
    assert sorted(names) == [
        "extra",
        "transformer.h.0.ln_1.bias",
        "transformer.h.1.mlp.c_proj.weight",
        "transformer.wpe.weight",
    ]


def test_a_far_layer_does_not_make_a_long_list() -> None:
    found = known(changed("transformer.h.9999.ln_1.bias", (768,)))
    assert found.sizes["n_layer"] == 10_000
    assert any("layers 10 to 9998 are missing" in line for line in found.misfits)
    assert len(found.misfits) == 12


def test_every_single_loss_is_found() -> None:
    """Of each tensor of one layer, and of those outside the layers."""
    whole = small()
    for name in whole:
        if name == HEAD or (".h." in name and ".h.6." not in name):
            continue
        rest = {other: tensor for other, tensor in whole.items() if other != name}
        (line,) = known(rest).misfits
        assert line.startswith(f"{name}: missing, expected ")


def test_linear_weights_as_in_nanogpt_are_told() -> None:
    """Its model.py has Linear where GPT-2 has Conv1D: all four weights of a layer are (out, in)."""
    tensors = small()
    for name, tensor in tensors.items():
        if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            tensors[name] = tensor.transposed()
    found = known(tensors)
    assert found.sizes["n_inner"] == 3072
    assert len(found.misfits) == 30  # the square c_proj cannot be told
    assert all("Linear" in line for line in found.misfits)


def test_tied_heads_are_told_from_copies() -> None:
    tensors = small()
    assert known(tensors).head == "own copy"
    tensors[HEAD] = tensors["transformer.wte.weight"].renamed(HEAD)
    assert known(tensors).head == "tied"
    tensors[HEAD] = replace(tensors[HEAD], storage=Storage(MEMORY, 0, 0, "other"))
    assert known(tensors).head == "own copy"
    del tensors[HEAD]
    assert known(tensors).head == "absent"


def test_mixed_layouts_of_conv1d_are_told() -> None:
    tensors = small()
    name = "transformer.h.2.mlp.c_fc.weight"
    tensors[name] = replace(tensors[name], strides=(1, 768))
    assert known(tensors).conv1d == "mixed"


# --- other architectures ---


def strangers() -> Iterator[tuple[str, Mapping[str, torch.Tensor]]]:
    few = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "vocab_size": 99}
    with torch.device("meta"):
        for name, keys in (
            ("Bert", few | {"intermediate_size": 64}),
            ("Llama", few | {"intermediate_size": 64}),
            ("GPTJ", few | {"rotary_dim": 4}),
            ("GPTNeo", few | {"attention_types": [[["global", "local"], 1]]}),
            ("Bloom", few),
            ("OpenAIGPT", few),
            ("OPT", few | {"ffn_dim": 64, "word_embed_proj_dim": 32}),
        ):
            config = getattr(transformers, f"{name}Config")(**keys)
            model = getattr(transformers, f"{name}Model")(config)
            yield name, model.state_dict()
            yield name, {f"transformer.{key}": t for key, t in model.state_dict().items()}


def test_other_architectures_are_not_recognised() -> None:
    seen = set()
    for name, state in strangers():
        assert recognise(bare({key: tuple(t.shape) for key, t in state.items()})) is None, name
        seen.add(name)
    assert len(seen) == 7
    assert recognise({}) is None
    assert recognise(bare({"weight": (1,)})) is None


def test_an_architecture_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(Path(__file__).parents[1] / "mappings", tmp_path, dirs_exist_ok=True)
    (tmp_path / "architectures/toy.toml").write_text(
        """
        name = "toy"
        model_types = ["toy"]
        prefixes = ["toy."]
        anchors = [["block.{i}.up"]]
        skipped = []
        config = { keys = { n_layer = ["depth"] }, defaults = {} }
        tensors = [
            { name = "block.{i}.up", shape = ["n_embd", "2*n_embd"], names = { raw = "b{i+1}" } },
            { name = "block.{i}.b", shape = ["n_embd"], names = {} },
        ]
        """
    )
    with elsewhere(tmp_path, monkeypatch):
        found = known(bare({"toy.block.0.up": (3, 6), "toy.block.0.b": (3,), "toy.c": ()}))
        assert found.architecture.name == "toy"
        assert found.sizes == {"n_layer": 1, "n_embd": 3}
        assert found.names("raw") == {"toy.block.0.up": "b1"}
        assert [line.split(":")[0] for line in found.misfits] == ["toy.c"]
        assert known(small()).architecture.name == "gpt2"
        assert mapping.check_config(found, {"depth": 2}) == [
            "config.json says depth 2, the tensors have 1"
        ]


def elsewhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A context in which the mappings are those of `folder`."""
    from contextlib import contextmanager

    @contextmanager
    def context() -> Iterator[None]:
        clear()
        monkeypatch.setattr(mapping_files, "_FOLDERS", (str(folder),))
        try:
            yield
        finally:
            monkeypatch.undo()
            clear()

    return context()


def clear() -> None:
    architecture.architectures.cache_clear()
    identity.models.cache_clear()


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("architectures/gpt2.toml", "name = ", "not TOML"),
        ("architectures/gpt2.toml", 'name = "gpt2"', "it lacks 'tensors'"),
        ("architectures/gpt2.toml", "tensors = 3", "not a mapping"),
        ("models/gpt2.toml", 'architecture = "gpt9"', "it lacks 'gpt9'"),
        ("models/gpt2.toml", b"\xff", "not TOML"),
    ],
)
def test_broken_mapping_files_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, text: str | bytes, said: str
) -> None:
    shutil.copytree(Path(__file__).parents[1] / "mappings", tmp_path, dirs_exist_ok=True)
    (tmp_path / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    with elsewhere(tmp_path, monkeypatch), pytest.raises(Malformed, match=said) as raised:
        mapping.models()
    assert raised.value.where.endswith(file)


def test_shards_must_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(Path(__file__).parents[1] / "mappings", tmp_path, dirs_exist_ok=True)
    path = tmp_path / "models/cerebras-gpt.toml"
    path.write_text(path.read_text().replace("[322, 242]", "[322, 241]"))
    with elsewhere(tmp_path, monkeypatch), pytest.raises(Malformed, match="322, 241"):
        mapping.models()


def test_lost_mappings_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with elsewhere(tmp_path, monkeypatch), pytest.raises(Unreadable, match="install cgpt-convert"):
        recognise({})


# --- config.json ---

TRUE_CONFIG = {
    "model_type": "gpt2",
    "n_layer": 10,
    "n_embd": 768,
    "n_head": 12,
    "n_inner": 3072,
    "n_positions": 2048,
    "vocab_size": 50257,
    "activation_function": "gelu",
    "tie_word_embeddings": True,
    "layer_norm_epsilon": 1e-05,
    "architectures": ["GPT2Model"],
}


def test_a_true_config_is_not_doubted() -> None:
    for config in (TRUE_CONFIG, {}, TRUE_CONFIG | {"n_inner": None}, MUP):
        assert mapping.check_config(known(small(), config), config) == []
    for name, shape in SHAPES.items():
        config = transformers_config(shape).to_dict()
        config["activation_function"] = mapping.find_model(name).activation
        found = known(of_transformers(name), config)
        assert mapping.check_config(found, config) == []
        assert found.model is mapping.find_model(name)
        assert found.refusal == ""


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        ({"n_layer": 12}, "n_layer 12, the tensors have 10"),
        ({"num_hidden_layers": 12}, "num_hidden_layers 12, the tensors have 10"),
        ({"n_ctx": 1024}, "n_ctx 1024, the tensors have 2048"),
        ({"vocab_size": "many"}, "vocab_size 'many', the tensors have 50257"),
        ({"vocab_size": 50257.0}, "vocab_size 50257.0, the tensors have 50257"),
        ({"n_layer": True}, "n_layer True, the tensors have 10"),
        ({"model_type": "bert"}, "model_type 'bert', the tensors are gpt2's"),
        ({"n_head": 7}, "n_head 7, which does not divide the tensors' width of 768"),
        ({"n_head": 0}, "n_head 0, which is no number of heads"),
        ({"n_head": 16}, "n_head 16; cerebras-gpt-111m, which has these shapes, has 12"),
        (
            {"activation_function": "gelu_new"},
            "activation_function 'gelu_new'; cerebras-gpt-111m, which has these shapes, has 'gelu'",
        ),
    ],
)
def test_lies_of_config_json_are_told(lie: dict[str, Any], said: str) -> None:
    config = TRUE_CONFIG | lie
    lines = mapping.check_config(known(small(), config), config)
    assert f"config.json says {said}" in lines


def test_a_missing_n_inner_means_four_times_the_width() -> None:
    narrow = vendor.TINY._replace(n_inner=100)
    with torch.device("meta"):
        state = GPT2Model(transformers_config(narrow)).state_dict()
    found = known(bare({name: tuple(tensor.shape) for name, tensor in state.items()}))
    assert mapping.check_config(found, {}) == [
        "config.json says no n_inner, which means 4*n_embd = 256; the tensors have 100"
    ]


def test_untied_heads_that_are_not_there_are_told() -> None:
    found = known(of_transformers("gpt2", headless=True))
    assert mapping.check_config(found, {"tie_word_embeddings": False}) == [
        "config.json says tie_word_embeddings false, but the head is absent"
    ]
    assert mapping.check_config(known(small()), {"tie_word_embeddings": False}) == []


def test_heads_of_config_json_are_believed_before_the_table() -> None:
    found = known(small(), {"n_head": 16})
    assert (found.n_head, found.n_head_source, found.model) == (16, "config.json", None)
    found = known(small(), {"n_head": 7})  # cannot be: 768 is no multiple
    assert (found.n_head, found.n_head_source) == (12, "cerebras-gpt-111m")


def test_config_is_read_from_its_folder(tmp_path: Path) -> None:
    assert mapping.read_config(tmp_path) is None
    vendor.write_config(vendor.TINY, tmp_path)
    config = mapping.read_config(tmp_path)
    assert config is not None
    assert (config["n_head"], config["layer_norm_epsilon"]) == (4, 1e-05)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000, b'{"n_layer": 1' + b"0" * 5000 + b"}"]
)
def test_configs_that_are_no_objects_are_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(Malformed, match=r"config\.json"):
        mapping.read_config(tmp_path)


def test_huge_configs_are_refused(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate((16 << 20) + 1)
    with pytest.raises(Unsupported, match="16,777,217"):
        mapping.read_config(tmp_path)


def test_configs_that_are_no_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(BadRequest, match=r"config\.json"):
        mapping.read_config(tmp_path)


# --- muP ---


def test_mup_is_refused() -> None:
    found = known(small(), MUP)
    assert not found.misfits
    assert found.model is mapping.find_model("cerebras-gpt-111m")  # shapes and heads are the same
    assert "mup_embeddings_scale 10" in found.refusal
    assert "mup_scale_qk_dot_by_d True" in found.refusal


@pytest.mark.parametrize(
    "config",
    [
        # Cerebras/modelzoo, gpt3/configs/Cerebras_GPT/111m_mup.yaml
        {"embeddings_scale": 10},
        {"output_logits_scale": 0.3333333333333333},
        {"scale_qk_dot_by_d": True},
        {"width_scale": 0.33},
        {"mup_base_width": 256},
        {"_name_or_path": "models/111m_mup"},
        {"_name_or_path": "cerebras/CerebrasGPT-111_muP"},
    ],
)
def test_any_sign_of_mup_is_enough(config: dict[str, Any]) -> None:
    assert known(small(), config).refusal


@pytest.mark.parametrize(
    "config",
    [
        # configuration_btlm.py's defaults
        {"mup_width_scale": 1.0, "mup_embeddings_scale": 1.0, "mup_output_alpha": 1.0},
        {"mup_scale_qk_dot_by_d": False, "embeddings_scale": None},
        {"_name_or_path": "the-muppets"},
        {"_name_or_path": None},
        {"_name_or_path": ["x_mup"]},
    ],
)
def test_what_changes_nothing_is_no_mup(config: dict[str, Any]) -> None:
    assert known(small(), config).refusal == ""


def test_mup_is_told_from_the_folders_name(tmp_path: Path) -> None:
    folder = tmp_path / "CerebrasGPT-111_muP" / "checkpoint_4866"
    folder.parent.mkdir()
    found = known(opened(vendor.write(vendor.TINY, folder)))
    assert "CerebrasGPT-111_muP" in found.refusal
    below = folder / "a" / "b"
    below.mkdir(parents=True)
    assert known(opened(vendor.write(vendor.TINY, below / "c"))).refusal == ""
