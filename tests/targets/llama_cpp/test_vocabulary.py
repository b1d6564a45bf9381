"""The tokenizer in a GGUF: llama.cpp gives texts the ids that transformers gives, or it is refused.

What the fields say of special tokens is compared with gguf-py's SpecialVocab, which llama.cpp's own
converter uses.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from gguf.vocab import SpecialVocab
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from cgpt_convert import open_checkpoint
from cgpt_convert.inference.text_codec import Encoder, find
from tests.helpers.bpe import END, change
from tests.helpers.running import ROOT, environ, run

SPECIAL = [END, "<s>", "</s>", "<pad>", "<unk>", "<mask>"]
TEXTS = [
    "hello world",
    " hello  world\n\n\tx",
    END,
    f"a{END}b",
    "newword zzz qqq newwords",
    "<pad> <|user|>hi<|im_end|><s></s>",
    "naïve 漢字 🙂🙃, 12345.6789",
    "",
    "it's we're they'll",
    "     x   ",
    "▁▁ <2mass> Ġfoo",
]
SIZE = 400


def trained() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(["hello world, hello there", "the quick brown fox"] * 9, trainer)
    return made


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of 400 tokens, which is more than the tokenizers have."""
    folder = tmp_path_factory.mktemp("weights")
    sizes: dict[str, Any] = {
        "n_layer": 1,
        "n_head": 2,
        "n_embd": 32,
        "n_positions": 64,
        "vocab_size": SIZE,
    }
    config = GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)
    torch.save(GPT2LMHeadModel(config).state_dict(), folder / "pytorch_model.bin")
    config.save_pretrained(folder)
    return folder


def source(weights: Path, folder: Path) -> Path:
    folder.mkdir()
    for path in weights.iterdir():
        (folder / path.name).hardlink_to(path)
    return folder


def fast(folder: Path, made: Tokenizer, **roles: Any) -> PreTrainedTokenizerFast:
    """Write tokenizer.json and its config as transformers saves them."""
    said = {"bos_token": END, "eos_token": END} | roles
    theirs = PreTrainedTokenizerFast(tokenizer_object=made, **said)
    theirs.save_pretrained(folder)
    return theirs


def plain(folder: Path) -> None:
    fast(folder, trained())


def added(folder: Path) -> None:
    theirs = fast(folder, trained(), pad_token="<pad>", unk_token="<unk>", mask_token="<mask>")
    theirs.add_tokens(["newword", "zzz qqq", "▁▁", "<2mass>", "  ", "   ", "Ġfoo", "<|im_end|>"])
    theirs.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
    theirs.save_pretrained(folder)


def template(single: str, **roles: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        made = trained()
        tokens = [(token, made.token_to_id(token)) for token in ("<s>", "</s>")]
        made.post_processor = processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing(single=single, special_tokens=tokens),
            ]
        )
        fast(folder, made, **roles)

    return write


def roberta(folder: Path, **roles: Any) -> None:
    made = trained()
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 1))
    said = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>"}
    fast(folder, made, **said | roles)


def slow(folder: Path, **config: Any) -> None:
    """Write vocab.json, merges.txt and a tokenizer_config.json, as of transformers' slow one."""
    model = json.loads(trained().to_str())["model"]
    vocabulary = {token: number for token, number in model["vocab"].items() if number != 2}
    vocabulary["zz"] = 2  # "</s>" is a special token for llama.cpp, whatever we say
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    lines = ["#version: 0.2", *(" ".join(merge) for merge in model["merges"])]
    (folder / "merges.txt").write_text("\n".join(lines))
    said = {"tokenizer_class": "GPT2Tokenizer", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))


def changed(**values: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        plain(folder)
        change(folder / "tokenizer_config.json", **values)

    return write


LIST = [{"name": "default", "template": "{{ a }}"}, {"name": "tool_use", "template": "b"}]
SAME: dict[str, Callable[[Path], None]] = {
    "plain": plain,
    "added": added,
    "bos": template("<s> $A", bos_token="<s>"),
    "bos-unstated": template("<s> $A", bos_token=None, eos_token=None),
    "bos-eos": template("<s> $A </s>", bos_token="<s>", eos_token="</s>"),
    "eos": template("$A </s>", eos_token="</s>"),
    "another-eos": template("<s> $A </s>", bos_token="<s>"),
    "roberta": roberta,
    "roberta-without-bos": lambda folder: roberta(folder, bos_token=None, eos_token=None),
    "slow-bos": lambda folder: slow(folder, add_bos_token=True),
    "slow-both": lambda folder: slow(folder, add_bos_token=True, add_eos_token=True),
    "slow-no-bos": lambda folder: slow(folder, add_bos_token=False, pad_token="<pad>"),
    "chat": changed(chat_template="{{ messages[0] }} é"),
    "chats": changed(chat_template=LIST),
}


def llama_cpp(path: Path) -> list[list[int]]:
    """What llama.cpp makes of the texts."""
    texts, out = path.with_suffix(".texts"), path.with_suffix(".ids")
    texts.write_text(json.dumps(TEXTS))
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "tests.helpers.llama_tokens",
        path,
        texts,
        out,
    ]
    subprocess.run(command, check=True, cwd=ROOT, env=environ())
    found: list[list[int]] = json.loads(out.read_text())
    return found


