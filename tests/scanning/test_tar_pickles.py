"""Tars: what Python's tarfile finds in one is looked at, or the tar is malformed."""

from __future__ import annotations

import io
import pickle
import random
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from cgpt_convert.archives import tar
from cgpt_convert.core.errors import CgptError
from cgpt_convert.scanning.result import Verdict
from cgpt_convert.sources.local import MemoryBytes
from tests.helpers.scan_files import BAD, scanned, tarred

SUM = slice(148, 156)
KEY = pickle.dumps(1, 2)
STORAGE = b"\x80\2(K\1X\3\0\0\0cpuctorch\nFloatStorage\nt." + struct.pack("<q", 2) + bytes(8)
SYSTEM = {"protocol_version": 1000, "little_endian": True, "type_sizes": {"int": 4}}
PARTS = {
    "sys_info": pickle.dumps(SYSTEM, 2),
    "pickle": pickle.dumps({}, 2),
    "tensors": pickle.dumps(0, 2),
    "storages": KEY + STORAGE + pickle.dumps([], 2),
}
RAN = b"\x80\2cbuiltins\nprint\nX\3\0\0\0ran\x85R."
EVIL = {**PARTS, "storages": KEY + STORAGE + RAN}


def header(name: bytes, nbytes: int, kind: bytes = b"0", **fields: bytes) -> bytes:
    """Return a header with these fields; `total` is the checksum as it is to be written."""
    block = bytearray(512)
    block[: len(name)] = name
    block[100:124] = b"0000644\x000000000\x000000000\0"
    block[124:136] = fields.get("size", b"%011o\0" % nbytes)
    block[136:148] = b"00000000000\0"
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[300 : 300 + len(fields.get("more", b""))] = fields.get("more", b"")
    block[SUM] = b" " * 8
    total = fields.get("form", b"%06o\0 ") % (sum(block) + int(fields.get("shift", b"0")))
    block[SUM] = total
    return bytes(block)


