"""The page with the figures that matter to users; the other page has all of them."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks import tasks
from benchmarks.promises import MB
from benchmarks.results import Results
from benchmarks.tables import gigabytes

_TEXT = """\
# Performance

Inspecting and scanning read only the headers of a file. Converting, extracting, verifying and
digesting stream the data, so their memory does not grow with the model. `generate` and `eval` keep
the weights in memory, about 1.2 times their size. Median times of checkpoints as Cerebras-GPT
stores them, with transposed weights, and the greatest memory of any size:

{table}

By default `convert` also hashes every tensor for the metadata that `verify` checks; `--no-proof`
omits it. How this was measured, and all other figures: [measurements]({measurements}).
"""

_SIZES = ("111M", "1.3B", "2.7B")
_LAYOUT = "cs"
_OURS = {
    tasks.INSPECT.name: "`inspect`",
    tasks.SCAN.name: "`scan`",
    tasks.PROOF.name: "`convert` to safetensors",
    tasks.SAFETENSORS.name: "`convert --no-proof` to safetensors",
    "gguf, q8_0, --no-proof": "`convert --no-proof --dtype q8_0` to GGUF",
    tasks.DIGEST.name: "`digest`",
}
_OTHERS = {
    tasks.TORCH.name: "`torch.load` and `save_file` to safetensors",
    "llama.cpp's converter, q8_0": "llama.cpp's converter to GGUF, q8_0",
}


def markdown(results: Results, measurements: str) -> str:
    """The text; `measurements` is the path of the page with all figures."""
    return _TEXT.format(table="\n".join(_table(results)), measurements=measurements)


def _table(results: Results) -> Iterable[str]:
    """A row for each command, with its seconds for each size and its memory."""
    sizes = {
        key.size: gigabytes(row.nbytes)
        for key, row in results.rows.items()
        if key.kind == _LAYOUT and key.size in _SIZES
    }
    yield f"| command | {' | '.join(sizes.values())} | memory |"
    yield "| --- |" + " --- |" * (len(sizes) + 1)
    for name, shown in {**_OURS, **_OTHERS}.items():
        found = [results.find(size, _LAYOUT, name) for size in sizes]
        peaks = [row.peak / MB for row in found if row]
        if peaks:
            cells = [f"{row.wall:.2g} s" if row else "" for row in found]
            yield f"| {shown} | {' | '.join(cells)} | {max(peaks):,.0f} MB |"
