"""Run the `console` blocks of a page and compare what is printed with what the page shows.

In a block, a line that begins with `$ ` is a command for bash, lines after it that begin with `> `
continue it, and the other lines are its output: standard output and standard error, as they come.
A line `...` stands for any lines, and `...` inside a line for any text. A command must exit with 0
unless the next one is `$ echo $?`. The commands of a page run in one folder, in order.

`python -m tests.helpers.console PAGE...` writes the real output into the pages.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.helpers.running import environ
from tests.helpers.servers import KEY, SECRET, nginx, seaweed

BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
DEMO = "cgpt-convert demo"  # which takes seconds: run once for all pages


class Step(NamedTuple):
    """A command, as the page has it, and the output that the page shows."""

    shown: str
    output: str

    @property
    def command(self) -> str:
        first, *more = self.shown.splitlines()
        return "\n".join([first.removeprefix("$ "), *(line.removeprefix("> ") for line in more)])


def steps(block: str) -> list[Step]:
    """The commands of a block."""
    parts = re.split(r"^(\$ .*\n(?:> .*\n)*)", block, flags=re.MULTILINE)
    assert not parts[0].strip(), f"output without a command: {parts[0]!r}"
    return [Step(*pair) for pair in zip(parts[1::2], parts[2::2], strict=True)]


def agrees(shown: str, printed: str) -> bool:
    """Whether `printed` is `shown`, where `...` stands for anything."""
    lines = []
    for line in shown.rstrip("\n").split("\n"):
        if line == "...":
            lines.append(r"(?:.*\n)*")
        else:
            lines.append(re.escape(line).replace(r"\.\.\.", ".*") + "\n")
    return re.fullmatch("".join(lines), printed.rstrip("\n") + "\n") is not None


class Shell:
    """Runs the commands of one page in `folder`, with `cgpt-convert` and `python3` of this tree."""

    def __init__(self, folder: Path, demo: tuple[Path, str], extra: Mapping[str, str]) -> None:
        self.folder = folder / "work"
        self.folder.mkdir()
        programs = folder / "bin"
        programs.mkdir()
        for name, words in (("cgpt-convert", "-m cgpt_convert"), ("python3", "")):
            script = programs / name
            script.write_text(f'#!/bin/sh\nexec {sys.executable} {words} "$@"\n')
            script.chmod(0o755)
        path = f"{programs}:{environ()['PATH']}"
        plain = {"PYTHONUNBUFFERED": "1", "LC_ALL": "C.UTF-8", "COLUMNS": "100"}
        self.environment = environ(PATH=path, HOME=str(folder), **plain, **extra)
        self.demo = demo
        self.code = 0

    def run(self, command: str) -> str:
        """What the command prints; its exit code is kept for the next."""
        if command == DEMO or command.startswith(f"{DEMO} |"):
            shutil.copytree(self.demo[0], self.folder / "cgpt-demo")
            (self.folder.parent / "demo.txt").write_text(self.demo[1])
            command = "cat ../demo.txt" + command.removeprefix(DEMO)
        done = subprocess.run(
            ["bash", "-c", f"(exit {self.code})\n{command}"],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        self.code = done.returncode
        return re.sub(r"[ \t]+$", "", done.stdout, flags=re.MULTILINE)


def run_page(text: str, shell: Shell) -> Iterator[tuple[Step, str]]:
    """Yield each command of a page with what it printed."""
    every = [step for block in BLOCK.findall(text) for step in steps(block)]
    for number, step in enumerate(every, 1):
        printed = shell.run(step.command)
        asked = [after.command for after in every[number : number + 1]] == ["echo $?"]
        assert shell.code == 0 or asked, f"{step.shown}exit code {shell.code}\n{printed}"
        yield step, printed


def rewritten(text: str, shell: Shell) -> str:
    """The page with real output wherever the output shown is another."""
    results = run_page(text, shell)

    def block(match: re.Match[str]) -> str:
        lines = []
        for step in steps(match[1]):
            _, printed = next(results)
            gap = "\n" if step.output.endswith("\n\n") else ""
            kept = (
                step.output if agrees(step.output, printed) else printed.rstrip("\n") + "\n" + gap
            )
            lines.append(step.shown + (kept if printed.strip() else gap))
        return "```console\n" + "".join(lines) + "```"

    made = BLOCK.sub(block, text)
    assert next(results, None) is None
    return made


def demo_run(folder: Path) -> tuple[Path, str]:
    """The folder that `demo` writes, and what it prints."""
    line = [sys.executable, "-m", "cgpt_convert", "demo"]
    done = subprocess.run(
        line, cwd=folder, env=environ(), capture_output=True, check=True, text=True
    )
    return folder / "cgpt-demo", done.stdout


COMMIT = "0123456789abcdef" * 2 + "01234567"
HUB = """
    location = /api/models/acme/austen {{ try_files /listing.json =404; }}
    location ~ ^/acme/austen/resolve/{commit}/(.*)$ {{ alias FOLDER/www/austen/$1; }}
"""


@contextmanager
def servers(page: Path, demo: Path, folder: Path) -> Iterator[dict[str, str]]:
    """The environment in which the URLs of a page lead to servers on the loopback interface.

    They have the demo's model as http://models.example.org/austen/, s3://models/austen/ and
    hf://acme/austen. Other pages than that of remote files get no servers.
    """
    if page.name != "read-from-s3-or-the-hub.md":
        yield {}
        return
    import s3fs

    (folder / "weed").mkdir()
    hub = HUB.format(commit=COMMIT)
    with nginx(folder / "nginx", hub) as web, seaweed(folder / "weed") as endpoint:
        names = ("pytorch_model.bin", "config.json", "vocab.json", "merges.txt")
        files = s3fs.S3FileSystem(
            key=KEY, secret=SECRET, endpoint_url=endpoint, skip_instance_cache=True
        )
        files.mkdir("models")
        (web.www / "austen").mkdir()
        for name in names:
            shutil.copy(demo / name, web.www / "austen")
            files.put_file(str(demo / name), f"models/austen/{name}")
        listing = {
            "id": "acme/austen",
            "sha": COMMIT,
            "siblings": [{"rfilename": n} for n in names],
        }
        (web.www / "listing.json").write_text(json.dumps(listing))
        yield {
            "HTTP_PROXY": web.url(""),
            "NO_PROXY": "127.0.0.1,localhost",
            "HF_ENDPOINT": web.url("").rstrip("/"),
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
        }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        top = Path(made)
        (top / "demo").mkdir()
        ready = demo_run(top / "demo")
        for number, name in enumerate(sys.argv[1:]):
            below = top / str(number)
            below.mkdir()
            page = Path(name)
            with servers(page, ready[0], below) as extra:
                page.write_text(rewritten(page.read_text(), Shell(below, ready, extra)))
