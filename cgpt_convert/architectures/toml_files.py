"""Read the TOML files of `mappings/`, which describe known architectures and models."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cgpt_convert.core.errors import Malformed, Unreadable

_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # the package
# inside an installed wheel (pyproject.toml, force-include), then in a checkout
_FOLDERS = (os.path.join(_HERE, "_mappings"), os.path.join(os.path.dirname(_HERE), "mappings"))


def parsed(kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield path and content of each file of `kind` ("architectures" or "models"), by file name.

    Raises Unreadable if the files are not installed, Malformed if a file is not TOML.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    folder = _folder(kind)
    for name in sorted(os.listdir(folder)):
        if not name.endswith(".toml"):
            continue
        path = os.path.join(folder, name)
        with open(path, "rb") as file:
            try:
                content = tomllib.load(file)
            except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
                raise Malformed(f"invalid TOML: {error}", where=path, hint=_HINT) from error
        yield path, content


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Convert errors about missing or invalid content into Malformed, naming the file."""
    try:
        yield
    except KeyError as error:
        raise Malformed(f"the key {error} is missing", where=path, hint=_HINT) from error
    except (TypeError, ValueError, AttributeError) as error:
        raise Malformed(f"invalid content: {error}", where=path, hint=_HINT) from error


_HINT = "reinstall cgpt-convert, or fix the file"


def _folder(kind: str) -> str:
    for folder in _FOLDERS:
        path = os.path.join(folder, kind)
        if os.path.isdir(path):
            return path
    raise Unreadable(
        "the package's mappings are missing",
        where=os.path.join(_FOLDERS[0], kind),
        hint="reinstall cgpt-convert",
    )
