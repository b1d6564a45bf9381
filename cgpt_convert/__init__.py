"""PyTorch weight files: inspected, extracted, converted; without torch, without running them.

The names in `__all__` are the public API; docs/reference/library.md shows them. All modules are
internal.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing's takes 4 ms to import, in which a Ctrl-C would show a traceback
if TYPE_CHECKING:
    from typing import Any

    from cgpt_convert.api.converting import Converted, convert
    from cgpt_convert.api.diffing import Difference, diff
    from cgpt_convert.api.digesting import Digests, digest
    from cgpt_convert.api.inspecting import inspect
    from cgpt_convert.api.locking import Locked, lock
    from cgpt_convert.api.scan_paths import ScanResult, scan
    from cgpt_convert.api.verifying import Verified, verify
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
    "Converted",
    "Difference",
    "Digests",
    "Locked",
    "Malformed",
    "ScanResult",
    "Tensor",
    "Unreadable",
    "Unsupported",
    "Verified",
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
    "Converted": "api.converting",
    "Difference": "api.diffing",
    "Digests": "api.digesting",
    "Locked": "api.locking",
    "ScanResult": "api.scan_paths",
    "Tensor": "tensors.tensor",
    "Verified": "api.verifying",
    "convert": "api.converting",
    "diff": "api.diffing",
    "digest": "api.digesting",
    "inspect": "api.inspecting",
    "lock": "api.locking",
    "open_checkpoint": "formats.open",
    "scan": "api.scan_paths",
    "verify": "api.verifying",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
