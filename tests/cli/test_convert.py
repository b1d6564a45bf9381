"""`convert`: what is chosen, how it is named and cast, and what is refused."""

import os
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

import cgpt_convert
from cgpt_convert.core.errors import BadRequest
from cgpt_convert.formats import registry
from cgpt_convert.formats.open import open_checkpoint
from cgpt_convert.tensors.dtypes import BY_NAME, cast_target
from tests.cli.test_extract import assert_same
from tests.cli.test_inspect import damage
from tests.helpers import vendor
from tests.helpers.running import contents, partials, run

DEMO = Path(cgpt_convert.__file__).parent / "demo"
# name -> an output of it; GGUF holds GPT-2 models under other names
FORMATS = {
    name: f"out{registry.by_name(name).suffix}" for name in registry.names() if name != "gguf"
}


@pytest.mark.parametrize("to", FORMATS)
def test_every_format_holds_the_very_same_tensors(
    state: vendor.State, model: Path, tmp_path: Path, to: str
) -> None:
    out = tmp_path / FORMATS[to]
    result = run("convert", model, "-o", out, "--to", to, "--json")
    assert result.code == 0
    assert result.json["aliases"] == {"lm_head.weight": "transformer.wte.weight"}
    assert result.json["nbytes"] == sum(map(len, contents(tmp_path).values()))
    assert result.json["tensors"] == len(state) - 1
    assert_same(out, state)


def test_safetensors_and_numpy_read_what_was_written(
    state: vendor.State, model: Path, tmp_path: Path
) -> None:
    run("convert", model, "-o", tmp_path / "a.safetensors", "--tied", "copy")
    run("convert", model, "-o", tmp_path / "a.npz", "--tied", "copy")
    tensors = safetensors.torch.load_file(tmp_path / "a.safetensors")
    arrays = np.load(tmp_path / "a.npz")
    for name, value in state.items():
        assert torch.equal(tensors[name], value)
        assert np.array_equal(arrays[name], value.numpy())


def test_the_suffix_chooses_the_format(model: Path, tmp_path: Path) -> None:
    for name in ("a.SafeTensors", "b.npz"):
        assert run("convert", model, "-o", tmp_path / name).code == 0
    assert safetensors.torch.load_file(tmp_path / "a.SafeTensors")
    assert len(np.load(tmp_path / "b.npz")) == 33  # the aliases are an array, too
    result = run("convert", model, "-o", tmp_path / "c.xyz")
    assert result.code == 2
    assert "--to" in result.err


def test_a_file_cannot_be_named_like_a_folder(model: Path, tmp_path: Path) -> None:
    result = run("convert", model, "-o", f"{tmp_path}/", "--to", "safetensors")
    assert result.code == 2
    assert "model.safetensors" in result.err
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_casts_are_torchs_and_say_what_they_cost(tmp_path: Path, dtype: str) -> None:
    values = torch.tensor([1.0, 1e-30, 70000.0, -3.4e38, float("inf"), float("nan"), 0.1])
    state = {"w": values, "count": torch.arange(3), "mask": torch.tensor([True])}
    path = vendor.save(state, tmp_path / "in.pt")
    out = tmp_path / "out.safetensors"
    result = run("convert", path, "-o", out, "--dtype", dtype, "--json")
    found = safetensors.torch.load_file(out)
    expected = values.to(getattr(torch, dtype))
    torch.testing.assert_close(found["w"], expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(found["count"], state["count"])
    assert torch.equal(found["mask"], state["mask"])
    overflowed = int((expected.isinf() & values.isfinite()).sum())
    zeroed = int(((expected == 0) & (values != 0)).sum())
    costs = {"overflowed": overflowed, "zeroed": zeroed}
    assert result.json["lossy"] == ({"w": costs} if any(costs.values()) else {})
    casts = [] if dtype == "float32" else [{"dtype": dtype, "tensors": 1, "values": 7, **costs}]
    assert result.json["casts"] == casts


SMALL, LARGE = 1e-30, 1e9


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ([1.0, 2.0], "none of 4 values became 0 or overflowed"),
        ([1.0, SMALL], "2 of 4 values became 0, none overflowed"),
        ([1.0, LARGE], "2 of 4 values overflowed, none became 0"),
        ([SMALL, LARGE], "2 of 4 values became 0, 2 overflowed"),
    ],
)
def test_one_line_says_what_was_cast_and_lost(
    values: list[float], sentence: str, tmp_path: Path
) -> None:
    state = {"v": torch.tensor(values), "w": torch.tensor(values), "n": torch.arange(2)}
    path = vendor.save(state, tmp_path / "in.pt")
    words = ("convert", path, "-o", tmp_path / "out.npz", "--overwrite", "--dtype", "float16")
    short, long = run(*words), run(*words, "--verbose")
    assert short.out.splitlines()[1:] == [f"  cast 2 tensors to float16: {sentence}"]
    lost = [f"{values.count(SMALL)} became 0, {values.count(LARGE)} overflowed"] * 2
    each = [f"    {name}: {counts}" for name, counts in zip("vw", lost, strict=True)]
    assert long.out.splitlines()[2:] == (each if {SMALL, LARGE} & {*values} else [])
    dry = run(*words, "--dry-run")
    assert dry.out.splitlines()[1:] == ["  would cast 2 tensors to float16"]


