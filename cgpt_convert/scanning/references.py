"""Decide whether traced bytes are a pickle, and describe how a pickle uses a name."""

from __future__ import annotations

from cgpt_convert.core import findings
from cgpt_convert.core.text import printable
from cgpt_convert.pickles.nodes import text
from cgpt_convert.pickles.torch_calls.dangerous import (
    is_dangerous,
    is_known_package,
    is_standard,
)
from cgpt_convert.pickles.trace.tracer import Trace
from cgpt_convert.pickles.trace.uses import EXTENSION, NameUse
from cgpt_convert.scanning.result import CodeReference


def is_pickle(traced: Trace, *, storage: bool = False, text: bool = False) -> bool:
    """Return whether an unpickler can load it, or executes something before it fails.

    Bytes without a protocol 2 header can form a few opcodes by chance. For storages and text files,
    stronger evidence is required.
    """
    if traced.exhausted or traced.misframed or traced.known:
        return True
    uses = [use for use in traced.uses if use.dotted.isprintable()]
    named = any(use.module not in ("", EXTENSION) for use in uses)
    if traced.marked and (named or not traced.fault):
        return True
    complete = not (traced.fault or storage or text)  # only then does an unprintable name count
    if complete and any(use.module not in ("", EXTENSION) for use in traced.uses):
        return True
    if (named and not traced.fault) or (traced.marked and not storage and any(map(_acts, uses))):
        return True
    return any(_can_be_imported(use, text=text and not _acts(use)) for use in traced.uses)


def _acts(use: NameUse) -> bool:
    return use.count > 0 or use.changed


def _can_be_imported(use: NameUse, *, text: bool) -> bool:
    """Return whether an import may succeed.

    If the module is known to exist, the name in it does not matter: it is looked up after the
    import, and Python's unpickler treats a name truncated by the end of the file as an empty name.
    In `text`, only such modules count, as lines of ordinary texts look like names.
    """
    plain = all(map(str.isidentifier, use.dotted.removesuffix(".").split(".")))
    package = use.module.partition(".")[0]
    if not text:
        return (plain and use.name != "") or is_known_package(package)
    if plain and (is_standard(package) or is_dangerous(use.module, use.name)):
        return True
    if is_standard(package) and not "".join(use.name.split()).isprintable():
        return True  # control characters, which ordinary texts do not contain
    if is_dangerous(use.module, use.name) and len(use.name.split()) == 1:
        return True  # no line of prose
    listed = use.module == use.name  # as in a list of the scripts `isympy` and `sympy`
    return not (listed or is_standard(package)) and is_known_package(package)


def sighting(use: NameUse, place: str) -> CodeReference:
    """Describe what a pickle at `place` does with a name."""
    dangerous = use.changed or not use.module or is_dangerous(use.module, use.name)
    how = "calls" if use.call else "changes" if use.changed else "names"
    shown = text(use.call) if use.call else printable(use.dotted)
    if use.misused:
        shown += ", in a way that weight files do not need"
    rule = findings.DANGEROUS if dangerous else findings.FOREIGN
    option = f"{use.module}:{use.name}" if "." in use.name else use.dotted
    if dangerous or use.misused:
        option = ""
    return CodeReference(rule, place, use.position, use.dotted, how, use.count, shown, option)
