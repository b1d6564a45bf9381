"""Servers that do not keep to HTTP, or never end: errors in good time, with little memory."""

from __future__ import annotations

import contextlib
import email.utils
import gc
import re
import socket
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from cgpt_convert.core.errors import CgptError
from cgpt_convert.sources.remote import download, http
from cgpt_convert.sources.remote.http import HttpObject, HttpRequest, retry_after
from cgpt_convert.sources.remote.remote_object import TransientError
from tests.helpers.running import Result, run
from tests.helpers.servers import scripted

GOOD = save({"w": np.arange(300_000, dtype=np.float32)})  # 1.2 MB: more than a first request
QUICK = ("--retries", "0", "--timeout", "1")
Answer = Callable[[str, socket.socket], None]


def asked(head: str) -> tuple[int, int]:
    """The first byte of the range that is asked for, and the one after its last."""
    found = re.search(r"^Range: bytes=([0-9]+)-([0-9]*)", head, re.MULTILINE)
    if found is None:
        return 0, len(GOOD)
    return int(found[1]), min(int(found[2] or len(GOOD)) + 1, len(GOOD))


def well(head: str, connection: socket.socket, *more: str) -> None:
    """An answer as it should be, with more fields in its head."""
    start, end = asked(head)
    fields = [
        "HTTP/1.1 206 Partial Content",
        f"Content-Range: bytes {start}-{end - 1}/{len(GOOD)}",
        f"Content-Length: {end - start}",
        *more,
    ]
    connection.sendall("\r\n".join([*fields, "", ""]).encode() + GOOD[start:end])


def after_the_first(answer: Answer) -> Answer:
    """The first answer is right, the others are not."""
    count = iter(range(1_000_000))

    def either(head: str, connection: socket.socket) -> None:
        (answer if next(count) else well)(head, connection)

    return either


def head_only(*fields: str) -> Answer:
    def answer(_head: str, connection: socket.socket) -> None:
        connection.sendall("\r\n".join([*fields, "", ""]).encode("latin-1") + bytes(1000))

    return answer


def inspected(answer: Answer, *words: str) -> Result:
    """What `inspect` says, within ten seconds."""
    begun = time.monotonic()
    with scripted(answer) as url:
        done = run("digest", f"{url}/x.safetensors", *(words or QUICK))
    assert time.monotonic() - begun < 10
    return done


def test_the_right_answer_is_taken() -> None:
    assert inspected(well).code == 0


LONG = "9" * 5000
HEADS = {
    "a length that is a digit, but none of ASCII": ("HTTP/1.1 200 OK", "Content-Length: \u00b2"),
    "a length of 5,000 digits": ("HTTP/1.1 200 OK", f"Content-Length: {LONG}"),
    "a negative length": ("HTTP/1.1 200 OK", "Content-Length: -1"),
    "two lengths": ("HTTP/1.1 200 OK", "Content-Length: 5, 6"),
    "a range of 5,000 digits": ("HTTP/1.1 206 P", f"Content-Range: bytes 0-{LONG}/{LONG}"),
    "a total of 5,000 digits": ("HTTP/1.1 206 P", f"Content-Range: bytes 0-9/{LONG}"),
    "a range in other digits": ("HTTP/1.1 206 P", "Content-Range: bytes 0-\u00b2/\u00b2"),
    "no range": ("HTTP/1.1 206 P", "Content-Length: 1000"),
    "a range from behind": ("HTTP/1.1 206 P", "Content-Range: bytes 9-0/1000"),
    "another range": ("HTTP/1.1 206 P", "Content-Range: bytes 5-999/1000000"),
    "more than was asked for": ("HTTP/1.1 206 P", "Content-Range: bytes 0-999999/1000000"),
    "a longer body than its range": (
        "HTTP/1.1 206 P",
        "Content-Range: bytes 0-262143/1000000",
        "Content-Length: 1000000",
    ),
    "no number as the status": ("HTTP/1.1 2\u00b22 OK",),
    "a status of 5,000 digits": (f"HTTP/1.1 {LONG} OK",),
    "no HTTP": ("SSH-2.0-OpenSSH_9.2",),
    "a field without end": ("HTTP/1.1 200 OK", "X: " + "x" * 100_000),
    "1,000 fields": ("HTTP/1.1 200 OK", *(f"X{i}: x" for i in range(1000))),
    "an encoding": ("HTTP/1.1 200 OK", "Content-Length: 9", "Content-Encoding: gzip"),
    "chunks that are none": (
        "HTTP/1.1 206 P",
        "Content-Range: bytes 0-99/100",
        "Transfer-Encoding: chunked",
        "",
        "\u00b2",
    ),
    "a chunk of less than nothing": (
        "HTTP/1.1 206 P",
        "Content-Range: bytes 0-9999/10000",
        "Transfer-Encoding: chunked",
        "",
        "-5",
    ),
    "busy until a time that is none": ("HTTP/1.1 503 Busy", "Retry-After: \u00b2"),
    "busy until no year": ("HTTP/1.1 503 Busy", "Retry-After: Mon, 01 Jan 0001 00:00:00 -0000"),
}


