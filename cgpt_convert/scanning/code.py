"""Code in forms other than pickle: TorchScript, JSON that names code, templates, site files.

Each function describes what it found; nothing is imported or evaluated.
"""

from __future__ import annotations

import ast
import contextlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from cgpt_convert.pickles.torch_calls.dangerous import is_dangerous_path

# -- TorchScript

_CLASS = re.compile(r"^class\s+(\w+)|(\b__setstate__\b)", re.MULTILINE)
_FILES = re.compile(r"\.[\s\\]*(save|from_file)\b")
_GETATTR = re.compile(r"\bgetattr\b(?![\s\\]*\([^()'\"]*,\s*\"\w*\"\s*\))")
_OPS = re.compile(r"\bops\b(?:\s*\.\s*(\w+)\s*\.\s*(\w+))?")
# namespaces of purely computing operators; of torchvision, the operators its models use
_PURE = {"aten", "prim", "prims", "quantized", "_quantized", "prepacked", "sparse", "mkldnn"}
_SETSTATE = ".__setstate__, which torch.jit.load runs"
_VISION = {"nms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d"}


def script(text: str, module: str, allowed: Callable[[str, str], bool]) -> Iterator[str]:
    """Yield what TorchScript code does beyond computing when the model is called.

    torch.jit.load compiles the code and calls `__setstate__` of every class that has one. Its
    operators can read and write files. `module` is the name of the code, passed to `allowed`.
    """
    name = ""
    for match in _CLASS.finditer(text):
        if match[1]:
            name = match[1]
        elif not allowed(module, name):
            yield f"{module}.{name}{_SETSTATE}"
    if _FILES.search(text):
        yield "an operator that reads or writes files"
    if _GETATTR.search(text):
        yield "getattr with a computed name"
    others = {
        f"{space}.{operator}" if space else "ops under another name"
        for space, operator in _OPS.findall(text)
        if space not in _PURE and not (space == "torchvision" and operator in _VISION)
    }
    if others:
        yield f"operators of other libraries: {', '.join(sorted(others))}"


def allowed_by(text: str) -> str:
    """Return the class that accepts this text of `script` if it is allowed; "" if none does."""
    return text.removesuffix(_SETSTATE) if text.endswith(_SETSTATE) else ""


def mobile(data: bytes) -> Iterator[str]:
    """Yield the same for the bytecode of a mobile model, in which names are plain strings."""
    if b"__setstate__" in data:
        yield "__setstate__ in bytecode, which the mobile loader runs"
    if re.search(rb"aten::(save|from_file)\b", data):
        yield "an operator that reads or writes files"


# -- JSON

_WORTHWHILE = re.compile(
    rb"auto_map|_implementation|custom_pipeline|chat_template|class_name|expr_str|guards_code"
    rb"|_target_|default_factory|parent_library|\"target\"|\"type\"\s*:\s*\"\w+\.|\\u00[2-7]"
)
_LAYERS = {"Lambda", "__lambda__", "TFOpLambda", "SlicingOpLambda", "TorchModuleWrapper"}
_PLAIN = {"dict", "list", "tuple", "set", "slice", "float", "int", "str", "bool", "complex"}
_FUNCTIONS = ("activations", "losses", "metrics", "initializers", "regularizers", "constraints")
_LIBRARIES = {"transformers", "peft", "torch", "diffusers", "timm", "sentence_transformers"}
_TARGET = re.compile(
    r"torch\.ops\.\w+\.\w+(\.\w+)?|torch\._higher_order_ops(\.[a-z]\w*)+|torch\.sym_\w+"
    r"|_operator\.[a-z]\w*|math\.[a-z]\w*|torch\.export\.\w+(\.\w+)*|"
)


