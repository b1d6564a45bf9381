"""safetensors files: a JSON header, then the tensors' bytes without gaps.

The bytes equal those of the library; the rules are those of safetensors 0.8 `src/tensor.rs`.
Aliases are in `__metadata__`, dropped name -> kept name, as in the library's `save_model`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.core.errors import Unsupported
from cgpt_convert.core.limits import HEADER_BYTES
from cgpt_convert.core.text import quoted
from cgpt_convert.formats import planning
from cgpt_convert.formats.safetensors import reader
from cgpt_convert.plan import FilePlan, Request, part_nbytes
from cgpt_convert.sources.paths import open_source
from cgpt_convert.tensors.dtypes import BY_NAME, BY_SAFETENSORS
from cgpt_convert.tensors.tensor import Tensor

NAME = "safetensors"
SUFFIX = ".safetensors"

DTYPES = (*BY_SAFETENSORS.values(), BY_NAME["float4_e2m1fn_x2"])

# tensor.rs `enum Dtype`: tensors of later types are stored first, so that all are aligned
# fmt: off
_ORDER = (
    "BOOL", "F4", "F6_E2M3", "F6_E3M2",
    "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ",
    "I16", "U16", "F16", "BF16", "I32", "U32", "F32", "C64", "F64", "I64", "U64",
)
# fmt: on
_RANK_OF = {code: rank for rank, code in enumerate(_ORDER)}


def plan(request: Request) -> list[FilePlan]:
    """Plan one file, or shards with an index if `request.max_shard_nbytes` requires several.

    Raises Unsupported naming all tensors of types that safetensors cannot store (complex128,
    complex32, quantized, raw bits), and all metadata that would be read as something else.
    """
    planning.check(request, NAME, _holds, splits=True)
    _check_metadata(request)
    return planning.plan_shards(request, SUFFIX, _file)


def read(path: str) -> Checkpoint:
    """Read the file at `path`, in the order of its bytes.

    Raises Malformed wherever the library would reject the file or readers could disagree about it,
    Unsupported for element types and fields unknown to this version.
    """
    return reader.from_source(open_source(path), path)


def _code(tensor: Tensor) -> str:
    return tensor.dtype.safetensors or reader.F4


def _holds(tensor: Tensor) -> bool:
    # half a byte cannot be stored: the library also rejects a float4 scalar
    return tensor.dtype in DTYPES and bool(_code(tensor) != reader.F4 or tensor.shape)


def _check_metadata(request: Request) -> None:
    """Reject metadata and aliases that could not be distinguished in their common map."""
    names = {tensor.name for tensor in request.tensors}
    reserved = [quoted(name) for name in names if name == reader.METADATA]
    planning.refuse(request, "safetensors reserves the tensor name", reserved)
    aliases, metadata = request.aliases, request.metadata
    clashes = [quoted(key) for key in aliases if key == reader.FRAMEWORK or key in metadata]
    planning.refuse(request, "aliases have the names of metadata keys", clashes)
    lookalikes = (
        f"{quoted(key)} = {quoted(value)}"
        for key, value in metadata.items()
        if reader.is_alias(key, value, names)
    )
    planning.refuse(request, "metadata would be read as aliases of tensors", lookalikes)


def _file(name: str, tensors: Iterable[Tensor], request: Request) -> FilePlan:
    ordered = sorted(tensors, key=lambda tensor: (-_RANK_OF[_code(tensor)], tensor.name))
    header = planning.with_metadata(request, lambda more: _header(ordered, request, more))
    nbytes = part_nbytes(header) - reader.N_LEN
    if nbytes > HEADER_BYTES:
        raise Unsupported(
            f"the header for {len(ordered) + len(request.aliases):,} names has {nbytes:,} bytes, "
            f"the limit of safetensors is {HEADER_BYTES:,}",
            where=name,
            hint=_shorter(ordered, request),
        )
    return FilePlan(name, (header, *ordered))


def _shorter(tensors: Sequence[Tensor], request: Request) -> str:
    """Return a hint how to make the header short enough."""

    def fits(some: Sequence[Tensor]) -> bool:
        return len(_header(some, request, request.metadata)) - reader.N_LEN <= HEADER_BYTES

    if request.claim is not None and fits(tensors):
        return "use --no-proof to omit the provenance metadata"
    most = Counter(request.aliases.values()).most_common(1)  # tied names stay in one file
    if len(tensors) > 1 and fits([tensor for tensor in tensors if tensor.name in dict(most)]):
        return "use --max-shard-size to split the output into files with fewer names each"
    return "use --to torch, which has no such limit, or skip tensors with --exclude"


def _header(tensors: Sequence[Tensor], request: Request, pairs: Mapping[str, str]) -> bytes:
    """Return the header's length and JSON: compact, escaped like serde_json, padded to 8 bytes."""
    here = {tensor.name for tensor in tensors}
    aliases = {name: kept for name, kept in request.aliases.items() if kept in here}
    metadata = {reader.FRAMEWORK: "pt", **aliases, **pairs}
    fields: dict[str, object] = {reader.METADATA: dict(sorted(metadata.items()))}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.nbytes
        shape = list(tensor.shape)
        if _code(tensor) == reader.F4:  # two elements in a byte; torch counts the bytes
            shape[-1] *= 2
        entry = {"dtype": _code(tensor), "shape": shape, "data_offsets": [offset, end]}
        fields[tensor.name] = entry
        offset = end
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(reader.N_LEN, "little") + text
