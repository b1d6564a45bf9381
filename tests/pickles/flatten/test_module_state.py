"""Where the weights of a checkpoint are, and what they are called: as `state_dict()` has them."""

import argparse
import io
import pickle
import re
import sys
import types
import zipfile
from collections import OrderedDict, defaultdict

import pytest
import torch
from safetensors.torch import load_file

from cgpt_convert import open_checkpoint
from tests.helpers.running import run

nn = torch.nn


class Net(nn.Module):
    """A module with a submodule of some name, and all kinds of other members."""

    fleeting: torch.Tensor

    def __init__(self, name="model"):
        super().__init__()
        setattr(self, name, nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))
        self.head = nn.Linear(4, 2)
        self.scale = nn.Parameter(torch.ones(3))
        self.register_buffer("kept", torch.ones(2))
        self.register_buffer("fleeting", torch.ones(2), persistent=False)
        self.stride = torch.tensor([8.0, 16.0])
        self.cache = {"state_dict": {"w": torch.ones(5)}, "model": [torch.ones(6)]}
        self.listed = [nn.Linear(1, 1)]


@pytest.fixture(autouse=True)
def _mynet(monkeypatch):
    """The class is found where the pickle names it."""
    module = types.ModuleType("mynet")
    module.Net = Net  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mynet", module)
    monkeypatch.setattr(Net, "__module__", "mynet")


def converted(path, *words):
    """What is written, by name, and what the program says of it."""
    out = path.with_name("out.safetensors")
    result = run("convert", path, "-o", out, "--verify", "--overwrite", *words)
    assert result.code == 0, result.err
    verified = run("verify", path, out)
    assert verified.code == 0, verified.out
    return load_file(out), result.out


def same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


NAMES = ("model", "module", "net", "network", "params", "weight", "weights", "ema", "backbone",
         "state_dict_", "model_state", "encoder")  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_pickled_module_is_its_state_dict(tmp_path, name):
    net, path = Net(name), tmp_path / "whole.pt"
    torch.save(net, path)
    found, told = converted(path)
    same(found, net.state_dict())
    assert "using the tensors under" not in told
    assert "fleeting (a non-persistent buffer)" in told
    assert "stride" in told
    told = run("convert", path, "-o", tmp_path / "o.npz", "--json").json
    expected = {"fleeting", "stride", "cache.state_dict.w", "cache.model.0"}
    assert told["extras"].keys() == expected | {"listed.0.weight", "listed.0.bias"}
    assert told["root"] is None
    shown = run("inspect", path)
    assert re.search(r"not in state_dict\(\):\n  fleeting: a non-persistent buffer\n", shown.out)
    count = sum(p.numel() for p in net.parameters()) + sum(
        b.numel() for b in net.buffers() if b.is_floating_point()
    )
    assert run("inspect", path, "--json").json["parameters"] == count - net.fleeting.numel()


@pytest.mark.parametrize("wrap", [dict, OrderedDict, lambda d: defaultdict(list, d)])
@pytest.mark.parametrize("key", ["model", "state_dict", "module"])
def test_a_module_in_a_checkpoint_is_its_state_dict(tmp_path, key, wrap):
    net, path = Net(), tmp_path / "best.pt"
    torch.save(wrap({"epoch": 1, key: net.half(), "ema": None}), path)
    found, told = converted(path)
    same(found, net.state_dict())
    assert f"using the tensors under '{key}'" in told
    assert f"{key}.fleeting" in told


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("legacy", [False, True])
def test_every_tensor_of_a_module_is_compared(tmp_path, legacy):
    path, other = tmp_path / "a.pt", tmp_path / "b.pt"
    for change in ("fleeting", "stride", "scale"):
        net = Net()
        torch.save(net, path, _use_new_zipfile_serialization=not legacy)
        setattr(net, change, None)
        value = torch.zeros_like(getattr(Net(), change))
        setattr(net, change, nn.Parameter(value) if change == "scale" else value)
        torch.save(net, other, _use_new_zipfile_serialization=not legacy)
        result = run("verify", path, other, "--json")
        failed = [
            c["tensor"]
            for c in result.json["checks"]
            if c["name"] == "bytes" and c["outcome"] == "failed"
        ]
        assert failed == [change]
        assert run("diff", path, path).code == 0
        assert run("diff", path, other).code == 1


