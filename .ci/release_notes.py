"""Print what CHANGELOG.md says of a release: `python .ci/release_notes.py v1.2.3`.

The tag must be the version of the package, and the changelog must have a section with its date.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]


def notes(tag: str, top: Path = TOP) -> str:
    """Return the changelog's section of the version that `tag` names; exit if there is none."""
    source = (top / "cgpt_convert" / "__init__.py").read_text("utf-8")
    found = re.search(r'^__version__ = "(.+)"$', source, re.MULTILINE)
    version = found[1] if found else ""
    if tag != f"v{version}":
        sys.exit(f"the tag is {tag}, and cgpt_convert/__init__.py says {version}")
    text = (top / "CHANGELOG.md").read_text("utf-8")
    heading = rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d\n(.*?)(?=^## |^\[|\Z)"
    section = re.search(heading, text, re.MULTILINE | re.DOTALL)
    if not section:
        sys.exit(f"CHANGELOG.md has no section '## [{version}] - YYYY-MM-DD'")
    return section[1].strip()


if __name__ == "__main__":
    print(notes(sys.argv[1]))  # noqa: T201
