"""Files and folders that are not weight files: the message says what they are and what to do."""

from __future__ import annotations

import base64
import json
import re
import shutil
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

import cgpt_convert
from cgpt_convert import open_checkpoint
from cgpt_convert.targets.selection import wanted
from tests.helpers import zips
from tests.helpers.running import Result, run

STATE = {"w": torch.arange(40.0).view(5, 8), "b": torch.zeros(3), "n": torch.ones(2).half()}


@pytest.fixture
def saved(tmp_path: Path) -> bytes:
    torch.save(STATE, tmp_path / "plain.pt")
    return (tmp_path / "plain.pt").read_bytes()


def refused(path: Path, *expected: str, code: int = 3) -> Result:
    result = run("inspect", path)
    assert result.code == code, result
    for words in expected:
        assert words in result.err, result.err
    return result


MANGLED: dict[str, Any] = {
    "CR LF": (lambda b: b.replace(b"\n", b"\r\n"), "from LF to CR LF"),
    "UTF-8": (lambda b: b.decode("latin1").encode(), "from Latin-1 to UTF-8"),
    "replaced": (lambda b: b.decode("utf-8", "replace").encode(), "replaced by U+FFFD"),
    "a mark": (lambda b: b"\xef\xbb\xbf" + b, "a byte order mark"),
    "base64": (base64.encodebytes, "encoded as base64"),
    "twice": (lambda b: b + b, "twice"),
    "resumed too early": (lambda b: b[:900] + b[700:], "200 bytes occur twice"),
    "resumed too late": (lambda b: b[:900] + b[1000:], "100 bytes are missing inside"),
}


@pytest.mark.parametrize("how", MANGLED)
@pytest.mark.parametrize("packed", [False, True], ids=["by torch", "packed again"])
def test_damage_in_transfer_is_told_by_its_kind(
    how: str, packed: bool, saved: bytes, tmp_path: Path
) -> None:
    if packed:
        saved = zips.build(zips.entries_of(saved).values())
    mangle, expected = MANGLED[how]
    path = tmp_path / "mangled.pt"
    path.write_bytes(mangle(saved))
    refused(path, expected)


@pytest.mark.parametrize("how", ["CR LF", "UTF-8", "twice"])
def test_damage_of_other_formats_is_told_too(how: str, tmp_path: Path) -> None:
    values = {"w": torch.arange(-3000, 3000).half(), "i": torch.arange(600, dtype=torch.uint8)}
    mangle, expected = MANGLED[how]
    path = tmp_path / "m.safetensors"
    path.write_bytes(mangle(safetensors.torch.save(values)))
    refused(path, expected)
    torch.save(values, path, _use_new_zipfile_serialization=False)
    path.write_bytes(mangle(path.read_bytes()))
    if how != "twice":  # a legacy stream with bytes behind it is read, with a finding
        refused(path, expected)


def test_sound_files_are_not_called_damaged(tmp_path: Path) -> None:
    """Repeated content and many newlines are no damage in a file that is read."""
    twice = torch.full((4096,), 0x0A0D0A0D, dtype=torch.int32)
    torch.save({"a": twice, "b": twice.clone()}, tmp_path / "m.pt")
    assert run("inspect", tmp_path / "m.pt").code == 0


def test_an_archive_behind_another_is_a_distributed_checkpoint(
    saved: bytes, tmp_path: Path
) -> None:
    torch.save({"other": torch.ones(100)}, tmp_path / "b.pt")
    path = tmp_path / "__0_0.distcp"
    path.write_bytes(saved + (tmp_path / "b.pt").read_bytes())
    refused(path, "several archives", "(DCP), pass its folder")


def test_a_torch_archive_without_its_folder(saved: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for name, entry in zips.entries_of(saved).items():
        target = folder / name.partition("/")[2]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(entry.raw())
    rootless = tmp_path / "rootless.pt"
    with zipfile.ZipFile(rootless, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder))
    refused(rootless, "has no root folder", "zip -0 -r")
    assert list(open_checkpoint(folder)) == list(STATE)
    packed = tmp_path / "model.pt"  # what the hint asks for
    with zipfile.ZipFile(packed, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(tmp_path))
    assert list(open_checkpoint(packed)) == list(STATE) == list(torch.load(packed))


def test_what_macos_packed_again(saved: bytes, tmp_path: Path) -> None:
    entries = [*zips.entries_of(saved).values(), zips.Entry("__MACOSX/._archive", b"x")]
    path = tmp_path / "mac.pt"
    path.write_bytes(zips.build(entries))
    refused(path, "packed again by macOS", "zip -d FILE '__MACOSX/*'")


class Unsavable:
    def __reduce__(self) -> Any:
        raise ValueError("not this one")


def test_a_save_that_failed(tmp_path: Path) -> None:
    path = tmp_path / "failed.pt"
    with pytest.raises(ValueError, match="not this one"):
        torch.save({"a": torch.ones(3), "b": Unsavable()}, path)
    refused(path, "torch.save failed before it wrote a value")