def test_a_module_against_its_own_state_dict(tmp_path):
    net = Net()
    torch.save(net, tmp_path / "whole.pt")
    torch.save(net.state_dict(), tmp_path / "sd.pt")
    result = run("verify", tmp_path / "whole.pt", tmp_path / "sd.pt")
    assert result.code == 0, result.out
    told = "fleeting: not compared: only in SOURCE; a non-persistent buffer"
    assert told in result.out
    assert run("diff", tmp_path / "whole.pt", tmp_path / "sd.pt").code == 0
    lock = tmp_path / "lock.json"
    assert run("lock", tmp_path / "whole.pt", "-o", lock).code == 0
    result = run("verify", tmp_path / "sd.pt", "--lock", lock)
    assert (result.code, "fleeting: not compared" in result.out) == (0, True)
    state = net.state_dict() | {"scale": torch.zeros(3)}
    torch.save(state, tmp_path / "sd.pt")
    assert run("verify", tmp_path / "whole.pt", tmp_path / "sd.pt").code == 1
    lines = run("digest", tmp_path / "whole.pt").out.splitlines()
    torch.save(net.state_dict(), tmp_path / "sd.pt")
    digest = run("digest", tmp_path / "sd.pt").out.strip()
    assert lines[1] == f"{digest}  11 of 17 tensors, that state_dict() contains"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: {"model": m, "epoch": 1}])
def test_data_parallel_is_peeled(tmp_path, wrap, legacy):
    net, path = Net(), tmp_path / "dp.pt"
    torch.save(wrap(nn.DataParallel(net)), path, _use_new_zipfile_serialization=not legacy)
    found, told = converted(path)
    same(found, net.state_dict())
    assert "module'" in told
    found, _ = converted(path, "--root", ".")
    assert any(name.endswith("module.scale") for name in found)


def test_a_graph_module_has_its_members_among_its_arguments(tmp_path):
    graph = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    torch.save(graph, tmp_path / "fx.pt")
    same(converted(tmp_path / "fx.pt")[0], graph.state_dict())


def test_weight_norm_computes_the_weight(tmp_path):
    with pytest.warns(FutureWarning):
        layer = nn.utils.weight_norm(nn.Linear(2, 3))
    assert isinstance(layer.weight, torch.Tensor)
    layer.weight = layer.weight.detach()
    torch.save(layer, tmp_path / "wn.pt")
    found, told = converted(tmp_path / "wn.pt")
    same(found, layer.state_dict())
    assert "weight (an attribute of a module)" in told


def test_members_of_other_kinds(tmp_path):
    module = nn.Module()
    module.dict = nn.ParameterDict({"a": torch.ones(1), "b": torch.ones(2)})
    module.list = nn.ParameterList([torch.ones(3)])
    module.modules_ = nn.ModuleDict({"net": nn.ModuleList([nn.Embedding(2, 3)])})
    module.register_parameter("absent", None)
    module.shared = module.modules_["net"]
    torch.save(module, tmp_path / "m.pt")
    found, _ = converted(tmp_path / "m.pt", "--tied", "copy")
    same(found, module.state_dict())


def test_what_is_attached_to_a_tensor_is_no_weight(tmp_path):
    weight = nn.Parameter(torch.ones(2))
    weight.main_grad = torch.zeros(2)  # type: ignore[attr-defined]
    torch.save({"w": weight}, tmp_path / "m.pt")
    assert torch.load(tmp_path / "m.pt", weights_only=False)["w"].main_grad is not None
    found, told = converted(tmp_path / "m.pt")
    assert found.keys() == {"w"}
    assert "w.main_grad (an attribute of a tensor)" in told


# -- TorchScript


class Scripted(nn.Module):
    """The same without what TorchScript cannot have."""

    def __init__(self, name="model"):
        super().__init__()
        self.add_module(name, nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))
        self.head = nn.Linear(4, 2)
        self.scale = nn.Parameter(torch.ones(3))
        self.register_buffer("fleeting", torch.ones(2), persistent=False)
        self.anchors = torch.arange(4.0)


