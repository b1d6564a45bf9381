"""Tensors in whatever objects they lie, under the names that torch gives them."""

from __future__ import annotations

import collections
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from cgpt_convert.core import findings
from cgpt_convert.pickles.nodes import text
from tests.helpers import zips
from tests.helpers.torch_agreement import BASE, bits, check, opened, raw


def test_containers_of_every_kind() -> None:
    one, two = torch.ones(2), torch.zeros(3)
    checkpoint = check(
        {
            "list": [one, [two, (one,)]],
            "ordered": collections.OrderedDict(a=one, b={"c": two}),
            "default": {"x": one},
            3: two,
            "counter": 4,
            "size": torch.Size([1, 2]),
        }
    )
    assert checkpoint.containers == {"": "", "ordered": "", "ordered.b": "ordered", "default": ""}
    leaves = {leaf.path: leaf.value for leaf in checkpoint.others}
    assert leaves["counter"] == 4


def test_defaultdicts() -> None:
    value = collections.defaultdict(list)
    value["w"].append(torch.ones(2))
    check({"state": value}, weights_only=False)


def test_optimizer_state_has_integer_keys() -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    checkpoint = check({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    assert "optimizer.state.0.exp_avg" in checkpoint
    leaves = {leaf.path: leaf.value for leaf in checkpoint.others}
    assert leaves["optimizer.param_groups.0.betas"] == (0.9, 0.999)


def test_state_dict_carries_its_metadata_as_no_tensor() -> None:
    checkpoint = check(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).state_dict())
    assert [leaf.path for leaf in checkpoint.others] == ["_metadata"]
    assert "version" in text(checkpoint.others[0].value)


def test_single_tensor_and_list_of_tensors() -> None:
    check(BASE)
    check([BASE, BASE[0]])


def test_same_name_twice_is_a_finding() -> None:
    checkpoint = opened(zips.saved({"a.b": torch.ones(1), "a": {"b": torch.zeros(1)}}))
    assert [finding.rule for finding in checkpoint.findings] == [findings.COLLISION]
    assert checkpoint.collisions == {"a.b"}


class Net(nn.Module):
    """A model as people pickle them whole."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.LayerNorm(4)])
        self.register_buffer("mask", torch.ones(2, 2).tril())
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight
        self.plain = torch.tensor([1.0])
        self.parent = [self]


def test_whole_module_has_the_names_of_its_state_dict() -> None:
    model = Net()
    checkpoint = opened(zips.saved(model))
    state = model.state_dict()
    assert set(checkpoint) == {*state, "plain"}
    assert {name: bits(checkpoint[name]) for name in state} == {
        name: raw(tensor) for name, tensor in state.items()
    }
    assert checkpoint.ties in ({"head.weight": "embed.weight"}, {"embed.weight": "head.weight"})


@dataclass
class Hyper:
    """A class that only its author has."""

    rate: float
    ema: torch.Tensor


def test_training_checkpoint_with_foreign_objects() -> None:
    import argparse

    checkpoint = check(
        {
            "state_dict": collections.OrderedDict(w=BASE),
            "hyper_parameters": argparse.Namespace(lr=0.1, path=Path("a/b")),
            "hparams": {"scheduler": Path("x"), "epoch": 3},
            "callbacks": {"Early{'monitor': 'loss'}": {"best": torch.tensor(0.5)}},
            "rng": [torch.get_rng_state(), None],
        },
        weights_only=False,
    )
    [finding] = checkpoint.findings
    assert finding.rule is findings.FOREIGN
    assert "argparse.Namespace" in finding.detail


def test_tensors_inside_foreign_objects_are_found() -> None:
    checkpoint = opened(zips.saved({"h": Hyper(0.1, BASE)}))
    assert bits(checkpoint["h.ema"]) == raw(BASE)
    assert [leaf.path for leaf in checkpoint.others] == ["h"]
