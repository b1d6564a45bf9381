"""Formats, targets and architectures are rows of tables: what a row names is there, and fits."""

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import cgpt_convert
from cgpt_convert.architectures.schema import architectures
from cgpt_convert.core.lazy import LazyReference
from cgpt_convert.formats import registry
from cgpt_convert.formats.file_kinds import Kind
from cgpt_convert.formats.registry import Format
from cgpt_convert.targets.model_targets import MODEL_TARGETS, ModelTarget
from cgpt_convert.targets.tokenizer.bpe import GPT2_TOKENS
from cgpt_convert.tensors.dtypes import DType

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
        assert isinstance(target.content, LazyReference)
        assert signature(target.content.get()) == declared(ModelTarget, "content")


HOOKS = [
    (form, field)
    for form in registry.built_in()
    for field, value in form._asdict().items()
    if callable(value)
]


@pytest.mark.parametrize(("form", "field"), HOOKS, ids=lambda value: getattr(value, "name", value))
def test_the_functions_of_formats_fit(form: Format, field: str) -> None:
    hook = getattr(form, field)
    if field == "dtypes":  # a reference to the value itself
        assert {type(row) for row in hook()} == {DType}
        return
    arguments, result = signature(hook.get() if isinstance(hook, LazyReference) else hook)
    wanted, allowed = declared(Format, field)
    assert arguments == wanted
    assert set(result.split(" | ")) <= set(allowed.split(" | "))


def test_every_format_says_how_its_files_or_folders_are_found() -> None:
    forms = list(registry.built_in())
    for form in forms:
        if form.read_file is not None:
            assert form.kinds
            assert form.magic or form.detect
        else:
            assert form.folder_index or form.folder_of
        for kind in form.kinds:  # a ZIP, tar or pickle is scanned without a function of the format
            assert kind.base is not None or form.scan is not None
    kinds = [kind for form in forms for kind in form.kinds]
    assert len({kind.value for kind in (*kinds, *Kind)}) == len(kinds) + len(Kind)


def test_formats_are_named_in_their_folders_only() -> None:
    """Nothing in the core of formats and of the scanner has a list of formats or their kinds."""
    names = {form.name for form in registry.built_in()} - {"parameters", "torch"}
    common = [*(PACKAGE / "formats").glob("*.py"), PACKAGE / "scanning" / "scanner.py"]
    for path in common:
        constants = {
            node.value.lower()
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        assert not constants & (names - set(registry.FIRST)), path


def test_a_reference_to_nothing_is_an_error() -> None:
    with pytest.raises(AttributeError):
        LazyReference("cgpt_convert.core.lazy:missing")()
    with pytest.raises(ModuleNotFoundError):
        LazyReference("cgpt_convert.missing:missing")()


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
