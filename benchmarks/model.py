"""What belongs to a model beside its weights: python -m benchmarks.model SIZE LAYOUT FOLDER.

A config.json with the n_ctx that llama.cpp's converter asks for, and a byte-level vocabulary of as
many tokens as the model has: bytes, pairs of them, an end.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

from tests.helpers import vendor
from tests.helpers.llama_model import END, byte_characters

_BYTES = 256


def write(size: str, layout: str, folder: Path) -> None:
    """Write the files into the folder."""
    shape = vendor.SIZES[size]
    path = vendor.write_config(shape, folder, layout)
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
    write(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
