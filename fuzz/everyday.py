"""Random files as programs write them, which the scanner must pass."""

from __future__ import annotations

import bz2
import collections
import gzip
import io
import lzma
import pickle
import zlib
from random import Random
from typing import Any

import joblib
import numpy as np
import safetensors.torch
import torch

from tests.helpers.scan_files import tarred, zipped

_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.bool)


def everyday(dice: Random) -> tuple[bytes, str]:
    """Return the bytes of a file and what it is called."""
    written, suffix = dice.choice(_WRITERS)(dice)
    if dice.random() < 0.8:
        return written, f"model{suffix}"
    pack, more = dice.choice(_PACKERS)
    return pack(written), f"model{suffix}{more}"


def value(dice: Random, depth: int = 3) -> Any:
    """Return a random value of Python's own types."""
    if not depth or dice.random() < 0.4:
        return dice.choice(_PLAIN)(dice)
    items = [value(dice, depth - 1) for _ in range(dice.randrange(6))]
    keys = [_text(dice) if dice.random() < 0.8 else dice.randrange(300) for _ in items]
    pairs = dict(zip(keys, items, strict=True))
    return dice.choice(
        (items, tuple(items), pairs, collections.OrderedDict(pairs), collections.Counter("aab"))
    )


def _text(dice: Random) -> str:
    words = ("os", "system", "c", "weight", "\n", "\xe9t\xe9", "\u732b", ".", "(", "PK\3\4")
    return "".join(dice.choice(words) for _ in range(dice.randrange(5)))


_PLAIN = (
    lambda dice: dice.randrange(-(1 << dice.randrange(1, 90)), 1 << dice.randrange(1, 90)),
    lambda dice: dice.uniform(-1e9, 1e9),
    _text,
    lambda dice: dice.randbytes(dice.randrange(40)),
    lambda dice: dice.choice((None, True, False, 1j, (), b"", range(3), {1, 2}, frozenset((3,)))),
    lambda dice: bytearray(dice.randbytes(5)),
)


def tensors(dice: Random) -> dict[str, Any]:
    """Return random tensors under names, and other values beside them."""
    found: dict[str, Any] = {}
    for _ in range(dice.randrange(1, 8)):
        shape = [dice.randrange(5) for _ in range(dice.randrange(4))]
        if dice.random() < 0.2:
            shape = [dice.randrange(2000)]
        raw = torch.tensor(list(dice.randbytes(int(np.prod(shape)))), dtype=torch.uint8)
        tensor = raw.reshape(shape).to(dice.choice((*_TYPES, torch.uint8)))
        if dice.random() < 0.3 and not tensor.numel() % 8:
            tensor = tensor.contiguous().view(torch.uint8).reshape(-1).view(torch.float32)
        elif dice.random() < 0.2:
            tensor = tensor.t() if tensor.dim() == 2 else tensor.expand(2, *shape)
        found[_text(dice) or "w"] = tensor
    if dice.random() < 0.5:
        found["extra"] = value(dice)
    return found


def _torch(dice: Random) -> tuple[bytes, str]:
    file = io.BytesIO()
    torch.save(
        tensors(dice),
        file,
        pickle_protocol=dice.choice((2, 3, 4, 5)),
        _use_new_zipfile_serialization=dice.random() < 0.6,
    )
    return file.getvalue(), dice.choice((".pt", ".pth", ".bin", ".ckpt"))


def _pickle(dice: Random) -> tuple[bytes, str]:
    return pickle.dumps(value(dice), dice.randrange(6)), ".pkl"


def _arrays(dice: Random) -> dict[str, np.ndarray[Any, Any]]:
    objects = np.array([1, "a", None, {}], dtype=object)
    numbers = np.frombuffer(dice.randbytes(32), dice.choice(("<f4", ">i2", "u1", "<c8")))
    return {"numbers": numbers, "objects": objects, "text": np.array(["a", "bc"])}


def _npz(dice: Random) -> tuple[bytes, str]:
    file = io.BytesIO()
    dice.choice((np.savez, np.savez_compressed))(file, **_arrays(dice))  # type: ignore[arg-type]
    return file.getvalue(), ".npz"


def _npy(dice: Random) -> tuple[bytes, str]:
    file = io.BytesIO()
    np.save(file, dice.choice(list(_arrays(dice).values())), allow_pickle=True)
    return file.getvalue(), ".npy"


def _safetensors(dice: Random) -> tuple[bytes, str]:
    weights = {"a": torch.tensor(list(dice.randbytes(20)), dtype=torch.uint8)}
    return safetensors.torch.save(weights, {"format": "pt"}), ".safetensors"


def _joblib(dice: Random) -> tuple[bytes, str]:
    file = io.BytesIO()
    how = dice.choice((0, ("zlib", 3), ("gzip", 3), ("bz2", 9), ("lzma", 3), ("xz", 3)))
    joblib.dump(value(dice), file, compress=how)
    return file.getvalue(), ".joblib"


def _several(dice: Random) -> tuple[bytes, str]:
    members = {f"d/{n}{name}": data for n, (data, name) in enumerate((_torch(dice), _pickle(dice)))}
    if dice.random() < 0.5:
        return tarred(members), ".tar"
    return zipped(members, dice.choice((0, 8))), ".zip"


_WRITERS = (
    *(_torch, _torch, _torch, _pickle, _pickle, _npz, _npy, _safetensors, _joblib, _several),
)
_PACKERS = (
    *((gzip.compress, ".gz"), (bz2.compress, ".bz2"), (lzma.compress, ".xz")),
    (zlib.compress, ".z"),
)
