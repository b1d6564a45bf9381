"""The registry of formats, by name, by kind of file and by suffix.

A format is a package in this folder with one value `FORMAT`. The package itself imports nothing but
this module; its parts import the readers and writers when they are called: start-up time matters.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, cast

from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.core.errors import BadRequest
from cgpt_convert.formats.detect import Kind, sniff
from cgpt_convert.sources.local import Source
from cgpt_convert.sources.paths import open_source
from cgpt_convert.tensors.dtypes import DType

if TYPE_CHECKING:
    from cgpt_convert.plan import FilePlan, Request  # not imported to inspect a file


class FormatFile(NamedTuple):
    """An open file that is to be read."""

    source: Source
    path: str  # as the user gave it
    kind: Kind  # what the file is as far as the built-in formats are concerned
    salvage: bool = False  # return the complete tensors of a file that is cut off


class Format(NamedTuple):
    """A format of weight files or folders. Parts that a format does not have are None.

    A format has `read_file`, `read_path` or both. One that has no `plan` is read-only.
    """

    name: str  # as `--to` takes it
    suffixes: tuple[str, ...] = ()  # of its files, in lower case; output gets the first by default
    folder: bool = False  # does `plan` describe the files of a folder?
    # returns the checkpoint of an open file; raises Malformed or Unsupported if it cannot be read
    read_file: Callable[[FormatFile], Checkpoint] | None = None
    # the same of a path, for formats whose checkpoints are folders
    read_path: Callable[[str], Checkpoint] | None = None
    # returns the files that contain the request; raises Unsupported, naming every tensor that the
    # format cannot store
    plan: Callable[[Request], list[FilePlan]] | None = None
    # returns the element types that `plan` accepts
    dtypes: Callable[[], tuple[DType, ...]] | None = None

    @property
    def suffix(self) -> str:
        """Return the suffix of the files that the format writes; empty for folders."""
        return self.suffixes[0] if self.suffixes else ""

    def read(self, path: str) -> Checkpoint:
        """Return the checkpoint at `path`, a file or a folder of this format."""
        if self.read_path is not None:
            return self.read_path(path)
        source = open_source(path)
        return self.load(FormatFile(source, path, sniff(source)))

    def load(self, file: FormatFile) -> Checkpoint:
        """Return the checkpoint of an open file; BadRequest if the format has only folders."""
        if self.read_file is None:
            raise BadRequest(f"{self.name} is a folder, not a file", where=file.path)
        return self.read_file(file)

    def planned(self, request: Request) -> list[FilePlan]:
        """Return the files that contain `request`; BadRequest if the format is read-only."""
        if self.plan is None:
            raise BadRequest(f"the format {self.name} can only be read", where=request.name)
        return self.plan(request)


# name -> package in this folder whose FORMAT it is
_PACKAGES = {
    "gguf": "gguf",
    "npy": "npy",
    "npz": "npz",
    "parameters": "raw",
    "safetensors": "safetensors",
    "torch": "torch",
}
# kinds that `sniff` finds in one pass over the first bytes -> name of the format that reads them
_OF_KIND = {
    Kind.TORCH_ZIP: "torch",
    Kind.LEGACY: "torch",
    Kind.TORCH_TAR: "torch",
    Kind.SAFETENSORS: "safetensors",
    Kind.GGUF: "gguf",
    Kind.NPY: "npy",
    Kind.NPZ: "npz",
}


def names() -> list[str]:
    """Return the names of the built-in formats, sorted; none is imported."""
    return sorted(_PACKAGES)


def by_name(name: str) -> Format:
    """Return the format called `name`; BadRequest, listing those that exist, if there is none."""
    package = _PACKAGES.get(name)
    if package is None:
        hint = f"choose from {', '.join(names())}"
        raise BadRequest(f"no format is called {name!r}", hint=hint)
    return cast("Format", importlib.import_module(f"cgpt_convert.formats.{package}").FORMAT)


def for_kind(kind: Kind, *, salvage: bool = False) -> Format | None:
    """Return the format that reads files of that kind; None if none does.

    Of zip archives that are cut off, torch's can be salvaged.
    """
    if kind is Kind.CUT_ZIP:
        return by_name("torch") if salvage else None
    return by_name(_OF_KIND[kind]) if kind in _OF_KIND else None


def for_suffix(path: str) -> Format | None:
    """Return the format whose files end as `path` does, in any case; None if no format's do."""
    base = os.path.basename(path).lower()
    # most suffixes are the format's name, so the likely one is imported first and often alone
    likely = base.rpartition(".")[2]
    for name in sorted(names(), key=lambda name: name != likely):
        found = by_name(name)
        if base.endswith(found.suffixes or "\0"):
            return found
    return None
