"""Pickling of a state dict, byte-identical to CPython's pickler under `torch.save`.

Protocol 2; opcodes are those of CPython's Lib/pickletools.py. Equal strings are written once, where
CPython compares identity; the difference shows only if a tensor has the name of a storage key.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from cgpt_convert.tensors.dtypes import DType
from cgpt_convert.tensors.shapes import c_strides

_BATCH = 1000  # items to one SETITEMS: Modules/_pickle.c, BATCHSIZE
_TUPLES = (b"", b"\x85", b"\x86", b"\x87")  # TUPLE1 to TUPLE3


class TensorEntry(NamedTuple):
    """A named row-major tensor that fills the storage called `key`."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    numel: int
    key: str


Value = TensorEntry | str | Mapping[str, str]


def state_dict(entries: Iterable[TensorEntry], attributes: Mapping[str, Value]) -> bytes:
    """Return the pickle of an OrderedDict of the tensors; `attributes` are set on the dict."""
    pickler = _Pickler()
    pickler.ordered_dict()
    pickler.items([(entry.name, entry) for entry in entries])
    if attributes:
        pickler.value(attributes)
        pickler.out += b"b"  # BUILD
    return bytes(pickler.out) + b"."  # STOP


class _Pickler:
    """A pickle under construction in `out`; each method appends the opcodes for one value."""

    def __init__(self) -> None:
        self.out = bytearray(b"\x80\2")  # PROTO
        self.memo: dict[object, int] = {}
        self.kept = 0  # memo entries so far; most are never recalled, so they are not in `memo`

    def value(self, value: Value | Mapping[str, Value]) -> None:
        if isinstance(value, str):
            self.text(value)
        elif isinstance(value, TensorEntry):
            self.tensor(value)
        else:
            self.out += b"}"  # EMPTY_DICT
            self.keep()
            self.items(list(value.items()))

    def items(self, pairs: Sequence[tuple[str, Value]]) -> None:
        for start in range(0, len(pairs), _BATCH):
            batch = pairs[start : start + _BATCH]
            self.out += b"(" if len(batch) > 1 else b""  # MARK
            for name, value in batch:
                self.text(name)
                self.value(value)
            self.out += b"u" if len(batch) > 1 else b"s"  # SETITEMS, SETITEM

    def tensor(self, entry: TensorEntry) -> None:
        """Append the call that torch/_tensor.py `_reduce_ex_internal` makes."""
        dtype = entry.dtype
        self.symbol("torch._utils", f"_rebuild_tensor_v{2 if dtype.storage else 3}")
        self.out += b"("  # MARK
        self.storage(entry)
        self.integer(0)  # the first element
        self.integers(entry.shape)
        self.integers(c_strides(entry.shape))
        self.out += b"\x89"  # NEWFALSE: requires_grad
        self.ordered_dict()  # hooks
        if not dtype.storage:
            self.symbol("torch", dtype.name)
        self.called()

    def storage(self, entry: TensorEntry) -> None:
        """Append the persistent id that torch/serialization.py `persistent_id` makes."""
        dtype = entry.dtype
        self.out += b"("  # MARK
        self.text("storage")
        if dtype.storage:
            self.symbol("torch", f"{dtype.storage}Storage")
        else:
            self.symbol("torch.storage", "UntypedStorage")
        self.text(entry.key)
        self.text("cpu")
        self.integer(entry.numel if dtype.storage else entry.numel * dtype.nbytes)
        self.out += b"t"  # TUPLE
        self.keep()
        self.out += b"Q"  # BINPERSID

    def called(self) -> None:
        """Append the call of the function with the arguments after the MARK."""
        self.out += b"t"  # TUPLE
        self.keep()
        self.out += b"R"  # REDUCE
        self.keep()

    def ordered_dict(self) -> None:
        self.symbol("collections", "OrderedDict")
        self.out += b")R"  # EMPTY_TUPLE, REDUCE
        self.keep()

    def symbol(self, module: str, name: str) -> None:
        if not self.recalled((module, name)):
            self.out += f"c{module}\n{name}\n".encode()  # GLOBAL
            self.keep((module, name))

    def text(self, value: str) -> None:
        if not self.recalled(value):
            data = value.encode()
            self.out += struct.pack("<cI", b"X", len(data)) + data  # BINUNICODE
            self.keep(value)

    def integers(self, values: tuple[int, ...]) -> None:
        if not values:
            self.out += b")"  # EMPTY_TUPLE, which is not memoized
            return
        short = len(values) < len(_TUPLES)
        self.out += b"" if short else b"("  # MARK
        for value in values:
            self.integer(value)
        self.out += _TUPLES[len(values)] if short else b"t"
        self.keep()

    def integer(self, value: int) -> None:
        """Append a non-negative integer."""
        if value < 1 << 8:
            self.out += struct.pack("<cB", b"K", value)  # BININT1
        elif value < 1 << 16:
            self.out += struct.pack("<cH", b"M", value)  # BININT2
        elif value < 1 << 31:
            self.out += struct.pack("<cI", b"J", value)  # BININT
        else:
            data = value.to_bytes(value.bit_length() // 8 + 1, "little")  # with room for the sign
            self.out += struct.pack("<cB", b"\x8a", len(data)) + data  # LONG1

    def keep(self, value: object = None) -> None:
        """Memoize the last value; `value` is the key for `recalled`, if it may be needed again."""
        if value is not None:
            self.memo[value] = self.kept
        self.out += _indexed(b"q", b"r", self.kept)  # BINPUT, LONG_BINPUT
        self.kept += 1

    def recalled(self, value: object) -> bool:
        """Append `value` from the memo; return whether it was there."""
        index = self.memo.get(value)
        if index is not None:
            self.out += _indexed(b"h", b"j", index)  # BINGET, LONG_BINGET
        return index is not None


def _indexed(short: bytes, long: bytes, index: int) -> bytes:
    if index < 1 << 8:
        return struct.pack("<cB", short, index)
    return struct.pack("<cI", long, index)
