"""Merging of a distributed checkpoint, beside torch's own program for it and `cat`.

    python -m benchmarks.dcp FOLDER [GIBIBYTES]

Writes a checkpoint into FOLDER (see `synthetic_dcp`), measures each command once and prints a
table. The files have holes, so that what is measured is not the disk's reading.
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks import measure

_GIB, _MIB = 1 << 30, 1 << 20


def main(folder: Path, nbytes: int) -> None:
    """Write the checkpoint and print what each command takes."""
    run, merged = folder / "run", folder / "model.safetensors"
    python = [sys.executable, "-m"]
    measure.run([*python, "benchmarks.synthetic_dcp", str(nbytes), str(run)])
    ours = [*python, "cgpt_convert"]
    convert = [*ours, "convert", str(run), "-o", str(merged), "--overwrite"]
    torch_format = "torch.distributed.checkpoint.format_utils"
    commands = {
        "inspect": [*ours, "inspect", str(run)],
        "cat": ["sh", "-c", f"cat {run}/*.distcp > {folder / 'copy'}"],
        "convert, without provenance": [*convert, "--no-proof"],
        "convert": convert,
        "digest": [*ours, "digest", str(run)],
        "dcp_to_torch": [*python, torch_format, "dcp_to_torch", str(run), str(folder / "copy.pt")],
    }
    print("| command | seconds | CPU seconds | MiB |\n|---|---|---|---|")
    for name, argv in commands.items():
        for output in folder.glob("[!r]*"):
            measure.remove(output)
        took = measure.run(argv)
        used = took.user + took.system
        print(f"| {name} | {took.wall:.2f} | {used:.2f} | {took.peak / _MIB:.0f} |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(float(sys.argv[2] if len(sys.argv) > 2 else 5) * _GIB))
