"""The promises of speed and memory, as data, and whether what was measured kept them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from benchmarks import tasks
from benchmarks.results import Results, Row
from benchmarks.tasks import Task

MB = 10**6

# float32 bytes of the weights that generation reads, and of a block and the embeddings
WEIGHTS = {"111M": 444_201_984, "1.3B": 5_262_893_056}
_BLOCK, _EMBEDDINGS = 28_351_488, 160_680_960


class Promise(NamedTuple):
    """A bound on one quantity of a command on the checkpoints of a kind."""

    what: str
    kind: str
    task: Task
    quantity: str  # one of _QUANTITIES
    limit: float
    than: tuple[Task, ...] = ()  # what it is compared with; of several, with the best
    sizes: tuple[str, ...] = ()  # where it was promised of certain ones

    @property
    def text(self) -> str:
        """The promise in words."""
        than = " or ".join(f"`{other.name}`" for other in self.than)
        return f"{self.what}: " + _QUANTITIES[self.quantity].words.format(
            limit=f"{self.limit:g}", than=than
        )


class Verdict(NamedTuple):
    """What was measured of a promise."""

    measured: str
    kept: bool


class _Quantity(NamedTuple):
    """How it is worded, taken and shown."""

    words: str
    value: Callable[[Row, list[Row]], float]
    shown: str
    least: bool = False  # is the limit a lower one?


_QUANTITIES = {
    "x cp": _Quantity("at most {limit} x `cp`", lambda row, _: row.ratio, "{:.2f} x"),
    "over cp": _Quantity("at most `cp` + {limit} s", lambda row, _: row.excess, "+ {:.2f} s"),
    "x": _Quantity(
        "at most {limit} x {than}",
        lambda row, others: max(row.times(other) for other in others),
        "{:.2f} x",
    ),
    "faster": _Quantity(
        "at least {limit} times as fast as {than}",
        lambda row, others: min(1 / row.times(other) for other in others),
        "{:.2f} times",
        least=True,
    ),
    "leaner": _Quantity(
        "at least {limit} times less memory than {than}",
        lambda row, others: min(other.peak / row.peak for other in others),
        "{:.2f} times",
        least=True,
    ),
    "s": _Quantity("at most {limit} s", lambda row, _: row.wall, "{:.3f} s"),
    "MB": _Quantity("at most {limit} MB", lambda row, _: row.peak / MB, "{:.0f} MB"),
    "x weights": _Quantity(
        "memory at most {limit} x the weights",
        lambda row, _: row.peak / WEIGHTS[row.key.size],
        "{:.2f} x",
    ),
}

_LAYOUTS = {"hf": "contiguous", "cs": "transposed"}
_ALL_SAME = (tasks.SAFETENSORS, tasks.NPZ, tasks.EXTRACT)  # no value changed
_TORCH = (tasks.TORCH, tasks.TORCH_MMAP)


def _each(
    commands: Iterable[Task], quantity: str, limit: float, kinds: Iterable[str] = _LAYOUTS
) -> Iterator[Promise]:
    """The same promise of commands and layouts."""
    for kind in kinds:
        for task in commands:
            yield Promise(f"{task.name}, {_LAYOUTS[kind]}", kind, task, quantity, limit)


def _with(promises: Iterable[Promise], than: tuple[Task, ...] = (), *sizes: str) -> list[Promise]:
    """The same promises, compared with other commands, and of certain sizes."""
    return [promise._replace(than=than, sizes=sizes) for promise in promises]


# of every size that is measured, unless they say which
OF_CHECKPOINTS = (
    *_each(_ALL_SAME, "x cp", 1.15, ["hf"]),
    *_each(_ALL_SAME, "x cp", 2, ["cs"]),
    *_each((tasks.FLOAT16, tasks.BFLOAT16), "x cp", 1.5),
    *_each((tasks.GGUF["q8_0"],), "x cp", 2.5),
    *_with(_each((tasks.SAFETENSORS,), "over cp", 0.2, ["hf"]), (), "111M"),
    *_with(_each((tasks.SAFETENSORS,), "x cp", 1.4, ["hf"]), (), "1.3B"),
    *_each((tasks.SAFETENSORS,), "x cp", 3, ["cs"]),
    *_with(_each((tasks.PROOF,), "x", 1.3), (tasks.SAFETENSORS,)),
    *_with(_each((tasks.DIGEST,), "x", 1.1), (tasks.SHA256,)),
    *_each((tasks.SAFETENSORS,), "MB", 60, ["hf"]),
    *_each((tasks.SAFETENSORS,), "MB", 100, ["cs"]),
    *_with(_each((tasks.INSPECT,), "s", 0.15), (), "1.3B"),
    *_with(_each((tasks.INSPECT,), "MB", 25), (), "1.3B"),
    *_with(_each((tasks.SAFETENSORS,), "faster", 6, ["hf"]), _TORCH, "111M"),
    *_with(_each((tasks.SAFETENSORS,), "leaner", 10, ["hf"]), _TORCH, "111M"),
    *(
        promise
        for dtype, theirs in tasks.LLAMA_CPP.items()
        for quantity, limit in (("faster", 6), ("leaner", 10))
        for promise in _with(
            _each((tasks.GGUF[dtype],), quantity, limit, ["cs"]), (theirs,), "111M"
        )
    ),
    *_with(_each(tasks.GGUF.values(), "MB", 100), (), "111M"),
    *_with(_each(tasks.GGUF.values(), "MB", 150), (), "1.3B"),
)

_START, _MODEL = "start-up", "generation"
_STREAMED = round((2 * _BLOCK + _EMBEDDINGS) / MB)
OF_THE_REST = (
    Promise("`--help`", _START, tasks.HELP, "s", 0.12),
    *(
        Promise(f"`{task.name}`", _START, task, "x", 2.5, (tasks.CLICK,))
        for task in (tasks.HELP, tasks.INSPECT, tasks.SCAN)
    ),
    Promise(
        "1,024 tokens of 111M", _MODEL, tasks.PREFILL, "x", 1.4,
        (tasks.THEIR_PREFILL["transformers"],), ("111M",),
    ),
    Promise(
        "A token of 111M after 64", _MODEL, tasks.DECODE, "faster", 2,
        (tasks.THEIR_DECODE["transformers"],), ("111M",),
    ),
    Promise(
        "A token of 111M after 64", _MODEL, tasks.DECODE, "x", 1.2,
        (tasks.THEIR_DECODE["llama.cpp"],), ("111M",),
    ),
    Promise("The first token of a text, 111M", _MODEL, tasks.FIRST_TOKEN, "s", 1.5, (), ("111M",)),
    Promise("`generate`, 111M", _MODEL, tasks.GENERATE, "x weights", 1.3, (), ("111M",)),
    Promise("`generate`, 1.3B", _MODEL, tasks.GENERATE, "x weights", 1.3, (), ("1.3B",)),
    Promise(
        "`verify --logits` of two files of 111M, which is two blocks and the embeddings",
        _MODEL, tasks.LOGITS, "MB", _STREAMED, (), ("111M",),
    ),
)  # fmt: skip


def verdict(
    promise: Promise, results: Results, size: str, *, memory: bool = False
) -> Verdict | None:
    """Whether it was kept on checkpoints of a size; None if nobody promised or measured that."""
    if promise.sizes and size not in promise.sizes:
        return None
    found = [
        results.find(size, promise.kind, task.name, memory=memory)
        for task in (promise.task, *promise.than)
    ]
    rows = [row for row in found if row]
    if len(rows) < len(found):
        return None
    quantity = _QUANTITIES[promise.quantity]
    value = quantity.value(rows[0], rows[1:])
    kept = value >= promise.limit if quantity.least else value <= promise.limit
    return Verdict(quantity.shown.format(value), kept)
