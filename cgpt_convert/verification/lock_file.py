"""Lock files: a text record of reviewed weights, suitable for pull requests.

docs/reference/digest.md defines the digests, docs/reference/json.md lists the keys.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.core.errors import BadRequest, Malformed, Unsupported
from cgpt_convert.core.limits import INDEX_BYTES
from cgpt_convert.core.strict_json import loads
from cgpt_convert.plan import FilePlan
from cgpt_convert.sources.local import read
from cgpt_convert.sources.paths import named, open_source
from cgpt_convert.targets.selection import TensorSelection, is_under, relative
from cgpt_convert.tensors.content_digest import listed
from cgpt_convert.tensors.dtypes import BY_NAME
from cgpt_convert.verification.canonical_names import CanonicalWeights, converted_part
from cgpt_convert.verification.digests import (
    ALGORITHM,
    TensorDigests,
    file_digests,
    is_digest,
    of_part,
)
from cgpt_convert.writing.destination import write_files
from cgpt_convert.writing.writer import WriteOptions

FORMAT = "cgpt-convert lock 1"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "urn:x-cgpt-convert:lock:1"
_TENSORS, _MODEL = "cgptConvertTensorsV1", "cgptConvertModelV1"  # algorithms of a DigestSet
_HINT = "restore the reviewed version of the lock, or create a new one"


class LockedTensor(NamedTuple):
    """A locked tensor. `key` identifies it in any format."""

    dtype: str
    shape: tuple[int, ...]
    sha256: str
    key: str
    tied_to: str = ""  # the first name with the same values
    buffer: bool = False  # computed, so that a converted model may lack it
    extra: str = ""  # a description, if state_dict() does not contain it
    kind: str = ""  # sparse_coo, nested ...; "" for a dense tensor


class LockedFile(NamedTuple):
    """A file that the weights were read from."""

    name: str  # without its folder
    nbytes: int
    sha256: str


class LockedPart(NamedTuple):
    """The part of the locked tensors that `convert` writes; `root` is "" without a root.

    Missing digests are "".
    """

    root: str
    digest: str
    tensors: int
    architecture: str
    model: str


class Lock(NamedTuple):
    """The content of a lock; missing digests are ""."""

    digest: str
    model: str
    architecture: str
    files: tuple[LockedFile, ...]
    tensors: dict[str, LockedTensor]
    scope: TensorSelection | None  # the selection; None if not recorded (the default root was used)
    outside: tuple[str, ...] = ()  # names in the file of the tensors not locked
    part: LockedPart | None = None  # the weights, if they are a part of the tensors


def lock(
    checkpoint: Checkpoint,
    weights: CanonicalWeights,
    digested: TensorDigests,
    scope: TensorSelection,
    jobs: int = 0,
) -> Lock:
    """Return the lock of weights whose digests are known; the files are read again.

    `scope` is the selection. Raises Unsupported if a tensor's value is unknown.
    """
    first: dict[str, str] = {}
    rows = {}
    for name, key in weights.keys.items():
        odd = weights.odd.get(name)
        digest = digested.tensors[name]
        kept = first.setdefault(digest, name)
        rows[name] = LockedTensor(
            odd.dtype if odd else weights.tensors[name].dtype.name,
            odd.shape if odd else weights.tensors[name].shape,
            digest,
            key,
            kept if kept != name else "",
            name in weights.buffers,
            weights.extras.get(name, ""),
            odd.kind if odd else "",
        )
    known = weights.architecture if digested.model else ""
    return Lock(
        digested.whole,
        digested.model,
        known,
        _files(checkpoint, jobs),
        rows,
        scope,
        weights.outside,
        _part(checkpoint, weights, digested, scope, rows),
    )


def _part(
    checkpoint: Checkpoint,
    weights: CanonicalWeights,
    digested: TensorDigests,
    scope: TensorSelection,
    rows: Mapping[str, LockedTensor],
) -> LockedPart | None:
    """Return the part that `convert` writes; None if that is all, or ambiguous by the names."""
    try:
        part = converted_part(checkpoint, weights, scope)
    except BadRequest:  # several roots
        return None
    if part is weights:
        return None
    part_digests = of_part(part, digested)
    if part_digests.whole != _digest_under(part.root, rows):
        return None
    known = part.architecture if part_digests.model else ""
    return LockedPart(part.root, part_digests.whole, len(part.keys), known, part_digests.model)


def _digest_under(root: str, rows: Mapping[str, LockedTensor]) -> str:
    """Return the digest of the locked tensors under a root that `state_dict()` contains."""
    inside = {name: row for name, row in rows.items() if is_under(name, root)}
    return listed(
        {relative(name, root): row.sha256 for name, row in inside.items() if not row.extra}
    )


def encoded(lock: Lock) -> bytes:
    """Return the lock as JSON with one line per tensor, sorted by name, for readable diffs."""
    model = _named(lock.architecture, lock.model)
    scope = lock.scope or TensorSelection()
    document = {"root": scope.root, "match": [*scope.match], "exclude": [*scope.exclude]}
    head: dict[str, Any] = {
        "format": FORMAT,
        "digest": ALGORITHM + lock.digest,
        "model": model,
        "scope": document,
    }
    if lock.part:
        head["weights"] = {
            "root": lock.part.root or None,
            "digest": ALGORITHM + lock.part.digest,
            "tensors": lock.part.tensors,
            "model": _named(lock.part.architecture, lock.part.model),
        }
    if lock.outside:
        head["not_locked"] = [*lock.outside]
    files = [json.dumps(file._asdict()) for file in sorted(lock.files)]
    rows = [f"{json.dumps(name)}: {_row(name, row)}" for name, row in sorted(lock.tensors.items())]
    parts = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    parts.append(f'"files": [{_lines(files)}]')
    parts.append(f'"tensors": {{{_lines(rows)}}}')
    return ("{\n " + ",\n ".join(parts) + "\n}\n").encode()


def _named(architecture: str, model: str) -> dict[str, str] | None:
    return {"architecture": architecture, "digest": ALGORITHM + model} if model else None


def _lines(items: list[str]) -> str:
    return ("\n  " + ",\n  ".join(items) + "\n ") if items else ""


def statement(lock: Lock) -> bytes:
    """Return an in-toto Statement v1 about the files and weights, with the lock as predicate.

    See https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md. Digests of weights
    are not the SHA-256 of stored bytes, so their algorithms have their own names.
    """
    weights = {_TENSORS: lock.digest} | ({_MODEL: lock.model} if lock.model else {})
    subjects: list[dict[str, Any]] = [
        {"name": file.name, "digest": {"sha256": file.sha256}} for file in sorted(lock.files)
    ]
    document = {
        "_type": STATEMENT,
        "subject": [*subjects, {"name": "weights", "digest": weights}],
        "predicateType": PREDICATE,
        "predicate": json.loads(encoded(lock)),
    }
    return json.dumps(document, indent=1).encode() + b"\n"


def _row(name: str, row: LockedTensor) -> str:
    fields: dict[str, Any] = {"dtype": row.dtype, "shape": list(row.shape), "sha256": row.sha256}
    fields |= {"key": row.key} if row.key != name else {}
    fields |= {"tied_to": row.tied_to} if row.tied_to else {}
    fields |= {"buffer": "yes"} if row.buffer else {}
    fields |= {"extra": row.extra} if row.extra else {}
    fields |= {"kind": row.kind} if row.kind else {}
    return json.dumps(fields)


def write(made: Lock, output: str, options: WriteOptions, *, in_toto: bool = False) -> None:
    """Write the lock, or an in-toto statement that contains it, to the file `output`."""
    content = statement(made) if in_toto else encoded(made)
    plan = FilePlan(os.path.basename(output), (content,))
    write_files([plan], os.path.dirname(output), options)


def read_lock(path: str) -> Lock:
    """Read the lock file at `path`.

    Raises Malformed if it is not a lock or is inconsistent, Unsupported for a file that is too
    large.
    """
    path = named(path)
    source = open_source(path)
    if source.nbytes > INDEX_BYTES:
        message = f"the lock has {source.nbytes:,} bytes; at most {INDEX_BYTES:,} are supported"
        raise Unsupported(message, where=path)
    about = f"the file is not a lock in the format {FORMAT!r}"
    hint = "create a lock with `cgpt-convert lock SOURCE -o FILE`"
    try:
        document = loads(read(source, 0, source.nbytes), path)
    except Malformed as error:
        raise Malformed(f"{about}: {error.message}", where=path, hint=hint) from error
    if document.get("_type") == STATEMENT and isinstance(document.get("predicate"), dict):
        document = document["predicate"]
    match document:
        case {
            "format": str(form),
            "digest": str(digest),
            "model": None | dict() as model,
            "files": list(files),
            "tensors": dict(tensors),
        } if form == FORMAT and _is_titled(digest):
            pass
        case _:
            raise Malformed(about, where=path, hint=hint)
    architecture, known = _model(model, path)
    rows = {name: _read_row(name, row, path) for name, row in tensors.items()}
    if listed({name: row.sha256 for name, row in rows.items()}) != digest.removeprefix(ALGORITHM):
        message = "the digest does not match the tensors: the lock was edited"
        raise Malformed(message, where=path, hint=_HINT)
    if len({row.key for row in rows.values()}) < len(rows):
        raise Malformed("two tensors have the same key", where=path, hint=_HINT)
    listing = tuple(_read_file(file, path) for file in files)
    whole, scope = digest.removeprefix(ALGORITHM), _scope(document.get("scope"), path)
    part = _read_part(document.get("weights"), rows, path)
    return Lock(whole, known, architecture, listing, rows, scope, _outside(document, path), part)


def _outside(document: dict[str, Any], path: str) -> tuple[str, ...]:
    names = document.get("not_locked", [])
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        return tuple(names)
    raise Malformed("not_locked is not a list of names", where=path, hint=_HINT)


def _read_part(document: object, rows: Mapping[str, LockedTensor], path: str) -> LockedPart | None:
    match document:
        case None:
            return None
        case {
            "root": None | str() as root,
            "digest": str(digest),
            "tensors": int(count),
            "model": None | dict() as model,
        } if digest == ALGORITHM + _digest_under(root or "", rows):
            return LockedPart(
                root or "", digest.removeprefix(ALGORITHM), count, *_model(model, path)
            )
    message = "the weights do not match the tensors: the lock was edited"
    raise Malformed(message, where=path, hint=_HINT)


def _is_titled(digest: str) -> bool:
    return digest.startswith(ALGORITHM) and is_digest(digest.removeprefix(ALGORITHM))


def _model(document: object, path: str) -> tuple[str, str]:
    match document:
        case None:
            return "", ""
        case {"architecture": str(name), "digest": str(digest)} if _is_titled(digest):
            return name, digest.removeprefix(ALGORITHM)
    raise Malformed("the model has no valid architecture and digest", where=path, hint=_HINT)


def _scope(document: object, path: str) -> TensorSelection | None:
    match document:
        case None:
            return None
        case {"root": None | str() as root, "match": list(match), "exclude": list(exclude)} if all(
            isinstance(glob, str) for glob in (*match, *exclude)
        ):
            return TensorSelection(root, tuple(match), tuple(exclude))
    raise Malformed("the scope has no valid root, match and exclude", where=path, hint=_HINT)


def _read_file(fields: object, path: str) -> LockedFile:
    match fields:
        case {"name": str(name), "nbytes": int(nbytes), "sha256": str(digest)} if is_digest(digest):
            return LockedFile(name, nbytes, digest)
    raise Malformed("a file has no valid name, nbytes and sha256", where=path, hint=_HINT)


def _read_row(name: str, fields: Any, path: str) -> LockedTensor:
    match fields:
        case {"dtype": str(dtype), "shape": list(shape), "sha256": str(digest)} if (
            (dtype in BY_NAME or "kind" in fields)
            and all(type(size) is int for size in shape)
            and is_digest(digest)
        ):
            key, tied = fields.get("key", name), fields.get("tied_to", "")
            extra, kind = fields.get("extra", ""), fields.get("kind", "")
            if all(isinstance(each, str) for each in (key, tied, extra, kind)):
                buffer = fields.get("buffer") == "yes"
                return LockedTensor(dtype, tuple(shape), digest, key, tied, buffer, extra, kind)
    message = "the tensor has no valid dtype, shape and sha256"
    raise Malformed(message, where=f"{path}[{name}]", hint=_HINT)


def _files(checkpoint: Checkpoint, jobs: int) -> tuple[LockedFile, ...]:
    """Return all files with digests, computed by `jobs` threads; names are folder-relative."""
    sources = {source.name: source for source in checkpoint.sources}
    folder = checkpoint.path if os.path.isdir(checkpoint.path) else os.path.dirname(checkpoint.path)
    digests = file_digests(sources.values(), jobs)
    return tuple(
        LockedFile(
            os.path.relpath(path, folder or ".").replace(os.sep, "/"),
            sources[path].nbytes,
            digest,
        )
        for path, digest in digests.items()
    )
