"""Whose tensors are these? A file's names and shapes against the architectures that are known."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from cgpt_convert.mapping import misfits
from cgpt_convert.mapping.architecture import LAYERS, Architecture, Place, architectures, template
from cgpt_convert.mapping.config import count, mup_refusal
from cgpt_convert.mapping.identity import Model, models
from cgpt_convert.mapping.recognised import Recognised
from cgpt_convert.shapes import is_c_order
from cgpt_convert.tensor import Tensor


def recognise(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None = None
) -> Recognised | None:
    """What the tensors of a checkpoint are; None if they are of no architecture that is known.

    `config` is the content of the config.json beside it, for what shapes cannot tell; believed for
    heads and muP only, `check_config` says where it contradicts the tensors.
    """
    for architecture in architectures().values():
        prefix = _prefix(architecture, tensors)
        if prefix is not None:
            return _recognised(architecture, prefix, tensors, config or {})
    return None


def _recognised(
    architecture: Architecture,
    prefix: str,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
) -> Recognised:
    places, skipped, unexpected = _sort(architecture, prefix, tensors)
    found = {name: (place, tensors[name]) for name, place in places.items()}
    sizes = misfits.vote(found.values())
    layers = [place.layer for place in places.values() if place.layer is not None]
    sizes[LAYERS] = max(layers, default=-1) + 1
    model, n_head, source = _heads(architecture, sizes, config)
    return Recognised(
        architecture=architecture,
        prefix=prefix,
        places=places,
        sizes=sizes,
        n_head=n_head,
        n_head_source=source,
        model=model,
        skipped=tuple(skipped),
        misfits=(
            *misfits.unexpected(architecture, {name: tensors[name] for name in unexpected}),
            *misfits.ill_shaped(found, sizes),
            *misfits.missing(architecture, prefix, places, sizes),
        ),
        head=_head(found),
        conv1d=_conv1d(tensor for place, tensor in found.values() if place.rule.conv1d),
        refusal=mup_refusal(architecture, config, getattr(tensors, "path", "")),
    )


def _prefix(architecture: Architecture, names: Iterable[str]) -> str | None:
    """The prefix under which the architecture's anchors are there; None if they are not."""
    known: dict[str, Counter[str]] = defaultdict(Counter)
    for name in names:
        for prefix in architecture.prefixes:
            if name.startswith(prefix):
                pattern = template(name[len(prefix) :])[0]
                if pattern in architecture.rules:
                    known[prefix][pattern] += 1
    fitting = [
        prefix
        for prefix, patterns in known.items()
        if all(line & patterns.keys() for line in architecture.anchors)
    ]
    return max(fitting, key=lambda prefix: known[prefix].total(), default=None)


def _sort(
    architecture: Architecture, prefix: str, names: Iterable[str]
) -> tuple[dict[str, Place], list[str], list[str]]:
    """The names that are the architecture's tensors, its buffers, and neither."""
    places: dict[str, Place] = {}
    skipped: list[str] = []
    unexpected: list[str] = []
    for name in names:
        bare = name[len(prefix) :] if name.startswith(prefix) else None
        pattern, layer = template(bare or "")
        rule = architecture.rules.get(pattern)
        if rule is None or not rule.prefixed:
            # what stands outside the prefix, such as the head, and what is unknown
            rule, layer = architecture.rules.get(name), None
            rule = None if rule is None or rule.prefixed else rule
        if rule is not None:
            places[name] = Place(rule, layer)
        elif pattern in architecture.skipped:
            skipped.append(name)
        else:
            unexpected.append(name)
    return places, skipped, unexpected


def _heads(
    architecture: Architecture, sizes: Mapping[str, int], config: Mapping[str, Any]
) -> tuple[Model | None, int | None, str]:
    """The known model, the number of heads, and who says so: config.json first, then the table."""
    rows = [m for m in models() if m.architecture == architecture.name and m.sizes == sizes]
    said = count(config, architecture.config_keys.get("n_head", ()))
    width = sizes.get("n_embd", 0)
    if said and width % said == 0:
        matching = [model for model in rows if model.n_head == said]
        return (matching[0] if matching else None), said, "config.json"
    if len(rows) == 1:
        return rows[0], rows[0].n_head, rows[0].name
    return None, None, ""


def _head(found: Mapping[str, tuple[Place, Tensor]]) -> str:
    twins = {place.rule.name: tensor for place, tensor in found.values()}
    for place, tensor in found.values():
        if place.rule.tied_to:
            twin = twins.get(place.rule.tied_to)
            return "tied" if twin is not None and twin.view == tensor.view else "own copy"
    return "absent"


def _conv1d(weights: Iterable[Tensor]) -> str:
    ways = {_way(weight) for weight in weights}
    return "mixed" if len(ways) > 1 else "".join(ways)


def _way(weight: Tensor) -> str:
    if weight.is_c_order:
        return "contiguous"
    turned = is_c_order(weight.shape[::-1], weight.strides[::-1])
    return "transposed" if turned else "mixed"
