"""Files that end too early: what is wrong with one, and what of it is whole."""

from __future__ import annotations

from cgpt_convert.containers import cutzip, legacy
from cgpt_convert.containers.partial import Partial
from cgpt_convert.errors import BadRequest, CgptError, Malformed
from cgpt_convert.source import Source, read

_HEAD = 64


def diagnose(source: Source) -> CgptError:
    """One error that says how far the file goes and how many of its tensors are whole.

    For a zip without its directory, or a legacy stream; Malformed unless what is there cannot be
    read for another reason.
    """
    try:
        return whole(source).error()
    except CgptError as error:
        return error.at(source.name)


def whole(source: Source) -> Partial:
    """The tensors that are whole, and the names of those that are not.

    Raises Malformed where no tensor can be told, Unsupported where the part that is there is,
    BadRequest for containers of other kinds.
    """
    start = read(source, 0, min(_HEAD, source.nbytes))
    if start[:4] == b"PK\3\4":
        return cutzip.salvage(source)
    if legacy.is_legacy(start):
        return legacy.salvage(source)
    if not source.nbytes:
        raise Malformed("an empty file", where=source.name)
    raise BadRequest("only torch's own files can be salvaged", where=source.name)
