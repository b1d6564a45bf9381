"""SHA-256 of every output of the program for two fixed models, at any revision of the program.

    python -m tests.helpers.output_digests REVISION    show what differs from the recorded file
    python -m tests.helpers.output_digests REVISION --record NAME ...   record these outputs

The models need no torch: the demo model, and one with the names, order, strides and types of the
vendor's Cerebras-GPT, whose bytes follow from arithmetic alone. `tests/data/output_digests.json`
says at which revision each output was recorded, and why, where that was not the earliest one.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import itertools
import json
import math
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "tests/data/output_digests.json"
MODELS = ("demo", "vendor")
MANY = 8  # files, of which a record is not kept one by one
TYPES = ("float32", "float16", "bfloat16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")

# an output's name to the words of its command; OUT is the folder to write into
OUTPUTS = {
    "safetensors": "convert -o OUT/model.safetensors",
    "safetensors, no provenance": "convert -o OUT/model.safetensors --no-proof",
    "safetensors, bfloat16": "convert -o OUT/model.safetensors --dtype bfloat16",
    "safetensors, float16": "convert -o OUT/model.safetensors --dtype float16",
    "safetensors, tied copied": "convert -o OUT/model.safetensors --tied copy",
    "safetensors, shards": "convert -o OUT/model.safetensors --max-shard-size 300kB",
    "safetensors, selected": "convert -o OUT/model.safetensors --match *.weight --exclude *.h.1.*",
    "npz": "convert -o OUT/model.npz",
    "npz, no provenance": "convert -o OUT/model.npz --no-proof",
    "npz, float16": "convert -o OUT/model.npz --dtype float16",
    "npy": "convert --to npy -o OUT/arrays",
    "npy, no provenance": "convert --to npy -o OUT/arrays --no-proof",
    "torch": "convert -o OUT/model.pt",
    "torch, no provenance": "convert -o OUT/model.pt --no-proof",
    "torch, bfloat16": "convert -o OUT/model.pt --dtype bfloat16",
    "torch, shards": "convert -o OUT/model.bin --max-shard-size 300kB",
    "parameters": "convert --to parameters -o OUT/parameters",
    "parameters, float16": "convert --to parameters -o OUT/parameters --dtype float16",
    "hf": "convert --to hf -o OUT/model --tokenizer TOKENIZER",
    "hf, no provenance": "convert --to hf -o OUT/model --tokenizer TOKENIZER --no-proof",
    "hf, shards": "convert --to hf -o OUT/model --tokenizer TOKENIZER --max-shard-size 300kB",
    "hf, bfloat16": "convert --to hf -o OUT/model --tokenizer TOKENIZER --dtype bfloat16",
    "gguf": "convert -o OUT/model.gguf --no-vocab",
    "gguf, no provenance": "convert -o OUT/model.gguf --no-vocab --no-proof",
    **{f"gguf, {each}": f"convert -o OUT/model.gguf --no-vocab --dtype {each}" for each in TYPES},
    "gguf, vocabulary": "convert -o OUT/model.gguf --tokenizer TOKENIZER",
    "extract": "extract -o OUT/parameters",
    "extract by name": "extract -o OUT/parameters --by name",
    "extract properties": "extract -o OUT/model --properties",
    "extract one tensor": "extract --stdout transformer.h.0.attn.c_attn.weight",
    "lock": "lock -o OUT/tensors.lock",
    "digest": "digest --json",
}

Run = Callable[[list[str]], bytes]  # the words of a command to its standard output


def digests(output: str, source: Path, folder: Path, run: Run) -> dict[str, str]:
    """Write one output into `folder`, which is new; return the SHA-256 of its files, by name.

    Where the files are many, it is that of a list of them, in the form of `sha256sum`.
    """
    folder.mkdir()
    places = {"OUT": str(folder), "TOKENIZER": str(source.parent)}
    words = [_in_place(word, places) for word in OUTPUTS[output].split()]
    standard = run([words[0], str(source), *words[1:]])
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    if not files:
        files = {"standard output": standard.replace(str(source).encode(), b"SOURCE")}
    if len(files) > MANY:
        listed = "".join(f"{sha256(files[name])}  {name}\n" for name in sorted(files))
        files = {f"list of {len(files)} files": listed.encode()}
    return {name: sha256(files[name]) for name in sorted(files)}


def sha256(data: bytes) -> str:
    """Return the digest of `data`, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def cases() -> Iterator[tuple[str, str]]:
    """Yield each model with each output that it has."""
    return ((model, output) for model in MODELS for output in OUTPUTS)


