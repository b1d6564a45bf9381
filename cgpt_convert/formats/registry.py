"""The registry of formats, by name, by kind of file and by suffix.

A built-in format is a package in this folder with one value `FORMAT`. Its functions import the
readers and writers when they are called: start-up time matters. Other packages register formats as
entry points. Finding these takes about 30 ms, so it is done only for names and files that no
built-in format recognises.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, NamedTuple, TypeVar, cast

from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.core.errors import BadRequest, CgptError, Unsupported
from cgpt_convert.formats.detect import Kind, sniff
from cgpt_convert.sources.local import Source
from cgpt_convert.sources.paths import open_source
from cgpt_convert.tensors.dtypes import DType

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from cgpt_convert.plan import FilePlan, Request  # not imported to inspect a file


Answer = TypeVar("Answer")


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
    # The rest is for formats of other packages; `sniff` and the scanner know the built-in ones.
    # tells whether a file is of this format, from its content
    detect: Callable[[Source], bool] | None = None
    # tells whether a folder is of this format, from the names of the files in it
    detect_folder: Callable[[Collection[str]], bool] | None = None
    # returns why a file that no format recognises is a damaged one of this format, if it is
    diagnose: Callable[[Source], CgptError | None] | None = None
    # returns if every byte of the file is accounted for and none of it is code; raises Malformed if
    # the file is damaged, Unsupported if it contains code or anything that is not understood
    scan: Callable[[Source], None] | None = None

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

    def recognises(self, source: Source) -> bool:
        """Return whether a file is of this format, if it is another package's."""
        return self.detect is not None and bool(self._ask(self.detect, source))

    def check_scanned(self, source: Source) -> None:
        """Return if the file contains only data; raise Malformed or Unsupported if not."""
        if self.scan is None:
            raise Unsupported(f"a {self.name} file, whose format plug-in has no scanner")
        self._ask(self.scan, source)

    def diagnosis(self, source: Source) -> CgptError | None:
        """Return why an unrecognised file is a damaged one of this format; None if it is not."""
        return self._ask(self.diagnose, source) if self.diagnose is not None else None

    def _ask(self, hook: Callable[[Source], Answer], source: Source) -> Answer:
        """Call a hook of another package; Unsupported if it fails by itself."""
        try:
            return hook(source)
        except CgptError:
            raise
        except Exception as error:
            message = f"the format plug-in {self.name} failed: {error!r}"
            raise Unsupported(message, where=source.name, hint=_REMOVE) from error

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


GROUP = "cgpt_convert.formats"  # of the entry points


def names() -> list[str]:
    """Return the names of the built-in formats, sorted; none is imported."""
    return sorted(_PACKAGES)


def writable() -> list[str]:
    """Return the names of all formats that can be written, of other packages too, sorted."""
    return sorted([*_PACKAGES, *(form.name for form in plugins() if form.plan is not None)])


@functools.cache
def plugins() -> tuple[Format, ...]:
    """Return the formats that other packages register, sorted by name.

    Raises Unsupported if one cannot be loaded or has a name that is taken.
    """
    from importlib.metadata import entry_points

    found: dict[str, Format] = {}
    for entry in entry_points(group=GROUP):
        form = _loaded(entry)
        if form.name in found or form.name in _RESERVED:
            message = f"the format plug-in {entry.value} has the name of another format"
            raise Unsupported(f"{message}: {form.name!r}", hint=_REMOVE)
        found[form.name] = form
    return tuple(found[name] for name in sorted(found))


_RESERVED = (*_PACKAGES, "hf")  # what `--to` takes already
_REMOVE = "update or uninstall the package that registers it"


def _loaded(entry: EntryPoint) -> Format:
    try:
        form = entry.load()
    except Exception as error:
        message = f"the format plug-in {entry.value} cannot be loaded: {error!r}"
        raise Unsupported(message, hint=_REMOVE) from error
    if not isinstance(form, Format):
        raise Unsupported(f"the format plug-in {entry.value} is not a Format", hint=_REMOVE)
    return form


def by_name(name: str) -> Format:
    """Return the format called `name`; BadRequest, listing those that exist, if there is none."""
    package = _PACKAGES.get(name)
    if package is not None:
        return cast("Format", importlib.import_module(f"cgpt_convert.formats.{package}").FORMAT)
    for form in plugins():
        if form.name == name:
            return form
    hint = f"choose from {', '.join(writable())}"
    raise BadRequest(f"no format is called {name!r}", hint=hint)


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
    return plugin_of_suffix(path)


def plugin_of_suffix(path: str) -> Format | None:
    """Return the format of another package whose files end as `path` does; None if none does."""
    base = os.path.basename(path).lower()
    return next((form for form in plugins() if base.endswith(form.suffixes or "\0")), None)


def plugin_of_file(source: Source, kind: Kind) -> Format | None:
    """Return the format of another package that recognises the file, which is of that kind.

    None if there is none, or if a built-in format reads files of that kind.
    """
    if kind in _OF_KIND:
        return None
    return next((form for form in plugins() if form.recognises(source)), None)


def plugin_of_folder(inside: Collection[str]) -> Format | None:
    """Return the format of another package that recognises a folder with files of these names."""
    found = (form for form in plugins() if form.detect_folder and form.detect_folder(inside))
    return next(found, None)


def diagnosed(source: Source) -> CgptError | None:
    """Return why the file is a damaged one of another package's format; None if none says so."""
    found = (form.diagnosis(source) for form in plugins())
    return next((error for error in found if error is not None), None)
