"""Formats, targets and architectures are rows of tables: what a row names is there, and fits."""

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import cgpt_convert
from cgpt_convert.architectures.schema import architectures
from cgpt_convert.core.lazy import Lazy
from cgpt_convert.targets.model_targets import MODEL_TARGETS, ModelTarget
from cgpt_convert.targets.tokenizer.bpe import GPT2_TOKENS

PACKAGE = Path(cgpt_convert.__file__).parent
_GPT2_NAMES = re.compile(r"\b(wte|wpe|ln_f|c_attn|lm_head)\b")


def declared(row: type, field: str) -> tuple[list[str], str]:
    """The types of the arguments and of the result that a class declares for a function."""
    annotation = row.__annotations__[field]
    text = annotation if isinstance(annotation, str) else annotation.__forward_arg__
    node: Any = ast.parse(text, mode="eval").body
    while isinstance(node, ast.BinOp):  # | None
        node = node.left
    arguments, result = node.slice.elts
    return [ast.unparse(each) for each in arguments.elts], ast.unparse(result)


def signature(function: Any) -> tuple[list[str], str]:
    found = inspect.signature(function)
    return [each.annotation for each in found.parameters.values()], found.return_annotation


def test_the_functions_of_whole_model_targets_fit() -> None:
    for name, target in MODEL_TARGETS.items():
        assert name == target.name
        assert isinstance(target.content, Lazy)
        assert signature(target.content.get()) == declared(ModelTarget, "content")


def test_a_reference_to_nothing_is_an_error() -> None:
    with pytest.raises(AttributeError):
        Lazy("cgpt_convert.core.lazy:missing")()
    with pytest.raises(ModuleNotFoundError):
        Lazy("cgpt_convert.missing:missing")()


def test_names_of_tensors_are_known_to_their_architecture_alone() -> None:
    own = PACKAGE / "architectures" / "gpt2"
    modules = [path for path in PACKAGE.rglob("*.py") if own not in path.parents]
    assert len(modules) > 200
    found = {
        str(path.relative_to(PACKAGE)): names
        for path in modules
        if (names := _GPT2_NAMES.findall(path.read_text()))
    }
    assert found == {}
    assert any(_GPT2_NAMES.search(path.read_text()) for path in own.glob("*.py"))


def test_the_usual_vocabulary_is_that_of_the_tokenizer() -> None:
    usual = architectures()["gpt2"].vocabulary
    assert usual is not None
    assert (usual.size, usual.end) == (GPT2_TOKENS, GPT2_TOKENS - 1)
