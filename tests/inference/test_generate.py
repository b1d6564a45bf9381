"""Generation: token for token as transformers' generate, and the command around it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.generation.logits_process import (
    NoRepeatNGramLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from cgpt_convert.core.errors import BadRequest
from cgpt_convert.formats.open import open_checkpoint
from cgpt_convert.inference.generate import sampling
from cgpt_convert.inference.generate.generation_settings import GenerationSettings
from cgpt_convert.inference.generate.loop import generate
from cgpt_convert.inference.generate.sampling import SamplingOptions
from cgpt_convert.inference.model import Model
from cgpt_convert.inference.text_codec import Decoder, Encoder, StopStrings
from cgpt_convert.targets.hf import hf_tokenizer
from cgpt_convert.targets.tokenizer.bpe import find
from tests.helpers import bpe, vendor
from tests.helpers.running import run, spawn
from tests.helpers.small_models import oracle, write

VOCABULARY, POSITIONS = 60, 96


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    torch.set_num_threads(1)


# against transformers


@pytest.fixture(scope="module", params=[0, 1, 2])
def pair(request, tmp_path_factory):
    """A model of ours and of transformers'; its weights are wide, so that no two tokens tie."""
    torch.manual_seed(request.param)
    config = GPT2Config(
        n_layer=2,
        n_embd=32,
        n_head=2,
        vocab_size=VOCABULARY,
        n_positions=POSITIONS,
        activation_function="gelu",
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=0,
    )
    theirs = GPT2LMHeadModel(config).eval()
    folder = tmp_path_factory.mktemp("pair")
    torch.save(theirs.state_dict(), folder / "pytorch_model.bin")
    (folder / "config.json").write_text(config.to_json_string())
    return Model(open_checkpoint(folder), resident=True), theirs


def case(number: int) -> tuple[list[int], GenerationSettings]:
    """A prompt and settings; every number gives others."""
    random = np.random.default_rng(number)
    prompt = random.integers(1, VOCABULARY, int(random.integers(1, 20))).tolist()
    ends = frozenset([0]) if number % 3 else frozenset([0, 5, 9])
    beams = int(random.integers(2, 6)) if number % 2 else 1
    return prompt, GenerationSettings(
        int(random.integers(1, 40)),
        ends,
        int(random.integers(0, 4)),
        beams=beams,
        early_stopping=bool(random.integers(2)) and beams > 1,
    )


@pytest.mark.parametrize("number", range(24))
def test_token_for_token_as_transformers(pair, number):
    ours, theirs = pair
    prompt, settings = case(number)
    expected = theirs.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=settings.max_new_tokens,
        eos_token_id=sorted(settings.ends),
        pad_token_id=0,
        no_repeat_ngram_size=settings.no_repeat_ngram,
        num_beams=settings.beams,
        early_stopping=settings.early_stopping,
        do_sample=False,
    )
    assert [*prompt, *generate(ours, prompt, settings)] == expected[0].tolist()


def test_the_cases_end_in_different_ways(pair):
    ends = set()
    for number in range(24):
        prompt, settings = case(number)
        ids = list(generate(pair[0], prompt, settings))
        ends.add(
            (settings.beams > 1, len(ids) == settings.max_new_tokens, ids[-1] in settings.ends)
        )
    assert {(True, False, True), (False, False, True), (True, True, False)} <= ends


def test_the_torch_engine_generates_the_same(pair):
    ours, _ = pair
    other = Model(ours.source.checkpoint, "torch", resident=True)
    for number in range(6):
        prompt, settings = case(number)
        assert list(generate(ours, prompt, settings)) == list(generate(other, prompt, settings))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(1, 5))
def test_repeats_are_those_that_transformers_forbids(ids, n):
    scores = NoRepeatNGramLogitsProcessor(n)(torch.tensor([ids]), torch.zeros(1, 4))[0]
    assert sampling.repeats(ids, n) == {i for i, s in enumerate(scores.tolist()) if s}


@given(
    st.integers(0, 10_000),
    st.sampled_from([0.1, 0.7, 1.0, 1.5]),
    st.sampled_from([0, 1, 3, 10, 50, 1000]),
    st.sampled_from([0.001, 0.3, 0.9, 0.999, 1.0]),
)
def test_distributions_are_those_of_transformers(seed, temperature, top_k, top_p):
    logits = np.random.default_rng(seed).standard_normal(50).astype("f4") * 3
    expected = torch.from_numpy(logits)[None]
    warpers: list = [TemperatureLogitsWarper(temperature)]
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    for warper in warpers:
        expected = warper(None, expected)
    found = sampling.warped(logits, SamplingOptions(temperature, top_k, top_p))
    assert np.array_equal(np.isinf(found), torch.isinf(expected)[0].numpy())
    probabilities = torch.softmax(expected, -1)[0].numpy()
    assert np.allclose(sampling.softmax(found), probabilities, atol=1e-6)


