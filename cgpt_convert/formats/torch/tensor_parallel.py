"""The files `consolidated.00.pth`, `consolidated.01.pth` ... of Meta's LLaMA releases.

Each file has one part of every matrix, as tensor parallelism divides it, and a copy of every
vector. Nothing in the files says which dimension was divided: that follows from the names, as in
fairscale's ColumnParallelLinear and RowParallelLinear, and is compared with `params.json`.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Collection, Mapping
from typing import NamedTuple

from cgpt_convert.checkpoint import Checkpoint, MissingTensor
from cgpt_convert.core.errors import SALVAGE, CgptError, Malformed, Unsupported
from cgpt_convert.core.limits import TOKENIZER_BYTES
from cgpt_convert.core.strict_json import check_count, unique
from cgpt_convert.core.text import quoted, quoted_list
from cgpt_convert.formats.read_checks import Unread, add_unread, checked_nbytes, each_read
from cgpt_convert.formats.torch.rank_files import add_globals, box_of, open_ranks, read_each
from cgpt_convert.formats.torch.torch_files import PARAMETERS, is_part, parallel_files
from cgpt_convert.sources.local import CHUNK, Source, read
from cgpt_convert.sources.paths import is_file, join, open_source
from cgpt_convert.tensors.assembled import Box, assembled, read_run
from cgpt_convert.tensors.shapes import dims
from cgpt_convert.tensors.tensor import Tensor

_MOST_PARTS = 100  # files with two digits
_LAYER = r"layers\.[0-9]+\."
_MATRIX = re.compile(
    rf"(?:{_LAYER}attention\.|{_LAYER}feed_forward\.|)(w[qkvo]|w[123]|output|tok_embeddings)\.weight"
)
_REPLICA = re.compile(rf"(?:{_LAYER}(?:attention|ffn)_)?norm\.weight|(?:.+\.)?rope\.freqs")
_BY_ROWS, _BY_COLUMNS = ("wq", "wk", "wv", "w1", "w3", "output"), ("wo", "w2")
_FIRST, _OUTPUT = re.compile(rf"{_LAYER}attention\.wo\.weight"), "output.weight"

Shape = tuple[int, ...]


class _Sizes(NamedTuple):
    """The sizes of a model, from `params.json`."""

    dim: int
    width: int  # of all attention heads
    key_width: int  # of all heads of keys, or of values
    vocab: int | None  # None if it does not say

    def shape(self, matrix: str) -> tuple[int | None, int | None]:
        """Return the shape of the whole matrix; None where the file does not say."""
        return {
            "wq": (self.width, self.dim),
            "wk": (self.key_width, self.dim),
            "wv": (self.key_width, self.dim),
            "wo": (self.dim, self.width),
            "w1": (None, self.dim),
            "w2": (self.dim, None),
            "w3": (None, self.dim),
        }.get(matrix, (self.vocab, self.dim))


class _Parts(NamedTuple):
    """The files of a model."""

    path: str
    model: _Sizes
    total: int
    shards: Mapping[str, Checkpoint]
    missing: tuple[str, ...]


def read_parallel(path: str, inside: Collection[str], *, salvage: bool) -> Checkpoint:
    """Read the tensors that the files in the folder at `path` make up.

    Raises Malformed, naming the files that are missing, or that are of another model; with
    `salvage`, the tensors that need the missing files are lost.
    """
    model = _model(join(path, PARAMETERS))
    present, _ = open_ranks(path, parallel_files(inside), salvage=salvage)
    shards = read_each(present)
    count = _count(model, shards, path)
    files = [f"consolidated.{number:02}.pth" for number in range(count)]
    extra = sorted(shards.keys() - {*files})
    if extra:
        message = f"the model was divided into {count} parts, and the folder also has"
        hint = "move the files of other models to a folder of their own"
        raise Malformed(f"{message} {quoted_list(extra, 3)}", where=path, hint=hint)
    missing = [file for file in files if file not in shards]
    if missing and not salvage:
        message = f"{len(missing)} of {count} parts are missing: {quoted_list(missing, 3)}"
        hint = f"download them to the folder of the others, or {SALVAGE}"
        raise Malformed(message, where=path, hint=hint)
    return _merged(_Parts(path, model, count, shards, tuple(missing)), tuple(present.values()))


def parts_beside(path: str, checkpoint: Checkpoint) -> int:
    """Return into how many parts the model was divided of which the file at `path` is one.

    It is 1 for a whole model, and if there are no other parameters to compare the shapes with.
    """
    if not is_part(os.path.basename(path)):
        return 1
    parameters = join(os.path.dirname(path), PARAMETERS)
    try:
        return _count(_model(parameters), {path: checkpoint}, path) if is_file(parameters) else 1
    except CgptError:  # the file can be read without them
        return 1


def _model(path: str) -> _Sizes:
    source = open_source(path)
    if source.nbytes > TOKENIZER_BYTES:
        message = f"the file has {source.nbytes:,} bytes, the limit is {TOKENIZER_BYTES:,}"
        raise Unsupported(message, where=path)
    data = read(source, 0, source.nbytes)
    check_count(data, path)
    try:
        values = json.loads(data, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"the file is not valid JSON: {error}", where=path) from error

    def size(key: str, default: int | None = None) -> int | None:
        value = values.get(key) if isinstance(values, dict) else None
        return value if type(value) is int and value > 0 else default

    dim, heads = size("dim"), size("n_heads")
    if dim is None or heads is None:
        key = quoted("dim" if dim is None else "n_heads")
        message = f"the file does not say {key}, without which the parts cannot be joined"
        raise Unsupported(message, where=path)
    head = size("head_dim", dim // heads) or 0
    return _Sizes(dim, heads * head, (size("n_kv_heads") or heads) * head, size("vocab_size"))


def _count(model: _Sizes, shards: Mapping[str, Checkpoint], path: str) -> int:
    """Return the number of parts, which follows from the width of one in the file of any."""
    file, shard = next(iter(shards.items()))
    for name, tensor in shard.items():
        if _FIRST.fullmatch(name) and len(tensor.shape) == 2:  # noqa: PLR2004
            part = tensor.shape[1]
            count, rest = divmod(model.width, part) if part else (0, 1)
            if rest or not 0 < count <= _MOST_PARTS:
                message = f"{quoted(name)} in {quoted(file)} has {part:,} columns, of which no"
                more = f"number makes up the {model.width:,} of {PARAMETERS}"
                raise Malformed(f"{message} {more}", where=path)
            return count
    message = f"{quoted(file)} has no tensor 'layers.0.attention.wo.weight'"
    raise Unsupported(f"{message}: the number of parts is unknown", where=path)


def _merged(parts: _Parts, sources: tuple[Source, ...]) -> Checkpoint:
    shards = parts.shards
    first = next(iter(shards.values()))
    merged = Checkpoint(parts.path, f"LLaMA model in {parts.total} parts", (), {})
    merged.sources = sources
    names = dict.fromkeys(n for each in shards.values() for n in (*each, *each.exotic))
    tensors, unread = each_read((name, functools.partial(_tensor, name, parts)) for name in names)
    for name, error in unread.items():
        if not isinstance(error, Malformed):
            continue
        if not parts.missing:
            raise error
        merged.lost[name] = MissingTensor(None, error.message)
    merged.tensors = tensors
    rest: Unread = {name: error for name, error in unread.items() if name not in merged.lost}
    add_unread(merged, rest)
    merged.others = first.others
    merged.storages = [tensor.storage for tensor in merged.values()]
    add_globals(merged, shards.values())
    return merged


def _tensor(name: str, parts: _Parts) -> Tensor:
    """Return the tensor that the files have parts or copies of."""
    where = f"{parts.path}[{name}]"
    matrix = _MATRIX.fullmatch(name)
    if not matrix and not _REPLICA.fullmatch(name):
        message = "LLaMA has no tensor of this name, so how it was divided is unknown"
        raise Unsupported(message, where=where)
    tensors: dict[str, Tensor] = {}
    for file, shard in parts.shards.items():
        if name not in shard:
            raise Malformed(f"{quoted(file)} does not have the tensor", where=where)
        tensors[file] = shard[name]
    first = next(iter(tensors.values()))
    if any((t.shape, t.dtype) != (first.shape, first.dtype) for t in tensors.values()):
        shapes = dict.fromkeys(f"{t.dtype.name} {dims(t.shape)}" for t in tensors.values())
        message = f"the parts have different types or shapes: {', '.join(shapes)}"
        raise Malformed(message, where=where)
    if not matrix:
        return _copied(name, tensors, where, parts.path)
    return _joined(name, matrix[1], tensors, parts)


def _joined(name: str, matrix: str, tensors: Mapping[str, Tensor], parts: _Parts) -> Tensor:
    where = f"{parts.path}[{name}]"
    first = next(iter(tensors.values()))
    part, model = first.shape, parts.model
    if len(part) != 2:  # noqa: PLR2004
        raise Malformed(f"the parts have the shape {dims(part)}", where=where)
    if matrix in ("output", "tok_embeddings") and model.vocab is None:
        output = next(iter(parts.shards.values())).get(_OUTPUT)
        if output is not None and len(output.shape) == 2:  # noqa: PLR2004
            model = model._replace(vocab=output.shape[0] * parts.total)
    expected = model.shape(matrix)
    axis = _axis(matrix, part, parts.total, model, where)
    shape = tuple(size * (parts.total if at == axis else 1) for at, size in enumerate(part))
    if any(size not in (None, whole) for size, whole in zip(expected, shape, strict=True)):
        sizes = "x".join("?" if size is None else str(size) for size in expected)
        message = f"{parts.total} parts of {dims(part)} make up {dims(shape)}, not {sizes}"
        raise Unsupported(f"{message} as in {PARAMETERS}", where=where)
    checked_nbytes(shape, first.dtype.nbytes * 8, where)
    if parts.missing:
        raise Malformed(f"parts are missing: {quoted_list(parts.missing, 3)}", where=where)
    boxes: list[Box] = []
    for file, tensor in tensors.items():
        start = int(file.split(".")[1]) * part[axis]
        boxes.append(box_of((0, start) if axis else (start, 0), tensor, file))
    return assembled(name, first.dtype, shape, boxes, parts.path)


def _axis(matrix: str, part: Shape, count: int, model: _Sizes, where: str) -> int:
    """Return the dimension that was divided, of the token embedding by the shape of its parts.

    LLaMA 1 and 2 divided its columns, LLaMA 3 its rows.
    """
    if matrix in _BY_ROWS or matrix in _BY_COLUMNS:
        return 0 if matrix in _BY_ROWS else 1
    if part[1] * count == model.dim:
        return 1
    if part[1] == model.dim and model.vocab is None:
        message = "the rows of the parts may be different or the same ones"
        more = f"{PARAMETERS} does not say 'vocab_size' and there is no {quoted(_OUTPUT)}"
        raise Unsupported(f"{message}: {more}", where=where)
    return 0


def _copied(name: str, tensors: Mapping[str, Tensor], where: str, path: str) -> Tensor:
    """Return a tensor that each file has; the copies are compared when it is read."""
    (file, first), *others = tensors.items()

    def compared() -> Tensor:
        for other, tensor in others:
            if not _same(first, tensor):
                message = f"{quoted(file)} and {quoted(other)} have different values"
                raise Malformed(message, where=where)
        return first

    box = box_of(tuple(0 for _ in first.shape), first, file, compared)
    return assembled(name, first.dtype, first.shape, [box], path)


def _same(one: Tensor, other: Tensor) -> bool:
    width = one.dtype.nbytes
    for start in range(0, one.numel, CHUNK // width):
        nbytes = min(CHUNK // width, one.numel - start) * width
        blocks = bytearray(nbytes), bytearray(nbytes)
        for tensor, block in zip((one, other), blocks, strict=True):
            read_run(tensor, start, memoryview(block))
        if blocks[0] != blocks[1]:
            return False
    return True
