"""What `--json` prints, and the JSON files that are written, fit the published schemas."""

import json
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from decimal import Decimal
from importlib.resources import files
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from jsonschema import Draft202012Validator

from cgpt_convert import convert, open_checkpoint
from cgpt_convert.cli import COMMANDS, group
from tests.helpers.console import demo_run
from tests.helpers.running import ROOT, run

SCHEMAS = {
    path.name.removesuffix(".json"): json.loads(path.read_text())
    for path in files("cgpt_convert").joinpath("schemas").iterdir()
    if path.name.endswith(".json")
}
WRITTEN = {"weights-lock", "mapping"}  # files, not output


class Tiny(torch.nn.Module):
    """With a buffer that `state_dict()` does not contain."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)
        self.register_buffer("seen", torch.zeros(3), persistent=False)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.layer(values))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's files, and one of each kind that fills keys which are empty for others."""
    home, _ = demo_run(tmp_path_factory.mktemp("schemas"))
    source = home / "pytorch_model.bin"
    checkpoint = open_checkpoint(str(source))
    name = "transformer.ln_f.weight"
    values = checkpoint[name].numpy() * np.float32(1e-30)
    values[:2] = np.nan, np.inf
    convert({**checkpoint, name: values}, str(home / "changed.safetensors"))
    (home / "cut.bin").write_bytes(source.read_bytes()[:5_400_000])
    data = bytearray(source.read_bytes())
    data[2_000_000] ^= 1
    (home / "damaged.bin").write_bytes(data)
    model, optimizer = torch.ones(2, 2), {"step": torch.ones(()), "lr": 0.1}
    torch.save({"model": {"w": model}, "optimizer": optimizer, "epoch": 1}, home / "train.pt")
    with warnings.catch_warnings():  # these types are to be removed from torch
        warnings.simplefilter("ignore")
        quantized = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    odd = {
        "sparse": torch.eye(3).to_sparse(),
        "quantized": quantized,
        "conjugate": torch.ones(2, dtype=torch.complex64).conj(),
        "empty": torch.ones(0),
        "scale": Decimal(1),
    }
    torch.save(odd, home / "odd.pt")
    torch.save(OrderedDict(a=torch.ones(2), c=torch.ones(1)), home / "a.pt")
    torch.save(OrderedDict(b=torch.ones(2), c=torch.zeros(1)), home / "b.pt")
    with warnings.catch_warnings():  # so is TorchScript
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(Tiny()), home / "script.pt")
    (home / "dangerous.bin").write_bytes(pickle.dumps(_Call(), 4))
    (home / "text.pkl").write_bytes(b"\x80\x04junk")
    (home / "link.bin").symlink_to(home / "nothing.bin")
    return home


class _Call:
    def __reduce__(self) -> Any:
        import os

        return os.system, ("true",)


COMMAND_LINES = """
inspect pytorch_model.bin --stats --check
inspect changed.safetensors --stats
inspect damaged.bin --check
inspect model-q8_0.gguf
inspect odd.pt --stats
inspect script.pt
inspect train.pt
inspect npy
inspect parameters
inspect model.npz
scan .
scan odd.pt text.pkl --allow decimal.Decimal --allow some.Name
extract pytorch_model.bin -o out/storages
extract odd.pt -o out/odd
extract cut.bin -o out/cut --salvage
convert train.pt -o out/train.safetensors
convert pytorch_model.bin -o out/half.safetensors --dtype float16
convert changed.safetensors -o out/changed.safetensors --dtype float16 --verify
convert pytorch_model.bin -o out/hf --to hf
convert pytorch_model.bin -o out/model.gguf --dry-run
convert pytorch_model.bin -o out/shards.safetensors --max-shard-size 2MB
convert script.pt -o out/script.safetensors
convert odd.pt -o out/odd.pt --exclude sparse --exclude quantized
convert cut.bin -o out/cut.safetensors --salvage
digest pytorch_model.bin
digest train.pt
digest odd.pt
digest pytorch_model.bin --match *.ln_f.*
lock pytorch_model.bin -o out/lock.json
lock train.pt -o out/train.json --match model.*
verify pytorch_model.bin model.gguf
verify model.safetensors
verify pytorch_model.bin changed.safetensors
verify pytorch_model.bin model-q8_0.gguf --logits --tokens 1,2,3
verify model.gguf --lock out/lock.json
diff pytorch_model.bin model-q8_0.gguf
diff pytorch_model.bin changed.safetensors
diff a.pt b.pt
diff script.pt train.pt
generate pytorch_model.bin --ids 1,2 --max-new-tokens 3
generate model.gguf You --max-new-tokens 3 --stop a
eval pytorch_model.bin --text held-out.txt --context 256 --stride 128
eval pytorch_model.bin --text held-out.txt --against model-q8_0.gguf
models
inspect nothing.bin
inspect vocab.json
inspect cut.bin
convert pytorch_model.bin -o model.npz
convert odd.pt -o out/x.safetensors
""".strip().splitlines()


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_output_fits_the_schema(line: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "out").mkdir(exist_ok=True)
    if "--lock" in line:
        run("lock", "pytorch_model.bin", "-o", "out/lock.json", "--overwrite")
    if line.startswith(("extract", "lock")) or "-o out" in line:
        line += " --overwrite"
    printed = run(*line.split(), "--json").json
    name = "error" if printed.keys() == {"error"} else line.split()[0]
    assert (name == "error") == (line in COMMAND_LINES[-5:] or "out/x" in line)
    validate(name, printed)


