"""Compare two files of a model on the same tokens: the first difference, and its size.

Both models run side by side, one block at a time, and their logits are compared in parts of the
vocabulary. Neither a model nor its embeddings have to fit into memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.core.checks import FAILED, PASSED, Check
from cgpt_convert.core.errors import BadRequest
from cgpt_convert.inference.model import Model
from cgpt_convert.tensors.dtypes import TABLE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
from cgpt_convert.inference.text_codec import Encoder, find

TOKENS = 64  # the default; the tolerances were measured with this number
_GOLDEN = (5**0.5 - 1) / 2  # fractional parts of its multiples fill 0 to 1 evenly


def spread(model: Model) -> list[int]:
    """Return token IDs spread over the vocabulary, the same for each model of that size.

    There are `TOKENS` of them, or as many as the model has positions.
    """
    vocabulary = model.hyper.vocab_size
    count = min(TOKENS, model.hyper.n_positions)
    return [int((number + 0.5) * _GOLDEN % 1 * vocabulary) for number in range(count)]


def beginning(model: Model, text: str, folder: str | None) -> list[int]:
    """Return the text's first tokens, as many as the model has positions.

    The tokenizer is the one in `folder`, else in or next to the model. Raises the errors of
    `text.find`.
    """
    tokenizer = find(model.source.checkpoint, folder, model.hyper.vocab_size)
    return Encoder(tokenizer).encode(text)[: model.hyper.n_positions]


# by dtype of the target's weights: the tolerated NMSE of states and logits
TOLERANCES = {row.name: row.tolerance for row in TABLE if row.tolerance is not None}

_PIECE = 1 << 18  # elements compared at once in float64; 2 MiB stay in the cache


class StateDifference(NamedTuple):
    """The difference between a state or the logits of the target and the source."""

    name: str  # "embeddings", "h.0" ..., the final norm's name, "logits"
    greatest: float  # maximum of |target - source|
    nmse: float  # sum of (target - source)^2 / sum of source^2


class Comparison(NamedTuple):
    """The result of a comparison. `differences` are in the order of computation."""

    tokens: int
    dtype: str  # the coarsest dtype of the target's weights, which sets the tolerance
    tolerance: float
    differences: tuple[StateDifference, ...]
    agreement: float  # fraction of positions with the same top-1 token

    @property
    def first(self) -> StateDifference | None:
        """The first difference above the tolerance or NaN; None if there is none."""
        return next((d for d in self.differences if not d.nmse <= self.tolerance), None)

    @property
    def ok(self) -> bool:
        """Whether all differences are within the tolerance."""
        return self.first is None

    @property
    def agreeing(self) -> str:
        """The agreement as text."""
        same = round(self.agreement * self.tokens)
        return f"same top-1 token at {same:,} of {self.tokens:,} positions"

    def checks(self, path: str) -> list[Check]:
        """Return a check for each state of the target, named in `tensor`, and for the logits."""
        return [self._check(each, path) for each in self.differences]

    def _check(self, difference: StateDifference, path: str) -> Check:
        name = "logits" if difference is self.differences[-1] else "state"
        detail = f"max difference {difference.greatest:.2g}, NMSE {difference.nmse:.2g}"
        if name == "logits":
            detail += f", {self.agreeing}"
        if difference.nmse <= self.tolerance:
            return Check(name, PASSED, detail, path, difference.name)
        first = " (the first difference)" if difference is self.first else ""
        past = f"{detail}; above the tolerance of NMSE {self.tolerance:g}{first}"
        return Check(name, FAILED, past, path, difference.name)


def compare(
    source: Checkpoint,
    target: Checkpoint,
    ids: Sequence[int],
    *,
    tolerance: float | None = None,
    engine: str = "numpy",
) -> Comparison:
    """Return the differences between the states and logits of both models on these tokens.

    Each model uses its own configuration, see `counterpart`. `tolerance` overrides that of the
    target's dtype. Raises BadRequest for models of different sizes, and the errors of `Model`.
    """
    ours = Model(source, engine)
    return compare_models(ours, counterpart(ours, target), ids, tolerance)


def counterpart(ours: Model, target: Checkpoint) -> Model:
    """Return the model in `target`, to be compared with `ours`.

    Settings missing in its files, such as the activation function in a GGUF, are taken from `ours`.
    Raises BadRequest for a model of other sizes.
    """
    theirs = Model(target, ours.xp, assumed=ours.forward.as_config(ours.hyper))
    _check_sizes(ours, theirs)
    return theirs


def compare_models(
    ours: Model,
    theirs: Model,
    ids: Sequence[int],
    tolerance: float | None = None,
    advance: Callable[[int], object] = lambda _states: None,
) -> Comparison:
    """Compare two models as `compare` does; `advance(1)` is called per compared state."""
    dtype = coarsest(theirs)
    totals: list[_ErrorSums] = []
    for one, other in zip(ours.states([ids]), theirs.states([ids]), strict=True):
        name = f"h.{len(totals) - 1}" if totals else "embeddings"
        totals.append(_ErrorSums(name))
        totals[-1].add(one, other)
        last = one.copy(), other.copy()
        advance(1)
    normed = [model.normed(state[0]) for model, state in zip((ours, theirs), last, strict=True)]
    totals.append(_ErrorSums(ours.forward.FINAL_NORM))
    totals[-1].add(*normed)
    logits, same = _logits(ours, theirs, *normed)
    for model in (ours, theirs):
        model.source.checkpoint.check_unchanged()
    return Comparison(
        len(ids),
        dtype,
        TOLERANCES[dtype] if tolerance is None else tolerance,
        tuple(total.difference() for total in (*totals, logits)),
        same / len(ids),
    )


def _logits(ours: Model, theirs: Model, one: Floats, other: Floats) -> tuple[_ErrorSums, int]:
    """Compare the logits of normed states; return the differences and the top-1 agreements."""
    total, tops = _ErrorSums("logits"), (TopTokens(len(one)), TopTokens(len(other)))
    for parts in zip(
        ours.logits_by_vocabulary(one), theirs.logits_by_vocabulary(other), strict=True
    ):
        total.add(*parts)
        for top, part in zip(tops, parts, strict=True):
            top.add(part)
    return total, int((tops[0].tokens == tops[1].tokens).sum())


def coarsest(model: Model) -> str:
    """Return the tensors' dtype with the greatest tolerance."""
    names = {tensor.stored.name for tensor in model.source.tensors.values()}
    unknown = sorted(names - TOLERANCES.keys())
    if unknown:
        raise BadRequest(
            f"logits of models with {unknown[0]} weights cannot be compared", where=model.path
        )
    return max(names, key=lambda name: TOLERANCES[name])


