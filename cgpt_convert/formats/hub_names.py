"""Names of Hugging Face Hub repositories that were given as local paths."""

from __future__ import annotations

import os
import re

from cgpt_convert.formats.registry import tensor_suffixes

_REPOSITORY = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?:@[\w.-]+)?"  # owner/name[@revision]


def hub_url(path: str) -> str:
    """Return the hf:// URL of the repository that `path` looks like; "" if it looks like a file.

    A path that exists is not a repository.
    """
    if not re.fullmatch(_REPOSITORY, path):
        return ""
    file = path.lower().endswith((*tensor_suffixes(), ".json"))
    return "" if file or os.path.lexists(path) else f"hf://{path}"
