"""GGUF: byte for byte gguf-py's files, and a reader as strict as ggml's own."""

import math
import random
import struct
import subprocess
import sys
from pathlib import Path

import gguf as library
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType
from hypothesis import given
from hypothesis import strategies as st

from cgpt_convert.core.errors import BadRequest, CgptError, Malformed, Unsupported
from cgpt_convert.formats.gguf import fields, reader, writer
from cgpt_convert.plan import Field
from cgpt_convert.sources.local import MemoryBytes
from cgpt_convert.tensors.dtypes import BLOCK_CASTS, BY_GGUF, BY_NAME
from tests.helpers import samples
from tests.helpers.mutations import mutated
from tests.helpers.render import dense, render, request, tensor_bytes, write

ROOT = Path(__file__).parents[2]
F32, I8 = BY_NAME["float32"], BY_NAME["int8"]

FIELDS = (
    Field("general.architecture", "string", "none"),
    *(Field(f"n.{kind}", kind, 7) for kind in ("uint8", "int8", "uint16", "int16")),
    *(Field(f"n.{kind}", kind, 70_000) for kind in ("uint32", "int32", "uint64", "int64")),
    Field("n.float32", "float32", 1e-5),
    Field("n.float64", "float64", 0.1),
    Field("n.bool", "bool", True),
    Field("n.text", "string", "größe 🦊\n"),
    Field("n.strings", "string", ("a", "", "ü")),
    Field("n.numbers", "int32", (1, -2, 3)),
    Field("n.many", "uint8", tuple(range(9))),
    Field("n.flags", "bool", (True, False)),
)


TENSORS = [samples.tensor(f"t.{row.name}", row, seed=n) for n, row in BY_GGUF.items()]


def ours(*tensors, **rest):
    return render(writer.plan(request("f.gguf", *tensors, **rest)))["f.gguf"]


def opened(data):
    return reader.from_source(MemoryBytes("f.gguf", data), "f.gguf")


def theirs(path, fields=(), tensors=(), **options):
    """The file that gguf-py writes, as bytes; it writes the architecture first by itself."""
    writer = library.GGUFWriter(path, "none", **options)
    for field in fields:
        kind = GGUFValueType[field.type.upper()]
        if field.key == "general.architecture":
            continue
        if isinstance(field.value, tuple):
            writer.add_key_value(field.key, list(field.value), GGUFValueType.ARRAY, kind)
        else:
            writer.add_key_value(field.key, field.value, kind)
    for tensor in tensors:
        size = (*tensor.shape[:-1], tensor.shape[-1] // tensor.dtype.block * tensor.dtype.nbytes)
        data = np.frombuffer(tensor_bytes(tensor), "u1").reshape(size)
        writer.add_tensor(tensor.name, data, raw_dtype=GGMLQuantizationType(tensor.dtype.gguf))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(path).read_bytes()


def test_bytes_equal_the_librarys_for_every_type(tmp_path):
    assert ours(*TENSORS, fields=FIELDS) == theirs(tmp_path / "t.gguf", FIELDS, TENSORS)


def test_the_library_finds_every_field_and_tensor(tmp_path):
    write({"f.gguf": ours(*TENSORS, fields=FIELDS)}, tmp_path)
    found = GGUFReader(tmp_path / "f.gguf")
    for field in FIELDS:
        value = found.fields[field.key].contents()
        assert value == pytest.approx(field.value) if "float" in field.type else True
        assert "float" in field.type or value in (field.value, list(np.atleast_1d(field.value)))
    for tensor, back in zip(TENSORS, found.tensors, strict=True):
        assert (back.name, back.tensor_type) == (tensor.name, tensor.dtype.gguf)
        assert tuple(back.shape) == tensor.shape[::-1]
        assert back.data.tobytes() == tensor_bytes(tensor)


def test_everything_comes_back(tmp_path):
    write({"f.gguf": ours(*TENSORS, fields=FIELDS)}, tmp_path)
    found = writer.read(str(tmp_path / "f.gguf"))
    assert list(found) == [tensor.name for tensor in TENSORS]
    for tensor in TENSORS:
        back = found[tensor.name]
        assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
        assert tensor_bytes(back) == tensor_bytes(tensor)
    assert found.metadata["n.float32"] == "1e-05"
    assert found.metadata["n.bool"] == "true"
    assert found.metadata["n.strings"] == "[3 strings]"
    assert found.metadata["n.numbers"] == "[1, -2, 3]"
    assert found.metadata["n.many"] == "[9 uint8s]"
    assert found.metadata["n.text"] == "größe 🦊\n"
    fields = writer.fields(found)
    assert [field.key for field in fields] == [field.key for field in FIELDS]
    exact = [f for f in zip(fields, FIELDS, strict=True) if f[1].type != "float32"]
    assert all(back == field for back, field in exact)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (5,), (2, 1, 3, 4)])
