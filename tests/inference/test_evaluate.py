"""Windows, losses and divergences, against lm-eval's own functions and float64 torch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from cgpt_convert.inference.evaluate import cross_entropy
from cgpt_convert.inference.evaluate.cross_entropy import Loss, evaluate, scored_logits, token_nats
from cgpt_convert.inference.evaluate.divergence import diverge
from cgpt_convert.inference.evaluate.text_windows import TokenWindow, count, rolling_windows

VOCABULARY, WIDTH = 97, 8


class Toy:
    """Logits that depend on each token and the one before it, and on where the window starts."""

    def __init__(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        self.table = random.normal(size=(VOCABULARY, WIDTH)).astype(np.float32)
        self.head = random.normal(size=(WIDTH, VOCABULARY)).astype(np.float32)

    def hidden(self, ids):
        states = self.table[ids]
        states[:, 1:] += 0.5 * states[:, :-1]
        return states

    def logits(self, rows):
        return rows @ self.head


def sequence(tokens: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(VOCABULARY, size=tokens + 1)


@given(st.integers(0, 60), st.integers(1, 20), st.data())
def test_windows_are_lm_evals(tokens, context, data):
    stride = data.draw(st.integers(1, context))
    ids = list(range(100, 100 + tokens))
    theirs = list(get_rolling_token_windows(ids, 99, context, context - stride + 1))
    ours = list(rolling_windows(tokens, context, stride))
    whole = [99, *ids]
    for (inputs, predicted), (start, stop, scored) in zip(theirs, ours, strict=True):
        assert inputs == whole[start:stop]
        assert predicted == whole[stop + 1 - scored : stop + 1]
    assert len(ours) == count(tokens, context, stride)


@given(st.integers(1, 60), st.integers(1, 20))
def test_the_default_stride_is_what_rolling_loglikelihood_computes(tokens, context):
    ids = list(range(tokens))
    pairs = map(make_disjoint_window, get_rolling_token_windows(ids, -1, context, 1))
    theirs = [((left + right)[:-1], right) for left, right in pairs]
    whole = [-1, *ids]
    for (inputs, predicted), window in zip(
        theirs, rolling_windows(tokens, context, context), strict=True
    ):
        assert inputs == whole[window.start : window.stop]
        assert len(predicted) == window.scored


def exact(toy: Toy, ids: np.ndarray, window: TokenWindow) -> torch.Tensor:
    """Log-probabilities (scored, vocabulary) in float64."""
    hidden = toy.hidden(ids[None, window.start : window.stop])[0, -window.scored :]
    return torch.log_softmax(torch.from_numpy(toy.logits(hidden)).double(), -1)


@pytest.mark.parametrize(("context", "stride"), [(16, 16), (16, 5), (64, 64)])
def test_the_loss_is_torchs(context, stride):
    toy, ids = Toy(1), sequence(50)
    windows = list(rolling_windows(50, context, stride))
    nats, right = 0.0, 0
    for window in windows:
        logs = exact(toy, ids, window)
        targets = torch.from_numpy(ids[window.stop + 1 - window.scored : window.stop + 1])
        nats += torch.nn.functional.nll_loss(logs, targets, reduction="sum").item()
        right += int((logs.argmax(-1) == targets).sum())
    found = evaluate(toy, ids, windows, VOCABULARY)
    assert found.nats == pytest.approx(nats, rel=1e-7)
    assert (found.tokens, found.top) == (50, right)
    assert found.cross_entropy == found.nats / 50
    assert found.perplexity == pytest.approx(math.exp(nats / 50))
    assert found.bits_per_byte(123) == pytest.approx(nats / math.log(2) / 123)


def test_few_logits_are_in_memory_at_once(monkeypatch):
    toy, ids = Toy(2), sequence(50)
    whole = evaluate(toy, ids, [TokenWindow(0, 50, 50)], VOCABULARY)
    monkeypatch.setattr(cross_entropy, "LOGITS_NBYTES", 7 * 4 * VOCABULARY)
    blocks = list(scored_logits(toy, ids, [TokenWindow(0, 50, 50)], VOCABULARY))
    assert [len(logits) for logits, _ in blocks] == [7] * 7 + [1]
    assert evaluate(toy, ids, [TokenWindow(0, 50, 50)], VOCABULARY).nats == pytest.approx(
        whole.nats
    )


def test_huge_logits_neither_overflow_nor_vanish():
    logits = np.array([[1e30, 0, -1e30]] * 3, np.float32)
    assert token_nats(logits, np.arange(3)) == pytest.approx([0, 1e30, 2e30])
    assert Loss(1e6, 1, 0).perplexity == math.inf


@pytest.mark.parametrize("context", [16, 50])
def test_the_divergence_is_torchs(context):
    base, other, ids = Toy(3), Toy(3), sequence(50, 3)
    other.head += 0.3 * Toy(4).head
    windows = list(rolling_windows(50, context, context))
    p = torch.cat([exact(base, ids, window) for window in windows])
    q = torch.cat([exact(other, ids, window) for window in windows])
    kl = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1).numpy()
    rows, targets = torch.arange(50), torch.from_numpy(ids[1:])
    found = diverge(base, other, ids, windows, VOCABULARY)
    assert found.kl == pytest.approx(kl, rel=1e-9)
    assert found.kl_mean == pytest.approx(kl.mean())
    assert found.kl_error == pytest.approx(kl.std(ddof=1) / 50**0.5)
    assert found.kl_max == pytest.approx(kl.max())
    assert found.same_top == int((p.argmax(-1) == q.argmax(-1)).sum()) < 50
    assert found.top_agreement == found.same_top / 50
    change = (q.exp() - p.exp())[rows, targets].numpy()
    assert found.p_change_rms == pytest.approx((change**2).mean() ** 0.5)
    ratio = math.exp(-(q - p)[rows, targets].mean().item())
    assert found.perplexity_ratio == pytest.approx(ratio)
    assert found.base.nats == pytest.approx(evaluate(base, ids, windows, VOCABULARY).nats)
    assert found.other.top == evaluate(other, ids, windows, VOCABULARY).top


def test_percentiles_are_interpolated_as_llama_cpp_does():
    found = diverge(Toy(4), Toy(5), sequence(50), rolling_windows(50, 16, 16), VOCABULARY)
    values = np.sort(found.kl)
    place = 0.99 * (50 - 1)
    low, share = int(place), place - int(place)
    assert found.kl_percentile(99) == pytest.approx(
        (1 - share) * values[low] + share * values[min(low + 1, 49)]
    )


def test_a_model_does_not_diverge_from_itself():
    found = diverge(Toy(6), Toy(6), sequence(1), rolling_windows(1, 16, 16), VOCABULARY)
    assert (found.kl_max, found.kl_error, found.top_agreement) == (0, 0, 1)
    assert found.perplexity_ratio == 1