@pytest.mark.parametrize("how", ["first", "later", "download"])
@pytest.mark.parametrize("name", HEADS)
def test_a_head_that_is_wrong_is_an_error(name: str, how: str) -> None:
    wrong = head_only(*HEADS[name])
    words = (*QUICK, "--download") if how == "download" else QUICK
    done = inspected(after_the_first(wrong) if how == "later" else wrong, *words)
    assert done.code == 3, done.err
    assert "\nerror: http://" in done.err


@pytest.mark.parametrize(
    "target",
    [
        *("http://[::1", "http://[::1]:x/", "//[", "http://", "http:///x", "ftp://h/x", "http://["),
        *("file:///etc/passwd", "javascript:1", f"http://h:{LONG}/", "http://" + "a" * 70 + "/x"),
        *("", "http://a\u2100b/", "http://h:99999/", "http://user:pw@[", "?", "http://\0/"),
    ],
)
def test_a_redirect_to_what_is_no_url_is_an_error(target: str) -> None:
    head = head_only("HTTP/1.1 302 Found", f"Location: {target}".encode().decode("latin-1"))
    for answer in (head, after_the_first(head)):
        done = inspected(answer)
        assert done.code in (2, 3), done.err  # 2: nobody is asked, as there is no such host
        assert "pw" not in done.err


def test_a_redirect_whose_body_does_not_end_is_followed() -> None:
    def answer(head: str, connection: socket.socket) -> None:
        if "/x.safetensors" not in head:
            well(head, connection)
            return
        connection.sendall(b"HTTP/1.1 302 F\r\nLocation: /y\r\nTransfer-Encoding: chunked\r\n\r\n")
        for_ever(connection, b"10000\r\n" + bytes(0x10000) + b"\r\n")

    assert inspected(answer).code == 0


def test_a_redirect_leaves_the_password_behind_and_other_fields_not() -> None:
    seen: list[str] = []

    def there(head: str, connection: socket.socket) -> None:
        seen.append(head)
        well(head, connection)

    with scripted(there) as url:
        target = url.replace("127.0.0.1", "localhost")
        with scripted(head_only("HTTP/1.1 307 T", f"Location: {target}/x")) as first:
            headers = {"authorization": "secret", "Cookie": "secret", "X-Kept": "kept"}
            thing = HttpObject("x", lambda: HttpRequest(f"{first}/x", headers))
            assert thing.open(10).head == GOOD[:10]
    assert "secret" not in seen[0]
    assert "X-Kept: kept" in seen[0]


def for_ever(connection: socket.socket, data: bytes, pause: float = 0) -> None:
    """Send it again and again until nobody listens, and count."""
    while True:
        connection.sendall(data)
        time.sleep(pause)


@pytest.mark.parametrize("words", [QUICK, (*QUICK, "--download")])
def test_no_more_is_read_than_was_announced(words: tuple[str, ...]) -> None:
    """A length is given, too, which a body in chunks does not keep to."""
    sent = 0

    def answer(head: str, connection: socket.socket) -> None:
        nonlocal sent
        start, end = asked(head)
        status = "206 P" if "Range:" in head else "200 OK"
        fields = [
            f"HTTP/1.1 {status}",
            f"Content-Range: bytes {start}-{end - 1}/{len(GOOD)}",
            f"Content-Length: {end - start}",
            "Transfer-Encoding: chunked",
        ]
        connection.sendall("\r\n".join([*fields, "", ""]).encode())
        for at in range(start, 1 << 30, 1000):
            piece = GOOD[at : at + 1000].ljust(1000)
            connection.sendall(b"3e8\r\n" + piece + b"\r\n")
            sent += 1000

    assert inspected(answer, *words).code == 0
    assert sent < 4 * len(GOOD) + (32 << 20)  # what the sockets of the system take is counted


