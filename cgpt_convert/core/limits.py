"""Resource limits on input files, with the reason for each.

They are sized for a 1 TB model with optimizer state (about 100,000 tensors). A file that exceeds a
limit is rejected as unsupported before it uses more resources.
"""

from __future__ import annotations

from typing import NamedTuple

MiB = 1 << 20
GiB = 1 << 30


class SizeLimit(NamedTuple):
    """A limit that depends on file size: `always`, plus one per `per` bytes, at most `most`."""

    always: int
    per: int
    most: int

    def of(self, nbytes: int) -> int:
        """Return the limit for a file or pickle of `nbytes` bytes."""
        return min(self.always + nbytes // self.per, self.most)


class Limits(NamedTuple):
    """Limits on decoding one pickle."""

    nbytes: int = 512 * MiB  # a tensor takes about 200 bytes of pickle; arrays may be embedded
    opcodes: int = 10_000_000  # a tensor takes about 40
    # lists, dicts, sets, calls and references, of 100 bytes each; real pickles: one in 14 bytes
    kept: SizeLimit = SizeLimit(100_000, 8, 4_000_000)
    memo: SizeLimit = SizeLimit(
        100_000, 3, 8_000_000
    )  # 100 bytes each; real ones have one in 7 bytes
    # characters of the different names of classes and functions; torch writes a dozen of them
    names: SizeLimit = SizeLimit(2 * MiB, 1, 512 * MiB)
    depth: int = 500  # nesting of MARKs; real checkpoints stay under 20
    integer_bytes: int = 1024  # LONG1 and LONG4; torch writes at most 16
    line_bytes: int = 4096  # text opcodes of protocol 0; names and numbers only


PICKLE = Limits()

# A deflated pickle in an archive may decompress to 1 MiB plus this many times its compressed size;
# torch's pickles shrink to a quarter.
INFLATION = 8

MEMBERS = 2_000_000  # records of one archive
DIRECTORY_BYTES = 512 * MiB  # the central directory of one archive
NAME_BYTES = 4096  # the name of one record
DEFLATE_RATIO = 1032  # the most that deflate can expand (zlib's technical notes)

# Limits on a decoded tree, from real files; Adam's state has 1 tensor in 46 bytes (protocol 4).
NODES = SizeLimit(30_000, 10, 8_000_000)  # visits of values; real files: one in 19 bytes
REPEATED = SizeLimit(50_000, 16, 1_000_000)  # repeated visits, because a container is shared
TENSORS = SizeLimit(5_000, 36, 4_000_000)  # a tensor of 9 or more dimensions counts as several
NAMES = SizeLimit(
    2 * MiB, 1, 512 * MiB
)  # characters in all names, which are shorter than the pickle
NAME = 4096  # characters of one name: all keys on its path, and dots
NESTING = 100  # nesting of values whose keys form names
INT64 = 1 << 63  # torch, NumPy and file systems use int64, so all numbers must be smaller
RANK = 64  # torch's own limit is 64 dimensions

# With strides of 0, 24 bytes can represent terabytes. The tensors of a file may have this many
# times its bytes, and always at least the floor, so that expanded masks of real models pass.
EXPANSION = 64
EXPANSION_FLOOR = 1 * GiB

# Bytes that a scan may decompress, including nested files and data that is decompressed again: this
# many times the file's bytes, and always at least the floor. Weights do not shrink to a 32nd.
UNPACKED = 32
UNPACKED_FLOOR = 64 * MiB

# Opcodes of all pickles in a scanned file, including compressed and nested ones. In real pickles an
# opcode takes 5 bytes on average, and they shrink to a quarter. Expensive opcodes count several
# times, see `Prices`. A gzipped list of 100,000 merges has little more than 300,000.
SCANNED = SizeLimit(300_000, 1, 1 << 40)


class Prices:
    """The price of a step, in opcodes, from the time it takes; `fuzz/costs.py` measures it.

    The last two are prices of the walk through a decoded tree, in tensors and in visits of values.
    """

    long = 2  # an opcode with a text, a long number or an addition to a container
    call = 4  # an opcode that is a name, a call or a reference
    inst = 7  # INST, which is both a name and a call
    pickle = 16  # a pickle, in addition to its opcodes
    sighting = 24  # a name that is not allowed, which is formatted
    part = 8  # a file inside a file
    unpacking = 128  # the start of decompression
    dimensions = 9  # as many dimensions make a tensor count as one more
    formatted = 8  # as many values are formatted in the time of a visit


# Limits on the memo when a pickle is scanned; no pickle writer comes near them.
MEMO_GAP = 1 << 20  # an index that exceeds the pickle's size by this much only allocates memory
MEMO_SPARSE = 1 << 16  # entries out of order

JSON_VALUES = 4_000_000  # values in one document; a vocabulary has 256,000
HEADER_BYTES = 100_000_000  # safetensors/src/tensor.rs MAX_HEADER_SIZE
CONFIG_BYTES = 16 * MiB  # a config.json; label tables make some of 1 MiB
TOKENIZER_BYTES = 64 * MiB  # each of its files; 256,000 tokens take 35 MiB
INDEX_BYTES = 256 * MiB  # a *.index.json or mapping.json
NPY_HEADER_BYTES = 10_012  # NumPy rejects longer ones; it writes under 200 bytes for a plain dtype
GGUF_HEADER_BYTES = 256 * MiB  # a vocabulary of 256,000 tokens and its merges take 15 MiB
GGUF_ITEMS = 8_000_000  # strings in all arrays of the header
