"""What is slow, how Hypothesis is run, the small model of most tests, and small file systems."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from cgpt_convert.sources.inflate import DeflatedMember
from cgpt_convert.sources.remote import remote_settings
from tests.helpers import oracles

if TYPE_CHECKING:
    from tests.helpers import vendor

# milliseconds for one example: seconds are a bomb, the default's 200 only a busy machine
settings.register_profile("tests", deadline=5000)
settings.load_profile("tests")

# whoever runs this in the background may have them ignored, and what is started here inherits it
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)


FAST = "not slow"  # as given to -m: then, what needs torch is not even imported


def pytest_report_header() -> str | None:
    return None if oracles.INSTALLED else "torch is not installed: without the slow tests"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out the modules that need a heavy package, where it is not there or not wanted."""
    if not collection_path.name.startswith("test_") or collection_path.suffix != ".py":
        return None
    if oracles.INSTALLED and config.getoption("markexpr") != FAST:
        return None
    return bool(oracles.needed(collection_path)) or None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what needs a heavy package, or downloads."""
    for item in items:
        if oracles.needed(item.path) or item.get_closest_marker("corpus"):
            item.add_marker("slow")
        if not oracles.INSTALLED and item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="it needs torch: pip install -e '.[test]'"))


@pytest.fixture(autouse=True)
def _own_settings() -> Iterator[None]:
    """What a command line sets for remote files holds for the process; here, for the test."""
    kept = {
        name: getattr(remote_settings.settings, name) for name in remote_settings.settings.__slots__
    }
    yield
    for name, value in kept.items():
        setattr(remote_settings.settings, name, value)
    remote_settings.traffic.take()


@pytest.fixture(scope="module")
def state() -> vendor.State:
    """Its tensors, as the vendor has them."""
    from tests.helpers import vendor

    return vendor.state_dict(vendor.TINY)


@pytest.fixture(scope="module")
def model(state: vendor.State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of them, and nothing beside it."""
    from tests.helpers import vendor

    return vendor.save(state, tmp_path_factory.mktemp("tiny") / "model.bin")


@pytest.fixture(scope="module")
def source(state: vendor.State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same beside its config.json."""
    from tests.helpers import vendor

    folder = tmp_path_factory.mktemp("source")
    vendor.write_config(vendor.TINY, folder)
    return vendor.save(state, folder / "pytorch_model.bin")


@pytest.fixture
def unpackings(monkeypatch: pytest.MonkeyPatch) -> list[DeflatedMember]:
    """What begins to be unpacked from its start, each time that it does."""
    begun: list[DeflatedMember] = []
    rewind = DeflatedMember.rewind

    def counted(self: DeflatedMember) -> None:
        begun.append(self)
        rewind(self)

    monkeypatch.setattr(DeflatedMember, "rewind", counted)
    return begun


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """A function that mounts a file system of its own; skips where that is not permitted."""
    points: list[Path] = []

    def mount(options: str) -> Path:
        point = tmp_path / f"mount{len(points)}"
        point.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(point)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("mounting is not permitted here")
        points.append(point)
        return point

    yield mount
    for point in points:
        subprocess.run(["umount", str(point)], check=True)
