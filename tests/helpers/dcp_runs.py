"""Distributed checkpoints as torch writes them, by real process groups over gloo on loopback.

`python -m tests.helpers.dcp_runs FOLDER` writes into the folder, for 1, 2 and 4 ranks, a checkpoint
`dcp-N` and what torch's own `dcp_to_torch_save` makes of it, `dcp-N.pt`; a folder `ranks-N` with a
file of each rank, and the whole tensors in `ranks-N.pt`. Of 2 ranks it also writes `uncoordinated`,
each rank with a metadata file of its own, `serialized`, with safetensors in `.distcp` files, and
`hf/sharded`, safetensors with sharding information, which torch itself merges into `hf`. Processes
are forked: importing torch takes longer than all of this.
"""

import contextlib
import os
import socket
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.filesystem import FileSystemWriter, SerializationFormat
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard
from torch.multiprocessing.spawn import start_processes

State = dict[str, Any]


def weights(ranks: int) -> State:
    """Tensors on one- and two-dimensional meshes, with chunks of uneven sizes and none."""
    torch.manual_seed(0)
    line = init_device_mesh("cpu", (ranks,))
    grid = init_device_mesh("cpu", (2, ranks // 2)) if ranks > 2 else line
    two = (lambda a, b: [a, b]) if ranks > 2 else (lambda a, _b: [a])
    spread = [
        ("grid", torch.randn(7, 5), grid, two(Shard(0), Shard(1))),
        ("twice", torch.randn(9, 3), grid, two(Shard(0), Shard(0))),
        ("other_way", torch.randn(5, 8), grid, two(Shard(1), Shard(0))),
        ("half", torch.randn(6, 6).bfloat16(), grid, two(Replicate(), Shard(1))),
        ("rows", torch.randn(7, 4), line, [Shard(0)]),
        ("columns", torch.randn(3, 10), line, [Shard(1)]),
        ("cube", torch.randn(2, 3, 5), line, [Shard(2)]),
        ("middle", torch.randn(2, 6, 5).double(), line, [Shard(1)]),
        ("same", torch.randn(4), line, [Replicate()]),
        ("one", torch.randn(1), line, [Shard(0)]),
        ("bytes", torch.randint(-5, 5, (5, 5), dtype=torch.int8), line, [Shard(0)]),
    ]
    return {name: distribute_tensor(value, mesh, how) for name, value, mesh, how in spread}


def strided(ranks: int) -> State:
    """Tensors as FSDP2 divides them after tensor parallelism, the second dimension of the mesh."""
    if ranks == 1:
        return {}
    grid = init_device_mesh("cpu", (2, ranks // 2))
    how = [_StridedShard(0, split_factor=ranks // 2), Shard(0)]
    sizes = (8, 12) if ranks > 2 else (8,)
    return {f"fsdp_{size}": distribute_tensor(torch.randn(size, 3), grid, how) for size in sizes}


def whole() -> State:
    """Tensors that every rank has, one of them transposed."""
    return {
        "turned": torch.arange(6.0).reshape(3, 2).T,
        "scalar": torch.tensor(3.0),
        "empty": torch.zeros(0, 3),
        "flags": torch.tensor([True, False]),
    }


def work(rank: int, ranks: int, port: int, folder: Path) -> None:
    """Save as one of the ranks."""
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}
    os.environ.update(where | {"RANK": f"{rank}", "WORLD_SIZE": f"{ranks}"})
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    model = weights(ranks)
    state = {
        "model": {**model, **whole()},
        "optim": {"step": 3, "groups": [{"lr": 0.1, "betas": (0.9, 0.95)}]},
        "rng": torch.arange(3, dtype=torch.uint8),
    }
    save(state, checkpoint_id=folder / f"dcp-{ranks}")
    files = folder / f"ranks-{ranks}"
    files.mkdir(exist_ok=True)
    saved = {**model, **strided(ranks), **whole()}
    torch.save(saved, files / f"model_world_size_{ranks}_rank_{rank}.pt")
    full = {
        name: value.full_tensor() if isinstance(value, DTensor) else value
        for name, value in saved.items()
    }
    if rank == 0:
        torch.save(full, folder / f"ranks-{ranks}.pt")
    if ranks == 2:
        alone = folder / "uncoordinated"
        save(model, checkpoint_id=alone, use_collectives=False)
        writer = FileSystemWriter(
            folder / "serialized", serialization_format=SerializationFormat.SAFETENSORS
        )
        save(model, storage_writer=writer)
        model.pop("bytes")  # torch merges floating-point types only
        save(
            model,
            storage_writer=HuggingFaceStorageWriter(
                str(folder / "hf"), save_distributed=True, enable_consolidation=True
            ),
        )
    dist.destroy_process_group()


def free_port() -> int:
    """Return a port that nothing listens on."""
    with contextlib.closing(socket.socket()) as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def main(folder: Path) -> None:
    """Write all checkpoints into the folder."""
    for ranks in (1, 2, 4):
        arguments = (ranks, free_port(), folder)
        start_processes(work, arguments, nprocs=ranks, start_method="fork")
        dcp_to_torch_save(folder / f"dcp-{ranks}", folder / f"dcp-{ranks}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