@pytest.mark.parametrize("kind", SAME)
def test_ids_are_transformers(weights: Path, tmp_path: Path, kind: str) -> None:
    folder = source(weights, tmp_path / "source")
    SAME[kind](folder)
    theirs = AutoTokenizer.from_pretrained(folder)
    expected = [theirs(text).input_ids for text in TEXTS]
    done = run("convert", folder, "-o", tmp_path / "m.gguf")
    assert (done.code, done.err) == (0, "")
    assert llama_cpp(tmp_path / "m.gguf") == expected
    assert run("convert", tmp_path / "m.gguf", "-o", tmp_path / "back", "--to", "hf").code == 0
    back = AutoTokenizer.from_pretrained(tmp_path / "back")
    assert [back(text).input_ids for text in TEXTS] == expected
    for role in ("bos", "eos", "pad", "mask", "sep", "cls"):
        stated = getattr(theirs, f"{role}_token")
        if stated is not None:
            assert getattr(back, f"{role}_token") == stated
    assert back.chat_template == theirs.chat_template
    for path in (folder, tmp_path / "m.gguf", tmp_path / "back"):
        encoder = Encoder(find(open_checkpoint(path), None, SIZE))
        assert [encoder.encode(text) for text in TEXTS] == expected


# SpecialVocab looks for the ids of roles in tokenizer.json alone, which slow ones have not; and it
# takes a first token that nothing names for the cls token, too, of which llama.cpp makes no use
FIELDS = [kind for kind in SAME if kind not in ("slow-both", "slow-no-bos", "bos-unstated")]


@pytest.mark.parametrize("kind", FIELDS)
def test_fields_are_those_of_special_vocab(weights: Path, tmp_path: Path, kind: str) -> None:
    folder = source(weights, tmp_path / "source")
    SAME[kind](folder)
    assert run("convert", folder, "-o", tmp_path / "m.gguf").code == 0
    fields = {
        key: field.contents() for key, field in GGUFReader(tmp_path / "m.gguf").fields.items()
    }
    theirs = SpecialVocab(folder, load_merges=True, n_vocab=SIZE)
    names = {"unk": "unknown", "sep": "seperator", "pad": "padding"}  # codespell:ignore
    ids = {names.get(role, role): number for role, number in theirs.special_token_ids.items()}
    prefix, suffix = "tokenizer.ggml.", "_token_id"
    found = {
        key[len(prefix) : -len(suffix)]: value
        for key, value in fields.items()
        if key.startswith(prefix) and key.endswith(suffix)
    }
    assert found == ids
    flags = {name: fields.get(f"{prefix}add_{name}_token") for name in ("bos", "eos")}
    assert {name: flag for name, flag in flags.items() if flag is not None} == {
        name: flag for name, flag in theirs.add_special_token.items() if name != "sep"
    }
    template = theirs.chat_template
    if isinstance(template, list):
        assert fields["tokenizer.chat_templates"] == ["tool_use"]
        assert fields["tokenizer.chat_template.tool_use"] == "b"
        template = template[0]["template"]
    assert fields.get("tokenizer.chat_template") == template
    assert fields["tokenizer.ggml.merges"] == theirs.merges


@pytest.mark.parametrize("kind", ["plain", "bos", "eos", "bos-eos"])
@pytest.mark.parametrize(
    "flags", [{"add_bos_token": True}, {"add_bos_token": False}, {"add_eos_token": True}]
)
def test_flags_of_the_configuration_are_written_as_by_llama_cpps_converter(
    weights: Path, tmp_path: Path, kind: str, flags: dict[str, bool]
) -> None:
    """Beside a tokenizer.json, transformers does not follow them: that is told."""
    folder = source(weights, tmp_path / "source")
    SAME[kind](folder)
    change(folder / "tokenizer_config.json", **flags)
    done = run("convert", folder, "-o", tmp_path / "m.gguf")
    assert done.code == 0
    fields = GGUFReader(tmp_path / "m.gguf").fields
    theirs = SpecialVocab(folder, load_merges=True, n_vocab=SIZE).add_special_token
    found = {name: fields.get(f"tokenizer.ggml.add_{name}_token") for name in ("bos", "eos")}
    assert {name: field.contents() for name, field in found.items() if field} == {
        name: flag for name, flag in theirs.items() if name != "sep"
    }
    expected = [AutoTokenizer.from_pretrained(folder)(text).input_ids for text in TEXTS]
    same = llama_cpp(tmp_path / "m.gguf") == expected
    ((name, value),) = flags.items()
    assert (f"has {name} {str(value).lower()}, which llama.cpp uses" in done.out) != same


