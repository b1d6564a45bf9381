"""Output that goes to stores: S3 by a real server, memory:// for those that take bytes in order."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from cgpt_convert.writing.remote import upload
from cgpt_convert.writing.remote.store import WritableStore
from tests.helpers.running import run, spawn, start
from tests.helpers.servers import KEY, SECRET, seaweed
from tests.sources.remote.test_http import CS, same_weights

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
def place(request: pytest.FixtureRequest, s3: Any) -> Iterator[tuple[Any, str]]:
    """A store and the URL of an empty folder in it."""
    name = f"out/{request.node.name.replace('[', '-').strip(']').replace('/', '-')}"
    if request.param == "s3":
        yield s3, f"s3://{name}"
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
    inside = {key.removeprefix(f"{start}/"): name for key, name in found.items() if key != start}
    return {key: system.cat_file(name) for key, name in inside.items()}


def uploads(system: Any, prefix: str = "") -> list[str]:
    """The keys of multipart uploads that are neither completed nor aborted."""
    found = system.call_s3("list_multipart_uploads", Bucket="out").get("Uploads", [])
    return [each["Key"] for each in found if each["Key"].startswith(prefix)]


def here(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of four parts: contiguous tensors, and ones to be rearranged."""
    path = tmp_path_factory.mktemp("wide") / "wide.bin"
    state = {f"t{i}": torch.rand(1000, 1000) for i in range(2)}
    state |= {f"u{i}": torch.rand(1000, 1000).T for i in range(2)}
    torch.save(state, path)
    return path


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the least size that S3 takes."""
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


def test_what_is_there_is_replaced_only_if_told(place: tuple[Any, str], models: Path) -> None:
    system, url = place
    system.pipe_file(f"{url}/m.npz", b"old")
    system.pipe_file(f"{url}/folder/mine.txt", b"mine")
    refused = run("convert", models / CS, "-o", f"{url}/m.npz")
    assert (refused.code, "pass --overwrite to replace it" in refused.err) == (4, True)
    for more in ((), ("--overwrite",)):
        refused = run("extract", models / CS, "-o", f"{url}/folder", *more)
        assert refused.code == 4, refused.err
    assert "contains 'mine.txt', which is not part of the output" in refused.err
    assert there(place) == {"m.npz": b"old", "folder/mine.txt": b"mine"}
    assert run("convert", models / CS, "-o", f"{url}/m.npz", "--overwrite").code == 0
    assert there(place).keys() == {"m.npz", "folder/mine.txt"}
    assert there(place)["m.npz"].startswith(b"PK")
    for _ in range(2):
        done = run("extract", models / CS, "-o", f"{url}/p", "--overwrite")
        assert done.code == 0, done.err
    assert run("digest", f"{url}/p").out == run("digest", models / CS).out


def test_nothing_is_left_of_what_fails(place: tuple[Any, str], models: Path) -> None:
    """The source's last record is damaged: by then most has been sent."""
    _, url = place
    data = bytearray((models / CS).read_bytes())
    data[data.rindex(b"archive/data/") - (1 << 20)] ^= 1
    damaged = models / CS.replace(".bin", "-damaged.bin")  # beside its config.json
    damaged.write_bytes(data)
    for output, words in FORMS.items():
        done = run("convert", damaged, "-o", f"{url}/{output}", *words)
        assert done.code == 3, done.out + done.err
        assert "does not match its checksum" in done.err
        assert "left behind" not in done.err
    assert there(place) == {}


