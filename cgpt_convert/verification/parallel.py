"""Compare the tensors of two files in pairs, with several threads."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from typing import TypeVar

from cgpt_convert.core.threads import Advance, WorkerPool, worker_count
from cgpt_convert.tensors.checksums import compared
from cgpt_convert.tensors.read import import_all
from cgpt_convert.tensors.tensor import Tensor
from cgpt_convert.verification.canonical_names import CanonicalWeights
from cgpt_convert.verification.digests import prepare_for
from cgpt_convert.writing.tensor_stream import in_turn

T = TypeVar("T")


def in_pairs(
    pairs: Mapping[str, str],
    one: CanonicalWeights,
    other: CanonicalWeights,
    look: Callable[[Tensor, Tensor], T],
    jobs: int,
    advance: Advance,
) -> dict[str, T]:
    """Return the result of `look` for each pair (name in `one`, name in `other`), by first name.

    `advance` counts the bytes of `other`. Raises Malformed if data does not match the checksum in a
    file.
    """
    workers = WorkerPool(worker_count(jobs), advance)
    results: dict[str, T] = {}
    seen: set[int] = set()

    def compare(name: str, own: str) -> None:
        workers.wait_prepared()
        workers.go_on()
        with compared((one.tensors[name], other.tensors[own]), seen) as (left, right):
            results[name] = look(left, right)
        workers.advance(right.nbytes)

    work = ((one.tensors[name], functools.partial(compare, name, pairs[name])) for name in pairs)
    workers.run(in_turn(work), prepare=prepare)
    return {name: results[name] for name in pairs}


def prepare() -> None:
    """Import the modules that threads need to compare."""
    prepare_for()
    import_all()
    importlib.import_module("cgpt_convert.tensors.element_differences")