def filled(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def plain(name: str, data: bytes) -> bytes:
    return header(name.encode(), len(data)) + filled(data)


def pax(text: bytes, kind: bytes = b"x") -> bytes:
    """Return an extended header of one line `text`."""
    length = len(text) + 3
    length += len(str(length)) - 1
    line = b"%d %s\n" % (length, text)
    assert len(line) == length
    return header(b"x", len(line), kind) + filled(line)


def whole(*parts: bytes) -> bytes:
    return b"".join(parts) + bytes(1024)


def without(name: str) -> list[bytes]:
    return [plain(other, data) for other, data in PARTS.items() if other != name]


def storages(**fields: bytes) -> bytes:
    data = EVIL["storages"]
    return header(b"storages", len(data), **fields) + filled(data)


REST = without("storages")
DATA = EVIL["storages"]
TORCH: dict[str, bytes] = {
    "plain": whole(storages(), *REST),
    "a signed checksum": whole(storages(more=b"\xff" * 9, shift=b"-2304"), *REST),
    "a checksum 0o": whole(storages(form=b"0o%05o\0"), *REST),
    "a checksum with a sign": whole(storages(form=b"+%06o\0"), *REST),
    "an underscore": whole(storages(form=b"0_0%05o"), *REST),
    "a size behind spaces": whole(storages(size=b"  %09o\0" % len(DATA)), *REST),
    "a size with a sign": whole(storages(size=b"+%010o\0" % len(DATA)), *REST),
    "a size cut by NUL": whole(storages(size=(b"%o\0" % len(DATA)).ljust(12, b"7")), *REST),
    "a size in base 256": whole(storages(size=b"\x80" + len(DATA).to_bytes(11, "big")), *REST),
    "the first header signed": whole(
        storages(more=b"\xff" * 9, shift=b"-2304"), *without("storages")
    ),
    "a pax path": whole(pax(b"path=storages"), plain("other", DATA), *REST),
    "a pax path with a slash": whole(pax(b"path=storages/"), plain("other", DATA), *REST),
    "a long name": whole(
        header(b"././@LongLink", 9, b"L") + filled(b"storages\0"), plain("other", DATA), *REST
    ),
    "a pax path and a long name": whole(
        pax(b"path=storages"),
        header(b"././@LongLink", 6, b"L") + filled(b"other\0"),
        plain("x", DATA),
        *REST,
    ),
    "a long name and a pax path": whole(
        header(b"././@LongLink", 9, b"L") + filled(b"storages\0"),
        pax(b"path=other"),
        plain("x", DATA),
        *REST,
    ),
    "two pax headers": whole(pax(b"path=storages"), pax(b"comment=x"), plain("other", DATA), *REST),
    "a hard link": whole(
        plain("other", DATA),
        header(b"storages", 0, b"1")[:157] + header(b"", 0)[157:],
        *REST,
    ),
    "a member of an unknown type": whole(
        header(b"storages", len(DATA), b"Z") + filled(DATA), *REST
    ),
    "storages twice": whole(plain("storages", PARTS["storages"]), storages(), *REST),
    "behind the end": whole(*REST) + whole(storages()),
    "behind the first block of zeros": bytes(512) + whole(storages(), *REST),
    "behind the first blocks of zeros": bytes(1024) + whole(storages(), *REST),
    "behind one block of zeros": b"".join(REST) + bytes(512) + whole(storages()),
}


@pytest.mark.slow  # torch
@pytest.mark.parametrize("name", TORCH)
def test_what_torch_reads_is_found_or_the_tar_is_malformed(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import torch

    path = tmp_path / "old.pt"
    path.write_bytes(TORCH[name])
    try:
        torch.load(path, weights_only=False)
    except Exception:  # noqa: BLE001  any: what ran before it is what counts
        ran = capfd.readouterr().out == "ran\n"
    else:
        ran = capfd.readouterr().out == "ran\n"
    assert ran or name not in ("plain", "a pax path", "a long name", "storages twice")
    found = scanned(TORCH[name], tmp_path)
    assert found.verdict in (Verdict.DANGEROUS, Verdict.MALFORMED), found
    if name == "plain":
        assert found.verdict is Verdict.DANGEROUS
        assert scanned(tarred(PARTS), tmp_path).verdict is Verdict.CLEAN


def listed(data: bytes) -> dict[str, bytes] | None:
    """Return what Python's tarfile reads, by name; None if it does not open the file."""
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            found = {}
            for each in archive:
                file = archive.extractfile(each) if each.isreg() or each.islnk() else None
                if file is not None:
                    found[each.name] = file.read()
            return found
    except Exception:  # noqa: BLE001  tarfile lets several kinds through
        return None


def walked(data: bytes) -> dict[str, bytes]:
    return {
        member.name: data[member.offset : member.offset + member.nbytes]
        for member in tar.files(MemoryBytes("x", data))
    }


def summed(block: bytes, chance: random.Random) -> bytes:
    """Return the header with a checksum that tarfile takes, in one of its spellings."""
    rest = block[:148] + b" " * 8 + block[156:]
    total = sum(rest)
    if chance.random() < 0.2:
        total -= 256 * sum(byte > 127 for byte in rest)
    forms = ["%06o\0 ", "%07o\0", " %06o\0", "0o%05o\0", "%06o  ", "+%06o\0"]
    text = (chance.choice(forms[:1] * 6 + forms) % total).encode()[:8]
    return block[:148] + text.ljust(8, b"\0") + block[156:]


PIECES: tuple[Callable[[random.Random], bytes], ...] = (
    lambda _: b"\0",
    lambda chance: bytes((chance.randrange(256),)),
    lambda chance: chance.choice((b"0", b"1", b"2", b"5", b"x", b"g", b"L", b"K", b"S", b"Z")),
    lambda chance: b"%011o\0" % chance.choice((0, 1, 512, 513, 1024)),
    lambda _: b"/",
)
PLACES = (0, 1, 99, 100, 124, 130, 134, 135, 156, 157, 257, 263, 345, 346)


@pytest.mark.parametrize("seed", range(6))
def test_of_random_headers_tarfile_finds_nothing_else(seed: int) -> None:
    chance = random.Random(seed)
    forms = (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT)
    names = ["a", "dir/b", "c" * 60]
    accepted = 0
    for _ in range(1500):
        members = {name: bytes(chance.choices(b"xyz", k=chance.randrange(900))) for name in names}
        if chance.random() < 0.5:
            members["n" * 130] = b"long"
        form = chance.choice(forms[:2] if len(members) > len(names) else forms)
        data = bytearray(tarred(members, form=form))
        blocks = [at for at in range(0, len(data), 512) if data[at + 257 : at + 262] == b"ustar"]
        for at in chance.sample(blocks, chance.randrange(1, 3)):
            block = data[at : at + 512]
            for _ in range(chance.randrange(3)):
                piece = chance.choice(PIECES)(chance)
                place = chance.choice(PLACES)
                block[place : place + len(piece)] = piece
            data[at : at + 512] = summed(bytes(block[:512]), chance)
        theirs = listed(bytes(data))
        if theirs is None:
            continue
        assert tar.is_tar_to_tarfile(bytes(data[:512])) or not theirs
        try:
            ours = walked(bytes(data))
        except CgptError:
            continue
        accepted += 1
        for name, content in theirs.items():
            assert content in ours.values(), (name, ours.keys())
        if len(theirs) == len(ours):
            assert {name.isprintable() for name in theirs} != {True} or theirs == ours
    assert accepted > 300


def test_every_file_of_a_tar_is_dangerous_by_its_content(tmp_path: Path) -> None:
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        data = tarred({"config.json": b"{}", "d" * 150: BAD}, form=form)
        assert scanned(data, tmp_path).verdict is Verdict.DANGEROUS


DAMAGED = {
    "its checksum": (148, b"777777"),
    "its checksum and magic": (148, b"777777" + b"\0 0" + b"x" * 120),
    "all of it": (0, b"\x81" * 512),
}


@pytest.mark.parametrize("form", ["ustar", "v7", "padded"])
@pytest.mark.parametrize("damage", DAMAGED)
def test_a_tar_whose_first_header_is_damaged_is_malformed(
    form: str, damage: str, tmp_path: Path
) -> None:
    data = bytearray(bytes(512) * (form == "padded") + tarred({"a": b"1", "b.pkl": RAN}))
    if form == "v7":  # without a magic
        del data[1024 : 1024 + 512]
        data[1024:1024] = header(b"b.pkl", len(RAN)).replace(b"ustar\x0000", bytes(8))
        total = sum(data[1024:1536]) - sum(data[1172:1180]) + 8 * 32
        data[1172:1180] = b"%06o\0 " % total
    at, wrong = DAMAGED[damage]
    at += 512 * (form == "padded")
    data[at : at + len(wrong)] = wrong
    with tarfile.open(fileobj=io.BytesIO(data), ignore_zeros=True) as archive:
        assert "b.pkl" in archive.getnames()
    for name in ("model", "model.pkl"):
        assert scanned(bytes(data), tmp_path, name=name).verdict is Verdict.MALFORMED


@pytest.mark.parametrize("blocks", [1, 2, 9, 5000])
def test_a_tar_behind_blocks_of_zeros_is_malformed(blocks: int, tmp_path: Path) -> None:
    data = bytes(512 * blocks) + tarred({"a.pkl": BAD})
    with tarfile.open(fileobj=io.BytesIO(data), ignore_zeros=True) as archive:
        assert archive.getnames() == ["a.pkl"]
    assert scanned(data, tmp_path).verdict is Verdict.MALFORMED
    assert scanned(bytes(512 * blocks), tmp_path).verdict is Verdict.NOTHING
    assert scanned(bytes(512 * blocks) + b"x" * 700, tmp_path).verdict is Verdict.NOTHING
