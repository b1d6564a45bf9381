"""A whole model's folder around weights that are there: python -m benchmarks.model SIZE BIN OUT.

Beside a link to the weights lie a config.json with the n_ctx that llama.cpp's converter asks for,
and a byte-level vocabulary of as many tokens as the model has: bytes, pairs of them, an end.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

from tests import vendor
from tests.llama_model import END, byte_characters

_BYTES = 256


def write(size: str, weights: Path, folder: Path) -> None:
    """Make the folder, its weights a link to the file `weights`."""
    shape = vendor.SIZES[size]
    folder.mkdir()
    (folder / weights.name).symlink_to(weights.resolve())
    path = vendor.write_config(shape, folder)
    ends = {"n_ctx": shape.n_positions, "bos_token_id": shape.vocab_size - 1}
    config = json.loads(path.read_text()) | ends | {"eos_token_id": shape.vocab_size - 1}
    path.write_text(json.dumps(config, indent=2) + "\n")
    pairs = itertools.product(byte_characters(), repeat=2)
    merges = [f"{a} {b}" for a, b in itertools.islice(pairs, shape.vocab_size - _BYTES - 1)]
    tokens = [*byte_characters(), *(merge.replace(" ", "") for merge in merges), END]
    ids = {token: number for number, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(ids))
    (folder / "merges.txt").write_text("\n".join(("#version: 0.2", *merges, "")))


if __name__ == "__main__":
    write(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
