"""The rules for findings: anomalies in readable files, and reasons to reject a file.

Ids are stable, because CI configurations refer to them. A rule's number is never reused.
"""

from __future__ import annotations

from typing import NamedTuple


class FindingRule(NamedTuple):
    """A kind of finding. `level`: "note" (information), "warning" (check it), "error" (scan fails).

    `text` explains the finding and what to do about it; docs/reference/findings.md has the details.
    """

    id: str
    level: str
    title: str
    text: str


UNREFERENCED = FindingRule(
    "CGPT001",
    "note",
    "bytes that no tensor references",
    "Records of the archive that the pickle does not mention. Usually leftovers of a program "
    "that saved a view of something larger; possibly a hidden payload.",
)
NO_CRC = FindingRule(
    "CGPT002",
    "note",
    "the archive records no checksums",
    "All CRC-32 fields are zero: torch was told not to compute them. Damage would go "
    "unnoticed, so compare a checksum of the whole file with its publisher's.",
)
TRAILING = FindingRule(
    "CGPT003",
    "warning",
    "bytes after the end of the archive",
    "Readers ignore them, but nothing that writes weight files adds any. Download the file "
    "again, or ask where it comes from.",
)
GAP = FindingRule(
    "CGPT004",
    "warning",
    "bytes between records that belong to none",
    "No writer of weight files leaves such gaps, and scanners do not look there.",
)
LONGER_STORAGE = FindingRule(
    "CGPT005",
    "warning",
    "a storage is longer than the pickle says",
    "The record has more bytes than its storage declares. torch refuses such files; the "
    "tensors are read from the declared part.",
)
COMPRESSED = FindingRule(
    "CGPT006",
    "note",
    "compressed records",
    "Deflated records are inflated while they are read. torch with `mmap=True` reads them "
    "wrongly and says nothing.",
)
VALUES_NOT_SAVED = FindingRule(
    "CGPT007",
    "warning",
    "records were reserved but their values not saved",
    "Written under `torch.serialization.skip_data()`: the tensors have shapes but no values.",
)
FOREIGN = FindingRule(
    "CGPT008",
    "note",
    "classes that are not torch's; shown, never loaded",
    "The pickle names code of other packages. Nothing of it runs here. Loading the file with "
    "`torch.load(weights_only=False)` would import and call it: read the names first.",
)
COLLISION = FindingRule(
    "CGPT009",
    "warning",
    "two values have the same name",
    "A key is set twice, or two nested names read the same once joined with dots. Of a key the "
    "last value is shown, which loaders keep; of different keys, the first.",
)
BIG_ENDIAN = FindingRule(
    "CGPT010",
    "note",
    "big-endian data",
    "Bytes are swapped as they are read; `convert` writes little-endian.",
)
CUT_OFF = FindingRule(
    "CGPT011",
    "warning",
    "an incomplete file; what is lost is left out",
    "The tensors that are not whole are not there.",
)
CYCLE = FindingRule(
    "CGPT012",
    "warning",
    "a value that contains itself",
    "Weight files have no reason to hold one.",
)
LONE_SHARD = FindingRule(
    "CGPT013",
    "warning",
    "one shard of several",
    "The file's name says that it is one of several. It is read alone; to have the whole "
    "model, name the index or the folder.",
)
INDEX_SIZE = FindingRule(
    "CGPT014",
    "note",
    "the index's total_size differs from the tensors' bytes",
    "`metadata.total_size` in the index counts tied tensors neither once nor each time. "
    "Harmless; some tools show it as the model's size.",
)
DANGEROUS = FindingRule(
    "CGPT015",
    "error",
    "loading it would run code",
    "A pickle calls or names something that runs what the file chooses. Unpickling does that "
    "before anything can be checked, so never load the file, not even to look. Delete it, and "
    "tell who published it.",
)
NOT_JUDGED = FindingRule(
    "CGPT016",
    "error",
    "damaged, or made so that readers disagree",
    "Either bytes are missing or wrong, and a download is to be repeated; or the file is "
    "built so that one program sees another content than the next, which is how scanners are "
    "evaded. Nobody can say what such a file is: do not load it.",
)
CLOSED = FindingRule(
    "CGPT017",
    "error",
    "not scanned",
    "The file, or a part of it, is of a kind that can contain code or that the scanner does not "
    "understand completely. This is not a sign of danger, but nothing is known about it either. "
    "Unpack or convert it and scan the result, or accept it by name in the policy file.",
)
SCRIPT = FindingRule(
    "CGPT018",
    "note",
    "TorchScript code",
    "The archive holds functions in TorchScript, which `torch.jit.load` compiles and the "
    "model runs. It is no Python and cannot call any, but it is code, and torch's own "
    "operations can read and write files.",
)
AFTER_PICKLE = FindingRule(
    "CGPT019",
    "note",
    "bytes after the last pickle",
    "What follows a pickle's end is read by no unpickler. Some programs write raw arrays there.",
)
CODE = FindingRule(
    "CGPT020",
    "error",
    "code in another form than a pickle's",
    "The file contains code that a program runs when it loads the model or soon after: a method of "
    "TorchScript, Python source, a Lambda layer, a template or a reference to code elsewhere. Read "
    "that code before you load the file.",
)
LATE_HEADERS = FindingRule(
    "CGPT030",
    "note",
    "local headers not read",
    "Only of archives that are read from a URL. Each record has a header before its data, "
    "hundreds in all; to look, they are not fetched. A program that goes by local headers could "
    "see other records than the directory lists: before you trust a file, `scan` it.",
)

UNREADABLE = FindingRule(
    "CGPT031",
    "warning",
    "entries that cannot be read",
    "Their element type or form is not supported, or they contradict the rest of the file. All "
    "other tensors are read. `inspect` shows the reason for each; commands that read tensors name "
    "them and stop, unless --exclude skips them.",
)

OTHER_WEIGHTS = FindingRule(
    "CGPT032",
    "warning",
    "other weight files in the folder, not read",
    "The folder has safetensors and torch files, probably of the same model. The safetensors are "
    "read, as transformers does. To read the other ones, name the file or its index.",
)
NO_INDEX = FindingRule(
    "CGPT033",
    "note",
    "shards without an index",
    "The names of the files say which shards there are, and all of them are there. Nothing says "
    "which tensors they should have.",
)

RULES = tuple(value for value in list(globals().values()) if isinstance(value, FindingRule))
BY_ID = {rule.id: rule for rule in RULES}


class Finding(NamedTuple):
    """A rule that applies to a file, with the details of the case."""

    rule: FindingRule
    detail: str

    def __str__(self) -> str:
        return f"{self.rule.id} {self.rule.title}: {self.detail}"
