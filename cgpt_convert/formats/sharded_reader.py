"""Checkpoints in several shards, found by an index or by file names, merged into one tensor table.

The index is Hugging Face's: {"metadata": {"total_size": N}, "weight_map": {name: file}}.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence

from cgpt_convert.checkpoint import Checkpoint, MissingTensor
from cgpt_convert.core import findings
from cgpt_convert.core.errors import SALVAGE, CgptError, Malformed, Unreadable, Unsupported
from cgpt_convert.core.findings import Finding
from cgpt_convert.core.limits import INDEX_BYTES
from cgpt_convert.core.strict_json import check_count, unique
from cgpt_convert.core.text import counted, quoted, quoted_list
from cgpt_convert.sources.local import as_local, read
from cgpt_convert.sources.paths import is_url, join, open_source

_SHARD = r"(.+)-([0-9]{5})-of-([0-9]{5})(\.[a-z]+)"


def lone_shard(path: str) -> str | None:
    """Return the index for a file named like one shard of several; None for other files."""
    name = os.path.basename(path)
    match = re.fullmatch(_SHARD, name)
    return f"{match[1]}{match[4]}.index.json" if match and int(match[3]) > 1 else None


def all_shards(names: Collection[str]) -> list[str]:
    """Return the names of all shards of the set that `names` belong to; empty if there is none.

    The names of a set, such as `model-00001-of-00004.safetensors`, differ only in the shard number.
    """
    matches = [match for match in (re.fullmatch(_SHARD, name) for name in names) if match]
    sets = {(match[1], match[3], match[4]) for match in matches}
    if len(matches) < len(names) or len(sets) != 1:
        return []
    ((stem, count, suffix),) = sets
    if int(count) > _MOST_UNLISTED:
        return []
    every = [f"{stem}-{number:05}-of-{count}{suffix}" for number in range(1, int(count) + 1)]
    return every if {*every}.issuperset(names) else []


_MOST_UNLISTED = 10_000  # shards in a folder without an index; errors list the missing ones


def read_shards(
    folder: str,
    files: Sequence[str],
    open_file: Callable[[str], Checkpoint],
    *,
    salvage: bool = False,
) -> Checkpoint:
    """Read all tensors of the shards `files` in a folder without an index.

    Raises Malformed for missing shards, and for a tensor in several shards. With `salvage`, missing
    and unreadable shards are lost instead; the names of their tensors are unknown.
    """
    opened = _open_all if is_url(folder) else _open_each
    shards, unread = _sort(
        folder, opened({name: join(folder, name) for name in files}, open_file), salvage=salvage
    )
    kind = next(iter(shards.values())).kind
    merged = Checkpoint(folder, f"{kind}, {len(files)} shards", (), {})
    holders: dict[str, str] = {}
    for file, shard in shards.items():
        for name in (*shard, *shard.exotic, *shard.lost):
            if holders.setdefault(name, file) != file:
                files_of_it = quoted_list((holders[name], file))
                message = f"several shards contain the tensor {quoted(name)}: {files_of_it}"
                raise Malformed(message, where=folder)
        _merge(merged, shard, file)
    for file, why in unread.items():
        merged.lost[file] = MissingTensor(None, f"the shard {why}, with all of its tensors")
    merged.findings.append(Finding(findings.NO_INDEX, f"{len(files)} shards"))
    return merged


def read_index(
    path: str, open_file: Callable[[str], Checkpoint], *, salvage: bool = False
) -> Checkpoint:
    """Read all tensors that the index at `path` maps, each from its shard.

    Raises Malformed listing every shard and every tensor that is missing or not in the index. With
    `salvage`, the tensors of missing or unreadable shards are lost instead.
    """
    weight_map, metadata = _parse(path)
    folder = os.path.dirname(path)
    files = sorted(set(weight_map.values()))
    opened = _open_all if is_url(path) else _open_each
    every = opened({name: join(folder, name) for name in files}, open_file)
    shards, unread = _sort(path, every, salvage=salvage)
    lost = {name: file for name, file in weight_map.items() if file in unread}
    weight_map = {name: file for name, file in weight_map.items() if file not in unread}
    kind = next(iter(shards.values())).kind
    merged = Checkpoint(path, f"{kind}, {len(files)} shards", (), {})
    merged.lost = {
        name: MissingTensor(None, f"the shard {quoted(file)} {unread[file]}")
        for name, file in lost.items()
    }
    _check_names(path, weight_map, shards)
    for name, shard in shards.items():
        _merge(merged, shard, name)
    for file in map(as_local, merged.sources):
        if file is not None:
            file.index = path
    _compare_size(merged, metadata.get("total_size"))
    merged.metadata |= {k: value for k, value in metadata.items() if isinstance(value, str)}
    return merged


_Opened = dict[str, Checkpoint | CgptError | None]  # None marks a missing file


def _open_each(paths: Mapping[str, str], open_file: Callable[[str], Checkpoint]) -> _Opened:
    def opened(path: str) -> Checkpoint | CgptError | None:
        try:
            return open_file(path) if os.path.isfile(path) else None
        except CgptError as error:  # the caller decides whether this matters
            return error

    return {name: opened(path) for name, path in paths.items()}


def _open_all(paths: Mapping[str, str], open_file: Callable[[str], Checkpoint]) -> _Opened:
    """Open remote shards, several at a time."""
    from cgpt_convert.sources.remote.remote_object import NotFound
    from cgpt_convert.sources.remote.retry import in_parallel

    opened = zip(paths, in_parallel(open_file, paths.values()), strict=True)
    return {name: None if isinstance(each, NotFound) else each for name, each in opened}


def _sort(
    index: str, opened: _Opened, *, salvage: bool
) -> tuple[dict[str, Checkpoint], dict[str, str]]:
    """Return the shards and, with `salvage`, why others are unreadable; else raise the error."""
    missing = [name for name, each in opened.items() if each is None]
    if missing and (not salvage or len(missing) == len(opened)):
        raise Malformed(
            f"{len(missing):,} of {counted(len(opened), 'shard')} missing: {quoted_list(missing)}",
            where=index,
            hint=f"download them to the folder of the others, or {SALVAGE}",
        )
    # network errors may be temporary
    damage: tuple[type[CgptError], ...] = (Malformed, *(() if is_url(index) else (Unreadable,)))
    shards: dict[str, Checkpoint] = {}
    unread = dict.fromkeys(missing, "is missing")
    for name, each in opened.items():
        if isinstance(each, Checkpoint):
            shards[name] = each
        elif each is not None:
            if not salvage or not isinstance(each, damage):
                raise each
            unread[name] = f"cannot be read: {each.message}"
    if not shards:
        raise Malformed("none of the shards can be read", where=index)
    return shards, unread


def _parse(path: str) -> tuple[dict[str, str], dict[str, object]]:
    """Return the index's `weight_map` and `metadata`."""
    source = open_source(path)
    if source.nbytes > INDEX_BYTES:
        message = f"the index has {source.nbytes:,} bytes, the limit is {INDEX_BYTES:,}"
        raise Unsupported(message, where=path)
    data = read(source, 0, source.nbytes)
    check_count(data, path)
    try:
        index = json.loads(data, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"the index is not valid JSON: {error}", where=path) from error
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise Malformed("the index has no weight_map", where=path)
    files = {name: _plain(file) for name, file in weight_map.items()}
    bad = dict.fromkeys(str(weight_map[name]) for name, file in files.items() if not file)
    if bad:
        back = any("\\" in name for name in bad)
        hint = "edit the index: write the file names of the shards without \\" if back else ""
        raise Malformed(
            f"the index names shards outside its folder: {quoted_list(bad, 3)}",
            where=path,
            hint=hint or "move the shards to the folder of the index, and edit their names in it",
        )
    metadata = index.get("metadata")
    return files, metadata if isinstance(metadata, dict) else {}


