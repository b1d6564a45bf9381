"""verify --logits, as typed: copies pass, and of others the first layer that differs is named."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import ByteLevelBPETokenizer

import cgpt_convert
from cgpt_convert.formats import open as formats_open
from cgpt_convert.sources.local import LocalFile
from tests.helpers import vendor
from tests.helpers.running import run
from tests.helpers.small_models import oracle, write

DEMO = Path(cgpt_convert.__file__).parent / "demo"
SHAPE = vendor.Shape(3, 96, 6, 384, 512, 48)
TOKENS = "1,7,300,511,0,42"
SQUARE = "transformer.h.1.attn.c_proj.weight"
BIAS = "transformer.h.1.attn.c_proj.bias"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write(tmp_path_factory.mktemp("source"), SHAPE)


def state(source: Path) -> dict[str, torch.Tensor]:
    loaded = torch.load(source / "pytorch_model.bin", weights_only=True)
    return {name: tensor.contiguous().clone() for name, tensor in loaded.items()}


def saved(source: Path, folder: Path, tensors: dict[str, torch.Tensor], **config: object) -> Path:
    """A safetensors file of them, with the source's config.json beside it, changed."""
    said = json.loads((source / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(said))
    save_file(tensors, folder / "m.safetensors")
    return folder / "m.safetensors"


@pytest.mark.parametrize(
    ("name", "dtype", "most"),
    [
        ("m.safetensors", "keep", 0),
        ("m.gguf", "keep", 0),
        ("half.gguf", "float16", 2e-6),
        ("m.gguf", "q8_0", 1e-3),
    ],
)
def test_what_was_converted_computes_the_same(source, tmp_path, name, dtype, most):
    words = ("--no-vocab",) if name.endswith(".gguf") else ()
    assert run("convert", source, "-o", tmp_path / name, "--dtype", dtype, *words).code == 0
    done = run("verify", source, tmp_path / name, "--logits", "--json")
    assert done.code == 0, done.out + done.err
    told = done.json
    assert set(told["outcomes"]) == {"passed"}
    assert told["logits"]["dtype"] == ("float32" if dtype == "keep" else dtype)
    assert told["logits"]["first"] is None
    assert max(each["nmse"] for each in told["logits"]["states"]) <= most
    names = [each["name"] for each in told["logits"]["states"]]
    assert names == ["embeddings", "h.0", "h.1", "h.2", "ln_f", "logits"]
    assert [check["tensor"] for check in told["checks"][-6:]] == names
    assert told["outcomes"]["passed"] > 6  # the bytes, too
    assert told["logits"]["top_agreement"] >= 0.9


def test_each_file_is_opened_once(source, tmp_path, monkeypatch):
    target = saved(source, tmp_path, state(source))
    opened = []

    def counting(path: str) -> LocalFile:
        opened.append(path)
        return LocalFile(path)

    monkeypatch.setattr(formats_open, "open_source", counting)
    assert run("verify", source, target, "--logits").code == 0
    assert opened == [str(source / "pytorch_model.bin"), str(target)]


def _drop(tensors):
    tensors[BIAS].zero_()


def _transpose(tensors):
    tensors[SQUARE] = tensors[SQUARE].t().contiguous()


@pytest.mark.parametrize(("change", "tensor"), [(_drop, BIAS), (_transpose, SQUARE)])
def test_the_first_layer_that_differs_is_named(source, tmp_path, change, tensor):
    tensors = state(source)
    change(tensors)
    path = saved(source, tmp_path, tensors)
    done = run("verify", source, path, "--logits", "--json")
    assert done.code == 1
    assert done.json["logits"]["first"] == "h.1"
    wrong = [check["tensor"] for check in done.json["checks"] if check["outcome"] == "failed"]
    assert wrong == [tensor, "h.1", "h.2", "ln_f", "logits"]
    shown = run("verify", source, path, "--logits")
    assert (shown.code, "failed: the first difference is in h.1" in shown.out) == (1, True)


def test_equal_bytes_with_the_wrong_gelu_are_found(source, tmp_path):
    path = saved(source, tmp_path, state(source), activation_function="gelu_new")
    assert run("verify", source, path).code == 0
    done = run("verify", source, path, "--logits", "--json")
    assert (done.code, done.json["logits"]["first"]) == (1, "h.0")
    lenient = run("verify", source, path, "--logits", "--tolerance", "0.01", "--json")
    assert (lenient.code, lenient.json["logits"]["tolerance"]) == (0, 0.01)


def test_the_numbers_are_those_of_transformers(source, tmp_path):
    tensors = state(source)
    _transpose(tensors)
    other = tmp_path / "other"
    other.mkdir()
    torch.save(tensors, other / "pytorch_model.bin")
    (other / "config.json").write_bytes((source / "config.json").read_bytes())
    ids = torch.tensor([[int(word) for word in TOKENS.split(",")]])
    with torch.no_grad():
        a, b = (oracle(folder)(ids).logits[0].double().numpy() for folder in (source, other))
    told = run("verify", source, other, "--logits", "--tokens", TOKENS, "--json").json["logits"]
    assert told["ids"] == ids[0].tolist()
    assert told["states"][-1]["max_difference"] == pytest.approx(np.abs(b - a).max(), rel=1e-4)
    nmse = ((b - a) ** 2).sum() / (a**2).sum()
    assert told["states"][-1]["nmse"] == pytest.approx(nmse, rel=1e-4)
    assert told["top_agreement"] == np.mean(a.argmax(-1) == b.argmax(-1))


def test_what_has_no_logits_is_a_note_where_the_bytes_tell_why(source, tmp_path):
    tensors = state(source)
    del tensors[BIAS]
    path = saved(source, tmp_path, tensors)
    done = run("verify", source, path, "--logits", "--json")
    assert (done.code, done.json["logits"]) == (1, None)
    assert [c["detail"] for c in done.json["checks"] if c["tensor"] == BIAS] == ["missing"]
    assert done.json["checks"][-1]["outcome"] == "note"
    assert "note: not compared" in run("verify", source, path, "--logits").out
    same = saved(source, tmp_path, state(source), activation_function="relu")
    refused = run("verify", source, same, "--logits")
    assert (refused.code, "'relu'" in refused.err) == (3, True)


def test_mup_models_are_refused_with_the_reason(source, tmp_path):
    path = saved(source, tmp_path, state(source), mup_output_alpha=2.0)
    done = run("verify", path, source, "--logits")
    assert (done.code, done.out) == (3, "")
    assert "a muP model scales its embeddings" in done.err
    target = run("verify", source, path, "--logits")
    assert (target.code, "a muP model" in target.err) == (3, True)


def test_a_text_gives_its_first_tokens(tmp_path):
    model, text = DEMO / "pytorch_model.bin", DEMO / "held-out.txt"
    bpe = ByteLevelBPETokenizer(str(DEMO / "vocab.json"), str(DEMO / "merges.txt"))
    short = tmp_path / "short.txt"
    short.write_text("You are, I think.\n")
    for path in (text, short):
        told = run("verify", model, DEMO, "--logits", "--text", path, "--json").json["logits"]
        assert told["ids"] == bpe.encode(path.read_text()).ids[:256]


def test_the_tokens_are_from_all_over_the_vocabulary(source):
    ids = run("verify", source, source, "--logits", "--json").json["logits"]["ids"]
    assert len(ids) == SHAPE.n_positions  # fewer than 64
    assert len({token * 16 // SHAPE.vocab_size for token in ids}) == 16
    told = run("verify", DEMO, DEMO, "--logits", "--json", "--jobs", "2").json["logits"]
    assert len(set(told["ids"])) == 64
    assert max(np.diff(sorted(told["ids"]))) < 2048 // 24


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--tokens", "1"), "--tokens requires --logits"),
        (("--engine", "torch"), "--engine requires --logits"),
        (("--logits", "--match", "*"), "cannot be combined with --match"),
        (("--logits", "--tokens", "1", "--text", "x"), "--tokens and --text"),
        (("--logits", "--tokenizer", "x"), "--tokenizer requires --text"),
        (("--logits", "--tokens", "1,512"), "the token ID 512 is not in"),
        (("--logits", "--tokens", ",".join("1" * 49)), "49 tokens exceed the model's 48"),
    ],
)
def test_what_makes_no_sense_is_said_before_anything_is_read(source, words, said):
    done = run("verify", source, source, *words)
    assert (done.code, done.out) == (2, "")
    assert said in done.err


def test_logits_need_two_models(source):
    done = run("verify", source, "--logits")
    assert (done.code, "requires SOURCE and TARGET" in done.err) == (2, True)


def test_a_report_names_the_layers(source, tmp_path):
    path = saved(source, tmp_path, state(source), activation_function="gelu_new")
    done = run("verify", source, path, "--logits", "--format", "junit")
    assert done.code == 1
    failed = [
        case.get("name")
        for case in ET.fromstring(done.out).iter("testcase")
        if case.find("failure") is not None
    ]
    assert failed == ["state h.0", "state h.1", "state h.2", "state ln_f", "logits logits"]
