"""The floors of the house: a module imports from lower floors only, whenever it imports."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import cgpt_convert

# From the ground up. A module imports from floors below its own, and none from its own.
FLOORS = (
    "errors dtypes inert limits findings names views",
    "source strict_json unpickle bits cast mapping_files",
    "tensor archive tarball stream architecture tokenizer_files quantize",
    "checkpoint ndarray gather identity tokenizer dequantize",
    "blocks digest stats plan rebuild partial windows shards misfits recognised",
    "tree model_config formats formats._reading formats._planning formats._zip",
    "formats._shards formats._torch_pickle formats._torch_zip",
    "torchzip mapping formats._npy formats._safetensors",
    "legacy cutzip formats.npy formats.npz formats.parameters formats.safetensors formats.torch",
    "torchtar truncated raw_files whole_model formats._gguf_fields",
    "sniff hf_config formats._gguf llama_fields",
    "refuse hf_tokenizer formats.gguf",
    "llama_undo",
    "opening llama",
    "select staging",
    "sink summary hf properties",
    "cli cli.table cli.progress cli.options",
    "cli.tree_view",
    "cli.report",
    "cli.inspect cli.extract cli.convert cli.demo cli.models",
    "__main__",
)
# Named, because they point down: a method that is sugar, and the package's one public function.
DOWNWARD = {("tensor", "blocks"), ("", "opening")}

# Who may import what is heavy or prints; whatever is left out here may be imported by nobody.
ALLOWED = {
    "click": "cli cli.convert cli.demo cli.extract cli.inspect cli.models cli.options "
    "cli.report cli.table",
    "tqdm": "cli.progress",
    "numpy": "bits blocks cast dequantize gather quantize stats",
    "isal": "sink formats._npy",
    "pickletools": "unpickle",
    "torch": "",
    "transformers": "",
    "safetensors": "",
    "zipfile": "",
    "pickle": "",
}

PACKAGE = Path(cgpt_convert.__file__).parent
NAME = PACKAGE.name


def modules() -> dict[str, Path]:
    """Every module of the package under its dotted name, less the package's own."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(module: str) -> Iterator[str]:
    """The dotted names that a module imports, anywhere in it, but not for type checkers alone."""
    tree = ast.parse(MODULES[module].read_text())
    for node in _run(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def _run(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes below `node`, less those under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from _run(child)


def own(module: str) -> set[str]:
    """The modules of this package that a module imports."""
    found = set()
    for name in imports(module):
        if name.split(".")[0] == NAME:
            inner = name.removeprefix(NAME).lstrip(".")
            found.add(inner if inner in MODULES else inner.rpartition(".")[0])
    return found - {module}


def floor_of(module: str) -> int:
    """The floor's number; the package itself, which only re-exports, is the ground."""
    return next((i for i, floor in enumerate(FLOORS) if module in floor.split()), -1)


def test_every_module_has_one_floor() -> None:
    listed = " ".join(FLOORS).split()
    assert sorted(listed) == sorted(set(MODULES) - {""})


@pytest.mark.parametrize("module", MODULES)
def test_arrows_go_only_upward(module: str) -> None:
    allowed = {below for above, below in DOWNWARD if above == module}
    low = {name for name in MODULES if floor_of(name) < floor_of(module)}
    assert own(module) <= low | allowed


def test_the_arrows_that_point_down_are_there_and_late() -> None:
    for above, below in DOWNWARD:
        assert below in own(above)
        assert below not in _at_once(above)


def _at_once(module: str) -> set[str]:
    """The last parts of what is imported when the module itself is."""
    tree = ast.parse(MODULES[module].read_text())
    nodes = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    names = [f"{node.module}.{alias.name}" for node in nodes for alias in node.names]
    return {part for name in names for part in name.split(".")[1:]}


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("formats")])
def test_formats_know_neither_readers_nor_writers(module: str) -> None:
    above = floor_of("opening")
    forbidden = {"torchzip", "legacy", "torchtar", "tree", "sniff", "refuse"}
    if module == "formats.torch":  # the reader of what it writes
        forbidden -= {"torchzip"}
    assert not own(module) & (forbidden | {name for name in MODULES if floor_of(name) >= above})


@pytest.mark.parametrize("package", ALLOWED)
def test_only_these_import(package: str) -> None:
    users = [name for name in MODULES if package in {i.split(".")[0] for i in imports(name)}]
    assert sorted(users) == sorted(ALLOWED[package].split())


def test_only_the_sink_and_its_staging_write() -> None:
    makers = "mkdir makedirs rename replace unlink remove rmdir link symlink write pwrite truncate"
    writing = {f"os.{name}" for name in makers.split()} | {"shutil.rmtree", "shutil.move"}
    assert {name for name in MODULES if writing & set(_calls(name))} == {"sink", "staging"}


def test_nothing_is_printed_but_by_click() -> None:
    for module in MODULES:
        assert not {"print", "sys.stdout.write", "sys.stderr.write"} & set(_calls(module)), module


def _calls(module: str) -> Iterator[str]:
    """What a module calls, as it is spelled there."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)
