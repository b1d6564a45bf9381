"""Opening of any path as a Checkpoint. The format is detected from content, not from the suffix."""

from __future__ import annotations

import functools
import itertools
import os
import re
from collections.abc import Collection

from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.core import findings
from cgpt_convert.core.errors import BadRequest, Malformed, Unsupported
from cgpt_convert.core.findings import Finding
from cgpt_convert.core.text import quoted, quoted_list
from cgpt_convert.core.threads import step
from cgpt_convert.formats import registry, sharded_reader
from cgpt_convert.formats.file_kinds import FileKind
from cgpt_convert.formats.registry import INDEX, FormatFile, sniff, tensor_suffixes, weight_suffixes
from cgpt_convert.sources.local import Source
from cgpt_convert.sources.paths import is_file, is_url, listing, named, open_source

_REPOSITORY = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?:@[\w.-]+)?"  # owner/name[@revision]


def hub_url(path: str) -> str:
    """Return the hf:// URL of the repository that `path` looks like; "" if it looks like a file.

    A path that exists is not a repository.
    """
    if not re.fullmatch(_REPOSITORY, path):
        return ""
    file = path.lower().endswith((*tensor_suffixes(), ".json"))
    return "" if file or os.path.lexists(path) else f"hf://{path}"


_ARGUMENTS = "training_args.bin"  # of the Trainer in transformers; contains no weights
_AGAIN = "download or copy the file again; if the error remains, ask its author for a new file"


def open_checkpoint(
    path: str | os.PathLike[str], mapping: str | None = None, *, salvage: bool = False
) -> Checkpoint:
    """Open the file or folder at `path`; tensors are read on demand.

    `mapping` names a model whose built-in mapping assigns names to a folder of numbered files. With
    `salvage`, the intact tensors of a truncated file, or of an incomplete set of shards, are
    returned; the rest, and entries that contradict the file, are in `Checkpoint.lost`. Raises a
    CgptError that says what is wrong and what to do next.
    """
    path = named(os.fspath(path))
    try:
        with step("opening"):
            checkpoint = _opened(path, mapping, salvage=salvage)
    except Malformed as error:
        error.hint = error.hint or _AGAIN
        raise
    checkpoint.opened_as = path
    if salvage:
        for name, entry in list(checkpoint.exotic.items()):
            if isinstance(entry.error, Malformed):
                checkpoint.lose(name, entry.detail)
    return checkpoint


def _opened(path: str, mapping: str | None, *, salvage: bool) -> Checkpoint:
    if mapping is not None:
        return _with_mapping(path, mapping)
    if is_url(path):
        path, inside = _look(path)
        if inside is not None:
            return _open_folder(path, inside, salvage=salvage)
        return _open_weights(path, salvage=salvage)
    return _open_local(path, salvage=salvage)


def _open_local(path: str, *, salvage: bool) -> Checkpoint:
    if os.path.isdir(path):
        inside = listing(path) or []
        if "snapshots" in inside or any(name.startswith("models--") for name in inside):
            from cgpt_convert.formats.diagnose_folder import hub_snapshot

            snapshot = hub_snapshot(path, inside)
            if snapshot is not None:
                path, inside = snapshot, listing(snapshot) or []
        return _open_folder(path, inside, salvage=salvage)
    _check_exists(path)
    return _open_weights(path, salvage=salvage)


def _check_exists(path: str) -> None:
    """Raise BadRequest, with the URL to pass, if `path` looks like a repository of the Hub."""
    url = hub_url(path)
    if url:
        hint = f"pass {url} to read the model on the Hugging Face Hub"
        raise BadRequest("no such file or folder", where=path, hint=hint)


