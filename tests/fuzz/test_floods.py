"""What keeps floods cheap, counted: the times that `fuzz.costs` measures depend on the machine."""

from __future__ import annotations

import gzip
import json
import random
import struct
from pathlib import Path

import pytest

from cgpt_convert.cli.table import table
from cgpt_convert.core.errors import Malformed, Unsupported
from cgpt_convert.formats.file_kinds import Kind
from cgpt_convert.formats.safetensors import reader
from cgpt_convert.formats.torch import pickle_stream, truncated_zip, zip_reader
from cgpt_convert.formats.torch.pickle_stream import PickleStream
from cgpt_convert.pickles.decode import decoder
from cgpt_convert.pickles.nodes import Global, Value
from cgpt_convert.pickles.trace.tracer import trace
from cgpt_convert.scanning.allowlist import Allowlist
from cgpt_convert.scanning.result import Verdict
from cgpt_convert.scanning.scanner import FileScanner
from cgpt_convert.sources import unpack
from cgpt_convert.sources.compression import recognise
from cgpt_convert.sources.local import CHUNK, MemoryBytes, Source
from cgpt_convert.sources.local import read as read_source
from cgpt_convert.sources.unpack import UnpackLimit, unpacked
from tests.helpers import zips
from tests.helpers.hostile_pickles import payload
from tests.helpers.running import run
from tests.helpers.scan_files import scanned
from tests.helpers.zips import Entry

COUNT = 1000
EMPTY = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}


def header(entries: object) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


def test_a_name_is_looked_up_once() -> None:
    asked: list[tuple[Value, Value]] = []

    def allowed(module: Value, name: Value) -> bool:
        asked.append((module, name))
        return False

    traced = trace(MemoryBytes("x", b"\x80\4" + b"cteam\nC\n)R0" * COUNT + b"N."), 0, allowed)
    assert asked == [("team", "C")]
    assert [(use.dotted, use.count) for use in traced.uses] == [("team.C", COUNT)]