def _plain(name: object) -> str:
    """Return the shard's file name without a leading `./`; "" if it is not in the same folder."""
    if not isinstance(name, str):
        return ""
    plain = re.sub(r"^(\./+)+", "", name)
    return "" if plain in (".", "..") or re.search(r"[/\\\x00]", plain) else plain


def _check_names(path: str, weight_map: dict[str, str], shards: dict[str, Checkpoint]) -> None:
    """Check that index and shards contain the same names."""
    wrong = []
    inside = {f: dict.fromkeys((*s, *s.exotic, *s.lost)) for f, s in shards.items()}
    holders = {name: file for file, names in inside.items() for name in names}
    for name, file in weight_map.items():
        if name not in inside[file]:
            instead = f"in {quoted(holders[name])} and " if name in holders else ""
            wrong.append(f"{quoted(name)} is {instead}not in {quoted(file)}")
    for file, names in inside.items():
        ties = shards[file].ties
        for name in names:
            mapped = weight_map.get(name)
            if mapped is None and name not in ties:
                wrong.append(f"{quoted(name)} in {quoted(file)} is not in the index")
            elif mapped is not None and mapped != file and name in inside[mapped]:
                wrong.append(f"{quoted(name)} is in {quoted(file)} and in {quoted(mapped)}")
    if wrong:
        raise Malformed(
            "the index and the shards disagree:\n  " + "\n  ".join(wrong),
            where=path,
            hint="download the index and the shards again, all from the same version",
        )


def _merge(merged: Checkpoint, shard: Checkpoint, file: str) -> None:
    merged.sources += shard.sources
    merged.tensors.update(shard.tensors)
    merged.exotic.update(shard.exotic)
    merged.lost.update(shard.lost)
    merged.storages += shard.storages
    merged.others += [leaf._replace(path=f"{file}:{leaf.path}") for leaf in shard.others]
    merged.globals = list(dict.fromkeys(merged.globals + shard.globals))
    merged.findings += [f._replace(detail=f"{file}: {f.detail}") for f in shard.findings]
    merged.metadata.update(shard.metadata)
    merged.containers.update(shard.containers)
    merged.extras.update(shard.extras)
    merged.within.update(shard.within)
    merged.unsaved |= shard.unsaved
    merged.collisions |= shard.collisions
    merged.code += shard.code
    merged.root = merged.root or shard.root


def _compare_size(merged: Checkpoint, total_size: object) -> None:
    """Add a finding if total_size counts tied tensors neither once nor each time."""
    each = sum(tensor.nbytes for tensor in merged.values())
    once = each - sum(merged[name].nbytes for name in merged.ties)
    if isinstance(total_size, int) and total_size not in (each, once):
        detail = f"{total_size:,} bytes in the index, {each:,} in the shards"
        merged.findings.append(Finding(findings.INDEX_SIZE, detail))
