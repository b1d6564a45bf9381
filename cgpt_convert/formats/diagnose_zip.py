"""Error messages for ZIP archives that are not torch archives."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cgpt_convert.archives import zip_directory
from cgpt_convert.core.errors import CgptError, Malformed, Unsupported
from cgpt_convert.core.text import quoted, quoted_list
from cgpt_convert.formats.registry import tensor_suffixes
from cgpt_convert.sources.local import Source

WEIGHT_FILE = "pass the weight file"
KERAS = "look for PyTorch weights of the same model; Keras and h5py weights are not supported"
_SHOWN = 3
MACOS = "__MACOSX/"
_WRITTEN = ("version", "byteorder", ".format_version", ".storage_alignment", ".data/")
_EXPORTED = ("archive_format", "serialized_exported_program.json", "models/model.json")
_KERAS = "model.weights.h5"


def explain(source: Source) -> CgptError:
    """Return the error for the ZIP in `source`: why it cannot be read, and what to do next."""
    try:
        names = [
            member.name for member in zip_directory.entries(source, zip_directory.find_end(source))
        ]
    except CgptError as error:
        return error
    return of_names(source.name, names)


def of_names(where: str, names: Sequence[str]) -> CgptError:
    """Return the same error for a ZIP whose records have these names."""
    inside = {name.partition("/")[2] for name in names}
    mac = [name for name in names if name.startswith(MACOS)]
    if mac and "data.pkl" in inside:
        return Malformed(
            f"the torch archive was packed again by macOS, which added {quoted(mac[0])}",
            where=where,
            hint="remove the added files: zip -d FILE '__MACOSX/*'",
        )
    if "data.pkl" in names:
        return Malformed(
            "the torch archive has no root folder: it was unpacked, and packed again without it",
            where=where,
            hint="unpack it into a folder and pack that folder: zip -0 -r model.pt FOLDER",
        )
    if inside.intersection(_EXPORTED):
        return Unsupported(
            "the file is a program saved by torch.export (.pt2), which is not supported",
            where=where,
            hint="save its weights: torch.save(torch.export.load(FILE).state_dict, 'model.pt')",
        )
    if inside and all(name.startswith(_WRITTEN) for name in inside):
        return Malformed(
            "the torch archive has no data.pkl: torch.save failed before it wrote a value",
            where=where,
            hint="save the model again; the saving program reports why it fails",
        )
    if _KERAS in names:
        return Unsupported(
            "the file is a Keras archive, which is not supported", where=where, hint=KERAS
        )
    message = "the file is a zip archive without supported weights"
    return Unsupported(message, where=where, hint=unpacking(names))


def unpacking(names: Iterable[str]) -> str:
    """Return a hint for an archive of files with these names."""
    weights = [name for name in names if name.lower().endswith(tensor_suffixes())]
    if not weights:
        return "pass the weight file; no file in the archive has the suffix of a weight file"
    return f"unpack it and pass a file inside: {quoted_list(weights, _SHOWN)}"
