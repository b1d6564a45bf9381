"""Every limit of core/limits.py at its edge: what is just allowed, and what is just too much."""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from cgpt_convert.architectures.hf_config_check import read_config
from cgpt_convert.archives.zip_archive import open_archive
from cgpt_convert.core import limits, strict_json
from cgpt_convert.core.errors import CgptError, Malformed, Unsupported
from cgpt_convert.core.limits import PICKLE, MiB, SizeLimit
from cgpt_convert.formats.gguf import reader as gguf_reader
from cgpt_convert.formats.npy import folder
from cgpt_convert.formats.npy.header import array
from cgpt_convert.formats.open import open_checkpoint
from cgpt_convert.formats.raw import writer
from cgpt_convert.formats.registry import sniff
from cgpt_convert.formats.safetensors import reader as safetensors_reader
from cgpt_convert.formats.sharded_reader import read_index
from cgpt_convert.formats.torch.zip_reader import read as read_checkpoint
from cgpt_convert.pickles.decode.decoder import decode
from cgpt_convert.pickles.trace.tracer import Trace, trace
from cgpt_convert.scanning.allowlist import Allowlist
from cgpt_convert.scanning.scanner import FileScanner
from cgpt_convert.sources.local import MemoryBytes
from cgpt_convert.sources.unpack import UnpackLimit
from cgpt_convert.targets.tokenizer.files import read_file
from cgpt_convert.tensors.tensor import Storage
from cgpt_convert.verification.lock_file import read_lock
from tests.helpers import torch_save, zips
from tests.helpers.pickle_agreement import tree
from tests.helpers.zips import Entry


def memory(data: bytes) -> MemoryBytes:
    return MemoryBytes("x", data)


def traced(data: bytes) -> Trace:
    found = trace(memory(data), 0, lambda _module, _name: True)
    if found.fault or found.odd:
        raise Unsupported(found.fault or found.odd)
    return found


def viewed(size: tuple[int, ...], stride: tuple[int, ...]) -> None:
    """A tensor like that over a storage of 24 bytes."""
    view = torch_save.View(np.zeros(6, np.float32), size, stride)
    read_checkpoint(memory(torch_save.saved({"w": view})))


def scanned(data: bytes) -> None:
    look = FileScanner(Allowlist())
    look.file(memory(data), sniff(memory(data)))
    if look.problems:
        raise Unsupported(str(look.problems))


def records(count: int) -> list[Entry]:
    return [Entry(f"a/{number}", b"") for number in range(count)]


def ratio(nbytes: int) -> bytes:
    return zips.build([Entry("a/x", b"\3\0", method=8, crc=0, nbytes=nbytes)])


def nested(levels: int) -> bytes:
    value: list[object] = [object]  # nothing short, which is no level of its own
    for _ in range(levels):
        value = [value]
    return pickle.dumps(value)


def inflating(nbytes: int) -> bytes:
    data = b"\x80\x02X" + struct.pack("<I", nbytes - 8) + bytes(nbytes - 8) + b"."
    return zips.build([zips.deflated(Entry("archive/data.pkl", data))])


def header(nbytes: int) -> bytes:
    return struct.pack("<Q", nbytes) + b"{}".ljust(nbytes)


def npy(nbytes: int) -> bytes:
    text = "{'descr': '|u1', 'fortran_order': False, 'shape': (0,), }".ljust(nbytes - 12)
    return b"\x93NUMPY\2\0" + struct.pack("<I", len(text)) + text.encode()


def gguf_strings(count: int) -> bytes:
    head = b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a"
    return head + struct.pack("<IIQ", 9, 8, count) + bytes(8 * count)


def gguf_bytes(nbytes: int) -> bytes:
    head = b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a"
    left = nbytes - len(head) - 12
    return head + struct.pack("<IQ", 8, left) + bytes(left)


class Edge(NamedTuple):
    """Reading `at(most)` is allowed, `at(most + 1)` raises; `patched` is set to `most` before."""

    most: int
    at: Callable[[int], object]
    patched: str = ""
    error: type[CgptError] = Unsupported


