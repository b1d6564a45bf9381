"""Start-up time is a promise: what a command does not need, it does not import."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cgpt_convert.cli import COMMANDS
from tests.helpers import vendor
from tests.helpers.running import ROOT, environ

# What takes long to import, or has no business in a program that looks at untrusted files
WATCHED = (
    "asyncio botocore fsspec gguf huggingface_hub isal multiprocessing numpy pickle pickletools "
    "requests s3fs safetensors ssl subprocess tokenizers torch tqdm transformers urllib3 xml "
    "zipfile"
)
# click imports uuid, which before Python 3.11 imported platform at once, and that subprocess
BY_CLICK = {"uuid"} if sys.version_info < (3, 11) else set[str]()
DEMO = ROOT / "cgpt_convert" / "demo"
BIN = DEMO / "pytorch_model.bin"

# Each module that is looked for, with the modules that are being imported or run at that moment.
REPORT = """
import sys

class Watch:
    chains = {}

    def find_spec(self, name, path=None, target=None):
        frame, chain = sys._getframe(1), []
        while frame is not None:
            chain.append(frame.f_globals.get("__name__", ""))
            frame = frame.f_back
        self.chains.setdefault(name, chain)

sys.meta_path.insert(0, Watch())
from cgpt_convert.cli import main
code = main()
import json
names = {name: Watch.chains.get(name, []) for name in sys.modules}
print("\\nimported:", json.dumps([code, names]), file=sys.stderr)
"""


def imports(*words: object) -> dict[str, list[str]]:
    """Each module in memory after the command -> who imported it, nearest first.

    The command must succeed; standard error is a pipe.
    """
    done = subprocess.run(
        [sys.executable, "-c", REPORT, *map(str, words)],
        capture_output=True,
        check=True,
        env=environ(),
        text=True,
        stdin=subprocess.DEVNULL,
    )
    told, _, report = done.stderr.partition("\nimported: ")
    code, chains = json.loads(report)
    assert code == 0, told
    return dict(chains)


def watched(chains: dict[str, list[str]], allowed: str = "") -> dict[str, str]:
    """The watched packages imported, and where; less those allowed and what these bring along."""
    found = {}
    for name, chain in chains.items():
        through = {name, *(importer.partition(".")[0] for importer in chain)}
        if name in WATCHED.split() and not through & {*allowed.split(), *BY_CLICK}:
            of_ours = (importer for importer in chain if importer.startswith("cgpt_convert."))
            found[name] = next(of_ours, "")
    return found


@pytest.fixture(scope="module")
def contiguous(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vendor.write(vendor.TINY, tmp_path_factory.mktemp("hf"), "hf")


# command -> its arguments after the demonstration model, what it may import of what is watched
NEEDED: dict[str, tuple[Callable[[Path], tuple[object, ...]], str]] = {
    "inspect": (lambda _tmp: (BIN,), ""),
    "extract": (lambda tmp: (BIN, "-o", tmp / "out"), "isal"),
    "convert": (lambda tmp: (BIN, "-o", tmp / "out.safetensors"), "isal numpy"),
    "digest": (lambda _tmp: (BIN,), "isal numpy"),
    "lock": (lambda tmp: (BIN, "-o", tmp / "out.lock"), "isal numpy"),
    "verify": (lambda _tmp: (BIN, BIN), "isal numpy"),
    "diff": (lambda _tmp: (BIN, BIN), "isal numpy"),
    "scan": (lambda _tmp: (BIN,), ""),
    "generate": (lambda _tmp: (DEMO, "The", "--max-new-tokens", "1"), "numpy tokenizers"),
    "models": (lambda _tmp: (), ""),
    "eval": (lambda _tmp: (DEMO, "--text", DEMO / "config.json"), "numpy tokenizers"),
    # importlib.resources takes zipfile
    "demo": (lambda tmp: (tmp / "out",), "isal numpy safetensors zipfile"),
}


def test_every_command_is_watched() -> None:
    assert list(NEEDED) == list(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_import_what_they_need(command: str, tmp_path: Path) -> None:
    arguments, allowed = NEEDED[command]
    assert watched(imports(command, *arguments(tmp_path)), allowed) == {}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_commands_imports_nothing_heavy(command: str) -> None:
    assert watched(imports(command, "--help"), "isal") == {}


def test_help_imports_click_and_no_command() -> None:
    chains = imports("--help")
    assert "click" in chains
    assert watched(chains) == {}
    assert {name for name in chains if name.startswith("cgpt_convert.")} <= {
        "cgpt_convert.cli",
        "cgpt_convert.core",
        "cgpt_convert.core.errors",
        "cgpt_convert.core.text",
    }


@pytest.mark.parametrize("command", ["inspect", "scan", "models"])
def test_what_only_looks_imports_no_decorated_classes(command: str) -> None:
    """`dataclasses` and each class made with it cost more time than reading a small file."""
    arguments, _ = NEEDED[command]
    chains = imports(command, *arguments(Path()))
    assert chains.get("dataclasses") is None


def test_contiguous_convert_needs_no_numpy(contiguous: Path, tmp_path: Path) -> None:
    words = ("convert", contiguous, "-o", tmp_path / "out.safetensors")
    assert watched(imports(*words), "isal") == {}


@pytest.mark.parametrize("by", ["storage", "name"])
def test_contiguous_extract_needs_no_numpy(contiguous: Path, tmp_path: Path, by: str) -> None:
    assert watched(imports("extract", contiguous, "-o", tmp_path / "out", "--by", by), "isal") == {}


def test_what_is_not_needed_is_told_with_who_imports_it(tmp_path: Path) -> None:
    strided = vendor.write(vendor.TINY, tmp_path, "cs")
    found = watched(imports("convert", strided, "-o", tmp_path / "out.safetensors"), "isal")
    assert found["numpy"].startswith("cgpt_convert.tensors.")