def test_shapes_come_back(shape):
    tensor = samples.tensor("w", F32, shape)
    found = opened(ours(tensor, samples.tensor("x", I8)))
    assert found["w"].shape == shape
    assert tensor_bytes(found["w"]) == tensor_bytes(tensor)


def test_no_tensors_and_no_fields():
    found = opened(ours())
    assert not found
    assert not found.metadata


def test_views_are_written_in_c_order():
    tensor = samples.tensor("w", F32, (3, 4)).transposed()
    assert tensor_bytes(opened(ours(tensor))["w"]) == tensor_bytes(tensor)


def test_metadata_are_strings():
    assert opened(ours(metadata={"note": "a\nb"})).metadata == {"note": "a\nb"}


@given(st.floats(width=32))
def test_float32_are_shown_so_that_they_can_be_told_apart(value):
    (shown,) = opened(ours(fields=(Field("x", "float32", value),))).metadata.values()
    assert struct.pack("<f", float(shown)) == struct.pack("<f", value) or math.isnan(value)


def test_what_it_cannot_hold_is_named_all_at_once():
    bad = [BY_NAME[name] for name in ("bool", "uint16", "complex64")]
    with pytest.raises(Unsupported) as caught:
        ours(*(samples.tensor(f"t.{row.name}", row) for row in bad), samples.tensor("fine", F32))
    assert all(f"'t.{row.name}' ({row.name})" in caught.value.message for row in bad)
    assert "fine" not in caught.value.message
    misfits = [
        samples.tensor("é" * 32, F32),
        samples.tensor("five", F32, (1, 1, 1, 1, 1)),
        dense("rows", "q8_0", (2, 33), bytes(3 * 34)),
    ]
    with pytest.raises(Unsupported) as caught:
        ours(*misfits)
    for said in ("64 bytes", "'five' (5 dimensions", "'rows' (shape 2x33, blocks of 32 elements)"):
        assert said in caught.value.message


def test_names_of_63_bytes_are_held():
    assert list(opened(ours(samples.tensor("n" * 63, F32)))) == ["n" * 63]


def test_aliases_and_shards_are_refused():
    with pytest.raises(Unsupported, match="GGUF does not support tied tensors"):
        ours(samples.tensor("w", F32), aliases={"v": "w"})
    with pytest.raises(BadRequest, match="shards"):
        ours(samples.tensor("w", F32), max_shard_nbytes=4)
    with pytest.raises(Unsupported, match="the same name"):
        ours(samples.tensor("w", F32), samples.tensor("w", I8))


@pytest.mark.parametrize("key", ["", "Upper", "a b", "a..b", "a.", "ü", "general.alignment"])
def test_impossible_keys_are_refused(key):
    with pytest.raises(Unsupported, match="GGUF cannot store these keys"):
        ours(fields=(Field(key, "uint32", 1),))


def test_a_key_given_twice_is_refused():
    with pytest.raises(Unsupported, match=r"'note' \(occurs twice\)"):
        ours(fields=(Field("note", "uint32", 1),), metadata={"note": ""})


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("uint32", -1),
        ("uint32", 1 << 32),
        ("uint8", (1, 256)),
        ("int32", "x"),
        ("string", "\ud800"),
    ],
)
def test_values_that_the_type_cannot_hold_are_refused(kind, value):
    with pytest.raises(BadRequest, match=r"the\.key"):
        ours(fields=(Field("the.key", kind, value),))


# What others wrote


def header(tensors=0, fields=0, version=3):
    return b"GGUF" + struct.pack("<IQQ", version, tensors, fields)


def text(value):
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def info(name="w", dims=(4,), kind=0, offset=0):
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def uint32(key, value):
    return text(key) + struct.pack("<II", 4, value)


def aligned(*parts, to=32):
    data = b"".join(parts)
    return data + bytes(-len(data) % to)


ONE = aligned(header(1), info()) + bytes(32)


def test_the_last_padding_may_be_missing():
    assert opened(ONE[:-16])["w"].shape == (4,)
    assert not opened(ONE[:-16]).findings


def test_bytes_after_the_end_are_a_finding():
    assert "100 bytes" in str(opened(ONE + bytes(84)).findings[0])


def test_version_2_is_read():
    assert list(opened(aligned(header(1, version=2), info()) + bytes(16))) == ["w"]


