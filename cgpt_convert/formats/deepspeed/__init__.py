"""Checkpoints of DeepSpeed's ZeRO optimizers: the ranks divide all weights as one vector."""

from cgpt_convert.core.lazy import LazyReference
from cgpt_convert.formats.deepspeed.zero_names import is_run, is_zero
from cgpt_convert.formats.registry import Format

FORMAT = Format(
    "deepspeed",
    folder_of=is_zero,
    detect_folder=is_run,
    read_folder=LazyReference(f"{__name__}.zero_reader:read_folder"),
)