def test_quantizing_claims_nothing_about_single_values(tmp_path: Path) -> None:
    """Values that are small beside the greatest of their block become zero, and are not counted."""
    words = ("convert", DEMO, "--dtype", "q8_0", "--no-vocab", "-o")
    assert "  quantized 21 tensors to q8_0\n" in run(*words, tmp_path / "out.gguf").out
    dry = run(*words, tmp_path / "other.gguf", "--dry-run")
    assert "  would quantize 21 tensors to q8_0\n" in dry.out


SPELLINGS = {
    "float32": "float32 f32 FP32 torch.float32 torch.float single",
    "float16": "float16 f16 fp16 F16 half torch.half torch.float16",
    "bfloat16": "bfloat16 bf16 BF16 torch.bfloat16",
    "q8_0": "q8_0 Q8_0",
    "q4_1": "q4_1 Q4_1",
    "keep": "keep",
}


@pytest.mark.parametrize("dtype", SPELLINGS)
def test_common_spellings_of_types_are_understood(dtype: str) -> None:
    assert {cast_target(spelling) for spelling in SPELLINGS[dtype].split()} == {dtype}


def test_tensors_are_cast_to_types_in_common_spellings() -> None:
    tensor = open_checkpoint(DEMO)["transformer.ln_f.weight"]
    assert tensor.cast("fp16").dtype == tensor.cast(np.float16).dtype == BY_NAME["float16"]
    with pytest.raises(BadRequest, match=r"did you mean float16\? use one of float32, float16, "):
        tensor.cast("f17")
    with pytest.raises(BadRequest, match="'keep' is not a valid dtype"):
        tensor.cast("keep")


@pytest.mark.parametrize(
    ("spelling", "near"),
    [("f17", "float16"), ("bflot16", "bfloat16"), ("q8", "q8_0"), ("int8", ""), ("", "")],
)
def test_an_unknown_type_gets_the_nearest_one(spelling: str, near: str, tmp_path: Path) -> None:
    done = run("convert", DEMO, "-o", tmp_path / "out.npz", "--dtype", spelling)
    assert done.code == 2
    meant = f"did you mean {near}? " if near else ""
    hint = f"hint: {meant}use one of keep, float32, float16, bfloat16, q8_0, "
    assert done.err.startswith(f"error: --dtype: {spelling!r} is not a valid dtype\n{hint}")
    with pytest.raises(BadRequest, match=re.escape(f"{spelling!r} is not a valid dtype")):
        cgpt_convert.convert(DEMO, tmp_path / "out.npz", dtype=spelling)


def test_a_dry_run_says_the_same_and_writes_nothing(model: Path, tmp_path: Path) -> None:
    words = ("convert", model, "-o", tmp_path / "out.safetensors", "--json")
    dry = run(*words, "--dry-run").json
    assert contents(tmp_path) == {}
    real = run(*words).json
    assert (dry.pop("written"), real.pop("written")) == (False, True)
    assert dry == real
    assert run(*words[:-1], "--dry-run").out.startswith("would write")
    onto_itself = run("convert", model, "-o", model, "--to", "torch", "--overwrite", "--dry-run")
    assert onto_itself.code == 2


