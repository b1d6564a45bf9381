"""Files from their plans, in memory: the sink's work done in the plainest way, as a reference."""

import hashlib
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from cgpt_convert.plan import AvailableDigests, Crc32, FileDigest, FilePlan, Part, Request
from cgpt_convert.sources.local import MemoryBytes
from cgpt_convert.tensors.dtypes import BY_NAME
from cgpt_convert.tensors.shapes import c_strides
from cgpt_convert.tensors.tensor import Storage, Tensor


def render(plans: Iterable[FilePlan]) -> dict[str, bytes]:
    """path -> contents of every planned file."""
    files: dict[str, bytes] = {}
    digests: dict[str, FileDigest] = {}
    for plan in plans:
        known = [content(part, digests) for part in plan.parts]
        for index, part in enumerate(plan.parts):
            if isinstance(part, Crc32):
                covered = b"".join(known[part.first : part.last])
                known[index] = zlib.crc32(covered).to_bytes(4, "little")
        data = b"".join(known)
        assert len(data) == plan.nbytes
        assert plan.path not in files
        files[plan.path] = data
        if plan.hashed:
            digests[plan.path] = FileDigest(hashlib.sha256(data).hexdigest(), zlib.crc32(data))
    return files


def content(part: Part, digests: dict[str, FileDigest]) -> bytes:
    """The bytes of a part; of a Crc32, four that are to be replaced."""
    if isinstance(part, bytes):
        return part
    if isinstance(part, Tensor):
        return tensor_bytes(part)
    if isinstance(part, Crc32):
        return bytes(4)
    sums = {tensor.content: tensor_sum(tensor) for tensor in part.tensors}
    made = part.make(AvailableDigests(digests, sums))
    assert len(made) == part.nbytes
    return made


def tensor_sum(tensor: Tensor) -> str:
    """The digest that docs/reference/digest.md defines for a tensor."""
    line = f"{tensor.dtype.name} {'x'.join(map(str, tensor.shape))}\n"
    return hashlib.sha256(line.encode() + tensor_bytes(tensor)).hexdigest()


def tensor_bytes(tensor: Tensor) -> bytes:
    """The elements in C order, little-endian."""
    return b"".join(bytes(block) for block in tensor.blocks())


def write(files: dict[str, bytes], folder: Path) -> None:
    """Write what `render` gave into `folder`."""
    for path, data in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)


def dense(name: str, dtype: str, shape: Sequence[int], data: bytes) -> Tensor:
    """A C-order tensor over bytes in memory."""
    dims = tuple(shape)
    storage = Storage(MemoryBytes("memory", data), 0, len(data), name)
    return Tensor(name, BY_NAME[dtype], dims, c_strides(dims), 0, storage)


def request(name: str, *tensors: Tensor, **rest: object) -> Request:
    """The request to write `tensors` as `name`."""
    return Request(name, tensors, **rest)  # type: ignore[arg-type]
