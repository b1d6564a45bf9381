"""Archives whose pickles say whatever they are told to."""

from __future__ import annotations

import collections
import io
import pickle
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from cgpt_convert.core.errors import CgptError
from tests.helpers import torch_names, zips
from tests.helpers.torch_agreement import opened
from tests.helpers.zips import Entry


@dataclass
class Ref:
    """A reference to a storage, as the pickle is to hold it."""

    cls: Any = torch.FloatStorage
    key: Any = "0"
    location: Any = "cpu"
    numel: Any = 6
    kind: Any = "storage"


@dataclass
class Made:
    """A call that the pickle is to hold; it is not made when the pickle is written."""

    func: Any
    args: tuple[Any, ...]
    state: Any = None
    items: Any = None
    elements: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        pairs = iter(self.items) if self.items else None
        return self.func, self.args, self.state, iter(self.elements or ()) or None, pairs


class Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, Ref):
            return obj.kind, obj.cls, obj.key, obj.location, obj.numel
        return None


def forged(value: Any, storages: dict[str, bytes] | None = None) -> bytes:
    """An archive of that pickle, with 24 bytes in storage 0 unless other storages are given."""
    file = io.BytesIO()
    Pickler(file, 2).dump(value)
    records = {"0": bytes(range(24))} if storages is None else storages
    entries = [Entry("archive/data.pkl", file.getvalue())]
    entries += [Entry(f"archive/data/{key}", data) for key, data in records.items()]
    return zips.build([*entries, Entry("archive/version", b"3\n")])


def v2(
    storage: Any = None,
    offset: Any = 0,
    size: Any = (2, 3),
    stride: Any = (3, 1),
    *rest: Any,
    **more: Any,
) -> Made:
    args = (storage or Ref(), offset, size, stride, False, collections.OrderedDict(), *rest)
    return Made(torch_names.rebuild_tensor_v2, args, **more)


def v3(storage: Any, size: Any, stride: Any, dtype: Any, offset: Any = 0) -> Made:
    hooks: Any = collections.OrderedDict()
    return Made(torch_names.rebuild_tensor_v3, (storage, offset, size, stride, False, hooks, dtype))


def torch_reads(data: bytes) -> Any:
    return torch.load(io.BytesIO(data))["w"]


def refused(value: Any, kind: type[CgptError], match: str, **options: Any) -> None:
    """The file is refused with that error, which names the tensor."""
    with pytest.raises(kind, match=match) as error:
        opened(forged({"w": value}, **options))
    assert "w:" in str(error.value)
