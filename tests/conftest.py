"""How Hypothesis is run, the small model of most tests of commands, and small file systems."""

import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from cgpt_convert.sources.inflate import DeflatedMember
from tests.helpers import vendor

# milliseconds for one example: seconds are a bomb, the default's 200 only a busy machine
settings.register_profile("tests", deadline=5000)
settings.load_profile("tests")

# whoever runs this in the background may have them ignored, and what is started here inherits it
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture(scope="module")
def state() -> vendor.State:
    """Its tensors, as the vendor has them."""
    return vendor.state_dict(vendor.TINY)


@pytest.fixture(scope="module")
def model(state: vendor.State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of them, and nothing beside it."""
    return vendor.save(state, tmp_path_factory.mktemp("tiny") / "model.bin")


@pytest.fixture(scope="module")
def source(state: vendor.State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same beside its config.json."""
    folder = tmp_path_factory.mktemp("source")
    vendor.write_config(vendor.TINY, folder)
    return vendor.save(state, folder / "pytorch_model.bin")


@pytest.fixture
def unpackings(monkeypatch: pytest.MonkeyPatch) -> list[DeflatedMember]:
    """What begins to be unpacked from its start, each time that it does."""
    begun: list[DeflatedMember] = []
    rewind = DeflatedMember._rewind

    def counted(self: DeflatedMember) -> None:
        begun.append(self)
        rewind(self)

    monkeypatch.setattr(DeflatedMember, "_rewind", counted)
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
