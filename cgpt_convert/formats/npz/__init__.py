"""NumPy's .npz: a zip of .npy arrays."""

from cgpt_convert.core.lazy import LazyReference
from cgpt_convert.formats.file_kinds import FormatKind, Kind
from cgpt_convert.formats.registry import Format

FORMAT = Format(
    "npz",
    (".npz",),
    kinds=(FormatKind("NumPy archive", Kind.ZIP),),
    detect=LazyReference(f"{__name__}.archive:detect"),
    read_file=LazyReference(f"{__name__}.archive:read_file"),
    plan=LazyReference(f"{__name__}.archive:plan"),
    dtypes=LazyReference(f"{__name__}.archive:DTYPES").get,
)
