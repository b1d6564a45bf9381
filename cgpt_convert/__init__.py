"""PyTorch weight files: inspected, extracted, converted; without torch, without running them.

The names in `__all__` are the public API; docs/reference/library.md shows them. All modules are
internal.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing's takes 4 ms to import, in which a Ctrl-C would show a traceback
if TYPE_CHECKING:
    from typing import Any

    from cgpt_convert.api.converting import convert
    from cgpt_convert.api.functions import diff, digest, inspect, lock, scan, verify
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


# the modules of the names, imported on first use: `cgpt-convert --help` needs none of them
_MODULES = {
    **dict.fromkeys(
        (
            "BadRequest",
            "CannotWrite",
            "CgptError",
            "CheckFailed",
            "Malformed",
            "Unreadable",
            "Unsupported",
        ),
        "core.errors",
    ),
    "Checkpoint": "checkpoint",
    "Tensor": "tensors.tensor",
    "convert": "api.converting",
    "diff": "api.functions",
    "digest": "api.functions",
    "inspect": "api.functions",
    "lock": "api.functions",
    "open_checkpoint": "formats.open",
    "scan": "api.functions",
    "verify": "api.functions",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
