"""The floors of the house: a module imports from lower floors only, whenever it imports."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import cgpt_convert

# From the ground up: modules and packages. What is on a floor imports from lower floors only;
# inside a package modules import each other, but never in a circle.
FLOORS = (
    "core",
    "sources reports",
    "tensors",
    "checkpoint",
    "plan pickles",
    "archives architectures",
    "formats",
    "scanning writing",
    "targets",
    "verification inference",
    "inspection",
    "api",
    "cli",
    "__main__ lm_eval_plugin",
)
# Named, because they point down: methods for convenience.
DOWNWARD = {
    ("tensors.tensor", "tensors.read"),
    ("tensors.tensor", "tensors.to_torch"),
}

# Who may import what is heavy or prints; whatever is left out here may be imported by nobody.
ALLOWED = {
    "click": "cli cli.compute_options cli.run_generation cli.convert cli.demo cli.diff cli.digest "
    "cli.error_output cli.eval cli.extract cli.generate cli.inspect cli.lock cli.logits cli.models "
    "cli.notes cli.options cli.report cli.salvage_option cli.scan cli.style cli.verify",
    "tqdm": "cli.progress",
    "numpy": "api.arrays cli.demo inference.backend_numpy inference.compare "
    "inference.evaluate.cross_entropy "
    "inference.evaluate.divergence inference.evaluate.text_windows inference.gelu "
    "inference.generate.beam_search inference.generate.loop inference.generate.sampling "
    "inference.model inference.weights lm_eval_plugin tensors.assembled tensors.cast "
    "tensors.element_differences "
    "tensors.dequantize tensors.fixups tensors.gather tensors.non_finite tensors.quantize "
    "tensors.read tensors.stats",
    "urllib3": "sources.remote.connections sources.remote.http sources.remote.open_urls",
    "fsspec": "sources.remote.fsspec_store",
    "huggingface_hub": "sources.remote.hub",
    "isal": "formats.npy.header tensors.checksums writing.stage writing.tensor_stream "
    "writing.writer",
    "pickletools": "",
    "tokenizers": "inference.text_codec",
    "torch": "inference.backend_torch tensors.to_torch",
    "ml_dtypes": "tensors.read",
    "transformers": "",
    "safetensors": "cli.demo",
    "lm_eval": "lm_eval_plugin",
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


def unit(module: str) -> str:
    """The module of the top level or the package that `module` belongs to."""
    return module.partition(".")[0]


def floor_of(module: str) -> int:
    """The floor's number; the package itself, which only re-exports, is the ground."""
    return next((i for i, floor in enumerate(FLOORS) if unit(module) in floor.split()), -1)


def test_every_module_has_one_floor() -> None:
    listed = " ".join(FLOORS).split()
    assert sorted(listed) == sorted({unit(name) for name in MODULES} - {""})


@pytest.mark.parametrize("module", MODULES)
def test_arrows_go_only_upward(module: str) -> None:
    allowed = {unit(below) for above, below in DOWNWARD if above == module}
    for name in own(module):
        if unit(name) != unit(module) and unit(name) not in allowed:
            assert floor_of(name) < floor_of(module), f"{module} imports {name}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    def lower(name: str) -> set[str]:
        below = {under for above, under in DOWNWARD if above == name}
        return own(name) - below - {""}

    left = {name: lower(name) for name in MODULES}
    while free := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in free:
            del left[name]
    assert not left


def test_the_arrows_that_point_down_are_there_and_late() -> None:
    for above, below in DOWNWARD:
        assert below in own(above)
        assert below.rpartition(".")[2] not in _at_once(above)


def _at_once(module: str) -> set[str]:
    """The last parts of what is imported when the module itself is."""
    tree = ast.parse(MODULES[module].read_text())
    nodes = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    names = [f"{node.module}.{alias.name}" for node in nodes for alias in node.names]
    return {part for name in names for part in name.split(".")[1:]}


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("formats")])
def test_formats_import_nothing_above_them(module: str) -> None:
    above = floor_of("scanning")
    assert not own(module) & {name for name in MODULES if floor_of(name) >= above}


@pytest.mark.parametrize("package", ALLOWED)
def test_only_these_import(package: str) -> None:
    users = [name for name in MODULES if package in {i.split(".")[0] for i in imports(name)}]
    assert sorted(users) == sorted(ALLOWED[package].split())


WRITERS = {f"writing.{name}" for name in ("local_stage", "temp_files", "writer")}


def test_only_output_writes() -> None:
    makers = "mkdir makedirs rename replace unlink remove rmdir link symlink write pwrite truncate"
    writing = {f"os.{name}" for name in makers.split()} | {"shutil.rmtree", "shutil.move"}
    writers = {name for name in MODULES if writing & set(_calls(name))}
    assert writers == WRITERS | {"cli.progress"}  # which writes to standard error


def test_nothing_is_printed_but_by_click() -> None:
    for module in MODULES.keys() - {"__main__"}:  # which tells of a Ctrl-C before click is there
        assert not {"print", "sys.stdout.write", "sys.stderr.write"} & set(_calls(module)), module


def _calls(module: str) -> Iterator[str]:
    """What a module calls, as it is spelled there."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)
