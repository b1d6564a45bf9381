"""Provenance metadata of a converted file: the source's digest and each tensor's transforms.

It is stored in the format's own key-value pairs, listed in docs/reference/verify.md. It proves
nothing if the file is not trusted, but it reveals accidental changes, and can be checked against
the source.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from cgpt_convert import __version__
from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.core.errors import Malformed
from cgpt_convert.core.strict_json import loads
from cgpt_convert.core.text import quoted
from cgpt_convert.plan import ProvenanceMetadata, Request
from cgpt_convert.targets.selection import SelectedTensors
from cgpt_convert.tensors.assembled import boxes_of
from cgpt_convert.tensors.content_digest import listed
from cgpt_convert.tensors.tensor import Content, Tensor
from cgpt_convert.verification.canonical_names import CanonicalWeights, named
from cgpt_convert.verification.digests import ALGORITHM, is_digest, model_digest

PREFIX = "cgpt_convert."
VERSION, SOURCE, MODEL = f"{PREFIX}version", f"{PREFIX}source", f"{PREFIX}source_model"
TENSORS, DROPPED = f"{PREFIX}tensors", f"{PREFIX}dropped"
ROOT = f"{PREFIX}root"

_BLANK = "0" * 64  # a placeholder of a digest's length
_HINT = "convert the source again, or pass a lock (verify --lock FILE)"


class TensorProvenance(NamedTuple):
    """The provenance of a tensor: its digest in the file, its source name and its transforms."""

    sha256: str
    origin: str  # name in the source
    steps: tuple[str, ...]


class ProvenanceRecord(NamedTuple):
    """A file's provenance. `source` and `model` are digests in hex, "" if not recorded."""

    source: str
    model: str
    tensors: dict[str, TensorProvenance]
    root: str  # root of the tensors in the source; "" if not recorded


def signed(chosen: SelectedTensors, request: Request) -> Request:
    """Return the request with provenance metadata for the selected tensors.

    The digests in it are known after all tensors are written.
    """
    every = [*chosen.tensors]
    by_name = {tensor.name: tensor for tensor in every}
    every += [by_name[kept].renamed(name) for name, kept in chosen.aliases.items()]
    old = {new: name for name, new in chosen.renamed.items()}
    sources = named([tensor.renamed(old.get(tensor.name, tensor.name)) for tensor in every])
    origins = _origins(sources, request.tensors, old)
    rows = {t.name: _row(sources.tensors[origins[t.name]], t) for t in request.tensors}
    hashed = _hashed(sources, set(origins.values()))
    dropped = sorted(sources.tensors.keys() - hashed.keys())

    def metadata(known: Mapping[Content, str]) -> dict[str, str]:
        def digest(tensor: Tensor) -> str:
            return known[tensor.content] if known else _BLANK

        entries = {t.name: {"sha256": digest(t), **rows[t.name]} for t in request.tensors}
        entries |= {
            name: {"tied_to": kept, **({"from": old[name]} if name in old else {})}
            for name, kept in request.aliases.items()
        }
        digests = {name: digest(tensor) for name, tensor in hashed.items()}
        pairs = {VERSION: f"cgpt-convert {__version__}", TENSORS: _json(entries)}
        if chosen.root:
            pairs[ROOT] = chosen.root
        if dropped:
            pairs[DROPPED] = _json(dropped)
        else:
            pairs[SOURCE] = ALGORITHM + listed(digests)
        if sources.is_model:
            model = model_digest(sources, digests)
            pairs[MODEL] = f"{sources.architecture} {ALGORITHM}{model}"
        return dict(sorted(pairs.items()))

    return replace(
        request, claim=ProvenanceMetadata((*request.tensors, *hashed.values()), metadata)
    )


def _origins(
    sources: CanonicalWeights, tensors: Sequence[Tensor], old: Mapping[str, str]
) -> dict[str, str]:
    """Return name of a written tensor -> name of the source tensor that it is a view of.

    `old` has the names in the source of the tensors that the user renamed.
    """
    owners: dict[Content, dict[str, None]] = {}  # thousands of names may have one content
    for name, tensor in sources.tensors.items():
        owners.setdefault(tensor.content, {})[name] = None
    origins = {}
    for tensor in tensors:
        names = owners.get(tensor.uncast.content)
        if names is None:
            names = owners[tensor.uncast.transposed().content]
        own = old.get(tensor.name, tensor.name)
        origins[tensor.name] = own if own in names else next(iter(names))
    return origins


