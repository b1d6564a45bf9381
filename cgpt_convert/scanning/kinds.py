"""The kinds of files that a scan can judge, and where an unknown kind is a finding."""

from __future__ import annotations

import os
import re

from cgpt_convert.formats.file_kinds import Kind
from cgpt_convert.formats.registry import tensor_suffixes
from cgpt_convert.sources.local import Source, read

# kinds that are recognised but not scanned, with the reason
CLOSED = {
    Kind.PREVIEW: "PyTorch preview files are not scanned; no version of torch since 1.0 reads them",
    Kind.LFS_POINTER: "this is a Git LFS pointer, not the file itself; run `git lfs pull`",
    Kind.ZSTD: "zstd files are not scanned; decompress it and scan the result",
    Kind.LZ4: "lz4 files are not scanned; decompress it and scan the result",
    Kind.COMPRESSED: "this compression is not supported; decompress the file and scan the result",
    Kind.SEVEN_ZIP: "7z archives are not scanned; unpack it and scan the files",
    Kind.RAR: "rar archives are not scanned; unpack it and scan the files",
    Kind.HDF5: "HDF5 files are not scanned; they can contain layers with code and pickled objects",
    Kind.TFLITE: "the operators of TensorFlow Lite models are not checked",
    Kind.MOBILE: "the code of PyTorch mobile models is not checked",
    Kind.OLD_GGML: "GGML files older than GGUF are not supported",
}
PROGRAM = "a program or shared library, whose machine code runs when it is loaded"
FLAX = "Flax checkpoint"  # as the names of `file_kinds.Kind`
# kinds that are not understood unless a pickle is found or unpacking succeeds
UNREAD = {
    Kind.UNKNOWN: "unknown file type; it may be encrypted or belong to another framework",
    Kind.PROGRAM: PROGRAM,
    Kind.GZIP: "the gzip data cannot be decompressed",
    Kind.BZIP2: "the bzip2 data cannot be decompressed",
    Kind.XZ: "the xz data cannot be decompressed",
}

_OTHER_SUFFIXES = (
    *(".pkl", ".pickle", ".joblib", ".dill", ".pt2", ".ptl", ".jit", ".ts", ".th", ".t7"),
    *(".distcp", ".mar", ".keras", ".h5", ".hdf5", ".onnx", ".tflite", ".msgpack", ".ot", ".nemo"),
    *(".ggml", ".mlmodel", ".pdparams", ".params", ".weights", ".llamafile", ".pb"),
)
_PACKED_SUFFIXES = (".gz", ".gzip", ".xz", ".lzma", ".bz2", ".lz4", ".zst", ".z", ".zlib")
_SHARED_SUFFIXES = (".bin", ".pb", ".ts", ".params", ".weights")  # not specific to weight files
_PACKAGES = frozenset({"site-packages", "dist-packages"})
_PROGRAMS = ("bin", "Scripts")  # of a virtual environment


def names_weights(path: str) -> bool:
    """Return whether the file has the suffix of a weight file, compressed or not."""
    name = os.path.basename(path).lower()
    for suffix in _PACKED_SUFFIXES:
        name = name.removesuffix(suffix)
    if not name.endswith((*tensor_suffixes(), *_OTHER_SUFFIXES)):
        return False
    return not (is_installed(path) and name.endswith(_SHARED_SUFFIXES))


def is_template(path: str) -> bool:
    """Return whether a tokenizer reads the file as a chat template."""
    folder, name = os.path.split(path)
    templates = os.path.basename(folder) == "additional_chat_templates"
    return name == "chat_template.jinja" or (templates and name.endswith(".jinja"))


def is_jinja(path: str) -> bool:
    """Return whether the file has the suffix of a Jinja template."""
    return path.lower().endswith((".jinja", ".jinja2", ".j2", ".template", ".tmpl", ".tpl"))


def names_packed(path: str) -> bool:
    """Return whether the file has the suffix of a compressed file."""
    return path.lower().endswith(_PACKED_SUFFIXES)


def is_installed(path: str) -> bool:
    """Return whether the file is in a folder of installed packages."""
    return not _PACKAGES.isdisjoint(os.path.abspath(path).split(os.sep))


def in_environment(path: str) -> bool:
    """Return whether the file is in a Python environment, where programs are common.

    That is a folder of installed packages, or the folder of programs beside a `pyvenv.cfg`.
    """
    folder, programs = os.path.split(os.path.dirname(os.path.abspath(path)))
    in_venv = programs in _PROGRAMS and os.path.isfile(os.path.join(folder, "pyvenv.cfg"))
    return in_venv or is_installed(path)


def is_git_object(source: Source) -> bool:
    """Return whether this is a Git object, unpacked (Pro Git, 10.2): a header and its content.

    Git alone reads it: every unpickler fails at the header, before it gets to an import.
    """
    header = re.match(
        rb"(?:blob|tree|commit|tag) (\d{1,18})\0", read(source, 0, min(32, source.nbytes))
    )
    return header is not None and header.end() + int(header[1]) == source.nbytes
