"""Files that programs write as a matter of course: none of them raises an alarm."""

from __future__ import annotations

import io
import json
import pickle
import struct
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import safetensors.torch
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from tests.helpers.running import run
from tests.helpers.training_layouts import layouts, with_arguments
from tests.helpers.zips import saved


def passes(path: Path, data: bytes, *options: str) -> str:
    """What `scan` prints of a file with these bytes, which it must pass."""
    path.write_bytes(data)
    done = run("scan", *options, path)
    assert done.code == 0, done.out + done.err
    return done.out


BOTH = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy stream"])


@BOTH
@pytest.mark.parametrize("name", layouts())
def test_a_training_checkpoint_passes(name: str, zipped: bool, tmp_path: Path) -> None:
    data = saved(layouts()[name], _use_new_zipfile_serialization=zipped)
    assert "clean" in passes(tmp_path / "model.pt", data)


@pytest.mark.parametrize("name", with_arguments())
def test_one_with_arguments_passes_if_they_are_allowed(name: str, tmp_path: Path) -> None:
    data = saved(with_arguments()[name])
    assert "argparse.Namespace" in passes(
        tmp_path / "model.pt", data, "--allow", "argparse.Namespace"
    )


def tensors() -> dict[str, Any]:
    """One of each kind that torch writes."""
    base = torch.arange(12.0)
    sparse = torch.eye(3).to_sparse()
    return {
        **{str(kind): torch.ones(2, 3).to(kind) for kind in DTYPES},
        "view": base[2:8].view(2, 3).t(),
        "parameter": torch.nn.Parameter(base),
        "frozen": torch.nn.Parameter(base, requires_grad=False),
        "buffer": torch.nn.Buffer(base),
        "sparse": sparse,
        "meta": torch.empty(2, 2, device="meta"),
        "nothing": torch.empty(0, 5),
        "scalar": torch.tensor(1.5),
        "conjugate": torch.ones(2, dtype=torch.complex64).conj(),
        "size": torch.Size([1, 2]),
        "dtype": torch.bfloat16,
        "device": torch.device("cpu"),
    }


DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32),
    *(torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64, torch.complex128),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint32, torch.uint64),
)


