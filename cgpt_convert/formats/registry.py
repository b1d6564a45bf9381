"""The registry of formats that can be written, by name and by suffix.

A format satisfies `plan.Format`. It is imported when it is asked for: start-up time matters.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, cast

from cgpt_convert.core.errors import BadRequest

if TYPE_CHECKING:
    from cgpt_convert.plan import Format  # not imported to inspect a file


_MODULES = {
    "gguf": "gguf.writer",
    "npy": "npy.folder",
    "npz": "npy.npz",
    "parameters": "raw.writer",
    "safetensors": "safetensors.writer",
    "torch": "torch.writer",
}


def names() -> list[str]:
    """Return the formats' names, sorted; none is imported."""
    return sorted(_MODULES)


def by_name(name: str) -> Format:
    """The format called `name`; BadRequest, listing those that exist, if there is none."""
    known = names()
    if name not in known:
        raise BadRequest(f"no format is called {name!r}", hint=f"choose from {', '.join(known)}")
    return cast("Format", importlib.import_module(f"cgpt_convert.formats.{_MODULES[name]}"))


def for_suffix(path: str) -> Format | None:
    """The format whose files end as `path` does, in any case; None if no format's do."""
    base = os.path.basename(path).lower()
    # most suffixes are the format's name, so the likely one is imported first and often alone
    likely = base.rpartition(".")[2]
    for name in sorted(names(), key=lambda name: name != likely):
        found = by_name(name)
        suffixes = (found.SUFFIX, *getattr(found, "ALSO", ()))
        if found.SUFFIX and base.endswith(suffixes):
            return found
    return None
