"""A folder for transformers: safetensors with canonical names, configuration and tokenizer.

It is not a module of `formats/` because it is made from more than tensors.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cgpt_convert.architectures.hf_config_check import CONFIG, check_config, read_config
from cgpt_convert.architectures.hooks import has_hook, hook
from cgpt_convert.architectures.recognised_names import Recognised
from cgpt_convert.architectures.wrapper_prefixes import wrapped_by_torch
from cgpt_convert.core.errors import Unsupported
from cgpt_convert.core.text import printable
from cgpt_convert.plan import FilePlan, Request
from cgpt_convert.sources.paths import is_file
from cgpt_convert.targets.hf import hf_config, hf_tokenizer
from cgpt_convert.targets.hf.code_keys import cleaned_file, encoded
from cgpt_convert.targets.llama_cpp.restore_hf import EmbeddedFiles
from cgpt_convert.targets.llama_cpp.restore_hf import inside as embedded
from cgpt_convert.targets.model_targets import ModelContent, ModelRequest
from cgpt_convert.targets.selection import fold_ties
from cgpt_convert.targets.tokenizer.files import CONFIG as TOKENIZER_CONFIG
from cgpt_convert.targets.tokenizer.files import SPECIAL, read_file
from cgpt_convert.targets.whole_model import (
    ONLY_WEIGHTS,
    folder_of,
    heads,
    layout_lines,
    whole_model,
)
from cgpt_convert.tensors.content_digest import same_values
from cgpt_convert.tensors.tensor import Tensor

NAME = "hf"
GENERATION = "generation_config.json"
MANIFEST = "cgpt-convert.json"  # lists the files, so that a later run may replace the folder
_WEIGHTS = "model.safetensors"
# settings files, in contrast to vocabularies, whose keys are tokens
_SETTINGS = {CONFIG, GENERATION, TOKENIZER_CONFIG, SPECIAL}


class _HfParts(NamedTuple):
    tensors: list[Tensor]
    aliases: dict[str, str]
    files: dict[str, bytes]
    lines: list[str]


def content(model: ModelRequest) -> ModelContent:
    """Return the files of the folder for a model.

    The configuration and the tokenizer are those next to the checkpoint, or in it if it is a GGUF.
    Raises Unsupported, with a hint, if transformers could not load the result.
    """
    path, tensors = model.checkpoint.path, model.tensors
    inside = embedded(model.checkpoint)
    said = inside.config if inside else None
    config = read_config(folder_of(path)) if said is None else said
    recognised = whole_model(path, tensors, config)
    if recognised is None or not has_hook(recognised.architecture, "hf"):
        if recognised is not None:
            _refuse_changes(recognised, path, config if said is None else None)
        parts = _unknown(path, tensors, config, model.tokenizer, recognised)
    else:
        own = config if said is None else None
        parts = _known(recognised, path, tensors, own, model.tokenizer, inside)
    contents, dropped = _without_code(parts.files, folder_of(path))
    lines = (*parts.lines, *dropped)
    request = Request(
        _WEIGHTS, tuple(parts.tensors), parts.aliases, max_shard_nbytes=model.max_shard_nbytes
    )

    def finish(weights: list[FilePlan]) -> list[FilePlan]:
        files = [FilePlan(name, (data,)) for name, data in sorted(contents.items())]
        plans = [*weights, *files]
        return [*plans, _manifest(plans, lines)]

    return ModelContent(request, lines, recognised, finish)


def _without_code(files: Mapping[str, bytes], folder: str) -> tuple[dict[str, bytes], list[str]]:
    """Return the files without keys that make a loader run code, and a line per change."""
    kept, lines = dict(files), []
    for name in sorted(files.keys() & _SETTINGS):
        kept[name], line = cleaned_file(files[name], name, os.path.join(folder, name))
        lines += line
    return kept, lines


def _known(
    recognised: Recognised,
    path: str,
    tensors: Sequence[Tensor],
    config: dict[str, Any] | None,
    given: str | None,
    inside: EmbeddedFiles | None,
) -> _HfParts:
    n_head = heads(recognised, path, config or {})
    folder, sizes = folder_of(path), recognised.sizes
    files, tokenizer, said = hf_tokenizer.files(
        folder,
        given,
        sizes["vocab_size"],
        sizes["n_positions"],
        inside.tokenizer if inside and given is None else None,
    )
    renamed, aliases, lines = _renamed(recognised, {t.name: t for t in tensors})
    tied = not recognised.architecture.ties.keys() & {tensor.name for tensor in renamed}
    if config is None:
        stated = (inside and inside.config) or {}
        made, line = hf_config.make(recognised, n_head, tokenizer, stated)
        mended, _ = hf_config.mend(recognised, made, tied=tied, dtype=_dtype(renamed))
        changes = [line]
    else:
        mended, changes = hf_config.mend(recognised, config, tied=tied, dtype=_dtype(renamed))
    hf_config.check_fits(recognised, mended, renamed, path)
    files |= {CONFIG: encoded(mended)}
    copied = {} if inside else _generation(folder)
    files |= copied or {GENERATION: encoded(hf_config.generation(mended))}
    return _HfParts(renamed, aliases, files, [*lines, *changes, *said])


def _unknown(
    path: str,
    tensors: Sequence[Tensor],
    config: dict[str, Any] | None,
    given: str | None,
    recognised: Recognised | None,
) -> _HfParts:
    """Return the parts for an architecture without a configuration module.

    Everything is copied unchanged. `recognised` is None for an unknown architecture.
    """
    if config is None:
        raise Unsupported(
            f"the architecture of the tensors is unknown, and there is no {CONFIG}",
            where=path,
            hint=f"put the model's {CONFIG} next to the weights, or {ONLY_WEIGHTS}",
        )
    _refuse_wrapped(path, [tensor.name for tensor in tensors])
    folder = folder_of(path)
    kept, aliases = fold_ties(tensors)
    files = hf_tokenizer.as_they_are(folder if given is None else given) | _generation(folder)
    why = (
        "the architecture is unknown"
        if recognised is None
        else f"there are no --to hf rules for {recognised.architecture.name}"
    )
    lines = [f"{why}: names, {CONFIG} and tokenizer are copied without checks"]
    lines += check_config(recognised, config) if recognised else []
    if any(tensor.target for tensor in tensors):
        name = _dtype(kept)
        files[CONFIG] = encoded(hf_config.with_dtype(config, name))
        lines.append(f"{CONFIG}: set the dtype of the weights to {name}")
    else:
        files[CONFIG] = read_file(os.path.join(folder, CONFIG))
    return _HfParts(kept, aliases, files, lines)


def _refuse_changes(recognised: Recognised, path: str, config: Mapping[str, Any] | None) -> None:
    """Raise Unsupported if the folder of an architecture without a hook cannot be a plain copy.

    That is the case without a config.json next to the weights, and where transformers has other
    names or another layout.
    """
    if config is None or recognised.wrapper or recognised.linear:
        hook(recognised.architecture, "hf", path)


def _refuse_wrapped(path: str, names: Sequence[str]) -> None:
    """Raise Unsupported if the names have a torch wrapper, so that transformers would match none.

    transformers would load the folder without an error, with random weights.
    """
    wrapper = wrapped_by_torch(names)
    if wrapper:
        hint = "use --to safetensors to write the tensors under their present names"
        if all(name.startswith(f"{wrapper}.") for name in names):
            hint = f"use --root {wrapper} to remove it from the names, or --to safetensors"
        raise Unsupported(
            f"the tensor names contain torch's wrapper {wrapper!r}, so transformers would not find "
            "the weights",
            where=path,
            hint=hint,
        )


def _renamed(
    recognised: Recognised, tensors: Mapping[str, Tensor]
) -> tuple[list[Tensor], dict[str, str], list[str]]:
    """Return tensors under canonical names, omitted aliases with their twins, and lines."""
    names = recognised.names("hf")
    ties = recognised.architecture.ties
    kept: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    lines: list[str] = []
    canonical = {
        names[name]: recognised.laid_out(name, tensor)
        for name, tensor in tensors.items()
        if name in names
    }
    for name, tensor in canonical.items():
        twin = canonical[ties[name]] if name in ties else None
        if twin is None or not same_values(tensor, twin):
            kept[name] = tensor.renamed(name)
        else:
            aliases[name] = twin_name = ties[name]
            lines.append(f"{name} equals {twin_name} and is not written")
    lines += layout_lines(recognised)
    if recognised.prefix.removesuffix(recognised.architecture.canonical) == recognised.prefix:
        lines.append(
            f"added the prefix {recognised.architecture.canonical!r} to the names, as in "
            "transformers"
        )
    if recognised.skipped:
        masks = printable(", ".join(recognised.skipped[:2]))
        lines.append(
            f"skipped {len(recognised.skipped):,} buffers ({masks} ...), which transformers "
            "computes"
        )
    return list(kept.values()), aliases, lines


def _dtype(tensors: Sequence[Tensor]) -> str:
    """Return the name of the floating-point dtype that takes the most bytes."""
    nbytes: Counter[str] = Counter()
    for tensor in tensors:
        nbytes[tensor.dtype.name] += tensor.nbytes * tensor.dtype.is_float
    return nbytes.most_common(1)[0][0]


def _generation(folder: str) -> dict[str, bytes]:
    path = os.path.join(folder, GENERATION)
    return {GENERATION: read_file(path)} if is_file(path) else {}


def _manifest(plans: Sequence[FilePlan], lines: Sequence[str]) -> FilePlan:
    rows = [{"file": plan.path, "nbytes": plan.nbytes} for plan in plans]
    content = {"format": "cgpt-convert hf 1", "files": rows, "notes": list(lines)}
    return FilePlan(MANIFEST, (encoded(content),))
