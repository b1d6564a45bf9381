"""Scanning of arrays whose elements NumPy unpickles."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from cgpt_convert.core.errors import CgptError, Malformed
from cgpt_convert.formats.file_kinds import HEAD
from cgpt_convert.formats.npy.header import array
from cgpt_convert.sources.local import Source, read
from cgpt_convert.tensors.tensor import Storage

if TYPE_CHECKING:
    from cgpt_convert.formats.scan_interface import PartScanner

_OBJECTS = rb"""['"]([<>|=]?O[48]?|object)['"]"""  # in a header: NumPy unpickles what follows
# a header of strings, times or raw bytes, which NumPy does not unpickle
_PLAIN_HEADER = (
    rb"\{'descr': '[<>|=]?[SUVaMm]\d*(\[\w+\])?', 'fortran_order': (True|False), "
    rb"'shape': \([\d, L]*\), ?\}\s*"
)


def scan(source: Source, scanner: PartScanner) -> None:
    """Scan the data after the header, unless the header declares plain elements.

    Raises Malformed if the file is neither an array of numbers nor followed by a pickle.
    """
    try:
        array(Storage(source, 0, source.nbytes, "array"))
    except CgptError as error:
        if not _pickles(source, scanner) and isinstance(error, Malformed):
            raise


def _pickles(source: Source, scanner: PartScanner) -> int:
    """Return the number of pickles after a header that does not declare numbers."""
    head = read(source, 0, min(HEAD, source.nbytes))
    width = 2 if head[6:7] == b"\1" else 4
    start = 8 + width + int.from_bytes(head[8 : 8 + width], "little")
    header = head[8 + width : start]
    if re.fullmatch(_PLAIN_HEADER, header):
        return 0
    return scanner.pickles(start, certain=re.search(_OBJECTS, header) is not None)
