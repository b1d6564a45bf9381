"""PyTorch weight files: inspected, extracted, converted; without torch, without running them."""

from __future__ import annotations

TYPE_CHECKING = False  # typing's takes 4 ms to import, in which a Ctrl-C would show a traceback
if TYPE_CHECKING:
    from typing import Any

    from cgpt_convert.formats.open import open_checkpoint

__version__ = "0.1.0"
__all__ = ["__version__", "open_checkpoint"]


def __getattr__(name: str) -> Any:
    # imported on first use: `cgpt-convert --help` needs none of it
    if name == "open_checkpoint":
        from cgpt_convert.formats.open import open_checkpoint

        return open_checkpoint
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
