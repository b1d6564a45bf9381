"""No output replaces what it is made from: by the library, whatever the format and the names."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from safetensors.torch import save_file

from cgpt_convert import open_checkpoint
from cgpt_convert.core.errors import BadRequest
from cgpt_convert.formats import registry
from cgpt_convert.targets.plan_conversion import Target, convert
from cgpt_convert.targets.selection import TensorSelection
from cgpt_convert.writing.writer import WriteOptions, write_files, write_folder
from tests.helpers import llama_model
from tests.helpers.running import contents, run

STATE = {"a.weight": torch.arange(600.0).reshape(20, 30).T, "b": torch.arange(7)}


def npz(path: Path) -> None:
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in STATE.items()}
    np.savez_compressed(path, **arrays)


def deflated(path: Path) -> None:
    """torch's file with its records compressed: they are read through another source."""
    torch.save(STATE, path)
    with zipfile.ZipFile(path) as old:
        members = {info.filename: old.read(info) for info in old.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in members.items():
            new.writestr(name, data)


def gguf(path: Path) -> None:
    writer = GGUFWriter(path, "none")
    for name, tensor in STATE.items():
        writer.add_tensor(name, tensor.float().numpy().copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


SOURCES: dict[str, Callable[[Path], None]] = {
    "m.bin": lambda path: torch.save(STATE, path),
    "legacy.bin": lambda path: torch.save(STATE, path, _use_new_zipfile_serialization=False),
    "deflated.bin": deflated,
    "m.npz": npz,
    "m.safetensors": lambda path: save_file({k: t.contiguous() for k, t in STATE.items()}, path),
    "m.gguf": gguf,
}
FILES = [form for form in registry.names() if not registry.by_name(form).folder and form != "gguf"]
FOLDERS = [form for form in registry.names() if registry.by_name(form).folder]


def named(source: Path) -> dict[str, Path]:
    """The source under all the names that lead to it."""
    folder = source.parent
    os.link(source, folder / "hard")
    (folder / "soft").symlink_to(source)
    (folder / "further").symlink_to(folder / "soft")
    (folder / "there").symlink_to(folder, target_is_directory=True)
    return {
        "itself": source,
        "a hard link": folder / "hard",
        "a link": folder / "soft",
        "a link to a link": folder / "further",
        "by way of a link": folder / "there" / source.name,
        "by way of dots": folder / "there" / ".." / folder.name / source.name,
    }


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("form", FILES)
def test_a_file_does_not_replace_its_source(kind: str, form: str, tmp_path: Path) -> None:
    source = tmp_path / "in" / kind
    source.parent.mkdir()
    SOURCES[kind](source)
    names = named(source)
    before = contents(tmp_path)
    for opened in (source, names["a hard link"], names["a link"]):
        checkpoint = open_checkpoint(opened)
        for path in names.values():
            made = convert(checkpoint, TensorSelection(dtype="float32"), Target(form, str(path)))
            with pytest.raises(BadRequest, match="the output would replace the input"):
                made.write(str(path), WriteOptions(overwrite=True))
            with pytest.raises(
                BadRequest, match="the output would replace the input"
            ):  # of the tensors alone
                write_files(made.plans, str(path.parent), WriteOptions(overwrite=True))
    assert contents(tmp_path) == before


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("form", FOLDERS)
def test_a_folder_does_not_replace_what_holds_its_source(
    kind: str, form: str, tmp_path: Path
) -> None:
    source = tmp_path / "in" / "deep" / kind
    source.parent.mkdir(parents=True)
    SOURCES[kind](source)
    (tmp_path / "also").symlink_to(tmp_path / "in", target_is_directory=True)
    before = contents(tmp_path)
    checkpoint = open_checkpoint(source)
    for folder in (tmp_path / "in", tmp_path / "in" / "deep", tmp_path / "also" / "deep"):
        made = convert(checkpoint, TensorSelection(), Target(form, str(folder)))
        with pytest.raises(BadRequest, match="the output would replace the input"):
            made.write(str(folder), WriteOptions(overwrite=True))
        with pytest.raises(
            BadRequest, match="the output would replace the input"
        ):  # of the tensors alone
            write_folder(made.plans, str(folder), WriteOptions(overwrite=True))
    assert contents(tmp_path) == before


def test_an_index_and_its_shards_are_not_replaced(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "m.bin")
    big = Target("safetensors", str(tmp_path / "model.safetensors"), 1000)
    convert(open_checkpoint(tmp_path / "m.bin"), TensorSelection(), big).write(big.output)
    index = tmp_path / "model.safetensors.index.json"
    shards = sorted(tmp_path.glob("*-of-*"))
    assert index.exists()
    assert len(shards) == 2
    before = contents(tmp_path)
    checkpoint = open_checkpoint(index)
    other = convert(checkpoint, TensorSelection(), Target("safetensors", big.output, 100))
    alone = [plan for plan in other.plans if plan.path == index.name]  # the shards are called else
    with pytest.raises(BadRequest, match="the output would replace the input"):
        write_files(other.plans, str(tmp_path), WriteOptions(overwrite=True))
    with pytest.raises(BadRequest, match="the output would replace the input"):
        write_files(alone, str(tmp_path), WriteOptions(True, other.inputs))
    for path in (index, *shards):
        made = convert(checkpoint, TensorSelection(), Target("npz", str(path)))
        with pytest.raises(BadRequest, match="the output would replace the input"):
            write_files(made.plans, str(tmp_path), WriteOptions(overwrite=True))
    assert contents(tmp_path) == before


def test_a_model_does_not_replace_its_configuration_or_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    llama_model.write(tmp_path / "m")
    before = contents(tmp_path)
    checkpoint = open_checkpoint(tmp_path / "m")
    for name in ("config.json", "vocab.json", "merges.txt"):
        target = Target("gguf", str(tmp_path / "m" / name), tokenizer=str(tmp_path / "m"))
        made = convert(checkpoint, TensorSelection(), target)
        with pytest.raises(BadRequest, match="the output would replace the input"):
            made.write(target.output, WriteOptions(overwrite=True))
    with pytest.raises(BadRequest, match="the output would replace the input"):
        convert(checkpoint, TensorSelection(), Target("hf", str(tmp_path / "m"))).write(
            str(tmp_path / "m"), WriteOptions(overwrite=True)
        )
    assert contents(tmp_path) == before


def test_a_leftover_that_is_the_source_is_not_tidied_away(tmp_path: Path) -> None:
    """What a killed run left may be all that there is of the weights."""
    left = tmp_path / ".m.npz.0123abcd.partial"
    torch.save(STATE, left)
    made = convert(open_checkpoint(left), TensorSelection(), Target("npz", str(tmp_path / "m.npz")))
    with pytest.raises(BadRequest, match="a temporary file of this output"):
        made.write(str(tmp_path / "m.npz"))
    assert left.exists()
    inside = tmp_path / ".out.0123abcd.partial" / "m.bin"
    inside.parent.mkdir()
    torch.save(STATE, inside)
    done = run("extract", inside, "-o", tmp_path / "out")
    assert (done.code, inside.exists()) == (2, True)


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_a_lock_does_not_replace_what_it_locks(
    link: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    torch.save(STATE, tmp_path / "m.bin")
    link(tmp_path / "m.bin", tmp_path / "other")
    before = contents(tmp_path)
    for output in ("m.bin", "other"):
        done = run("lock", tmp_path / "m.bin", "-o", tmp_path / output, "--overwrite")
        assert (done.code, "the output would replace the input" in done.err) == (2, True)
    assert contents(tmp_path) == before


def test_what_is_beside_the_source_may_be_replaced(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "m.bin")
    target = Target("npz", str(tmp_path / "m.npz"))
    for _ in range(2):
        made = convert(open_checkpoint(tmp_path / "m.bin"), TensorSelection(), target)
        assert made.write(target.output, WriteOptions(overwrite=True)) == [target.output]
    assert set(np.load(target.output)) >= set(STATE)
