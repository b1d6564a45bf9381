"""The metadata of a model card: the front matter of README.md next to the weights."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from cgpt_convert.core.limits import CONFIG_BYTES
from cgpt_convert.sources.local import read
from cgpt_convert.sources.paths import find, is_file

CARD = "README.md"
_FENCE = "---"
# a top-level key of the YAML and a plain scalar, which may be in quotes
_LINE = re.compile(r"""(license|model_name):[ \t]+(["']?)([^"'\[\]{}|>&*!#%@`][^"'#]*?)\2[ \t]*""")


class Card(NamedTuple):
    """The model's name and licence; "" if the card does not state them."""

    name: str = ""
    license: str = ""


def read_card(folder: str) -> Card:
    """Return the metadata of the folder's README.md; empty if it is absent or has no metadata.

    Only plain values of `license` and `model_name` are read.
    """
    path = os.path.join(folder, CARD)
    source = find(path) if is_file(path) else None
    if source is None or source.nbytes > CONFIG_BYTES:
        return Card()
    try:
        return parse(read(source, 0, source.nbytes).decode())
    except UnicodeDecodeError:
        return Card()


def parse(text: str) -> Card:
    """Return the metadata of a model card."""
    first, *lines = text.lstrip("\ufeff").splitlines() or [""]
    if first.rstrip() != _FENCE:
        return Card()
    values: dict[str, str] = {}
    for line in lines:
        if line.rstrip() == _FENCE:
            return Card(values.get("model_name", ""), values.get("license", ""))
        match = _LINE.fullmatch(line)
        if match and match[3].isprintable():
            values.setdefault(match[1], match[3])
    return Card()