def bounded(data: bytes, **fields: object) -> None:
    decode(data, PICKLE._replace(**fields))  # type: ignore[arg-type]


def file(read: Callable[[str], object], name: str = "x.json") -> Callable[[int], object]:
    """Reading a JSON file of so many bytes, which need not say what it should."""

    def at(nbytes: int) -> None:
        Path(name).write_bytes(b"{}".ljust(nbytes))
        with suppress(Malformed):
            read(name)

    return at


TEN = SizeLimit(10, MiB, 10)
CLAIMED = limits.EXPANSION * 24 + limits.EXPANSION_FLOOR  # over a storage of 24 bytes
FIELD = "cgpt_convert.formats.gguf.fields"
EDGES = {
    "PICKLE.nbytes": Edge(
        9, lambda n: bounded(b"\x8c" + bytes((n - 3,)) + b"k" * (n - 3) + b".", nbytes=9)
    ),
    "PICKLE.opcodes": Edge(10, lambda n: bounded(b"N" + b"\x85" * (n - 2) + b".", opcodes=10)),
    "PICKLE.memo": Edge(10, lambda n: bounded(b"N" + b"\x94" * n + b".", memo=TEN)),
    "PICKLE.kept": Edge(10, lambda n: bounded(b"](" + b"]" * (n - 1) + b"e.", kept=TEN)),
    "PICKLE.names": Edge(
        10, lambda n: bounded(b"(" + b"ca\nb\n" * 9 + b"cc\n" + b"d" * (n - 3) + b"\nt.", names=TEN)
    ),
    "PICKLE.depth": Edge(5, lambda n: bounded(b"(" * n + b"t" * n + b".", depth=5)),
    "PICKLE.integer_bytes": Edge(
        PICKLE.integer_bytes, lambda n: decode(b"\x8b" + struct.pack("<i", n) + b"\1" * n + b".")
    ),
    "PICKLE.line_bytes": Edge(
        PICKLE.line_bytes, lambda n: decode(b"V" + b"k" * (n - 1) + b"\n" + b"." * 9)
    ),
    "INFLATION": Edge(
        MiB, lambda n: read_checkpoint(memory(inflating(n))), "cgpt_convert.core.limits.INFLATION=0"
    ),
    "MEMBERS": Edge(
        3,
        lambda n: open_archive(memory(zips.build(records(n)))),
        "cgpt_convert.archives.zip_directory.MEMBERS",
    ),
    "DIRECTORY_BYTES": Edge(
        3 * 49,
        lambda n: open_archive(memory(zips.build(records(-(-n // 49))))),
        "cgpt_convert.archives.zip_directory.DIRECTORY_BYTES",
    ),
    "NAME_BYTES": Edge(
        limits.NAME_BYTES,
        lambda n: open_archive(memory(zips.build([Entry("k" * n, b"")]))),
        error=Malformed,
    ),
    "DEFLATE_RATIO": Edge(
        2 * limits.DEFLATE_RATIO, lambda n: open_archive(memory(ratio(n))), error=Malformed
    ),
    "NESTING": Edge(limits.NESTING, lambda n: tree(nested(n))),
    "INT64": Edge(
        limits.INT64 - 1,
        lambda n: viewed((0, n), (1, 1)),
        error=Malformed,
    ),
    "RANK": Edge(limits.RANK, lambda n: viewed((1,) * n, (1,) * n)),
    "EXPANSION, EXPANSION_FLOOR": Edge(CLAIMED // 4, lambda n: viewed((n,), (0,))),
    "UNPACKED, UNPACKED_FLOOR": Edge(
        limits.UNPACKED_FLOOR + 9 * limits.UNPACKED, lambda n: UnpackLimit(9).take(n, "x")
    ),
    "SCANNED": Edge(
        10,
        lambda n: scanned(b"\x80\4" + b"N0" * 4 + b"N" + b"\x85" * (n - 10) + b"."),
        "cgpt_convert.scanning.scan_budget.SCANNED=SizeLimit(26, 1 << 40, 26)",  # 16 for a pickle
    ),
    "MEMO_GAP": Edge(
        3 + limits.MEMO_GAP, lambda n: traced(b"\x80\4Nr" + struct.pack("<I", n) + b".")
    ),
    "MEMO_SPARSE": Edge(
        3,
        lambda n: traced(b"N" + b"".join(b"q" + bytes((9 * k,)) for k in range(1, n + 1)) + b"."),
        "cgpt_convert.pickles.trace.trace_stack.MEMO_SPARSE",
    ),
    "JSON_VALUES": Edge(
        3,
        lambda n: strict_json.loads(b'{"a":[' + b",".join([b"1"] * (n - 1)) + b"]}", "x"),
        "cgpt_convert.core.strict_json.JSON_VALUES",
    ),
    "HEADER_BYTES": Edge(
        100,
        lambda n: safetensors_reader.from_source(memory(header(n)), "x"),
        "cgpt_convert.formats.safetensors.reader.HEADER_BYTES",
    ),
    "CONFIG_BYTES": Edge(
        40,
        file(lambda _: read_config("."), "config.json"),
        "cgpt_convert.architectures.hf_config_check.CONFIG_BYTES",
    ),
    "TOKENIZER_BYTES": Edge(
        40, file(read_file), "cgpt_convert.targets.tokenizer.files.TOKENIZER_BYTES"
    ),
    "INDEX_BYTES": Edge(
        40,
        file(lambda path: read_index(path, open_checkpoint)),
        "cgpt_convert.formats.sharded_reader.INDEX_BYTES",
    ),
    "INDEX_BYTES of a lock": Edge(
        40, file(read_lock), "cgpt_convert.verification.lock_file.INDEX_BYTES"
    ),
    "INDEX_BYTES of a mapping": Edge(
        40,
        file(lambda _: writer.read("."), "mapping.json"),
        "cgpt_convert.formats.raw.writer.INDEX_BYTES",
    ),
    "INDEX_BYTES of npy's notes": Edge(
        40,
        file(lambda _: folder.read("."), "tensors.json"),
        "cgpt_convert.formats.npy.folder.INDEX_BYTES",
    ),
    "NPY_HEADER_BYTES": Edge(
        limits.NPY_HEADER_BYTES, lambda n: array(Storage(memory(npy(n)), 0, n, "w"))
    ),
    "GGUF_HEADER_BYTES": Edge(
        100,
        lambda n: gguf_reader.from_source(memory(gguf_bytes(n)), "x"),
        f"{FIELD}.GGUF_HEADER_BYTES",
    ),
    "GGUF_ITEMS": Edge(
        4, lambda n: gguf_reader.from_source(memory(gguf_strings(n)), "x"), f"{FIELD}.GGUF_ITEMS"
    ),
}


@pytest.mark.parametrize("name", EDGES)
def test_a_limit_allows_so_much_and_no_more(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    edge = EDGES[name]
    if edge.patched:
        target, _, value = edge.patched.partition("=")
        monkeypatch.setattr(target, eval(value) if value else edge.most)
    edge.at(edge.most)
    with pytest.raises(edge.error) as error:
        edge.at(edge.most + 1)
    assert type(error.value) is edge.error


def test_20_shares_grow_with_the_pickle_up_to_a_bound() -> None:
    share = SizeLimit(always=10, per=4, most=100)
    assert [share.of(nbytes) for nbytes in (0, 3, 4, 359, 360, 10_000)] == [
        10,
        10,
        11,
        99,
        100,
        100,
    ]


@pytest.mark.parametrize("unit", [b"]", b"}", b"\x8f", b"NNR", b"NQ"])
def test_20_values_that_take_memory_are_counted_to_the_last(unit: bytes) -> None:
    ten = limits.PICKLE._replace(kept=SizeLimit(10, MiB, 10))
    assert decode(b"(" + unit * 10 + b"t.", ten)
    with pytest.raises(Unsupported, match="more than 10 lists"):
        decode(b"(" + unit * 11 + b"t.", ten)


@pytest.mark.parametrize("limit", ["NODES", "NAMES", "REPEATED", "TENSORS"])
def test_20_what_the_walk_may_cost_is_counted_to_the_last(
    limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = np.zeros(2)
    value = {"a": shared, "b": [[1], (pair := ["c", [1]]), pair], "d": np.ones(1)}
    # the values; the characters of their paths; the pair again, and its length; the tensors
    exact = {"NODES": 11, "NAMES": 32, "REPEATED": 3, "TENSORS": 2}[limit]
    (path := tmp_path / "x.pt").write_bytes(torch_save.saved(value))
    monkeypatch.setattr(
        f"cgpt_convert.pickles.flatten.flatten.{limit}", SizeLimit(exact, 1 << 40, exact)
    )
    assert len(open_checkpoint(path)) == 2
    monkeypatch.setattr(
        f"cgpt_convert.pickles.flatten.flatten.{limit}",
        SizeLimit(exact - 1, 1 << 40, exact - 1),
    )
    with pytest.raises(Unsupported, match="for a pickle of its size"):
        open_checkpoint(path)


def test_20_a_tensor_of_many_dimensions_counts_as_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path := tmp_path / "x.pt").write_bytes(torch_save.saved({"a": np.zeros([1] * 64)}))
    for most, enough in ((8, True), (7, False)):
        monkeypatch.setattr(
            "cgpt_convert.pickles.flatten.flatten.TENSORS", SizeLimit(most, 1 << 40, most)
        )
        with nullcontext() if enough else pytest.raises(Unsupported, match="too many tensors"):
            open_checkpoint(path)


def test_20_names_have_a_greatest_length(tmp_path: Path) -> None:
    too_long = torch_save.saved({"k" * (limits.NAME + 1): np.ones(1)})
    path = tmp_path / "x.pt"
    path.write_bytes(torch_save.saved({"k" * limits.NAME: np.ones(1)}))
    assert len(open_checkpoint(path)) == 1
    path.write_bytes(too_long)
    with pytest.raises(Unsupported, match="4,096 characters"):
        open_checkpoint(path)


@pytest.mark.slow  # torch
def test_20_torch_takes_longer_names() -> None:
    import torch

    too_long = torch_save.saved({"k" * (limits.NAME + 1): np.ones(1)})
    assert len(torch.load(io.BytesIO(too_long))) == 1


def test_20_what_tied_tensors_are_tied_to_is_counted_to_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tied = np.zeros(2)
    (path := tmp_path / "x.pt").write_bytes(torch_save.saved({"long": tied, "b": tied, "c": tied}))
    exact = max(len("long" + "b" + "c"), 2 * len("long"))
    monkeypatch.setattr(
        "cgpt_convert.pickles.flatten.flatten.NAMES", SizeLimit(exact, 1 << 40, exact)
    )
    assert open_checkpoint(path).ties == {"b": "long", "c": "long"}
    monkeypatch.setattr(
        "cgpt_convert.pickles.flatten.flatten.NAMES", SizeLimit(exact - 1, 1 << 40, exact - 1)
    )
    with pytest.raises(Unsupported, match="too many characters of names of tied tensors"):
        open_checkpoint(path)


@pytest.mark.slow  # seconds
def test_20_optimizer_state_of_many_small_tensors_fits(tmp_path: Path) -> None:
    def state() -> dict[str, torch_save.Array]:
        return {name: np.zeros(1) for name in ("step", "exp_avg", "exp_avg_sq")}

    value = {"state": {number: state() for number in range(4000)}, "param_groups": [{"lr": 0.1}]}
    (tmp_path / "x.pt").write_bytes(torch_save.saved(value))
    assert len(open_checkpoint(tmp_path / "x.pt")) == 12_000


def test_every_limit_has_an_edge() -> None:
    here = {"PICKLE", "NODES", "REPEATED", "TENSORS", "NAMES", "NAME"}  # further down
    named = {word for name in EDGES for word in name.split(" of ")[0].split(", ")}
    names = {name for name in vars(limits) if name.isupper()} - here
    assert named == names | {f"PICKLE.{name}" for name in PICKLE._fields}