def unannounced(_head: str, connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    for_ever(connection, b"10000\r\n" + bytes(0x10000) + b"\r\n")


def test_a_download_without_a_size_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_UNANNOUNCED", 3_000_000)
    done = inspected(unannounced, *QUICK, "--download")
    assert done.code == 3
    assert "announced no size and sent more than 3,000,000 bytes" in done.err


def test_a_download_leaves_half_of_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "room", lambda: (2_000_000, tempfile.gettempdir()))
    done = inspected(unannounced, *QUICK, "--download")
    assert done.code == 3
    assert "the file needs more than 1,000,000 bytes" in done.err
    announced = head_only("HTTP/1.1 200 OK", "Content-Length: 2000001")
    done = inspected(announced, *QUICK, "--download")
    assert done.code == 3
    assert "the file needs 2,000,001 bytes" in done.err


SLOW = 0.1  # seconds between bytes: none of the sockets' timeouts is ever met


def slow_head(_head: str, connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
    for_ever(connection, b"x", SLOW)


def slow_fields(_head: str, connection: socket.socket) -> None:
    for_ever(connection, b"HTTP/1.1 100 Continue\r\n\r\n", SLOW)


def slow_body(head: str, connection: socket.socket) -> None:
    start, end = asked(head)
    total = f"Content-Range: bytes {start}-{end - 1}/{len(GOOD)}"
    connection.sendall(
        f"HTTP/1.1 206 P\r\n{total}\r\nContent-Length: {end - start}\r\n\r\n".encode()
    )
    for byte in GOOD[start:end]:
        connection.sendall(bytes((byte,)))
        time.sleep(SLOW)


def endless_trailers(head: str, connection: socket.socket) -> None:
    start, end = asked(head)
    total = f"Content-Range: bytes {start}-{end - 1}/{len(GOOD)}"
    connection.sendall(f"HTTP/1.1 206 P\r\n{total}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
    connection.sendall(b"1\r\n" + GOOD[start : start + 1] + b"\r\n0\r\n")
    for_ever(connection, b"X: x\r\n", SLOW)


def slow_redirect(_head: str, connection: socket.socket) -> None:
    for_ever(connection, b"HTTP/1.1 302 F\r\nLocation: /\r\nX: x\r\n"[:1], SLOW)


@pytest.mark.parametrize(
    "answer", [slow_head, slow_fields, slow_body, endless_trailers, slow_redirect]
)
@pytest.mark.parametrize("how", ["first", "later", "download"])
def test_what_trickles_is_given_up(answer: Answer, how: str) -> None:
    words = (*QUICK, "--download") if how == "download" else QUICK
    done = inspected(after_the_first(answer) if how == "later" else answer, *words)
    assert done.code == 3, done.err
    assert re.search("no data arrived|fewer than 1,024 bytes per second", done.err)


@pytest.mark.parametrize("status", ["429 Too Many Requests", "503 Busy"])
@pytest.mark.parametrize("form", ["seconds", "date"])
@pytest.mark.parametrize("download", [False, True])
def test_who_is_busy_is_asked_again_when_it_said(status: str, form: str, download: bool) -> None:
    times: list[float] = []

    def answer(head: str, connection: socket.socket) -> None:
        times.append(time.time())
        if len(times) > 1:
            well(head, connection)
            return
        later = email.utils.formatdate(time.time() + 2, usegmt=True)
        wait = {"seconds": "1", "date": later}[form]
        connection.sendall(
            f"HTTP/1.1 {status}\r\nRetry-After: {wait}\r\nContent-Length: 0\r\n\r\n".encode()
        )

    words = ("--timeout", "2", *(["--download"] if download else []))
    assert inspected(answer, *words).code == 0
    assert times[1] - times[0] > 0.9  # a date has no fractions of seconds


def test_the_wait_is_a_minute_at_most() -> None:
    assert retry_after("7") == 7
    assert retry_after(LONG) == retry_after("Fri, 31 Dec 9999 23:59:59 GMT") == 60
    for text in ("", "-1", "\u00b2", "soon", "Mon, 01 Jan 0001 00:00:00 -0000", "1.5"):
        assert retry_after(text) == 0


FIELD = st.sampled_from(
    [
        "Content-Range",
        "Content-Length",
        "Transfer-Encoding",
        "Location",
        "Retry-After",
        "Content-Encoding",
        "ETag",
        "Last-Modified",
        "Connection",
        "Content-Type",
    ]
)
WORD = st.sampled_from(
    [
        "bytes",
        " ",
        "0",
        "1",
        "-",
        "/",
        "*",
        "9" * 5000,
        "\u00b2",
        "chunked",
        "gzip",
        "identity",
        "http://",
        "[::1",
        ":",
        ",",
        "%",
        "\0",
        "x" * 5000,
        "9",
        "close",
        "W/",
        '"',
        "GMT",
        "=",
    ]
)
VALUE = st.lists(WORD, max_size=6).map("".join)


def streamed(thing: HttpObject, offset: int) -> list[bytes]:
    with thing.stream(offset) as (_, _, pieces):
        return list(pieces)


@settings(max_examples=150, deadline=None)
@given(
    status=st.sampled_from(["200", "206", "302", "308", "401", "404", "416", "429", "503", "99"]),
    fields=st.lists(st.tuples(FIELD, VALUE), max_size=5),
    body=st.sampled_from([b"", b"x", b"5\r\nhello\r\n0\r\n\r\n", b"-1\r\nx"]),
)
def test_no_head_gives_another_error_than_ours(
    status: str, fields: list[tuple[str, str]], body: bytes
) -> None:
    lines = [f"HTTP/1.1 {status} x", *(f"{name}: {value}" for name, value in fields), "", ""]
    raw = "\r\n".join(lines).encode("latin-1") + body

    with scripted(lambda _head, connection: connection.sendall(raw)) as url:
        for ask in (
            lambda thing: thing.open(10),
            lambda thing: list(thing.pieces(0, 10)),
            lambda thing: streamed(thing, 0),
            lambda thing: streamed(thing, 5),
        ):
            with contextlib.suppress(CgptError, TransientError):
                ask(HttpObject("x", lambda: HttpRequest(f"{url}/x")))


@pytest.mark.parametrize("url", ["http://[::1/x.bin", "https://u:pw@[/x", "s3://[/x", "hf://["])
def test_an_argument_that_is_no_url_is_an_error(url: str, tmp_path: Path) -> None:
    for words in (["inspect", url], ["scan", url], ["convert", url, "-o", tmp_path / "x.npz"]):
        done = run(*words)
        assert done.code == 2, done.err
        assert "pw" not in done.err


def test_no_thread_is_left_when_answers_are_read() -> None:
    assert inspected(well).code == 0
    end = time.monotonic() + 5
    while any("_wait" in thread.name for thread in threading.enumerate()):
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize(
    "head",
    [
        "HTTP/1.0 206 x\r\nContent-Range: bytes 0-9/" + "1" * 5000,
        "HTTP/1.0 200 x\r\nContent-Length: " + "1" * 5000,
    ],
)
def test_no_socket_is_left_open_by_a_head_that_is_rejected(head: str) -> None:
    raw = f"{head}{'1' * 5000}\r\n\r\n0123456789".encode()
    with (
        scripted(lambda _head, connection: connection.sendall(raw)) as url,
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        for ask in (lambda thing: thing.open(10), lambda thing: streamed(thing, 0)):
            with contextlib.suppress(CgptError, TransientError):
                ask(HttpObject("x", lambda: HttpRequest(f"{url}/x")))
            gc.collect()
    assert [str(each.message) for each in caught if "socket" in str(each.message)] == []


def test_a_kept_connection_that_the_server_closes_is_replaced() -> None:
    """The server closes each connection as the second request on it arrives."""

    def closing(head: str, connection: socket.socket) -> None:
        well(head, connection)
        connection.recv(4096)

    done = inspected(closing)
    assert done.code == 0, done.err
