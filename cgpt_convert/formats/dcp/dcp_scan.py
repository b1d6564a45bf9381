"""The scan of the metadata of a DCP, and of the data that it refers to.

torch unpickles the listed objects wherever they are, so they are scanned at these places, which may
be inside an archive. Tensors are loaded with `weights_only=True`.
"""

from __future__ import annotations

import os

from cgpt_convert.formats.dcp.dcp_metadata import DcpMetadata, read_metadata
from cgpt_convert.formats.dcp.dcp_reader import DcpChunks, check_transforms, items, opened
from cgpt_convert.formats.scan_interface import PartScanner
from cgpt_convert.sources.local import OpenSource, Source
from cgpt_convert.sources.unpack import SourceSlice
from cgpt_convert.tensors.assembled import check_places


def scan(source: Source, scanner: PartScanner) -> None:
    """Scan the data that the metadata refers to, in the files that exist.

    Raises Malformed for chunks outside their files, files outside the folder, and chunks that
    overlap; Unsupported for transforms.
    """
    metadata = read_metadata(source)
    files = opened(os.path.dirname(source.name), items(metadata, source.name), source.name)
    try:
        _check(metadata, source.name, {name: file for name, file in files.items() if file})
        for name, item in metadata.objects.items():
            file = files[item.file]
            if file is not None:
                label = f"{item.label} ({name})"
                scanner.part(SourceSlice(file, item.offset, item.nbytes, label), label)
    finally:
        for file in files.values():
            if file is not None:
                file.close()


def _check(metadata: DcpMetadata, where: str, files: dict[str, OpenSource]) -> None:
    for name, item in metadata.objects.items():
        check_transforms(item, f"{where}[{name}]")
    chunks = DcpChunks(files)
    for name, tensor in metadata.tensors.items():
        place = f"{where}[{name}]"
        for chunk in tensor.chunks:
            check_transforms(chunk.item, place)
        if all(chunk.item.file in files for chunk in tensor.chunks):
            check_places(chunks.boxes(name, tensor), tensor.shape, place)
