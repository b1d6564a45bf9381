"""Whole models for other programs: names, configuration and tokenizer beside the tensors."""

from __future__ import annotations

import os
from typing import Any

from cgpt_convert.architectures.hf_config_check import read_config
from cgpt_convert.checkpoint import Checkpoint


def undone(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint under transformers' names and layout, if it is one of llama.cpp's files."""
    if checkpoint.kind != "GGUF":
        return checkpoint
    from cgpt_convert.targets.llama_cpp.restore_hf import undo

    return undo(checkpoint)


def configuration(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """What tells of the model what tensors do not: a GGUF's fields, else the config.json beside."""
    if checkpoint.kind == "GGUF":
        from cgpt_convert.targets.llama_cpp.restore_hf import config

        said = config(checkpoint)
        if said is not None:
            return said
    path = checkpoint.path
    return read_config(path if os.path.isdir(path) else os.path.dirname(path) or ".")
