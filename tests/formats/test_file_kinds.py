"""What a file is by its content, and what is said of those that are not read."""

import bz2
import gzip
import io
import json
import lzma
import pickle
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from cgpt_convert import open_checkpoint
from cgpt_convert.core.errors import CgptError, Malformed, Unsupported
from cgpt_convert.formats import registry
from cgpt_convert.formats.dcp import dcp_folder
from cgpt_convert.formats.diagnose import refuse
from cgpt_convert.formats.file_kinds import Kind
from cgpt_convert.formats.registry import FormatFile, sniff
from cgpt_convert.formats.torch import torch_files
from cgpt_convert.sources.local import MemoryBytes
from tests.helpers.running import run
from tests.helpers.torch_save import saved, saved_legacy

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
VALUE = {"w": np.ones(300, np.float32)}
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345678\n"


def written(write):
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def zipped(*names):
    def write(file):
        with zipfile.ZipFile(file, "w") as archive:
            for name in names:
                archive.writestr(name, b"x")

    return written(write)


def tarred(name):
    def write(file):
        with tarfile.open(fileobj=file, mode="w") as archive:
            archive.addfile(tarfile.TarInfo(name))

    return written(write)


def kind_of(name):
    return registry.by_name(name).kind


def refused(source, kind=None):
    """The error for a file that no format reads."""
    return refuse(FormatFile(source, source.name, kind or sniff(source)))


TORCH = saved(VALUE)
KINDS = {
    torch_files.ZIP: [
        TORCH,
        zipped("m/data/0", "m/code/x.py", "m/data.pkl"),
        zipped("p/.data/extern_modules"),
    ],
    Kind.CUT_ZIP: [TORCH[:-1], TORCH[:4], TORCH[:900]],
    torch_files.LEGACY: [saved_legacy(VALUE, protocol) for protocol in (1, 2, 4)],
    kind_of("safetensors"): [safetensors.numpy.save(VALUE)],
    kind_of("gguf"): [b"GGUF\3\0\0\0"],
    kind_of("npy"): [written(lambda file: np.save(file, np.ones(3)))],
    kind_of("npz"): [written(lambda file: np.savez(file, a=np.ones(3)))],
    Kind.INDEX: [b'{"metadata": {}, "weight_map": {"w": "a.bin"}}'],
    Kind.ZIP: [zipped("readme.txt"), zipped(), zipped("a/b/data.pkl")],
    Kind.TAR: [tarred("model.bin")],
    Kind.PICKLE: [pickle.dumps({"a": 1}, protocol) for protocol in (2, 3, 4, 5)],
    Kind.PREVIEW: [b"PYTORCH1" + bytes(8)],
    Kind.LFS_POINTER: [LFS],
    Kind.WEB_PAGE: [
        b"<!DOCTYPE html><html><head><title>AddProvenance in</title>",
        b"\xef\xbb\xbf\n  <HTML>",
        b"<!-- made by hand -->\n<html lang=en>",
        b'<?xml version="1.0"?><!DOCTYPE html PUBLIC "x"><html>',
    ],
    Kind.XML: [b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', b"<Error>no"],
    Kind.JSON: [b'{"error": "Entry not found"}', b"[1, 2]"],
    Kind.GZIP: [gzip.compress(TORCH)],
    Kind.BZIP2: [bz2.compress(TORCH)],
    Kind.XZ: [lzma.compress(TORCH)],
    Kind.ZSTD: [b"\x28\xb5\x2f\xfd\x24", b"\x50\x2a\x4d\x18\1\0"],
    Kind.SEVEN_ZIP: [b"7z\xbc\xaf\x27\x1c\0\4"],
    Kind.RAR: [b"Rar!\x1a\x07\x01\0"],
    Kind.HDF5: [b"\x89HDF\r\n\x1a\n"],
    Kind.ONNX: [b"\x08\x08\x12\x07pytorch\x1a\x05"],
    Kind.MOBILE: [b"\x1c\0\0\0PTMF", b"\x1c\0\0\0ET12"],
    Kind.TFLITE: [b"\x1c\0\0\0TFL3"],
    Kind.OLD_GGML: [b"tjgg\1\0\0\0"],
    Kind.PROGRAM: [
        b"\x7fELF\2\1\1",
        b"MZ" + bytes(58) + b"\x40\0\0\0PE\0\0",
        b"\xcf\xfa\xed\xfe\7\0\0\1",
        b"\xca\xfe\xba\xbe\0\0\0\2",
    ],
    Kind.LZ4: [b"\x04\x22\x4d\x18\x64", b"\x02\x21\x4c\x18"],
    Kind.COMPRESSED: [b"\x1f\x9d\x90", b"\x89LZO\0\r\n\x1a\n", b"\xff\6\0\0sNaPpY"],
    Kind.IMAGE: [b"\x89PNG\r\n\x1a\n\0", b"\xff\xd8\xff\xe0", b"GIF89a", b"RIFF\1\0\0\0WEBPVP8 "],
    Kind.AUDIO: [b"RIFF\x24\0\0\0WAVEfmt ", b"fLaC\0", b"OggS\0", b"ID3\3\0"],
    Kind.VIDEO: [b"\0\0\0\x20ftypisom", b"\x1a\x45\xdf\xa3\x01"],
    Kind.FONT: [b"wOFF\0\1\0\0", b"wOF2\0\1\0\0", b"OTTO\0\x0b", b"\0\1\0\0\0\x0f"],
    Kind.PDF: [b"%PDF-1.7\n%\xe2\xe3"],
    Kind.TIME_ZONE: [b"TZif2\0"],
    Kind.EMPTY: [b""],
    Kind.ZEROS: [bytes(5000), b"\0"],
    Kind.TEXT: [b"hello\n", "w\u00f6rter ".encode() * 2000, b"#!/bin/sh\n\x1b[1m"],
    Kind.UNKNOWN: [bytes(5000) + b"x", b"\xff\xfe\x00\x01garbage", bytes(range(256))],
}
CASES = [(kind, data) for kind, many in KINDS.items() for data in many]
READ = {kind for form in registry.built_in() for kind in form.kinds}


@pytest.mark.parametrize(("kind", "data"), CASES, ids=lambda value: getattr(value, "value", ""))
def test_content_tells_the_kind(kind, data):
    assert sniff(MemoryBytes("named.bin", data)) == kind


def test_every_kind_has_an_example():
    elsewhere = {torch_files.TAR, dcp_folder.KIND}  # in test_tar_reader and test_dcp
    assert set(KINDS) | elsewhere == {*Kind, *READ}


@pytest.mark.parametrize(
    ("kind", "data"),
    [(kind, many[0]) for kind, many in KINDS.items() if kind not in READ],
    ids=lambda value: getattr(value, "value", ""),
)
def test_what_is_refused_says_so_in_one_line_and_what_to_do(kind, data):
    error = refused(MemoryBytes("named.bin", data), kind)
    assert isinstance(error, Malformed | Unsupported)
    assert error.where == "named.bin"
    assert error.hint
    assert "\n" not in error.message + error.hint
    assert error.message.isprintable()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (LFS, ["12,345,678 bytes", "sha256:4d7a2146", "git lfs pull"]),
        (KINDS[Kind.WEB_PAGE][0], ["web page titled 'AddProvenance in'", "/resolve/"]),
        (KINDS[Kind.XML][0], ["'AccessDenied'"]),
        (KINDS[Kind.JSON][0], ["'Entry not found'"]),
        (KINDS[Kind.GZIP][0], ["a gzip file", "gunzip"]),
        (TORCH[:900], ["truncated at byte 900 of at least"]),
        (bytes(5000), ["all 5,000 bytes are zero"]),
        (KINDS[Kind.PICKLE][0], ["cgpt-convert scan", "what code loading it would execute"]),
        (b"<html><title>\x1b[31m\nred</title>", ["\\x1b[31m red"]),
    ],
)
def test_the_words_of_a_refusal(data, words):
    source = MemoryBytes("named.bin", data)
    text = str(refused(source))
    for word in words:
        assert word in text


