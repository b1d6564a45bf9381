"""The table of element types. All other spellings of a type are looked up here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cgpt_convert.core.errors import BadRequest, Unsupported
from cgpt_convert.core.text import near_word

NIBBLE, OCTET = 4, 8  # bits


class BlockCodec(NamedTuple):
    """The layout of a ggml block of 32 elements: a float16 scale, then an integer per element.

    Integers of 8 bits are signed. Those of 4 and 5 bits are unsigned and count from -2^(bits - 1),
    or from a minimum, a second float16. `quantize` and `dequantize` compute every combination.
    """

    bits: int
    minimum: bool = False  # not with 8 bits


class DType(NamedTuple):
    """An element type, named as in torch; the spelling of a format without the type is empty."""

    name: str
    nbytes: int  # of one element; of one block, where `block` is more than 1
    kind: str  # f float, i signed, u unsigned, b bool, c complex, q quantized, x raw bits
    storage: str = ""  # torch's typed storage class, less "Storage"
    safetensors: str = ""
    numpy: str = ""  # array-protocol string of the little-endian element
    gguf: int | None = None  # ggml's number of the type
    block: int = 1  # elements of a row that are stored together, sharing a scale
    codec: BlockCodec | None = None  # how such a block is stored
    file_type: int | None = None  # of a GGUF with mostly this type: gguf-py's `LlamaFileType`
    tolerance: float | None = None  # NMSE of states and logits that `verify --logits` accepts

    def __repr__(self) -> str:
        return f"<DType {self.name}>"

    @property
    def is_float(self) -> bool:
        """True for real floating-point types with one number per element."""
        return self.kind == "f"

    @property
    def casts(self) -> bool:
        """True for types that represent real numbers and can be cast to one another."""
        return self.is_float or self.block > 1

    def size(self, numel: int) -> int:
        """Return the size in bytes of `numel` elements in whole blocks."""
        return -(-numel // self.block) * self.nbytes

    @property
    def swap_width(self) -> int:
        """The bytes that a change of byte order reverses as a unit; complex types have two."""
        return self.nbytes // 2 if self.kind == "c" else self.nbytes


def dtype_name(dtype: object) -> str:
    """Return the name of a type that is given by its name, or as a type of torch or NumPy."""
    if isinstance(dtype, str):
        return dtype
    name = getattr(dtype, "name", None) or getattr(dtype, "__name__", None)
    return name if isinstance(name, str) else str(dtype).removeprefix("torch.")


def block_codec(dtype: DType) -> BlockCodec:
    """Return the codec of a type that is stored in blocks. Raises Unsupported for other types."""
    if dtype.codec is None:
        raise Unsupported(f"the type {dtype.name} is not stored in blocks")
    return dtype.codec


# torch/storage.py `_dtype_to_storage_type_map`, c10/core/ScalarType.h, safetensors/src/tensor.rs
# `Dtype`, ggml/include/ggml.h `ggml_type`. NumPy has no bfloat16, float8 or half complex; see
# formats/npy/header.py for their storage. A tolerance is about three times the largest measurement
# in docs/explanation/numerics.md.
TABLE = (
    DType("float64", 8, "f", "Double", "F64", "<f8", gguf=28, tolerance=1e-10),
    DType("float32", 4, "f", "Float", "F32", "<f4", gguf=0, file_type=0, tolerance=1e-10),
    DType("float16", 2, "f", "Half", "F16", "<f2", gguf=1, file_type=1, tolerance=2e-6),
    DType("bfloat16", 2, "f", "BFloat16", "BF16", gguf=30, file_type=32, tolerance=1e-4),
    DType("float8_e4m3fn", 1, "f", "", "F8_E4M3"),
    DType("float8_e5m2", 1, "f", "", "F8_E5M2"),
    DType("float8_e4m3fnuz", 1, "f", "", "F8_E4M3FNUZ"),
    DType("float8_e5m2fnuz", 1, "f", "", "F8_E5M2FNUZ"),
    DType("float8_e8m0fnu", 1, "f", "", "F8_E8M0"),
    DType("int64", 8, "i", "Long", "I64", "<i8", gguf=27),
    DType("int32", 4, "i", "Int", "I32", "<i4", gguf=26),
    DType("int16", 2, "i", "Short", "I16", "<i2", gguf=25),
    DType("int8", 1, "i", "Char", "I8", "|i1", gguf=24),
    DType("uint64", 8, "u", "", "U64", "<u8"),
    DType("uint32", 4, "u", "", "U32", "<u4"),
    DType("uint16", 2, "u", "", "U16", "<u2"),
    DType("uint8", 1, "u", "Byte", "U8", "|u1"),
    DType("bool", 1, "b", "Bool", "BOOL", "|b1"),
    DType("complex128", 16, "c", "ComplexDouble", "", "<c16"),
    DType("complex64", 8, "c", "ComplexFloat", "C64", "<c8"),
    DType("complex32", 4, "c", ""),
    DType("qint8", 1, "q", "QInt8"),
    DType("quint8", 1, "q", "QUInt8"),
    DType("qint32", 4, "q", "QInt32"),
    DType("quint4x2", 1, "q", "QUInt4x2"),  # nbytes is of a pair; see rebuild.py
    DType("quint2x4", 1, "q", "QUInt2x4"),  # nbytes is of four
    DType("float4_e2m1fn_x2", 1, "x"),  # two elements in a byte; torch's shape counts the bytes
    DType("bits8", 1, "x"),
    DType("bits16", 2, "x"),
    DType("bits1x8", 1, "x"),
    DType("bits2x4", 1, "x"),
    DType("bits4x2", 1, "x"),
    # ggml/src/ggml-common.h `block_q8_0` and so on; a type of blocks is one row
    DType("q8_0", 2 + 32, "q", gguf=8, block=32, codec=BlockCodec(8), file_type=7, tolerance=1e-3),
    DType(
        "q5_1",
        2 + 2 + 4 + 16,
        "q",
        gguf=7,
        block=32,
        codec=BlockCodec(5, minimum=True),
        file_type=9,
        tolerance=5e-2,
    ),
    DType(
        "q5_0", 2 + 4 + 16, "q", gguf=6, block=32, codec=BlockCodec(5), file_type=8, tolerance=6e-2
    ),
    DType(
        "q4_1",
        2 + 2 + 16,
        "q",
        gguf=3,
        block=32,
        codec=BlockCodec(4, minimum=True),
        file_type=3,
        tolerance=0.2,
    ),
    DType("q4_0", 2 + 16, "q", gguf=2, block=32, codec=BlockCodec(4), file_type=2, tolerance=0.3),
)

BY_NAME = {row.name: row for row in TABLE}
BY_STORAGE = {row.storage: row for row in TABLE if row.storage}
BY_SAFETENSORS = {row.safetensors: row for row in TABLE if row.safetensors}
BY_NUMPY = {row.numpy: row for row in TABLE if row.numpy}
BY_GGUF = {row.gguf: row for row in TABLE if row.gguf is not None}
# torch's own aliases (torch/__init__.py): pickles name a dtype by either spelling
BY_TORCH = {row.name: row for row in TABLE if row.block == 1} | {
    "double": BY_NAME["float64"],
    "float": BY_NAME["float32"],
    "half": BY_NAME["float16"],
    "long": BY_NAME["int64"],
    "int": BY_NAME["int32"],
    "short": BY_NAME["int16"],
    "cfloat": BY_NAME["complex64"],
    "cdouble": BY_NAME["complex128"],
    "chalf": BY_NAME["complex32"],
}

UINT8 = BY_NAME["uint8"]
FLOAT32 = BY_NAME["float32"]
CASTS = ("float32", "float16", "bfloat16")  # choices of `--dtype`
BLOCK_CASTS = tuple(row.name for row in TABLE if row.codec)  # additional types for GGUF
CAST_TARGETS = (*CASTS, *BLOCK_CASTS)
WISHES = ("keep", *CAST_TARGETS)
_SPELLINGS = {name: name for name in WISHES} | {
    "f32": "float32",
    "fp32": "float32",
    "float": "float32",
    "single": "float32",
    "f16": "float16",
    "fp16": "float16",
    "half": "float16",
    "bf16": "bfloat16",
    "bfp16": "bfloat16",
}


def cast_target(spelling: str, names: Sequence[str] = WISHES) -> str:
    """Return the one of `names` for a spelling such as fp16, torch.half or Q8_0.

    Raises BadRequest, with the most similar name, if there is none.
    """
    word = spelling.strip().lower().removeprefix("torch.")
    if _SPELLINGS.get(word) in names:
        return _SPELLINGS[word]
    near = near_word(word, [each for each, name in _SPELLINGS.items() if name in names])
    meant = f"did you mean {_SPELLINGS[near]}? " if near else ""
    hint = f"{meant}use one of {', '.join(names)}"
    raise BadRequest(f"{spelling!r} is not a valid dtype", hint=hint)
