"""What the documentation's table of formats says of a format, from the format itself."""

from __future__ import annotations

from cgpt_convert.formats.registry import Format
from cgpt_convert.tensors.dtypes import TABLE, DType

GROUPS = {
    "quantized": [row for row in TABLE if row.kind == "q" and row.codec is None],
    "blocks": [row for row in TABLE if row.codec is not None],
    "raw bits": [row for row in TABLE if row.kind == "x"],
}


def suffixes(form: Format) -> str:
    """The suffixes of its files."""
    return ", ".join(f"`{suffix}`" for suffix in form.suffixes)


def types(form: Format) -> str:
    """The element types that it stores, or those that it does not if these are fewer."""
    assert form.dtypes is not None
    stored = form.dtypes()
    missing = [row for row in TABLE if row not in stored]
    if not missing:
        return "all"
    if len(missing) > len(stored):
        return ", ".join(_named(stored))
    return f"all but {', '.join(_named(missing))}"


def _named(rows: list[DType] | tuple[DType, ...]) -> list[str]:
    """Their names, those of whole groups by the group's."""
    names = []
    for row in rows:
        group = next((name for name, each in GROUPS.items() if row in each), "")
        whole = group and all(other in rows for other in GROUPS[group])
        names.append(group if whole else row.name)
    return list(dict.fromkeys(names))
