"""s3:// against a real server of its protocol (SeaweedFS), memory:// for what all stores share.

hf:// has no server here: nginx plays the Hub's two answers, the list of files and the redirect.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from cgpt_convert.sources.remote import fsspec_store
from tests.helpers.running import environ, run, spawn
from tests.helpers.servers import KEY, SECRET, Nginx, nginx, seaweed
from tests.sources.remote.test_http import CS, same_weights, told


@pytest.fixture(scope="module")
def bucket(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The environment's S3 has s3://models/cs/, and the credentials for it."""
    import s3fs

    with seaweed(tmp_path_factory.mktemp("seaweed")) as endpoint, pytest.MonkeyPatch.context() as m:
        m.setenv("AWS_ACCESS_KEY_ID", KEY)
        m.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        m.setenv("AWS_ENDPOINT_URL", endpoint)
        m.setenv("AWS_DEFAULT_REGION", "us-east-1")
        files = s3fs.S3FileSystem(skip_instance_cache=True)
        files.mkdir("models")
        for path in (models / "cs").iterdir():
            files.put_file(str(path), f"models/cs/{path.name}")
        yield endpoint


def test_s3_is_read_in_ranges(bucket: str, models: Path, tmp_path: Path) -> None:
    del bucket
    far = run("inspect", f"s3://models/{CS}", "--json")
    assert far.code == 0, far.err
    near = run("inspect", models / CS, "--json")
    assert far.json["tensors"] == near.json["tensors"]
    assert far.json["model"] == near.json["model"]  # with config.json
    assert told(far)[0] < 6
    out = tmp_path / "out.safetensors"
    done = run("convert", f"s3://models/{CS}", "-o", out)
    assert done.code == 0, done.err
    same_weights(out, models / CS)
    for secret in (KEY, SECRET, "Signature"):
        assert secret not in done.out + done.err
    folder = run("inspect", "s3://models/cs", "--json")
    assert folder.json["tensors"] == near.json["tensors"]


def test_what_s3_refuses_is_said(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    del bucket
    done = run("inspect", "s3://models/cs/nothing.bin")
    assert (done.code, "no such file" in done.err) == (2, True)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "WRONG-SECRET")
    done = spawn("inspect", f"s3://models/{CS}")
    assert (done.code, "403" in done.err) == (3, True)
    assert "WRONG" not in done.err
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    done = spawn("inspect", f"s3://models/{CS}")
    assert (done.code, "check your credentials" in done.err) == (3, True), done.err


@pytest.fixture
def memory(models: Path) -> Iterator[fsspec.AbstractFileSystem]:
    files = fsspec.filesystem("memory")
    for path in (models / "cs").iterdir():
        files.pipe_file(f"/cs/{path.name}", path.read_bytes())
    yield files
    files.rm("/cs", recursive=True)


def test_any_store_that_fsspec_knows(
    memory: fsspec.AbstractFileSystem, models: Path, tmp_path: Path
) -> None:
    del memory
    near = run("inspect", models / CS, "--json")
    for source in (f"memory://{CS}", "memory://cs", "memory://cs/"):
        assert run("inspect", source, "--json").json["tensors"] == near.json["tensors"]
    for more in ((), ("--download",)):
        out = tmp_path / "out.safetensors"
        done = run("convert", f"memory://{CS}", "-o", out, "--overwrite", *more)
        assert done.code == 0, done.err
        same_weights(out, models / CS)


def test_a_store_says_when_an_object_changed(
    memory: fsspec.AbstractFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = memory.cat_file("/" + CS)
    asked = fsspec_store.StoreObject.pieces

    def replacing(self: fsspec_store.StoreObject, offset: int, nbytes: int) -> Iterator[bytes]:
        if offset:  # after the head
            memory.pipe_file("/" + CS, data)
        yield from asked(self, offset, nbytes)

    monkeypatch.setattr(fsspec_store.StoreObject, "pieces", replacing)
    done = run("convert", f"memory://{CS}", "-o", tmp_path / "out.safetensors")
    assert done.code == 3
    assert "changed while it was read" in done.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("memory://cs/nothing.bin", "no such file"),
        ("nonsense://x/y.bin", "nonsense:// URLs are not supported"),
        ("hf://tiny", "hf://OWNER/NAME"),
    ],
)
def test_what_no_store_has_is_said(url: str, words: str) -> None:
    done = run("inspect", url)
    assert done.code == 2
    assert words in done.err


