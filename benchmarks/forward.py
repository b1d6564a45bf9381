"""The speed of the forward pass, ours and that of other programs.

    python -m benchmarks.forward cgpt_convert FILE IDS NEW THREADS
    python -m benchmarks.forward transformers FOLDER IDS NEW THREADS
    python -m benchmarks.forward llama.cpp FILE.gguf IDS NEW THREADS

Continues the tokens IDS greedily by NEW, and prints `new_ids` and `seconds` as `generate --json`
does: `first` until the first of them, `rest` for the others. Reading the weights and one short run
before are not counted. llama.cpp comes from the wheel `xllamacpp`, with its own choice of attention
and cache.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any

Continue = Callable[[list[int], int], tuple[list[int], list[float]]]  # ids and times, first start's


class _Times:
    """What transformers calls with each token."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def put(self, _ids: object) -> None:
        """Note the time; the first call is for the prompt, before anything is computed."""
        self.at.append(perf_counter())

    def end(self) -> None:
        """Nothing."""


def ours(path: str, threads: int) -> Continue:
    """What continues with this package, BLAS left one thread as the commands leave it."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    from cgpt_convert import open_checkpoint
    from cgpt_convert.inference.backend import backend
    from cgpt_convert.inference.generate.generation_settings import GenerationSettings
    from cgpt_convert.inference.generate.loop import generate
    from cgpt_convert.inference.model import Model

    model = Model(open_checkpoint(path), backend("numpy", threads), resident=True)
    model.load(threads)

    def continued(ids: list[int], new: int) -> tuple[list[int], list[float]]:
        found, times = [], [perf_counter()]
        for token in generate(model, ids, GenerationSettings(new)):
            found.append(token)
            times.append(perf_counter())
        return found, times

    return continued


def transformers(folder: str, threads: int) -> Continue:
    """What continues with transformers' `generate`."""
    import torch
    from transformers import GPT2LMHeadModel

    torch.set_num_threads(threads)
    model: Any = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32)
    model.eval()

    def continued(ids: list[int], new: int) -> tuple[list[int], list[float]]:
        times = _Times()
        prompt = torch.tensor([ids])
        options = {"max_new_tokens": new, "min_new_tokens": new, "pad_token_id": 0}
        found = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            streamer=times,
            **options,
        )
        return found[0, len(ids) :].tolist(), times.at

    return continued


def llama_cpp(path: str, threads: int) -> Continue:
    """What continues with llama.cpp, its C functions called."""
    import numpy as np

    from tests.helpers import llama_logits

    lib = llama_logits.typed()
    lib.llama_log_set(ctypes.cast(llama_logits.log, llama_logits.POINTER), None)
    lib.llama_backend_init()
    model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
    vocabulary = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))

    def continued(ids: list[int], new: int) -> tuple[list[int], list[float]]:
        size = len(ids) + new
        default = lib.llama_context_default_params()
        params = llama_logits.context_params(default, size, threads, plain=False)
        context = lib.llama_init_from_model(model, params)
        batch = lib.llama_batch_init(size, 0, 1)

        def following(tokens: list[int], at: int) -> int:
            """The token after these, which begin at that position."""
            batch.n_tokens = len(tokens)
            for i, token in enumerate(tokens):
                batch.token[i], batch.pos[i] = token, at + i
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
                batch.logits[i] = i == len(tokens) - 1
            if lib.llama_decode(context, batch):
                sys.exit("llama.cpp does not evaluate it")
            row = lib.llama_get_logits_ith(context, len(tokens) - 1)
            return int(np.ctypeslib.as_array(row, shape=(vocabulary,)).argmax())

        times = [perf_counter()]
        found = [following(ids, 0)]
        times.append(perf_counter())
        while len(found) < new:
            found.append(following(found[-1:], len(ids) + len(found) - 1))
            times.append(perf_counter())
        return found, times

    return continued


def main(program: str, model: str, ids: str, new: str, threads: str) -> None:
    """Print what it took."""
    programs = {"cgpt_convert": ours, "transformers": transformers, "llama.cpp": llama_cpp}
    continued = programs[program](model, int(threads))
    prompt = [int(word) for word in ids.split(",")]
    continued(prompt[:8], 2)
    found, times = continued(prompt, int(new))
    seconds = {"first": times[1] - times[0], "rest": times[-1] - times[1]}
    print(json.dumps({"new_ids": found, "seconds": seconds}))
    sys.stdout.flush()
    os._exit(0)  # llama.cpp's destructors may crash


if __name__ == "__main__":
    main(*sys.argv[1:])
