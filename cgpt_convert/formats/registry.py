"""The registry of formats, by name, by kind of file and by suffix.

A built-in format is a package in this folder with one value `FORMAT`, whose functions import the
readers and writers when they are called: start-up time matters. Other packages register formats as
entry points. Finding these takes about 30 ms, so it is done only for names and files that no
built-in format recognises.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import cgpt_convert.formats
from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.core.errors import BadRequest, CgptError, Unsupported
from cgpt_convert.core.text import quoted, suggestion
from cgpt_convert.formats.file_kinds import (
    MAGIC,
    FileKind,
    FormatKind,
    Kind,
    Start,
    other_kind,
)
from cgpt_convert.sources.local import Source
from cgpt_convert.sources.paths import is_file, listing, open_source
from cgpt_convert.tensors.dtypes import DType

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from cgpt_convert.formats.scan_interface import PartScanner
    from cgpt_convert.plan import FilePlan, Request  # not imported to inspect a file


def sniff(source: Source, *, record: bool = False) -> FileKind:
    """Return the kind of file that `source` is. Damage inside is left to the reader.

    `record` marks a record of an archive (see `Start`). Raises Unreadable if the bytes cannot be
    read.
    """
    start = Start(source, record=record)
    if start.container is None:
        for offset, magic, kind in _magic(start.head[:1]):
            if start.head.startswith(magic, offset):
                return kind
    for form in built_in():
        detected = form.detected(start)
        if detected is not None:
            return detected
    return other_kind(start)


@functools.cache
def _magic(first: bytes) -> tuple[tuple[int, bytes, FileKind], ...]:
    """Return offset, bytes and kind of the magic numbers of files that begin with the byte."""
    rows: list[tuple[int, bytes, FileKind]] = [
        (offset, magic, form.kind) for form in built_in() for offset, magic in form.magic
    ]
    rows += MAGIC
    return tuple(row for row in rows if row[0] or row[1][:1] == first)


class FormatFile(NamedTuple):
    """An open file."""

    source: Source
    path: str  # as the user gave it
    kind: FileKind | None = None  # as detected; None for a file of the format with that name
    salvage: bool = False  # return the intact tensors of a truncated file


class Format(NamedTuple):
    """A format of weight files or folders. Parts that a format does not have keep their defaults.

    A format has one or more of `read_file`, `read_path` and `read_folder`. One that has no `plan`
    is read-only.
    """

    name: str  # the value of `--to`
    suffixes: tuple[str, ...] = ()  # of its files, in lower case; output gets the first by default
    other_suffixes: tuple[str, ...] = ()  # of files that may have the format but are not written
    part_suffixes: tuple[str, ...] = ()  # of files of one tensor, of which a folder has many
    folder: bool = False  # whether `plan` describes the files of a folder
    sharded: bool = False  # whether `plan` can split the tensors into shards

    # Detection. The kinds of files that `read_file` reads; by default one, named after the format.
    kinds: tuple[FormatKind, ...] = ()
    magic: tuple[tuple[int, bytes], ...] = ()  # offset and bytes of files of the first kind
    # returns the kind of a file of this format, or True for the first kind
    detect: Callable[[Start], FormatKind | bool | None] | None = None
    model_files: tuple[str, ...] = ()  # names of the weight file in the folder of a model
    folder_index: str = ""  # the file that marks a folder of this format and lists the others
    # returns whether a folder with these names has this format, whatever other files it contains;
    # if the index alone does not decide
    folder_of: Callable[[Collection[str]], bool] | None = None
    # returns whether a folder with these names, no index and no weight files is of this format
    detect_folder: Callable[[Collection[str]], bool] | None = None
    # returns the names of the files with tensors that the index of a folder lists
    tensor_files: Callable[[str], frozenset[str]] | None = None

    # Reading. Returns the checkpoint of an open file; raises Malformed or Unsupported if it cannot
    # be read
    read_file: Callable[[FormatFile], Checkpoint] | None = None
    # returns the checkpoint at a path, for formats whose checkpoints are folders
    read_path: Callable[[str], Checkpoint] | None = None
    # returns the checkpoint of a folder, given its path, the names in it, and whether to salvage,
    # which means to return the intact tensors of a folder that lacks files
    read_folder: Callable[[str, Collection[str], bool], Checkpoint] | None = None
    salvages: tuple[
        Kind, ...
    ] = ()  # kinds of damaged files that `read_file` also reads, to salvage
    # returns the error for a file that no format recognises, if it is a damaged file of this format
    diagnose: Callable[[FormatFile], CgptError | None] | None = None

    # Writing. Returns the files that contain the request; raises Unsupported, naming every tensor
    # that the format cannot store
    plan: Callable[[Request], list[FilePlan]] | None = None
    # returns the element types that `plan` accepts
    dtypes: Callable[[], tuple[DType, ...]] | None = None

    # Scanning. Returns if every byte of the file is accounted for, and reports code and other parts
    # to the scanner; raises Malformed if the file is damaged, Unsupported if it contains anything
    # unknown. Kinds that are ZIPs, tars or pickles are scanned without it.
    scan: Callable[[Source, PartScanner], None] | None = None

    @property
    def kind(self) -> FormatKind:
        """The first of its kinds of files."""
        return self.kinds[0] if self.kinds else FormatKind(f"{self.name} file")

    @property
    def suffix(self) -> str:
        """Return the suffix of the files that the format writes; empty for folders."""
        return self.suffixes[0] if self.suffixes else ""

    def detected(self, start: Start) -> FormatKind | None:
        """Return the kind of a file of this format; None for other files.

        `detect` is called only for files in a container that one of the format's kinds has.
        """
        if self.detect is None:
            return None
        if self.kinds and start.container not in {_container(kind) for kind in self.kinds}:
            return None
        result = self.detect(start)
        return self.kind if result is True else result or None

    def read(self, path: str) -> Checkpoint:
        """Return the checkpoint at `path`, a file or a folder of this format."""
        if self.read_path is not None:
            return self._marked(self.read_path(path))
        if self.read_folder is not None and not is_file(path):
            return self.read_in(path, listing(path) or (self.folder_index,))
        return self.load(FormatFile(open_source(path), path))

    def read_in(self, path: str, inside: Collection[str], *, salvage: bool = False) -> Checkpoint:
        """Return the checkpoint in a folder with files of the names `inside`."""
        if self.read_folder is None:
            return self.read(path)
        return self._marked(self.read_folder(path, inside, salvage))

    def load(self, file: FormatFile) -> Checkpoint:
        """Return the checkpoint of an open file; BadRequest if the format has only folders."""
        if self.read_file is None:
            message = f"checkpoints of the format {self.name} are folders, not files"
            raise BadRequest(message, where=file.path, hint="pass the folder")
        return self._marked(self.read_file(file))

    def _marked(self, checkpoint: Checkpoint) -> Checkpoint:
        checkpoint.format = self.name
        return checkpoint

    def planned(self, request: Request) -> list[FilePlan]:
        """Return the files that contain `request`; BadRequest if the format is read-only."""
        if self.plan is None:
            hint = f"choose from {', '.join(writable())}"
            message = f"the format {self.name} cannot be written"
            raise BadRequest(message, where=request.name, hint=hint)
        return self.plan(request)


def _container(kind: FormatKind) -> Kind | None:
    return kind.base if kind.base in (Kind.ZIP, Kind.TAR) else None


# Checked before the others, which are in alphabetical order: most files have these formats, a torch
# archive may contain arrays like an npz, and a raw folder a file named like the index of another
# format.
FIRST = ("safetensors", "torch", "raw")
GROUP = "cgpt_convert.formats"  # of the entry points


def built_in() -> Iterator[Format]:
    """Yield the built-in formats; each is imported when it is reached, its functions are not."""
    yield from map(_packaged, FIRST)
    yield from map(_packaged, _others())


@functools.cache
def _others() -> tuple[str, ...]:
    """Return the names of the packages with the other formats."""
    names = {
        name
        for folder in cgpt_convert.formats.__path__
        for name in os.listdir(folder)
        if os.path.isfile(os.path.join(folder, name, "__init__.py"))
    }
    return tuple(sorted(names.difference(FIRST)))


@functools.cache
def _packaged(package: str) -> Format:
    form: Format = importlib.import_module(f"{cgpt_convert.formats.__name__}.{package}").FORMAT
    return form


def names() -> list[str]:
    """Return the names of the built-in formats that can be written, sorted."""
    return sorted(form.name for form in built_in() if form.plan is not None)


def writable() -> list[str]:
    """Return the names of all formats that can be written, of other packages too, sorted."""
    return sorted(form.name for form in (*built_in(), *plugins()) if form.plan is not None)


@functools.cache
def weight_suffixes() -> tuple[str, ...]:
    """Return the suffixes of weight files, used to guess intent and never to detect a format."""
    return tuple(suffix for form in built_in() for suffix in (*form.suffixes, *form.other_suffixes))


@functools.cache
def tensor_suffixes() -> tuple[str, ...]:
    """Return the suffixes of weight files and of files of one tensor."""
    parts = (suffix for form in built_in() for suffix in form.part_suffixes)
    return (*weight_suffixes(), *parts)


@functools.cache
def plugins() -> tuple[Format, ...]:
    """Return the formats that other packages register, sorted by name.

    Their functions raise Unsupported in place of unexpected errors. Raises Unsupported if a format
    cannot be loaded or has a name that is taken.
    """
    from importlib.metadata import entry_points

    formats: dict[str, Format] = {}
    taken = {*(form.name for form in built_in()), *_RESERVED}
    for entry in entry_points(group=GROUP):
        form = _loaded(entry)
        if form.name in formats or form.name in taken:
            name = quoted(form.name)
            message = f"the format plug-in {entry.value} has the name of another format: {name}"
            raise Unsupported(message, hint=_REMOVE)
        formats[form.name] = form
    return tuple(formats[name] for name in sorted(formats))


_RESERVED = ("hf",)  # what `--to` also takes
_REMOVE = "update or uninstall the package that registers it"


def _loaded(entry: EntryPoint) -> Format:
    try:
        form = entry.load()
    except Exception as error:
        message = f"the format plug-in {entry.value} cannot be loaded: {error!r}"
        raise Unsupported(message, hint=_REMOVE) from error
    if not isinstance(form, Format):
        message = f"the format plug-in {entry.value} is not an instance of Format"
        raise Unsupported(message, hint=_REMOVE)
    parts: dict[str, Any] = form._asdict()
    for field, hook in parts.items():
        if callable(hook):
            parts[field] = _guarded(form.name, field, hook)
    return Format(**parts)


def _guarded(name: str, field: str, hook: Callable[..., Any]) -> Callable[..., Any]:
    """Return `hook`, of another package, with unexpected errors replaced by Unsupported."""

    def call(*arguments: Any) -> Any:
        try:
            result = hook(*arguments)
        except CgptError:
            raise
        except Exception as error:
            message = f"the format plug-in {name} failed: {error!r}"
            raise Unsupported(message, where=_where(*arguments), hint=_REMOVE) from error
        if field in _READ and not isinstance(result, Checkpoint):
            message = f"the format plug-in {name} did not return a Checkpoint"
            raise Unsupported(message, where=_where(*arguments), hint=_REMOVE)
        return result

    return call


_READ = ("read_file", "read_path", "read_folder")


def _where(subject: object = "", *_more: object) -> str:
    """Return the path of the file or folder that a format's function is called for."""
    named = getattr(subject, "source", subject)
    path = getattr(named, "name", named)
    return path if isinstance(path, str) else ""


