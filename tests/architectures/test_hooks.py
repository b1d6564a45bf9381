"""An architecture that is a TOML file only: every command reads it, and none writes it wrongly."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import cgpt_convert
from cgpt_convert.architectures.hooks import FEATURES, Feature, has_hook, hook, with_hook
from cgpt_convert.architectures.schema import architectures
from cgpt_convert.core.errors import Unsupported
from tests.architectures.test_toml_files import elsewhere
from tests.helpers.running import contents, run

DEMO = Path(cgpt_convert.__file__).parent / "demo"
HEAD = """
name = "gpt_neo"
model_types = ["gpt_neo"]
prefixes = ["transformer.", ""]
anchors = [["h.{i}.attn.attention.q_proj.weight"]]
skipped = ["h.{i}.attn.attention.bias"]
config = { keys = { n_layer = ["num_layers"], n_embd = ["hidden_size"] }, defaults = {} }
"""
GGUF = """
[gguf]
architecture = "gpt_neo"
keys = { n_layer = "block_count", n_embd = "embedding_length" }
"""
TENSORS = """
[[tensors]]
name = "wte.weight"
shape = ["vocab_size", "n_embd"]
names = { gguf = "token_embd.weight", raw = "input/wte" }

[[tensors]]
name = "h.{i}.attn.attention.q_proj.weight"
shape = ["n_embd", "n_embd"]
names = { gguf = "blk.{i}.attn_q.weight", raw = "decoder{i+1}/q" }

[[tensors]]
name = "h.{i}.mlp.c_fc.weight"
shape = ["4*n_embd", "n_embd"]
names = { gguf = "blk.{i}.ffn_up.weight", raw = "decoder{i+1}/up" }
"""
CONFIG = {"model_type": "gpt_neo", "num_layers": 2, "hidden_size": 32, "num_heads": 4}


@pytest.fixture(autouse=True)
def mappings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """GPT-2's mappings and a second architecture's, which names what llama.cpp would call it."""
    folder = tmp_path_factory.mktemp("mappings")
    shutil.copytree(Path(__file__).parents[2] / "mappings", folder, dirs_exist_ok=True)
    (folder / "architectures/gpt_neo.toml").write_text(HEAD + GGUF + TENSORS)
    with pytest.MonkeyPatch.context() as patch, elsewhere(folder, patch):
        yield


def weights(prefix: str = "transformer.") -> dict[str, np.ndarray]:
    random = np.random.default_rng(5)
    shapes = {"wte.weight": (50, 32)}
    for layer in range(2):
        shapes[f"h.{layer}.attn.attention.q_proj.weight"] = (32, 32)
        shapes[f"h.{layer}.mlp.c_fc.weight"] = (128, 32)
    return {
        f"{prefix}{name}": random.normal(size=shape).astype(np.float32)
        for name, shape in shapes.items()
    }


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder of transformers', with a tokenizer beside the weights."""
    return saved(tmp_path / "model", weights())


def saved(folder: Path, tensors: dict[str, np.ndarray], **config: object) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(DEMO / name, folder)
    return folder


def refused(feature: Feature, *words: object) -> None:
    """The command ends as for what is not supported, and names the architecture and the feature."""
    done = run(*words)
    assert (done.code, done.raw) == (3, b""), done.err
    assert f"{FEATURES[feature]} is not supported for gpt_neo" in " ".join(done.err.split())


def test_inspect_says_what_it_is(model: Path) -> None:
    found = run("inspect", model, "--json").json["model"]
    sizes = {key: found[key] for key in ("n_layer", "n_embd", "vocab_size")}
    assert (found["architecture"], sizes) == (
        "gpt_neo",
        {"n_layer": 2, "n_embd": 32, "vocab_size": 50},
    )
    assert (found["misfits"], found["config"], found["head"]) == ([], [], "absent")
    assert "gpt_neo (size not in the model table): 2 layers, width 32" in run("inspect", model).out


def test_inspect_shows_an_architecture_whose_width_has_no_size(tmp_path: Path, model: Path) -> None:
    other = (HEAD + TENSORS).replace("n_embd", "d_model").replace("gpt_neo", "narrow")
    folder = tmp_path / "mappings"
    shutil.copytree(Path(__file__).parents[2] / "mappings", folder)
    (folder / "architectures/narrow.toml").write_text(other)
    with pytest.MonkeyPatch.context() as patch, elsewhere(folder, patch):
        done = run("inspect", model)
    assert done.code == 0
    assert "narrow (size not in the model table): 2 layers\n" in done.out


