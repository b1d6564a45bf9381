"""The contents of a weight file of any container: every reader returns a Checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import NamedTuple

from cgpt_convert.core.errors import CgptError
from cgpt_convert.core.findings import Finding
from cgpt_convert.core.text import html_table
from cgpt_convert.sources.local import Source
from cgpt_convert.tensors.shapes import dims
from cgpt_convert.tensors.tensor import Storage, Tensor

_SHOWN = 200  # tensors in a table for notebooks


class LocalPart(NamedTuple):
    """The part of a larger tensor that one process has: the index of its first element, its shape.

    A process that has none has a dimension of 0.
    """

    start: tuple[int, ...]
    shape: tuple[int, ...]


class CompositeTensor(NamedTuple):
    """An entry that is not one strided view: sparse, nested, meta, sub-byte or unreadable.

    `parts` are the dense tensors that it consists of, for formats that can store them separately.
    An unreadable entry has an `error` and no parts; its dtype and shape are empty if unknown.
    """

    name: str
    kind: str  # sparse_coo, sparse_csr, nested, meta, quint4x2, unreadable ...
    dtype: str
    shape: tuple[int, ...]
    detail: str
    parts: tuple[Tensor, ...] = ()
    error: CgptError | None = None
    local: LocalPart | None = None  # of a DTensor whose placements are understood


def unreadable(
    name: str, error: CgptError, dtype: str = "", shape: tuple[int, ...] = ()
) -> CompositeTensor:
    """Return a placeholder for the entry `name`, which cannot be read because of `error`."""
    return CompositeTensor(name, "unreadable", dtype, shape, error.message, error=error)


class NonTensorValue(NamedTuple):
    """A value that is not a tensor, with its dotted path."""

    path: str
    value: object


class CollapsedContainer(NonTensorValue):
    """A large container without tensors, kept as a leaf."""

    __slots__ = ()


class MissingTensor(NamedTuple):
    """The reason why a tensor is skipped: some of its bytes are missing or damaged."""

    nbytes: int | None  # size of its elements; None if unknown
    why: str


class Checkpoint(Mapping[str, Tensor]):
    """A mapping of names to tensors, in file order, with the other contents of the file.

    Nested containers are flattened, their keys joined with dots. Tied weights appear under each of
    their names; they have equal `Tensor.view`. Data is read on demand.
    """

    def __init__(
        self,
        path: str,  # of the file, also where a folder was opened that contains it
        kind: str,  # "PyTorch zip", "safetensors" ...
        sources: tuple[Source, ...],  # the files that it was read from
        tensors: dict[str, Tensor],
        storages: Iterable[Storage] = (),
        *,
        findings: Iterable[Finding] = (),
        metadata: Mapping[str, str] | None = None,
        root: str = "",
    ) -> None:
        self.path = path
        self.opened_as = path  # as the user gave it, which may be the file's folder
        self.kind = kind
        self.format = ""  # the name of the format it was read with; "" for tensors in memory
        self.sources = sources
        self.tensors = tensors
        self.storages = list(storages)  # all storages, including unreferenced ones
        self.exotic: dict[str, CompositeTensor] = {}
        self.others: list[NonTensorValue] = []
        self.globals: list[str] = []  # dotted names that the pickle refers to
        self.code: list[str] = []  # TorchScript records, never read
        self.findings = list(findings)
        self.metadata = dict(metadata or {})  # the container's own text pairs
        self.root = root  # the archive's root folder, where there is one
        self.collisions: set[str] = set()  # names used by more than one value
        self.unsaved: set[str] = set()  # names of tensors without values (skip_data)
        self.lost: dict[str, MissingTensor] = {}  # tensors skipped by salvaging
        # tensors that the pickled module's state_dict() does not contain -> their kind
        self.extras: dict[str, str] = {}
        # path of each dict -> path of the dict that contains it; "" for the outermost dict and its
        # parent. An object in a dict is also listed, its contents are not
        self.containers: dict[str, str] = {}
        # name of a tensor -> path of the innermost container that contains it, if known
        self.within: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"<Checkpoint {self.path!r}: {self._described()}>"

    def _repr_html_(self) -> str:
        """Return a table of the tensors for notebooks; no values are read."""
        ties = self.ties
        rows = [
            (name, tensor.dtype.name, dims(tensor.shape), f"{tensor.nbytes:,}", ties.get(name, ""))
            for name, tensor in islice(self.tensors.items(), _SHOWN)
        ]
        if len(self.tensors) > _SHOWN:
            rows.append((f"and {len(self.tensors) - _SHOWN:,} more", "", "", "", ""))
        head = ("name", "type", "shape", "bytes", "tied to")
        return html_table(f"{self.path}: {self._described()}", rows, head)

    def _described(self) -> str:
        count = len(self.tensors)
        parts = [self.kind, f"{count:,} tensor" + "s" * (count != 1)]
        parts += [f"{len(self.exotic):,} not dense"] if self.exotic else []
        parts += [f"{len(self.lost):,} missing or damaged"] if self.lost else []
        ties = self.ties
        nbytes = sum(tensor.nbytes for name, tensor in self.tensors.items() if name not in ties)
        return f"{', '.join(parts)}, {nbytes:,} bytes"

    def __enter__(self) -> Checkpoint:  # noqa: PYI034  typing has no Self before 3.11
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files that are open; tensors must not be read after that."""
        for source in self.sources:
            close = getattr(source, "close", None)
            if close is not None:
                close()

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    @property
    def ties(self) -> dict[str, str]:
        """Names of tied tensors, mapped to the first name, in file order, of the same view."""
        first: dict[tuple[object, ...], str] = {}
        tied = {}
        for name, tensor in self.tensors.items():
            keeper = first.setdefault(tensor.view, name)
            if keeper != name:
                tied[name] = keeper
        return tied

    @property
    def is_readable(self) -> bool:
        """Whether any of the tensors can be read."""
        return bool(self.tensors) or any(not entry.error for entry in self.exotic.values())

    def lose(self, name: str, why: str) -> None:
        """Remove the tensor `name`, dense or exotic, and record why."""
        tensor, exotic = self.tensors.pop(name, None), self.exotic.pop(name, None)
        parts = exotic.parts if exotic else (tensor,) if tensor else ()
        unknown = exotic is not None and exotic.error is not None
        self.lost[name] = MissingTensor(
            None if unknown else sum(part.nbytes for part in parts), why
        )

    def check_unchanged(self) -> None:
        """Raise Unreadable if a file of the checkpoint has changed since it was opened."""
        for source in self.sources:
            source.check_unchanged()
