"""One digest for the same weights in whatever container, told apart from any other weights'."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers import vendor
from tests.helpers.gguf_library import from_gguf
from tests.helpers.running import run

HEAD, TABLE = "lm_head.weight", "transformer.wte.weight"


def whole(tensors, title="tensors 1"):
    """docs/reference/digest.md, in as few lines as it takes."""
    lines = [title.encode()]
    for name in sorted(tensors, key=str.encode):
        tensor = torch.as_tensor(tensors[name])
        shape = "x".join(map(str, tensor.shape))
        line = f"{str(tensor.dtype).removeprefix('torch.')} {shape}\n".encode()
        data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        lines.append(
            f"{hashlib.sha256(line + data).hexdigest()} {len(name.encode())} {name}".encode()
        )
    return "sha256:" + hashlib.sha256(b"".join(line + b"\n" for line in lines)).hexdigest()


def model(tensors):
    """The model digest of GPT-2's: canonical names, no masks, a head only if it is no copy."""
    named = {}
    for name, tensor in tensors.items():
        if not re.search(r"\.attn\.(masked_)?bias$", name):
            named[name if name == HEAD else "transformer." + name.removeprefix("transformer.")] = (
                tensor
            )
    if HEAD in named and torch.equal(named[HEAD], named[TABLE]):
        del named[HEAD]
    return whole(named, "model 1 gpt2")


def digests(*words):
    """Both digests that the command prints, the second "" if there is none."""
    result = run("digest", *words)
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    return lines[0], lines[1].split()[0] if len(lines) > 1 else ""