def _open_weights(path: str, *, salvage: bool) -> Checkpoint:
    """Open the file at `path`, or the shards if it is an index."""
    open_file = functools.partial(_open_file, salvage=salvage)
    if path.endswith(INDEX):
        return sharded_reader.read_index(path, open_file, salvage=salvage)
    checkpoint = open_file(path)
    index = sharded_reader.lone_shard(path) if "-of-" in path else None
    if index:
        name = quoted(os.path.basename(path))
        detail = f"{name}; pass {quoted(index)} or the folder for the whole model"
        checkpoint.findings.append(Finding(findings.LONE_SHARD, detail))
    elif any(entry.kind == "DTensor" for entry in checkpoint.exotic.values()):
        detail = f"{os.path.basename(path)} has the parts that one rank has of some tensors"
        checkpoint.findings.append(Finding(findings.LONE_SHARD, detail))
    elif os.path.basename(path).startswith("consolidated."):
        from cgpt_convert.formats.torch.tensor_parallel import parts_beside

        count = parts_beside(path, checkpoint)
        if count > 1:
            detail = f"{quoted(os.path.basename(path))} is one of {count} parts of a LLaMA model"
            checkpoint.findings.append(
                Finding(findings.LONE_SHARD, f"{detail}; pass the folder with all of them")
            )
    return checkpoint


def _open_file(path: str, *, salvage: bool) -> Checkpoint:
    """Open one file with the reader of its kind; readers are imported when needed.

    With `salvage`, the intact tensors of a truncated file are returned. A file that contradicts
    itself in another way is rejected in either case.
    """
    source = open_source(path)
    kind = sniff(source)
    try:
        return _read(kind, source, path, salvage=salvage)
    except Malformed as error:
        from cgpt_convert.formats import diagnose_transfer

        raise diagnose_transfer.diagnose(source) or error from None


def _read(kind: FileKind, source: Source, path: str, *, salvage: bool) -> Checkpoint:
    """Read the file `source`, called `path`, with the format of its kind."""
    form = registry.for_kind(kind, salvage=salvage) or registry.plugin_of_file(source, kind)
    if form is not None:
        return form.load(FormatFile(source, path, kind, salvage))
    from cgpt_convert.formats.diagnose import refuse

    raise refuse(FormatFile(source, path, kind))


def _open_folder(path: str, inside: Collection[str], *, salvage: bool) -> Checkpoint:
    """Open the only checkpoint in a folder; if there are several, raise BadRequest with a list."""
    if is_url(path):
        path = path.rstrip("/") + "/"  # the trailing slash marks a folder's URL
    form = registry.indexed_folder(inside)
    if form is not None:
        return form.read_in(path, inside, salvage=salvage)
    names = _weights(inside)
    if not names:
        form = registry.of_folder(inside)
        if form is not None:
            return form.read(path)
        names = sorted(filter(registry.plugin_of_suffix, inside))
    names, others = _preferred(names)
    files = sharded_reader.all_shards(names) if len(names) > 1 else []
    if files:
        open_file = functools.partial(_open_file, salvage=salvage)
        checkpoint = sharded_reader.read_shards(path, files, open_file, salvage=salvage)
    else:
        one = _the_one(path, names, inside)
        opened = _open_weights if is_url(one) else _open_local
        checkpoint = opened(one, salvage=salvage)
    if others:
        checkpoint.findings.append(Finding(findings.OTHER_WEIGHTS, quoted_list(others)))
    return checkpoint


def _preferred(names: list[str]) -> tuple[list[str], list[str]]:
    """Return the names to read and those to skip: safetensors are preferred to torch files.

    Only files with the conventional names of the same model are considered.
    """
    chosen = [name for name in names if name.removesuffix(INDEX).endswith(_SAFETENSORS)]
    others = [name for name in names if name not in chosen]
    whole = len(chosen) == 1 and {*_usual()}.issuperset(names)
    if others and (whole or (_are_shards(chosen) and _are_shards(others))):
        return chosen, others
    return names, []


_SAFETENSORS = ".safetensors"


def _are_shards(names: list[str]) -> bool:
    return bool(names and sharded_reader.all_shards(names))


