"""Write plans: formats describe the files to write, and only `writing` writes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from cgpt_convert.tensors.tensor import Content, Tensor


class Crc32(NamedTuple):
    """Four bytes, little-endian: the CRC-32 of parts `first` to `last` - 1 of the same file.

    It may precede the parts it covers; the sink fills it in after writing them.
    """

    first: int
    last: int


class FileDigest(NamedTuple):
    """Checksums of a written file: SHA-256 in hex, and CRC-32."""

    sha256: str
    crc32: int


class AvailableDigests(NamedTuple):
    """The digests available when a deferred part is made."""

    files: Mapping[str, FileDigest]  # of `hashed` files planned earlier, by path
    tensors: Mapping[Content, str]  # of the tensors that deferred parts require, as `tensor_digest`


NO_DIGESTS = AvailableDigests({}, {})  # used when planning, to compute the size of a deferred part


class DeferredPart(NamedTuple):
    """`nbytes` bytes computed from digests, at any position in the file.

    The sink provides the digests of `tensors`, whether they are written or not. They are computed
    during streaming if the tensor, or a cast of it, is part of the plans.
    """

    nbytes: int
    make: Callable[[AvailableDigests], bytes]
    tensors: tuple[Tensor, ...] = ()


Part = bytes | Tensor | Crc32 | DeferredPart


def part_nbytes(part: Part) -> int:
    """Return the size of a part in the file."""
    if isinstance(part, bytes):
        return len(part)
    return 4 if isinstance(part, Crc32) else part.nbytes


@dataclass(frozen=True, slots=True)
class FilePlan:
    """A file as an ordered list of parts. `path` is relative to the output, with `/` separators."""

    path: str
    parts: tuple[Part, ...]
    hashed: bool = False  # keep its digest for a deferred part

    @property
    def nbytes(self) -> int:
        """The size of the resulting file."""
        return sum(map(part_nbytes, self.parts))


Scalar = str | bool | int | float


class Field(NamedTuple):
    """A typed key-value pair, for containers that have them, such as GGUF."""

    key: str
    type: str  # "string", "bool", "uint32", "float32" ...; for an array, the type of its items
    value: Scalar | tuple[Scalar, ...]  # a tuple is an array


class ProvenanceMetadata(NamedTuple):
    """Metadata with the digests of `tensors`; its length does not depend on the digests."""

    tensors: tuple[Tensor, ...]
    metadata: Callable[[Mapping[Content, str]], dict[str, str]]  # without digests: placeholders


@dataclass(frozen=True, slots=True)
class Request:
    """The tensors to write, in order, with unique names, and the metadata."""

    name: str  # of the output, as given by the user: "model.safetensors"
    tensors: tuple[Tensor, ...]
    aliases: dict[str, str] = field(default_factory=dict)  # skipped name -> written name
    metadata: dict[str, str] = field(default_factory=dict)
    max_shard_nbytes: int | None = None
    fields: tuple[Field, ...] = ()  # keys unique; for formats that have typed fields
    claim: ProvenanceMetadata | None = None  # provenance metadata


AddProvenance = Callable[[Request], Request]


def unsigned(request: Request) -> Request:
    """Return the request unchanged, without provenance metadata."""
    return request
