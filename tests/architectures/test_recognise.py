"""Files against architectures: what is recognised, what is not, and every misfit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cgpt_convert.architectures.hf_config_check import check_config
from cgpt_convert.tensors.tensor import Storage, Tensor, replace
from tests.helpers import vendor
from tests.helpers.known_models import (
    HEAD,
    MEMORY,
    bare,
    known,
    opened,
    small,
)


def test_the_vendors_checkpoint(tmp_path: Path) -> None:
    found = known(opened(vendor.write(vendor.TINY, tmp_path)))
    assert not found.misfits
    assert (found.prefix, found.head, found.conv1d) == ("transformer.", "tied", "transposed")
    assert set(found.skipped) == {
        f"transformer.h.{layer}.attn.{mask}" for layer in (0, 1) for mask in ("bias", "masked_bias")
    }
    assert (found.shape_of, found.n_head, found.n_head_source) == (None, None, "")
    assert found.refusal == ""


def test_the_headless_checkpoint_that_transformers_wrote(tmp_path: Path) -> None:
    checkpoint = opened(vendor.write(vendor.TINY, tmp_path, "hf"))
    config = json.loads(vendor.write_config(vendor.TINY, tmp_path, "hf").read_text())
    found = known(checkpoint, config)
    assert not found.misfits
    assert (found.prefix, found.head, found.conv1d) == ("", "absent", "contiguous")
    assert (found.n_head, found.n_head_source) == (4, "config.json")
    assert check_config(found, config) == []
    assert len(found.skipped) == 4


def test_biases_of_c_attn_are_not_taken_for_masks() -> None:
    found = known(small())
    assert "transformer.h.3.attn.c_attn.bias" in found.places
    assert found.skipped == ()


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
                "it is stored as a Linear weight (out, in), not as Conv1D (in, out)"
            ),
        ),
        (
            "transformer.wte.weight",
            (768, 50257),
            "shape 768 x 50257, expected 50257 x 768 (vocab_size x n_embd); it is transposed",
        ),
        (
            "transformer.wpe.weight",
            (768, 2048),
            "shape 768 x 2048, expected 2048 x 768 (n_positions x n_embd); it is transposed",
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
    assert line == f"{name}: dtype int8, expected a floating-point dtype"


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
    assert (found.misfits, found.linear, found.conv1d) == ((), True, "linear")
    name = "transformer.h.3.attn.c_proj.weight"  # square, so that its shape does not tell
    assert found.laid_out(name, tensors[name]).strides == tensors[name].strides[::-1]
    tensors["transformer.h.4.mlp.c_fc.weight"] = small()["transformer.h.4.mlp.c_fc.weight"]
    found = known(tensors)
    assert (found.linear, len(found.misfits)) == (False, 29)  # some one way, some the other
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
