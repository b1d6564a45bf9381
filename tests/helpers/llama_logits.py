"""python -m tests.helpers.llama_logits MODEL.gguf 464,2068,7586 OUT.npy: llama.cpp's own logits.

The wheel `xllamacpp` exports llama.cpp's C functions, which are called here with ctypes. The KV
cache is float32 and flash attention off. Parameter structs are passed as oversized blobs (which
x86-64's calling convention allows); the fields that are changed are found where llama.cpp's
documented defaults stand, so another layout stops this program and never gives wrong numbers.
"""

import ctypes
import importlib.util
import os
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np

POINTER, INT, FLOATS = ctypes.c_void_p, ctypes.c_int32, ctypes.POINTER(ctypes.c_float)
ERROR = 4  # ggml.h `enum ggml_log_level`


class Blob(ctypes.Structure):
    _fields_ = [("raw", ctypes.c_ubyte * 1024)]


class Batch(ctypes.Structure):
    _fields_ = [
        ("n_tokens", INT),
        ("token", ctypes.POINTER(INT)),
        ("embd", FLOATS),
        ("pos", ctypes.POINTER(INT)),
        ("n_seq_id", ctypes.POINTER(INT)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(INT))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "llama_model_default_params": (Blob, []),
    "llama_context_default_params": (Blob, []),
    "llama_model_load_from_file": (POINTER, [ctypes.c_char_p, Blob]),
    "llama_init_from_model": (POINTER, [POINTER, Blob]),
    "llama_model_get_vocab": (POINTER, [POINTER]),
    "llama_vocab_n_tokens": (INT, [POINTER]),
    "llama_batch_init": (Batch, [INT, INT, INT]),
    "llama_decode": (INT, [POINTER, Batch]),
    "llama_get_logits_ith": (FLOATS, [POINTER, INT]),
    "llama_log_set": (None, [POINTER, POINTER]),
    "llama_backend_init": (None, []),
}


def library() -> ctypes.CDLL:
    """llama.cpp; its functions, and ggml's, are attributes."""
    spec = importlib.util.find_spec("xllamacpp")
    assert spec
    assert spec.origin
    (path,) = Path(spec.origin).parent.glob("xllamacpp*.so")
    return ctypes.CDLL(str(path))


def typed() -> ctypes.CDLL:
    lib = library()
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def log(level: int, text: bytes, _data: object) -> None:
    if level == ERROR:
        sys.stderr.write(text.decode("utf-8", "replace"))


def context_params(default: Blob, tokens: int, count: int = 1, *, plain: bool = True) -> Blob:
    """`count` threads, room for so many tokens; plain: one batch, float32, no flash attention."""
    raw = bytearray(default.raw)

    def number(offset: int) -> int:
        value: int = struct.unpack_from("<i", raw, offset)[0]
        return value

    # n_ctx, n_batch, n_ubatch, n_seq_max; n_threads, n_threads_batch; flash_attn_type; type_k, _v
    assert [number(at) for at in (0, 4, 8, 12)] == [512, 2048, 512, 1]
    (threads,) = (at for at in range(16, 40, 4) if number(at) == number(at + 4) == 4)
    attention = threads + 24
    assert number(attention) == -1
    types = [
        at
        for at in range(attention, attention + 128, 4)
        if number(at) == number(at + 4) == 1 and raw[at - 16 : at] == bytes(16)
    ]
    size = max(tokens, 32)
    struct.pack_into("<iii", raw, 0, size, size, size if plain else min(size, 512))
    struct.pack_into("<ii", raw, threads, count, count)
    if plain:
        struct.pack_into("<i", raw, attention, 0)
        struct.pack_into("<ii", raw, types[0], 0, 0)
    changed = Blob()
    ctypes.memmove(ctypes.addressof(changed), bytes(raw), len(raw))
    return changed


def logits(path: str, ids: list[int]) -> np.ndarray:
    """The logits at every position."""
    lib = typed()
    lib.llama_log_set(ctypes.cast(log, POINTER), None)
    lib.llama_backend_init()
    model = lib.llama_model_load_from_file(os.fsencode(path), lib.llama_model_default_params())
    if not model:
        sys.exit(f"llama.cpp does not load {path}")
    tokens = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    params = context_params(lib.llama_context_default_params(), len(ids))
    context = lib.llama_init_from_model(model, params)
    batch = lib.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for index, token in enumerate(ids):
        batch.token[index], batch.pos[index] = token, index
        batch.n_seq_id[index], batch.seq_id[index][0], batch.logits[index] = 1, 0, 1
    if not context or lib.llama_decode(context, batch):
        sys.exit("llama.cpp does not evaluate it")
    rows = (lib.llama_get_logits_ith(context, index) for index in range(len(ids)))
    return np.stack([np.ctypeslib.as_array(row, shape=(tokens,)).copy() for row in rows])


if __name__ == "__main__":
    np.save(sys.argv[3], logits(sys.argv[1], [int(word) for word in sys.argv[2].split(",")]))
    sys.stdout.flush()
    os._exit(0)  # its destructors may crash
