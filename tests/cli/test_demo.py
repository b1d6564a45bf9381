"""The embedded model speaks, and its loss on a text it has not seen tells right weights from wrong.

The loss is that of transformers in float64. What is computed here in float32 from the same file is
within 1e-6 of it; every single mistake below moves it by three times that or more.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval.utils import get_rolling_token_windows
from safetensors.numpy import save_file
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

import cgpt_convert
from cgpt_convert.formats.open import open_checkpoint
from cgpt_convert.inference.evaluate.cross_entropy import evaluate
from cgpt_convert.inference.evaluate.text_windows import rolling_windows
from cgpt_convert.inference.model import Model
from tests.helpers import train_demo, vendor
from tests.helpers.running import ROOT, environ, run

DEMO = Path(cgpt_convert.__file__).parent / "demo"
CONFIG = json.loads((DEMO / "config.json").read_text())
LOSS = 3.9706878507122627  # nats per token on held-out.txt; docs/explanation/demo.md has it, too
SAME, OTHER = 1e-6, 3e-6

State = dict[str, np.ndarray]
Change = Callable[[State], None]


@pytest.fixture(scope="module")
def sequence() -> np.ndarray:
    """The held-out chapter after the end-of-text token, by the library's own tokenizer."""
    files = (str(DEMO / "vocab.json"), str(DEMO / "merges.txt"))
    ids = ByteLevelBPETokenizer(*files).encode((DEMO / "held-out.txt").read_text()).ids
    return np.array([CONFIG["eos_token_id"], *ids])


@pytest.fixture(scope="module")
def oracle():
    """transformers with torch's own reading of the archive, in float64."""
    model = GPT2LMHeadModel(GPT2Config(**CONFIG))
    state = torch.load(DEMO / "pytorch_model.bin", weights_only=True)
    masks = {name for name in state if name.endswith((".attn.bias", ".attn.masked_bias"))}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert (missing, set(unexpected)) == ([], masks)
    return model.double().eval()


def loss(model: Model, sequence: np.ndarray) -> float:
    most = model.hyper.n_positions
    windows = rolling_windows(len(sequence) - 1, most, most)
    return evaluate(model, sequence, windows, model.hyper.vocab_size).cross_entropy


@torch.no_grad()
def test_the_recorded_loss_is_transformers_in_float64(oracle, sequence):
    nats, (prefix, *ids) = 0.0, sequence.tolist()
    for inputs, predicted in get_rolling_token_windows(ids, prefix, CONFIG["n_positions"], 1):
        logits = oracle(torch.tensor([inputs])).logits[0, -len(predicted) :]
        targets = torch.tensor(predicted)
        nats += torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
    assert nats / len(ids) == pytest.approx(LOSS, abs=1e-9)


def test_the_models_loss_is_the_recorded_one(sequence):
    model = Model(open_checkpoint(str(DEMO / "pytorch_model.bin")))
    assert loss(model, sequence) == pytest.approx(LOSS, abs=SAME)


def rewritten(folder: Path, change: Change = lambda _state: None, **config: Any) -> Model:
    """The model as safetensors, after a change of its tensors or its configuration."""
    source = open_checkpoint(str(DEMO / "pytorch_model.bin"))
    state = {name: tensor.numpy() for name, tensor in source.items() if name not in source.ties}
    change(state)
    contiguous = {name: np.ascontiguousarray(array) for name, array in state.items()}
    save_file(contiguous, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    return Model(open_checkpoint(str(folder / "model.safetensors")))


def test_unchanged_it_has_the_recorded_loss(sequence, tmp_path):
    assert loss(rewritten(tmp_path), sequence) == pytest.approx(LOSS, abs=SAME)


def misread(state: State, name: str) -> None:
    """The elements as they lie in the vendor's storage, taken for C order: strides ignored."""
    state[name] = state[name].T.reshape(state[name].shape)


def drop(state: State, name: str) -> None:
    state[name].fill(0)


def transpose(state: State, name: str) -> None:
    state[name] = state[name].T


def negate_largest(state: State, name: str) -> None:
    state[name].flat[np.abs(state[name]).argmax()] *= -1


BIASES = ("attn.c_attn", "attn.c_proj", "ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj")
MATRICES = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
WRONG_TENSORS = [
    *((drop, f"transformer.h.{layer}.{name}.bias") for layer in (0, 4) for name in BIASES),
    (drop, "transformer.ln_f.bias"),
    *((misread, f"transformer.h.2.{name}.weight") for name in MATRICES),
    (transpose, "transformer.h.2.attn.c_proj.weight"),
    (negate_largest, "transformer.h.2.attn.c_proj.weight"),
]


@pytest.mark.parametrize(("mistake", "name"), WRONG_TENSORS)
def test_the_loss_tells_wrong_tensors(mistake, name, sequence, tmp_path):
    model = rewritten(tmp_path, lambda state: mistake(state, name))
    assert abs(loss(model, sequence) - LOSS) > OTHER


def test_the_loss_tells_swapped_norms(sequence, tmp_path):
    def swap(state: State) -> None:
        first, second = (f"transformer.h.3.ln_{number}.weight" for number in (1, 2))
        state[first], state[second] = state[second], state[first]

    assert abs(loss(rewritten(tmp_path, swap), sequence) - LOSS) > OTHER


WRONG_CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "tanh GELU": {"activation_function": "gelu_new"},
    "heads": {"n_head": 8},
    "epsilon": {"layer_norm_epsilon": 1e-3},
    "scores not scaled": {"scale_attn_weights": False},
}


