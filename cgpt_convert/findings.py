"""What can be odd about a file that still can be read, and what makes us refuse one, by id.

Ids are stable: people's CI matches on them. A rule's number is never given to another rule.
"""

from __future__ import annotations

from typing import NamedTuple


class Rule(NamedTuple):
    """A kind of finding. `level`: "note" informs, "warning" wants a look, "error" fails a scan."""

    id: str
    level: str
    title: str


UNREFERENCED = Rule("CGPT001", "note", "bytes that no tensor references")
NO_CRC = Rule("CGPT002", "note", "the archive records no checksums")
TRAILING = Rule("CGPT003", "warning", "bytes after the end of the archive")
GAP = Rule("CGPT004", "warning", "bytes between records that belong to none")
LONGER_STORAGE = Rule("CGPT005", "warning", "a storage is longer than the pickle says")
COMPRESSED = Rule("CGPT006", "note", "compressed records")
VALUES_NOT_SAVED = Rule("CGPT007", "warning", "records were reserved but their values not saved")
FOREIGN = Rule("CGPT008", "note", "classes that are not torch's; shown, never loaded")
COLLISION = Rule("CGPT009", "warning", "two values have the same name")
BIG_ENDIAN = Rule("CGPT010", "note", "big-endian data")
CUT_OFF = Rule("CGPT011", "warning", "an incomplete file; what is lost is left out")
CYCLE = Rule("CGPT012", "warning", "a value that contains itself")
LONE_SHARD = Rule("CGPT013", "warning", "one shard of several")
INDEX_SIZE = Rule("CGPT014", "note", "the index's total_size differs from the tensors' bytes")
DANGEROUS = Rule("CGPT015", "error", "loading it would run code")
NOT_JUDGED = Rule("CGPT016", "error", "damaged, or made so that readers disagree")
CLOSED = Rule("CGPT017", "error", "what is inside cannot be looked into")
SCRIPT = Rule("CGPT018", "note", "TorchScript code")
AFTER_PICKLE = Rule("CGPT019", "note", "bytes after the last pickle")
LATE_HEADERS = Rule("CGPT030", "note", "local headers not read")

RULES = tuple(value for value in list(globals().values()) if isinstance(value, Rule))


class Finding(NamedTuple):
    """A rule that applies to a file, with what exactly was seen."""

    rule: Rule
    detail: str

    def __str__(self) -> str:
        return f"{self.rule.id} {self.rule.title}: {self.detail}"
