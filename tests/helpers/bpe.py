"""Byte-level BPE tokenizers for tests, trained on the spot by the `tokenizers` library."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import ByteLevelBPETokenizer

END = "<|endoftext|>"
TEXTS = (
    "The quick brown fox jumps over the lazy dog. The dog does not mind; dogs never do.",
    "def forward(self, x):\n    return x + self.attn(self.ln_1(x))\n\n",
    "naïve café — „quotes“ and 漢字 and emoji 🙂🙃, 12345.6789",
    "  leading and   inner   spaces,\ttabs\r\nand ends  ",
    "it's we're they'll I'd you've o'clock",
    f"before{END} after",
    "",
)


def train(folder: Path, size: int = 320, *, end: bool = True) -> Path:
    """Write vocab.json and merges.txt of at most `size` tokens; the end token is the first."""
    made = ByteLevelBPETokenizer()
    special = [END] if end else []
    made.train_from_iterator(
        TEXTS, vocab_size=size, min_frequency=1, special_tokens=special, show_progress=False
    )
    folder.mkdir(parents=True, exist_ok=True)
    made.save_model(str(folder))
    return folder


def change(path: Path, **values: object) -> None:
    """Change these keys of a JSON file; `None` removes one."""
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: v for key, v in content.items() if v is not None}))
