"""Checkpoints of torch.distributed.checkpoint (DCP): a folder with chunks of every tensor."""

from cgpt_convert.core.lazy import LazyReference
from cgpt_convert.formats.dcp.dcp_folder import INDEX, KIND, detect, is_dcp
from cgpt_convert.formats.registry import Format

FORMAT = Format(
    "dcp",
    other_suffixes=(".distcp",),
    kinds=(KIND,),
    detect=detect,
    folder_index=INDEX,
    folder_of=is_dcp,
    read_file=LazyReference(f"{__name__}.dcp_reader:read_file"),
    read_folder=LazyReference(f"{__name__}.dcp_reader:read_folder"),
    scan=LazyReference(f"{__name__}.dcp_scan:scan"),
)
