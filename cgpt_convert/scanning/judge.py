"""Is it a pickle, and what is to be said of a name that it uses?"""

from __future__ import annotations

from cgpt_convert import findings
from cgpt_convert.inert import printable, text
from cgpt_convert.pickles.dangerous import is_dangerous
from cgpt_convert.pickles.trace import Trace
from cgpt_convert.pickles.uses import EXTENSION, Use
from cgpt_convert.scanning.result import Sighting


def is_pickle(traced: Trace) -> bool:
    """Would an unpickler make something of it, or do something before it fails?

    Of bytes that do not begin as pickles do since protocol 2, chance may make a few opcodes.
    """
    uses = [use for use in traced.uses if use.dotted.isprintable()]  # or nothing can import it
    if traced.exhausted or any(use.count for use in uses):
        return True
    named = any(use.module not in ("", EXTENSION) for use in uses)
    return (traced.marked and not traced.fault) or (named and (traced.marked or not traced.fault))


def sighting(use: Use, place: str) -> Sighting:
    """What a pickle at `place` does with a name, in words."""
    dangerous = use.changed or not use.module or is_dangerous(use.module, use.name)
    how = "calls" if use.call else "changes" if use.changed else "names"
    shown = text(use.call) if use.call else printable(use.dotted)
    rule = findings.DANGEROUS if dangerous else findings.FOREIGN
    return Sighting(rule, place, use.position, use.dotted, how, use.count, shown)
