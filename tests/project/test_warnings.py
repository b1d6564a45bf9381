"""Python finds nothing to warn of: no file left open, nothing deprecated, in any command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cgpt_convert.cli import COMMANDS
from tests.helpers import vendor
from tests.helpers.running import environ
from tests.helpers.small_models import write

PYTHON = (sys.executable, "-W", "error", "-X", "dev")

# each line, in this order: the exit code and what is run
LINES = """
0 inspect m --stats --check --tree
0 inspect shards --json
3 inspect cut.bin
2 inspect absent
0 extract m -o raw --properties
0 convert m -o o.safetensors --verify
0 convert m -o o.npz --dtype bfloat16 --jobs 2
0 convert m -o o.gguf --no-vocab --verify
1 convert cut.bin -o cut.npz --salvage
3 convert cut.bin -o never.npz
0 convert shards -o s.npz
0 convert m -o hf --to hf
0 scan m shards o.npz
0 digest raw/parameters
0 lock m -o lock.json
0 verify m --lock lock.json
0 verify m o.safetensors
1 diff m shards
0 generate m --ids 1,2,3 --max-new-tokens 2
0 eval demo --text held-out.txt --context 64
0 models
0 demo
"""


def warned(*words: str, cwd: Path) -> tuple[int, str]:
    """Exit code and standard error of a run in which every warning is an error."""
    done = subprocess.run(
        [*PYTHON, *words],
        cwd=cwd,
        capture_output=True,
        check=False,
        env=environ(),
        text=True,
        stdin=subprocess.DEVNULL,
    )
    return done.returncode, done.stderr


def test_every_command_runs_without_a_warning(tmp_path: Path) -> None:
    write(tmp_path / "m", vendor.TINY)
    vendor.write(vendor.TINY, tmp_path / "shards", "hf", shards=True)
    data = (tmp_path / "m" / "pytorch_model.bin").read_bytes()
    (tmp_path / "cut.bin").write_bytes(data[: len(data) // 2])
    demo = Path(__file__).parents[2] / "cgpt_convert" / "demo"
    (tmp_path / "demo").symlink_to(demo)
    text = (demo / "held-out.txt").read_text()[:300]
    (tmp_path / "held-out.txt").write_text(text)
    lines = [line.split() for line in LINES.strip().splitlines()]
    assert {line[1] for line in lines} == set(COMMANDS)
    for expected, *words in lines:
        code, err = warned("-m", "cgpt_convert", *words, cwd=tmp_path)
        assert "Warning" not in err, err
        assert "Traceback" not in err, err
        assert code == int(expected), (words, err)


@pytest.mark.parametrize("code", ["open('/dev/null')", "import warnings; warnings.warn('x')"])
def test_a_warning_would_be_seen(code: str, tmp_path: Path) -> None:
    assert "Warning" in warned("-c", code, cwd=tmp_path)[1]
