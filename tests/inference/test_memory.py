"""What a model needs of memory is known before it is loaded, and refused with the figures."""

from __future__ import annotations

import gc
import math
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

import cgpt_convert
from cgpt_convert import open_checkpoint
from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.core.errors import Unsupported
from cgpt_convert.inference import memory
from cgpt_convert.inference.model import Model
from cgpt_convert.tensors.tensor import Tensor
from tests.helpers.running import PROGRAM, environ, run

DEMO = Path(cgpt_convert.__file__).parent / "demo"
MiB = 1 << 20


def system(root: Path, **files: str) -> str:
    """A root folder with files of /proc and /sys; `__` in a name stands for a slash."""
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("STAT", "memory.stat")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(root)


def parameters(checkpoint: Checkpoint) -> Iterator[Tensor]:
    """The tensors that are learned; the head is the embedding."""
    for name, tensor in checkpoint.items():
        if not name.endswith((".attn.bias", ".attn.masked_bias", "lm_head.weight")):
            yield tensor


MEMINFO = "MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable: 8000 kB\nSwapFree: 1000 kB\n"


def test_without_limits_it_is_what_the_system_has(tmp_path: Path) -> None:
    assert memory.available(system(tmp_path, proc__meminfo=MEMINFO)) == 9000 << 10
    assert memory.available(str(tmp_path / "none")) is None


def group(root: Path, folder: str, names: tuple[str, str], limit: str, used: int, row: str) -> None:
    path = root / "sys/fs/cgroup" / folder
    path.mkdir(parents=True, exist_ok=True)
    (path / names[0]).write_text(f"{limit}\n")
    (path / names[1]).write_text(f"{used}\n")
    (path / "memory.stat").write_text(f"anon 5\n{row}\nother 9\n")


@pytest.mark.parametrize("mount", ["", "unified/"])
def test_cgroup_2_counts_with_all_the_groups_around(mount: str, tmp_path: Path) -> None:
    root = system(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup="0::/a/b/c\n")
    names = ("memory.max", "memory.current")
    group(tmp_path, mount + "a/b/c", names, "max", 10, "inactive_file 0")
    group(tmp_path, mount + "a", names, "5000000", 3_000_000, "inactive_file 1000000")
    group(tmp_path, mount + "a/b", names, "7000000", 1_000_000, "inactive_file 0")
    assert memory.available(root) == 3_000_000


@pytest.mark.parametrize("where", ["docker/x", ""])
def test_cgroup_1_counts_inside_and_outside_of_a_container(where: str, tmp_path: Path) -> None:
    told = "11:cpu,cpuacct:/x\n4:memory:/docker/x\n0::/\n"
    root = system(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup=told)
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    group(tmp_path, f"memory/{where}", names, "4000000", 3_000_000, "total_inactive_file 5")
    assert memory.available(root) == 1_000_005
    group(tmp_path, f"memory/{where}", names, str((1 << 63) - 4096), 1, "total_inactive_file 0")
    assert memory.available(root) == 9000 << 10


def test_a_limit_that_is_exceeded_leaves_less_than_nothing(tmp_path: Path) -> None:
    root = system(tmp_path, proc__self__cgroup="0::/\n")
    names = ("memory.max", "memory.current")
    group(tmp_path, ".", names, "1000", 5000, "inactive_file 0")
    assert memory.available(root) == -4000


@pytest.mark.parametrize(
    "words",
    [
        ("generate", DEMO, "--ids", "1,2"),
        ("eval", DEMO, "--text", DEMO / "held-out.txt"),
        ("verify", DEMO, DEMO, "--logits"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_figures(words: tuple[object, ...]) -> None:
    with patch.object(memory, "available", lambda: 1_230_000):
        done = run(*words)
    assert done.code == 3, done.err
    assert "GB of memory" in done.err + done.out
    assert "0.00 GB is available" in done.err + done.out


def test_the_library_refuses_too_and_before_it_reads() -> None:
    checkpoint = open_checkpoint(DEMO)
    size = Model(checkpoint, resident=True).weights.outstanding()
    assert size == sum(4 * math.prod(tensor.shape) for tensor in parameters(checkpoint))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # of whatever ran in this process before
        gc.collect()  # the model above is gone
    told = r"the model needs [0-9.]+ GB of memory; [0-9.]+ GB is available"
    with (
        patch.object(memory, "available", lambda: size),
        pytest.raises(Unsupported, match=told),
    ):
        Model(checkpoint, resident=True)
    with patch.object(memory, "available", lambda: size + 65 * MiB):
        model = Model(checkpoint, resident=True)
        with pytest.raises(Unsupported, match="GB of it for other models"):
            Model(checkpoint, resident=True)
        with pytest.raises(Unsupported, match="the model needs"):
            model.cache(100_000)
    model.load(1)
    assert model.weights.outstanding() == 0


def test_a_limit_of_the_shell_is_an_error_and_no_traceback(tmp_path: Path) -> None:
    """A model of 2.1 GB, of which nothing but its header is ever read."""
    words = [sys.executable, "-c", _MODEL, str(tmp_path)]
    subprocess.run(words, check=True, env=environ())
    line = f'ulimit -v {2 << 20}; exec "$@"'
    model = tmp_path / "m.safetensors"
    done = subprocess.run(
        ["sh", "-c", line, "sh", *PROGRAM, "generate", str(model), "--ids", "1"],
        capture_output=True,
        check=False,
        env=environ(OPENBLAS_NUM_THREADS="1"),
        text=True,
    )
    assert done.returncode == 3, done.stderr
    assert "the model needs 2." in done.stderr
    assert "Traceback" not in done.stderr


_MODEL = """
import json, struct, sys
from pathlib import Path
n, layers, vocabulary, positions = 2048, 8, 50257, 64
shapes = {"wte.weight": [vocabulary, n], "wpe.weight": [positions, n]}
shapes |= {f"ln_f.{part}": [n] for part in ("weight", "bias")}
for i in range(layers):
    for name, a, b in (("attn.c_attn", n, 3 * n), ("attn.c_proj", n, n),
                       ("mlp.c_fc", n, 4 * n), ("mlp.c_proj", 4 * n, n)):
        shapes |= {f"h.{i}.{name}.weight": [a, b], f"h.{i}.{name}.bias": [b]}
    for name in ("ln_1", "ln_2"):
        shapes |= {f"h.{i}.{name}.{part}": [n] for part in ("weight", "bias")}
header, at = {}, 0
for name, shape in shapes.items():
    size = 4
    for each in shape:
        size *= each
    header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
    at += size
text = json.dumps(header).encode()
with open(Path(sys.argv[1]) / "m.safetensors", "wb") as file:
    file.write(struct.pack("<Q", len(text)) + text)
    file.truncate(8 + len(text) + at)
config = {"model_type": "gpt2", "n_embd": n, "n_head": 16, "n_layer": layers,
          "vocab_size": vocabulary, "n_positions": positions}
(Path(sys.argv[1]) / "config.json").write_text(json.dumps(config))
"""
