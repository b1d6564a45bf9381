"""Scan one file, given by its path."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from cgpt_convert.archives.zip_archive import SCRIPT
from cgpt_convert.core.errors import CgptError, Unsupported
from cgpt_convert.core.threads import in_order, worker_count
from cgpt_convert.formats import registry
from cgpt_convert.formats.file_kinds import FileKind, FormatKind, Kind
from cgpt_convert.formats.registry import Format, sniff
from cgpt_convert.scanning import allowlist, raw_folders
from cgpt_convert.scanning.kinds import FLAX
from cgpt_convert.scanning.result import FileScan
from cgpt_convert.scanning.scanner import FileScanner
from cgpt_convert.sources.local import Source
from cgpt_convert.sources.paths import named, open_source


def scan_file(path: str, rule: allowlist.Allowlist) -> FileScan:
    """Return what loading the file at `path` would run. Errors become findings; none is raised."""
    look = FileScanner(rule)
    kind: FileKind = Kind.UNKNOWN
    plugin = None
    path = named(path)
    try:
        source = open_source(path)
        try:
            kind = sniff(source)
            plugin = _plugin(source, kind, look)
            look.file(source, kind, plugin)
            if look.unread and not raw_folders.is_raw(path):
                look.settle(path)
            source.check_unchanged()
        finally:
            source.close()
    except CgptError as error:
        look.problem(error, "")
    return FileScan(
        path,
        plugin.kind.value if plugin else _label(path, kind, look),
        look.weights,
        look.pickles,
        sorted(look.added),
        look.sightings,
        look.problems,
        look.notes,
    )


def scan_each(
    paths: Iterable[str | CgptError], rule: allowlist.Allowlist, jobs: int = 0
) -> Iterator[FileScan | CgptError]:
    """Yield the results in the order of the paths, which are read ahead by `jobs` threads.

    Errors among the paths are yielded as they are.
    """

    def one(path: str | CgptError) -> FileScan | CgptError:
        return scan_file(path, rule) if isinstance(path, str) else path

    every = list(paths)
    yield from in_order(one, every, min(worker_count(jobs), len(every)))


def _plugin(source: Source, kind: FileKind, look: FileScanner) -> Format | None:
    """Return the format of another package that recognises the file, if one does.

    An error becomes a problem of the file: the rest of the scan still finds what the file runs.
    """
    if isinstance(kind, FormatKind):
        return None
    try:
        plugin = registry.plugin_of_file(source, kind)
        named_as = plugin or registry.plugin_of_suffix(source.name)
    except CgptError as error:
        look.problem(error, "")
        return None
    if named_as is not plugin and named_as is not None:
        what = f"the file name is that of a {named_as.name} file, but the content is not"
        look.problem(Unsupported(what), "")
    return plugin


def _label(path: str, kind: FileKind, look: FileScanner) -> str:
    """Return the file's kind as `inspect` names it, given what the scan found."""
    if look.script:
        return SCRIPT
    if look.flax:
        return FLAX
    if look.pickles and kind in (Kind.UNKNOWN, Kind.TEXT, Kind.JSON):
        return Kind.PICKLE.value
    if not (look.weights or look.problems) and raw_folders.is_raw(path):
        return raw_folders.RAW
    return kind.value
