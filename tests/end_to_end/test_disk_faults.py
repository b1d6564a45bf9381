"""What is no file, disks that fail while they are read, and names as long as they may be."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import safetensors.torch
import torch

from cgpt_convert.sources import local
from cgpt_convert.writing import local_stage
from tests.helpers import vendor
from tests.helpers.running import contents, partials, run
from tests.helpers.small_models import write


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("model"), vendor.TINY)


@pytest.fixture(autouse=True)
def _clock() -> Iterator[None]:
    """Nothing waits: a FIFO that nobody writes to would be waited for without end."""

    def late(_number: int, _frame: object) -> None:
        raise AssertionError("it waits")  # no OSError, which would be taken for the system's

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def fifo(path: Path) -> None:
    os.mkfifo(path)


def bound(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def empty(path: Path) -> None:
    path.mkdir()


MAKERS = (fifo, bound, device, empty)
READERS = (
    "inspect {}",
    "convert {} -o never.npz",
    "convert {} -o never.npz --salvage",
    "convert {} -o never --to hf",
    "convert {} -o never.gguf",
    "extract {} -o never",
    "digest {}",
    "lock {} -o never.json",
    "verify {} m",
    "verify m {}",
    "verify m --lock {}",
    "diff {} m",
    "diff m {}",
    "generate {} --ids 1",
    "generate m --request {}",
    "eval m --text {}",
)


@pytest.mark.parametrize("make", MAKERS)
def test_what_is_no_file_is_refused_by_every_command_at_once(
    make: Callable[[Path], None], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m").symlink_to(model)
    monkeypatch.chdir(tmp_path)
    make(Path("odd"))
    for line in READERS[:-1] if make is fifo else READERS:  # a text may come through a pipe
        result = run(*line.format("odd").split())
        assert result.code in (2, 3), (line, result)
        assert result.out == ""
        assert "odd" in result.err
    assert sorted(os.listdir()) == ["m", "odd"]


@pytest.mark.parametrize("make", MAKERS[:3])
def test_what_is_no_file_is_no_output_to_replace(
    make: Callable[[Path], None], model: Path, tmp_path: Path
) -> None:
    make(tmp_path / "odd")
    for to in ("npz", "npy"):
        result = run("convert", model, "-o", tmp_path / "odd", "--to", to)
        assert result.code == 4
        assert "exists" in result.err
    assert os.listdir(tmp_path) == ["odd"]


@pytest.mark.parametrize("name", ["config.json", "vocab.json", "tokenizer.json", "tensors.json"])
def test_no_file_where_a_file_belongs_does_not_stop_the_run(
    name: str, model: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(model, tmp_path / "m")
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    result = run("convert", folder, "-o", tmp_path / "out", "--to", "hf")
    assert result.code in (0, 2, 3), result
    result = run("extract", model, "-o", folder, "--overwrite")
    assert result.code == 4


class Failing:
    """`pread` until so many bytes are read; then the disk fails, or the file is cut."""

    def __init__(self, after: int, fail: Callable[[], None]) -> None:
        self.left, self.fail, self.read = after, fail, local.pread

    def __call__(self, descriptor: int, buffer: memoryview, offset: int) -> int:
        self.left -= len(buffer)
        if self.left < 0:
            self.fail()
        return self.read(descriptor, buffer, offset)


def broken() -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


WRITERS = (
    "convert -o out.npz",
    "extract -o out",
    "convert -o out --to hf",
    "convert -o out.gguf --no-vocab",
)


@pytest.mark.parametrize("command", [*WRITERS, "digest"])
@pytest.mark.parametrize("part", [0, 0.5, 0.95])
def test_a_disk_that_fails_while_it_is_read(
    command: str, part: float, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name, *rest = command.split()
    weights = model / "pytorch_model.bin"
    failing = Failing(int(part * os.path.getsize(weights)), broken)
    monkeypatch.setattr(local, "pread", failing)
    result = run(name, model, *rest)
    assert result.code == 3
    assert f"{weights}: cannot read the file: Input/output error" in result.err
    assert os.listdir() == []


@pytest.mark.parametrize("command", [*WRITERS, "convert -o out.npz --salvage"])
def test_a_file_that_is_cut_while_it_is_read(
    command: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = shutil.copytree(model, tmp_path / "m") / "pytorch_model.bin"
    half = os.path.getsize(weights) // 2
    failing = Failing(half // 2, lambda: os.truncate(weights, half))
    monkeypatch.setattr(local, "pread", failing)
    name, *rest = command.split()
    result = run(name, "m", *rest)
    assert result.code == 3
    assert "pytorch_model.bin: " in result.err
    assert "became shorter" in result.err
    assert os.listdir(tmp_path) == ["m"]


@pytest.mark.parametrize("command", WRITERS)
def test_disks_that_are_too_small_fill_up_or_cannot_be_written(
    command: str,
    model: Path,
    mounted: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name, *rest = command.split()
    monkeypatch.chdir(small := mounted("size=100k"))
    result = run(name, model, *rest)
    assert result.code == 4
    assert "bytes are needed," in result.err
    assert os.listdir(small) == []
    monkeypatch.setattr(
        local_stage, "check_space", lambda *_: None
    )  # others fill it after the check
    result = run(name, model, *rest)
    assert result.code == 4
    assert f"{rest[1]}" in result.err
    assert "No space left on device" in result.err
    assert os.listdir(small) == []
    monkeypatch.chdir(mounted("ro,size=1m"))
    result = run(name, model, *rest)
    assert result.code == 4
    assert "Read-only file system" in result.err


@pytest.mark.parametrize("command", WRITERS)
def test_another_file_system(
    command: str,
    model: Path,
    tmp_path: Path,
    mounted: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name, *rest = command.split()
    found = []
    for folder in (mounted("size=8m"), tmp_path / "here"):
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        for more in ((), ("--overwrite",)):
            assert run(name, model, *rest, *more).code == 0
        found.append(contents(folder))
    assert found[0] == found[1]


@contextmanager
def nobody() -> Iterator[None]:
    """Without the rights of root."""
    before = os.geteuid()
    os.seteuid(before or 65534)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.mark.parametrize("command", WRITERS)
def test_without_permission(command: str, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, *rest = command.split()
    with TemporaryDirectory() as folder:  # pytest's own folders are closed to others
        copy = shutil.copytree(model, Path(folder, "m"))
        for each in (Path(folder), copy):
            each.chmod(0o755)
        monkeypatch.chdir(copy)
        assert run(name, copy, *rest).code == 0  # what it imports, it has
        (copy / rest[1]).rename(copy.with_name("before"))
        monkeypatch.chdir(folder)
        with nobody():
            result = run(name, copy, *rest)
        assert result.code == 4, result.err
        assert f"{rest[1]}: cannot write: Permission denied" in result.err
        (copy / "pytorch_model.bin").chmod(0)
        with nobody():
            result = run(name, copy, *rest)
        assert result.code == 3
        assert "pytorch_model.bin: cannot read the file: Permission denied" in result.err
        assert sorted(os.listdir(folder)) == ["before", "m"]
        monkeypatch.undo()


@pytest.mark.parametrize("suffix", [".safetensors", ""])
def test_a_name_of_255_bytes(suffix: str, tmp_path: Path) -> None:
    value = {"w": torch.arange(6.0)}
    source = tmp_path / ("é" * 126 + ".pt")
    assert len(os.fsencode(source.name)) == 255
    torch.save(value, source)
    out = tmp_path / ("n" * (255 - len(suffix)) + suffix)
    words = ("convert", source, "-o", out, "--to", "safetensors" if suffix else "parameters")
    for more in ((), ("--overwrite", "--verify")):
        assert run(*words, *more).code == 0
    assert partials(tmp_path) == []
    if suffix:
        assert torch.equal(safetensors.torch.load_file(out)["w"], value["w"])
    longer = tmp_path / f"n{out.name}"
    result = run("convert", source, "-o", longer, "--to", words[-1])
    assert result.code == 4
    assert "too long" in result.err
    result = run("inspect", tmp_path / ("n" * 256))
    assert result.code == 3
    assert "name too long" in result.err.lower()


def test_a_tensor_whose_name_is_longer_than_a_file_name(tmp_path: Path) -> None:
    value = {"w" * 300: torch.arange(6.0), "w" * 301: torch.ones(2)}
    torch.save(value, tmp_path / "x.pt")
    result = run("extract", tmp_path / "x.pt", "-o", tmp_path / "out", "--by", "name")
    assert result.code == 0, result.err
    assert all(len(name) <= 255 for name in contents(tmp_path / "out"))


@pytest.mark.parametrize(("suffix", "to"), [(".gguf", "gguf"), ("", "hf")])
def test_a_whole_model_of_a_name_of_255_bytes(
    suffix: str, to: str, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / ("n" * (255 - len(suffix)) + suffix)
    words = ("convert", model, "--to", to, *(("--no-vocab",) if suffix else ()))
    for more in ((), ("--overwrite",)):
        assert run(*words, "-o", out, *more).code == 0
    assert os.listdir(tmp_path) == [out.name]
    result = run(*words, "-o", tmp_path / f"n{out.name}")
    assert result.code == 4
    assert "too long" in result.err
