"""Names of Hugging Face Hub repositories that were given as local paths."""

from __future__ import annotations

import os
import re

from cgpt_convert.formats.detect import WEIGHT_SUFFIXES

_REPOSITORY = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?:@[\w.-]+)?"  # owner/name[@revision]
_FILES = (*WEIGHT_SUFFIXES, ".npy", ".json")


def hub_url(path: str) -> str:
    """Return the hf:// URL of the repository that `path` looks like; "" if it looks like a file.

    A path that exists is not a repository.
    """
    if not re.fullmatch(_REPOSITORY, path) or path.lower().endswith(_FILES):
        return ""
    return "" if os.path.lexists(path) else f"hf://{path}"
