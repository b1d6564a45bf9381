"""PyTorch files: zip archive, legacy stream, tar."""

from cgpt_convert.core.lazy import LazyReference
from cgpt_convert.formats.file_kinds import Kind
from cgpt_convert.formats.registry import Format
from cgpt_convert.formats.torch.torch_files import (
    KINDS,
    detect,
    diagnose,
    is_folder,
    read_file,
)

FORMAT = Format(
    "torch",
    (".bin", ".pt", ".pth"),
    other_suffixes=(".ckpt",),
    sharded=True,
    kinds=KINDS,
    detect=detect,
    model_files=("pytorch_model.bin",),
    folder_of=is_folder,
    read_file=read_file,
    read_folder=LazyReference(f"{__name__}.folders:read_folder"),
    read_path=LazyReference(f"{__name__}.writer:read"),
    salvages=(Kind.CUT_ZIP,),
    diagnose=diagnose,
    plan=LazyReference(f"{__name__}.writer:plan"),
    dtypes=LazyReference(f"{__name__}.writer:DTYPES").get,
)
