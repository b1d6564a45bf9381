"""Folders as DeepSpeed's ZeRO optimizers write them, made from weights that are known."""

import math
import random
from pathlib import Path
from typing import Any

import torch

State = dict[str, torch.Tensor]
GROUPS = 2


def write(folder: Path, stage: int, ranks: int, seed: int) -> State:
    """Write a checkpoint of random shapes; return the weights that its script makes of it.

    DeepSpeed divides float32 weights among the ranks: by groups in stages 1 and 2, where the end is
    padded to twice the ranks, and one by one in stage 3, where each is padded to the ranks.
    """
    rng = random.Random(seed)
    torch.manual_seed(seed)
    folder.mkdir(parents=True)
    groups = [
        {
            f"g{group}.p{number}.weight": torch.randn(
                [rng.randrange(1, 6) for _ in range(rng.randrange(4))]
            )
            for number in range(rng.randrange(1, 5))
        }
        for group in range(GROUPS)
    ]
    trained = {name: value for group in groups for name, value in group.items()}
    frozen = {"frozen.a": torch.randn(3, 5).half(), "frozen.b": torch.randn(2).half()}
    first = next(iter(trained))
    buffers = {"norm.mean": torch.randn(4)}
    model: dict[str, Any] = {
        "module": {name: value.half() for name, value in trained.items()} | frozen | buffers,
        "buffer_names": [*buffers],
        "param_shapes": [{name: value.shape for name, value in g.items()} for g in groups],
        "shared_params": {"tied": first},
        "frozen_param_shapes": {name: value.shape for name, value in frozen.items()},
        "ds_version": "0.17.5",
    }
    if stage == 3:
        vectors = _by_parameter(groups, ranks)
        for rank in range(ranks):
            fragments = {name: parts(value, ranks)[rank] for name, value in frozen.items()}
            empty = {name: torch.empty(0).half() for name in trained}
            own = {"module": empty | buffers, "frozen_param_fragments": fragments}
            torch.save(model | own, folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
    else:
        vectors = _by_group(groups, ranks)
        path = folder / "mp_rank_00_model_states.pt"
        torch.save(model | {"frozen_param_fragments": frozen}, path)
    key = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
    for rank, vector in enumerate(vectors):
        count = ranks if stage == 3 else [ranks] * GROUPS
        state = {"zero_stage": stage, "partition_count": count, key: vector}
        path = folder / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        torch.save({"optimizer_state_dict": state, "ds_config": {}}, path)
    return {**buffers, **frozen, **trained, "tied": trained[first]}


def parts(value: torch.Tensor, ranks: int) -> list[torch.Tensor]:
    """A vector for each rank, the last padded with zeros."""
    flat = value.flatten()
    size = math.ceil(flat.numel() / ranks)
    flat = torch.cat([flat, flat.new_zeros(size * ranks - flat.numel())])
    return [part.clone() for part in flat.split(size)]


def _by_group(groups: list[State], ranks: int) -> list[list[torch.Tensor]]:
    each: list[list[torch.Tensor]] = [[] for _ in range(ranks)]
    for group in groups:
        flat = torch.cat([value.flatten() for value in group.values()])
        flat = torch.cat([flat, flat.new_zeros(-flat.numel() % (2 * ranks))])
        for vector, part in zip(each, parts(flat, ranks), strict=True):
            vector.append(part)
    return each


def _by_parameter(groups: list[State], ranks: int) -> list[list[torch.Tensor]]:
    return [
        [torch.cat([parts(value, ranks)[rank] for value in group.values()]) for group in groups]
        for rank in range(ranks)
    ]
