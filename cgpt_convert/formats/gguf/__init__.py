"""The GGUF format."""

from cgpt_convert.core.lazy import LazyReference
from cgpt_convert.formats.file_kinds import FormatKind
from cgpt_convert.formats.registry import Format

FORMAT = Format(
    "gguf",
    (".gguf",),
    kinds=(FormatKind("GGUF file"),),
    magic=((0, b"GGUF"),),
    read_file=LazyReference(f"{__name__}.reader:read_file"),
    plan=LazyReference(f"{__name__}.writer:plan"),
    dtypes=LazyReference(f"{__name__}.writer:DTYPES").get,
    scan=LazyReference(f"{__name__}.reader:scan"),
)
