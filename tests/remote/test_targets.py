"""Output that goes to stores: S3 by a real server, memory:// for those that take bytes in order."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from cgpt_convert.errors import CannotWrite
from cgpt_convert.remote import stores, upload, writable
from tests.remote.servers import KEY, SECRET, seaweed
from tests.remote.test_http import CS, same_weights
from tests.running import run, spawn, start

FORMS = {
    "m.safetensors": (),
    "m.npz": (),
    "m.bin": (),
    "s/m.safetensors": ("--max-shard-size", "400kB"),
    "npy": ("--to", "npy"),
    "hf": ("--to", "hf"),
    "parameters": ("--to", "parameters"),
}


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The file system of a real S3 server, which the environment names; it has s3://out/."""
    import s3fs

    with seaweed(tmp_path_factory.mktemp("seaweed")) as endpoint, pytest.MonkeyPatch.context() as m:
        m.setenv("AWS_ACCESS_KEY_ID", KEY)
        m.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        m.setenv("AWS_ENDPOINT_URL", endpoint)
        m.setenv("AWS_DEFAULT_REGION", "us-east-1")
        system = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
        system.mkdir("out")
        yield system


@pytest.fixture(params=["s3", "memory"])
def place(request: pytest.FixtureRequest) -> Iterator[tuple[Any, str]]:
    """A store and the URL of an empty folder in it."""
    name = f"out/{request.node.name.replace('[', '-').strip(']').replace('/', '-')}"
    if request.param == "s3":
        yield request.getfixturevalue("s3"), f"s3://{name}"
        return
    system = fsspec.filesystem("memory")
    yield system, f"memory://{name}"
    if system.exists("/out"):
        system.rm("/out", recursive=True)


def there(place: tuple[Any, str]) -> dict[str, bytes]:
    """The objects in the folder, by their paths."""
    system, url = place
    start = url.partition("://")[2]
    found = {name.lstrip("/"): name for name in system.find(start)}
    return {key.removeprefix(f"{start}/"): system.cat_file(name) for key, name in found.items()}


def here(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of the least size that S3 takes; the copy of a file of several is in parts, too."""
    monkeypatch.setattr(upload, "_PART", 5 << 20)


@pytest.mark.parametrize("output", FORMS)
def test_the_bytes_are_those_of_local_output(
    place: tuple[Any, str], models: Path, tmp_path: Path, output: str
) -> None:
    (tmp_path / output).parent.mkdir(exist_ok=True)
    source, words = models / CS, FORMS[output]
    assert run("convert", source, "-o", tmp_path / output, *words).code == 0
    done = run("convert", source, "-o", f"{place[1]}/{output}", "--verify", *words)
    assert done.code == 0, done.err
    assert there(place) == here(tmp_path)
    opened = output.replace("s/m.safetensors", "s/m.safetensors.index.json")
    near, far = (run("digest", f"{each}/{opened}") for each in (tmp_path, place[1]))
    assert (far.code, far.out) == (0, near.out), far.err


def test_extract_writes_to_a_store(place: tuple[Any, str], models: Path, tmp_path: Path) -> None:
    assert run("extract", models / CS, "-o", tmp_path / "p").code == 0
    done = run("extract", models / CS, "-o", f"{place[1]}/p")
    assert done.code == 0, done.err
    assert there(place) == here(tmp_path)
    checked = run("verify", models / CS, f"{place[1]}/p")
    assert checked.code == 0, checked.out
