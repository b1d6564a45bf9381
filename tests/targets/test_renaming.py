"""New names: by the options as given, read back by safetensors, and checked by `verify`."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import cgpt_convert
from cgpt_convert.api.arguments import NameRule
from tests.helpers import vendor
from tests.helpers.running import Result, run

TABLE = torch.arange(6.0).view(3, 2)
WEIGHTS = {
    "module.enc.embed.weight": TABLE,
    "module.enc.fc.weight": torch.full((2, 2), 3.0),
    "module.enc.fc.bias": torch.ones(2),
    "module.head.weight": TABLE,
}
RULES = ("--strip-prefix", "module.", "--rename", r"^enc\.(\w+)=>net.\1", "--add-prefix", "m.")
NEW = {
    "m.net.embed.weight": TABLE,
    "m.net.fc.weight": WEIGHTS["module.enc.fc.weight"],
    "m.net.fc.bias": WEIGHTS["module.enc.fc.bias"],
}


@pytest.fixture
def train(tmp_path: Path) -> Path:
    """A training checkpoint with tied weights and an average."""
    torch.save({"model": WEIGHTS, "ema": {"x": torch.ones(1)}}, tmp_path / "train.pt")
    return tmp_path / "train.pt"


def converted(source: Path, out: Path, *words: object) -> Path:
    result = run("convert", source, "-o", out, *words)
    assert result.code == 0, result.err
    return out


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def failed(result: Result) -> set[str]:
    return {check["tensor"] for check in result.json["checks"] if check["outcome"] == "failed"}


def test_the_tensors_have_the_new_names_and_stay_tied(train: Path, tmp_path: Path) -> None:
    out = converted(train, tmp_path / "out.safetensors", *RULES, "--verify")
    assert same(load_file(out), NEW)
    with safe_open(out, "pt") as file:
        assert file.metadata()["m.head.weight"] == "m.net.embed.weight"
    again = torch.load(converted(train, tmp_path / "out.pt", *RULES))
    assert same(again, NEW | {"m.head.weight": TABLE})
    assert again["m.head.weight"].data_ptr() == again["m.net.embed.weight"].data_ptr()
    assert same(
        load_file(converted(train, tmp_path / "copy.safetensors", *RULES, "--tied", "copy")),
        NEW | {"m.head.weight": TABLE},
    )


def test_a_map_names_tensors_all_at_once(train: Path, tmp_path: Path) -> None:
    swap = {
        "module.enc.embed.weight": "module.enc.fc.weight",
        "module.enc.fc.weight": "module.enc.embed.weight",
    }
    (tmp_path / "map.json").write_text(json.dumps(swap))
    out = converted(train, tmp_path / "out.safetensors", "--map", tmp_path / "map.json")
    assert same(
        load_file(out),
        {
            "module.enc.embed.weight": WEIGHTS["module.enc.fc.weight"],
            "module.enc.fc.weight": TABLE,
            "module.enc.fc.bias": WEIGHTS["module.enc.fc.bias"],
        },
    )
    assert run("verify", train, out, "--map", tmp_path / "map.json").code == 0
    assert run("verify", train, out).code == 1


def test_a_dry_run_shows_each_old_and_new_name(train: Path, tmp_path: Path) -> None:
    words = ("convert", train, "-o", tmp_path / "out.safetensors", "--rename", "fc=>dense")
    assert "    module.enc.fc.bias -> module.enc.dense.bias\n" in run(*words, "--dry-run").out
    dry = run(*words, "--dry-run", "--json")
    assert dry.json["renamed"] == {
        f"module.enc.fc.{kind}": f"module.enc.dense.{kind}" for kind in ("weight", "bias")
    }
    assert not (tmp_path / "out.safetensors").exists()
    assert run(*words, "--json").json["renamed"] == dry.json["renamed"]


OPTIONS = {
    "strip-prefix": st.sampled_from(["a.", "b.", "a.b.", "x."]),
    "add-prefix": st.sampled_from(["a.", "b.", "\\1."]),
    "rename": st.sampled_from(["a=>b", "b=>a", "x=>", "a.=>x"]),
}
NAMES = ("a.b.w", "b.a.v", "a.u")
SIMPLE: dict[str, Callable[[str, str], str]] = {
    "strip-prefix": str.removeprefix,
    "add-prefix": lambda name, prefix: prefix + name,
    "rename": lambda name, rule: name.replace(rule.partition("=>")[0], rule.partition("=>")[2]),
}


@settings(deadline=None, max_examples=150)
@given(
    st.lists(
        st.sampled_from([*OPTIONS]).flatmap(
            lambda option: st.tuples(st.just(option), OPTIONS[option])
        ),
        max_size=5,
    )
)
def test_rules_apply_in_the_order_given(
    tmp_path_factory: pytest.TempPathFactory, rules: list[tuple[str, str]]
) -> None:
    folder = tmp_path_factory.getbasetemp() / "order"
    source = folder / "in.safetensors"
    if not source.exists():
        folder.mkdir()
        save_file({name: torch.ones(1) for name in NAMES}, source)
    names = {name: name for name in NAMES}
    fits = True
    for option, value in rules:
        old = value.split("=>")[0]
        fits &= option == "add-prefix" or any(
            name.startswith(old) if option == "strip-prefix" else old in name
            for name in names.values()
        )
        names = {name: SIMPLE[option](new, value) for name, new in names.items()}
    words = [
        word
        for option, value in rules
        for word in (f"--{option}", value.replace(".", r"\.", 1) if "a.=>" in value else value)
    ]
    result = run("convert", source, "-o", folder / "out.safetensors", "--dry-run", "--json", *words)
    if not fits or len({*names.values()}) < len(names) or "" in names.values():
        assert result.code == 2
    else:
        assert result.json["renamed"] == {a: b for a, b in names.items() if a != b}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--strip-prefix", "enc."), "--strip-prefix 'enc.' matches no tensor"),
        (("--rename", "conv=>c"), "--rename 'conv=>c' matches no tensor"),
        (
            ("--rename", r"fc\.\w+=>fc"),
            "'module.enc.fc.weight', 'module.enc.fc.bias' would have the same",
        ),
        (("--rename", ".*=>"), "the new name is empty for 'module.enc.embed.weight', "),
        (("--rename", "fc"), "not of the form REGEX=>REPLACEMENT"),
        (("--rename", "=>fc"), "not of the form REGEX=>REPLACEMENT"),
        (("--rename", "(=>fc"), "is not valid: missing )"),
        (("--rename", r"fc=>\1"), "is not valid: invalid group reference"),
        (("--rename", r"fc=>\g<x>"), "is not valid: unknown group name"),
        (("--add-prefix", ""), "the value of --add-prefix is empty"),
        (("--map", "unknown.json"), "names that no tensor has: 'ema.x', 'fc'"),
        (("--map", "numbers.json"), "the new names are not all strings"),
        (("--map", "missing.json"), "missing.json: no such file"),
    ],
)
def test_rules_that_do_not_fit_are_errors(
    train: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "unknown.json").write_text('{"fc": "a", "module.head.weight": "b", "ema.x": "c"}')
    (tmp_path / "numbers.json").write_text('{"module.head.weight": 1}')
    for command in (("convert", train, "-o", "out.safetensors"), ("verify", train, train)):
        result = run(*command, *words)
        assert result.code == 2
        assert message in result.err
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("proof", [(), ("--no-proof",)])
@pytest.mark.parametrize("name", ["out.safetensors", "out.pt", "out.npz"])
def test_verify_passes_with_the_same_options_only(
    train: Path, tmp_path: Path, name: str, proof: tuple[str, ...]
) -> None:
    out = converted(train, tmp_path / name, *RULES, *proof, "--dtype", "bfloat16")
    result = run("verify", train, out, *RULES, "--json")
    assert result.code == 0
    details = {c["tensor"]: c["detail"] for c in result.json["checks"] if c["name"] == "bytes"}
    assert details == dict.fromkeys([*NEW, "m.head.weight"], "rename, cast bfloat16")
    assert run("verify", train, out).code == 1
    assert run("verify", train, out, *RULES[:-1], "n.").code == 1
    assert run("verify", out).code == (3 if proof else 0)


def test_verify_finds_changed_missing_and_added_tensors(train: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    words = ("--match", "*enc*", "--exclude", "*embed*", *RULES)
    assert run("verify", train, converted(train, out, *words), *words).code == 0
    weights = load_file(out)
    assert weights.keys() == {"m.net.fc.weight", "m.net.fc.bias"}
    for change, name in (
        (weights | {"m.net.fc.bias": torch.zeros(2)}, "m.net.fc.bias"),
        ({"m.net.fc.bias": weights["m.net.fc.bias"]}, "m.net.fc.weight"),
        (weights | {"other": torch.zeros(2)}, "other"),
    ):
        save_file(change, out)
        assert failed(run("verify", train, out, *words, "--json")) == {name}


def test_provenance_metadata_names_the_renames(train: Path, tmp_path: Path) -> None:
    out = converted(train, tmp_path / "out.safetensors", *RULES)
    with safe_open(out, "pt") as file:
        rows = json.loads(file.metadata()["cgpt_convert.tensors"])
    assert {name: row["from"] for name, row in rows.items()} == {
        "m.net.embed.weight": "module.enc.embed.weight",
        "m.net.fc.weight": "module.enc.fc.weight",
        "m.net.fc.bias": "module.enc.fc.bias",
        "m.head.weight": "module.head.weight",
    }
    # the digest of the source does not depend on the new names
    with safe_open(out, "pt") as file:
        digest = file.metadata()["cgpt_convert.source"]
    plain = converted(train, tmp_path / "plain.safetensors")
    with safe_open(plain, "pt") as file:
        assert file.metadata()["cgpt_convert.source"] == digest


@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_an_oddly_named_model_is_exported_as_a_whole(
    source: Path, state: vendor.State, tmp_path: Path, to: str
) -> None:
    """Its tensors are those of the model under the usual names."""
    odd = tmp_path / "odd" / source.name
    shutil.copytree(source.parent, odd.parent)
    renamed = {
        "net/" + name.replace("attn.c_attn", "attention.qkv"): value
        for name, value in state.items()
    }
    torch.save(renamed, odd)
    rules = ("--strip-prefix", "net/", "--rename", r"attention\.qkv=>attn.c_attn")
    more = ("--no-vocab",) if to == "gguf" else ()
    out = tmp_path / f"out.{to}"
    words = ("convert", odd, "-o", out, "--to", to, *more)
    assert run(*words).code == 3
    assert run(*words, *rules).code == 0
    plain = converted(source, tmp_path / f"plain.{to}", "--to", to, *more)
    assert cgpt_convert.digest(out).model == cgpt_convert.digest(plain).model != ""
    if to == "hf":
        assert same(load_file(out / "model.safetensors"), load_file(plain / "model.safetensors"))
    assert run("verify", odd, out, *rules).code == 0
    assert run("verify", odd, out).code == 1
    assert run("verify", out).code == 0


def test_a_gguf_file_is_renamed_from_the_names_of_transformers(
    source: Path, tmp_path: Path
) -> None:
    gguf = converted(source, tmp_path / "m.gguf", "--no-vocab")
    out = tmp_path / "out.safetensors"
    words = ("--rename", r"^transformer\.h\.=>blocks.")
    converted(gguf, out, *words)
    assert "blocks.0.ln_1.weight" in load_file(out)
    assert run("verify", gguf, out, *words).code == 0


def test_python_takes_texts_mappings_and_options(train: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    rename: list[NameRule] = [
        ("strip-prefix", "module."),
        {"head.weight": "enc.head.weight"},
        r"^enc\.=>",
        ("add-prefix", "m."),
    ]
    made = cgpt_convert.convert(train, out, rename=rename)
    assert made.renamed["module.head.weight"] == "m.head.weight"
    assert same(load_file(out), {name.replace("net.", ""): value for name, value in NEW.items()})
    assert cgpt_convert.verify(train, out, rename=rename)
    assert not cgpt_convert.verify(train, out)
    cgpt_convert.convert(WEIGHTS, out, rename="fc=>dense", overwrite=True)
    assert "module.enc.dense.bias" in load_file(out)
    assert cgpt_convert.verify(WEIGHTS, out, rename="fc=>dense")
    wrong: Any
    for wrong in ([("prefix", "a.")], [{"module.head.weight": ""}], [{"a": 1}]):
        with pytest.raises(cgpt_convert.BadRequest):
            cgpt_convert.convert(WEIGHTS, out, rename=wrong, dry_run=True)


def test_verify_renames_only_with_a_source(train: Path, tmp_path: Path) -> None:
    lock = os.fspath(tmp_path / "lock.json")
    assert run("lock", train, "-o", lock).code == 0
    for words in ((train,), (train, "--lock", lock)):
        assert run("verify", *words, "--add-prefix", "m.").code == 2
