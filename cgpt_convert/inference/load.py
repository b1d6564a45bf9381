"""Prepare a checkpoint for inference: its tensors by role, and its configuration."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from cgpt_convert.architectures.hf_config_check import CONFIG, check_config, read_config
from cgpt_convert.architectures.hooks import ModelSizes, hook, with_hook
from cgpt_convert.architectures.recognise import recognise
from cgpt_convert.architectures.recognised_names import Recognised
from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.core.errors import BadRequest, Malformed, Unsupported
from cgpt_convert.targets.llama_cpp import restore_hf
from cgpt_convert.targets.selection import TensorSelection, select
from cgpt_convert.targets.tokenizer.bpe import Tokenizer
from cgpt_convert.targets.whole_model import end_id, folder_of, refuse_misnamed
from cgpt_convert.tensors.tensor import Tensor

if TYPE_CHECKING:
    from types import ModuleType

Key = tuple[str, int | None]  # a rule's name and the layer


class ModelSource(NamedTuple):
    """A model that can be computed, whose weights are not read yet."""

    checkpoint: Checkpoint
    tensors: Mapping[Key, Tensor]
    hyper: ModelSizes
    config: Mapping[str, Any]  # from config.json and other sources
    recognised: Recognised
    tied: bool  # whether the head is the token embedding
    forward: ModuleType  # the architecture's forward pass
    lines: tuple[str, ...]  # contradictions between configuration and tensors


class _FileTensors(dict[str, Tensor]):
    """Tensors with the path of their file, whose name can indicate muP weights."""

    path = ""


def source(
    checkpoint: Checkpoint,
    heads: int | None = None,
    activation: str | None = None,
    assumed: Mapping[str, Any] | None = None,
) -> ModelSource:
    """Return the model in a checkpoint of any kind; only config.json is read.

    `heads` and `activation` override the configuration; `assumed` has config.json keys for missing
    values. Raises Unsupported, naming every mismatch, unless the tensors are a model of a supported
    architecture.
    """
    where = checkpoint.path
    inside = restore_hf.is_gguf(checkpoint)
    named = restore_hf.undo(checkpoint) if inside else checkpoint
    tensors = _FileTensors((t.name, t) for t in select(named, TensorSelection(tied="copy")).tensors)
    tensors.path = where
    said, configured = _configuration(checkpoint, tensors)
    config = {**(assumed or {}), **said}
    if heads is not None:
        config["n_head"] = heads
    recognised = recognise(tensors, config)
    if recognised is None:
        refuse_misnamed(where, tensors, config)
    recognition = _computable(recognised, where)
    forward = hook(recognition.architecture, "forward", where)
    if configured:
        config = {**config, **forward.CONFIG_DEFAULTS, **said}
        config |= {} if heads is None else {"n_head": heads}
    if heads not in (None, recognition.n_head):
        width = recognition.sizes["n_embd"]
        raise BadRequest(
            f"{heads} attention heads do not divide the hidden size {width:,}",
            where=where,
            hint="pass the model's number of heads",
        )
    places = {
        place.key: recognition.laid_out(n, tensors[n]) for n, place in recognition.places.items()
    }
    hyper = forward.hyperparameters(recognition, config, where, activation)
    lines = check_config(recognition, config) if config else []
    tied = _tied(recognition, config, where)
    return ModelSource(checkpoint, places, hyper, config, recognition, tied, forward, tuple(lines))


def ends(model: ModelSource, tokenizer: Tokenizer | None) -> frozenset[int]:
    """Return the configured end tokens, else the tokenizer's or the architecture's, else none."""
    said = model.config.get("eos_token_id")
    if isinstance(said, list):
        return frozenset(token for token in said if type(token) is int)
    end = end_id(model.recognised, model.config, tokenizer, "eos")
    return frozenset() if end is None else frozenset([end])


def beside(path: str) -> Iterator[str]:
    """Yield the folders that may contain the configuration and tokenizer of the weights at `path`.

    Files extracted into a folder have them in the parent folder.
    """
    yield folder_of(path)
    if os.path.isdir(path):
        yield os.path.dirname(os.path.abspath(path))


def _configuration(
    checkpoint: Checkpoint, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Any], bool]:
    """Return the configuration, and whether config.json was used; a GGUF header takes precedence.

    A config.json next to a GGUF file or in the parent folder may belong to another model, so it is
    used only if it contradicts nothing.
    """
    own: dict[str, Any] = {}
    if restore_hf.is_gguf(checkpoint):
        own = restore_hf.config(checkpoint) or {}
        known = restore_hf.architecture_of(checkpoint)
        own["tie_word_embeddings"] = not (known and known.ties.keys() & tensors.keys())
    for number, folder in enumerate(beside(checkpoint.path)):
        config = read_config(folder)
        if config is not None:
            if not (own or number) or _fits({**config, **own}, config, tensors):
                return {**config, **own}, True
            break
    return own, False


def _fits(config: dict[str, Any], said: dict[str, Any], tensors: Mapping[str, Tensor]) -> bool:
    recognised = recognise(tensors, config)
    return recognised is not None and not check_config(recognised, said)


def _computable(recognised: Recognised | None, where: str) -> Recognised:
    """Return the recognised model. Raises Unsupported unless its logits can be computed."""
    if recognised is None:
        known = ", ".join(with_hook("forward"))
        raise Unsupported(
            "this model cannot be run: the architecture of the tensors is unknown",
            where=where,
            hint=f"supported: {known}; run inspect to see the tensors",
        )
    hook(recognised.architecture, "forward", where)
    if recognised.refusal:
        raise Unsupported(recognised.refusal, where=where)
    if recognised.misfits:
        raise Unsupported(
            f"the tensors differ from {recognised.architecture.name}: "
            f"{'; '.join(recognised.misfits)}",
            where=where,
        )
    return recognised


def _tied(recognised: Recognised, config: Mapping[str, Any], where: str) -> bool:
    """Return whether the head is the token embedding; as in transformers, by configuration."""
    tied = config.get("tie_word_embeddings")
    if tied is None:
        return recognised.head != "own copy"
    if not tied and recognised.head == "absent":
        head = next(iter(recognised.architecture.ties), "head")
        raise Malformed(
            f"{CONFIG} has tie_word_embeddings false, but the file has no {head}",
            where=where,
            hint=f"set tie_word_embeddings to true in {CONFIG} if the head is the embedding",
        )
    return bool(tied)
