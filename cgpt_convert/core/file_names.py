"""Tensor names as file names: safe on every file system, and back again.

A name that is ordinary ASCII stays as it is. Anything else is percent-encoded as in RFC 3986 2.1,
so that a file name tells the tensor's name without a table. Two names never give one file, not
even where case is ignored (Windows, macOS) or Unicode is normalised (macOS).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

FILE_NAME_BYTES = 255  # NAME_MAX of Linux and macOS; NTFS counts 255 UTF-16 units


def _encoding(literal: bytes) -> dict[int, str]:
    """How each byte is written, for `str.translate`."""
    return {byte: chr(byte) if byte in literal else f"%{byte:02X}" for byte in range(256)}


_CASELESS = _encoding(b"abcdefghijklmnopqrstuvwxyz0123456789-._~")
_UNRESERVED = _encoding(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
# learn.microsoft.com, "Naming Files, Paths, and Namespaces": reserved with any extension, too
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|$)", re.IGNORECASE)
_EMPTY = "%"  # an escape that no encoding gives
_SHORTENED = "%~"  # another: what follows is a digest
_DIGEST = 32  # hex digits of SHA-256; 128 bits do not collide
_ENCODED = re.compile(r"(?:[A-Za-z0-9._~-]|%[0-9A-F]{2})+", re.ASCII)


def excluding(names: Sequence[str]) -> str:
    """Return the options that skip these tensors, the first few of them, to paste into a shell."""
    shown = " ".join(f"--exclude '{name}'" for name in names[:_SHOWN])
    return shown + " ..." * (len(names) > _SHOWN)


_SHOWN = 3


def file_names(names: Iterable[str], suffix: str = "") -> dict[str, str]:
    """A file name ending in `suffix` for each name; all different, whatever a file system ignores.

    Names that differ only in case have their capitals encoded. Names whose file name would be
    longer than 255 bytes are cut and end in a digest: the only ones `tensor_name` cannot give back.
    """
    plain = {name: _encoded(name, _UNRESERVED) for name in names}
    folded = Counter(text.lower() for text in plain.values())
    files = {}
    for name, text in plain.items():
        ambiguous = folded[text.lower()] > 1
        stem = _encoded(name, _CASELESS) if ambiguous else text
        files[name] = _shortened(name, stem, FILE_NAME_BYTES - len(suffix)) + suffix
    return files


def tensor_name(stem: str) -> str | None:
    """The name that `stem` (a file name less its suffix) stands for; None if it stands for none."""
    if stem == _EMPTY:
        return ""
    if not _ENCODED.fullmatch(stem):
        return None
    raw = re.sub("%(..)", lambda found: chr(int(found[1], 16)), stem).encode("latin-1")
    try:
        return raw.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return None


def _encoded(name: str, literal: dict[int, str]) -> str:
    # pickles may hold lone surrogates; they have bytes, if not legal ones
    raw = name.encode("utf-8", "surrogatepass")
    text = raw.decode("latin-1").translate(literal)
    if text[:1] in (".", "-") or _DEVICE.match(text):  # hidden, an option, or a device
        text = f"%{ord(text[0]):02X}{text[1:]}"
    if text.endswith("."):  # Windows drops it
        text = f"{text[:-1]}%2E"
    return text or _EMPTY


def _shortened(name: str, stem: str, room: int) -> str:
    if len(stem) <= room:
        return stem
    import hashlib

    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST]
    return stem[: room - len(_SHORTENED) - _DIGEST] + _SHORTENED + digest
