"""An entry that cannot be read is listed with the reason, and the others are read."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from torch import nn

from cgpt_convert import open_checkpoint
from tests.helpers import torch_names, zips
from tests.helpers.forged_pickles import Made
from tests.helpers.running import run
from tests.helpers.torch_agreement import agree, bits, check, ignore_deprecation, opened, raw

FLOATS = np.array(
    [[1.0, 1.00390625, -1.01171875], [3.4e38, np.inf, -0.0], [1e-45, 2.5, np.nan]], "<f4"
)


def device_array(array: Any, dtype: torch.dtype) -> Made:
    """A tensor as torch pickles it on a device without storages, here on the CPU."""
    function = torch_names.rebuild_from_numpy
    return Made(function, (array, dtype, "cpu", False))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("order", ["C", "F", "strided", "big-endian"])
def test_device_tensors_saved_as_arrays_are_cast_as_torch_casts(
    dtype: torch.dtype, order: str
) -> None:
    array = {
        "C": FLOATS,
        "F": np.asfortranarray(FLOATS),
        "strided": np.repeat(FLOATS, 2, 0)[::2],
        "big-endian": FLOATS.astype(">f4"),
    }[order]
    checkpoint = opened(zips.saved({"w": device_array(array, dtype), "b": torch.ones(2)}))
    expected = torch.from_numpy(FLOATS).to(dtype)
    assert list(checkpoint) == ["w", "b"]
    assert f"torch.{checkpoint['w'].dtype.name}" == str(dtype)
    nan = torch.isnan(expected)  # NumPy and torch may differ in which bits a NaN has
    ours = torch.frombuffer(bytearray(bits(checkpoint["w"])), dtype=dtype).view(3, 3)
    assert torch.equal(torch.isnan(ours), nan)
    assert torch.equal(ours[~nan], expected[~nan])


def test_device_tensors_saved_as_cpu_tensors_are_cast_as_torch_casts() -> None:
    whole = torch.arange(24.0).view(4, 6) / 7
    function = torch_names.rebuild_from_cpu_tensor
    value = {
        name: Made(function, (part, torch.bfloat16, "cpu", False))
        for name, part in {"t": whole.t(), "part": whole[1:, ::2]}.items()
    }
    agree(
        opened(zips.saved(value)),
        {"t": whole.t().to(torch.bfloat16), "part": whole[1:, ::2].to(torch.bfloat16)},
    )


def test_bytes_of_a_cast_storage_are_the_same_wherever_a_read_begins() -> None:
    value = {"w": device_array(np.arange(100, dtype="<f4"), torch.bfloat16)}
    storage = opened(zips.saved(value))["w"].storage
    expected = raw(torch.arange(100.0).to(torch.bfloat16))
    for offset in (0, 1, 2, 7, 150, 199):
        for size in (1, 2, 3, 50, 200):
            buffer = bytearray(min(size, 200 - offset))
            storage.readinto(offset, memoryview(buffer))
            assert buffer == expected[offset : offset + size]


def test_device_tensors_that_share_an_array_stay_tied() -> None:
    one = device_array(FLOATS, torch.bfloat16)
    value = {"a": one, "b": one, "c": device_array(FLOATS, torch.bfloat16)}
    assert opened(zips.saved(value)).ties == {"b": "a", "c": "a"}


def test_a_device_tensor_without_a_cast_is_listed() -> None:
    value = {"w": device_array(np.arange(3), torch.bfloat16), "b": torch.ones(2)}
    checkpoint = opened(zips.saved(value))
    assert list(checkpoint) == ["b"]
    assert "a cast from int64 to bfloat16 is not supported" in checkpoint.exotic["w"].detail


def test_an_unknown_type_is_listed_by_inspect_and_excluded_by_name(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    value = {"odd": device_array(np.arange(3), torch.bfloat16), "w[0]": torch.ones(2)}
    path.write_bytes(zips.saved(value))
    shown = run("inspect", path)
    assert shown.code == 0
    assert "odd  unreadable: a cast from int64 to bfloat16 is not supported" in shown.out
    assert "CGPT031" in shown.out
    [row] = run("inspect", path, "--json").json["exotic"]
    assert (row["name"], row["kind"], row["dtype"], row["shape"]) == (
        "odd",
        "unreadable",
        None,
        None,
    )
    out, other = tmp_path / "m.safetensors", tmp_path / "other.pt"
    value["odd"] = device_array(np.arange(1, 4), torch.bfloat16)
    other.write_bytes(zips.saved(value))
    for words in (
        ("convert", path, "-o", out),
        ("extract", path, "-o", tmp_path / "raw"),
        ("digest", path),
        ("verify", path, other),
        ("diff", path, other, "--json"),
        ("lock", path, "-o", tmp_path / "x.lock"),
    ):
        result = run(*words)
        assert result.code == 3, words
        assert "odd" in result.err + result.out
        assert re.search("is not supported|not compared", result.err + result.out)
    assert run("convert", path, "-o", out, "--exclude", "odd").code == 0
    assert list(safetensors.numpy.load_file(out)) == ["w[0]"]
    assert run("convert", path, "-o", out, "--overwrite", "--match", "w[0]").code == 0


def test_inspect_of_a_file_that_contradicts_itself_shows_all_and_exits_with_3(
    tmp_path: Path,
) -> None:
    entries = zips.entries_of(zips.saved({"a": torch.ones(3), "b": torch.ones(5)}))
    del entries["archive/data/1"]
    path = tmp_path / "hole.pt"
    path.write_bytes(zips.build(entries.values()))
    shown = run("inspect", path)
    assert shown.code == 3
    assert "b  unreadable: the archive has no record 'archive/data/1'" in shown.out
    out = tmp_path / "o.safetensors"
    assert run("convert", path, "-o", out).code == 3
    assert run("convert", path, "-o", out, "--exclude", "b").code == 0
    assert list(safetensors.numpy.load_file(out)) == ["a"]


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=">i2").reshape(2, 3),
        np.asfortranarray(np.ones((2, 3), "<f8")),
        np.array(1.5),
    ],
    ids=["big-endian", "fortran", "scalar"],
)
def test_a_lone_npy_file_is_a_source_for_every_command(array: Any, tmp_path: Path) -> None:
    path, out = tmp_path / "embed.tokens.npy", tmp_path / "o.safetensors"
    np.save(path, array)
    assert run("inspect", path, "--check", "--stats").code == 0
    assert run("convert", path, "-o", out, "--verify").code == 0
    [(name, value)] = safetensors.numpy.load_file(out).items()
    assert name == "embed.tokens"
    assert np.array_equal(value, array)
    assert run("verify", path, out).code == 0
    assert run("diff", path, out).code == 0
    assert run("digest", path).out.split()[0] == run("digest", out).out.split()[0]
    assert run("lock", path, "-o", tmp_path / "x.lock").code == 0
    assert run("verify", out, "--lock", tmp_path / "x.lock").code == 0
    assert run("extract", path, "-o", tmp_path / "raw").code == 0
    assert run("verify", path, tmp_path / "raw").code == 0
    assert run("scan", path).code == 0


def test_a_lone_npy_file_of_objects_is_unsupported(tmp_path: Path) -> None:
    path = tmp_path / "o.npy"
    np.save(path, np.array([{}, None], object))
    result = run("inspect", path)
    assert result.code == 3
    assert "unpickling" in result.err


def test_an_npz_with_members_that_are_no_arrays_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.npz"
    entries = {"readme.txt": b"hello", "bad.npy": b"\x93NUMPY cut", "w.npy": npy(np.arange(3))}
    path.write_bytes(zips.build(zips.Entry(name, data) for name, data in entries.items()))
    checkpoint = open_checkpoint(path)
    assert checkpoint["w"].numpy().tolist() == [0, 1, 2]
    assert list(checkpoint.exotic) == ["bad"]


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@ignore_deprecation
@pytest.mark.parametrize("whole", [False, True], ids=["TorchScript", "whole module"])
def test_quantized_modules_have_the_names_of_their_state_dict(whole: bool, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2, bias=False))
    torch.backends.quantized.engine = next(
        engine for engine in torch.backends.quantized.supported_engines if engine != "none"
    )
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    path = tmp_path / "script.pt"
    if whole:
        torch.save(quantized, path)
    else:
        torch.jit.script(quantized).save(str(path))
    checkpoint = open_checkpoint(path)
    state = quantized.state_dict()
    packed = {key: value for key, value in state.items() if key.endswith("_packed_params")}
    assert packed
    assert not checkpoint.collisions
    for key, (weight, bias) in packed.items():
        assert bits(checkpoint[f"{key}.0"]) == raw(weight.int_repr())
        assert (f"{key}.1" in checkpoint) == (bias is not None)
        if bias is not None:
            assert bits(checkpoint[f"{key}.1"]) == raw(bias)


def test_ordinary_files_are_as_before() -> None:
    assert not check({"w": torch.ones(2)}).exotic
