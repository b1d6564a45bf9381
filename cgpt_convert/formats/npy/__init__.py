"""NumPy's .npy files, and folders of them."""

from cgpt_convert.core.lazy import LazyReference
from cgpt_convert.formats.file_kinds import FormatKind
from cgpt_convert.formats.registry import Format

FORMAT = Format(
    "npy",
    part_suffixes=(".npy",),
    folder=True,
    kinds=(FormatKind("NumPy array"),),
    magic=((0, b"\x93NUMPY"),),
    folder_index="tensors.json",
    detect_folder=LazyReference(f"{__name__}.folder:detect"),
    read_file=LazyReference(f"{__name__}.folder:read_file"),
    read_path=LazyReference(f"{__name__}.folder:read"),
    plan=LazyReference(f"{__name__}.folder:plan"),
    dtypes=LazyReference(f"{__name__}.header:DTYPES").get,
    scan=LazyReference(f"{__name__}.object_arrays:scan"),
)