def write_model(model: str, folder: Path) -> Path:
    """Write a source model into `folder`, with its config.json; return the path of the weights."""
    folder.mkdir(parents=True)
    demo = ROOT / "cgpt_convert/demo"
    for name in ("config.json", "merges.txt", "vocab.json", "pytorch_model.bin"):
        shutil.copyfile(demo / name, folder / name)
    path = folder / "pytorch_model.bin"
    if model == "vendor":
        config = json.loads((folder / "config.json").read_bytes()) | VENDOR_CONFIG
        (folder / "config.json").write_text(json.dumps(config))
        path.write_bytes(_vendor_archive())
    return path


def _in_place(word: str, places: Mapping[str, str]) -> str:
    first, slash, rest = word.partition("/")
    return places.get(first, first) + slash + rest


# The vendor-shaped model --------------------------------------------------------------------------

WIDTH, LAYERS, TOKENS, POSITIONS = 64, 2, 2048, 32  # as many tokens as the demo's tokenizer
VENDOR_CONFIG = {
    "n_embd": WIDTH,
    "n_head": 4,
    "n_inner": 4 * WIDTH,
    "n_layer": LAYERS,
    "n_positions": POSITIONS,
    "vocab_size": TOKENS,
    "bos_token_id": TOKENS - 1,
    "eos_token_id": TOKENS - 1,
}


class _Storage(NamedTuple):
    kind: str
    key: str
    data: bytes


class _Strided(NamedTuple):
    """A tensor at the start of a storage."""

    storage: _Storage
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def pickled(self) -> bytes:
        """Return the opcodes of the call by which torch pickles the tensor."""
        kind, key, data = self.storage
        count = len(data) // {"FloatStorage": 4, "ByteStorage": 1}[kind]
        reference = _text("storage"), _name("torch", kind), _text(key), _text("cpu"), _int(count)
        storage = _tuple(*reference) + b"Q"
        shape, strides = (_tuple(*map(_int, each)) for each in (self.shape, self.strides))
        arguments = _tuple(storage, _int(0), shape, strides, b"\x89", ORDERED_DICT)
        return _name("torch._utils", "_rebuild_tensor_v2") + arguments + b"R"


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<i", len(value)) + value.encode()