class _ErrorSums:
    """Running sums over compared pieces, in float64."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._greatest = self._error = self._power = 0.0

    def add(self, source: Floats, target: Floats) -> None:
        one, other = source.reshape(-1), target.reshape(-1)
        for start in range(0, len(one), _PIECE):
            wide = one[start : start + _PIECE].astype(np.float64)
            difference = other[start : start + _PIECE] - wide
            self._error += float(np.dot(difference, difference))
            self._power += float(np.dot(wide, wide))
            # max() would lose a NaN
            greatest = np.abs(difference, out=difference).max()
            self._greatest = float(np.maximum(self._greatest, greatest))

    def difference(self) -> StateDifference:
        nmse = self._error / self._power if self._power else float(self._error > 0)
        return StateDifference(self._name, self._greatest, nmse)


class TopTokens:
    """The top-1 token of each position, from consecutive parts of the vocabulary.

    Equal to `argmax` over all parts: the first maximum, and NaN before all numbers.
    """

    def __init__(self, positions: int) -> None:
        self.tokens = np.zeros(positions, np.int64)
        self._greatest = np.full(positions, -np.inf, np.float32)
        self._seen = 0

    def add(self, logits: Floats) -> None:
        """Take the logits (m, k) of the next k tokens of the vocabulary."""
        predicted = logits.argmax(axis=-1)
        greatest = logits[np.arange(len(predicted)), predicted]
        better = ~(greatest <= self._greatest) & ~np.isnan(self._greatest)
        self.tokens[better] = predicted[better] + self._seen
        self._greatest[better] = greatest[better]
        self._seen += logits.shape[1]


def _check_sizes(ours: Model, theirs: Model) -> None:
    """Raise BadRequest for models that cannot be compared layer by layer."""
    for size in ("n_layer", "n_embd", "vocab_size"):
        one, other = getattr(ours.hyper, size), getattr(theirs.hyper, size)
        if one != other:
            raise BadRequest(
                f"{size} is {other:,}, but {one:,} in {ours.path}: the models have different sizes",
                where=theirs.path,
            )
