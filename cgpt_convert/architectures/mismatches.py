"""Every difference between a file's tensors and the architecture's, with the expected value.

Each size is the value that most tensors agree on. One-dimensional tensors vote first because they
cannot be transposed. A single wrong tensor is then reported as wrong, rather than all others.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from cgpt_convert.architectures.schema import LAYERS, Architecture, Dimension, TensorPosition
from cgpt_convert.architectures.wrapper_prefixes import Prefix
from cgpt_convert.core.text import printable
from cgpt_convert.tensors.shapes import dims
from cgpt_convert.tensors.tensor import Tensor


def vote(placed: Iterable[tuple[TensorPosition, Tensor]]) -> dict[str, int]:
    """Return the sizes that the tensors' shapes imply, without those that no tensor shows."""
    by_rank: dict[int, list[tuple[Sequence[Dimension], tuple[int, ...]]]] = defaultdict(list)
    for place, tensor in placed:
        if len(tensor.shape) == len(place.rule.dims):
            by_rank[len(tensor.shape)].append((place.rule.dims, tensor.shape))
    known: dict[str, int] = {}
    for rank in sorted(by_rank):
        votes: dict[str, Counter[int]] = defaultdict(Counter)
        for wanted, shape in by_rank[rank]:
            for symbol, size in _solved(wanted, shape, known).items():
                votes[symbol][size] += 1
        for symbol, counter in votes.items():
            known.setdefault(symbol, counter.most_common(1)[0][0])
    return known


def unexpected(architecture: Architecture, tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """Yield a line for each of these tensors, which the architecture does not have."""
    for name, tensor in tensors.items():
        yield (
            f"{printable(name)}: unexpected ({tensor.stored.name}, {_dims(tensor)}); "
            f"{architecture.name} has no tensor with that name"
        )


def repeated(names: Mapping[str, str]) -> Iterator[str]:
    """Yield a line for each tensor that the file contains under a second name."""
    for name, owner in names.items():
        yield f"{printable(name)}: a second copy of the model's tensor {printable(owner)}"


def is_linear(placed: Iterable[tuple[TensorPosition, Tensor]], sizes: Mapping[str, int]) -> bool:
    """Return whether Conv1D weights are stored as (out, in), as in Linear layers.

    Square weights fit both ways and are ignored; all others have to be (out, in).
    """
    turned = straight = 0
    for place, tensor in placed:
        shape = place.rule.shape(sizes)
        if place.rule.conv1d and shape is not None and shape != shape[::-1]:
            turned += tensor.shape == shape[::-1]
            straight += tensor.shape == shape
    return turned > 0 and not straight


def ill_shaped(
    placed: Mapping[str, tuple[TensorPosition, Tensor]], sizes: Mapping[str, int], *, linear: bool
) -> Iterator[str]:
    """Yield a line for each tensor with an unexpected shape or a non-floating-point dtype."""
    for name, (place, tensor) in placed.items():
        shape = place.rule.shape(sizes)
        wanted = shape[::-1] if shape and linear and place.rule.conv1d else shape
        if tensor.shape != wanted:
            line = f"{printable(name)}: shape {_dims(tensor)}, expected {_wanted(place, sizes)}"
            if linear and place.rule.conv1d:
                line += ", stored as (out, in) like the file's other Linear weights"
            elif place.rule.conv1d and tensor.shape[::-1] == shape:
                line += "; it is stored as a Linear weight (out, in), not as Conv1D (in, out)"
            elif len(tensor.shape) > 1 and tensor.shape[::-1] == shape:
                line += "; it is transposed"
            yield line
        if not tensor.dtype.is_float:
            yield f"{printable(name)}: dtype {tensor.dtype.name}, expected a floating-point dtype"


def missing(
    architecture: Architecture,
    prefix: Prefix,
    present: Iterable[TensorPosition],
    sizes: Mapping[str, int],
) -> Iterator[str]:
    """Yield a line for each missing tensor, and one for each run of missing layers.

    A tied tensor may be absent. The highest layer present determines the number of layers.
    """
    keys = {place.key for place in present}
    layered = [rule for rule in architecture.rules.values() if rule.layered]
    gone: list[int] = []
    for layer in range(sizes[LAYERS]):
        places = [TensorPosition(rule, layer) for rule in layered]
        if any(place.key in keys for place in places):
            yield from _lost_layers(gone, prefix, len(layered))
            gone = []
            yield from _missing(places, prefix, keys, sizes)
        else:
            gone.append(layer)
    single = [rule for rule in architecture.rules.values() if not (rule.layered or rule.tied_to)]
    yield from _missing([TensorPosition(rule, None) for rule in single], prefix, keys, sizes)


def _missing(
    places: Iterable[TensorPosition],
    prefix: Prefix,
    keys: set[tuple[str, int | None]],
    sizes: Mapping[str, int],
) -> Iterator[str]:
    for place in places:
        if place.key not in keys:
            name = printable(prefix.wrapper) + place.name(prefix.own)
            yield f"{name}: missing, expected {_wanted(place, sizes)}"


def _lost_layers(layers: list[int], prefix: Prefix, tensors: int) -> Iterator[str]:
    if layers:
        first, last = layers[0], layers[-1]
        which = f"layer {first} is" if first == last else f"layers {first} to {last} are"
        before = printable(prefix.wrapper + prefix.own)
        names = f" (names {before}*)" if before else ""
        yield f"{which} missing, expected {tensors} tensors per layer{names}"


def _solved(
    dims: Sequence[Dimension], shape: tuple[int, ...], known: Mapping[str, int]
) -> dict[str, int]:
    """Return the sizes that give these dimensions the shape, or the reversed shape.

    Empty if no sizes agree with the known ones.
    """
    for candidate in (shape, shape[::-1]):
        sizes = dict(known)
        if all(
            size % dim.factor == 0
            and sizes.setdefault(dim.symbol, size // dim.factor) == size // dim.factor
            for dim, size in zip(dims, candidate, strict=True)
        ):
            return {dim.symbol: sizes[dim.symbol] for dim in dims}
    return {}


def _wanted(place: TensorPosition, sizes: Mapping[str, int]) -> str:
    """Return the shape in numbers, as far as they are known, and in symbols."""
    dims = place.rule.dims
    numbers = [str(d.factor * sizes[d.symbol]) if d.symbol in sizes else str(d) for d in dims]
    return f"{' x '.join(numbers)} ({' x '.join(map(str, dims))})"


def _dims(tensor: Tensor) -> str:
    return dims(tensor.shape, " x ")