def _int(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def _tuple(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def _name(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


ORDERED_DICT = _name("collections", "OrderedDict") + b")R"


def _vendor_archive() -> bytes:
    """Return an archive as torch.save writes one: uncompressed, data aligned to 64 bytes."""
    tensors = dict(_vendor_tensors())
    items = b"".join(_text(name) + tensor.pickled() for name, tensor in tensors.items())
    records = {
        "data.pkl": b"\x80\x02" + ORDERED_DICT + b"(" + items + b"u.",
        "byteorder": b"little",
    }
    records |= {f"data/{each.storage.key}": each.storage.data for each in tensors.values()}
    records |= {"version": b"3\n"}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in records.items():
            entry = zipfile.ZipInfo(f"archive/{name}", (1980, 1, 1, 0, 0, 0))
            padding = -(file.tell() + 30 + len(entry.filename) + 4) % 64
            entry.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
            archive.writestr(entry, data)
    return file.getvalue()


def _vendor_tensors() -> Iterator[tuple[str, _Strided]]:
    keys = map(str, itertools.count())

    def stored(*shape: int, data: bytes = b"", kind: str = "FloatStorage") -> _Strided:
        count, key = math.prod(shape), next(keys)
        if not data:  # numbers between -0.5 and 0.5: each exact, none of them special
            raw = hashlib.shake_128(key.encode()).digest(2 * count)
            numbers = struct.unpack(f"<{count}h", raw)
            data = struct.pack(f"<{count}f", *(number / 65536 for number in numbers))
        strides = tuple(math.prod(shape[at + 1 :]) for at in range(len(shape)))
        return _Strided(_Storage(kind, key, data), shape, strides)

    def transposed(rows: int, columns: int) -> _Strided:
        return _Strided(stored(columns, rows).storage, (rows, columns), (1, rows))

    mask = bytes(column <= row for row in range(POSITIONS) for column in range(POSITIONS))
    embedding = stored(TOKENS, WIDTH)
    yield "transformer.wte.weight", embedding
    yield "transformer.wpe.weight", stored(POSITIONS, WIDTH)
    for layer in (f"transformer.h.{number}" for number in range(LAYERS)):
        yield f"{layer}.attn.c_attn.weight", transposed(WIDTH, 3 * WIDTH)
        yield f"{layer}.attn.c_attn.bias", stored(3 * WIDTH)
        square = (1, 1, POSITIONS, POSITIONS)
        yield f"{layer}.attn.bias", stored(*square, data=mask, kind="ByteStorage")
        yield f"{layer}.attn.masked_bias", stored(data=struct.pack("<f", -1e4))
        yield f"{layer}.attn.c_proj.weight", transposed(WIDTH, WIDTH)
        yield f"{layer}.attn.c_proj.bias", stored(WIDTH)
        for norm in ("ln_1", "ln_2"):
            yield f"{layer}.{norm}.weight", stored(WIDTH)
            yield f"{layer}.{norm}.bias", stored(WIDTH)
        yield f"{layer}.mlp.c_fc.weight", transposed(WIDTH, 4 * WIDTH)
        yield f"{layer}.mlp.c_fc.bias", stored(4 * WIDTH)
        yield f"{layer}.mlp.c_proj.weight", transposed(4 * WIDTH, WIDTH)
        yield f"{layer}.mlp.c_proj.bias", stored(WIDTH)
    yield "transformer.ln_f.weight", stored(WIDTH)
    yield "transformer.ln_f.bias", stored(WIDTH)
    yield "lm_head.weight", embedding


# Recording ----------------------------------------------------------------------------------------


def main() -> None:
    """Compare the outputs of a revision with those recorded, and record some if asked to."""
    parser = argparse.ArgumentParser(description="SHA-256 of every output at a revision")
    parser.add_argument("revision", help="of git, such as HEAD~1")
    parser.add_argument("--record", nargs="+", metavar="OUTPUT", help="outputs to record; or 'all'")
    parser.add_argument("--reason", default="", help="why the output changed there")
    options = parser.parse_args()
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.check_output([*git, "rev-parse", options.revision], text=True).strip()
    recorded = json.loads(RECORDED.read_bytes()) if RECORDED.exists() else {}
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch) / "tree"
        subprocess.run([*git, "worktree", "add", "--quiet", "--detach", tree, commit], check=True)
        try:
            now = dict(_recorded_at(tree, Path(scratch), commit[:7]))
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", tree], check=True)
    for name, found in now.items():
        old = recorded.get(name)
        wanted = options.record and ("all" in options.record or name in options.record)
        if old is None or old["files"] != found["files"]:
            print(f"{name}: {'not recorded' if old is None else 'differs'}")  # noqa: T201
            if wanted:
                recorded[name] = found | ({"reason": options.reason} if options.reason else {})
    if options.record:
        RECORDED.write_text(json.dumps(recorded, indent=1) + "\n")


def _recorded_at(tree: Path, scratch: Path, commit: str) -> Iterator[tuple[str, dict[str, Any]]]:
    def run(words: list[str]) -> bytes:
        command = [sys.executable, "-m", "cgpt_convert", *words]
        return subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=tree).stdout

    sources = {model: write_model(model, scratch / model) for model in MODELS}
    for model, path in sources.items():
        yield model, {"revision": commit, "files": {path.name: sha256(path.read_bytes())}}
    for number, (model, output) in enumerate(cases()):
        files = digests(output, sources[model], scratch / f"out{number}", run)
        yield f"{model}: {output}", {"revision": commit, "files": files}


if __name__ == "__main__":
    main()
