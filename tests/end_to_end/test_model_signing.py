"""Sign a folder with a lock by the commands of docs/reference/verify.md, and notice changes."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import vendor
from tests.helpers.running import ROOT, environ, run

PAGE = (ROOT / "docs" / "reference" / "verify.md").read_text()


def commands(title):
    """The lines of the shell blocks under a heading."""
    text = PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]
    return [block.splitlines() for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)]


@pytest.fixture
def shell(tmp_path):
    """Runs a line in a folder, the commands being those of this interpreter."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, module in (("cgpt-convert", "cgpt_convert"), ("model_signing", "model_signing")):
        script = tools / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n')
        script.chmod(0o755)
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"

    def call(line):
        done = subprocess.run(
            line,
            shell=True,
            check=False,
            cwd=tmp_path,
            env=environ(PATH=path),
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout + done.stderr

    return call


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl")
def test_the_documented_signature(shell, tmp_path: Path):
    vendor.write(vendor.TINY, tmp_path / "model")
    signing, verifying = commands("Signing")
    assert len(signing) == 4
    for line in signing:
        assert shell(line)[0] == 0, line
    made = run("convert", tmp_path / "model", "-o", tmp_path / "converted.safetensors")
    assert made.code == 0
    for line, said in zip(verifying, ("Verification succeeded", "checks passed"), strict=True):
        code, told = shell(line)
        assert (code, said in told) == (0, True), told
    lock = tmp_path / "model" / "weights.lock.json"
    lock.write_text(lock.read_text().replace("a", "b"))
    for line, code in zip(verifying, (1, 3), strict=True):
        assert shell(line)[0] == code, line
