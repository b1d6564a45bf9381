"""What notebooks show of checkpoints and tensors, read by Python's HTML parser."""

from html.parser import HTMLParser

import pytest
import torch

from cgpt_convert import open_checkpoint
from cgpt_convert.core.text import printable

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "a & b &lt; c",
    "</td></tr></table><h1>",
    "\x1b[31mred\u202egpj.exe",
    "<!-- -->",
    "größe",
)
TAGS = {"table", "caption", "thead", "tbody", "tr", "th", "td"}


class Table(HTMLParser):
    """The rows of a table, and its caption; anything else is an error."""

    def __init__(self, text):
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.caption = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        assert tag in TAGS
        assert not attrs
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1] == "caption":
            self.caption += data
        else:
            assert self.open[-1] in ("td", "th")
            self.rows[-1][-1] += data

    def handle_comment(self, data):
        raise AssertionError(data)

    handle_decl = handle_pi = unknown_decl = handle_comment


@pytest.fixture
def checkpoint(tmp_path):
    tied = torch.zeros(2, 3, dtype=torch.bfloat16)
    state = {name: torch.zeros(4).as_strided((2,), (2,)) for name in HOSTILE}
    torch.save(state | {"one": tied, "two": tied}, tmp_path / "<b>.bin")
    return open_checkpoint(tmp_path / "<b>.bin")


def test_a_checkpoint_is_a_table_of_its_tensors(checkpoint):
    table = Table(checkpoint._repr_html_())
    head, *rows = table.rows
    assert head == ["name", "type", "shape", "bytes", "tied to"]
    assert [row[0] for row in rows] == [*map(printable, HOSTILE), "one", "two"]
    assert rows[-1] == ["two", "bfloat16", "2x3", "12", "one"]
    assert "<b>.bin: PyTorch zip archive, 9 tensors, 68 bytes" in table.caption
    assert table.caption.split(": ", 1)[1] in repr(checkpoint)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_tensor_is_a_table_of_its_properties(checkpoint, name):
    table = Table(checkpoint[name]._repr_html_())
    assert table.caption == f"Tensor {printable(name)}"
    shown = dict(table.rows)
    assert (shown["type"], shown["shape"], shown["bytes"]) == ("float32", "2", "8")
    assert shown["strides"] == "2"
    assert "<b>.bin" in shown["stored in"]


def test_a_table_of_many_tensors_ends(tmp_path):
    torch.save({str(number): torch.zeros(1) for number in range(250)}, tmp_path / "m.bin")
    table = Table(open_checkpoint(tmp_path / "m.bin")._repr_html_())
    assert len(table.rows) == 1 + 200 + 1
    assert table.rows[-1][0] == "and 50 more"
