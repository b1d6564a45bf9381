"""Raw storages with a mapping, as written by `extract`."""

from cgpt_convert.core.lazy import LazyReference
from cgpt_convert.formats.registry import Format

FORMAT = Format(
    "parameters",
    folder=True,
    folder_index="mapping.json",
    tensor_files=LazyReference(f"{__name__}.writer:files"),
    read_path=LazyReference(f"{__name__}.writer:read"),
    plan=LazyReference(f"{__name__}.writer:plan"),
    dtypes=LazyReference(f"{__name__}.writer:DTYPES").get,
)