def test_choices_are_as_frequent_as_they_should_be():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], "f4"))
    random = np.random.default_rng(0)
    drawn = [sampling.choose(logits, SamplingOptions(), random) for _ in range(4000)]
    frequencies = np.bincount(drawn, minlength=4) / len(drawn)
    assert np.abs(frequencies - [0.5, 0.3, 0.15, 0.05]).max() < 0.03
    drawn = [sampling.choose(logits, SamplingOptions(top_k=2), random) for _ in range(500)]
    assert set(drawn) == {0, 1}


def test_a_seed_gives_the_same_text_and_another_seed_another(pair):
    def text(seed):
        return list(
            generate(pair[0], [1, 2], GenerationSettings(30, warp=SamplingOptions(), seed=seed))
        )

    assert text(1) == text(1) != text(2)


def test_nothing_is_computed_for_what_does_not_fit(pair, monkeypatch):
    monkeypatch.setattr(Model, "next_logits", None)
    with pytest.raises(BadRequest) as caught:
        generate(pair[0], [1] * 90, GenerationSettings(7))
    assert "96 positions" in caught.value.message
    assert "--max-new-tokens 6" in caught.value.hint


@pytest.mark.parametrize(
    "settings",
    [
        GenerationSettings(0),
        GenerationSettings(1, beams=0),
        GenerationSettings(1, beams=2, warp=SamplingOptions()),
        GenerationSettings(1, warp=SamplingOptions(temperature=0)),
        GenerationSettings(1, warp=SamplingOptions(temperature=float("nan"))),
        GenerationSettings(1, warp=SamplingOptions(top_p=0)),
        GenerationSettings(1, warp=SamplingOptions(top_k=-1)),
        GenerationSettings(1, seed=-1, warp=SamplingOptions()),
    ],
)
def test_settings_that_mean_nothing_are_refused(pair, settings):
    with pytest.raises(BadRequest):
        generate(pair[0], [1], settings)


def test_weights_that_are_no_numbers_are_told(tmp_path):
    folder = write(tmp_path, vendor.TINY)
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    state["transformer.ln_f.bias"][3] = float("nan")
    torch.save(state, folder / "pytorch_model.bin")
    done = run("generate", folder, "--ids", "1,2")
    assert done.code == 3
    assert "NaN or infinite" in done.err


# text


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return find(str(bpe.train(tmp_path_factory.mktemp("bpe"), 400)), None, 512)


@pytest.mark.parametrize("text", bpe.TEXTS)
def test_encoding_is_the_librarys_and_decoding_its_inverse(found, text):
    library = Library.from_str(hf_tokenizer.whole(found).decode())
    ids = Encoder(found).encode(text)
    assert ids == library.encode(text).ids
    assert Decoder(found).decode(ids) == library.decode(ids) == text.replace(bpe.END, "")


@given(st.lists(st.integers(0, 399), max_size=30))
def test_any_ids_decode_as_the_library_does(found, ids):
    library = Library.from_str(hf_tokenizer.whole(found).decode())
    ids = [i for i in ids if i < len(found.tokens)]
    assert Decoder(found).decode(ids) == library.decode(ids)


def test_characters_come_when_they_are_complete(found):
    ids = Encoder(found).encode("漢🙂")
    decoder = Decoder(found)
    pieces = [decoder.feed(token) for token in ids]
    assert "".join(pieces) == "漢🙂"
    assert "\ufffd" not in "".join(pieces)
    assert len(pieces) > 2


@given(st.lists(st.text("ab", max_size=3), max_size=12), st.lists(st.text("ab", max_size=4)))
def test_text_ends_before_the_first_stop(pieces, stops):
    whole = "".join(pieces)
    places = [whole.find(stop) for stop in stops if stop and stop in whole]
    stop, shown = StopStrings(stops), ""
    for piece in pieces:
        shown += stop.feed(piece)
        if stop.stopped:
            break
    shown += stop.end()
    assert stop.stopped is bool(places)
    if stop.stopped:
        assert whole.startswith(shown)
        assert any(whole[len(shown) :].startswith(s) for s in stops if s)
    else:
        assert shown == whole


# the command


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    shape = vendor.Shape(2, 64, 4, 256, 400, 64)
    return bpe.train(write(folder, shape, eos_token_id=None, bos_token_id=None), 400)


def test_text_appears_and_its_speed_is_told(model):
    done = spawn("generate", model, "The dog ", "--max-new-tokens", "9")
    assert done.code == 0
    assert done.out.startswith("The dog ")
    assert done.out.endswith("\n")
    assert "9 new tokens" in done.err
    assert "tokens/s" in done.err


