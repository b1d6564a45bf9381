"""Match a file's tensor names and shapes against the known architectures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from cgpt_convert.architectures import mismatches, wrapper_prefixes
from cgpt_convert.architectures.hf_config_check import count, mup_refusal
from cgpt_convert.architectures.known_models import KnownModel, models
from cgpt_convert.architectures.recognised_names import Recognised
from cgpt_convert.architectures.schema import (
    LAYERS,
    Architecture,
    TensorPosition,
    architectures,
    template,
)
from cgpt_convert.architectures.wrapper_prefixes import Prefix
from cgpt_convert.tensors.shapes import is_c_order
from cgpt_convert.tensors.tensor import Tensor


def recognise(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None = None
) -> Recognised | None:
    """Return the architecture and roles of the tensors; None if no known architecture fits.

    `config` is the content of config.json next to the checkpoint. It is trusted only for the number
    of heads and for muP; `check_config` lists its contradictions to the tensors.
    """
    for architecture in architectures().values():
        prefix = wrapper_prefixes.find_prefix(
            architecture, map(wrapper_prefixes.unwrapped, tensors)
        )
        if prefix is not None:
            recognised = _recognised(architecture, prefix, tensors, config or {})
            if not _is_another(recognised, config or {}):
                return recognised
    return None


def _is_another(recognised: Recognised, config: Mapping[str, Any]) -> bool:
    """Return whether config.json names another architecture that may fit the tensors.

    gpt_bigcode, jais and others use GPT-2's tensor names but compute differently.
    """
    kind = config.get("model_type")
    named = isinstance(kind, str) and kind not in recognised.architecture.model_types
    return named and (recognised.linear or bool(recognised.misfits))


def _recognised(
    architecture: Architecture,
    prefix: Prefix,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
) -> Recognised:
    places, skipped, unexpected, twice = _sort(architecture, prefix, tensors)
    placed = {name: (place, tensors[name]) for name, place in places.items()}
    sizes = mismatches.vote(placed.values())
    layers = [place.layer for place in places.values() if place.layer is not None]
    sizes[LAYERS] = max(layers, default=-1) + 1
    linear = mismatches.is_linear(placed.values(), sizes)
    model, n_head, source = _heads(architecture, sizes, config)
    return Recognised(
        architecture=architecture,
        prefix=prefix.wrapper + prefix.own,
        wrapper=_wrapper(prefix, places),
        places=places,
        sizes=sizes,
        n_head=n_head,
        n_head_source=source,
        shape_of=model,
        identity=model if model and model.is_named(config.get("_name_or_path")) else None,
        skipped=tuple(skipped),
        misfits=(
            *mismatches.unexpected(architecture, {name: tensors[name] for name in unexpected}),
            *mismatches.repeated(twice),
            *mismatches.ill_shaped(placed, sizes, linear=linear),
            *mismatches.missing(architecture, prefix, places.values(), sizes),
        ),
        head=_head(placed),
        conv1d="linear" if linear else _conv1d(placed.values()),
        linear=linear,
        refusal=mup_refusal(architecture, config, getattr(tensors, "path", "")),
    )


def _wrapper(prefix: Prefix, places: Mapping[str, TensorPosition]) -> str:
    """Return the longest wrapper prefix that occurs in the file's tensor names."""
    own = (
        wrapper_prefixes.removed(name, place.name(prefix.own))
        for name, place in places.items()
        if place.rule.prefixed
    )
    return max(own, key=len, default="")


def _sort(
    architecture: Architecture, prefix: Prefix, names: Iterable[str]
) -> tuple[dict[str, TensorPosition], list[str], list[str], dict[str, str]]:
    """Sort names into the architecture's tensors, buffers, unexpected names and duplicates.

    A duplicate is a further name of a tensor; it is returned with the name found first.
    """
    places: dict[str, TensorPosition] = {}
    skipped: list[str] = []
    unexpected: list[str] = []
    twice: dict[str, str] = {}
    owners: dict[tuple[str, int | None], str] = {}
    for name in names:
        place, buffer = _place(architecture, prefix, wrapper_prefixes.unwrapped(name))
        if place is None:
            (skipped if buffer else unexpected).append(name)
            continue
        owner = owners.setdefault(place.key, name)
        if owner == name:
            places[name] = place
        else:
            twice[name] = owner
    return places, skipped, unexpected, twice


def _place(
    architecture: Architecture, prefix: Prefix, name: str
) -> tuple[TensorPosition | None, bool]:
    """Return the architecture's tensor of that name, else None and whether it is a buffer."""
    before = prefix.wrapper + prefix.own
    bare = name[len(before) :] if name.startswith(before) else ""
    pattern, layer = template(bare)
    rule = architecture.rules.get(pattern)
    if rule is not None and rule.prefixed:
        return TensorPosition(rule, layer), False
    # tensors outside the architecture's prefix, such as the head
    rule = architecture.rules.get(name.removeprefix(prefix.wrapper))
    if rule is not None and not rule.prefixed:
        return TensorPosition(rule, None), False
    return None, pattern in architecture.skipped


def _heads(
    architecture: Architecture, sizes: Mapping[str, int], config: Mapping[str, Any]
) -> tuple[KnownModel | None, int | None, str]:
    """Return the known model, the number of heads and its source.

    config.json takes precedence over the model table.
    """
    rows = [m for m in models() if m.architecture == architecture.name and m.sizes == sizes]
    said = count(config, architecture.config_keys.get("n_head", ()))
    width = sizes.get("n_embd", 0)
    if said and width % said == 0:
        matching = [model for model in rows if model.n_head == said]
        return (matching[0] if matching else None), said, "config.json"
    if len(rows) == 1:
        return rows[0], rows[0].n_head, rows[0].name
    return None, None, ""


def _head(placed: Mapping[str, tuple[TensorPosition, Tensor]]) -> str:
    twins = {place.rule.name: tensor for place, tensor in placed.values()}
    for place, tensor in placed.values():
        if place.rule.tied_to:
            twin = twins.get(place.rule.tied_to)
            return "tied" if twin is not None and twin.view == tensor.view else "own copy"
    return "absent"


def _conv1d(placed: Iterable[tuple[TensorPosition, Tensor]]) -> str:
    ways = {_way(weight) for place, weight in placed if place.rule.conv1d}
    return "mixed" if len(ways) > 1 else "".join(ways)


def _way(weight: Tensor) -> str:
    if weight.is_c_order:
        return "contiguous"
    turned = is_c_order(weight.shape[::-1], weight.strides[::-1])
    return "transposed" if turned else "mixed"
