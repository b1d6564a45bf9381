"""Speed of Tensor.blocks() against the plain NumPy expression on the same file, warm.

    python benchmarks/blocks.py [rows] [columns] [runs]

Each line: GB/s of float32 input, ours and NumPy's (which holds the whole array in memory), and the
median ratio of paired runs: above 1, ours is faster. Single times swing; ratios hold.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cgpt_convert.sources.local import LocalFile
from cgpt_convert.tensors.dtypes import BY_NAME
from cgpt_convert.tensors.read import CastCounts
from cgpt_convert.tensors.tensor import Storage, Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray


def bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The obvious expression, right but for NaN."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def drain(blocks: Iterable[memoryview]) -> None:
    for _ in blocks:
        pass


def compare(name: str, nbytes: int, ours: list[float], numpy: list[float]) -> None:
    ratios = [other / mine for mine, other in zip(ours, numpy, strict=True)]
    speeds = [nbytes / statistics.median(times) / 1e9 for times in (ours, numpy)]
    ratio = statistics.median(ratios)
    print(f"{name:24} {speeds[0]:6.2f} {speeds[1]:6.2f} GB/s   ratio {ratio:5.2f}")


def main(rows: int = 5120, columns: int = 20480, runs: int = 7) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights"
        values = np.random.default_rng(0).standard_normal(rows * columns, np.float32) * 0.02
        values.astype(np.float32).tofile(path)
        file = LocalFile(path)
        storage = Storage(file, 0, file.nbytes, "weights")
        whole = Tensor("w", BY_NAME["float32"], (columns, rows), (rows, 1), 0, storage)
        half, brain = (whole.cast(BY_NAME[name]) for name in ("float16", "bfloat16"))

        def read() -> NDArray[np.float32]:
            return np.fromfile(path, np.float32).reshape(columns, rows)

        pairs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            "contiguous": (lambda: drain(whole.blocks()), read),
            "transposed": (
                lambda: drain(whole.transposed().blocks()),
                lambda: np.ascontiguousarray(read().T),
            ),
            "transposed, 16 MiB": (
                lambda: drain(whole.transposed().blocks(16 << 20)),
                lambda: np.ascontiguousarray(read().T),
            ),
            "float16": (lambda: drain(half.blocks()), lambda: read().astype(np.float16)),
            "float16, counted": (
                lambda: drain(half.blocks(counts=CastCounts())),
                lambda: read().astype(np.float16),
            ),
            "bfloat16": (lambda: drain(brain.blocks()), lambda: bfloat16(read())),
            "bfloat16, counted": (
                lambda: drain(brain.blocks(counts=CastCounts())),
                lambda: bfloat16(read()),
            ),
        }
        print(f"{rows} x {columns} float32       ours  NumPy")
        for name, (ours, numpy) in pairs.items():
            times = [(seconds(ours), seconds(numpy)) for _ in range(runs)]
            compare(name, whole.nbytes, [mine for mine, _ in times], [other for _, other in times])


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