@pytest.mark.parametrize("line", ["scan .", "inspect damaged.bin --check", "verify model.gguf"])
def test_reports_fit_the_schema(line: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    validate("report", run(*line.split(), "--format", "json").json)


def test_written_files_fit_the_schema(folder: Path, tmp_path: Path) -> None:
    for name in ("pytorch_model.bin", "odd.pt", "train.pt", "script.pt"):
        lock = tmp_path / f"{name}.json"
        assert run("lock", folder / name, "-o", lock).code == 0
        validate("weights-lock", json.loads(lock.read_text()))
        for by in ("storage", "name"):
            out = tmp_path / name / by
            out.parent.mkdir(exist_ok=True)
            done = run("extract", folder / name, "-o", out, "--by", by, "--exclude", "sparse")
            assert done.code == 0, done.err
            validate("mapping", json.loads((out / "mapping.json").read_text()))
    out = tmp_path / "properties"
    assert run("extract", folder / "pytorch_model.bin", "-o", out, "--properties").code == 0
    validate("mapping", json.loads((out / "parameters" / "mapping.json").read_text()))


def validate(name: str, value: object) -> None:
    errors = Draft202012Validator(SCHEMAS[name]).iter_errors(value)
    assert not [f"{error.json_path}: {error.message}" for error in errors]


def test_every_command_that_prints_json_has_a_schema() -> None:
    context = click.Context(group)
    commands = {name: group.get_command(context, name) for name in COMMANDS}
    print_json = {
        name
        for name, each in commands.items()
        if each and "as_json" in {p.name for p in each.params}
    }
    assert set(SCHEMAS) == print_json | WRITTEN | {"error", "report"}


@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas_are_strict_and_documented(name: str) -> None:
    schema = SCHEMAS[name]
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == Draft202012Validator.META_SCHEMA["$id"]
    page = (ROOT / "docs" / "reference" / "json.md").read_text()
    assert f"(../../cgpt_convert/schemas/{name}.json)" in page
    for each in objects(schema):
        assert "additionalProperties" in each
        for key in each.get("properties", {}):
            assert f"`{key}`" in page, f"{name}: {key}"
    validator = Draft202012Validator(schema)
    assert not validator.is_valid({"no such key": 1})


def test_definitions_of_one_name_are_the_same_in_all_schemas() -> None:
    seen: dict[str, Any] = {}
    for schema in SCHEMAS.values():
        for name, definition in schema.get("$defs", {}).items():
            assert seen.setdefault(name, definition) == definition, name


def objects(schema: object) -> Iterator[dict[str, Any]]:
    """Every schema of an object in a schema."""
    if isinstance(schema, list):
        for each in schema:
            yield from objects(each)
    elif isinstance(schema, dict):
        if schema.get("type") in ("object", ["object", "null"]):
            yield schema
        for each in schema.values():
            yield from objects(each)
