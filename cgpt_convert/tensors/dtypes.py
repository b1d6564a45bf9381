"""The table of element types. All other spellings of a type are looked up here."""

from __future__ import annotations

from typing import NamedTuple


class DType(NamedTuple):
    """An element type. `name` is torch's too; a format without the type has an empty spelling."""

    name: str
    nbytes: int  # of one element; of one block, where `block` is more than 1
    kind: str  # f float, i signed, u unsigned, b bool, c complex, q quantized, x raw bits
    storage: str = ""  # torch's typed storage class, less "Storage"
    safetensors: str = ""
    numpy: str = ""  # array-protocol string of the little-endian element
    gguf: int | None = None  # ggml's number of the type
    block: int = 1  # elements of a row that are stored together, sharing a scale

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


# torch/storage.py `_dtype_to_storage_type_map`, c10/core/ScalarType.h, safetensors/src/tensor.rs
# `Dtype`, ggml/include/ggml.h `ggml_type`. NumPy has no bfloat16, float8 or half complex:
# formats/npy/header.py says what is done then.
TABLE = (
    DType("float64", 8, "f", "Double", "F64", "<f8", gguf=28),
    DType("float32", 4, "f", "Float", "F32", "<f4", gguf=0),
    DType("float16", 2, "f", "Half", "F16", "<f2", gguf=1),
    DType("bfloat16", 2, "f", "BFloat16", "BF16", gguf=30),
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
    # ggml/src/ggml-common.h `block_q8_0` and so on: a float16 scale, then 32 small integers
    DType("q8_0", 2 + 32, "q", gguf=8, block=32),
    DType("q5_1", 2 + 2 + 4 + 16, "q", gguf=7, block=32),
    DType("q5_0", 2 + 4 + 16, "q", gguf=6, block=32),
    DType("q4_1", 2 + 2 + 16, "q", gguf=3, block=32),
    DType("q4_0", 2 + 16, "q", gguf=2, block=32),
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
BLOCK_CASTS = tuple(row.name for row in TABLE if row.block > 1)  # additional types for GGUF
CAST_TARGETS = (*CASTS, *BLOCK_CASTS)
WISHES = ("keep", *CAST_TARGETS)