def test_an_untied_model_without_a_tied_rule_has_no_warning(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", weights(), tie_word_embeddings=False)
    assert run("inspect", folder, "--json").json["model"]["config"] == []
    assert run("convert", folder, "-o", tmp_path / "out", "--to", "hf").code == 0


def test_digest_diff_and_verify_know_its_names(tmp_path: Path, model: Path) -> None:
    bare = saved(tmp_path / "bare", weights(""))
    ours, theirs = (run("digest", each, "--json").json for each in (model, bare))
    assert ours["model"] == theirs["model"]
    assert ours["architecture"] == "gpt_neo"
    assert run("diff", model, bare).code == 0
    assert run("verify", model, bare).code == 0
    changed = weights("")
    changed["wte.weight"][0, 0] += 1
    assert run("diff", model, saved(tmp_path / "changed", changed)).code == 1
    assert run("verify", model, tmp_path / "changed").code == 1


def test_a_lock_of_it_passes_for_its_other_names(tmp_path: Path, model: Path) -> None:
    lock = tmp_path / "weights.lock.json"
    assert run("lock", model, "-o", lock).code == 0
    bare = saved(tmp_path / "bare", weights(""))
    assert run("verify", bare, "--lock", lock).code == 0


@pytest.mark.parametrize("name", ["m.safetensors", "m.bin", "m.npz", "npy", "raw"])
def test_formats_that_hold_any_tensors_hold_it(tmp_path: Path, model: Path, name: str) -> None:
    words = ("--to", name) if "." not in name else ("--to", "torch") if name == "m.bin" else ()
    done = run("convert", model, "-o", tmp_path / name, *words)
    if name == "raw":
        done = run("extract", model, "-o", tmp_path / name, "--overwrite")
    assert done.code == 0, done.err
    assert run("verify", model, tmp_path / name).code == 0


def test_a_folder_for_transformers_is_a_copy(tmp_path: Path, model: Path) -> None:
    out = tmp_path / "out"
    done = run("convert", model, "-o", out, "--to", "hf")
    assert done.code == 0, done.err
    assert "there are no --to hf rules for gpt_neo" in " ".join(done.out.split())
    ours, theirs = contents(model), contents(out)
    for name in ("config.json", "vocab.json", "merges.txt"):
        assert ours[name] == theirs[name]
    written = load_file(out / "model.safetensors")
    assert all((written[name] == each).all() for name, each in weights().items())
    assert written.keys() == weights().keys()


def test_a_configuration_that_contradicts_the_tensors_is_told(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", weights(), hidden_size=64)
    done = run("convert", folder, "-o", tmp_path / "out", "--to", "hf")
    assert done.code == 0
    assert "hidden_size 64, but the tensors have 32" in " ".join(done.out.split())


@pytest.mark.parametrize("prefix", ["module.transformer.", "student.transformer."])
def test_a_folder_for_transformers_needs_rules_to_unwrap(tmp_path: Path, prefix: str) -> None:
    folder = saved(tmp_path / "model", weights(prefix))
    refused("hf", "convert", folder, "-o", tmp_path / "out", "--to", "hf")
    assert not (tmp_path / "out").exists()


def test_a_folder_for_transformers_needs_rules_to_make_a_configuration(
    tmp_path: Path, model: Path
) -> None:
    (model / "config.json").unlink()
    refused("hf", "convert", model, "-o", tmp_path / "out", "--to", "hf")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [(), ("--no-vocab",), ("--dtype", "q8_0")])
def test_no_gguf_is_written(tmp_path: Path, model: Path, words: tuple[str, ...]) -> None:
    refused("gguf", "convert", model, "-o", tmp_path / "m.gguf", *words)
    assert not list(tmp_path.glob("*.gguf*"))


@pytest.mark.parametrize(
    "words",
    [
        ("generate", "--ids", "1,2"),
        ("generate", "Hello"),
        ("eval", "--text", DEMO / "held-out.txt"),
    ],
)
def test_it_is_not_computed(model: Path, words: tuple[object, ...]) -> None:
    command, *rest = words
    refused("forward", command, model, *rest)
    (model / "config.json").unlink()
    refused("forward", command, model, *rest)


def test_logits_are_not_compared(model: Path) -> None:
    refused("forward", "verify", model, model, "--logits")


def test_no_properties_are_written(tmp_path: Path, model: Path) -> None:
    refused("java_program", "extract", model, "-o", tmp_path / "out", "--properties")
    assert not (tmp_path / "out").exists()


def test_a_configuration_of_gpt2_is_not_taken_for_it(tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    save_file({"w": np.zeros(3, np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architectures": ["GPT2LMHeadModel"]}))
    done = run("convert", folder, "-o", tmp_path / "out", "--to", "hf")
    assert done.code == 3
    assert "describes a gpt2 model" in " ".join(done.err.split())


def test_a_gguf_file_of_it_is_read_under_its_names(tmp_path: Path, model: Path) -> None:
    names = {"wte.weight": "token_embd.weight"}
    for layer in range(2):
        names[f"h.{layer}.attn.attention.q_proj.weight"] = f"blk.{layer}.attn_q.weight"
        names[f"h.{layer}.mlp.c_fc.weight"] = f"blk.{layer}.ffn_up.weight"
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "gpt_neo")
    writer.add_uint32("gpt_neo.block_count", 2)
    for name, values in weights("").items():
        writer.add_tensor(names[name], values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert run("inspect", path, "--json").json["model"]["architecture"] == "gpt_neo"
    ours, theirs = (run("digest", each, "--json").json["model"] for each in (model, path))
    assert ours == theirs
    assert run("verify", model, path).code == 0
    refused("hf", "convert", path, "-o", tmp_path / "out", "--to", "hf")
    assert run("convert", path, "-o", tmp_path / "out.gguf").code == 3
    refused("forward", "generate", path, "--ids", "1,2")
    assert not list(tmp_path.glob("out*"))


def test_no_module_outside_its_folder_names_the_modules_of_gpt2() -> None:
    package = Path(cgpt_convert.__file__).parent
    naming = {
        path.relative_to(package).parent.as_posix()
        for path in package.rglob("*.py")
        if "architectures.gpt2" in path.read_text()
    }
    assert naming == {"architectures/gpt2"}


def test_hooks_are_found_by_name() -> None:
    known = architectures()
    for feature in FEATURES:
        assert with_hook(feature) == ["gpt2"]
        assert hook(known["gpt2"], feature).__name__.endswith(f"architectures.gpt2.{feature}")


@pytest.mark.parametrize("name", ["gpt_neo", "schema", "gpt2.hf", "../gpt2", "", "GPT-2"])
def test_no_name_reaches_other_modules(name: str) -> None:
    odd = architectures()["gpt_neo"]._replace(name=name)
    assert not has_hook(odd, "gguf")
    with pytest.raises(Unsupported, match="GGUF output is not supported for"):
        hook(odd, "gguf", "m.bin")
