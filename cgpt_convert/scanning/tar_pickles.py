"""The pickles of a torch tar: the loader reads several from one member, between raw data.

See torch/serialization.py, `legacy_load`; `formats/torch/tar_reader.py` reads their content.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from cgpt_convert.core.errors import Malformed
from cgpt_convert.core.limits import RANK
from cgpt_convert.formats.torch.pickle_stream import PickleStream
from cgpt_convert.formats.torch.zip_reader import storage_dtype
from cgpt_convert.pickles.nodes import Global
from cgpt_convert.pickles.trace.tracer import Trace
from cgpt_convert.sources.local import Source

WALKED = ("storages", "tensors")


def pickles(source: Source, name: str, trace: Callable[[Source, int], Trace]) -> Iterator[Trace]:
    """Yield every pickle of the member `storages` or `tensors` after the first, a count.

    `trace` traces the pickle at a position. Raises Malformed if the start of the next one cannot be
    determined.
    """
    first = trace(source, 0)
    stream = PickleStream(source, first.end)
    if first.exhausted:  # our limit, not the loader's: the rest is unknown
        yield first
    if first.fault:
        return  # the loader also fails here
    if not isinstance(first.value, int):  # torch writes a plain number; others may still load
        raise Malformed(f"{name}: the number of pickles is not a plain integer")
    for _ in range(first.value):
        traced = trace(source, stream.at)
        yield traced
        stream.at = traced.end
        if traced.fault:
            return
        (_skip_storage if name == "storages" else _skip_tensor)(stream, traced)
    if name == "storages" and stream.at < stream.end:
        yield trace(source, stream.at)


def _skip_storage(stream: PickleStream, traced: Trace) -> None:
    match traced.value:
        case (_, _, Global() as cls):
            dtype = storage_dtype(cls)
            numel = stream.integer()
            if dtype is None or numel < 0:
                raise Malformed("a storage has no valid type or size")
            stream.skip(numel * dtype.nbytes)
        case _:
            raise Malformed("invalid storage entry")


def _skip_tensor(stream: PickleStream, traced: Trace) -> None:
    if not isinstance(traced.value, tuple):
        raise Malformed("invalid tensor entry")
    rank = stream.integer(4)
    if not 0 <= rank <= RANK:
        raise Malformed(f"a tensor has {rank} dimensions")
    stream.skip(4 + 8 * (2 * rank + 1))