def test_json_has_text_ids_and_times(model):
    words = ("generate", model, "The dog ", "--max-new-tokens", "9")
    result = run(*words, "--json").json
    plain = run(*words).out
    assert result["prompt"] == "The dog "
    assert result["text"] == plain.removesuffix("\n")
    assert result["ids"][-9:] == result["new_ids"]
    assert result["ended"] == "length"
    expected = oracle(model).generate(
        torch.tensor([result["ids"][:-9]]), max_new_tokens=9, do_sample=False, pad_token_id=0
    )
    assert expected[0].tolist() == result["ids"]


def test_ids_need_no_tokenizer(model, tmp_path, monkeypatch):
    for name in ("pytorch_model.bin", "config.json"):
        (tmp_path / name).write_bytes((model / name).read_bytes())
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    done = run("generate", tmp_path, "--ids", "1, 2,3", "--max-new-tokens", "4")
    assert done.code == 0
    assert len(done.out.strip().split(",")) == 7
    result = run("generate", tmp_path, "--ids", "1,2,3", "--max-new-tokens", "4", "--json").json
    assert ",".join(map(str, result["ids"])) == done.out.strip()
    assert result["text"] is None
    done = run("generate", tmp_path, "hello")
    assert done.code == 2
    assert "--tokenizer DIR" in done.err
    done = run("generate", tmp_path, "hello", "--tokenizer", model)
    assert "cgpt-convert[generate]" in done.err


def test_a_gguf_brings_its_tokenizer(model, tmp_path):
    assert run("convert", model, "-o", tmp_path / "m.gguf").code == 0
    words = ("--max-new-tokens", "6", "--json", "--heads", "4", "--activation", "gelu")
    result = run("generate", tmp_path / "m.gguf", "The dog", *words).json
    assert result["text"] == run("generate", model, "The dog", *words).json["text"]


def test_stop_ends_the_text(model):
    whole = run("generate", model, "The dog ", "--max-new-tokens", "20", "--json").json["text"]
    stop = whole[len("The dog ") + 4 :][:3]
    result = run("generate", model, "The dog ", "--stop", stop, "--json").json
    assert result["ended"] == "stop"
    assert whole.startswith(result["text"] + stop)
    assert len(result["new_ids"]) <= 20


def test_an_end_token_ends_the_text(model, tmp_path):
    first = run("generate", model, "The dog", "--max-new-tokens", "1", "--json").json["new_ids"]
    for name in ("pytorch_model.bin", "vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((model / name).read_bytes())
    config = json.loads((model / "config.json").read_text()) | {"eos_token_id": [1, *first]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    result = run("generate", tmp_path, "The dog", "--json").json
    assert (result["new_ids"], result["ended"]) == (first, "end")


def test_a_request_gives_a_list_of_texts(model, tmp_path):
    params = {"max_new_tokens": 5, "do_sample": False, "return_full_text": True}
    request = {"input_data": ["The dog ", "it's"], "params": params}
    path = tmp_path / "request.json"
    path.write_text(json.dumps(request))
    answers = run("generate", model, "--request", path).json
    for prompt, answer in zip(request["input_data"], answers, strict=True):
        words = ("generate", model, prompt, "--max-new-tokens", "5", "--json")
        assert answer == run(*words).json["text"]
    path.write_text(json.dumps({**request, "params": {**params, "return_full_text": False}}))
    short = run("generate", model, "--request", path).json
    assert [a + b for a, b in zip(request["input_data"], short, strict=True)] == answers
    sampled = {"top_p": 0.9, "temperature": 0.8, "do_sample": True, "seed": 3}
    path.write_text(json.dumps({"input_data": ["The"], "params": sampled}))
    assert (
        run("generate", model, "--request", path).json
        == run("generate", model, "--request", path).json
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "invalid JSON"),
        ("[]", "not a generation request"),
        ('{"input_data": "text"}', "not a list"),
        ('{"input_data": [], "params": {"top_p": "high"}}', "top_p"),
        ('{"input_data": ["a"], "params": {"temperature": 0, "do_sample": true}}', "temperature"),
        ('{"input_data": [], "params": {"guidance": 1}}', "supported parameters"),
    ],
)
def test_requests_that_are_none_are_refused(model, tmp_path, content, said):
    path = tmp_path / "request.json"
    path.write_text(content)
    done = run("generate", model, "--request", path)
    assert done.code in (2, 3)
    assert said in done.err


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("text", "--ids", "1"),
        ("--ids", "one"),
        ("text", "--early-stopping"),
        ("text", "--beams", "2", "--top-k", "3"),
        ("text", "--temperature", "0"),
        ("text", "--max-new-tokens", "64"),
    ],
)
def test_bad_usage_is_2(model, words):
    assert run("generate", model, *words).code == 2


@pytest.mark.parametrize("words", [("--ids", "1,99999"), ("a\udcff",)])
def test_what_cannot_be_given_is_told_before_anything_is_shown(model, words):
    done = run("generate", model, *words)
    assert (done.code, done.out) == (2, "")
