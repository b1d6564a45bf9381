"""PyTorch weight files: inspected, extracted, converted; without torch, without running them.

The names in `__all__` are the public API; docs/reference/library.md shows them. All modules are
internal.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing's takes 4 ms to import, in which a Ctrl-C would show a traceback
if TYPE_CHECKING:
    from typing import Any

    from cgpt_convert.api.functions import convert, diff, digest, inspect, lock, scan, verify
    from cgpt_convert.checkpoint import Checkpoint
    from cgpt_convert.core.errors import (
        BadRequest,
        CannotWrite,
        CgptError,
        CheckFailed,
        Malformed,
        Unreadable,
        Unsupported,
    )
    from cgpt_convert.formats.open import open_checkpoint
    from cgpt_convert.tensors.tensor import Tensor

__version__ = "0.1.0"
__all__ = [
    "BadRequest",
    "CannotWrite",
    "CgptError",
    "CheckFailed",
    "Checkpoint",
    "Malformed",
    "Tensor",
    "Unreadable",
    "Unsupported",
    "__version__",
    "convert",
    "diff",
    "digest",
    "inspect",
    "lock",
    "open_checkpoint",
    "scan",
    "verify",
]


def __getattr__(name: str) -> Any:
    # imported on first use: `cgpt-convert --help` needs none of it
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "open_checkpoint":
        from cgpt_convert.formats.open import open_checkpoint

        return open_checkpoint
    if name == "Checkpoint":
        from cgpt_convert.checkpoint import Checkpoint

        return Checkpoint
    if name == "Tensor":
        from cgpt_convert.tensors.tensor import Tensor

        return Tensor
    if name[0].isupper():
        from cgpt_convert.core import errors

        return getattr(errors, name)
    from cgpt_convert.api import functions

    return getattr(functions, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
