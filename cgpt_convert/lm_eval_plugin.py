"""The model class `cgpt` for lm-evaluation-harness: evaluates any supported source without torch.

lm-eval (0.4.13) finds models in its own table and does not search other packages. Its command
therefore has to be started from this module, which adds the class to the table:

python -m cgpt_convert.lm_eval_plugin --model cgpt --model_args path=SOURCE --tasks ...

In Python, `import cgpt_convert.lm_eval_plugin` before calling
`lm_eval.simple_evaluate(model="cgpt", ...)`.
"""

from __future__ import annotations

import operator
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

if "numpy" not in sys.modules:  # as for the commands: BLAS reads this when NumPy is imported
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
import numpy as np

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
except ModuleNotFoundError as error:
    if __name__ != "__main__":
        raise
    raise SystemExit(f"error: {error}\nhint: pip install lm-eval, or the extra `eval`") from None

from cgpt_convert.cli.progress import progress
from cgpt_convert.core.errors import BadRequest
from cgpt_convert.core.threads import cores
from cgpt_convert.formats.open import open_checkpoint
from cgpt_convert.inference import text_codec
from cgpt_convert.inference.backend import backend
from cgpt_convert.inference.evaluate.cross_entropy import Loss, evaluate
from cgpt_convert.inference.evaluate.text_windows import TokenWindow, prefix_id, rolling_windows
from cgpt_convert.inference.generate.generation_settings import GenerationSettings
from cgpt_convert.inference.generate.sampling import SamplingOptions
from cgpt_convert.inference.generate.stream import continued
from cgpt_convert.inference.model import Model

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

R = TypeVar("R")  # a request
A = TypeVar("A")  # the answer to it
_NEW_TOKENS = 256  # default for tasks that do not set a number, as with `hf`


@register_model("cgpt")
class CgptLM(TemplateLM):  # type: ignore[misc]  # lm-eval has no types
    """A model for lm-eval. It is read once and kept in memory as float32.

    Arguments of `--model_args`: `path`, a SOURCE as for the commands; `tokenizer`, a folder;
    `engine`, `heads`, `activation` as for `generate`; `max_length`, the context size (default: all
    positions of the model); `max_gen_toks`. Requests are computed one by one, so `batch_size` and
    `device`, which lm-eval passes, have no effect.
    """

    def __init__(
        self,
        path: str,
        tokenizer: str | None = None,
        engine: str = "numpy",
        heads: int | None = None,
        activation: str | None = None,
        max_length: int | None = None,
        max_gen_toks: int = _NEW_TOKENS,
        **_unused: object,
    ) -> None:
        super().__init__()
        checkpoint = open_checkpoint(path)
        computing = backend(engine, cores() if os.environ.get("OPENBLAS_NUM_THREADS") == "1" else 1)
        self.model = Model(checkpoint, computing, heads=heads, activation=activation, resident=True)
        self.max_length = max_length or self.model.hyper.n_positions
        self.max_gen_toks = max_gen_toks
        self._vocabulary = self.model.hyper.vocab_size
        self._tokenizer = text_codec.find(checkpoint, tokenizer, self._vocabulary)
        self._encoder = text_codec.Encoder(self._tokenizer)

    @property
    def eot_token_id(self) -> int:
        """The ID of the token that ends a text."""
        end = self._tokenizer.eos
        return self.prefix_token_id if end is None else end

    @property
    def prefix_token_id(self) -> int:
        """The ID of the token that precedes a text."""
        return prefix_id(self._tokenizer, self.model.path)

    @property
    def tokenizer_name(self) -> str:
        """The name of the tokenizer in the keys of cached requests."""
        return self.model.path.replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_unused: object
    ) -> list[int]:
        """Return the token IDs of a text; special tokens are added only on request."""
        return self._encoder.encode(string, special=bool(add_special_tokens))

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        **_unused: object,
    ) -> list[tuple[float, bool]]:
        """Return each continuation's log-probability and whether greedy decoding yields it."""

        def answer(request: tuple[Any, list[int], list[int]]) -> tuple[float, bool]:
            loss = self._loss(*request[1:])
            return -loss.nats, loss.top == loss.tokens

        return self._answers("loglikelihood", requests, answer, key=operator.itemgetter(0))

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Return the log-probability of each whole text, in nats."""

        def answer(arguments: tuple[str]) -> float:
            ids = np.array([self.prefix_token_id, *self.tok_encode(*arguments)], np.int64)
            windows = rolling_windows(len(ids) - 1, self.max_length, self.max_length)
            return -evaluate(self.model, ids, windows, self._vocabulary).nats

        return self._answers("loglikelihood_rolling", [r.args for r in requests], answer)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return the generated continuation of each context, up to a stop sequence."""

        def answer(arguments: tuple[str, dict[str, Any]]) -> str:
            return self._generate(*arguments)

        return self._answers("generate_until", [r.args for r in requests], answer)

    def _answers(
        self,
        kind: str,
        requests: Sequence[R],
        answer: Callable[[R], A],
        key: Callable[[R], Any] = lambda request: request,
    ) -> list[A]:
        """Return the answers, which lm-eval may cache on disk under their keys."""
        answers = []
        with progress(kind, len(requests), unit=" requests") as advance:
            for request in requests:
                answers.append(answer(request))
                self.cache_hook.add_partial(kind, key(request), answers[-1])
                advance(1)
        return answers

    def _loss(self, context: list[int], continuation: list[int]) -> Loss:
        """Return the loss of the continuation; input that is too long is cut at its start."""
        ids = (context + continuation)[-(self.max_length + 1) :]
        window = TokenWindow(0, len(ids) - 1, min(len(continuation), len(ids) - 1))
        return evaluate(self.model, np.array(ids, np.int64), [window], self._vocabulary)

    def _generate(self, context: str, settings: dict[str, Any]) -> str:
        wanted = normalize_gen_kwargs(settings, self.max_gen_toks)
        most, end = wanted["max_gen_toks"], self.eot_token_id
        if most >= self.max_length:
            raise BadRequest(
                f"{most:,} new tokens leave no room for a prompt in {self.max_length:,} positions",
                hint="lower max_gen_toks, or raise max_length",
            )
        stops = handle_stop_sequences(wanted["until"], eos=None)
        prompt = self.tok_encode(context)[most - self.max_length :]
        how = GenerationSettings(most, ends=frozenset([end]), warp=_warp(wanted))
        return continued(self.model, prompt, how, self._tokenizer, stops).text or ""


def _warp(wanted: dict[str, Any]) -> SamplingOptions | None:
    """Return the sampling settings of a task, None for greedy; defaults are transformers'."""
    if not wanted["do_sample"]:
        return None
    cut = {"top_k": wanted.get("top_k", 50), "top_p": wanted.get("top_p", 1.0)}
    return SamplingOptions(wanted["temperature"] or 1.0, **cut)


def main() -> None:
    """Run lm-eval's command line with the model `cgpt` registered."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
