"""torch files: a ZIP archive around a pickled state dict, as `torch.load` reads it.

The bytes equal those that torch 2.13's `torch.save` writes to a file object for an OrderedDict of
row-major tensors, without `.data/serialization_id`, which torch only logs. Aliases are further
names of the same storage. Metadata is an attribute `metadata` of the dict, like torch's own
`_metadata`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from cgpt_convert.checkpoint import Checkpoint, CollapsedContainer, NonTensorValue
from cgpt_convert.formats import planning
from cgpt_convert.formats.torch import pickle_writer, zip_layout, zip_reader
from cgpt_convert.formats.torch.pickle_writer import TensorEntry
from cgpt_convert.pickles.nodes import Dict
from cgpt_convert.plan import FilePlan, Part, Request
from cgpt_convert.sources.paths import open_source
from cgpt_convert.tensors.dtypes import TABLE
from cgpt_convert.tensors.tensor import Tensor

NAME = "torch"
SUFFIX = ".bin"
ALSO = (".pt", ".pth")

DTYPES = tuple(row for row in TABLE if row.kind != "q")

_ROOT = "archive"  # torch.save's name for file objects; another name would change the bytes
_METADATA = "metadata"


def plan(request: Request) -> list[FilePlan]:
    """Plan one file, or shards with an index if `request.max_shard_nbytes` requires several.

    Raises Unsupported naming all quantized tensors.
    """
    planning.check(request, NAME, lambda tensor: tensor.dtype in DTYPES, splits=True)
    suffix = os.path.splitext(request.name)[1]
    return planning.plan_shards(
        request,
        suffix if suffix.lower() in (SUFFIX, *ALSO) else SUFFIX,
        _file,
        request.aliases,
    )


def read(path: str) -> Checkpoint:
    """Read the file at `path`, which may also contain other objects than tensors.

    Raises Malformed or Unsupported as `zip_reader.read` does.
    """
    checkpoint = zip_reader.read(open_source(path))
    checkpoint.metadata |= metadata(checkpoint)
    return checkpoint


def metadata(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the text pairs that `plan` attached to the state dict."""
    pairs: dict[str, str] = {}
    for leaf in checkpoint.others:
        pairs |= _metadata(leaf)
    return pairs


def _file(name: str, tensors: Sequence[Tensor], request: Request) -> FilePlan:
    """Plan the file called `name`: `tensors` and their aliases."""
    entries = {
        tensor.name: TensorEntry(tensor.name, tensor.dtype, tensor.shape, tensor.numel, str(key))
        for key, tensor in enumerate(tensors)
    }
    # at the end, as in state dicts, where a head follows its embedding
    tied = [
        entries[kept]._replace(name=alias)
        for alias, kept in request.aliases.items()
        if kept in entries
    ]

    def pickled(pairs: Mapping[str, str]) -> bytes:
        attributes = {_METADATA: dict(pairs)} if pairs else {}
        return pickle_writer.state_dict([*entries.values(), *tied], attributes)

    records: list[tuple[str, Part]] = [
        ("data.pkl", planning.with_metadata(request, pickled)),
        (".format_version", b"1"),  # data records in the pickle's order
        (".storage_alignment", str(zip_layout.ALIGNMENT).encode()),
        ("byteorder", b"little"),
        *((f"data/{key}", tensor) for key, tensor in enumerate(tensors)),
        ("version", b"3\n"),  # caffe2/serialize/versions.h kProducedFileFormatVersion
    ]
    return FilePlan(name, zip_layout.stored((f"{_ROOT}/{name}", part) for name, part in records))


def _metadata(leaf: NonTensorValue) -> dict[str, str]:
    """Return the text pairs in the attribute `metadata` of the outermost dict, if it is `leaf`.

    A dict inside the state dict is a container and not a leaf, unless it is collapsed.
    """
    if (
        leaf.path != _METADATA
        or isinstance(leaf, CollapsedContainer)
        or not isinstance(leaf.value, Dict)
    ):
        return {}
    pairs = leaf.value.items
    return {k: v for k, v in pairs if isinstance(k, str) and isinstance(v, str)}
