"""The parts of LLaMA models are joined as they were divided; what does not fit is named.

The models here are divided as Meta's code does, with torch, and compared element by element.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from cgpt_convert import open_checkpoint
from tests.helpers.running import run

State = dict[str, torch.Tensor]
DIM, HEADS, KV_HEADS, HIDDEN, VOCAB = 32, 8, 4, 48, 64
PARAMETERS = {"dim": DIM, "n_heads": HEADS, "n_layers": 2, "norm_eps": 1e-05, "vocab_size": VOCAB}
PART = "consolidated.{:02}.pth".format


def model(kv_heads: int = HEADS) -> State:
    """A LLaMA of two layers with random values."""
    head = DIM // HEADS
    shapes: dict[str, tuple[int, ...]] = {"tok_embeddings.weight": (VOCAB, DIM)}
    for layer in range(2):
        shapes |= {
            f"layers.{layer}.attention.wq.weight": (DIM, DIM),
            f"layers.{layer}.attention.wk.weight": (kv_heads * head, DIM),
            f"layers.{layer}.attention.wv.weight": (kv_heads * head, DIM),
            f"layers.{layer}.attention.wo.weight": (DIM, DIM),
            f"layers.{layer}.feed_forward.w1.weight": (HIDDEN, DIM),
            f"layers.{layer}.feed_forward.w2.weight": (DIM, HIDDEN),
            f"layers.{layer}.feed_forward.w3.weight": (HIDDEN, DIM),
            f"layers.{layer}.attention_norm.weight": (DIM,),
            f"layers.{layer}.ffn_norm.weight": (DIM,),
        }
    shapes |= {"norm.weight": (DIM,), "output.weight": (VOCAB, DIM), "rope.freqs": (DIM // 16,)}
    torch.manual_seed(len(shapes) + kv_heads)
    return {name: torch.randn(shape).bfloat16() for name, shape in shapes.items()}


def divided(whole: State, parts: int, embedding: int) -> list[State]:
    """Divide the matrices as Meta's code does; each part has all of the vectors."""
    axes = {
        name: embedding
        if name.startswith("tok")
        else int(name.endswith((".wo.weight", "w2.weight")))
        for name, value in whole.items()
        if value.ndim > 1
    }
    return [
        {
            name: value.chunk(parts, axes[name])[part].clone() if name in axes else value.clone()
            for name, value in whole.items()
        }
        for part in range(parts)
    ]


def write(folder: Path, parts: list[State], **parameters: Any) -> Path:
    folder.mkdir()
    for number, part in enumerate(parts):
        torch.save(part, folder / PART(number))
    (folder / "params.json").write_text(json.dumps(PARAMETERS | parameters))
    return folder


@pytest.mark.parametrize("parts", [2, 4, 8])
@pytest.mark.parametrize(
    ("embedding", "parameters"),
    [
        (1, {"vocab_size": -1}),  # LLaMA 1 and 2
        (1, {"n_kv_heads": HEADS}),
        (0, {"n_kv_heads": HEADS}),  # LLaMA 3
        (0, {"vocab_size": -1}),
    ],
)
def test_the_parts_make_up_what_was_divided(
    parts: int, embedding: int, parameters: dict[str, Any], tmp_path: Path
) -> None:
    whole = model()
    folder = write(tmp_path / "llama", divided(whole, parts, embedding), **parameters)
    output = tmp_path / "model.safetensors"
    assert run("convert", folder, "-o", output, "--verify").code == 0
    assert run("inspect", "--check", folder).code == 0
    saved = safetensors.torch.load_file(output)
    assert saved.keys() == whole.keys()
    for name, value in whole.items():
        assert torch.equal(saved[name], value), name
    with open_checkpoint(folder) as checkpoint:
        assert list(checkpoint) == list(whole)
        assert checkpoint.kind == f"LLaMA model in {parts} parts"


