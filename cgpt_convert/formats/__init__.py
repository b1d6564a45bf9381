"""The formats: each module of this folder is one, except those that begin with an underscore.

A format satisfies `plan.Format`, its NAME is its module's, and it is imported when it is asked
for: start-up time is a promise. Adding a format is adding a file.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, cast

from cgpt_convert.errors import BadRequest

if TYPE_CHECKING:
    from cgpt_convert.plan import Format  # not imported to inspect a file


def names() -> list[str]:
    """The formats' names, sorted; none is imported."""
    files = (entry.partition(".") for path in __path__ for entry in os.listdir(path))
    return sorted(stem for stem, _, end in files if end == "py" and not stem.startswith("_"))


def by_name(name: str) -> Format:
    """The format called `name`; BadRequest, listing those that exist, if there is none."""
    known = names()
    if name not in known:
        raise BadRequest(f"no format is called {name!r}", hint=f"choose from {', '.join(known)}")
    return cast("Format", importlib.import_module(f"{__name__}.{name}"))


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
