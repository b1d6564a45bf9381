"""What a weight file holds, whatever its container: every reader returns a Checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from cgpt_convert.findings import Finding
from cgpt_convert.inert import Value
from cgpt_convert.source import Source
from cgpt_convert.tensor import Storage, Tensor


class Exotic(NamedTuple):
    """A tensor that is not one strided view: sparse, nested, meta, or packed below a byte.

    `parts` are the dense tensors it is made of, for formats that can hold them apart.
    """

    name: str
    kind: str  # sparse_coo, sparse_csr, nested, meta, quint4x2 ...
    dtype: str
    shape: tuple[int, ...]
    detail: str
    parts: tuple[Tensor, ...] = ()


class Leaf(NamedTuple):
    """A value that is no tensor, under the dotted path where it lies."""

    path: str
    value: Value


class Lost(NamedTuple):
    """Why a tensor is left out: not every byte of it is there and right."""

    nbytes: int | None  # of its elements; None where the file does not tell
    why: str


@dataclass(eq=False)
class Checkpoint(Mapping[str, Tensor]):
    """name -> Tensor, in the file's own order, plus everything else the file holds.

    Nested containers are flattened, their keys joined with dots. Tied weights appear under each of
    their names; equal `Tensor.view` says that they are one. Nothing is read until asked for.
    """

    path: str  # as the user gave it
    kind: str  # "PyTorch zip", "safetensors" ...
    sources: tuple[Source, ...]  # the files it is made of
    tensors: dict[str, Tensor]
    storages: list[Storage] = field(default_factory=list)  # all, also those nobody references
    exotic: dict[str, Exotic] = field(default_factory=dict)
    others: list[Leaf] = field(default_factory=list)
    globals: list[str] = field(default_factory=list)  # dotted names that the pickle mentions
    code: list[str] = field(default_factory=list)  # TorchScript records, never read
    findings: list[Finding] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)  # the container's own text pairs
    root: str = ""  # the archive's root folder, where there is one
    collisions: set[str] = field(default_factory=set)  # names that more than one value has
    unsaved: set[str] = field(default_factory=set)  # names of tensors without values (skip_data)
    lost: dict[str, Lost] = field(default_factory=dict)  # tensors left out, when salvaging
    # path of each dict -> path of the dict around it; the outermost's path and parent are ""
    containers: dict[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    @property
    def ties(self) -> dict[str, str]:
        """Name -> the first name, in file order, of the very same view; firsts are left out."""
        first: dict[tuple[object, ...], str] = {}
        tied = {}
        for name, tensor in self.tensors.items():
            keeper = first.setdefault(tensor.view, name)
            if keeper != name:
                tied[name] = keeper
        return tied

    def lose(self, name: str, why: str) -> None:
        """Leave the tensor `name` out, dense or exotic, and note why."""
        tensor, exotic = self.tensors.pop(name, None), self.exotic.pop(name, None)
        parts = exotic.parts if exotic else (tensor,) if tensor else ()
        self.lost[name] = Lost(sum(part.nbytes for part in parts), why)

    def check_unchanged(self) -> None:
        """Raise Unreadable if a file it was read from has changed since."""
        for source in self.sources:
            source.check_unchanged()