@pytest.mark.parametrize("mistake", WRONG_CONFIGURATIONS)
def test_the_loss_tells_a_wrong_configuration(mistake, sequence, tmp_path):
    model = rewritten(tmp_path, **WRONG_CONFIGURATIONS[mistake])
    assert abs(loss(model, sequence) - LOSS) > OTHER


def test_the_archive_is_laid_out_as_the_vendors():
    found = torch.load(DEMO / "pytorch_model.bin", weights_only=True)
    vendors = vendor.state_dict(train_demo.SHAPE)
    assert list(found) == list(vendors)
    for name, tensor in vendors.items():
        assert (found[name].shape, found[name].stride()) == (tensor.shape, tensor.stride()), name
        assert found[name].dtype == tensor.dtype
    assert found["lm_head.weight"].data_ptr() == found["transformer.wte.weight"].data_ptr()
    assert torch.equal(found["transformer.h.0.attn.bias"], vendors["transformer.h.0.attn.bias"])


def test_all_that_comes_along_is_small():
    sizes = {path.name: path.stat().st_size for path in DEMO.iterdir()}
    assert sizes["pytorch_model.bin"] < 6_000_000
    assert sum(sizes.values()) < 7_000_000


SENTENCE = "You are not to be a very happy man."


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What demo left, and what it printed."""
    folder = tmp_path_factory.mktemp("voice") / "demo"
    done = run("demo", folder)
    assert done.code == 0, done.err
    return folder, done.out


def test_demo_ends_with_the_same_sentence_from_every_format(made):
    lines = made[1][made[1].index("You are ...") :].splitlines()[1:]
    said = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines if SENTENCE in line}
    assert set(said.values()) == {SENTENCE}
    assert set(said) == {
        "pytorch_model.bin",
        "model.safetensors",
        "model.npz",
        "npy",
        "parameters",
        "model.bin",
        "hf",
        "model.gguf",
        "model-q8_0.gguf",
    }
    assert re.search(r"KL divergence from float32: \d\.\de-0\d nats per token", made[1])


def test_transformers_says_that_sentence(made):
    model: Any = GPT2LMHeadModel.from_pretrained(made[0] / "hf")
    tokenizer = AutoTokenizer.from_pretrained(made[0] / "hf")
    prompt = tokenizer("You are", return_tensors="pt")
    ids = model.generate(**prompt, do_sample=False, max_new_tokens=8, pad_token_id=2047)
    assert tokenizer.decode(ids[0]) == SENTENCE


@pytest.mark.parametrize("name", ["model.gguf", "model-q8_0.gguf"])
def test_llama_cpp_says_that_sentence(made, name):
    ids = AutoTokenizer.from_pretrained(made[0] / "hf").encode(SENTENCE)
    out = made[0] / "logits.npy"
    words = [made[0] / name, ",".join(map(str, ids)), out]
    line = [sys.executable, "-m", "tests.helpers.llama_logits", *map(str, words)]
    subprocess.run(line, check=True, cwd=ROOT, env=environ())
    assert np.load(out).argmax(-1)[1:-1].tolist() == ids[2:]


def test_paragraphs_without_headings_and_asides():
    lines = ["EMMA", "CHAPTER I", "Said", "he.", "", "[Note.]", "", "_So_ said she.", "", "FINIS"]
    assert list(train_demo.chapters(lines)) == ["Said he.\nSo said she.\n"]