def test_fewer_heads_of_keys_and_a_width_other_than_that_of_the_model(tmp_path: Path) -> None:
    whole = model(KV_HEADS)
    folder = write(tmp_path / "a", divided(whole, 4, 0), n_kv_heads=KV_HEADS)
    with open_checkpoint(folder) as checkpoint:
        for name, value in whole.items():
            assert torch.equal(checkpoint[name].torch(), value), name
    whole = {name: v for name, v in whole.items() if not name.endswith(("wq.weight", "wo.weight"))}
    for layer in range(2):
        whole[f"layers.{layer}.attention.wq.weight"] = torch.randn(2 * DIM, DIM)
        whole[f"layers.{layer}.attention.wo.weight"] = torch.randn(DIM, 2 * DIM)
        for key in "kv":
            whole[f"layers.{layer}.attention.w{key}.weight"] = torch.randn(2 * DIM, DIM)
    folder = write(tmp_path / "b", divided(whole, 2, 0), head_dim=2 * DIM // HEADS)
    with open_checkpoint(folder) as checkpoint:
        for name, value in whole.items():
            assert torch.equal(checkpoint[name].torch(), value), name


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return write(tmp_path / "llama", divided(model(), 4, 1))


def refused(folder: Path, *expected: str, command: tuple[str, ...] = ("inspect",)) -> None:
    result = run(*command, folder)
    assert result.code == 3
    for words in expected:
        assert words in result.err


def change(path: Path, name: str, value: torch.Tensor | None) -> None:
    state = torch.load(path)
    if value is None:
        del state[name]
    else:
        state[name] = value
    torch.save(state, path)


@pytest.mark.parametrize("missing", [0, 2, 3])  # the last one, too
def test_missing_parts_are_named_and_the_rest_is_salvaged(
    missing: int, llama: Path, tmp_path: Path
) -> None:
    (llama / PART(missing)).unlink()
    refused(llama, f"1 of 4 parts are missing: '{PART(missing)}'")
    output = tmp_path / "some.safetensors"
    result = run("convert", "--salvage", "--json", llama, "-o", output)
    assert result.code == 1
    whole = model()
    left = safetensors.torch.load_file(output)
    assert left.keys() == {name for name, value in whole.items() if value.ndim == 1}
    assert {row["name"] for row in result.json["lost"]} == whole.keys() - left.keys()
    assert result.json["lost"][0]["why"] == f"parts are missing: '{PART(missing)}'"
    for name, value in left.items():
        assert torch.equal(value, whole[name])


def test_files_of_another_model_are_named(llama: Path) -> None:
    (llama / PART(4)).write_bytes((llama / PART(3)).read_bytes())
    refused(llama, f"divided into 4 parts, and the folder also has '{PART(4)}'")


@pytest.mark.parametrize("name", ["norm.weight", "rope.freqs", "layers.1.ffn_norm.weight"])
def test_copies_that_differ_are_an_error(name: str, llama: Path, tmp_path: Path) -> None:
    value = model()[name]
    value[-1] += 1
    change(llama / PART(2), name, value)
    words = f"'{PART(0)}' and '{PART(2)}' have different values"
    refused(llama, f"[{name}]: {words}", command=("digest",))
    assert words in run("convert", llama, "-o", tmp_path / "m.safetensors").err
    refused(llama, words, command=("inspect", "--check"))
    output = tmp_path / "some.safetensors"
    assert run("convert", "--salvage", llama, "-o", output).code == 1
    assert model().keys() - safetensors.torch.load_file(output).keys() == {name}


def test_one_part_is_read_with_a_warning(llama: Path, tmp_path: Path) -> None:
    found = run("inspect", "--json", llama / PART(1)).json["findings"]
    assert [finding["id"] for finding in found] == ["CGPT013"]
    assert "is one of 4 parts of a LLaMA model" in found[0]["detail"]
    for number in (1, 2, 3):
        (llama / PART(number)).unlink()
    found = run("inspect", "--json", llama).json["findings"]
    assert [finding["id"] for finding in found] == ["CGPT013"]
    whole = write(tmp_path / "whole", [model()])
    assert run("inspect", "--json", whole).json["findings"] == []


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("norm.weight", None, "does not have the tensor"),
        (
            "output.weight",
            torch.zeros(3, DIM),
            "different types or shapes: bfloat16 16x32, float32",
        ),
        (
            "output.weight",
            torch.zeros(16, DIM),
            "different types or shapes: bfloat16 16x32, float32",
        ),
    ],
)
def test_parts_that_do_not_fit_each_other_are_named(
    name: str, value: torch.Tensor | None, words: str, llama: Path
) -> None:
    change(llama / PART(1), name, value)
    refused(llama, words, name)


