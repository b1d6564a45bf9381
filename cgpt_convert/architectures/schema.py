"""The tensors of a model architecture: names, symbolic shapes, names in other formats.

All architectures use GPT-2's names for sizes: n_layer, n_embd (hidden size), n_inner (feed-forward
size), n_positions, vocab_size. `config_keys` has the corresponding keys of config.json.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from cgpt_convert.architectures.toml_files import parsed, reading

LAYER = "{i}"  # in names: the layer's number, from 0
LAYERS = "n_layer"  # the size that counts them
# the first numeric component of a name; at most 9,999, which exceeds any model's layer count
_NUMBER = re.compile(r"(?<=\.)(?:0|[1-9][0-9]{0,3})(?=\.)", re.ASCII)


class Dimension(NamedTuple):
    """One dimension: `factor` times the size called `symbol`."""

    factor: int
    symbol: str

    @classmethod
    def parse(cls, text: str) -> Dimension:
        """Parse a dimension such as `n_embd` or `3*n_embd`. Raises ValueError if invalid."""
        match = re.fullmatch(r"(?:([1-9][0-9]*)\*)?([a-z_]+)", text)
        if match is None:
            raise ValueError(f"{text!r} is not a dimension")
        return cls(int(match[1] or 1), match[2])

    def __str__(self) -> str:
        return self.symbol if self.factor == 1 else f"{self.factor}*{self.symbol}"


class TensorRule(NamedTuple):
    """A tensor of the architecture, or one per layer if its name contains `{i}`."""

    name: str  # without the architecture's prefix
    dims: tuple[Dimension, ...]
    names: Mapping[str, str]  # target ("gguf", "raw") -> its name there
    conv1d: bool  # stored as (in, out), as in transformers' Conv1D; other programs use (out, in)
    prefixed: bool
    tied_to: str  # the tensor with the same values, in which case it may be absent; or ""

    @property
    def layered(self) -> bool:
        """Whether each layer has such a tensor."""
        return LAYER in self.name

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...] | None:
        """Return the shape for these sizes; None if a required size is missing."""
        if any(dim.symbol not in sizes for dim in self.dims):
            return None
        return tuple(dim.factor * sizes[dim.symbol] for dim in self.dims)


class TensorPosition(NamedTuple):
    """A tensor's place in the architecture. `layer` counts from 0; None outside layers."""

    rule: TensorRule
    layer: int | None

    @property
    def key(self) -> tuple[str, int | None]:
        """The rule's name and the layer: equal for the same tensor."""
        return self.rule.name, self.layer

    def name(self, prefix: str) -> str:
        """Return the tensor's name in a file whose names have that prefix."""
        return (prefix if self.rule.prefixed else "") + fill(self.rule.name, self.layer)


class Vocabulary(NamedTuple):
    """The tokens of the tokenizer that models of the architecture usually have."""

    size: int
    end: int  # the token between texts, which begins and ends them


class Architecture(NamedTuple):
    """The content of one file of `mappings/architectures/`."""

    name: str
    model_types: tuple[str, ...]  # config.json's
    class_prefix: str  # the prefix of its class names in transformers; "" if unknown
    prefixes: tuple[str, ...]  # the first one is canonical
    anchors: tuple[frozenset[str], ...]
    skipped: frozenset[str]
    rules: Mapping[str, TensorRule]  # by name
    config_keys: Mapping[str, tuple[str, ...]]  # size -> its keys in config.json
    config_defaults: Mapping[str, Dimension]
    mup_neutral: Mapping[str, Any]
    mup_reason: str
    vocabulary: Vocabulary | None  # None if none is usual
    gguf_name: str  # llama.cpp's name for it; "" if llama.cpp does not support it
    gguf_keys: Mapping[str, str]  # size, n_head or layer_norm_epsilon -> its key, without that name

    @property
    def canonical(self) -> str:
        """The prefix used for output names."""
        return self.prefixes[0]

    def places(self, n_layer: int) -> Iterator[TensorPosition]:
        """Yield every tensor of a model with `n_layer` layers, in the file's order."""
        rules = list(self.rules.values())
        first = next((at for at, rule in enumerate(rules) if rule.layered), len(rules))
        yield from (TensorPosition(rule, None) for rule in rules[:first])
        layered = [rule for rule in rules if rule.layered]
        for layer in range(n_layer):
            yield from (TensorPosition(rule, layer) for rule in layered)
        yield from (TensorPosition(rule, None) for rule in rules[first:] if not rule.layered)

    def shapes(
        self, sizes: Mapping[str, int], prefix: str | None = None
    ) -> dict[str, tuple[int, ...]]:
        """Return name -> shape of every tensor of a model of these sizes, tied ones included.

        `prefix` defaults to the canonical one. Raises KeyError if a size is missing.
        """
        before = self.canonical if prefix is None else prefix
        return {
            place.name(before): tuple(dim.factor * sizes[dim.symbol] for dim in place.rule.dims)
            for place in self.places(sizes[LAYERS])
        }

    @property
    def ties(self) -> dict[str, str]:
        """Canonical name of each tensor that may be absent -> name of the tensor it then equals."""
        return {
            (self.canonical if rule.prefixed else "") + rule.name: self.canonical + rule.tied_to
            for rule in self.rules.values()
            if rule.tied_to
        }

    @property
    def symbols(self) -> frozenset[str]:
        """The names of all sizes that the tensors determine."""
        return frozenset(dim.symbol for rule in self.rules.values() for dim in rule.dims) | {LAYERS}


