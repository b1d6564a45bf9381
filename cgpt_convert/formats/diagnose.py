"""Error messages for files without readable weights, with the next step for the user."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from cgpt_convert.archives import tar
from cgpt_convert.core.errors import CgptError, Malformed, Unsupported
from cgpt_convert.core.text import printable
from cgpt_convert.formats import diagnose_transfer, diagnose_zip
from cgpt_convert.formats.diagnose_zip import KERAS, WEIGHT_FILE
from cgpt_convert.formats.file_kinds import HEAD, Kind
from cgpt_convert.formats.registry import FormatFile, built_in, diagnosed, plugins
from cgpt_convert.formats.salvage import AGAIN
from cgpt_convert.sources.local import Source, read

_RAW = "download the raw file; on a model hub its link contains /resolve/, not /blob/"
_MODEL_PAGE = r"https://(?:www\.)?huggingface\.co/([^/?#]+/[^/?#]+)(?:/?$|/tree/)"
_ERROR_KEYS = ("error", "message", "detail")  # fields of servers' error messages
_SHOWN = 120  # characters of a message in the file

# hints for valid files of unsupported kinds
_HINTS = {
    Kind.GZIP: "decompress it first: gunzip FILE",
    Kind.BZIP2: "decompress it first: bunzip2 FILE",
    Kind.XZ: "decompress it first: unxz FILE",
    Kind.ZSTD: "decompress it first: unzstd FILE",
    Kind.LZ4: "decompress it first",
    Kind.COMPRESSED: "decompress it first",
    Kind.SEVEN_ZIP: "unpack it and pass the weight file inside",
    Kind.RAR: "unpack it and pass the weight file inside",
    Kind.PICKLE: "run `cgpt-convert scan FILE` to see what code loading it would execute",
    Kind.PREVIEW: "ask its author for a newer file; torch 1.0 and later cannot read it either",
    Kind.HDF5: KERAS,
    Kind.ONNX: "look for the PyTorch weights that it was exported from",
    Kind.TFLITE: "look for the PyTorch weights that it was exported from",
    Kind.OLD_GGML: "convert the original weights to GGUF; the tensor names here are not reliable",
    Kind.INDEX: "rename it so that its name ends with .index.json, in the folder of its shards",
    Kind.UNKNOWN: "check that the download is complete; its first bytes match no known format",
}


def refuse(file: FormatFile) -> CgptError:
    """Return the error for a file of no supported format: the reason, and what to do next."""
    source = file.source
    kind = file.kind if isinstance(file.kind, Kind) else Kind.UNKNOWN
    error = diagnosed(file, plugins())
    if error is None and kind in _MANGLED:
        error = diagnose_transfer.diagnose(source)
    error = error or diagnosed(file, built_in())
    if error is not None:
        return error
    explain = _EXPLAIN.get(kind)
    if explain:
        return explain(source)
    article = "an" if kind.value[0] in "aeiouH" else "a"
    message = f"the file is {article} {kind.value}, which is not supported"
    if kind is Kind.UNKNOWN:
        message = "the file is of an unknown type"
    return Unsupported(message, where=source.name, hint=_HINTS.get(kind, WEIGHT_FILE))


def _head(source: Source) -> str:
    """Return the first bytes as text."""
    return read(source, 0, min(HEAD, source.nbytes)).decode("utf-8", "replace")


def _shown(text: str) -> str:
    """Return text from the file as one short line."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= _SHOWN else line[: _SHOWN - 3] + "..."


def _lfs_pointer(source: Source) -> CgptError:
    head = _head(source)
    oid = re.search(r"^oid (\S+)", head, re.MULTILINE)
    size = re.search(r"^size (\d{1,18})$", head, re.MULTILINE)
    what = f" to {int(size[1]):,} bytes" if size else ""
    what += f", {_shown(oid[1])}" if oid else ""
    return Malformed(
        f"the file is a Git LFS pointer{what}, not the weight file",
        where=source.name,
        hint="run `git lfs pull` in the repository, or download the raw file",
    )


def _web_page(source: Source) -> CgptError:
    title = re.search(r"<title[^>]*>([^<]*)", _head(source), re.IGNORECASE)
    named = f" titled '{_shown(title[1])}'" if title else ""
    model = re.match(_MODEL_PAGE, source.name)
    hint = f"pass hf://{model[1]} to read the model on the Hugging Face Hub" if model else _RAW
    message = f"the file is a web page{named}, not the weight file"
    return Malformed(message, where=source.name, hint=hint)


def _xml(source: Source) -> CgptError:
    values = re.findall(r"<(?:Code|Message)>([^<]*)", _head(source))  # of object stores
    said = f": '{_shown(', '.join(values))}'" if values else ""
    message = f"the file is an XML document, not the weight file{said}"
    return Malformed(message, where=source.name, hint=_RAW)


def _json(source: Source) -> CgptError:
    try:
        value = json.loads(_head(source))
    except (ValueError, RecursionError):
        value = None
    values = [value.get(key) for key in _ERROR_KEYS] if isinstance(value, dict) else []
    said = [_shown(text) for text in values if isinstance(text, str)]
    if said:
        message = f"the file is the response of a server, not the weight file: '{said[0]}'"
        return Malformed(message, where=source.name, hint=_RAW)
    message = "the file is a JSON document, which contains no weights"
    return Unsupported(message, where=source.name, hint=WEIGHT_FILE)


def _empty(source: Source) -> CgptError:
    return Malformed("the file is empty", where=source.name, hint=AGAIN)


def _zeros(source: Source) -> CgptError:
    message = (
        f"all {source.nbytes:,} bytes are zero: the download is incomplete or the disk damaged"
    )
    return Malformed(message, where=source.name, hint=AGAIN)


def _tar(source: Source) -> CgptError:
    try:
        names = list(tar.members(source)[0])
    except CgptError as error:
        return error
    hint = diagnose_zip.unpacking(names)
    message = "the file is a tar archive, which is not supported"
    return Unsupported(message, where=source.name, hint=hint)


# kinds that a damaged transfer can produce
_MANGLED = (Kind.CUT_ZIP, Kind.ZIP, Kind.PICKLE, Kind.TEXT, Kind.UNKNOWN)
_EXPLAIN: dict[Kind, Callable[[Source], CgptError]] = {
    Kind.ZIP: diagnose_zip.explain,
    Kind.TAR: _tar,
    Kind.LFS_POINTER: _lfs_pointer,
    Kind.WEB_PAGE: _web_page,
    Kind.XML: _xml,
    Kind.JSON: _json,
    Kind.EMPTY: _empty,
    Kind.ZEROS: _zeros,
}
