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
    "data that no tensor uses",
    "The file contains data that no tensor refers to. It is usually left over from a program "
    "that saved a view of a larger tensor, but it could also be hidden data.",
)
NO_CRC = FindingRule(
    "CGPT002",
    "note",
    "the archive has no checksums",
    "All CRC-32 fields in the archive are zero, because torch was configured not to compute "
    "checksums. Damage cannot be detected: compare a checksum of the whole file with the "
    "publisher's.",
)
TRAILING = FindingRule(
    "CGPT003",
    "warning",
    "bytes after the end of the data",
    "Readers ignore these bytes, but no program that writes weight files adds any. Download "
    "the file again, or ask its publisher about them.",
)
GAP = FindingRule(
    "CGPT004",
    "warning",
    "bytes between the records",
    "The archive contains bytes that belong to no record. No program that writes weight files "
    "leaves such gaps, and scanners usually do not look there. Ask the publisher about them.",
)
LONGER_STORAGE = FindingRule(
    "CGPT005",
    "warning",
    "a storage is larger than its declared size",
    "A storage in the archive has more bytes than the pickle declares. torch rejects such "
    "files. The tensors are read from the declared part.",
)
COMPRESSED = FindingRule(
    "CGPT006",
    "note",
    "compressed records",
    "Some records of the archive are compressed. They are decompressed while they are read. "
    "`torch.load` with `mmap=True` returns wrong values for them, without an error.",
)
VALUES_NOT_SAVED = FindingRule(
    "CGPT007",
    "warning",
    "tensors without values",
    "The file was written under `torch.serialization.skip_data()`, which reserves space for "
    "tensors but does not save their values.",
)
FOREIGN = FindingRule(
    "CGPT008",
    "note",
    "classes that weight files do not need",
    "The pickle refers to classes or functions of other packages. They are never imported "
    "here, but `torch.load(weights_only=False)` would import and call them. Check the names "
    "before you load the file in that way.",
)
COLLISION = FindingRule(
    "CGPT009",
    "warning",
    "two values have the same name",
    "A key is set twice, or two nested keys become the same name when they are joined with "
    "dots. For a repeated key, the last value is used, as by other loaders; for different "
    "keys, the first.",
)
BIG_ENDIAN = FindingRule(
    "CGPT010",
    "note",
    "big-endian data",
    "The bytes are swapped while they are read. `convert` writes little-endian data.",
)
CUT_OFF = FindingRule(
    "CGPT011",
    "warning",
    "incomplete file; the lost tensors are skipped",
    "The file is truncated or damaged. Only the tensors that are complete are read.",
)
CYCLE = FindingRule(
    "CGPT012",
    "warning",
    "a value that contains itself",
    "A list or dict in the file contains itself. Weight files have no need for that.",
)
LONE_SHARD = FindingRule(
    "CGPT013",
    "warning",
    "one shard of several",
    "The file name says that this is one of several shards. Only this shard is read. To read "
    "the whole model, pass the index or the folder.",
)
INDEX_SIZE = FindingRule(
    "CGPT014",
    "note",
    "total_size in the index does not match the tensors",
    "`metadata.total_size` in the index is not the size of all tensors, whether tied tensors "
    "are counted once or each time. This is harmless, but some tools show it as the size of "
    "the model.",
)
DANGEROUS = FindingRule(
    "CGPT015",
    "error",
    "loading the file would run code",
    "A pickle in the file calls or imports something that runs whatever the file chooses. "
    "This happens while the pickle is loaded, before its content can be checked. Never load "
    "the file, not even to look at it. Delete it, and warn its publisher.",
)
NOT_JUDGED = FindingRule(
    "CGPT016",
    "error",
    "damaged or ambiguous",
    "The file is damaged, or it is made so that different programs read different content, "
    "which is a way to evade scanners. Do not load it. Download it again, and compare its "
    "checksum with the publisher's.",
)
CLOSED = FindingRule(
    "CGPT017",
    "error",
    "not scanned",
    "The file or a part of it is of a kind that can contain code or that the scanner does not "
    "understand completely. It is not known to be dangerous, but not known to be safe either. "
    "Unpack or convert it and scan the result, or accept it in the policy file.",
)
SCRIPT = FindingRule(
    "CGPT018",
    "note",
    "TorchScript code",
    "The archive contains TorchScript functions, which `torch.jit.load` compiles and the "
    "model runs. TorchScript cannot call Python, but some of torch's own operators read and "
    "write files.",
)
AFTER_PICKLE = FindingRule(
    "CGPT019",
    "note",
    "bytes after the last pickle",
    "Data follows the end of the last pickle. Unpicklers do not read it. Some programs write "
    "raw arrays there.",
)
CODE = FindingRule(
    "CGPT020",
    "error",
    "code outside of a pickle",
    "The file contains code that a program runs when it loads or uses the model: a "
    "TorchScript method, Python source, a Keras Lambda layer, a template, or a reference to "
    "code elsewhere. Read that code before you load the file.",
)
LATE_HEADERS = FindingRule(
    "CGPT030",
    "note",
    "record headers not checked yet",
    "The archive is read from a URL. Each record has a header before its data, which is "
    "checked when the data is read. Until then, a program that relies on these headers could "
    "see other records than those listed. Use `scan` to check all of them.",
)
UNREADABLE = FindingRule(
    "CGPT031",
    "warning",
    "entries that cannot be read",
    "The element type or form of these entries is not supported, or they contradict the rest "
    "of the file. All other tensors are read. `inspect` shows the reason for each entry. "
    "Commands that read tensors stop at such an entry, unless `--exclude` skips it.",
)
OTHER_WEIGHTS = FindingRule(
    "CGPT032",
    "warning",
    "other weight files in the folder, not read",
    "The folder contains safetensors files and torch files, probably of the same model. Only "
    "the safetensors files are read, as in transformers. To read the others, pass the file or "
    "its index.",
)
NO_INDEX = FindingRule(
    "CGPT033",
    "note",
    "shards without an index",
    "All shards that the file names announce are in the folder, but there is no index that "
    "lists the tensors. A missing tensor cannot be detected.",
)

OBJECTS = FindingRule(
    "CGPT034",
    "note",
    "pickled objects, not read",
    "torch pickles the values of a distributed checkpoint that are neither tensors nor dicts or "
    "lists of tensors, one by one. They are not read, so tensors inside them, such as in a tuple, "
    "are not converted or compared.",
)

RULES = tuple(value for value in list(globals().values()) if isinstance(value, FindingRule))
BY_ID = {rule.id: rule for rule in RULES}


class Finding(NamedTuple):
    """A rule that applies to a file, with the details of the case."""

    rule: FindingRule
    detail: str

    def __str__(self) -> str:
        return f"{self.rule.id} {self.rule.title}: {self.detail}"
