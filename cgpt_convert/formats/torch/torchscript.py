"""Parameter and buffer names of TorchScript modules, taken from their code.

The code is searched as text for two lines of each class; nothing is compiled or run. The form is
that of torch/csrc/jit/serialization/python_print.cpp: `class NAME(Module):`, then indented
`__parameters__ = ["weight", ]` and `__buffers__ = [...]`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable

CONSTANT = "a constant of the code"

_CLASS = re.compile(r"class (\w+)(\(\w+\))?:")
_LISTED = re.compile(r"  (__parameters__|__buffers__) = \[(.*)\]\s*")
_NAME = re.compile(r'"([^"]*)"')


def script_classes(
    members: Collection[str],
    root: str,
    names: Iterable[tuple[str, str]],
    read: Callable[[str], bytes],
) -> dict[str, frozenset[str] | None]:
    """Return the parameter and buffer names of each class that a pickle refers to.

    None marks a class that is not a module. Classes without code in the archive are omitted, as are
    modules whose code does not list buffers, as in old versions of torch.
    """
    wanted: dict[str, set[str]] = {}
    for module, name in names:
        if module.split(".")[0] == "__torch__":
            wanted.setdefault(module, set()).add(name)
    classes: dict[str, frozenset[str] | None] = {}
    for module, own in wanted.items():
        record = f"{root}/code/{module.replace('.', '/')}.py"
        if record in members:
            parsed = _parsed(read(record).decode("utf-8", "replace"))
            classes |= {f"{module}.{name}": parsed[name] for name in own if name in parsed}
    return classes


def _parsed(code: str) -> dict[str, frozenset[str] | None]:
    modules: dict[str, dict[str, list[str]]] = {}
    classes: dict[str, frozenset[str] | None] = {}
    current: dict[str, list[str]] = {}
    for line in code.splitlines():
        if begun := _CLASS.match(line):
            current = {}
            if begun[2] == "(Module)":
                modules[begun[1]] = current
            else:
                classes[begun[1]] = None
        elif listed := _LISTED.fullmatch(line):
            current[listed[1]] = _NAME.findall(listed[2])
    for name, lists in modules.items():
        if "__buffers__" in lists:
            classes[name] = frozenset(lists["__buffers__"] + lists.get("__parameters__", []))
    return classes