def document(data: bytes) -> list[str]:
    """Return code that a JSON document contains or names. Deep nesting raises RecursionError."""
    if not _WORTHWHILE.search(data):
        return []
    reasons: list[str] = []

    def take(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        for key, value in pairs:  # duplicates too: readers differ in which one they use
            reasons.extend(_field(key, value, fields))
        return fields

    with contextlib.suppress(ValueError):  # invalid JSON, which no loader reads either
        json.loads(data, object_pairs_hook=take)
    return reasons


def _field(key: str, value: Any, fields: dict[str, Any]) -> Iterator[str]:
    check = _CHECKS.get(key)
    if check is not None:
        yield from check(value, fields)
    elif isinstance(value, str):
        if key.endswith(("_implementation", "_implementation_internal")) and "/" in value:
            yield f"{key}: {value}, code that is downloaded and run"
        if "default_factory_module" in value and not re.search(
            r'default_factory_module\\*"\s*:\s*\\*"(builtins|collections)\\*"', value
        ):
            yield "a tree specification that imports a module"


def _auto_map(value: Any, _fields: dict[str, Any]) -> Iterator[str]:
    if value:
        yield f"auto_map: {_names(value)}, code that trust_remote_code runs"


def _pipeline(value: Any, _fields: dict[str, Any]) -> Iterator[str]:
    parts = value.values() if isinstance(value, dict) else [value]
    if any(isinstance(part, str) or (isinstance(part, dict) and "impl" in part) for part in parts):
        yield f"custom_pipeline: {_names(value)}, code that is loaded with the model"


def _names(value: Any) -> str:
    """Join the strings of a value, for a message."""
    parts = value.values() if isinstance(value, dict) else [value]
    return ", ".join(str(part) for part in parts)[:200]


def _library(value: Any, _fields: dict[str, Any]) -> Iterator[str]:
    if isinstance(value, str) and value.partition(".")[0] not in _LIBRARIES:
        yield f"parent_library: {value}, a module that is imported"


def _template(value: Any, _fields: dict[str, Any]) -> Iterator[str]:
    texts = value if isinstance(value, list) else [value]
    for each in texts:
        text = each.get("template") if isinstance(each, dict) else each
        if isinstance(text, str):
            yield from template(text)


def _class_name(value: Any, fields: dict[str, Any]) -> Iterator[str]:
    module = fields.get("module")
    if value in _LAYERS:
        yield f"a Keras layer of the class {value}, which runs code"
    elif value == "function":
        known = isinstance(module, str) and module.rpartition(".")[2] in _FUNCTIONS
        if module is not None and not known and module != "builtins":
            yield f"a function of the module {module}, which Keras imports"
        elif module == "builtins" and fields.get("config") not in _PLAIN:
            yield f"the function {fields.get('config')}, which Keras looks up by name"
    elif isinstance(module, str):
        plain = module == "builtins" and value in _PLAIN
        if not plain and module.partition(".")[0] != "keras":
            yield f"the class {module}.{value}, which Keras imports"


def _expression(value: Any, _fields: dict[str, Any]) -> Iterator[str]:
    if isinstance(value, str) and not _is_plain(value):
        yield f"the expression {value[:100]!r}, which torch.export.load evaluates"


def _guards(value: Any, _fields: dict[str, Any]) -> Iterator[str]:
    for text in value if isinstance(value, list) else [value]:
        yield from _expression(text, {})


def _target(value: Any, fields: dict[str, Any]) -> Iterator[str]:
    if isinstance(value, str) and "inputs" in fields and not _TARGET.fullmatch(value):
        yield f"the function {value[:100]}, which an exported program calls"


def _module_type(value: Any, fields: dict[str, Any]) -> Iterator[str]:
    listed = isinstance(value, str) and {"idx", "path"} <= fields.keys()
    if listed and value.partition(".")[0] not in _LIBRARIES:
        yield f"the module {value[:100]}, which sentence-transformers imports"


def _hydra(value: Any, _fields: dict[str, Any]) -> Iterator[str]:
    """Yield a function by which Hydra would run what the configuration says; classes are usual."""
    if not isinstance(value, str) or value in _HYDRA_DATA or not is_dangerous_path(value):
        return
    yield f"_target_: {value[:200]}, which Hydra calls"


_HYDRA_DATA = {f"builtins.{name}" for name in sorted(_PLAIN)}

_CHECKS: dict[str, Callable[[Any, dict[str, Any]], Iterator[str]]] = {
    "_target_": _hydra,
    "auto_map": _auto_map,
    "custom_pipeline": _pipeline,
    "custom_pipelines": _pipeline,
    "parent_library": _library,
    "chat_template": _template,
    "class_name": _class_name,
    "expr_str": _expression,
    "guards_code": _guards,
    "target": _target,
    "type": _module_type,
}

# -- expressions of torch.export: arithmetic over symbols, and sizes of inputs

_SYMBOL = re.compile(r"z?[suf]+\d+|L|True|False|Mod|PythonMod|ModularIndexing|FloorDiv|CleanDiv")
_CALLS = re.compile(
    r"Mod|PythonMod|ModularIndexing|FloorDiv|CleanDiv|CeilDiv|CeilToInt|FloorToInt|TruncToInt"
    r"|TruncToFloat|ToFloat|IntTrueDiv|FloatTrueDiv|PowByNatural|FloatPow|Max|Min|Abs|Eq|Ne|Lt|Le"
    r"|Gt|Ge|Not|And|Or|Where|Identity|Integer|Float|OpaqueUnaryFn_\w+|floor|ceiling|sqrt|sym_\w+"
    r"|size|stride|storage_offset|dim|item"
)
_SHAPE = re.compile(r"size|stride|storage_offset|dim|item|shape|[a-z]\w*")
_NODES = (
    *(ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.operator, ast.unaryop),
    *(ast.boolop, ast.cmpop, ast.Load, ast.Subscript, ast.Tuple),
)
_LONGEST = 4096  # characters of an expression


def _is_plain(expression: str) -> bool:
    """Return whether an expression is arithmetic over symbols and calls nothing else."""
    if len(expression) > _LONGEST:
        return False
    try:
        nodes = list(ast.walk(ast.parse(expression.strip(), mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    named = {id(part) for node in nodes for part in _named(node)}
    return all(id(node) in named or _is_plain_node(node, called) for node in nodes)


def _named(node: ast.AST) -> list[ast.AST]:
    """Return the nodes of a symbol or an input lookup, the only places for a string.

    Anywhere else sympy would evaluate the string.
    """
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        return [node.slice]
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        return []
    if (
        node.func.id != "Symbol"
        or len(node.args) != 1
        or not isinstance(node.args[0], ast.Constant)
    ):
        return []
    assumed = [part for word in node.keywords for part in (word, word.value)]
    plain = all(isinstance(word.value, ast.Constant) for word in node.keywords)
    return [node, node.func, node.args[0], *assumed] if plain else []


def _is_plain_node(node: ast.AST, called: set[int]) -> bool:
    if isinstance(node, ast.Constant):
        return isinstance(node.value, int | float)
    if isinstance(node, ast.Name):
        return bool((_CALLS if id(node) in called else _SYMBOL).fullmatch(node.id))
    if isinstance(node, ast.Attribute):
        return bool((_CALLS if id(node) in called else _SHAPE).fullmatch(node.attr))
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name | ast.Attribute) and not node.keywords
    return isinstance(node, _NODES)


# -- Jinja

_INTERNALS = (
    (re.compile(r"__"), "a name with two underscores"),
    (re.compile(r"\|[\s-]*attr\b|\battr[\s]*\("), "the filter attr"),
    (re.compile(r"\{%[-+\s]*(import|from|include|extends)\b"), "an include of another template"),
    (re.compile(r"\b(lipsum|cycler|joiner)\b"), "a helper that gives access to Python's internals"),
    (re.compile(r"\\x5f|\\u005f|\\U0000005f|\\137|\\N\{", re.IGNORECASE), "an escaped underscore"),
    (re.compile(r"""(['"])_+\1|%c"""), "an underscore assembled from parts"),
)


def template(text: str) -> Iterator[str]:
    """Yield how a chat template accesses more than the messages that it formats.

    Outside a sandbox, Jinja lets a template call anything through `__globals__` and similar names.
    """
    reasons = [reason for pattern, reason in _INTERNALS if pattern.search(text)]
    if reasons:
        yield f"a chat template with {', '.join(reasons)}"


# names that tell what a module is, and give no access to anything else
_HARMLESS = re.compile(r"\b__(all|author|doc|file|init|main|module|name|qualname|version)__\b")
_PRIVATE = re.compile(r"""(?<!['"\w])__[A-Za-z0-9]\w*(?<!_)(?!['"\w])""")  # as roles name variables
_CAPITALS = re.compile(r"\b__[A-Z0-9][A-Z0-9_]*\b")  # Python's own names have none
_LOWERING = re.compile(r"lower|casefold|swapcase")
_PLAIN_ATTR = re.compile(r"""\|[\s-]*attr\(\s*(['"])[A-Za-z]\w*\1\s*\)""")
_ORDINARY = ("an include of another template", "a helper that gives access to Python's internals")
_OPENING = re.compile(r"\{%[-+]?\s*raw\s*-?%\}|\{[{%#]")
_RAW_END = re.compile(r"\{%[-+]?\s*endraw\s*[-+]?%\}")
_TOKEN = re.compile(
    r"""(?s)(?P<string>'(?:[^'\\]|\\.)*\\?(?:'|\Z)|"(?:[^"\\]|\\.)*\\?(?:"|\Z))|(?P<end>[%}]\})|[({\[]|[)}\]]"""
)


def jinja(text: str) -> Iterator[str]:
    """Yield how a template of any program reaches for Python's internals.

    Such templates include others and use Jinja's helpers, unlike chat templates, and the text
    around their tags may be Python: only the tags count.
    """
    tags = "\n".join(_tags(text))
    tags = _HARMLESS.sub("name", _PRIVATE.sub("name", _PLAIN_ATTR.sub("", tags)))
    if not _LOWERING.search(tags):
        tags = _CAPITALS.sub("name", tags)
    reasons = [
        reason for pattern, reason in _INTERNALS if reason not in _ORDINARY and pattern.search(tags)
    ]
    if reasons:
        yield f"a template with {', '.join(reasons)}"


def _tags(text: str) -> Iterator[str]:
    """Yield the tags of a template with Jinja's delimiters, as its lexer divides the text."""
    at = 0
    while match := _OPENING.search(text, at):
        opening, begin = match[0], match.start()
        if opening == "{#":
            end = text.find("#}", match.end())
            at = end + 2 if end >= 0 else len(text)
        elif len(opening) > 2:  # noqa: PLR2004  longer than a delimiter: the tag `raw`
            closing = _RAW_END.search(text, match.end())
            at = closing.end() if closing else len(text)
        else:
            at = _tag_end(text, match.end(), "}}" if opening == "{{" else "%}")
            yield text[begin:at]


def _tag_end(text: str, at: int, closing: str) -> int:
    """Return where a tag ends: at its delimiter outside strings and brackets."""
    depth = 0
    while token := _TOKEN.search(text, at):
        at = token.end()
        if token["string"]:
            continue
        if token["end"] == closing and not depth:
            return at
        if token["end"]:
            at = token.start() + 1  # two tokens, of which the second may open or close as well
        opened = text[token.start()]
        depth += (opened in "({[") - (opened in ")}]" and depth > 0)
    return len(text)


# -- YAML

_YAML = "tag:yaml.org,2002:"
_PYTHON_TAG = re.compile(r"!!python/(object|name|module)\S*|!?<?tag:yaml\.org,2002:python\S*")
_TARGETS = re.compile(r"""\b_target_['"]?\s*:\s*['"]?([\w.]+)""")
_ESCAPING = re.compile(r"__(globals|builtins|subclasses|import|mro|bases?|class|getattribute)__")
_TAG = re.compile(r"%TAG[ \t]+\S+[ \t]+(\S+)")


def yaml(text: str) -> Iterator[str]:
    """Yield what a YAML document runs: by tags of an unsafe loader, through Hydra, by templates.

    PyYAML's `yaml.load` with UnsafeLoader or Loader: yaml/constructor.py.
    """
    from urllib.parse import unquote

    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            continue
        plain = unquote(line)
        match = _PYTHON_TAG.search(plain)
        prefix = _TAG.match(plain)
        for target in _TARGETS.findall(plain):
            yield from _hydra(target, {})
        if match:
            yield f"the YAML tag {match[0][:200]}, which yaml.unsafe_load imports"
        elif prefix and prefix[1] != _YAML and _YAML.startswith(prefix[1][: len(_YAML)]):
            yield f"a short form of YAML's own tags: {prefix[0][:200]}"
    reached = _ESCAPING.search("\n".join(_tags(text)))
    if reached:
        yield f"a template with {reached[0]}"


# -- site files

_IMPORT = re.compile(r"import[ \t]")
_USUAL = re.compile(r"import\s+([\w.]+)\s*(;\s*\1\.install\(\))?\s*;?\s*")
# lines that the packages setuptools and coverage install
_INSTALLED = {
    (
        "import os; var = 'SETUPTOOLS_USE_DISTUTILS'; enabled = os.environ.get(var, 'local') == "
        "'local'; enabled and __import__('_distutils_hack').add_shim();"
    ),
    (
        r"""import sys; exec('import os\n\nif os.getenv("COVERAGE_PROCESS_START") or """
        r"""os.getenv("COVERAGE_PROCESS_CONFIG"):\n try:\n  import coverage\n except:\n  pass\n """
        r"""else:\n  coverage.process_startup(slug="pth")')"""
    ),
}


def site(lines: Iterable[str], *, installed: bool) -> Iterator[str]:
    """Yield lines of a `.pth` file in site-packages that Python runs at startup.

    In a Python environment (`installed`), lines of setuptools and editable installs are ignored.
    """
    for line in lines:
        if not _IMPORT.match(line):
            continue
        usual = _USUAL.fullmatch(line.strip()) or line.strip() in _INSTALLED
        if not (installed and usual):
            yield f"a line that Python runs at startup: {line.strip()[:200]}"