@pytest.fixture(scope="module")
def folder(state, tmp_path_factory):
    """The same weights, by the libraries whose formats they are."""
    folder = tmp_path_factory.mktemp("same")
    vendor.save(state, folder / "views.bin")
    copies = {name: tensor.contiguous().clone() for name, tensor in state.items()}
    vendor.save(copies, folder / "copies.bin")
    vendor.save(dict(reversed(copies.items())), folder / "reversed.bin")
    torch.save(state, folder / "legacy.bin", _use_new_zipfile_serialization=False)
    torch.save({"epoch": 3, "state_dict": {"model": state}}, folder / "nested.ckpt")
    save_file(copies, folder / "library.safetensors")
    np.savez(folder / "library.npz", **{n: t.numpy() for n, t in state.items()})
    np.savez_compressed(folder / "small.npz", **{n: t.numpy() for n, t in state.items()})
    halves = dict(list(copies.items())[:9]), dict(list(copies.items())[9:])
    index: dict[str, str] = {}
    for number, half in enumerate(halves, 1):
        name = f"m-{number:05}-of-00002.safetensors"
        save_file(half, folder / name)
        index |= dict.fromkeys(half, name)
    (folder / "m.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    vendor.write_config(vendor.TINY, folder)
    for command in ("extract", "convert"):
        by = ("--to", "npy") if command == "convert" else ()
        assert run(command, folder / "views.bin", "-o", folder / command, *by).code == 0
    assert run("extract", folder / "views.bin", "-o", folder / "named", "--by", "name").code == 0
    for name, *more in (("model.gguf", "--no-vocab"), ("hf", "--to", "hf")):
        made = run("convert", folder / "views.bin", "-o", folder / name, *more)
        assert made.code == 0, made.err
    return folder


SAME = (
    "views.bin",
    "copies.bin",
    "reversed.bin",
    "legacy.bin",
    "library.safetensors",
    "library.npz",
    "small.npz",
    "m.safetensors.index.json",
    "extract",
    "convert",
    "named",
)


@pytest.mark.parametrize("name", SAME)
def test_whatever_the_container(folder, state, name):
    assert digests(folder / name) == (whole(state), model(state))


def test_the_model_whatever_it_is_called_and_has_besides(folder, state, tmp_path):
    bare = {name.removeprefix("transformer."): t for name, t in state.items() if name != HEAD}
    vendor.save(bare, tmp_path / "bare.bin")
    assert digests(tmp_path / "bare.bin") == (whole(bare), model(state))
    for name in ("hf", "model.gguf"):
        assert digests(folder / name)[1] == model(state), name
    assert model(load_file(folder / "hf" / "model.safetensors")) == model(state)
    assert model(from_gguf(folder / "model.gguf")) == model(state)


def test_another_head_is_another_model(state, tmp_path):
    other = dict(state) | {HEAD: state[HEAD] + 1}
    vendor.save(other, tmp_path / "m.bin")
    found = digests(tmp_path / "m.bin")
    assert found == (whole(other), model(other))
    assert found[1] != model(state)


def test_no_model_where_one_tensor_is_missing(state, tmp_path):
    less = {name: tensor for name, tensor in state.items() if not name.endswith("ln_f.bias")}
    vendor.save(less, tmp_path / "m.bin")
    result = run("digest", tmp_path / "m.bin")
    assert (result.out, result.code) == (whole(less) + "\n", 0)
    assert "no model digest: the tensors have 1 difference from" in result.err


def test_every_type_and_shape_and_name(tmp_path):
    tensors = {
        "scalar": torch.tensor(1.5),
        "empty": torch.empty(0, 3),
        "half": torch.tensor([1.0, -0.0]).half(),
        "größe\n🦊": torch.arange(6).reshape(2, 3).to(torch.bfloat16),
        "big": torch.arange(5, dtype=torch.int64),
        "flags": torch.tensor([True, False]),
        "rows": torch.arange(12.0).reshape(3, 4)[:, 1:3],
        "expanded": torch.ones(1).expand(4),
    }
    vendor.save(tensors, tmp_path / "m.bin")
    assert digests(tmp_path / "m.bin") == (whole(tensors), "")
    shown = run("digest", tmp_path / "m.bin", "--json").json
    assert shown["digest"] == whole(tensors)
    each = {row["name"]: row["sha256"] for row in shown["tensors"]}
    assert each["scalar"] == hashlib.sha256(b"float32 \n" + np.float32(1.5).tobytes()).hexdigest()
    lines = run("digest", tmp_path / "m.bin", "--tensors").out.splitlines()
    assert f"{each['big']}  big" in lines


NAN = 0x7FC00000
CHANGES = {
    "a zero's sign": lambda t: t.view(-1).__setitem__(3, -0.0),
    "a NaN's payload": lambda t: t.view(torch.int32).view(-1).__setitem__(4, NAN + 1),
    "the last element": lambda t: t.view(-1).__setitem__(-1, 7.0),
    "a transpose": lambda t: t.copy_(t.t().clone()),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_any_bit_counts(tmp_path, change):
    tensor = torch.arange(16.0).reshape(4, 4)
    tensor.view(-1)[3] = 0.0
    tensor.view(torch.int32).view(-1)[4] = NAN
    found = set()
    for _ in range(2):
        vendor.save({"w": tensor}, tmp_path / "m.bin")
        found.add(digests(tmp_path / "m.bin")[0])
        change(tensor)
    assert len(found) == 2


def test_names_types_and_shapes_count(tmp_path):
    one = torch.zeros(4, dtype=torch.int32)
    several = [
        {"a": one, "b": one + 1},
        {"a": one + 1, "b": one},
        {"a": one, "c": one + 1},
        {"a": one.view(torch.float32), "b": one + 1},
        {"a": one.reshape(2, 2), "b": one + 1},
        {"a": one},
    ]
    found = set()
    for tensors in several:
        vendor.save(tensors, tmp_path / "m.bin")
        found.add(digests(tmp_path / "m.bin")[0])
    assert len(found) == len(several)


def test_the_choice_is_that_of_convert(folder, state):
    path = folder / "nested.ckpt"
    within = "state_dict.model"
    every = whole({f"{within}.{name}": tensor for name, tensor in state.items()})
    lines = [line.split() for line in run("digest", path).out.splitlines()]
    assert [line[0] for line in lines] == [every, whole(state), model(state)]
    chosen = {name: tensor for name, tensor in state.items() if ".h.0." in name}
    choice = ("--root", within, "--match", "*.h.0.*")
    assert digests(path, *choice)[0] == whole(chosen)
    assert digests(folder / "nested.ckpt", "--root", "state_dict")[0] == whole(
        {f"model.{name}": tensor for name, tensor in state.items()}
    )


def test_damage_is_no_digest(state, tmp_path):
    path = vendor.save(state, tmp_path / "m.bin")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    result = run("digest", path)
    assert result.code == 3
    assert "does not match its checksum" in result.err
    assert Path(path).exists()