@pytest.mark.parametrize("alignment", [1, 8, 64, 4096])
def test_other_alignments_are_read(alignment):
    head = header(2, 1) + uint32("general.alignment", alignment) + info()
    second = 16 + -16 % alignment
    data = aligned(head, info("v", offset=second), to=alignment)
    found = opened(data + bytes(second) + b"\1" * 16)
    assert tensor_bytes(found["v"]) == b"\1" * 16


@pytest.mark.parametrize("number", sorted(reader.UNDECODED))
def test_types_that_are_not_decoded_are_listed(number):
    kind = GGMLQuantizationType(number)
    block, nbytes = library.GGML_QUANT_SIZES[kind]
    body = bytes(range(6)) * nbytes
    offset = len(body) + -len(body) % 32
    data = aligned(header(2), info(dims=(2 * block, 3), kind=number), info("v", offset=offset))
    found = opened(data + aligned(body) + b"\2" * 16)
    exotic = found.exotic["w"]
    assert (exotic.kind, exotic.shape) == (kind.name.lower(), (3, 2 * block))
    assert tensor_bytes(exotic.parts[0]) == body
    assert list(found) == ["v"]


def test_every_type_that_the_library_knows_is_known():
    assert {*BY_GGUF, *reader.UNDECODED} == {int(kind) for kind in GGMLQuantizationType}
    for kind, (block, nbytes) in library.GGML_QUANT_SIZES.items():
        row = BY_GGUF.get(kind)
        expected = (row.block, row.nbytes) if row else reader.UNDECODED[kind][1:]
        assert expected == (block, nbytes)


def test_a_type_that_nobody_knows_takes_the_bytes_up_to_the_next():
    data = aligned(header(2), info(kind=99), info("v", offset=64))
    found = opened(data + b"\1" * 64 + b"\2" * 16)
    assert found.exotic["w"].kind == "ggml type 99"
    assert tensor_bytes(found.exotic["w"].parts[0]) == b"\1" * 64
    with pytest.raises(Malformed):
        opened(aligned(header(2), info(kind=99), info("v", offset=1 << 60)) + bytes(64))


def test_big_endian_is_refused_with_the_remedy(tmp_path):
    theirs(tmp_path / "b.gguf", FIELDS, endianess=library.GGUFEndian.BIG)  # codespell:ignore
    with pytest.raises(Unsupported, match="big-endian") as caught:
        writer.read(str(tmp_path / "b.gguf"))
    assert "gguf-convert-endian" in caught.value.hint


@pytest.mark.parametrize("version", [0, 1, 4, 0xFFFF])
def test_other_versions_are_refused(version):
    with pytest.raises(Unsupported, match="version"):
        opened(header(version=version))


HUGE = (1 << 64) - 1
BAD = {
    "magic": b"GGUX" + ONE[4:],
    "tensors that do not fit": header(HUGE),
    "fields that do not fit": header(0, 1 << 40) + bytes(1000),
    "an empty key": header(0, 1) + text("") + struct.pack("<II", 4, 1),
    "a key twice": header(0, 2) + uint32("a", 1) * 2,
    "a key that is not UTF-8": header(0, 1) + text(b"\xff") + struct.pack("<II", 4, 1),
    "a type that there is not": header(0, 1) + text("a") + struct.pack("<II", 13, 1) + bytes(9),
    "an array of arrays": header(0, 1) + text("a") + struct.pack("<IIQ", 9, 9, 1) + bytes(20),
    "a string of 2^64 bytes": header(0, 1) + text("a") + struct.pack("<IQ", 8, HUGE),
    "an array of 2^64 bytes": header(0, 1) + text("a") + struct.pack("<IIQ", 9, 0, HUGE),
    "an array of 2^40 doubles": header(0, 1) + text("a") + struct.pack("<IIQ", 9, 12, 1 << 40),
    "alignment 0": header(0, 1) + uint32("general.alignment", 0),
    "alignment 24": header(0, 1) + uint32("general.alignment", 24),
    "alignment as text": header(0, 1)
    + text("general.alignment")
    + struct.pack("<I", 8)
    + text("32"),
    "a name of 64 bytes": aligned(header(1), info("n" * 64)) + bytes(32),
    "a name twice": aligned(header(2), info(), info(offset=32)) + bytes(64),
    "five dimensions": aligned(header(1), info(dims=(1,) * 5)) + bytes(32),
    "a dimension of 2^63": aligned(header(1), info(dims=(1 << 63,))) + bytes(32),
    "a product of 2^64": aligned(header(1), info(dims=(1 << 32, 1 << 32))) + bytes(32),
    "0 times 2^64": aligned(header(1), info(dims=(0, 1 << 32, 1 << 32))) + bytes(32),
    "rows of half blocks": aligned(header(1), info(dims=(48,), kind=8)) + bytes(64),
    "rows of half k-blocks": aligned(header(1), info(dims=(128,), kind=14)) + bytes(512),
    "an offset too large": aligned(header(1), info(offset=32)) + bytes(64),
    "a gap": aligned(header(2), info(), info("v", offset=64)) + bytes(96),
    "an overlap": aligned(header(2), info(), info("v", offset=0)) + bytes(96),
    "data cut off": ONE[:-17],
    "no data": ONE[:-32],
}


