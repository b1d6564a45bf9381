"""URLs, against a real nginx on the loopback interface: what travels, and what may go wrong."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file

import cgpt_convert
from tests.helpers.running import Result, environ, run, spawn, start
from tests.helpers.servers import Nginx, nginx

CS = "cs/pytorch_model.bin"
DEMO = Path(cgpt_convert.__file__).parent / "demo"


def told(result: Result) -> tuple[int, str]:
    """The number of requests and the bytes, as standard error tells them."""
    found = re.search(r"^([0-9,]+) requests?, (.*) of .*$", result.err, re.MULTILINE)
    assert found, result.err
    return int(found[1].replace(",", "")), found[2]


def same_weights(path: Path, source: Path) -> None:
    """Are the tensors of the safetensors file those that torch reads from the source?"""
    theirs = torch.load(source, weights_only=True)
    ours = load_file(path)
    assert ours.keys() <= theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    tied = theirs.keys() - ours.keys()
    assert all(name == "lm_head.weight" for name in tied)


def test_a_model_behind_a_url_is_computed(server: Nginx, models: Path) -> None:
    done = run("verify", models / CS, server.url(CS), "--logits", "--json")
    assert done.code == 0, done.err
    assert max(state["nmse"] for state in done.json["logits"]["states"]) == 0


def test_inspect_of_gigabytes_takes_kilobytes(server: Nginx, models: Path) -> None:
    server.asked()
    path = models / "big.pt"
    assert path.stat().st_size > 5_000_000_000
    far = run("inspect", server.url("big.pt"), "--json")
    lines = server.asked()
    assert far.code == 0
    requests, _ = told(far)
    assert requests == len(lines) == far.json["transfer"]["requests"] < 6
    assert far.json["transfer"]["total"] == path.stat().st_size
    assert sum(int(line.split()[1]) for line in lines) < 1_000_000
    near = run("inspect", path, "--json")
    assert far.json["tensors"] == near.json["tensors"]  # offsets, too, without the local headers
    late = [found for found in far.json["findings"] if found["id"] == "CGPT030"]
    assert len(late) == 1
    others = [found for found in far.json["findings"] if found["id"] != "CGPT030"]
    assert others == near.json["findings"]


@pytest.mark.parametrize(
    "path", [CS, "hf/pytorch_model.bin", "sharded/pytorch_model.bin.index.json"]
)
def test_inspect_says_the_same_as_of_the_file(server: Nginx, models: Path, path: str) -> None:
    near, far = run("inspect", models / path, "--json"), run("inspect", server.url(path), "--json")
    left_out = ("source", "findings", "transfer")
    assert {k: v for k, v in far.json.items() if k not in left_out} == {
        k: v for k, v in near.json.items() if k not in left_out
    }
    assert told(far)[0] <= 6


@pytest.mark.parametrize("folder", ["cs", "hf"])
def test_convert_streams_each_byte_once(
    server: Nginx, models: Path, tmp_path: Path, folder: str
) -> None:
    server.asked()
    out = tmp_path / "out.safetensors"
    source = f"{folder}/pytorch_model.bin"
    assert run("convert", server.url(source), "-o", out).code == 0
    sent = sum(int(line.split()[1]) for line in server.asked() if source in line)
    assert sent < (models / source).stat().st_size + 700_000  # head and tail come twice
    same_weights(out, models / source)


def test_extract_writes_the_same_bytes(server: Nginx, models: Path, tmp_path: Path) -> None:
    for name, source in (("near", models / CS), ("far", server.url(CS))):
        assert run("extract", source, "-o", tmp_path / name).code == 0
    near = sorted((tmp_path / "near").rglob("*"))
    assert [path.name for path in near] == [p.name for p in sorted((tmp_path / "far").rglob("*"))]
    for path in near:
        if path.is_file() and path.name != "mapping.json":
            assert (
                path.read_bytes()
                == (tmp_path / "far" / path.relative_to(tmp_path / "near")).read_bytes()
            )


def test_a_model_folder_with_its_configuration(server: Nginx, models: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run("convert", server.url("cs/"), "--to", "hf", "-o", out)
    assert done.code == 0, done.err
    assert json.loads((out / "config.json").read_text())["n_layer"] == 3
    same = run("convert", models / "cs", "--to", "hf", "-o", tmp_path / "near")
    assert same.code == 0
    assert (out / "model.safetensors").read_bytes() == (
        tmp_path / "near" / "model.safetensors"
    ).read_bytes()
    sharded = run("inspect", server.url("sharded/"), "--json")
    assert len(sharded.json["files"]) == 2


def test_a_shard_that_is_missing_is_named(server: Nginx, models: Path) -> None:
    index = json.loads((models / "sharded" / "pytorch_model.bin.index.json").read_text())
    index["weight_map"]["h.0.ln_1.weight"] = "pytorch_model-00009-of-00002.bin"
    (server.www / "lost.index.json").write_text(json.dumps(index))
    done = run("inspect", server.url("lost.index.json"))
    assert done.code == 3
    assert "pytorch_model-00009-of-00002.bin" in done.err


def test_other_formats(server: Nginx, models: Path, tmp_path: Path) -> None:
    for name in ("m.safetensors", "m.npz", "m.pt"):
        assert run("convert", models / "hf", "-o", server.www / name).code == 0
        far = run("inspect", server.url(name), "--json")
        near = run("inspect", server.www / name, "--json")
        assert far.json["tensors"] == near.json["tensors"]
        out = tmp_path / f"{name}.safetensors"
        assert run("convert", server.url(name), "-o", out).code == 0
        same_weights(out, models / "hf" / "pytorch_model.bin")


@pytest.mark.parametrize("how", ["cut", "busy"])
def test_requests_that_fail_are_repeated(
    server: Nginx, models: Path, tmp_path: Path, how: str
) -> None:
    out = tmp_path / "out.safetensors"
    done = run("convert", server.url(f"{how}/{CS}"), "-o", out, "--retries", "40")
    assert done.code == 0, done.err
    same_weights(out, models / CS)


def test_an_answer_that_is_cut_goes_on_where_it_was(models: Path, tmp_path: Path) -> None:
    """The server is stopped and started again while it sends."""
    with nginx(tmp_path / "server") as server:
        (server.www / "m.bin").symlink_to(models / "cs" / "pytorch_model.bin")
        out = tmp_path / "out.safetensors"
        results = []
        words = ("convert", server.url("slow/m.bin"), "-o", str(out))
        thread = threading.Thread(target=lambda: results.append(spawn(*words)))
        thread.start()
        _wait_for(lambda: any(tmp_path.glob(".*.partial")))
        for _ in range(2):
            time.sleep(0.5)
            server.stop()
            server.start()
        thread.join(60)
        lines = server.asked()
    assert results[0].code == 0, results[0].err
    same_weights(out, models / "cs" / "pytorch_model.bin")
    assert told(results[0])[0] > len([line for line in lines if line.startswith("206")])


def _wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("folder", ["slow", "untagged"])
def test_a_file_that_changes_meanwhile(models: Path, tmp_path: Path, folder: str) -> None:
    with nginx(tmp_path / "server") as server:
        served = server.www / "m.bin"
        data = (models / "cs" / "pytorch_model.bin").read_bytes()
        served.write_bytes(data)
        results = []
        out = tmp_path / "out.safetensors"
        words = ("convert", server.url(f"{folder}/m.bin"), "-o", str(out))
        thread = threading.Thread(target=lambda: results.append(spawn(*words)))
        thread.start()
        _wait_for(lambda: any(tmp_path.glob(".*.partial")))
        (server.www / "new").write_bytes(data)  # the same bytes: only ETag and time tell
        os.utime(server.www / "new", (1, 1))
        (server.www / "new").replace(served)
        time.sleep(0.3)
        server.stop()  # what is on its way must be asked for again
        server.start()
        thread.join(60)
    assert results[0].code == 3, results[0]
    assert "changed while it was read" in results[0].err
    assert [path.name for path in tmp_path.iterdir()] == ["server"]


def test_an_interrupt_ends_it_at_once(server: Nginx, tmp_path: Path) -> None:
    process = start("convert", server.url(f"slow/{CS}"), "-o", tmp_path / "out.safetensors")
    _wait_for(lambda: any(tmp_path.glob(".*.partial")))
    time.sleep(0.3)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130, err
    assert b"Traceback" not in err
    assert time.monotonic() - began < 3
    assert not list(tmp_path.iterdir())


def test_a_server_without_ranges(server: Nginx, models: Path, tmp_path: Path) -> None:
    url = server.url(f"whole/{CS}")
    refused = run("inspect", url)
    assert refused.code == 3
    assert "does not support byte ranges" in refused.err
    assert "--download" in refused.err
    server.asked()
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    done = spawn(
        "convert", url, "--download", "-o", tmp_path / "o.safetensors", TMPDIR=str(temporary)
    )
    assert done.code == 0, done.err
    assert not list(temporary.iterdir())
    same_weights(tmp_path / "o.safetensors", models / CS)
    asked = [line for line in server.asked() if CS in line]
    assert [line.split()[0] for line in asked] == ["200"]
    assert int(asked[0].split()[1]) == (models / CS).stat().st_size


def test_what_is_small_needs_no_ranges(server: Nginx) -> None:
    (server.www / "small.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    assert run("inspect", server.url("whole/small.safetensors")).code == 0


@pytest.mark.parametrize(
    ("path", "code", "words"),
    [
        ("nothing.bin", 2, "no such file"),
        ("forbidden/x.bin", 3, "403 Forbidden"),
        (f"private/{CS}", 3, "401 Unauthorized"),
        ("round/x", 3, "redirects"),
        ("page.html", 3, "web page"),
    ],
)
def test_what_cannot_be_had_is_said(server: Nginx, path: str, code: int, words: str) -> None:
    done = run("inspect", server.url(path))
    assert (done.code, done.out) == (code, "")
    assert words in done.err


def test_a_server_that_is_down_is_given_up(server: Nginx) -> None:
    done = run("inspect", server.url("down/x.bin"), "--retries", "1")
    assert done.code == 3
    assert "503 Service Temporarily Unavailable (2 attempts)" in done.err


def test_a_host_that_says_nothing_is_given_up() -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        url = f"http://127.0.0.1:{mute.getsockname()[1]}/x.bin"
        done = run("inspect", url, "--retries", "0", "--timeout", "0.5")
        assert done.code == 3
        assert "no data arrived for 0.5 seconds" in done.err
    done = run("inspect", url, "--retries", "0")
    assert "cannot connect to '127.0.0.1'" in done.err


def test_what_lets_in_is_sent_and_never_shown(
    server: Nginx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = server.url(f"private/{CS}?signature=SECRET").replace("//", "//anna:sesame@")
    server.asked()
    for words in (
        ("inspect", "--json"),
        ("convert", "-o", str(tmp_path / "o.safetensors"), "--json"),
    ):
        done = run(words[0], secret, *words[1:])
        assert done.code == 0, done.err
        assert not {w for w in ("sesame", "SECRET") if w in done.out + done.err}
        assert done.json["source"] == server.url(f"private/{CS}")
    lines = server.asked()
    assert all("Basic" in line for line in lines)  # config.json's, too
    assert all("SECRET" in line for line in lines if CS in line)
    wrong = run("inspect", secret.replace("sesame", "open"))
    assert wrong.code == 3
    assert "open" not in wrong.err.replace("opened", "")
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login anna password sesame\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run("inspect", server.url(f"private/{CS}")).code == 0


def test_a_redirect_is_followed_once_and_gets_no_password(server: Nginx) -> None:
    server.asked()
    url = server.url(f"moved/{CS}").replace("//", "//anna:sesame@")
    done = run("inspect", url, "--json")
    assert done.code == 0, done.err
    assert "SECRET" not in done.out + done.err
    lines = [line for line in server.asked() if "model.bin" in line]
    assert [line.split()[0] for line in lines] == ["302", "206", "206"]
    assert ["Basic" in line for line in lines] == [True, False, False]


def test_a_page_instead_of_a_configuration_is_none(server: Nginx) -> None:
    (server.www / "alone").mkdir()
    (server.www / "alone" / "m.bin").symlink_to((server.www / CS).resolve())
    done = run("inspect", server.url("pages/alone/m.bin"), "--json")
    assert done.code == 0, done.err
    assert done.json["model"]["config"] == []


def test_a_local_header_that_disagrees_is_found_when_it_is_read(
    server: Nginx, tmp_path: Path
) -> None:
    assert run("inspect", server.www / "forged.bin").code == 3
    assert run("inspect", server.url("forged.bin")).code == 0  # with the finding that it is unread
    done = run("convert", server.url("forged.bin"), "-o", tmp_path / "o.safetensors")
    assert done.code == 3
    assert "the name in the local header is not that in the directory" in done.err
    assert not list(tmp_path.iterdir())


def test_scan_sees_what_is_behind_a_url(server: Nginx, models: Path) -> None:
    (server.www / "evil.bin").write_bytes(b"\x80\x02cos\nsystem\nX\x02\0\0\0id\x85R.")
    for name, code in ((CS, 0), ("evil.bin", 1), ("forged.bin", 3)):
        far, near = run("scan", server.url(name)), run("scan", server.www / name)
        assert far.code == near.code == code, far.out
        said = near.out.replace(str(server.www / name), server.url(name))
        # the headers of a zip are found to differ in another place
        assert said.split("\n")[0] == far.out.split("\n")[0]
        assert far.out.endswith(said.partition("\n\n")[2])
    assert far.err.endswith(
        f" of {(models / 'hf/pytorch_model.bin').stat().st_size / 1e6:.3g} MB\n"
    )


def test_every_command_that_reads_weights_takes_a_url(
    server: Nginx, models: Path, tmp_path: Path
) -> None:
    far, near = server.url(CS), models / CS
    ids = ("--ids", "1,2,3", "--max-new-tokens", "3")
    for command, *more in (
        ("digest",),
        ("extract", "--stdout", "lm_head.weight"),
        ("generate", *ids),
    ):
        there, here = run(command, far, *more), run(command, near, *more)
        assert there.code == here.code == 0, there.err
        assert there.raw == here.raw
    assert run("diff", far, near).code == 0
    assert run("lock", far, "-o", tmp_path / "lock").code == 0
    assert run("verify", "--lock", tmp_path / "lock", near).code == 0
    assert run("convert", far, "-o", tmp_path / "m.safetensors").code == 0
    assert run("verify", far, tmp_path / "m.safetensors").code == 0
    assert run("verify", near, server.url("hf/pytorch_model.bin")).code == 1


def test_raw_folders_are_read_where_something_lists_their_files(
    server: Nginx, models: Path
) -> None:
    near = run("digest", models / CS).out
    for name, command in (
        ("raw", ("extract",)),
        ("arrays", ("convert", "--to", "npy")),
        ("named", ("convert", "--to", "parameters")),
    ):
        assert run(*command, models / CS, "-o", server.www / name).code == 0
        server.asked()
        far = run("digest", server.url(f"{name}/"))
        assert (far.code, far.out) == (0, near), far.err
        assert run("verify", models / CS, server.url(f"{name}/")).code == 0
    assert told(run("inspect", server.url("raw/")))[0] < 60  # a request a file, and those for names
    (server.www / "raw" / "3").unlink()
    lost = run("inspect", server.url("raw/"))
    assert (lost.code, "1 file is missing: '3'" in lost.err) == (3, True), lost.err
    (server.www / "arrays" / "tensors.json").unlink()
    unlisted = run("inspect", server.url("arrays/"))
    assert (unlisted.code, "cannot be listed" in unlisted.err) == (3, True), unlisted.err


def test_names_that_mean_something_else_in_a_url(server: Nginx, tmp_path: Path) -> None:
    state = {name: torch.rand(3) for name in ("a/b", "c?d#e", "f%2Fg", "é h", "%2e%2e/i")}
    torch.save(state, tmp_path / "odd.pt")
    for name, to in (("odd-arrays", "npy"), ("odd-raw", "parameters")):
        assert run("convert", tmp_path / "odd.pt", "--to", to, "-o", server.www / name).code == 0
        far = run("digest", server.url(f"{name}/"))
        assert (far.code, far.out) == (0, run("digest", tmp_path / "odd.pt").out), far.err


def test_an_index_leads_nowhere_else(server: Nginx) -> None:
    torch.save({"w": torch.rand(3)}, server.www / "private.bin")
    (server.www / "index").mkdir()
    for shard in ("..%2fprivate.bin", "%2e%2e%2Fprivate.bin", "x?/../private.bin"):
        index = {"weight_map": {"w": shard}}
        (server.www / "index" / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        server.asked()
        done = run("inspect", server.url("index/"))
        assert done.code == 3, done.out
        asked = [line.split()[3] for line in server.asked()]  # as nginx understands it
        assert all(path.startswith("/index/") for path in asked), asked


def test_a_text_behind_a_url(server: Nginx) -> None:
    (server.www / "text.txt").write_bytes((DEMO / "held-out.txt").read_bytes()[:300])
    words = ("eval", DEMO / "pytorch_model.bin", "--json", "--text")
    far, near = run(*words, server.url("text.txt")), run(*words, server.www / "text.txt")
    assert far.code == 0, far.err
    assert far.json["cross_entropy"] == near.json["cross_entropy"]


def test_what_is_beside_the_weights_may_be_behind_urls(
    server: Nginx, models: Path, tmp_path: Path
) -> None:
    lock, request = server.www / "m.lock", server.www / "request.json"
    assert run("lock", models / CS, "-o", lock).code == 0
    assert run("verify", "--lock", server.url("m.lock"), models / CS).code == 0
    request.write_text('{"input_data": ["a"], "params": {"max_new_tokens": 2}}')
    words = ("generate", models / CS, "--request")
    there, here = run(*words, server.url("request.json")), run(*words, request)
    assert (there.code, there.out) == (here.code, here.out)
    nothing = run(*words, server.url("request.json"), "--tokenizer", server.url("sharded"))
    assert (nothing.code, "the folder contains no tokenizer" in nothing.err) == (2, True), (
        nothing.err
    )
    cut = (models / CS).read_bytes()[: (models / CS).stat().st_size * 2 // 3]
    (server.www / "cut.bin").write_bytes(cut)
    for each in (server.url("cut.bin"), server.www / "cut.bin"):
        out = tmp_path / f"{len(str(each))}.safetensors"
        salvaged = run("convert", each, "--salvage", "-o", out)
        assert salvaged.code == 1, salvaged.err
    one, other = (path.read_bytes() for path in tmp_path.glob("*.safetensors"))
    assert load(one).keys() == load(other).keys() != set()


def test_local_files_need_none_of_it(models: Path) -> None:
    code = (
        "import sys; from cgpt_convert.cli import main; main(); "
        "sys.exit(any(m in sys.modules for m in ('urllib3', 'fsspec', 'cgpt_convert.remote')))"
    )
    words = [sys.executable, "-c", code, "inspect", str(models / CS)]
    subprocess.run(words, check=True, capture_output=True, env=environ())