def _hashed(sources: CanonicalWeights, written: set[str]) -> dict[str, Tensor]:
    """Return name -> tensor to hash, for all tensors that are not dropped.

    An omitted tied tensor has its twin's digest.
    """
    own = sources.names.by_key()
    tensors = {}
    for name, tensor in sources.tensors.items():
        twin = own.get(sources.ties.get(sources.keys[name], ""))
        if name not in written and twin is not None:
            tensors[name] = sources.tensors[twin]
        elif name in written or name not in sources.buffers:
            tensors[name] = tensor
    return tensors


def _row(source: Tensor, target: Tensor) -> dict[str, Any]:
    """Return a tensor's metadata except its digest; empty for an unchanged tensor."""
    steps = []
    if target.uncast.content != source.content:
        steps.append("transpose")
    blocks = source.stored.block > 1 and target.target is None  # written as they are stored
    if source.stored.block > 1 and not blocks:
        steps.append(f"dequantize {source.stored.name}")
    if target.dtype != source.dtype and not blocks:
        word = "quantize" if target.dtype.block > 1 else "cast"
        steps.append(f"{word} {target.dtype.name}")
    renamed = {"from": source.name} if source.name != target.name else {}
    chunks = [f"{box.label} {box.place}" for box in boxes_of(source.storage)]
    optional = {"steps": steps, "chunks": chunks}
    return {**renamed, **{key: items for key, items in optional.items() if items}}


def claimed(checkpoint: Checkpoint) -> ProvenanceRecord | None:
    """Return the file's provenance, or None. Raises Malformed if the metadata is invalid."""
    from cgpt_convert.formats.torch import writer

    pairs = checkpoint.metadata | writer.metadata(checkpoint)
    if TENSORS not in pairs:
        return None
    where = f"{checkpoint.path}[{TENSORS}]"
    rows: dict[str, TensorProvenance] = {}
    for name, metadata in loads(pairs[TENSORS].encode("utf-8", "replace"), where).items():
        rows[name] = _read_row(name, metadata, where)
    for name, row in rows.items():
        if not row.sha256:  # tied: use the twin's digest
            twin = rows.get(row.origin)
            if twin is None or not twin.sha256:
                raise Malformed(
                    f"{quoted(name)} is tied to {quoted(row.origin)}, which is not a tensor",
                    where=where,
                    hint=_HINT,
                )
            rows[name] = row._replace(sha256=twin.sha256)
    digests = _digest(pairs, SOURCE, where), _digest(pairs, MODEL, where)
    return ProvenanceRecord(*digests, rows, pairs.get(ROOT, ""))


def claimed_root(checkpoint: Checkpoint) -> str | None:
    """Return the root in the file's provenance metadata, or None."""
    claim = claimed(checkpoint)
    return claim.root or None if claim else None


def _read_row(name: str, fields: Any, where: str) -> TensorProvenance:
    match fields:
        case {"sha256": str(digest)} if is_digest(digest):
            origin, steps = fields.get("from", name), fields.get("steps", [])
            texts = isinstance(steps, list) and all(isinstance(step, str) for step in steps)
            if isinstance(origin, str) and texts:
                renamed = () if origin == name else ("rename",)
                return TensorProvenance(digest, origin, (*renamed, *steps) or ("identity",))
        case {"tied_to": str(kept)}:
            return TensorProvenance("", kept, ())
    raise Malformed(f"the entry for {quoted(name)} has no valid sha256", where=where, hint=_HINT)


def _digest(pairs: Mapping[str, str], key: str, where: str) -> str:
    """Return the digest under `key` in hex, or ""."""
    if key not in pairs:
        return ""
    digest = pairs[key].rpartition(ALGORITHM)[2]
    if not is_digest(digest):
        raise Malformed(f"{key} is not a digest: {pairs[key]!r:.80}", where=where, hint=_HINT)
    return digest


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