def _usual() -> list[str]:
    """Return the conventional names of weight files, also in the components of a pipeline.

    Beside them may be variants, such as in another precision, which are not read.
    """
    files = [f"diffusion_pytorch_model{suffix}" for suffix in (_SAFETENSORS, ".bin")]
    return [*registry.model_files(), *(name for file in files for name in (file + INDEX, file))]


def _weights(inside: Collection[str]) -> list[str]:
    """Return the candidates for the weight file among the names in a folder."""
    names = [name for name in _usual() if name in inside]
    names = names or sorted(name for name in inside if name.endswith(INDEX))
    return names or sorted(
        name for name in inside if name.endswith(weight_suffixes()) and name != _ARGUMENTS
    )


def _the_one(folder: str, names: list[str], inside: Collection[str]) -> str:
    """Return the path of the only file of `names`; raise an error that says what to pass."""
    if len(names) == 1:
        return os.path.join(folder, names[0])
    from cgpt_convert.formats import diagnose_folder

    if not names:
        raise diagnose_folder.without_weights(folder, inside)
    raise diagnose_folder.several(folder, names) or BadRequest(
        f"the folder contains several weight files: {quoted_list(names)}",
        where=folder,
        hint=f"pass one of them, such as {os.path.join(folder, names[0])}",
    )


def _look(path: str) -> tuple[str, tuple[str, ...] | None]:
    """Return the resolved name of the URL, and its contents if it is a folder."""
    from cgpt_convert.sources.remote.open_urls import look

    remote = look(path)
    if not remote.is_folder:
        return remote.name, None
    if remote.inside is not None:
        return remote.name, remote.inside
    tried = (*registry.model_files(), *registry.folder_indexes())
    there = tuple(
        itertools.islice((name for name in tried if is_file(os.path.join(path, name))), 1)
    )
    if not there:
        raise Unsupported(
            f"the folder cannot be listed and contains none of {', '.join(tried)}",
            where=path,
            hint="pass the URL of the weight file",
        )
    return remote.name, there


def _with_mapping(path: str, mapping: str) -> Checkpoint:
    from cgpt_convert.architectures.known_models import storage_mapping
    from cgpt_convert.formats.raw import writer

    if not is_url(path) and not os.path.isdir(path):
        _check_exists(path)
        raise BadRequest("--mapping requires a folder of numbered files", where=path)
    return writer.read_mapped(path, storage_mapping(mapping))


def weights_below(path: str) -> list[str]:
    """Return the weight files in the subfolders of the folder at `path`, relative to it.

    Files are recognised by suffix. Links to folders are not followed; URLs are not searched.
    """
    if is_url(path) or not os.path.isdir(path):
        return []
    paths: list[str] = []
    for folder, inside, files in os.walk(path):
        inside.sort()
        depth = os.path.relpath(folder, path).count(os.sep) + 1
        if depth >= _DEEPEST:
            inside.clear()
        if folder != path:
            names = (name for name in files if name.lower().endswith(weight_suffixes()))
            paths += (os.path.relpath(os.path.join(folder, name), path) for name in names)
    return sorted(paths)


_DEEPEST = 4  # levels of nested subfolders


def other_weights(path: str, checkpoint: Checkpoint) -> list[str]:
    """Return the names of weight files in the folder `path` that `checkpoint` does not use.

    The list is empty if `path` is not a folder. Files are recognised by suffix.
    """
    if is_url(path):
        inside = set(_look(named(path))[1] or ())
        inside -= {os.path.basename(source.name) for source in checkpoint.sources}
    elif os.path.isdir(path):
        inside = {*(listing(path) or ())}
        inside -= {os.path.relpath(source.name, path) for source in checkpoint.sources}
    else:
        return []
    names = [
        name for name in inside if name.lower().endswith(weight_suffixes()) and name != _ARGUMENTS
    ]
    return sorted(names)
