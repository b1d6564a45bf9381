"""Colour: on terminals, and elsewhere as the environment asks."""

import math
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.test_output_streams import in_terminal
from tests.helpers import vendor
from tests.helpers.running import spawn

RED, GREEN, YELLOW, END = "\x1b[31m\x1b[1m", "\x1b[32m", "\x1b[33m", "\x1b[0m"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vendor.write(vendor.TINY, tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def changed(model: Path) -> Path:
    state = torch.load(model)
    next(iter(state.values()))[0] += 1
    return vendor.save(state, model.parent / "changed.bin")


# the environment, and whether a terminal and a pipe get colour
SETTINGS = [
    ({}, True, False),
    ({"NO_COLOR": "1"}, False, False),
    ({"NO_COLOR": ""}, True, False),
    ({"FORCE_COLOR": "1"}, True, True),
    ({"FORCE_COLOR": ""}, True, False),
    ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False, False),
    ({"FORCE_COLOR": "1", "TERM": "dumb"}, True, True),
    ({"TERM": "dumb"}, False, False),
]


@pytest.mark.parametrize(("environment", "terminal", "pipe"), SETTINGS)
def test_the_environment_decides_about_colour(
    model: Path, environment: dict[str, str], terminal: bool, pipe: bool
) -> None:
    """As in https://no-color.org and https://force-color.org."""
    shown = in_terminal(100, "inspect", model, **environment)
    piped = spawn("inspect", model, **environment).out
    assert ("\x1b" in shown, "\x1b" in piped) == (terminal, pipe)
    assert re.sub(r"\x1b\[\d*m", "", piped) == spawn("inspect", model, NO_COLOR="1").out


def test_verdicts_have_colours(model: Path, changed: Path) -> None:
    inspected = in_terminal(100, "inspect", model)
    assert f"  pickle       {GREEN}weights only{END}: loading needs no code" in inspected
    right = in_terminal(100, "verify", model, model)
    assert re.search(rf"model.bin:\s+{re.escape(GREEN)}\d+ checks passed", right)
    wrong = in_terminal(100, "verify", model, changed)
    assert f"{RED}failed{END}: transformer.wte.weight" in wrong
    assert re.search(re.escape(RED) + r"\d+ of \d+ checks failed" + re.escape(END), wrong)
    assert f"{YELLOW}2 changed{END}" in in_terminal(100, "diff", model, changed)


def test_dangerous_names_and_nan_are_red(tmp_path: Path) -> None:
    class Calling:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, ("true",)

    torch.save({"w": torch.tensor([math.nan, 1]), "x": Calling()}, tmp_path / "m.pt")
    shown = in_terminal(200, "inspect", tmp_path / "m.pt", "--stats")
    assert f"  {YELLOW}warning{END}      {RED}dangerous{END}: names posix.system" in shown
    assert f"  {RED}1{END}\r\n" in shown
    assert f"{RED}1 of 1 tensor contains NaN or Inf{END}: w" in shown
