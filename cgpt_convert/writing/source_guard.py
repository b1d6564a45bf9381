"""Check that an output does not replace its own input, under any name or link."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence

from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.core.errors import BadRequest
from cgpt_convert.plan import DeferredPart, FilePlan
from cgpt_convert.sources.local import LocalFile, Source, origin
from cgpt_convert.sources.paths import is_url
from cgpt_convert.tensors.tensor import Tensor
from cgpt_convert.writing.temp_files import is_temporary_of


def inputs_of(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return the paths that the checkpoint is read from: index or folder, and files."""
    return (checkpoint.path, *(origin(source).name for source in checkpoint.sources))


def check_apart(
    plans: Iterable[FilePlan], inputs: Iterable[str], outputs: Sequence[str], *, folder: bool
) -> None:
    """Raise BadRequest if writing `outputs` would replace a file that is read.

    These are the files of the planned tensors, the shard index that lists them, and the paths
    `inputs`. A folder replaces everything in it.
    """
    sources = {id(source): source for source in _sources(plans)}.values()
    local = [source for source in sources if isinstance(source, LocalFile)]
    paths = {*inputs, *(source.name for source in sources if is_url(source.name))}
    paths |= {path for source in local for path in (source.name, source.index) if path}
    for output in outputs:
        if is_url(output):
            _check_names(paths, output)
            continue
        _check_temporary(paths, output)
        try:
            status = os.stat(output)
        except OSError:  # no such file
            continue
        same = any(source.same_file(status) for source in local)
        if same or any(_is_same(path, output, status, folder=folder) for path in paths):
            raise _same(output)


def _sources(plans: Iterable[FilePlan]) -> Iterator[Source]:
    for plan in plans:
        for part in plan.parts:
            tensors = part.tensors if isinstance(part, DeferredPart) else (part,)
            for tensor in tensors:
                if isinstance(tensor, Tensor):
                    yield origin(tensor.storage.source)


def _is_same(path: str, output: str, status: os.stat_result, *, folder: bool) -> bool:
    """Return whether a local input is the output, or inside it."""
    if is_url(path):
        return False
    try:
        if os.path.samestat(os.stat(path), status):
            return True
    except OSError:  # no longer exists
        return False
    if not folder:
        return False
    real = os.path.realpath(output)
    return any(
        os.path.commonpath([real, inside]) == real
        for inside in (os.path.realpath(path), os.path.abspath(path))
    )


def _check_temporary(paths: Iterable[str], output: str) -> None:
    """Raise BadRequest for an input whose name is that of a temporary of the output.

    Such files are leftovers of a killed run, and the next run of that output removes them.
    """
    folder, name = os.path.split(os.path.abspath(output))
    for path in paths:
        if is_url(path):
            continue
        relative = os.path.relpath(os.path.abspath(path), folder)
        if is_temporary_of(relative.split(os.sep)[0], name):
            raise BadRequest(
                "the input is a temporary file of this output, which writing removes",
                where=path,
                hint="rename it, or name another output",
            )


def _check_names(paths: Iterable[str], output: str) -> None:
    """Compare a URL with the inputs by name; stores have no links."""
    prefix = f"{output.rstrip('/')}/"
    if any(f"{name.rstrip('/')}/".startswith(prefix) for name in paths):
        raise _same(output)


def _same(output: str) -> BadRequest:
    return BadRequest("the output is the input", where=output, hint="name another one")
