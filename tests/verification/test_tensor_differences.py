"""What a diff of two files says, beside what torch computes of the same tensors."""

import pytest
import torch
from safetensors.torch import save_file

from tests.helpers.running import run

HEAD = "lm_head.weight"
NAME = "transformer.h.0.mlp.c_fc.weight"


def saved(path, tensors):
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)
    return path


def rows(result):
    return {row["before"] or row["after"]: row for row in result.json["tensors"]}


def test_measures_are_torchs(source, state, tmp_path):
    other = state[NAME] + torch.randn(64, 256, generator=torch.Generator().manual_seed(5)) * 1e-3
    other[3] = state[NAME][3]
    after = saved(tmp_path / "m.safetensors", dict(state) | {NAME: other})
    result = run("diff", source, after, "--json")
    assert (result.code, result.json["equal"]) == (1, False)
    assert [n for n, row in rows(result).items() if row["state"] != "equal"] == [NAME]
    row = rows(result)[NAME]
    one, two = state[NAME].double(), other.double()
    assert (row["numel"], row["differing"]) == (one.numel(), int((one != two).sum()))
    assert row["most"] == (one - two).abs().max().item()
    cosine = torch.nn.functional.cosine_similarity(one.flatten(), two.flatten(), 0).item()
    assert row["cosine"] == pytest.approx(cosine, abs=1e-14)
    shown = run("diff", source, after).out.splitlines()
    assert NAME in shown[1]
    assert shown[-1].endswith("1 changed") or "1 changed" in shown[-1]


def test_equal_whatever_the_container_and_the_names(source, state, tmp_path):
    bare = {name.removeprefix("transformer."): t for name, t in state.items() if name != HEAD}
    result = run("diff", source, saved(tmp_path / "m.safetensors", bare), "--json")
    assert (result.code, result.json["equal"]) == (0, True)
    states = {row["state"] for row in rows(result).values()}
    assert states == {"renamed", "left out"}
    assert rows(result)[HEAD]["state"] == "left out"
    run("convert", source, "-o", tmp_path / "m.gguf", "--no-vocab")
    assert run("diff", tmp_path / "m.gguf", source).code == 0


def test_what_came_went_and_moved(source, state, tmp_path):
    other = dict(state)
    other["moved"] = other.pop(NAME)
    other["more"] = torch.ones(2)
    del other["transformer.ln_f.bias"]
    result = run("diff", source, saved(tmp_path / "m.safetensors", other), "--json")
    found = {name: row["state"] for name, row in rows(result).items() if row["state"] != "equal"}
    assert found == {NAME: "renamed", "transformer.ln_f.bias": "removed", "more": "added"}
    assert (rows(result)[NAME]["after"], result.code) == ("moved", 1)
    assert f"{NAME} => moved" in run("diff", source, tmp_path / "m.safetensors").out


CASES = {
    "a zero's sign": ([0.0, 1.0], [-0.0, 1.0], 1, 0.0),
    "a NaN where none was": ([1.0, 2.0], [float("nan"), 2.0], 1, None),
    "the same NaN": ([float("nan"), 2.0], [float("nan"), 2.0], 0, 0.0),
    "an infinity": ([1.0, float("inf")], [2.0, float("inf")], 1, 1.0),
    "nothing": ([], [], 0, 0.0),
    "whole numbers": ([1, 2, 3], [1, 5, 3], 1, 3.0),
}


@pytest.mark.parametrize("case", CASES)
def test_numbers_that_are_odd(tmp_path, case):
    one, two, differing, most = CASES[case]
    before = saved(tmp_path / "a.safetensors", {"w": torch.tensor(one)})
    after = saved(tmp_path / "b.safetensors", {"w": torch.tensor(two)})
    result = run("diff", before, after, "--json")
    row = rows(result)["w"]
    assert (row["differing"], row["most"]) == (differing, most)
    assert result.code == (1 if differing else 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_another_type_is_a_change_measured_by_value(tmp_path, dtype):
    values = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    before = saved(tmp_path / "a.safetensors", {"w": values})
    after = saved(tmp_path / "b.safetensors", {"w": values.to(dtype)})
    result = run("diff", before, after, "--json")
    row, apart = rows(result)["w"], (values.double() - values.to(dtype).double()).abs()
    assert result.code == 1
    assert (row["state"], row["most"]) == ("changed", apart.max().item())
    assert row["differing"] == int((apart > 0).sum())


def test_another_shape_has_no_measures(tmp_path):
    before = saved(tmp_path / "a.safetensors", {"w": torch.ones(2, 3)})
    after = saved(tmp_path / "b.safetensors", {"w": torch.ones(3, 2)})
    result = run("diff", before, after)
    assert result.code == 1
    assert "2x3 => 3x2" in result.out