WITHOUT = """
import sys
sys.modules.update(dict.fromkeys({missing!r}.split()))  # to import one of them is an ImportError
from cgpt_convert.cli import main
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("missing", "schemes"),
    [
        ("urllib3 fsspec huggingface_hub", "https hf s3 memory"),
        ("fsspec", "gs"),
        ("huggingface_hub", "hf"),
        ("s3fs", "s3"),
    ],
)
def test_what_to_install_is_said(missing: str, schemes: str) -> None:
    for scheme in schemes.split():
        code = WITHOUT.format(missing=missing)
        line = [sys.executable, "-c", code, "inspect", f"{scheme}://owner/name/x.bin"]
        done = subprocess.run(line, capture_output=True, check=False, env=environ(), text=True)
        assert done.returncode == 2, done.stderr
        extra = "s3" if missing == "s3fs" else "remote"
        assert f"pip install 'cgpt-convert[{extra}]'" in done.stderr


COMMIT = "0123456789abcdef" * 2 + "01234567"
HUB = """
    location = /api/models/acme/tiny {{ try_files /listing.json =404; }}
    location = /api/models/acme/tiny/revision/main {{ try_files /listing.json =404; }}
    location ~ ^/acme/tiny/resolve/{commit}/(.*)$ {{
      rewrite ^/acme/tiny/resolve/{commit}/(.*)$ http://localhost:$server_port/cs/$1?s=SIG redirect;
    }}
"""


@pytest.fixture(scope="module")
def hub(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    with nginx(
        tmp_path_factory.mktemp("hub"),
        HUB.replace("{{", "{").replace("}}", "}").replace("{commit}", COMMIT),
    ) as server:
        (server.www / "cs").symlink_to(models / "cs")
        files = [{"rfilename": name} for name in ("pytorch_model.bin", "config.json", "a/b.bin")]
        listing = {"id": "acme/tiny", "sha": COMMIT, "siblings": files}
        (server.www / "listing.json").write_text(json.dumps(listing))
        yield server


@pytest.mark.parametrize("source", ["hf://acme/tiny", "hf://acme/tiny@main/pytorch_model.bin"])
def test_the_hub_is_asked_once_and_then_the_commit(hub: Nginx, models: Path, source: str) -> None:
    hub.asked()
    words = {"HF_ENDPOINT": hub.url("").rstrip("/"), "HF_TOKEN": "hf_TOKEN", "NO_PROXY": "*"}
    done = spawn("inspect", source, "--json", **words)
    assert done.code == 0, done.err
    near = run("inspect", models / CS, "--json")
    assert done.json["tensors"] == near.json["tensors"]
    assert done.json["model"] == near.json["model"]
    assert done.json["source"] == f"hf://acme/tiny@{COMMIT}/pytorch_model.bin"
    # huggingface_hub may ask the Hub for things of its own; those are not for the weights
    lines = [line for line in hub.asked() if "tiny" in line or "/cs/" in line or "listing" in line]
    assert told(done)[0] == len(lines) <= 6  # the list; for each of two files, a redirect; ranges
    assert {"SIG" in line for line in lines if " /cs/" in line} == {True}
    for line in lines:  # the token goes to the Hub alone
        assert ("hf_TOKEN" in line) == (" /cs/" not in line)
    assert not {word for word in ("TOKEN", "SIG") if word in done.out + done.err}


def test_a_repository_that_is_not_there(hub: Nginx) -> None:
    done = spawn("inspect", "hf://acme/nothing", HF_ENDPOINT=hub.url("").rstrip("/"), NO_PROXY="*")
    assert done.code == 2
    assert "the repository or revision does not exist" in done.err