@pytest.mark.parametrize("what", BAD)
def test_malformed_files_are_refused(what):
    with pytest.raises(Malformed):
        opened(BAD[what])


def test_too_many_strings_are_refused_before_they_cost_anything(monkeypatch):
    monkeypatch.setattr(fields, "GGUF_ITEMS", 4)
    strings = tuple("abc")
    assert opened(ours(fields=(Field("a", "string", strings),))).metadata
    with pytest.raises(Unsupported, match="more strings than the limit of 4"):
        opened(ours(fields=(Field("a", "string", strings), Field("b", "string", strings))))


def test_too_long_a_header_is_refused(monkeypatch):
    monkeypatch.setattr(fields, "GGUF_HEADER_BYTES", 100)
    with pytest.raises(Unsupported, match="the limit is 100"):
        opened(ours(fields=FIELDS))


WHOLE = ours(*TENSORS, fields=FIELDS)


def test_every_cut_is_noticed():
    for size in range(0, len(WHOLE) - 32, 5):
        with pytest.raises(CgptError):
            opened(WHOLE[:size])


@given(mutated(WHOLE))
def test_damage_never_ends_in_another_error(data):
    try:
        found = opened(data)
    except CgptError:
        return
    for tensor in found.values():
        tensor_bytes(tensor)
    assert len(str(found.metadata)) < 10_000


# ggml's reader in a process of its own: what it makes of each file, one letter a file
VERDICTS = """
import ctypes, os, sys
from tests.helpers.llama_logits import library

class Params(ctypes.Structure):
    _fields_ = [("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p)]

lib = library()
silent = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
lib.llama_log_set(silent, None)
lib.gguf_init_from_file.restype = ctypes.c_void_p
lib.gguf_init_from_file.argtypes = [ctypes.c_char_p, Params]
paths = sorted(os.scandir(sys.argv[1]), key=lambda entry: int(entry.name))
verdicts = [lib.gguf_init_from_file(os.fsencode(p.path), Params(True, None)) for p in paths]
with open(sys.argv[2], "w") as file:
    file.write("".join("y" if verdict else "n" for verdict in verdicts))
os._exit(0)
"""


def test_ggml_agrees_on_which_headers_are_right(tmp_path):
    files = [WHOLE, ONE, *BAD.values(), *damaged(WHOLE, 400)]
    folder = tmp_path / "files"
    folder.mkdir()
    for number, data in enumerate(files):
        (folder / str(number)).write_bytes(data)
    command = [sys.executable, "-c", VERDICTS, folder, tmp_path / "verdicts"]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    for data, verdict in zip(files, (tmp_path / "verdicts").read_text(), strict=True):
        assert verdict == ours_of(data) or ours_of(data) == "differs"


def ours_of(data):
    """Our verdict in ggml's letters; "differs" where it is known to be another, on purpose.

    ggml does not look whether data are there, or names UTF-8; we list types that nobody knows.
    """
    try:
        found = opened(data)
    except CgptError as error:
        ours_only = ("truncated", "UTF-8", "too large", "too short")
        return "differs" if any(words in str(error) for words in ours_only) else "n"
    unknown = any(each.kind.startswith("ggml type") for each in found.exotic.values())
    return "differs" if unknown else "y"


def damaged(data, count):
    """Files with some bytes of the header changed."""
    chance = random.Random(5)
    for _ in range(count):
        changed = bytearray(data)
        for _ in range(chance.randint(1, 2)):
            changed[chance.randrange(1600)] = chance.choice(
                (0, 1, 2, 8, 255, chance.randrange(256))
            )
        yield bytes(changed)


LIGHT = """
import sys
from cgpt_convert.formats.gguf import writer as gguf
found = gguf.read(sys.argv[1])
assert found.metadata
heavy = {"numpy", "zipfile", "torch", "pathlib", "hashlib", "gguf"} & set(sys.modules)
assert not heavy, heavy
"""


def test_reading_imports_nothing_heavy(tmp_path):
    write({"f.gguf": WHOLE}, tmp_path)
    subprocess.run([sys.executable, "-c", LIGHT, tmp_path / "f.gguf"], check=True, cwd=ROOT)


def test_every_block_type_is_a_format_type():
    assert {BY_NAME[name] for name in BLOCK_CASTS} <= set(writer.DTYPES)
