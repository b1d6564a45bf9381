"""What a format says is to be written. Types only: formats plan, `sink` alone writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from cgpt_convert.tensors.tensor import Content, Tensor


class Crc32(NamedTuple):
    """Four bytes, little-endian: the CRC-32 of parts `first` to `last` - 1 of the same file.

    It may stand before the parts it covers; the sink fills it in once they are written.
    """

    first: int
    last: int


class FileDigest(NamedTuple):
    """The checksums of a file that was written: SHA-256 in hex, and CRC-32."""

    sha256: str
    crc32: int


class Digests(NamedTuple):
    """What the sink knows when it comes to a Late part."""

    files: Mapping[str, FileDigest]  # of `hashed` files planned before, by path
    tensors: Mapping[Content, str]  # of the tensors that Late parts ask for, as `tensor_digest`


NO_DIGESTS = Digests({}, {})  # what a Late part is planned with, to know its size


class Late(NamedTuple):
    """`nbytes` bytes made from digests, wherever they stand in the file.

    Of `tensors` the sink tells the digests, whether they are written or not: hashed while they
    stream, if they or what is cast to them is a part of the plans.
    """

    nbytes: int
    make: Callable[[Digests], bytes]
    tensors: tuple[Tensor, ...] = ()


Part = bytes | Tensor | Crc32 | Late


def part_nbytes(part: Part) -> int:
    """The bytes that a part takes in the file."""
    if isinstance(part, bytes):
        return len(part)
    return 4 if isinstance(part, Crc32) else part.nbytes


@dataclass(frozen=True, slots=True)
class FilePlan:
    """One file: its parts in order. `path` is relative to the output, parts separated by `/`."""

    path: str
    parts: tuple[Part, ...]
    hashed: bool = False  # the sink keeps its digest, for a Late part

    @property
    def nbytes(self) -> int:
        """The size of the file to be."""
        return sum(map(part_nbytes, self.parts))


Scalar = str | bool | int | float


class Field(NamedTuple):
    """A typed key-value pair of a container that has such, as GGUF does."""

    key: str
    type: str  # "string", "bool", "uint32", "float32" ...; an array's is that of its items
    value: Scalar | tuple[Scalar, ...]  # a tuple is an array


class Claim(NamedTuple):
    """Text pairs that tell digests of `tensors`, of the same lengths whatever these are."""

    tensors: tuple[Tensor, ...]
    metadata: Callable[[Mapping[Content, str]], dict[str, str]]  # given none, it gives the lengths


@dataclass(frozen=True, slots=True)
class Request:
    """What to write: tensors in order, names unique, and what to say of names left out."""

    name: str  # of the output, as the user gave it: "model.safetensors"
    tensors: tuple[Tensor, ...]
    aliases: dict[str, str] = field(default_factory=dict)  # a name left out -> the name it equals
    metadata: dict[str, str] = field(default_factory=dict)
    max_shard_nbytes: int | None = None
    fields: tuple[Field, ...] = ()  # keys unique; for formats that have typed fields
    claim: Claim | None = None  # further metadata


AddProvenance = Callable[[Request], Request]


def unsigned(request: Request) -> Request:
    """The request as it is, without a claim."""
    return request