def test_a_shared_prefix_does_not_mislead():
    length = struct.pack("<Q", 2)
    assert sniff(MemoryBytes("x", length + b"{}")) == kind_of("safetensors")
    assert sniff(MemoryBytes("x", struct.pack("<Q", 1 << 40) + b"{}")) != kind_of("safetensors")
    # a torch zip whose data contain another zip's end is still its own kind
    data = saved({"w": np.frombuffer(zipped("readme.txt"), np.uint8)})
    assert sniff(MemoryBytes("x", data)) == torch_files.ZIP


def test_a_damaged_directory_is_for_the_reader_to_explain():
    assert sniff(MemoryBytes("x", TORCH.replace(b"PK\1\2", b"PK\1\3"))) == torch_files.ZIP


def test_a_long_index_is_an_index():
    data = json.dumps({"metadata": {}, "weight_map": {f"w{i}": "a" for i in range(9999)}})
    assert sniff(MemoryBytes("x", data.encode())) is Kind.INDEX


@settings(max_examples=300, deadline=2000)
@given(st.sampled_from(CASES), st.integers(0, 600), st.binary(max_size=40))
def test_any_bytes_have_a_kind_and_any_kind_an_answer(case, at, extra):
    data = case[1][:at] + extra
    source = MemoryBytes("x", data)
    kind = sniff(source)
    if kind not in READ:
        assert isinstance(refused(source, kind), CgptError)


@pytest.mark.parametrize("rest", ["", "/", "/tree/main"])
def test_a_page_of_the_hub_is_answered_with_the_scheme_of_the_hub(rest):
    source = MemoryBytes(f"https://huggingface.co/me/gpt2-x{rest}", b"<!doctype html><html>")
    assert "pass hf://me/gpt2-x" in str(refused(source))
    file = MemoryBytes("https://huggingface.co/me/x/blob/main/a.bin", b"<!doctype html><html>")
    assert "/resolve/" in str(refused(file))


def test_a_safetensors_file_is_one_whatever_the_length_of_its_header():
    """The library pads headers to a multiple of 8. 256 bytes look like the start of a font."""
    kinds = {
        sniff(MemoryBytes("x", n.to_bytes(8, "little") + b'{"":{}}' + bytes(n))): n
        for n in (*range(8, 5_000, 8), *range(65_536, 70_000, 8), 1 << 24)
    }
    assert kinds.keys() == {kind_of("safetensors")}


def test_a_safetensors_file_with_a_header_of_256_bytes_is_read(tmp_path):
    state = {"a" * length: np.ones(2, np.float32) for length in range(1, 3)}
    path = tmp_path / "model.safetensors"
    for length in range(10, 200):
        safetensors.numpy.save_file(state | {"b" * length: np.zeros(1, np.float32)}, path)
        if int.from_bytes(path.read_bytes()[:8], "little") == 256:
            break
    assert path.read_bytes()[:6] == b"\0\1\0\0\0\0"
    assert set(open_checkpoint(path)) == {*state, "b" * length}
    assert run("scan", path).code == 0
