"""The one table of element types. Every other spelling of a type is looked up here."""

from __future__ import annotations

from typing import NamedTuple


class DType(NamedTuple):
    """An element type. `name` is ours and torch's; an empty spelling: it has no name there."""

    name: str
    nbytes: int  # of one element
    kind: str  # f float, i signed, u unsigned, b bool, c complex, q quantized, x raw bits
    storage: str = ""  # torch's typed storage class, less "Storage"
    safetensors: str = ""
    numpy: str = ""  # array-protocol string of the little-endian element

    @property
    def is_float(self) -> bool:
        """True for real floating-point types, the only ones that `--dtype` casts."""
        return self.kind == "f"

    @property
    def swap_width(self) -> int:
        """The bytes that reverse together when the byte order changes: a complex number has two."""
        return self.nbytes // 2 if self.kind == "c" else self.nbytes


# torch/storage.py `_dtype_to_storage_type_map`, c10/core/ScalarType.h, safetensors/src/tensor.rs
# `Dtype`. NumPy has no bfloat16, float8 or half complex: formats/_npy.py says what is done then.
TABLE = (
    DType("float64", 8, "f", "Double", "F64", "<f8"),
    DType("float32", 4, "f", "Float", "F32", "<f4"),
    DType("float16", 2, "f", "Half", "F16", "<f2"),
    DType("bfloat16", 2, "f", "BFloat16", "BF16"),
    DType("float8_e4m3fn", 1, "f", "", "F8_E4M3"),
    DType("float8_e5m2", 1, "f", "", "F8_E5M2"),
    DType("float8_e4m3fnuz", 1, "f", "", "F8_E4M3FNUZ"),
    DType("float8_e5m2fnuz", 1, "f", "", "F8_E5M2FNUZ"),
    DType("float8_e8m0fnu", 1, "f", "", "F8_E8M0"),
    DType("int64", 8, "i", "Long", "I64", "<i8"),
    DType("int32", 4, "i", "Int", "I32", "<i4"),
    DType("int16", 2, "i", "Short", "I16", "<i2"),
    DType("int8", 1, "i", "Char", "I8", "|i1"),
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
)

BY_NAME = {row.name: row for row in TABLE}
BY_STORAGE = {row.storage: row for row in TABLE if row.storage}
BY_SAFETENSORS = {row.safetensors: row for row in TABLE if row.safetensors}
BY_NUMPY = {row.numpy: row for row in TABLE if row.numpy}
# torch's own aliases (torch/__init__.py): pickles name a dtype by either spelling
BY_TORCH = BY_NAME | {
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
CASTS = ("float32", "float16", "bfloat16")  # what `--dtype` may ask for