class A(Scripted):
    def forward(self, x):
        found = self.head(self.model(x)) * self.scale.sum()  # type: ignore[operator]
        return found + self.anchors.sum() + self.fleeting.sum()  # type: ignore[operator]


class B(Scripted):
    def forward(self, x):
        found = self.head(self.params(x)) * self.scale.sum()  # type: ignore[operator]
        return found + self.anchors.sum()


@pytest.fixture(params=["model", "params"])
def scripted(request):
    return {"model": A, "params": B}[request.param](request.param).eval()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["script", "trace", "lite"])
def test_torchscript_is_its_state_dict(tmp_path, scripted, how):
    path = tmp_path / "m.pt"
    if how == "trace":
        torch.jit.trace(scripted, torch.ones(1, 4)).save(path)
    elif how == "script":
        torch.jit.script(scripted).save(path)
    else:
        torch.jit.script(scripted)._save_for_lite_interpreter(str(path))  # noqa: SLF001  torch's only way
    found, told = converted(path)
    expected = torch.jit.load(path).state_dict()
    same(found, expected)
    assert expected.keys() >= scripted.state_dict().keys()
    name = "constants.0 (a constant of the code)" if how == "trace" else "anchors (an attribute"
    assert name in told
    assert run("verify", path, path).code == 0


@pytest.mark.filterwarnings("ignore")
def test_a_changed_attribute_or_constant_is_a_difference(tmp_path):
    for how in (torch.jit.script, lambda m: torch.jit.trace(m, torch.ones(1, 4))):
        for number, name in enumerate(("a.pt", "b.pt")):
            torch.manual_seed(0)
            net = A("model").eval()
            net.anchors += number
            how(net).save(tmp_path / name)
        result = run("verify", tmp_path / "a.pt", tmp_path / "b.pt", "--json")
        failed = [c["tensor"] for c in result.json["checks"] if c["outcome"] == "failed"]
        assert (result.code, failed) in ((1, ["anchors"]), (1, ["constants.0"]))


@pytest.mark.filterwarnings("ignore")
def test_what_is_frozen_is_in_the_constants(tmp_path, scripted):
    path = tmp_path / "m.pt"
    torch.jit.freeze(torch.jit.script(scripted)).save(path)
    assert not torch.jit.load(path).state_dict()
    found, _ = converted(path)
    assert all(name.startswith("constants.") for name in found)
    assert any(torch.equal(tensor, scripted.head.weight) for tensor in found.values())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("gone", ["code", "buffers"])
def test_without_what_tells_buffers_all_tensors_are_weights(tmp_path, gone):
    path = tmp_path / "m.pt"
    torch.jit.script(A("model")).save(path)
    out = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith(".py"):
                data = re.sub(rb"\n  __buffers__ = [^\n]*", b"", data)
            if gone == "buffers" or "/code/" not in name:
                new.writestr(name, data)
    path.write_bytes(out.getvalue())
    assert open_checkpoint(path).extras == {}
    assert {"anchors", "fleeting", "scale"} <= open_checkpoint(path).keys()


# -- training checkpoints


def state(shift=0.0):
    return OrderedDict([("a.weight", torch.ones(2, 2) + shift), ("b.bias", torch.zeros(2) + shift)])