@BOTH
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_each_kind_of_tensor_passes(protocol: int, zipped: bool, tmp_path: Path) -> None:
    data = saved(tensors(), pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    passes(tmp_path / "model.pt", data)


# as float32 numbers have begun by chance: opcodes without an import, which no loader gets past
CHANCE = (
    *(b"P\xd5{?\xb3\xb9}?\n)R\x84?\xd9\0\0", b"P\0\n.", b"NQ)R", b"K\1Q(tR.", b"\x82\1)R."),
    *(b"\x83\1\1}b.", b"](K\1e)R.", b"(dX\1\0\0\0aK\1s)R.", b"\x80\2", b"cab"),
)


@pytest.mark.parametrize("start", CHANCE)
@BOTH
def test_numbers_that_begin_as_opcodes_pass(start: bytes, zipped: bool, tmp_path: Path) -> None:
    raw = torch.tensor(list(start.ljust(2048, b"\x3f")), dtype=torch.uint8)
    data = saved({"w": raw.view(torch.float32)}, _use_new_zipfile_serialization=zipped)
    passes(tmp_path / "model.bin", data)


class Net(torch.nn.Module):
    """A module with what modules may have beside parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)
        self.norm = torch.nn.BatchNorm1d(2)

    def get_extra_state(self) -> io.BytesIO:
        return io.BytesIO(b"fp8 scales")


def test_state_of_modules_and_optimizers_passes(tmp_path: Path) -> None:
    net = Net()
    optimizers = [
        torch.optim.AdamW(net.parameters()),
        torch.optim.SGD(net.parameters(), momentum=0.9),
        torch.optim.Adafactor(net.parameters()),
    ]
    for optimizer in optimizers:
        net.layer(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizers[0], 10)
    state = {
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "schedule": schedule.state_dict(),
        "torch": torch.get_rng_state(),
        "groups": defaultdict(list, a=[1]),
        "seen": Counter("aab"),
        "when": OrderedDict(a=(1, frozenset((2,)), {3}, b"x", 1 << 70, 1j, range(3))),
    }
    passes(tmp_path / "optimizer.pt", saved(state))


def test_extra_state_in_a_bytes_io_passes(tmp_path: Path) -> None:
    passes(tmp_path / "model.pt", saved(Net().state_dict()))


def test_random_states_of_numpy_pass(tmp_path: Path) -> None:
    state = {
        "legacy": np.random.RandomState(0).get_state(),
        "generator": np.random.default_rng(0),
        "random state": np.random.RandomState(0),
    }
    passes(tmp_path / "random_states_0.pkl", saved(state))
    for protocol in range(2, 6):
        passes(tmp_path / "rng.pkl", pickle.dumps(state, protocol))


def test_numpy_values_pass(tmp_path: Path) -> None:
    values = {
        "array": np.arange(6.0).reshape(2, 3),
        "scalar": np.float32(1.5),
        "objects": np.array(["a", 1, None], dtype=object),
        "text": np.array(["a", "bc"]),
        "fortran": np.asfortranarray(np.ones((2, 3), ">i2")),
        "record": np.zeros(2, [("a", "<i4"), ("b", "<f8")]),
        "dates": np.array(["2026-01-01"], dtype="datetime64[D]"),
    }
    passes(tmp_path / "values.pt", saved(values))
    for protocol in range(2, 6):
        passes(tmp_path / "values.pkl", pickle.dumps(values, protocol))


def test_a_joblib_file_is_not_called_damaged(tmp_path: Path) -> None:
    for compression in (0, ("zlib", 3), ("gzip", 3), ("bz2", 3), ("lzma", 3), ("xz", 3)):
        joblib.dump({"a": np.ones(4)}, tmp_path / "model.joblib", compress=compression)
        done = run("scan", tmp_path / "model.joblib")
        assert done.code in (1, 3)
        assert "malformed" not in done.out, compression
        assert "dangerous" not in done.out, compression


def test_a_joblib_file_of_plain_values_passes(tmp_path: Path) -> None:
    joblib.dump({"a": [1, 2.5]}, tmp_path / "model.joblib", compress=3)
    assert run("scan", tmp_path / "model.joblib").code == 0


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of this process."""
    store = dist.HashStore()  # type: ignore[attr-defined]  # torch documents it
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("alone")
def test_distributed_tensors_pass(tmp_path: Path) -> None:
    mesh = init_device_mesh("cpu", (1,), mesh_dim_names=("fsdp",))
    state = {
        "w": distribute_tensor(torch.ones(4, 2), mesh, [Shard(0)]),
        "b": distribute_tensor(torch.ones(4), mesh, [Replicate()]),
    }
    passes(tmp_path / "model_world_size_1_rank_0.pt", saved(state))


@pytest.mark.filterwarnings("ignore")
def test_a_distributed_checkpoint_passes(tmp_path: Path) -> None:
    state = {"model": {"w": torch.ones(3, 4)}, "optim": {"step": 3}}
    save_distributed(state, checkpoint_id=str(tmp_path / "step-10"))
    done = run("scan", tmp_path / "step-10")
    assert done.code == 0, done.out


TEMPLATE = (
    "{% if not add_generation_prompt is defined %}"
    "{% set add_generation_prompt = false %}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message.content is string %}{{ message.content.strip() }}"
    "{% else %}{% for item in message.content %}{{ item['text'] | trim }}{% endfor %}{% endif %}"
    "{% if message.tool_calls is defined %}{{ message.tool_calls | tojson }}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    "{% set ns = namespace(found=false) %}{{ raise_exception('no') if ns.found }}"
    "{{ strftime_now('%d %b %Y') }}"
)


def repository() -> dict[str, bytes]:
    """The files of a model's repository, those of several libraries among them."""
    weights = {"a.weight": torch.ones(2, 2), "b.bias": torch.zeros(2)}
    index = {"metadata": {"total_size": 24}, "weight_map": dict.fromkeys(weights, "model.bin")}
    config = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_layer": 2}
    tokenizer = {"tokenizer_class": "GPT2Tokenizer", "chat_template": TEMPLATE}
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + bytes(17)
    texts = {
        "config.json": json.dumps(config),
        "generation_config.json": json.dumps({"eos_token_id": 1}),
        "tokenizer_config.json": json.dumps(tokenizer),
        "tokenizer.json": json.dumps({"version": "1.0", "model": {"type": "BPE", "vocab": {}}}),
        "special_tokens_map.json": json.dumps({"eos_token": "</s>"}),
        "preprocessor_config.json": json.dumps({"crop_size": 224}),
        "pytorch_model.bin.index.json": json.dumps(index),
        "trainer_state.json": json.dumps({"log_history": [{"loss": 1.5, "step": 1}]}),
        "adapter_config.json": json.dumps({"peft_type": "LORA", "r": 8}),
        "chat_template.jinja": TEMPLATE,
        "README.md": "---\nlicense: mit\n---\n# A model\n\n```python\nimport os\n```\n",
        "LICENSE": "MIT License\n\ncopyright (c) 2026\n",
        "vocab.txt": "[PAD]\n[UNK]\ncos\nsystem\n",
        "merges.txt": "#version: 0.2\nc o\no s\n",
        ".gitattributes": "*.bin filter=lfs diff=lfs merge=lfs -text\n",
        "modeling.py": "import torch\n\n\nclass Model(torch.nn.Module):\n    pass\n",
        "requirements.txt": "torch\ntransformers\n",
        "config.yaml": "model:\n  layers: 2\n",
        "train.sh": "#!/bin/sh\npython train.py\n",
        "events.csv": "step,loss\n1,2.5\n",
    }
    return {name: text.encode() for name, text in texts.items()} | {
        "model.safetensors": safetensors.torch.save(weights, {"format": "pt"}),
        "model.bin": saved(weights),
        "rng_state.pth": saved(_random_states()),
        "scheduler.pt": saved({"last_epoch": 3, "_last_lr": [0.1]}),
        "optimizer.pt": saved({"state": {}, "param_groups": [{"lr": 0.1}]}),
        "image.png": png,
        "picture.jpg": b"\xff\xd8\xff\xe0\0\x10JFIF\0" + bytes(40),
        "sample.wav": b"RIFF" + struct.pack("<I", 36) + b"WAVEfmt " + bytes(28),
        "paper.pdf": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n" + bytes(30),
        "spiece.model": b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\2\n\x0c\n\3<s>\x15\0\0\0\0\x18\3",
        "events.out.tfevents.1.host": struct.pack("<QI", 24, 7) + b"\t" + bytes(30),
        "special.npz": _npz(),
        "mean.npy": _npy(),
    }


def _random_states() -> dict[str, Any]:
    return {"cpu": torch.get_rng_state(), "numpy": np.random.RandomState(0).get_state()}


def _npz() -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, a=np.ones(3), b=np.arange(4))
    return file.getvalue()


def _npy() -> bytes:
    file = io.BytesIO()
    np.save(file, np.ones((2, 3)))
    return file.getvalue()


@pytest.mark.parametrize("name", repository())
def test_a_file_of_a_repository_passes(name: str, tmp_path: Path) -> None:
    passes(tmp_path / name, repository()[name])


def test_a_repository_passes(tmp_path: Path) -> None:
    for name, data in repository().items():
        (tmp_path / name).write_bytes(data)
    done = run("scan", tmp_path)
    assert done.code == 0, done.out
    assert done.out.splitlines()[-1].startswith(f"{len(repository())} files")
