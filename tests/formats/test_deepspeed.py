"""ZeRO checkpoints give the float32 weights that were divided; contradictions are named.

For the folders of this helper, DeepSpeed's zero_to_fp32.py (0.17.5) gives the same, element by
element; it is not run here, because the package needs a compiler to be installed.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from cgpt_convert import open_checkpoint
from tests.helpers import zero_runs
from tests.helpers.running import run

OPTIMIZER = "bf16_zero_pp_rank_{}_mp_rank_00_optim_states.pt".format
MODEL = "mp_rank_00_model_states.pt"


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_the_weights_are_those_that_were_divided(stage: int, ranks: int, tmp_path: Path) -> None:
    for seed in range(5):
        folder = tmp_path / f"{seed}"
        expected = zero_runs.write(folder, stage, ranks, 10 * stage + seed)
        with open_checkpoint(folder) as checkpoint:
            assert list(checkpoint) == list(expected)
            for name, tensor in checkpoint.items():
                assert tensor.shape == expected[name].shape
                assert torch.equal(tensor.torch(), expected[name]), name
            assert checkpoint.kind == f"DeepSpeed ZeRO-{stage} checkpoint, {ranks} ranks"
            assert list(checkpoint.ties) == ["tied"]


@pytest.fixture(params=[2, 3])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    zero_runs.write(tmp_path / "run" / "global_step10", request.param, 2, 1)
    (tmp_path / "run" / "latest").write_text("global_step10")
    (tmp_path / "run" / "zero_to_fp32.py").write_text("")
    return tmp_path / "run"


def test_a_run_is_converted_by_its_latest_checkpoint(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "model.safetensors"
    assert run("convert", folder, "-o", output, "--verify").code == 0
    assert run("verify", folder / "global_step10", output).code == 0
    with open_checkpoint(folder) as checkpoint:
        saved = safetensors.torch.load_file(output)
        assert saved.keys() == checkpoint.keys() - {"tied"}
        for name, value in saved.items():
            assert torch.equal(value, checkpoint[name].torch())
    assert run("inspect", "--check", folder).code == 0


def test_weights_that_a_trainer_saved_beside_the_checkpoint_are_taken(folder: Path) -> None:
    safetensors.torch.save_file({"w": torch.ones(2)}, folder / "model.safetensors")
    assert list(open_checkpoint(folder)) == ["w"]


def refused(folder: Path, *expected: str) -> None:
    result = run("inspect", folder)
    assert result.code == 3
    for words in expected:
        assert words in result.err


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    value = torch.load(path, weights_only=False)
    edit(value)
    torch.save(value, path)


def test_a_missing_rank_is_named(folder: Path) -> None:
    (folder / "global_step10" / OPTIMIZER(1)).unlink()
    refused(folder, "optimizer states of 1 of 2 ranks")


def test_the_model_states_are_needed(folder: Path) -> None:
    for path in (folder / "global_step10").glob("*model_states.pt"):
        path.unlink()
    refused(folder, "no model states and optimizer states")


@pytest.mark.parametrize("tag", ["../other", "/etc", "", "a/b", ".."])
def test_latest_names_a_folder_inside(tag: str, folder: Path) -> None:
    (folder / "latest").write_text(tag)
    refused(folder, "latest names no folder inside")


def test_a_missing_folder_is_named(folder: Path) -> None:
    (folder / "latest").write_text("global_step11")
    refused(folder, "'global_step11' that latest names is missing")


def test_shapes_that_do_not_fit_the_optimizer_are_named(folder: Path) -> None:
    def shrink(value: dict[str, Any]) -> None:
        state = value["optimizer_state_dict"]
        for key in ("fp32_flat_groups", "single_partition_of_fp32_groups"):
            if key in state:
                state[key] = [torch.cat([flat, torch.zeros(9)]) for flat in state[key]]

    for rank in (0, 1):
        change(folder / "global_step10" / OPTIMIZER(rank), shrink)
    refused(folder, "the parameters have", "and the optimizer has")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("param_shapes", 3),
        ("param_shapes", [{"w": torch.Size([1 << 40])}]),
        ("param_shapes", [{"w": (-1,)}, {}]),
        ("frozen_param_shapes", {"missing": torch.Size([2])}),
    ],
)
def test_model_states_that_make_no_sense_are_refused(key: str, value: Any, folder: Path) -> None:
    for path in (folder / "global_step10").glob("*model_states.pt"):
        change(path, lambda state: state.update({key: value}))
    refused(folder, "error: ")


def test_tensor_parallelism_is_refused(folder: Path) -> None:
    inside = folder / "global_step10"
    path = inside / OPTIMIZER(0)
    (inside / path.name.replace("mp_rank_00", "mp_rank_01")).write_bytes(path.read_bytes())
    refused(folder, "tensor parallelism")
