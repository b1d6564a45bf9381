"""A checkpoint and its configuration as transformers has them."""

from __future__ import annotations

import os
from typing import Any

from cgpt_convert.architectures.hf_config_check import read_config
from cgpt_convert.checkpoint import Checkpoint


def undone(checkpoint: Checkpoint) -> Checkpoint:
    """Return a GGUF checkpoint with transformers' names and layout; others unchanged."""
    if checkpoint.format != "gguf":
        return checkpoint
    from cgpt_convert.targets.llama_cpp.restore_hf import undo

    return undo(checkpoint)


def configuration(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Return a GGUF file's configuration, else the content of the config.json next to it."""
    if checkpoint.format == "gguf":
        from cgpt_convert.targets.llama_cpp.restore_hf import config

        said = config(checkpoint)
        if said is not None:
            return said
    path = checkpoint.path
    return read_config(path if os.path.isdir(path) else os.path.dirname(path) or ".")
