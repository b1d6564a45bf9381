"""What a file may cost, in one place, with reasons.

Sized for a 1 TB model with optimizer state (about 100,000 tensors); a file that needs more is
refused as unsupported before it costs more.
"""

from __future__ import annotations

from typing import NamedTuple

MiB = 1 << 20
GiB = 1 << 30


class Limits(NamedTuple):
    """The bounds on decoding one pickle."""

    nbytes: int = 512 * MiB  # a tensor takes about 200 bytes of pickle; arrays may be embedded
    opcodes: int = 10_000_000  # a tensor takes about 40
    kept: int = 4_000_000  # lists, dicts and calls; memo entries as well; 100 bytes each
    depth: int = 500  # nesting of MARKs; real checkpoints stay under 20
    integer_bytes: int = 1024  # LONG1 and LONG4; torch writes at most 16
    line_bytes: int = 4096  # text opcodes of protocol 0; names and numbers only


PICKLE = Limits()

MEMBERS = 2_000_000  # records of one archive
DIRECTORY_BYTES = 512 * MiB  # its central directory
NAME_BYTES = 4096  # one record's name
DEFLATE_RATIO = 1032  # the most that deflate can expand (zlib's technical notes)

NODES = 4_000_000  # values visited in a decoded tree; a shared value counts each time it appears
REPEATED = 1_000_000  # of those, values met again because a container is shared
NESTING = 100  # of values, where names are made from them
RANK = 64  # torch's own limit is 64 dimensions

# Strides of 0 let 24 bytes stand for terabytes. A file may claim this many times the bytes it
# has, and always a little, so that expanded masks of real models pass.
EXPANSION = 64
EXPANSION_FLOOR = 1 * GiB

HEADER_BYTES = 100_000_000  # safetensors/src/tensor.rs MAX_HEADER_SIZE
CONFIG_BYTES = 16 * MiB  # a config.json; label tables make some of 1 MiB
TOKENIZER_BYTES = 64 * MiB  # each of its files; 256,000 tokens take 35 MiB
INDEX_BYTES = 256 * MiB  # a *.index.json or mapping.json
NPY_HEADER_BYTES = 1 * MiB  # numpy writes under 200 bytes for a plain dtype
GGUF_HEADER_BYTES = 256 * MiB  # a vocabulary of 256,000 tokens and its merges take 15 MiB
GGUF_ITEMS = 8_000_000  # strings in all arrays of its header
