"""Check an ONNX model: its operators, in all its graphs, and the files that it refers to.

onnx/onnx.proto; "Protocol Buffers: Encoding". A model that uses only operators that compute, and
data beside it, makes a runtime load no code. Fields that are not in the tables are not understood.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from cgpt_convert.core.errors import Malformed, Unsupported
from cgpt_convert.core.text import printable
from cgpt_convert.pickles.trace.cursor import OpcodeReader
from cgpt_convert.sources.local import Source

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_DEEP = 60  # messages in messages; protobuf takes 100
_MOST = 5_000_000  # fields
_LONGEST = 4096  # bytes of a name

Field = str | tuple[int, ...]  # the message that it holds, or the wire types that it may have

_NUMBER: Field = (_VARINT,)
_OPAQUE: Field = (_BYTES,)  # text, bytes or messages that only describe
_NUMBERS: Field = (_VARINT, _BYTES)  # packed or not
_FLOATS: Field = (_FIXED32, _BYTES)
_MESSAGES: dict[str, dict[int, Field]] = {
    "model": {
        **dict.fromkeys((1, 5), _NUMBER),
        **dict.fromkeys((2, 3, 4, 6, 8, 14, 26), _OPAQUE),
        7: "graph",
        20: "training",
        25: "function",
    },
    "graph": {
        **dict.fromkeys((2, 10, 11, 12, 13, 14, 16), _OPAQUE),
        1: "node",
        5: "tensor",
        15: "sparse",
    },
    "training": {1: "graph", 2: "graph", 3: _OPAQUE, 4: _OPAQUE},
    "function": {
        **dict.fromkeys((1, 4, 5, 6, 8, 9, 10, 12, 13, 14), _OPAQUE),
        7: "node",
        11: "attribute",
    },
    "node": {**dict.fromkeys((1, 2, 3, 4, 6, 7, 8, 9, 10), _OPAQUE), 5: "attribute"},
    "attribute": {
        2: (_FIXED32,),
        3: _NUMBER,
        7: _FLOATS,
        8: _NUMBERS,
        20: _NUMBER,
        **dict.fromkeys((1, 4, 9, 13, 14, 15, 21), _OPAQUE),
        5: "tensor",
        6: "graph",
        10: "tensor",
        11: "graph",
        22: "sparse",
        23: "sparse",
    },
    "tensor": {
        1: _NUMBERS,
        2: _NUMBER,
        4: _FLOATS,
        5: _NUMBERS,
        7: _NUMBERS,
        11: _NUMBERS,
        10: (_FIXED64, _BYTES),
        14: _NUMBER,
        13: "outside",
        **dict.fromkeys((3, 6, 8, 9, 12, 16), _OPAQUE),
    },
    "sparse": {1: "tensor", 2: "tensor", 3: _NUMBERS},
    "outside": {1: _OPAQUE, 2: _OPAQUE},
}
_NAMED = {("node", 4), ("node", 7), ("function", 1), ("function", 10), ("outside", 2)}

_STANDARD = ("", "ai.onnx", "ai.onnx.ml", "ai.onnx.preview.training")
# operators of ONNX Runtime that compute; others run Python, load compiled code or name functions
_COMPUTING = (
    "Attention BeamSearch BiasAdd BiasDropout BiasGelu BiasSoftmax BiasSplitGelu CDist "
    "ComplexMul ComplexMulConj DecoderAttention DecoderMaskedMultiHeadAttention "
    "DecoderMaskedSelfAttention DequantizeLinear DynamicQuantizeLSTM DynamicQuantizeMatMul "
    "EmbedLayerNormalization ExpandDims FastGelu FusedConv FusedGemm FusedMatMul "
    "FusedMatMulActivation GatedRelativePositionBias GatherBlockQuantized GatherND Gelu "
    "GemmFastGelu GreedySearch GridSample GroupNorm GroupQueryAttention Inverse Irfft "
    "LongformerAttention MatMulBnb4 MatMulInteger16 MatMulIntegerToFloat MatMulNBits MoE "
    "MulInteger MultiHeadAttention NGramRepeatBlock NhwcConv NhwcFusedConv NhwcMaxPool "
    "PackedAttention PackedMultiHeadAttention Pad QAttention QGemm QLinearAdd "
    "QLinearAveragePool QLinearConcat QLinearConv QLinearGlobalAveragePool QLinearLeakyRelu "
    "QLinearMul QLinearReduceMean QLinearSigmoid QLinearSoftmax QLinearWhere QMoE "
    "QuantizeLinear QuickGelu Range ReduceSumInteger RelativePositionBias RemovePadding "
    "RestorePadding Rfft RotaryEmbedding Sampling SkipGroupNorm SkipLayerNormalization "
    "SkipSimplifiedLayerNormalization SparseAttention Trilu Unique WhisperBeamSearch"
)
_RUNTIME = frozenset(_COMPUTING.split())
_BESIDE = re.compile(r"(?!\.\.?(/|\Z))[\w. -]+(/(?!\.\.?(/|\Z))[\w. -]+)*")  # no absolute path


class _OnnxOperator(NamedTuple):
    domain: str
    name: str


def check(source: Source) -> None:
    """Raise Unsupported unless the whole model is understood and its operators only compute."""
    model = _OnnxFields(OpcodeReader(source))
    try:
        model.message("model", source.nbytes, 0)
    except Malformed as error:
        raise Unsupported(f"the ONNX model is invalid: {error.message}") from None
    unknown = {
        f"{operator.domain}.{operator.name}"
        for operator in model.used - model.defined
        if operator.domain not in _STANDARD
        and not (operator.domain == "com.microsoft" and operator.name in _RUNTIME)
    }
    if unknown:
        listed = ", ".join(printable(name) for name in sorted(unknown)[:_SHOWN])
        raise Unsupported(f"the ONNX model uses operators of other libraries: {listed}")


_SHOWN = 5


class _OnnxFields:
    def __init__(self, data: OpcodeReader) -> None:
        self.data = data
        self.fields = 0
        self.used: set[_OnnxOperator] = set()
        self.defined: set[_OnnxOperator] = set()  # functions of the model itself

    def message(self, kind: str, end: int, depth: int) -> None:
        """Read the fields of a message up to byte `end`."""
        if depth > _DEEP:
            raise Unsupported("the ONNX model is nested too deeply")
        known, texts = _MESSAGES[kind], {}
        while self.data.at < end:
            self.fields += 1
            if self.fields > _MOST:
                raise Unsupported(f"the ONNX model has more than {_MOST:,} fields")
            number, wire = divmod(self.varint(), 8)
            field = known.get(number)
            expected = (_BYTES,) if isinstance(field, str) else field
            if expected is None or wire not in expected:
                raise Malformed(f"unknown field {number} in a {kind}")
            stop = self.skipped(wire)
            if stop > end:
                raise Malformed(f"a {kind} ends inside a field")
            if isinstance(field, str):
                self.message(field, stop, depth + 1)
            elif (kind, number) in _NAMED:
                if number in texts:
                    raise Malformed(f"repeated field {number} in a {kind}")
                texts[number] = self.text(stop)
            else:
                self.data.skip(stop - self.data.at)
        if self.data.at != end:
            raise Malformed(f"a {kind} has the wrong length")
        self.note(kind, texts)

    def note(self, kind: str, texts: dict[int, str]) -> None:
        """Record an operator, and check where data outside the file is."""
        if kind == "node":
            self.used.add(_OnnxOperator(texts.get(7, ""), texts.get(4, "")))
        elif kind == "function":
            self.defined.add(_OnnxOperator(texts.get(10, ""), texts.get(1, "")))
        elif kind == "outside" and not _BESIDE.fullmatch(texts.get(2, "")):
            place = printable(texts.get(2, "")[:200])
            raise Unsupported(f"the ONNX model refers to data outside of its folder: {place}")

    def skipped(self, wire: int) -> int:
        """Return where the field that begins here ends, without its length."""
        if wire == _VARINT:
            self.varint()
            return self.data.at
        nbytes = {_FIXED64: 8, _FIXED32: 4}.get(wire)
        nbytes = self.varint() if nbytes is None else nbytes
        return self.data.at + nbytes

    def varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self.data.next()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:  # noqa: PLR2004
                return value
        raise Malformed("a number is longer than 10 bytes")

    def text(self, stop: int) -> str:
        nbytes = stop - self.data.at
        if nbytes > _LONGEST:
            raise Malformed(f"a name is longer than {_LONGEST:,} bytes")
        return self.data.take(nbytes).decode("utf-8", "backslashreplace")