def template(name: str) -> tuple[str, int | None]:
    """Replace the first numeric component with `{i}`; return the result and the number or None."""
    if LAYER in name:
        return "", None  # a literal `{i}` in a file's name must not match a rule
    match = _NUMBER.search(name)
    if match is None:
        return name, None
    return f"{name[: match.start()]}{LAYER}{name[match.end() :]}", int(match[0])


def fill(name: str, layer: int | None) -> str:
    """Replace `{i}` with the layer's number and `{i+1}` with the number plus one."""
    if layer is None:
        return name
    return name.replace(LAYER, str(layer)).replace("{i+1}", str(layer + 1))


@functools.cache
def architectures() -> Mapping[str, Architecture]:
    """Return name -> architecture for every file in `mappings/architectures/`, read once.

    Raises Malformed, naming the file, if a file is invalid.
    """
    every = {}
    for path, content in parsed("architectures"):
        with reading(path):
            architecture = _parse(content)
        every[architecture.name] = architecture
    return every


@functools.cache
def tied_names() -> tuple[str, ...]:
    """Return the names, without prefixes, of tensors that equal another one if they are absent."""
    names = (
        rule.name
        for each in architectures().values()
        for rule in each.rules.values()
        if rule.tied_to
    )
    return tuple(dict.fromkeys(names))


def _parse(content: dict[str, Any]) -> Architecture:
    rules = [_rule(row) for row in content["tensors"]]
    config, vocabulary = content["config"], content.get("vocabulary")
    mup, gguf = content.get("mup", {}), content.get("gguf", {})
    return Architecture(
        name=content["name"],
        model_types=_strings(content["model_types"]),
        class_prefix=content.get("class_prefix", ""),
        prefixes=_strings(content["prefixes"]),
        anchors=tuple(frozenset(_strings(line)) for line in content["anchors"]),
        skipped=frozenset(_strings(content["skipped"])),
        rules={rule.name: rule for rule in rules},
        config_keys={size: _strings(keys) for size, keys in config["keys"].items()},
        config_defaults={size: Dimension.parse(text) for size, text in config["defaults"].items()},
        mup_neutral=mup.get("neutral", {}),
        mup_reason=mup.get("reason", ""),
        vocabulary=Vocabulary(**vocabulary) if vocabulary else None,
        gguf_name=gguf.get("architecture", ""),
        gguf_keys=gguf.get("keys", {}),
    )


def _rule(row: dict[str, Any]) -> TensorRule:
    return TensorRule(
        name=row["name"],
        dims=tuple(map(Dimension.parse, row["shape"])),
        names=row["names"],
        conv1d=row.get("conv1d", False),
        prefixed=row.get("prefixed", True),
        tied_to=row.get("tied_to", ""),
    )


def _strings(values: Iterable[object]) -> tuple[str, ...]:
    strings = tuple(values)
    if isinstance(values, str) or not all(isinstance(value, str) for value in strings):
        raise TypeError(f"{values!r} is not a list of strings")
    return strings  # type: ignore[return-value]
