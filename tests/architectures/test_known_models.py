"""Known models: shapes, counts, names elsewhere and storages, against independent sources."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2Model

from cgpt_convert.architectures.known_models import find_model, models, storage_mapping
from cgpt_convert.core.errors import BadRequest
from cgpt_convert.formats.raw import writer
from tests.helpers import vendor
from tests.helpers.known_models import (
    GPT2,
    HEAD,
    SHAPES,
    bare,
    known,
    of_transformers,
    opened,
    reference,
    small,
    transformers_config,
)

WILD = json.loads((Path(__file__).parents[1] / "data/wild_mappings.json").read_text())
# as the literature has them, less 13B, which tables leave blank; transformers counts them, too
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


def test_all_models_are_there() -> None:
    assert {model.name for model in models()} == set(SHAPES)


@pytest.mark.parametrize("name", SHAPES)
def test_names_and_shapes_are_those_of_transformers(name: str) -> None:
    model = find_model(name)
    shapes = GPT2.shapes(model.sizes)
    assert shapes == {key: tuple(t.shape) for key, t in reference(name).items()}
    without = {key: shape for key, shape in GPT2.shapes(model.sizes, "").items() if key != HEAD}
    headless = reference(name, headless=True)
    assert without == {key: tuple(tensor.shape) for key, tensor in headless.items()}


@pytest.mark.parametrize("name", SHAPES)
def test_exact_parameter_counts(name: str) -> None:
    model = find_model(name)
    assert model.parameters == PARAMETERS[name]
    with torch.device("meta"):
        counted = GPT2Model(transformers_config(SHAPES[name])).num_parameters()
    assert model.parameters == counted
    assert model.float32_nbytes == 4 * counted


def test_bytes_of_files_are_those_of_the_vendors_storages() -> None:
    state = vendor.state_dict(vendor.SIZES["111M"])
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in state.values()
    }
    assert find_model("cerebras-gpt-111m").file_nbytes == sum(storages.values())


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("headless", [False, True])
def test_model_is_recognised_from_shapes(name: str, headless: bool) -> None:
    found = known(of_transformers(name, headless=headless))
    assert not found.misfits
    assert found.shape_of is not None
    assert found.shape_of.name == name
    assert (found.n_head, found.n_head_source) == (SHAPES[name].n_head, name)
    assert found.prefix == ("" if headless else "transformer.")
    assert found.head == ("absent" if headless else "own copy")
    sizes = SHAPES[name]._asdict()
    del sizes["n_head"]
    assert found.sizes == sizes


def test_activations_are_those_of_the_published_configurations() -> None:
    ways = {model.name: model.activation for model in models()}
    assert {way for name, way in ways.items() if name.startswith("cerebras")} == {"gelu"}
    assert {way for name, way in ways.items() if name.startswith("gpt2")} == {"gelu_new"}
    assert GPT2Config().activation_function == "gelu_new"


def test_tokens_are_what_steps_and_batches_make() -> None:
    rows = [model for model in models() if model.training_tokens]
    assert len(rows) == 7
    for model in rows:
        tokens = model.training["steps"] * model.training["batch_sequences"][0] * 2048
        assert model.training_tokens == float(f"{tokens:.2e}")
        assert model.pile_loss == pytest.approx(model.pile_loss_paper, rel=0.025)
        # 6 N D leaves out attention, so it comes short of the paper's count
        assert 6 * model.parameters * tokens < (model.training_flops or 0) * 1.05


def test_accuracies_have_the_means_that_the_model_card_gives() -> None:
    rows = [model for model in models() if model.zero_shot]
    means = [sum(model.zero_shot.values()) / len(model.zero_shot) for model in rows]
    assert means == pytest.approx([0.315, 0.347, 0.370, 0.410, 0.462, 0.512, 0.570], abs=1e-3)
    assert all(model.five_shot.keys() == model.zero_shot.keys() for model in rows)


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
    found = known(writer.read_mapped(str(tmp_path), stored))
    assert not found.misfits
    assert found.shape_of is find_model("cerebras-gpt-111m")
    assert (found.conv1d, found.head) == ("transposed", "absent")


def test_models_without_a_ready_mapping_are_refused() -> None:
    with pytest.raises(BadRequest, match=r"no built-in mapping for gpt2[\s\S]*cerebras-gpt-13b"):
        storage_mapping("gpt2")
    with pytest.raises(BadRequest, match=r"unknown model 'bert'[\s\S]*gpt2-xl"):
        storage_mapping("bert")
