"""Conversion of tensor names to portable file names, and back.

Plain ASCII names are kept. Other characters are percent-encoded as in RFC 3986, 2.1, so that the
tensor name can be recovered without a table. Two names never map to the same file, even on file
systems that ignore case (Windows, macOS) or normalise Unicode (macOS).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

FILE_NAME_BYTES = 255  # NAME_MAX of Linux and macOS; NTFS counts 255 UTF-16 units


def _encoding(literal: bytes) -> dict[int, str]:
    """Return the `str.translate` table that percent-encodes all bytes except those in `literal`."""
    return {byte: chr(byte) if byte in literal else f"%{byte:02X}" for byte in range(256)}


_CASELESS = _encoding(b"abcdefghijklmnopqrstuvwxyz0123456789-._~")
_UNRESERVED = _encoding(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
# learn.microsoft.com, "Naming Files, Paths, and Namespaces": reserved with any extension, too
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|$)", re.IGNORECASE)
_EMPTY = "%"  # an escape that the encoding never produces
_SHORTENED = "%~"  # another such escape, followed by a digest
_DIGEST = 32  # hex digits of SHA-256; 128 bits do not collide
_ENCODED = re.compile(r"(?:[A-Za-z0-9._~-]|%[0-9A-F]{2})+", re.ASCII)


def excluding(names: Sequence[str]) -> str:
    """Return `--exclude` options for the first of these tensors, to paste into a shell."""
    shown = " ".join(f"--exclude '{name}'" for name in names[:_SHOWN])
    return shown + " ..." * (len(names) > _SHOWN)


_SHOWN = 3


def file_names(names: Iterable[str], suffix: str = "") -> dict[str, str]:
    """Return a distinct file name ending in `suffix` for each tensor name.

    If names differ only in case, their capitals are encoded. If a file name would exceed 255 bytes,
    it is cut and ends in a digest; `tensor_name` cannot convert such a name back.
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
    """Return the tensor name encoded as `stem`, a file name without suffix; else None."""
    if stem == _EMPTY:
        return ""
    if not _ENCODED.fullmatch(stem):
        return None
    raw = re.sub("%(..)", lambda match: chr(int(match[1], 16)), stem).encode("latin-1")
    try:
        return raw.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return None


def _encoded(name: str, literal: dict[int, str]) -> str:
    # pickles may contain lone surrogates, which encode to bytes that are not valid UTF-8
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
