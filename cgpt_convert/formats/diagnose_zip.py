"""Error messages for ZIP archives that are not torch archives."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cgpt_convert.archives import zip_directory
from cgpt_convert.core.errors import CgptError, Malformed, Unsupported
from cgpt_convert.core.text import printable
from cgpt_convert.formats.registry import tensor_suffixes
from cgpt_convert.sources.local import Source

_SHOWN = 3
MACOS = "__MACOSX/"
_WRITTEN = ("version", "byteorder", ".format_version", ".storage_alignment", ".data/")
_EXPORTED = ("archive_format", "serialized_exported_program.json", "models/model.json")
_KERAS = "model.weights.h5"


def explain(source: Source) -> CgptError:
    """Return the error that says why the ZIP in `source` cannot be read and what to do next."""
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
            f"a torch archive that was packed again by macOS: {printable(mac[0])} lies outside its "
            "folder",
            where=where,
            hint="remove what macOS added: zip -d FILE '__MACOSX/*'",
        )
    if "data.pkl" in names:
        return Malformed(
            "a torch archive without its root folder: it was unpacked, and packed again from the "
            "inside",
            where=where,
            hint="unpack it into a folder and pack that: zip -0 -r model.pt FOLDER",
        )
    if inside.intersection(_EXPORTED):
        return Unsupported(
            "a program that torch.export saved (.pt2), which is not read",
            where=where,
            hint="save its weights: torch.save(torch.export.load(FILE).state_dict, 'model.pt')",
        )
    if inside and all(name.startswith(_WRITTEN) for name in inside):
        return Malformed(
            "a torch archive without data.pkl: torch.save failed before it wrote any value",
            where=where,
            hint="save it again; what the saving program reported says why it failed",
        )
    if _KERAS in names:
        return Unsupported(
            "a Keras archive, which is not read",
            where=where,
            hint="weights of Keras are not read; look for the PyTorch ones beside them",
        )
    return Unsupported("a zip archive, which is not read", where=where, hint=unpacking(names))


def unpacking(names: Iterable[str]) -> str:
    """Return a hint for an archive of files with these names."""
    weights = [name for name in names if name.lower().endswith(tensor_suffixes())]
    if not weights:
        return "no file in it is called as weight files are; name the weight file itself"
    more = f" and {len(weights) - _SHOWN:,} more" if len(weights) > _SHOWN else ""
    return f"unpack it and name what is inside: {', '.join(map(printable, weights[:_SHOWN]))}{more}"