def test_matching_and_excluding_choose_tensors(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    words = ("--match", "*.h.0.*", "--match", "*.h.1.mlp.*", "--exclude", "*bias")
    assert run("convert", model, "-o", out, *words).code == 0
    names = set(open_checkpoint(out))
    assert names
    expected = {
        name
        for name in open_checkpoint(model)
        if (".h.0." in name or ".h.1.mlp." in name) and not name.endswith("bias")
    }
    assert names == expected


@pytest.mark.parametrize("first", ["transformer.wte.weight", "lm_head.weight"])
def test_of_tied_weights_the_embedding_is_kept(tmp_path: Path, first: str) -> None:
    weight = torch.randn(5, 4)
    names = sorted(("lm_head.weight", "transformer.wte.weight"), key=lambda name: name != first)
    path = vendor.save(OrderedDict.fromkeys(names, weight), tmp_path / "in.pt")
    alias, copy = tmp_path / "alias.safetensors", tmp_path / "copy.safetensors"
    result = run("convert", path, "-o", alias, "--json").json
    assert result["aliases"] == {"lm_head.weight": "transformer.wte.weight"}
    assert safetensors.torch.load_file(alias).keys() == {"transformer.wte.weight"}
    result = run("convert", path, "-o", copy, "--tied", "copy", "--json").json
    assert result["aliases"] == {}
    assert safetensors.torch.load_file(copy).keys() == set(names)


def test_views_of_one_storage_that_differ_are_not_tied(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    state = {"whole": whole, "part": whole[:2], "turned": whole.t(), "other": whole.clone()}
    path = vendor.save(state, tmp_path / "in.pt")
    result = run("convert", path, "-o", tmp_path / "out.safetensors", "--json").json
    assert result["aliases"] == {}
    assert_same(tmp_path / "out.safetensors", state)


def nested() -> dict[str, Any]:
    """A Lightning checkpoint: weights under state_dict, the optimizer's and an average beside."""
    return {
        "epoch": 3,
        "state_dict": OrderedDict({"model.w": torch.ones(2), "model.b": torch.zeros(2)}),
        "optimizer_states": [{"state": {0: {"exp_avg": torch.full((2,), 5.0)}}}],
        "ema": {"model.w": torch.full((2,), 7.0)},
    }


def converted(source: Path, *words: object) -> dict[str, torch.Tensor]:
    out = source.with_suffix(".safetensors")
    result = run("convert", source, "-o", out, "--overwrite", *words)
    assert result.code == 0, result.err
    found: dict[str, torch.Tensor] = safetensors.torch.load_file(out)
    return found


def test_a_lone_well_known_key_is_the_root_and_the_rest_is_said(tmp_path: Path) -> None:
    path = tmp_path / "lightning.ckpt"
    torch.save(nested(), path)
    assert converted(path).keys() == {"model.w", "model.b"}
    result = run("convert", path, "-o", tmp_path / "x.npz", "--json").json
    assert result["root"] == "state_dict"
    assert result["left_out"] == ["optimizer_states.0.state.0.exp_avg", "ema.model.w"]
    text = run("convert", path, "-o", tmp_path / "y.npz").out
    assert "using the tensors under 'state_dict'\n" in text
    assert "skipped outside 'state_dict': optimizer_states.0 (1 tensor), ema (1 tensor)" in text


def test_a_root_is_chosen_or_everything(tmp_path: Path) -> None:
    path = tmp_path / "lightning.ckpt"
    torch.save(nested(), path)
    assert converted(path, "--root", "ema").keys() == {"model.w"}
    assert float(converted(path, "--root", "ema")["model.w"][0]) == 7.0
    assert converted(path, "--root", "optimizer_states.0").keys() == {"state.0.exp_avg"}
    assert converted(path, "--root", ".").keys() == {
        "state_dict.model.w",
        "state_dict.model.b",
        "optimizer_states.0.state.0.exp_avg",
        "ema.model.w",
    }


def test_well_known_keys_inside_each_other_lead_to_the_innermost(tmp_path: Path) -> None:
    path = tmp_path / "chgnet.pt"
    torch.save({"model": {"model_args": {"k": 1}, "state_dict": {"w": torch.ones(1)}}}, path)
    assert converted(path).keys() == {"w"}


def test_several_candidates_are_listed_and_none_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "two.pt"
    torch.save({"net": {"w": torch.ones(1)}, "model": {"w": torch.zeros(1)}}, path)
    result = run("convert", path, "-o", tmp_path / "out.npz")
    assert result.code == 2
    assert "net, model" in result.err
    assert "--root ." in result.err
    assert converted(path, "--root", ".").keys() == {"net.w", "model.w"}


def test_a_well_known_key_without_tensors_is_no_candidate(tmp_path: Path) -> None:
    path = tmp_path / "one.pt"
    torch.save({"net": {"w": torch.ones(1)}, "params": {"lr": 0.1}}, path)
    assert converted(path).keys() == {"w"}


def test_a_name_like_a_well_known_key_is_no_container(tmp_path: Path) -> None:
    path = vendor.save({"model.w": torch.ones(1), "weight": torch.ones(2)}, tmp_path / "flat.pt")
    assert converted(path).keys() == {"model.w", "weight"}


def test_a_root_that_is_not_there_is_answered_with_those_that_are(tmp_path: Path) -> None:
    path = tmp_path / "lightning.ckpt"
    torch.save(nested(), path)
    result = run("convert", path, "-o", tmp_path / "out.npz", "--root", "weights")
    assert result.code == 2
    assert "state_dict" in result.err
    assert "ema" in result.err


def test_names_that_stand_for_two_values_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "collision.pt"
    torch.save({"a": {"b": torch.ones(1)}, "a.b": torch.zeros(1), "c": torch.ones(1)}, path)
    result = run("convert", path, "-o", tmp_path / "out.npz", "--root", ".")
    assert result.code == 3
    assert "tensor 'a.b' has more than one value" in result.err
    assert converted(path, "--root", ".", "--exclude", "a.b").keys() == {"c"}


def test_tensors_that_are_not_dense_are_all_named(tmp_path: Path) -> None:
    path = tmp_path / "sparse.pt"
    state = {f"s{i}": torch.eye(2).to_sparse() for i in range(3)} | {"w": torch.ones(1)}
    torch.save(state, path)
    result = run("convert", path, "-o", tmp_path / "out.npz")
    assert result.code == 3
    assert all(f"tensor 's{i}' is not dense: sparse_coo" in result.err for i in range(3))
    assert "use --exclude 's0' --exclude 's1' --exclude 's2' to skip them" in result.err
    assert converted(path, "--exclude", "s?").keys() == {"w"}


def test_existing_output_is_refused_and_kept(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    out.write_bytes(b"old")
    result = run("convert", model, "-o", out)
    assert result.code == 4
    assert "--overwrite" in result.err
    assert contents(tmp_path) == {"out.npz": b"old"}
    assert run("convert", model, "-o", out, "--overwrite").code == 0
    assert len(np.load(out))


def same_files(folder: Path) -> dict[str, Path]:
    """The very file `folder`/model.bin under other paths."""
    model = folder / "model.bin"
    (folder / "hard").hardlink_to(model)
    (folder / "soft").symlink_to("model.bin")
    (folder / "other").symlink_to(folder, target_is_directory=True)
    return {
        "itself": model,
        "a hard link": folder / "hard",
        "a symbolic link": folder / "soft",
        "another path": folder / "other" / ".." / folder.name / "model.bin",
    }


def test_the_input_is_never_the_output(model: Path, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(model.read_bytes())
    before = model.read_bytes()
    for how, path in same_files(tmp_path).items():
        words = ("-o", path, "--to", "safetensors", "--overwrite")
        result = run("convert", tmp_path / "model.bin", *words)
        assert result.code == 2, how
        assert "the output would replace the input" in result.err
    assert (tmp_path / "model.bin").read_bytes() == before


def test_a_folder_that_holds_the_input_is_never_the_output(model: Path, tmp_path: Path) -> None:
    (tmp_path / "p" / "deep").mkdir(parents=True)
    (tmp_path / "p" / "deep" / "model.bin").write_bytes(model.read_bytes())
    run("extract", model, "-o", tmp_path / "q")
    before = contents(tmp_path)
    for source, words in (
        (tmp_path / "p" / "deep" / "model.bin", ("extract", "-o", tmp_path / "p")),
        (tmp_path / "q", ("extract", "-o", tmp_path / "q")),
        (tmp_path / "q", ("convert", "--to", "npy", "-o", tmp_path / "q" / ".." / "q")),
    ):
        result = run(words[0], source, *words[1:], "--overwrite")
        assert result.code == 2
        assert "the output would replace the input" in result.err
    assert contents(tmp_path) == before


def test_shards_do_not_replace_the_shards_they_are_read_from(model: Path, tmp_path: Path) -> None:
    size = ("--max-shard-size", "300kB")
    run("convert", model, "-o", tmp_path / "model.safetensors", *size)
    before = contents(tmp_path)
    assert len(before) > 2
    index = tmp_path / "model.safetensors.index.json"
    result = run("convert", index, "-o", tmp_path / "model.safetensors", *size, "--overwrite")
    assert result.code == 2
    assert contents(tmp_path) == before


def test_shards_are_as_large_as_allowed_and_read_as_one(
    state: vendor.State, model: Path, tmp_path: Path
) -> None:
    result = run(
        "convert", model, "-o", tmp_path / "m.safetensors", "--max-shard-size", "100KB", "--json"
    ).json
    files = [file["name"] for file in result["files"]]
    count = len(files) - 1
    assert files[:-1] == [f"m-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    assert files[-1] == "m.safetensors.index.json"
    assert result["output"] == str(tmp_path / files[-1])
    assert not (tmp_path / "m.safetensors").exists()
    words = ("-o", tmp_path / "m.safetensors", "--max-shard-size", "100KB", "--dry-run")
    assert (
        f"would write {result['output']} and {count} shards: " in run("convert", model, *words).out
    )
    whole = run("convert", model, "-o", tmp_path / "one.safetensors", "--dry-run").out
    assert whole.startswith(f"would write {tmp_path / 'one.safetensors'}: ")
    for name in files[:-1]:
        tensors = safetensors.torch.load_file(tmp_path / name)
        assert sum(t.numel() * t.element_size() for t in tensors.values()) <= 100_000
    assert_same(tmp_path / files[-1], state)
    assert_same(tmp_path, state)


@pytest.mark.parametrize("size", ["5", "5 PB", "-1GB", "GB", "1e3"])
def test_sizes_are_numbers_of_bytes(model: Path, tmp_path: Path, size: str) -> None:
    words = ("convert", model, "-o", tmp_path / "m.safetensors", "--dry-run")
    result = run(*words, "--max-shard-size", size)
    assert result.code == (0 if size == "5" else 2)


def test_damage_is_named_and_leaves_nothing(model: Path, tmp_path: Path) -> None:
    for record, name in (("/data/0", "transformer.wte.weight"), ("/data/2", "c_attn.weight")):
        path = tmp_path / "damaged.bin"
        path.write_bytes(model.read_bytes())
        damage(path, record, 3)
        for to, out in FORMATS.items():
            result = run("convert", path, "-o", tmp_path / out, "--to", to)
            assert result.code == 3
            assert name in result.err
            assert result.out == ""
            assert list(contents(tmp_path)) == ["damaged.bin"]
            assert partials(tmp_path) == []


@pytest.mark.parametrize("name", ["n" * 243, "é" * 121])
def test_names_of_255_bytes_are_written(model: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name}.safetensors"
    assert 254 <= len(os.fsencode(path.name)) <= 255
    assert run("convert", model, "-o", path).code == 0
    assert safetensors.torch.load_file(path)
    result = run("convert", model, "-o", tmp_path / f"{name}nn.safetensors")
    assert result.code == 4
    assert "too long" in result.err


def test_a_linked_output_is_replaced_and_what_it_pointed_to_is_kept(
    model: Path, tmp_path: Path
) -> None:
    (tmp_path / "target").write_bytes(b"precious")
    out = tmp_path / "out.npz"
    out.symlink_to("target")
    assert run("convert", model, "-o", out).code == 4
    assert run("convert", model, "-o", out, "--overwrite").code == 0
    assert (tmp_path / "target").read_bytes() == b"precious"
    assert not out.is_symlink()


def test_folders_that_are_not_there_are_not_made(model: Path, tmp_path: Path) -> None:
    for words in (
        ("convert", "-o", tmp_path / "a" / "out.npz"),
        ("extract", "-o", tmp_path / "a/b"),
    ):
        result = run(words[0], model, *words[1:])
        assert result.code == 4
        assert "no such folder" in result.err
    assert contents(tmp_path) == {}