def by_name(name: str) -> Format:
    """Return the format called `name`; raise BadRequest, listing all formats, if there is none."""
    for form in _likely_first(name):
        if form.name == name:
            return form
    for form in plugins():
        if form.name == name:
            return form
    every = writable()
    hint = f"{suggestion(name, every)}choose from {', '.join(every)}"
    raise BadRequest(f"unknown format {quoted(name)}", hint=hint)


def _likely_first(name: str) -> Iterator[Format]:
    """Yield the built-in formats, first the one called `name`: often no other is imported."""
    if name in FIRST or name in _others():
        yield _packaged(name)
    yield from built_in()


def for_kind(kind: FileKind, *, salvage: bool = False) -> Format | None:
    """Return the format that reads files of that kind, or with `salvage` damaged ones; or None."""
    if isinstance(kind, FormatKind):
        return of_kind(kind)
    return next((form for form in built_in() if kind in form.salvages), None) if salvage else None


def of_kind(kind: FormatKind) -> Format:
    """Return the built-in format that has this kind of files."""
    return next(form for form in built_in() if kind in form.kinds)


def for_suffix(path: str) -> Format | None:
    """Return the format with the suffix of `path`, ignoring case; None if no format has it."""
    base = os.path.basename(path).lower()
    for form in _likely_first(base.rpartition(".")[2]):  # most suffixes are the format's name
        if base.endswith(form.suffixes or "\0"):
            return form
    return plugin_of_suffix(path)


