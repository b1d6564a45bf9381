"""Configure Sphinx: `sphinx-build -W --keep-going -c docs . build/site`, in the repository's root.

With -W a link to a page or an anchor that does not exist fails the build, as does a page that the
navigation lacks, or one that would load something from another host.

The source folder is the repository's root, so that pages can link to SECURITY.md and CHANGELOG.md
by the same relative paths that work on a code host. Pages are plain Markdown: the navigation is
made from the lists of docs/index.md.
"""

from __future__ import annotations

import re
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

project = "cgpt-convert"
author = "the cgpt-convert authors"
extensions = ["myst_parser"]
root_doc = "docs/index"
include_patterns = ["docs/**.md", "CHANGELOG.md", "SECURITY.md", "docs/**.svg", "docs/**.json"]
exclude_patterns = [".*", "build", "tests", "benchmarks", "fuzz", "cgpt_convert", "mappings"]

nitpicky = True
myst_heading_anchors = 4  # anchors as on a code host; a link to a missing one is an error

html_theme = "furo"  # has no web fonts and loads nothing from other hosts
html_title = "cgpt-convert"
html_static_path: list[str] = []
html_extra_path = ["site"]  # index.html, which leads to docs/index.html
html_show_copyright = False
html_copy_source = False
pygments_style = "friendly"

_FOREIGN = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?(?:https?:)?//"""
    r"""|<link\b[^>]*\brel=["']?(?:stylesheet|preload|preconnect)[^>]*\bhref=["']?(?:https?:)?//"""
    r"""|\burl\(["']?(?:https?:)?//|@import"""
)
_LINK = re.compile(r"^- \[[^]]+\]\(([^)]+)\.md\)", re.MULTILINE)


def _navigation(page: str) -> str:
    """Return one toctree for each heading of `page`, with the pages that its list links to."""
    _, *parts = re.split(r"^## (.*)\n", page, flags=re.MULTILINE)
    trees = []
    for title, text in zip(parts[::2], parts[1::2], strict=True):
        links = "\n".join(_LINK.findall(text))
        if links:
            trees.append(f"\n```{{toctree}}\n:hidden:\n:caption: {title}\n\n{links}\n```\n")
    return "".join(trees)


def _add_navigation(_app: Sphinx, docname: str, content: list[str]) -> None:
    """Append the navigation to the front page while it is read."""
    if docname == root_doc:
        content[0] += _navigation(content[0])


def _require_offline(app: Sphinx, error: Exception | None) -> None:
    """Raise ExtensionError if a page or style sheet would load something from another host."""
    if error is None:
        for path in sorted(Path(app.outdir).rglob("*.*")):
            if path.suffix in {".html", ".css"} and _FOREIGN.search(path.read_text("utf-8")):
                raise ExtensionError(f"{path}: loads something from another host")


def setup(app: Sphinx) -> None:
    """Connect the event handlers."""
    app.connect("source-read", _add_navigation)
    app.connect("build-finished", _require_offline)
