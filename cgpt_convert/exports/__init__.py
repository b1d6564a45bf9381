"""Whole models for other programs: names, configuration and tokenizer beside the tensors."""

from __future__ import annotations

from cgpt_convert.checkpoint import Checkpoint


def undone(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint under transformers' names and layout, if it is one of llama.cpp's files."""
    if checkpoint.kind != "GGUF":
        return checkpoint
    from cgpt_convert.exports.llama_undo import undo

    return undo(checkpoint)