def of_model(**values: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        plain(folder)
        path = folder / "tokenizer.json"
        whole = json.loads(path.read_text())
        whole["model"] |= values
        path.write_text(json.dumps(whole))

    return write


def with_part(name: str, part: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        made = trained()
        setattr(made, name, part)
        fast(folder, made)

    return write


def with_token(*tokens: str | AddedToken) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        theirs = fast(folder, trained())
        theirs.add_tokens(list(tokens))
        theirs.save_pretrained(folder)

    return write


LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False)
OTHER: dict[str, tuple[Callable[[Path], None], str]] = {
    "prefix": (
        with_part("pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)),
        "add_prefix_space",
    ),
    "slow-prefix": (lambda folder: slow(folder, add_prefix_space=True), "add_prefix_space"),
    "two": (template("<s> <s> $A", bos_token="<s>"), "2 tokens before a text"),
    "no-bos": (template("<s> $A"), "adds '<s>' before a text, which is not its bos_token"),
    "lstrip": (with_token(AddedToken("x", lstrip=True)), "'x' uses lstrip"),
    "rstrip": (with_token(AddedToken("x", rstrip=True)), "'x' uses rstrip"),
    "single": (with_token(AddedToken("x", single_word=True)), "'x' uses single_word"),
    "overlap": (with_token("hell", "loworld"), "'hell' and 'loworld' overlap"),
    "inside": (with_token("a<s>b"), "'<s>' is part of its added token 'a<s>b'"),
    "split": (changed(split_special_tokens=True), "split_special_tokens"),
    "ignore_merges": (of_model(ignore_merges=True), "ignore_merges"),
    "dropout": (of_model(dropout=0.1), "dropout"),
    "nfc": (with_part("normalizer", normalizers.NFC()), "a normalizer"),
    "lower": (with_part("normalizer", normalizers.Lowercase()), "a normalizer"),
    "digits": (
        with_part("pre_tokenizer", pre_tokenizers.Sequence([pre_tokenizers.Digits(), LEVEL])),
        "not a single ByteLevel",
    ),
}


@pytest.mark.parametrize("kind", OTHER)
def test_what_llama_cpp_cannot_do_is_refused(weights: Path, tmp_path: Path, kind: str) -> None:
    folder = source(weights, tmp_path / "source")
    write, said = OTHER[kind]
    write(folder)
    done = run("convert", folder, "-o", tmp_path / "m.gguf")
    assert done.code == 3
    assert said in done.err
    assert not (tmp_path / "m.gguf").exists()
    assert run("convert", folder, "-o", tmp_path / "m.gguf", "--no-vocab").code == 0
    assert run("convert", folder, "-o", tmp_path / "hf", "--to", "hf").code == 0
    ours, theirs = (AutoTokenizer.from_pretrained(each) for each in (tmp_path / "hf", folder))
    for text in TEXTS if kind != "dropout" else ():
        assert ours(text).input_ids == theirs(text).input_ids


@pytest.mark.parametrize(
    "processor",
    [
        {"type": "Later"},
        {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "B"}}], "special_tokens": {}},
        {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x"}}]},
        {"type": "RobertaProcessing", "cls": "x", "sep": ["</s>", 2]},
        {"type": "Sequence", "processors": [{"type": "Later"}]},
        3,
    ],
)
def test_post_processors_that_are_not_understood(
    weights: Path, tmp_path: Path, processor: object
) -> None:
    folder = source(weights, tmp_path / "source")
    plain(folder)
    change(folder / "tokenizer.json", post_processor=processor)
    done = run("convert", folder, "-o", tmp_path / "m.gguf")
    assert done.code == 3
    assert "post_processor" in done.err
    done = run("generate", folder, "hello", "--max-new-tokens", "1")
    assert (done.code, "invalid tokenizer" in done.err) == (3, True)


def test_ordinary_tokens_that_llama_cpp_takes_for_special(weights: Path, tmp_path: Path) -> None:
    folder = source(weights, tmp_path / "source")
    slow(folder)
    vocabulary = json.loads((folder / "vocab.json").read_text())
    del vocabulary["zz"]
    (folder / "vocab.json").write_text(json.dumps(vocabulary | {"</s>": 2}))
    done = run("convert", folder, "-o", tmp_path / "m.gguf")
    assert done.code == 3
    assert "treat its ordinary token '</s>' as a special token" in done.err


def test_a_chat_template_in_a_file_of_its_own(weights: Path, tmp_path: Path) -> None:
    folder = source(weights, tmp_path / "source")
    plain(folder)
    (folder / "chat_template.jinja").write_text("{{ x }}")
    assert run("convert", folder, "-o", tmp_path / "m.gguf").code == 0
    fields = GGUFReader(tmp_path / "m.gguf").fields
    assert fields["tokenizer.chat_template"].contents() == "{{ x }}"