@pytest.mark.parametrize(
    ("unit", "each"),
    [
        (b"N0", 2),
        (b"ca\nb\n0", 5),
        (b"NQ0", 6),
        (b"\x8c\1a0", 3),
        (b"h\0)R0", 10),
        (b"h\0N\x85R0", 11),
        (b"h\0h\1\x85R0", 11 + 4000 // 128),
    ],
)
def test_what_is_dear_counts_as_several_opcodes(unit: bytes, each: int) -> None:
    start = b"ca\nb\n\x940X" + struct.pack("<I", 4000) + b"a" * 4000 + b"\x940"

    def opcodes(times: int) -> int:
        data = start + unit * times + b"N."
        return trace(MemoryBytes("x", data), 0, lambda *_: False).opcodes

    assert opcodes(COUNT + 1) - opcodes(1) == each * COUNT


def test_one_long_name_widens_no_other_line() -> None:
    long = "k" * 100_000
    lines = table(["name", "dtype"], [[long, "float32"], *([["a", "float32"]] * COUNT)])
    assert lines[1] == f"{long}  float32"
    assert lines[2].split() == ["a", "float32"]
    assert sum(map(len, lines)) < len(long) + 300 * (COUNT + 2)


def test_problems_past_the_twentieth_are_counted(tmp_path: Path) -> None:
    broken = (Entry(f"archive/{n}", b"\x80\4cos\nsystem\n)R(") for n in range(100))
    found = scanned(zips.build(broken), tmp_path)
    assert len(found.problems) == 100
    assert all(check.finding for check in found.checks())
    told = [check.detail for check in found.checks()]
    assert sum("the pickle is damaged" in detail for detail in told) == 20
    assert any(detail.startswith("and 80 more of that kind") for detail in told)


def test_what_is_dangerous_is_not_hidden_behind_what_is_foreign(tmp_path: Path) -> None:
    foreign = b"".join(b"cteam%d\nC\n)R" % number for number in range(30))
    found = scanned(b"\x80\4(" + foreign + b"cos\nsystem\n)Rl.", tmp_path)
    told = [check.detail for check in found.checks()]
    assert "os.system" in told[0]
    assert told[-1] == "and 11 more names (--json has all)"


def test_ties_past_the_hundredth_are_counted(tmp_path: Path) -> None:
    aliases = {f"t{n}": "a" for n in range(COUNT)}
    (tmp_path / "x.safetensors").write_bytes(header({"a": EMPTY, "__metadata__": aliases}))
    words = ("convert", tmp_path / "x.safetensors", "-o", tmp_path / "y.npz", "--dry-run")
    lines = run(*words).out.splitlines()
    assert sum(line.startswith("  tied: ") for line in lines) == 100
    assert "  and 900 more names that are tied (--json has all)" in lines
    assert len(run(*words, "--json").json["aliases"]) == COUNT


def test_a_safetensors_header_has_room_for_so_many_names() -> None:
    def opened(count: int) -> int:
        pairs = {f"{number:05}": "a" for number in range(count)}
        data = header({"a": EMPTY, "__metadata__": pairs})
        return len(reader.from_source(MemoryBytes("x", data), "x"))

    assert opened(8_000) == 8_001
    with pytest.raises(Unsupported, match="1 tensor and 9,000 aliases"):
        opened(9_000)


def test_small_records_are_inflated_once() -> None:
    entries = (zips.deflated(Entry(f"archive/{n}", b"\x80\4N." + bytes(9000))) for n in range(50))
    look = FileScanner(Allowlist())
    look.file(MemoryBytes("x", zips.build(entries)), Kind.ZIP)
    assert look.pickles == 50
    assert look.room.most - look.room.left == 50 * 9004


def test_what_a_damaged_record_would_run_is_still_seen(tmp_path: Path) -> None:
    entry = zips.deflated(Entry("archive/data.pkl", payload(2) + random.Random(0).randbytes(9000)))
    cut = entry.but(data=entry.data[:-4], nbytes=len(entry.raw()), crc=1)
    assert scanned(zips.build([cut]), tmp_path).verdict is Verdict.DANGEROUS


def test_compressed_bytes_are_fed_by_the_small_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    reads: list[int] = []
    feed = unpack.UnpackedPart.unpack

    def fed(self: unpack.UnpackedPart, data: bytes, most: int) -> bytes:
        sizes.append(len(data))
        return feed(self, data, most)

    def counted(source: Source, offset: int, nbytes: int) -> bytes:
        reads.append(nbytes)
        return read_source(source, offset, nbytes)

    monkeypatch.setattr(unpack.UnpackedPart, "unpack", fed)
    monkeypatch.setattr(unpack, "read", counted)
    data = gzip.compress(b"") * 20_000
    method = recognise(data[:10])
    assert method is not None
    assert unpacked(MemoryBytes("x", data), method, UnpackLimit(len(data))).damage is None
    assert max(sizes) <= 16 << 10
    assert sum(reads) == len(data)  # each byte once, and many at once: each read may be a request
    assert len(reads) <= len(data) // CHUNK + 2


def test_a_pickle_of_unknown_length_is_decoded_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    decode = decoder.decode

    def counted(data: bytes, **more: object) -> object:
        tried.append(len(data))
        return decode(data, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(pickle_stream, "decode", counted)
    data = b"(" + b"N" * 900_000 + b"l."
    assert PickleStream(MemoryBytes("x", data + bytes(9 << 20))).unpickle("x").end == len(data)
    assert tried == [4 << 10, 64 << 10, 1 << 20]


def test_one_more_pickle_counts_as_several_opcodes(tmp_path: Path) -> None:
    few, many = (scanned(b"\x80\4N." * count, tmp_path) for count in (10_000, 80_000))
    assert few.verdict is Verdict.CLEAN
    assert many.verdict is Verdict.NOT_SCANNED
    assert any("opcodes" in str(problem) for problem in many.problems)


def test_salvage_words_no_error_of_what_it_only_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(value: Value) -> str:
        raise AssertionError(value)

    pickle = b"\x80\2" + b"NQ0" * COUNT + b"}."
    monkeypatch.setattr(zip_reader, "text", told)
    partial = truncated_zip.salvage(MemoryBytes("x", zips.streamed("a/data.pkl", pickle)))
    assert not partial.checkpoint.tensors


def test_salvage_decodes_a_pickle_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(zip_reader, "decode")
    cut = zips.streamed("a/data.pkl", b"\x80\2" + b"]0" * COUNT + b"}.")
    assert not truncated_zip.salvage(MemoryBytes("x", cut)).checkpoint.tensors


@pytest.mark.parametrize(
    ("records", "shown"),
    [
        ([("a/extra/data.pkl", b"}."), ("a/data.pkl", b"cos\nsystem\n.")], ["os.system"]),
        ([("a/data.pkl", b"}."), ("a/extra/data.pkl", b"cos\nsystem\n.")], []),
    ],
)
def test_salvage_reads_the_pickle_of_the_archive_s_own_folder(
    records: list[tuple[str, bytes]], shown: list[str]
) -> None:
    cut = b"".join(zips.streamed(name, data) for name, data in records)
    assert truncated_zip.salvage(MemoryBytes("x", cut)).checkpoint.globals == shown


def test_an_error_does_not_spell_a_long_number_out() -> None:
    wide = ("storage", Global("torch", "FloatStorage"), "0", "cpu", 1 << 8000)
    with pytest.raises(Malformed) as raised:
        zip_reader.storage_reference(wide)
    assert "0x1000" in raised.value.message  # hex takes no time, decimal digits do