def test_a_server_that_fails_is_asked_again(
    s3: Any, wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = WritableStore.once
    failures = {"create_multipart_upload": 1, "upload_part": 2, "copy_object": 1}

    def failing(self: WritableStore, method: str, path: str, **words: Any) -> Any:
        if failures.get(method):
            failures[method] -= 1
            raise ConnectionResetError
        return asked(self, method, path, **words)

    monkeypatch.setattr(WritableStore, "once", failing)
    done = run("convert", wide, "-o", "s3://out/again/m.safetensors")
    assert (done.code, set(failures.values())) == (0, {0}), done.err
    s3.get_file("out/again/m.safetensors", str(tmp_path / "m.safetensors"))
    same_weights(tmp_path / "m.safetensors", wide)
    failures["upload_part"] = 9
    done = run("convert", wide, "-o", "s3://out/again/n.safetensors", "--retries", "1")
    assert done.code == 4
    assert "the store reported the error ConnectionResetError (2 attempts)" in done.err
    assert s3.find("out/again") == ["out/again/m.safetensors"]
    assert not uploads(s3, "again/")


def test_what_cannot_be_replaced_stays(
    s3: Any, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = WritableStore.once

    def failing(self: WritableStore, method: str, path: str, **words: Any) -> Any:
        if method == "copy_object":
            raise ConnectionResetError
        return asked(self, method, path, **words)

    s3.pipe_file("out/kept/m.npz", b"old")
    monkeypatch.setattr(WritableStore, "once", failing)
    words = ("-o", "s3://out/kept/m.npz", "--overwrite", "--retries", "0")
    done = run("convert", models / CS, *words)
    assert done.code == 4, done.err
    assert s3.find("out/kept") == ["out/kept/m.npz"]
    assert s3.cat_file("out/kept/m.npz") == b"old"


def test_gguf_and_locks_go_to_a_store(place: tuple[Any, str], models: Path, tmp_path: Path) -> None:
    words = {"m.gguf": ("convert", "--no-vocab", "--dtype", "q8_0"), "m.json": ("lock",)}
    for output, (command, *options) in words.items():
        for folder in (tmp_path, place[1]):
            done = run(command, models / CS, *options, "-o", f"{folder}/{output}")
            assert done.code == 0, done.err
    assert there(place) == here(tmp_path)


@pytest.mark.parametrize("name", ["m.safetensors", "m.npz", "m.bin"])
def test_large_objects_are_sent_and_copied_in_parts(
    s3: Any, wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(upload, "_COPIED_WHOLE", 1 << 20)
    monkeypatch.setattr(upload, "_COPIED", 5 << 20)
    done = run("convert", wide, "-o", f"s3://out/large/{name}")
    assert done.code == 0, done.err
    s3.get_file(f"out/large/{name}", str(tmp_path / "there"))
    assert run("convert", wide, "-o", tmp_path / name).code == 0
    assert (tmp_path / name).read_bytes() == (tmp_path / "there").read_bytes()
    assert s3.find("out/large") == [f"out/large/{name}"]
    s3.rm_file(f"out/large/{name}")


def test_memory_is_bounded_while_a_header_waits(s3: Any) -> None:
    """What is kept of a file is what is on its way, and parts with holes: two at most."""
    kept = []
    store = WritableStore("s3://out/bounded")
    outbox = upload.SendQueue(parallel=True)
    sent = upload.upload(store, "out/bounded/x", 40 << 20, outbox)
    piece = memoryview(bytes(1 << 20))
    for at in range(1 << 20, 40 << 20, 1 << 20):
        sent.write(piece, at)
        kept.append(outbox.nbytes + 2 * (5 << 20))
    assert max(kept) <= upload.MEMORY + 2 * (5 << 20)
    sent.write(piece, 0)
    outbox.wait()
    sent.finish()
    assert s3.info("out/bounded/x")["size"] == 40 << 20


def test_an_interrupt_leaves_nothing(s3: Any, tmp_path: Path) -> None:
    source = tmp_path / "big.safetensors"  # of holes, and so large that it does not end soon
    rows = {f"t{i}": ("F32", 1 << 26) for i in range(8)}
    table = {
        name: {"dtype": dtype, "shape": [n], "data_offsets": [i * 4 * n, (i + 1) * 4 * n]}
        for i, (name, (dtype, n)) in enumerate(rows.items())
    }
    header = json.dumps(table).encode()
    source.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(source, 8 + len(header) + 8 * (4 << 26))
    process = start("convert", source, "-o", "s3://out/interrupted/m.npz")
    end = time.monotonic() + 100
    while not uploads(s3, "interrupted/"):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert b"Traceback" not in err
    assert not [key for key in s3.find("out/interrupted") if key != "out/interrupted"]
    assert not uploads(s3, "interrupted/")


def test_what_a_store_refuses_is_said_without_secrets(
    s3: Any, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del s3
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "WRONG-SECRET")
    refused = spawn("convert", models / CS, "-o", "s3://out/wrong/m.npz")
    assert refused.code == 4, refused.err
    assert "the store denied access" in refused.err
    assert "check your credentials (docs/reference/remote.md#credentials)" in refused.err
    assert not {word for word in ("WRONG", KEY) if word in refused.out + refused.err}


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://host/m.npz", "cannot write to https://"),
        ("hf://owner/name/m.npz", "cannot write to hf://"),
        ("file:///tmp/m.npz", "pass the path without file://"),
        ("s3://m.npz", "the URL has no path after the bucket"),
        ("nonsense://bucket/m.npz", "nonsense:// URLs are not supported"),
    ],
)
def test_where_nothing_is_written(models: Path, url: str, words: str) -> None:
    done = run("convert", models / CS, "-o", url)
    assert (done.code, words in done.err) == (2, True), done.err


def test_the_source_is_not_replaced(place: tuple[Any, str], models: Path) -> None:
    system, url = place
    system.pipe_file(f"{url}/x/m.bin", (models / CS).read_bytes())
    for output in (f"{url}/x/m.bin", f"{url}/x"):
        done = run("convert", f"{url}/x/m.bin", "--to", "torch", "-o", output, "--overwrite")
        assert (done.code, "the output would replace the input" in done.err) == (2, True), done.err


def test_from_one_store_to_another_each_byte_is_fetched_once(s3: Any, models: Path) -> None:
    s3.put_file(str(models / CS), "out/between/m.bin")
    done = run("convert", "s3://out/between/m.bin", "-o", "s3://out/between/m.safetensors")
    assert done.code == 0, done.err
    assert run("verify", models / CS, "s3://out/between/m.safetensors").code == 0
    fetched = float(done.err.split(" requests, ")[1].split(" MB")[0])
    assert fetched < (models / CS).stat().st_size / 1e6 + 0.7  # head and tail come twice
