"""The promises of speed and memory, and whether a run kept them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from benchmarks import tasks
from benchmarks.results import Results, Series, ratio

MB = 10**6


class Verdict(NamedTuple):
    """A promise and what was measured of it."""

    promise: str
    measured: str
    kept: bool


def verdicts(results: Results) -> Iterator[Verdict]:
    """Of each promise about a size that was measured."""
    yield from _copying(results)
    yield from _proof(results)
    yield from _memory(results)
    yield from _start_up(results)
    yield from _torch(results)
    yield from _llama_cpp(results)


def _copying(results: Results) -> Iterator[Verdict]:
    half = results.get("111M", "hf", tasks.SAFETENSORS)
    if half:
        promise = "0.5 GB, contiguous: at most `cp` + 0.2 s"
        yield Verdict(promise, f"`cp` + {half.excess:.2f} s", half.excess <= 0.2)
    large = results.get("1.3B", "hf", tasks.SAFETENSORS)
    if large:
        promise = "5.4 GB, contiguous: at most 1.4 x `cp`"
        yield Verdict(promise, f"{large.ratio:.2f} x", large.ratio <= 1.4)
    for size, gigabytes in (("111M", "0.5"), ("1.3B", "5.4")):
        views = results.get(size, "cs", tasks.SAFETENSORS)
        if views:
            promise = f"{gigabytes} GB, transposed: at most 3 x `cp`"
            yield Verdict(promise, f"{views.ratio:.2f} x", views.ratio <= 3)


def _proof(results: Results) -> Iterator[Verdict]:
    for size, gigabytes in (("111M", "0.5"), ("1.3B", "5.4")):
        for layout, text in (("hf", "contiguous"), ("cs", "transposed")):
            plain = results.get(size, layout, tasks.SAFETENSORS)
            proven = results.get(size, layout, tasks.PROOF)
            if plain and proven:
                times = ratio(proven.walls, plain.walls)
                promise = f"{gigabytes} GB, {text}: proof takes at most 1.3 x the time without"
                yield Verdict(promise, f"{times:.2f} x", times <= 1.3)


def _memory(results: Results) -> Iterator[Verdict]:
    for layout, text, most in (("hf", "contiguous", 60), ("cs", "transposed", 100)):
        of_sizes = (results.get(size, layout, tasks.SAFETENSORS) for size in ("111M", "1.3B"))
        measured = [series.peak for series in of_sizes if series]
        if measured:
            peak = max(measured)
            yield Verdict(
                f"{text}, any size: at most {most} MB", _megabytes(peak), peak <= most * MB
            )


def _start_up(results: Results) -> Iterator[Verdict]:
    inspect = results.get("1.3B", "cs", tasks.INSPECT)
    if inspect:
        promise = "`inspect` of 5.4 GB: at most 0.15 s"
        yield Verdict(promise, _seconds(inspect), inspect.wall <= 0.15)
        promise = "`inspect` of 5.4 GB: at most 25 MB"
        yield Verdict(promise, _megabytes(inspect.peak), inspect.peak <= 25 * MB)
    shown = next(series for series in results.start_up if series.task == tasks.HELP)
    yield Verdict("`--help`: at most 0.12 s", _seconds(shown), shown.wall <= 0.12)


def _torch(results: Results) -> Iterator[Verdict]:
    ours = results.get("111M", "hf", tasks.SAFETENSORS)
    found = (results.get("111M", "hf", task) for task in (tasks.TORCH, tasks.TORCH_MMAP))
    theirs = [series for series in found if series]
    if ours and theirs:
        faster = _best(theirs, lambda series: ratio(series.walls, ours.walls))
        promise = "0.5 GB: at least 6 times faster than the faster way of `torch.load`"
        yield Verdict(promise, f"{faster:.1f} times", faster >= 6)
        less = _best(theirs, lambda series: series.peak / ours.peak)
        promise = "0.5 GB: at least 10 times less memory than the leaner way of `torch.load`"
        yield Verdict(promise, f"{less:.1f} times", less >= 10)


def _llama_cpp(results: Results) -> Iterator[Verdict]:
    for dtype, task in tasks.GGUF.items():
        ours = results.get("111M", "gguf", task)
        converter = tasks.LLAMA_CPP.get(dtype)
        theirs = results.get("111M", "gguf", converter) if converter else None
        if ours and theirs:
            faster = ratio(theirs.walls, ours.walls)
            promise = f"0.5 GB to GGUF, {dtype}: at least 6 times faster than llama.cpp's converter"
            yield Verdict(promise, f"{faster:.1f} times", faster >= 6)
    for size, gigabytes, most in (("111M", "0.5", 100), ("1.3B", "5.4", 150)):
        found = (results.get(size, "gguf", task) for task in tasks.GGUF.values())
        peak = max((series.peak for series in found if series), default=None)
        if peak is not None:
            promise = f"{gigabytes} GB to GGUF: at most {most} MB"
            yield Verdict(promise, _megabytes(peak), peak <= most * MB)


def _best(series: list[Series], quantity: Callable[[Series], float]) -> float:
    return min(map(quantity, series))


def _seconds(series: Series) -> str:
    return f"{series.wall:.3f} s, of which {series.cpu:.3f} s of CPU"


def _megabytes(nbytes: int) -> str:
    return f"{nbytes / MB:.0f} MB"