def plugin_of_suffix(path: str) -> Format | None:
    """Return the format of another package with the suffix of `path`; None if none has it."""
    base = os.path.basename(path).lower()
    return next((form for form in plugins() if base.endswith(form.suffixes or "\0")), None)


def plugin_of_file(source: Source, kind: FileKind) -> Format | None:
    """Return the format of another package that recognises the file, which is of that kind.

    None if there is none, or if a built-in format reads files of that kind.
    """
    if isinstance(kind, FormatKind) or not plugins():
        return None
    start = Start(source)
    for form in plugins():
        magic = any(start.head.startswith(data, offset) for offset, data in form.magic)
        if magic or form.detected(start) is not None:
            return form
    return None


def indexed_folder(inside: Collection[str]) -> Format | None:
    """Return the format that a folder certainly has, by its index and other names; or None."""
    return next((form for form in built_in() if _indexes(form, inside)), None)


def _indexes(form: Format, inside: Collection[str]) -> bool:
    if form.folder_of is not None:
        return form.folder_of(inside)
    return form.folder_index in inside


def folder_indexes() -> list[str]:
    """Return the names of the files that mark a folder of a format."""
    return [form.folder_index for form in built_in() if form.folder_index]


def of_folder(inside: Collection[str]) -> Format | None:
    """Return the format that recognises a folder with files of these names, or None."""
    for formats in (built_in, plugins):
        for form in formats():
            if form.detect_folder is not None and form.detect_folder(inside):
                return form
    return None


def model_files() -> list[str]:
    """Return the names of the weight files in the folders of models, indexes of shards first."""
    return [
        name
        for form in built_in()
        for file in form.model_files
        for name in ((f"{file}{INDEX}", file) if form.sharded else (file,))
    ]


INDEX = ".index.json"  # the end of the name of an index of shards


def diagnosed(file: FormatFile, formats: Iterator[Format] | tuple[Format, ...]) -> CgptError | None:
    """Return the error of the first format that recognises `file` as damaged, or None."""
    diagnoses = (form.diagnose(file) for form in formats if form.diagnose is not None)
    return next((error for error in diagnoses if error is not None), None)