@pytest.mark.filterwarnings("ignore")
def test_a_program_of_torch_export(tmp_path: Path) -> None:
    path = tmp_path / "program.pt2"
    torch.export.save(torch.export.export(nn.Linear(3, 2), (torch.ones(1, 3),)), path)
    refused(path, "torch.export", ".state_dict")


def test_archives_of_weight_files_name_them(saved: bytes, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.zip", "w") as archive:
        archive.writestr("readme.md", "x")
        archive.writestr("folder/plain.pt", saved)
    refused(tmp_path / "w.zip", "a zip archive", "folder/plain.pt")
    with tarfile.open(tmp_path / "w.tar", "w") as tar:
        tar.add(tmp_path / "plain.pt", "x/plain.pt")
    refused(tmp_path / "w.tar", "a tar archive", "x/plain.pt")
    with zipfile.ZipFile(tmp_path / "o.zip", "w") as archive:
        archive.writestr("readme.md", "x")
    refused(tmp_path / "o.zip", "no file in the archive has the suffix")


def test_a_safetensors_header_over_the_limit_is_called_that(tmp_path: Path) -> None:
    path = tmp_path / "long.safetensors"
    size = 100_000_008
    with path.open("wb") as file:
        file.write(struct.pack("<Q", size) + b'{"__metadata__":{"k":"')
        file.truncate(size + 8)
    refused(path, "the header has 100,000,008 bytes", "100,000,000")


def test_a_safetensors_header_that_would_be_over_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hint is carried out where it names an option."""
    monkeypatch.setattr("cgpt_convert.formats.safetensors.writer.HEADER_BYTES", 2_000)
    limited = "the limit of safetensors is 2,000"

    def convert(source: Path, *words: str) -> Result:
        return run("convert", source, "-o", tmp_path / "o.safetensors", "--overwrite", *words)

    torch.save({f"{i}.weight": torch.ones(2) for i in range(16)}, tmp_path / "few.pt")
    result = convert(tmp_path / "few.pt")
    assert (result.code, limited in result.err, "use --no-proof" in result.err) == (3, True, True)
    assert convert(tmp_path / "few.pt", "--no-proof").code == 0

    torch.save({f"{i}.weight": torch.ones(2) for i in range(100)}, tmp_path / "many.pt")
    result = convert(tmp_path / "many.pt")
    assert (result.code, "the header for 100 names" in result.err) == (3, True)
    assert "use --max-shard-size" in result.err
    assert convert(tmp_path / "many.pt", "--max-shard-size", "100B").code == 0

    tied = torch.ones(2)
    torch.save({f"{i}.weight": tied for i in range(200)}, tmp_path / "tied.pt")
    for words in ((), ("--no-proof",), ("--max-shard-size", "1B")):
        result = convert(tmp_path / "tied.pt", *words)
        assert (result.code, "use --to torch" in result.err) == (3, True), result.err
    assert run("convert", tmp_path / "tied.pt", "-o", tmp_path / "o.pt").code == 0


def test_many_long_names_of_one_tensor_are_read(tmp_path: Path) -> None:
    """2,200 of 1,000 characters, more than every pickle may have."""
    value = {"x" * 1000 + str(i): STATE["w"] for i in range(2200)}
    torch.save(value, tmp_path / "names.pt")
    assert list(open_checkpoint(tmp_path / "names.pt")) == list(value)


def made(folder: Path, *names: str) -> Path:
    for name in names:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b"x")
    return folder


def test_folders_of_other_kinds_are_named(tmp_path: Path) -> None:
    states = [f"mp_rank_0{number}_model_states.pt" for number in (0, 1)]
    tag = made(tmp_path / "zero" / "global_step10", *states)
    refused(tmp_path / "zero", "DeepSpeed", f"pass one of them: {tag}")
    refused(tag, "without the optimizer's states", str(tag / states[0]))

    pipeline = made(tmp_path / "sd", "model_index.json", "unet/model.safetensors", "vae/v.bin")
    refused(pipeline, "a diffusers pipeline", str(pipeline / "unet"))

    flax = made(tmp_path / "flax", "flax_model.msgpack", "config.json")
    refused(flax, "Flax weights")
    refused(made(tmp_path / "only", "config.json"), "download is incomplete")
    refused(made(tmp_path / "nothing", "readme.md"), "the folder contains no weights")


def test_the_components_of_a_pipeline_are_listed_and_open_by_themselves(tmp_path: Path) -> None:
    folder = made(tmp_path / "sd", "model_index.json", "scheduler/scheduler_config.json")
    weights = "diffusion_pytorch_model"
    for component in ("unet", "vae"):
        (folder / component).mkdir()
        torch.save(STATE, folder / component / f"{weights}.bin")
        for variant in ("", ".fp16", ".non_ema"):
            state = {f"w{variant}": torch.ones(3)}
            safetensors.torch.save_file(
                state, folder / component / f"{weights}{variant}.safetensors"
            )
    index = {
        "_class_name": "StableDiffusionPipeline",
        "scheduler": ["diffusers", "PNDMScheduler"],
        "safety_checker": [None, None],
        "text_encoder": ["transformers", "CLIPText\x1bModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    result = run("inspect", folder)
    sizes = ", ".join(
        f"'{path.name}' ({path.stat().st_size:,} bytes)"
        for path in sorted((folder / "unet").iterdir())
    )
    first, *rest = result.err.splitlines()
    assert (result.code, first.endswith("which has its weights in subfolders:")) == (3, True)
    assert rest == [
        "  'scheduler' (PNDMScheduler): no weights",
        "  'text_encoder' (CLIPText\\x1bModel): the folder is missing",
        f"  'unet': {sizes}",
        f"  'vae' (AutoencoderKL): {sizes}",
        f"hint: pass one of them: {folder / 'unet'}, {folder / 'vae'}",
    ]
    assert list(open_checkpoint(folder / "unet")) == ["w"]
    (folder / "vae" / f"{weights}.safetensors").unlink()
    assert list(open_checkpoint(folder / "vae")) == list(STATE)


@pytest.mark.parametrize("index", ["{", "[]", "[" * 5000, '{"unet": [1, 2], "vae": "x"}'])
def test_a_pipeline_without_a_readable_index(index: str, tmp_path: Path) -> None:
    folder = made(tmp_path / "sd", "unet/model.safetensors")
    (folder / "model_index.json").write_text(index)
    refused(folder, "a diffusers pipeline", "  'unet': 'model.safetensors' (1 byte)")
    shutil.rmtree(folder / "unet")
    refused(folder, "a diffusers pipeline", "download the weight files too")


def test_a_hub_cache_is_read_by_its_main_branch(saved: bytes, tmp_path: Path) -> None:
    model = tmp_path / "hub" / "models--me--gpt2x"
    made(model, "snapshots/old/readme.md", "snapshots/abc123/readme.md", "blobs/ff")
    (model / "blobs" / "ff").write_bytes(saved)
    snapshot = model / "snapshots" / "abc123"
    (snapshot / "pytorch_model.bin").symlink_to("../../blobs/ff")
    refused(model, "Hugging Face cache", str(model / "snapshots"))  # which of the two is not known
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("abc123")
    for path in (snapshot, model, tmp_path / "hub"):
        assert list(open_checkpoint(path)) == list(STATE)
        assert open_checkpoint(path).path == str(snapshot / "pytorch_model.bin")
    shutil.rmtree(model / "snapshots" / "old")
    (model / "refs" / "main").write_text("../../elsewhere")
    assert list(open_checkpoint(model)) == list(STATE)  # the only one
    made(tmp_path / "hub" / "models--me--other", "snapshots/1/readme.md", "blobs/ff")
    refused(tmp_path / "hub", "Hugging Face cache", "models--me--gpt2x", "models--me--other")


def test_an_index_may_write_its_shards_with_a_dot(saved: bytes, tmp_path: Path) -> None:
    folder = made(tmp_path / "m")
    folder.mkdir()
    (folder / "a.bin").write_bytes(saved)
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(STATE, "./a.bin")}))
    assert list(open_checkpoint(folder)) == list(STATE)
    index.write_text(json.dumps({"weight_map": dict.fromkeys(STATE, ".\\a.bin")}))
    refused(folder, "names shards outside its folder", "without \\")


def test_a_model_of_the_hub_is_asked_for_by_its_scheme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(Path("cerebras/Cerebras-GPT-1.3B"), "hf://cerebras/Cerebras-GPT-1.3B", code=2)
    assert "hf://" not in refused(Path("folder/model.bin"), "no such file", code=2).err
    name = "cerebras/Cerebras-GPT-1.3B@main"
    demo = Path(cgpt_convert.__file__).parent / "demo"
    for words in (
        ("scan", name),
        ("digest", name),
        ("lock", name, "-o", tmp_path / "lock.json"),
        ("diff", name, "b.bin"),
        ("verify", name, "b.bin"),
        ("extract", name, "-o", tmp_path / "out"),
        ("convert", name, "-o", tmp_path / "x.gguf"),
        ("eval", name, "--text", "x.txt"),
        ("generate", name, "A prompt"),
        ("inspect", name, "--mapping", "cerebras-gpt-111m"),
        ("convert", demo, "-o", tmp_path / "x.gguf", "--tokenizer", name),
    ):
        result = run(*words)
        assert (result.code, f" hf://{name}" in result.err) == (2, True), (words, result.err)
    assert "hf://" not in run("scan", "folder/model.bin").err
    assert "hf://" not in refused(tmp_path / "a" / "b", "no such file", code=2).err


def test_a_name_with_brackets_is_matched_by_itself(tmp_path: Path) -> None:
    assert wanted("x[0].w", ["x[0].w"])
    assert not wanted("x[0].w", (), ["x[0].w"])
    assert wanted("x0.w", ["x[0].w"])
    path = tmp_path / "m.pt"
    torch.save({"x[0].w": torch.ones(2), "y": torch.ones(1)}, path)
    hint = run("convert", path, "-o", tmp_path / "o.npz", "--match", "z").err
    shown = re.search(r"first names are (.*)", hint)
    assert shown
    name = shown[1].split(", ")[0]
    assert run("convert", path, "-o", tmp_path / "o.npz", "--match", name).code == 0
