"""Trains the model that the wheel ships for `demo`, and writes it as the vendor wrote its own.

    apt-get download r-cran-janeaustenr && dpkg -x r-cran-janeaustenr_*.deb austen
    python -m tests.helpers.train_demo austen/usr/lib/R/site-library/janeaustenr/data/Rdata.rdb OUT

OUT gets `pytorch_model.bin`, `config.json`, `vocab.json`, `merges.txt`, `loss.csv` and
`held-out.txt`, the last chapter of Persuasion, which is not trained on. Everything is seeded, on
one thread; another processor or version of torch rounds otherwise, and ends with other weights of
about the same loss.
"""

from __future__ import annotations

import argparse
import json
import math
import operator
import re
import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel

from tests.helpers import vendor

SHAPE = vendor.Shape(n_layer=5, n_embd=128, n_head=4, n_inner=512, vocab_size=2048, n_positions=256)
END = "<|endoftext|>"
SEED = 1811  # when her first novel appeared
STEPS, WARMUP, BATCH = 1400, 20, 8
MUON_RATE, ADAM_RATE, DECAY, CLIP = 0.02, 3e-3, 0.01, 1.0  # the rates at their peak
EVERY = 50  # steps between two measurements

_HEADING = re.compile(r"^ *(?:chapter) +[ivxl\d]+\.? *$", re.IGNORECASE)
_NOT_HERS = "A NOTE ON THE TEXT"  # closes Northanger Abbey
_PIECE = re.compile(r"[a-z].*[a-z]")  # what is no prose has no small letters
_ASIDE = re.compile(r"[\[*]|finis$|the end$", re.IGNORECASE)


def novels(rdb: Path) -> list[list[str]]:
    """The lines of the six novels, in the order of their titles.

    R keeps each value as the size of what follows, zlib of its XDR serialization: here one
    character vector, a line an element (R Internals, 1.8 "Serialization Formats").
    """
    data, found = rdb.read_bytes(), []
    while data:
        inflate = zlib.decompressobj()
        found.append(_strings(inflate.decompress(data[4:])))
        data = inflate.unused_data
    return found


def _strings(value: bytes) -> list[str]:
    start = value.index(b"UTF-8") + 5
    kind, count = struct.unpack_from(">ii", value, start)
    assert kind & 255 == 16, "not a character vector"
    lines, at = [], start + 8
    for _ in range(count):
        (length,) = struct.unpack_from(">i", value, at + 4)
        lines.append(value[at + 8 : at + 8 + length].decode())
        at += 8 + length
    return lines


def chapters(lines: Sequence[str]) -> Iterator[str]:
    """The chapters' prose, a paragraph a line; headings, notes and what precedes them left out."""
    if _NOT_HERS in lines:
        lines = lines[: lines.index(_NOT_HERS)]
    starts = [number for number, line in enumerate(lines) if _HEADING.match(line)]
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        blocks = "\n".join(lines[start + 1 : end]).split("\n\n")
        paragraphs = [" ".join(block.replace("_", "").split()) for block in blocks]
        prose = (text for text in paragraphs if _PIECE.search(text) and not _ASIDE.match(text))
        yield "\n".join(prose) + "\n"


def byte_level_bpe(texts: Sequence[str]) -> Tokenizer:
    """GPT-2's kind of tokenizer, with `<|endoftext|>` as the last of its tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SHAPE.vocab_size - 1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([END])
    assert tokenizer.token_to_id(END) == SHAPE.vocab_size - 1
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, out: Path) -> None:
    """Write the two files in GPT-2's form, where the vocabulary holds the special token too."""
    tokenizer.model.save(str(out))
    vocabulary = sorted(tokenizer.get_vocab().items(), key=operator.itemgetter(1))
    (out / "vocab.json").write_text(json.dumps(dict(vocabulary)) + "\n")


def new_model() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=SHAPE.vocab_size,
            n_positions=SHAPE.n_positions,
            n_embd=SHAPE.n_embd,
            n_layer=SHAPE.n_layer,
            n_head=SHAPE.n_head,
            n_inner=SHAPE.n_inner,
            activation_function="gelu",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    )


def rate(step: int) -> float:
    """The share of the peak learning rate: a linear warm-up, then half a cosine down to zero."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    return (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP))) / 2


def train(model: GPT2LMHeadModel, ids: torch.Tensor, held_out: torch.Tensor) -> Iterator[str]:
    """Train on random windows of `ids`; yields a line of loss.csv every EVERY steps."""
    optimizers = _optimizers(model)
    schedules = [torch.optim.lr_scheduler.LambdaLR(each, rate) for each in optimizers]
    draw = torch.Generator().manual_seed(SEED)
    began, losses = time.process_time(), []
    for step in range(1, STEPS + 1):
        first = torch.randint(len(ids) - SHAPE.n_positions, (BATCH, 1), generator=draw)
        window = ids[first + torch.arange(SHAPE.n_positions)]
        loss = model(window, labels=window).loss
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        losses.append(loss.item())
        if step % EVERY == 0:
            mean = sum(losses) / len(losses)
            losses.clear()
            seconds = time.process_time() - began
            yield f"{step},{mean:.4f},{loss_of(model, held_out):.4f},{seconds:.0f}"


def _optimizers(model: GPT2LMHeadModel) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, which halves the steps; AdamW for all else."""
    layers = [weight for weight in model.transformer.h.parameters() if weight.dim() > 1]
    chosen = set(map(id, layers))
    rest = [weight for weight in model.parameters() if id(weight) not in chosen]
    return [
        torch.optim.Muon(layers, lr=MUON_RATE, weight_decay=DECAY),
        torch.optim.AdamW(rest, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]


@torch.no_grad()
def loss_of(model: GPT2LMHeadModel, ids: torch.Tensor) -> float:
    """Cross-entropy per token in nats, over windows that do not overlap, each but its first."""
    total = count = 0
    for window in ids.split(SHAPE.n_positions):
        total += model(window[None], labels=window[None]).loss.item() * (len(window) - 1)
        count += len(window) - 1
    return total / count


def save(model: GPT2LMHeadModel, out: Path) -> None:
    """Write the weights into the vendor's tensors, whose order, strides and ties stay."""
    weights = model.state_dict()
    state = vendor.state_dict(SHAPE)
    for name, tensor in state.items():
        if name in weights:
            tensor.copy_(weights[name])
    vendor.save(state, out / "pytorch_model.bin")
    vendor.write_config(SHAPE, out)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.helpers.train_demo", description=__doc__)
    parser.add_argument("rdb", type=Path, help="Rdata.rdb of the package janeaustenr")
    parser.add_argument("out", type=Path, help="the folder to write into")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    books = [list(chapters(lines)) for lines in novels(options.rdb)]
    persuasion = next(book for book in books if "Sir Walter Elliot, of Kellynch" in book[0])
    held_out = persuasion.pop()
    (options.out / "held-out.txt").write_text(held_out)
    texts = [chapter for book in books for chapter in book]
    tokenizer = byte_level_bpe(texts)
    save_tokenizer(tokenizer, options.out)
    ids = tokenizer.encode(END + END.join(texts)).ids
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    model = new_model()
    with (options.out / "loss.csv").open("w") as file:
        print("step,training,held_out,cpu_seconds", file=file)
        for line in train(model, torch.tensor(ids), torch.tensor(tokenizer.encode(held_out).ids)):
            print(line, file=file, flush=True)
    save(model, options.out)


if __name__ == "__main__":
    main()