def test_a_tensor_that_llama_does_not_have_is_listed(llama: Path, tmp_path: Path) -> None:
    for number in range(4):
        change(llama / PART(number), "experts.weight", torch.zeros(4, 4))
    result = run("inspect", llama)
    assert (result.code, "how it was divided is unknown" in result.out) == (0, True)
    refused(llama, "experts.weight", command=("digest",))
    words = ("convert", llama, "-o", tmp_path / "m.safetensors", "--exclude", "experts.weight")
    assert run(*words).code == 0


def unknown(folder: Path, name: str, *expected: str) -> None:
    with open_checkpoint(folder) as checkpoint:
        assert list(checkpoint.exotic) == [name]
        for words in expected:
            assert words in checkpoint.exotic[name].detail


def test_an_embedding_of_which_the_division_is_unknown(tmp_path: Path) -> None:
    whole = model()
    del whole["output.weight"]
    folder = write(tmp_path / "llama", divided(whole, 2, 0), vocab_size=-1)
    unknown(folder, "tok_embeddings.weight", "may be different or the same", "'vocab_size'")
    again = json.dumps(PARAMETERS | {"vocab_size": VOCAB})
    (folder / "params.json").write_text(again)
    with open_checkpoint(folder) as checkpoint:
        value = checkpoint["tok_embeddings.weight"].torch()
        assert torch.equal(value, whole["tok_embeddings.weight"])


def test_an_embedding_that_every_part_has_is_not_joined(tmp_path: Path) -> None:
    parts = divided(model(), 2, 0)
    for part in parts:
        part["tok_embeddings.weight"] = torch.zeros(VOCAB, DIM)
    folder = write(tmp_path / "llama", parts)
    unknown(folder, "tok_embeddings.weight", "2 parts of 64x32 make up 128x32, not 64x32")


def test_heads_of_keys_that_several_parts_have_are_not_joined(tmp_path: Path) -> None:
    parts = divided(model(KV_HEADS), 2, 0)
    folder = write(tmp_path / "llama", parts, n_kv_heads=2)
    with open_checkpoint(folder) as checkpoint:
        assert {name[-9:] for name in checkpoint.exotic} == {"wk.weight", "wv.weight"}
        assert "make up 16x32, not 8x32" in next(iter(checkpoint.exotic.values())).detail


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ('{"dim": 32}', "does not say 'n_heads'"),
        ('{"n_heads": 8, "dim": "32"}', "does not say 'dim'"),
        ("[]", "does not say 'dim'"),
        ("{", "not valid JSON"),
        ('{"dim": 1, "dim": 2}', "not valid JSON"),
        ('{"dim": 36, "n_heads": 4}', "has 8 columns, of which no number makes up the 36"),
        ('{"dim": 320000, "n_heads": 4}', "has 8 columns, of which no number makes up the 320,000"),
        ('{"dim": 64, "n_heads": 8}', "4 of 8 parts are missing: 'consolidated.04.pth'"),
    ],
)
def test_parameters_that_do_not_fit_are_named(parameters: str, words: str, llama: Path) -> None:
    (llama / "params.json").write_text(parameters)
    refused(llama, words)


def test_the_parameters_are_needed(llama: Path) -> None:
    (llama / "params.json").unlink()
    refused(llama, "parts of a LLaMA model, without params.json", "hint: download params.json")
    found = run("inspect", "--json", llama / PART(1)).json["findings"]
    assert found == []  # nothing says that there are other parts


def test_files_without_the_output_matrix_of_attention_are_unknown(llama: Path) -> None:
    for number in range(4):
        torch.save({"w": torch.zeros(3)}, llama / PART(number))
    refused(llama, "the number of parts is unknown")


def test_weights_in_another_form_are_taken_first(llama: Path) -> None:
    safetensors.torch.save_file({"w": torch.ones(2)}, llama / "model.safetensors")
    assert list(open_checkpoint(llama)) == ["w"]
