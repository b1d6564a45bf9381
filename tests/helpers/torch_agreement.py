"""Tensors to save, and whether what we read of them is what torch reads."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.formats.torch.zip_reader import read
from cgpt_convert.sources.local import MemoryBytes
from cgpt_convert.tensors import dtypes
from cgpt_convert.tensors.tensor import Tensor
from tests.helpers import zips

ignore_deprecation = pytest.mark.filterwarnings("ignore")  # torch warns of its own old forms


def opened(data: bytes) -> Checkpoint:
    return read(MemoryBytes("x.bin", data))


def flat(value: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors in what torch.load gave, under dotted names."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, Mapping | list | tuple):
        pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in pairs:
            yield from flat(item, f"{name}.{key}" if name else str(key))


def raw(tensor: torch.Tensor) -> bytes:
    """The elements in C order, little-endian, bit by bit."""
    copy = torch.empty(tensor.numel(), dtype=tensor.dtype)
    copy.copy_(tensor.detach().resolve_conj().resolve_neg().reshape(-1))
    return copy.view(torch.uint8).numpy().tobytes() if copy.numel() else b""


def bits(tensor: Tensor) -> bytes:
    return b"".join(tensor.blocks())


def agree(checkpoint: Checkpoint, expected: Any) -> None:
    """Names, order, types, shapes and every bit are torch's."""
    wanted = dict(flat(expected))
    assert list(checkpoint) == list(wanted)
    for name, tensor in wanted.items():
        ours = checkpoint[name]
        assert f"torch.{ours.dtype.name}" == str(tensor.dtype), name
        assert ours.shape == tuple(tensor.shape), name
        assert bits(ours) == raw(tensor), name


def check(value: Any, *, weights_only: bool = True) -> Checkpoint:
    """Save `value` with torch; read it with torch and with us; what we read."""
    data = zips.saved(value)
    checkpoint = opened(data)
    agree(checkpoint, torch.load(io.BytesIO(data), weights_only=weights_only))
    return checkpoint


def filled(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """A tensor of random bits, the same at each run; NaN and infinity among them."""
    numel = int(np.prod(shape))
    generator = torch.Generator().manual_seed(numel)
    width = torch.empty(0, dtype=dtype).element_size()
    most = 2 if dtype == torch.bool else 256
    octets = torch.randint(0, most, (numel * width,), generator=generator, dtype=torch.uint8)
    return octets.view(dtype).reshape(shape)


TYPES = [getattr(torch, row.name) for row in dtypes.TABLE if row.kind in "fiubc"]


BASE = torch.arange(210.0).view(5, 6, 7)


COMPLEX = torch.view_as_complex(torch.arange(12.0).view(2, 3, 2))


SPARSE = torch.tensor([[0.0, 1, 0, 2], [3, 0, 0, 0], [0, 0, 0, 4], [0, 5, 6, 0]])


def named(value: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors in what torch.load gave, under our names, those in attributes of tensors too.

    Raises LookupError where names are not told by the values alone: in cycles and for odd keys.
    """
    if depth > 20:
        raise LookupError("nested too deep")
    pairs: list[tuple[Any, Any]] = []
    if isinstance(value, torch.Tensor):
        yield name, value
        pairs = list(vars(value).items())
        if value.grad is not None:
            pairs.append(("grad", value.grad))
    elif isinstance(value, Mapping):
        pairs = list(value.items())
    elif isinstance(value, list | tuple):
        pairs = list(enumerate(value))
    elif isinstance(value, set | frozenset) and any(isinstance(v, torch.Tensor) for v in value):
        raise LookupError("a set")
    for key, item in pairs:
        if not isinstance(key, str | int | float | bool | None):
            raise LookupError("an odd key")  # noqa: TRY004
        part = key if isinstance(key, str) else str(key)
        yield from named(item, f"{name}.{part}" if name and part else name or part, depth + 1)


def difference(ours: Checkpoint, theirs: Any) -> str:
    """In what our reading and torch's differ, as `kind: where`; "" if in nothing.

    A tensor that we list as unreadable, or under a name with two values, is one that we rejected.
    """
    try:
        wanted = dict(named(theirs))
    except LookupError:
        return ""
    rejected = {name for name, entry in ours.exotic.items() if entry.error} | ours.collisions
    for name in {*wanted, *ours, *ours.exotic}:
        if any(name == each or name.startswith(f"{each}.") for each in rejected):
            continue
        found = _difference(ours, name, wanted.get(name))
        if found:
            return f"{found}: {name!r} of ours {[*ours, *ours.exotic]}, torch {[*wanted]}"
    return ""


def _difference(ours: Checkpoint, name: str, theirs: torch.Tensor | None) -> str:
    if theirs is None:
        return "more"
    if name in ours.exotic:
        shape = ours.exotic[name].shape
        return "" if shape == tuple(theirs.shape) else "shape"
    if name not in ours:
        return "missing"
    mine = ours[name]
    wrong = {
        "dtype": f"torch.{mine.dtype.name}" != str(theirs.dtype),
        "shape": mine.shape != tuple(theirs.shape),
        "layout": theirs.layout != torch.strided or theirs.is_meta,
    }
    for what, differs in wrong.items():
        if differs:
            return what
    plain = theirs.int_repr() if theirs.is_quantized else theirs
    return "" if bits(mine) == raw(plain) else "elements"