OPTIMIZER = {"state": {0: {"exp_avg": torch.zeros(2, 2)}}, "param_groups": [{"lr": 1.0}]}
LAYOUTS = {
    "timm": (
        {"state_dict": state(), "optimizer": OPTIMIZER, "state_dict_ema": state(1)},
        "state_dict",
        "optimizer (1 tensor), state_dict_ema (2 tensors)",
    ),
    "esrgan": ({"params": state(), "params_ema": state(1)}, "params", "params_ema (2 tensors)"),
    "dit": ({"model": state(), "ema": state(1), "opt": OPTIMIZER}, "model",
            "ema (2 tensors), opt (1 tensor)"),
    "beside": ({"model": state(), "mean": torch.zeros(3), "std": torch.ones(3)}, "model",
               "mean (1 tensor), std (1 tensor)"),
    "lists": ({"model": state(), "optimizer": [OPTIMIZER, OPTIMIZER]}, "model",
              "optimizer.0 (1 tensor), optimizer.1 (1 tensor)"),
    "dotted": ({"model": state(), "model.optimizer": OPTIMIZER}, "model",
               "model.optimizer (1 tensor)"),
    "inside": ({"model": {"state_dict": state(), "ema": state(1)}, "args": argparse.Namespace()},
               "model.state_dict", "model.ema (2 tensors)"),
    "tree": ({"params": {"model": {"embed": {"kernel": torch.ones(2)}}}}, "params", ""),
    "module": ({"module": state(), "args": {}}, "module", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_weights_are_taken_and_the_rest_is_named(tmp_path, name):
    content, root, rest = LAYOUTS[name]
    torch.save(content, tmp_path / "m.pt")
    found, told = converted(tmp_path / "m.pt")
    expected = content
    for key in root.split("."):
        expected = expected[key]
    if name == "tree":
        expected = {"model.embed.kernel": torch.ones(2)}
    same(found, expected)
    assert f"using the tensors under '{root}'\n" in told
    told = " ".join(told.split())
    assert (f"skipped outside '{root}': {rest}" in told) == bool(rest)
    lines = run("verify", tmp_path / "m.pt", tmp_path / "m.pt", "--root", root, "--allow",
                "argparse.Namespace")  # fmt: skip
    assert lines.code == 0


WHOLE = {
    "ema": ({"ema": state(1), "opt": OPTIMIZER}, "ema (2 tensors), opt (1 tensor)"),
    "ema alone": ({"params_ema": state(1)}, "params_ema (2 tensors)"),
    "gan": ({"generator": state(), "discriminator": state(2)},
            "generator (2 tensors), discriminator (2 tensors)"),
    "wrapped": ({"app": {"model": state(), "optim": OPTIMIZER}},
                "app.model (2 tensors), app.optim (1 tensor)"),
    "with others": ({"student": state(), "x": torch.ones(1)}, "student (2 tensors), x (1 tensor)"),
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_without_a_well_known_key_all_is_taken_and_said(tmp_path, name):
    content, rest = WHOLE[name]
    torch.save(content, tmp_path / "m.pt")
    found, told = converted(tmp_path / "m.pt")
    assert len(found) == len(open_checkpoint(tmp_path / "m.pt"))
    told = " ".join(told.split())
    assert f"all tensors are written under their full names: {rest}; use --root KEY" in told
    first = rest.split(" ")[0]
    found, told = converted(tmp_path / "m.pt", "--root", first)
    assert found.keys() == state().keys()


def test_a_flat_state_dict_needs_no_words(tmp_path):
    torch.save({**state(), "num_updates": 3}, tmp_path / "m.pt")
    found, told = converted(tmp_path / "m.pt")
    same(found, state())
    assert len(told.splitlines()) == 1


def test_objects_of_other_classes_hold_no_root(tmp_path):
    """Only plain dicts are containers: attributes of a namespace keep their full names."""
    args = argparse.Namespace(state_dict=state())
    path = tmp_path / "m.pt"
    with path.open("wb") as file:
        torch.save(
            {"args": args, "x": torch.ones(1)}, file, pickle_protocol=pickle.HIGHEST_PROTOCOL
        )
    found, _ = converted(path)
    assert found.keys() == {"x", "args.state_dict.a.weight", "args.state_dict.b.bias"}


def test_keys_of_any_kind_in_a_module(tmp_path):
    net = Net()
    net.__dict__[b"raw"] = torch.ones(1)  # type: ignore[index]
    net.__dict__[(1, 2)] = torch.ones(2)  # type: ignore[index]
    torch.save(net, tmp_path / "m.pt")
    found, _ = converted(tmp_path / "m.pt")
    same(found, net.state_dict())
    assert len(open_checkpoint(tmp_path / "m.pt")) == len(_all_names(net)) + 2


def _all_names(net):
    """Every tensor of it: of its state dict, and of its attributes."""
    attributes = ("fleeting", "stride", "cache.state_dict.w", "cache.model.0")
    return {*net.state_dict(), *attributes, "listed.0.weight", "listed.0.bias"}


def test_a_flat_state_dict_of_many_tensors_needs_no_words(tmp_path):
    torch.save({f"layer.{i}": torch.ones(1) for i in range(9)}, tmp_path / "m.pt")
    _, told = converted(tmp_path / "m.pt")
    assert len(told.splitlines()) == 1
