"""eval, as typed: against transformers, and llama.cpp's own dequantization."""

from __future__ import annotations

import math
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from lm_eval.utils import get_rolling_token_windows
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Config, GPT2LMHeadModel

import cgpt_convert
from cgpt_convert.cli.eval import _print
from tests.helpers.gguf_library import from_gguf
from tests.helpers.running import run, spawn

DEMO = Path(cgpt_convert.__file__).parent / "demo"
MODEL, TEXT = str(DEMO / "pytorch_model.bin"), str(DEMO / "held-out.txt")


def measured(*words: str) -> dict:
    done = run("eval", *words, "--json")
    assert done.code == 0, done.err
    return dict(done.json)


def model(state):
    """transformers', in float64."""
    config = GPT2Config.from_json_file(str(DEMO / "config.json"))
    made = GPT2LMHeadModel(config)
    made.load_state_dict(state, strict=False)
    return made.double().eval()


@pytest.fixture(scope="module")
def original():
    return model(torch.load(MODEL, weights_only=True))


@torch.no_grad()
def log_probabilities(
    oracle: GPT2LMHeadModel, context: int, stride: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens, vocabulary) of the held-out text, and the tokens, cut as lm-eval does."""
    files = (str(DEMO / "vocab.json"), str(DEMO / "merges.txt"))
    ids = ByteLevelBPETokenizer(*files).encode(Path(TEXT).read_text()).ids
    end = oracle.config.eos_token_id
    rows = []
    for inputs, predicted in get_rolling_token_windows(ids, end, context, context - stride + 1):
        logits = oracle(torch.tensor([inputs])).logits[0, -len(predicted) :]
        rows.append(torch.log_softmax(logits, -1))
    return torch.cat(rows), torch.tensor(ids)


@pytest.mark.parametrize("cut", [(), (256, 64), (100, 100)])
def test_the_figures_are_transformers(original, cut):
    logs, ids = log_probabilities(original, *(cut or (256, 256)))
    nats = -logs[torch.arange(len(ids)), ids].sum().item()
    options = [f"--context={cut[0]}", f"--stride={cut[1]}"] if cut else []
    found = measured(MODEL, "--text", TEXT, *options)
    assert found["tokens"] == len(ids)
    assert found["cross_entropy"] == pytest.approx(nats / len(ids), abs=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(nats / len(ids)), rel=1e-6)
    nbytes = Path(TEXT).stat().st_size
    assert found["nbytes"] == nbytes
    assert found["bits_per_byte"] == pytest.approx(nats / nbytes / math.log(2), rel=1e-6)
    right = (logs.argmax(-1) == ids).double().mean().item()
    assert found["top_right"] == pytest.approx(right, abs=1e-3)  # equal logits may swap
    assert (found["against"], found["model"], found["pile_loss"]) == (None, None, None)


def test_the_text_may_come_through_a_pipe(tmp_path):
    os.mkfifo(pipe := tmp_path / "text")
    text = Path(TEXT).read_bytes()[:500]
    writer = threading.Thread(target=pipe.write_bytes, args=(text,))
    writer.start()
    piped = measured(MODEL, "--text", str(pipe))
    writer.join()
    (tmp_path / "file").write_bytes(text)
    stored = measured(MODEL, "--text", str(tmp_path / "file"))
    assert piped | {"text": None} == stored | {"text": None}


@pytest.mark.parametrize("cores", ["", "Haswell", "Zen", "Sandybridge"])
def test_threads_change_the_rounding_only(cores):
    """Parts of a product are other calls of BLAS, whose kernels add in an order of their own."""
    kind = {"OPENBLAS_CORETYPE": cores} if cores else {}
    done = [
        spawn("eval", MODEL, "--text", TEXT, "--json", f"--jobs={n}", **kind) for n in (1, 2, 3)
    ]
    one, *more = (each.json for each in done)
    for each in more:
        assert each["cross_entropy"] == pytest.approx(one["cross_entropy"], rel=1e-7)
        assert each["top_right"] == pytest.approx(one["top_right"], abs=1e-3)
        assert each.keys() == one.keys()


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    done = run("convert", MODEL, "-o", str(path), "--dtype", "q4_0")
    assert done.code == 0, done.err
    (path.parent / "config.json").write_text((DEMO / "config.json").read_text())
    return path


def test_the_divergence_of_a_quantization_is_torchs(original, quantized):
    p, ids = log_probabilities(original, 256, 256)
    numbers = from_gguf(quantized)
    numbers["lm_head.weight"] = numbers["transformer.wte.weight"]
    q, _ = log_probabilities(model(numbers), 256, 256)
    kl = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1).numpy()
    rows = torch.arange(len(ids))
    found = measured(MODEL, "--text", TEXT, "--against", str(quantized))["against"]
    assert found["source"] == str(quantized)
    assert found["kl_mean"] == pytest.approx(kl.mean(), rel=1e-4)
    assert found["kl_error"] == pytest.approx(kl.std(ddof=1) / len(ids) ** 0.5, rel=1e-3)
    assert found["kl_p99"] == pytest.approx(np.percentile(kl, 99), rel=1e-3)
    assert found["kl_max"] == pytest.approx(kl.max(), rel=1e-3)
    same = (p.argmax(-1) == q.argmax(-1)).double().mean().item()
    assert found["top_agreement"] == pytest.approx(same, abs=1e-3)
    nats = [-logs[rows, ids].mean().item() for logs in (p, q)]
    assert found["cross_entropy"] == pytest.approx(nats[1], abs=1e-5)
    assert found["perplexity_ratio"] == pytest.approx(math.exp(nats[1] - nats[0]), rel=1e-5)
    change = (q.exp() - p.exp())[rows, ids]
    assert found["p_change_rms"] == pytest.approx(change.square().mean().sqrt().item(), rel=1e-4)


def test_what_is_printed(quantized):
    done = run("eval", MODEL, "--text", TEXT, "--against", str(quantized))
    assert done.code == 0
    found = measured(MODEL, "--text", TEXT, "--against", str(quantized))
    assert f"cross-entropy            {found['cross_entropy']:.4f} nats per token" in done.out
    assert f" (x {found['against']['perplexity_ratio']:.5f})" in done.out
    assert f"same top-1 token         {found['against']['top_agreement']:.2%}" in done.out
    assert "Pile" not in done.out


def test_a_shape_has_no_published_loss(capsys):
    shaped = measured(MODEL, "--text", TEXT) | {"shape_of": "cerebras-gpt-111m"}
    _print(shaped)
    printed = capsys.readouterr()[0]
    assert "(shape of cerebras-gpt-111m; the model's name is unknown)" in printed
    assert "Pile" not in printed


def test_a_gguf_of_ours_is_measured_without_config_json(tmp_path):
    alone = tmp_path / "m.gguf"
    assert run("convert", MODEL, "-o", alone).code == 0
    found = measured(alone, "--text", TEXT, "--against", MODEL)
    expected = measured(MODEL, "--text", TEXT)["cross_entropy"]
    assert found["cross_entropy"] == pytest.approx(expected, rel=1e-7)  # the other GELU: 1e-5
    assert found["against"]["kl_max"] == pytest.approx(0, abs=1e-9)


def test_a_known_models_published_loss_stands_beside(capsys):
    known = measured(MODEL, "--text", TEXT) | {"model": "cerebras-gpt-111m", "pile_loss": 2.566}
    _print(known)
    assert (
        "(model card of cerebras-gpt-111m: 2.566 on the Pile's test set)" in capsys.readouterr()[0]
    )


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("--context", "257"), 2, "a context of 257 tokens exceeds the model's 256 positions"),
        (("--context", "9", "--stride", "10"), 2, "a stride of 10 tokens exceeds the context"),
        (("--tokenizer", "nowhere"), 2, "no such folder"),
        (("--against", "nowhere"), 2, "nowhere: "),
    ],
)
def test_what_cannot_be_is_refused(words, code, told):
    done = run("eval", MODEL, "--text", TEXT, *words)
    assert (done.code, done.out) == (code, "")
    assert told in done.err


@pytest.mark.parametrize(
    ("content", "code", "told"),
    [(b"", 2, "the text file is empty"), (b"\xff", 3, "not UTF-8"), (None, 2, "no such file")],
)
def test_what_is_no_text_is_refused(tmp_path, content, code, told):
    path = tmp_path / "text"
    if content is not None:
        path.write_bytes(content)
    done = run("eval", MODEL, "--text", str(path))
    assert (done.code, done.out) == (code, "")
    assert f"{path}: " in done.err
    assert told in done.err


def test_a_folder_is_not_a_text(tmp_path):
    done = run("eval", MODEL, "--text", str(tmp_path))
    assert (done.code, done.out) == (2, "")
    assert f"{tmp_path}: the path is a folder" in done.err
