"""The records of a zip as torch's loaders take them: unpickled, compiled, imported or copied.

Every zip is looked at in this way, whatever it is detected as: the loaders take any.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from enum import Enum
from typing import NamedTuple

from cgpt_convert.archives.zip_archive import Archive
from cgpt_convert.core.errors import CgptError, Malformed, Unsupported
from cgpt_convert.core.limits import INDEX_BYTES, TOKENIZER_BYTES
from cgpt_convert.scanning import code

_STORAGES = ("data", "constants", "bytecode")  # folders of raw tensors
# raw tensors of an exported program: torch/export/pt2_archive/constants.py
_EXPORTED = re.compile(r"[^/]+/data/(weights/weight|constants/tensor)_\d+")
_RECORDS = ("data.pkl", ".data")  # in the root folder of torch's archives
MANIFEST = "MAR-INF/MANIFEST.json"  # of a TorchServe archive
SERVED = "TorchServe runs the handler in the archive; unpack it and scan the files"


class Role(Enum):
    """The role of a part for torch."""

    PICKLE = "a pickle"
    STORAGE = "numbers, whatever its bytes are"
    ANY = "nothing that is known"


class RecordRoles(NamedTuple):
    """The roles of an archive's records."""

    pickles: frozenset[str]  # names of records that are always unpickled
    storages: tuple[str, ...]  # beginnings of the names of raw tensors
    script: bool  # whether it is a TorchScript archive

    def of(self, name: str, *, exported: bool) -> Role:
        """Return a record's role; `exported` is what `is_exported` says of the archive."""
        if name in self.pickles:
            return Role.PICKLE
        raw = name.startswith(self.storages) or (exported and _EXPORTED.fullmatch(name))
        return Role.STORAGE if raw else Role.ANY

    def first(self, names: list[str]) -> list[str]:
        """Return the names in order, those of the pickles first."""
        return sorted(names, key=lambda name: name not in self.pickles)


def roles(archive: Archive) -> RecordRoles:
    """Return the roles of the records. Raises Malformed if loaders would take one of several."""
    roots = {name.partition("/")[0] for name in archive.members}
    torch_roots = [root for root in roots if f"{root}/data.pkl" in archive.members]
    if torch_roots and len(roots) > 1:
        raise Malformed(
            f"a torch archive with {len(roots)} root folders: programs read different ones"
        )
    return RecordRoles(
        frozenset(f"{root}/{name}.pkl" for root in torch_roots for name in ("data", "constants")),
        tuple(f"{root}/{name}/" for root in torch_roots for name in _STORAGES),
        script=bool(torch_roots) and f"{torch_roots[0]}/constants.pkl" in archive.members,
    )


def is_exported(archive: Archive) -> bool:
    """Return whether this is an exported program whose tensors are raw bytes, not pickles."""
    if not any(name.endswith("/archive_format") for name in archive.members):
        return False
    configs = [name for name in archive.members if name.endswith("_config.json")]
    pickled = re.compile(rb'"use_pickle"\s*:\s*(?!\s|false)')
    return not any(pickled.search(archive.read(name, INDEX_BYTES)) for name in configs)


def code_records(
    archive: Archive, adds: Callable[[str, str], bool], *, script: bool
) -> Iterator[tuple[str, str]]:
    """Yield a record's name and a text for each piece of Python source, TorchScript or other code.

    `adds` returns whether the user allows a class, given by module and name.
    """
    folders = [name.split("/") for name in archive.members]
    torch = any(len(parts) > 1 and parts[1] in _RECORDS for parts in folders)
    imported = torch or MANIFEST in archive.members
    for name, parts in zip(archive.members, folders, strict=True):
        texts: Iterator[str] = iter(())
        if script and parts[1:2] == ["code"] and name.endswith(".py"):
            text = archive.read(name, TOKENIZER_BYTES).decode("utf-8", "replace")
            module = ".".join(parts[2:]).removesuffix(".py")
            texts = iter(code.script(text, module, adds))
        elif name.endswith("/bytecode.pkl"):
            texts = iter(code.mobile(archive.read(name, TOKENIZER_BYTES)))
        elif "/data/aotinductor/" in name and not name.endswith("/"):
            texts = iter(["compiled code, or source that torch compiles"])
        elif name.endswith((".py", ".pyc")) and imported:
            texts = iter(["Python source, which loading imports"])
        yield from ((name, text) for text in texts)


def refusal(archive: Archive) -> CgptError | None:
    """Return why an archive cannot be judged as a whole; None if it can."""
    if any(name.split("/")[1:] == [".data", "extern_modules"] for name in archive.members):
        reason = "the importer of torch.package archives calls what the pickles refer to"
        return Unsupported(reason)
    return Unsupported(SERVED) if MANIFEST in archive.members else None


def compiled_records(archive: Archive) -> int:
    """Return the number of records of a TorchScript archive that are compiled."""
    return sum(name.split("/")[1:2] == ["code"] for name in archive.members)
