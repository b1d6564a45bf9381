"""`cgpt-convert demo`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.cli import group, style
from cgpt_convert.core.errors import CannotWrite, CheckFailed
from cgpt_convert.formats.open import open_checkpoint
from cgpt_convert.plan import FilePlan
from cgpt_convert.tensors.content_digest import tensor_digest
from cgpt_convert.writing.writer import WriteOptions, write_folder

if TYPE_CHECKING:
    from cgpt_convert.inference.model import Model

_MODEL = "pytorch_model.bin"
_FILES = (_MODEL, "config.json", "vocab.json", "merges.txt", "held-out.txt")


class _DemoOutput(NamedTuple):
    """An output made from the model, and its command."""

    name: str
    options: tuple[str, ...] = ()
    command: str = "convert"
    as_it_was: bool = True  # whether all tensors keep their names
    lossless: bool = True


_OUTPUTS = (
    _DemoOutput("model.safetensors"),
    _DemoOutput("model.npz"),
    _DemoOutput("npy", ("--to", "npy")),
    _DemoOutput("parameters", command="extract"),
    _DemoOutput("model.bin", ("--to", "torch")),
    _DemoOutput("hf", ("--to", "hf"), as_it_was=False),
    _DemoOutput("model.gguf", as_it_was=False),
    _DemoOutput("model-q8_0.gguf", ("--dtype", "q8_0"), as_it_was=False, lossless=False),
)
_PROMPT = ("You", "Ġare")
_SENTENCE_ENDS = (".", "!", "?")
_MOST = 40  # tokens


@click.command("demo")
@click.argument("folder", metavar="[DIR]", type=click.Path(readable=False), default="cgpt-demo")
def command(folder: str) -> None:
    """Tour the commands on a small bundled model; write the files to DIR (default: cgpt-demo).

    The model has the shape and the storage layout of Cerebras-GPT, and is trained on Jane Austen's
    novels. Each output is read back, and the tensors that it shares with the source are compared
    bit for bit. Then the model in each output generates a sentence, without torch.
    """
    if os.path.lexists(folder) and (not os.path.isdir(folder) or os.listdir(folder)):
        raise CannotWrite("already exists", where=folder, hint="choose another folder")
    inside = resources.files("cgpt_convert") / "demo"
    files = [FilePlan(name, ((inside / name).read_bytes(),)) for name in _FILES]
    write_folder(files, folder, WriteOptions())
    model = os.path.join(folder, _MODEL)
    _run("inspect", model, "--tree")
    for output in _OUTPUTS:
        path = os.path.join(folder, output.name)
        _run(output.command, model, "-o", path, *output.options)
        if output.as_it_was:
            _compare(open_checkpoint(model), open_checkpoint(path))
    _speak(folder)
    click.echo(f"\nThe files are in {folder}/.")


def _run(*words: str) -> None:
    """Print the command as typed in a shell, and run it."""
    click.echo(style.bold(f"\n$ cgpt-convert {shlex.join(words)}"))
    group.main(list(words), standalone_mode=False)


def _compare(source: Checkpoint, output: Checkpoint) -> None:
    """Check that the output has exactly the source's tensors, and print the result."""
    expected = {name: tensor_digest(tensor) for name, tensor in source.items()}
    digests = {name: tensor_digest(tensor) for name, tensor in output.items()}
    wrong = sorted(expected.items() ^ digests.items())
    if wrong:
        raise CheckFailed(f"{wrong[0][0]!r} differs from the source", where=output.path)
    reader = _independent(output.path)
    by = f" with cgpt-convert and {reader.__module__.split('.')[0]}" if reader else ""
    if reader:
        theirs = reader(output.path)
        for name in theirs.keys() - {"__metadata__"}:  # where an .npz records its ties
            if theirs[name].tobytes() != source[name].numpy().tobytes():
                message = f"{reader.__module__} reads other values for {name!r}"
                raise CheckFailed(message, where=output.path)
    click.echo(f"  read back{by}: all {len(digests)} tensors equal the source, bit for bit")


def _independent(path: str) -> Callable[[str], Mapping[str, Any]] | None:
    """Return another library's reader for the format, among the installed dependencies."""
    if path.endswith(".npz"):
        import numpy as np

        return np.load
    if path.endswith(".safetensors"):
        from safetensors.numpy import load_file

        return load_file
    return None


def _speak(folder: str) -> None:
    """Continue a sentence with the model in each file. CheckFailed if a lossless one differs."""
    from cgpt_convert.inference.model import Model

    start = "".join(_PROMPT).replace("Ġ", " ")
    click.echo(style.bold(f"\n{start} ... continued by the model in each file:"))
    base = Model(open_checkpoint(os.path.join(folder, _MODEL)), resident=True)
    expected, ids = _sentence(base)
    click.echo(f"  {_MODEL:<17}  {expected}")
    for output in _OUTPUTS:
        model = Model(open_checkpoint(os.path.join(folder, output.name)), resident=True)
        text, _ = _sentence(model)
        if output.lossless and text != expected:
            raise CheckFailed(f"the model generates another text: {text}", where=model.path)
        click.echo(f"  {output.name:<17}  {text}")
        if not output.lossless:
            kl = _divergence(base, model, ids)
            click.echo(f"  {'':<17}  KL divergence from float32: {kl:.1e} nats per token")


def _sentence(model: Model) -> tuple[str, list[int]]:
    """Return the prompt and its greedy continuation, as text and as IDs."""
    from cgpt_convert.inference.generate.generation_settings import GenerationSettings
    from cgpt_convert.inference.generate.stream import continued
    from cgpt_convert.inference.text_codec import Decoder, find

    tokenizer = find(model.source.checkpoint, None, model.hyper.vocab_size)
    ends = frozenset(tokenizer.tokens.index(end) for end in _SENTENCE_ENDS)
    prompt = [tokenizer.tokens.index(token) for token in _PROMPT]
    ids = prompt + continued(model, prompt, GenerationSettings(_MOST, ends), None).new_ids
    return Decoder(tokenizer).decode(ids), ids


def _divergence(base: Model, other: Model, ids: list[int]) -> float:
    """Return the mean KL divergence over the tokens of a sentence, in nats per token."""
    import numpy as np

    from cgpt_convert.inference.evaluate.divergence import diverge
    from cgpt_convert.inference.evaluate.text_windows import TokenWindow

    window = TokenWindow(0, len(ids) - 1, len(ids) - 1)
    return diverge(base, other, np.array(ids), [window], base.hyper.vocab_size).kl_mean
