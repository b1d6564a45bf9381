"""`python -m fuzz.against_torch SECONDS [SEED]`: our reading of edited pickles against torch's.

Each pickle of a torch archive or of a stream from before torch 1.6 is edited by whole opcodes.
Where `torch.load` and this package both read it, names, dtypes, shapes and every element must be
equal; an entry that we list as unreadable counts as rejected. Exit code 1 if a pickle was read
differently.

torch's restricted unpickler knows the opcodes of protocol 2 only. Pickles of other protocols are
loaded by C's unpickler, which torch uses without `weights_only`, with the same names allowed.
Protocol 0 is left out: torch cannot load the references to storages that it writes with it.
"""

from __future__ import annotations

import collections
import io
import pickle
import pickletools
import random
import struct
import sys
import time
import types
import warnings
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._weights_only_unpickler import _get_allowed_globals

from cgpt_convert.checkpoint import Checkpoint
from cgpt_convert.core.errors import CgptError
from cgpt_convert.formats.torch import legacy_reader
from cgpt_convert.sources.local import MemoryBytes
from tests.helpers import zips
from tests.helpers.forged_pickles import Made, Pickler, Ref, v2, v3
from tests.helpers.mutations import edited
from tests.helpers.torch_agreement import difference, opened
from tests.helpers.zips import Entry

REBUILD: dict[str, Any] = vars(torch._utils)  # noqa: SLF001  what pickles name
FROM_TYPE: Any = vars(torch._tensor)["_rebuild_from_type_v2"]  # noqa: SLF001
LAYOUT: Any = vars(torch.serialization)["_get_layout"]
STORAGES = {"0": bytes(range(24)), "1": bytes(range(100, 124)), "2": bytes(range(48))}


PROTOCOLS = (1, 2, 3, 4, 5)
_SYSTEM = {
    "protocol_version": 1001,
    "little_endian": True,
    "type_sizes": {"short": 2, "int": 4, "long": 4},
}


def values() -> list[Any]:
    """Small values of every form that torch's restricted unpickler takes."""
    one, two = v2(), v2(Ref(key="1"), 0, [3, 2], [2, 1])
    whole = Ref(torch.LongStorage, key="2", numel=6)
    parameter = Made(REBUILD["_rebuild_parameter"], (one, True, collections.OrderedDict()))
    stateful = Made(
        REBUILD["_rebuild_parameter_with_state"], (one, True, collections.OrderedDict(), {"a": two})
    )
    arguments: Any = (Ref(), 0, [2, 3], [3, 1], False, collections.OrderedDict())
    typed = Made(
        FROM_TYPE,
        (REBUILD["_rebuild_tensor_v2"], torch.Tensor, arguments, {"a": 1, "b": two}),
    )
    subclass = Made(
        FROM_TYPE,
        (REBUILD["_rebuild_tensor_v2"], nn.Parameter, arguments, ({"a": two}, {"b": 2})),
    )
    layout = Made(LAYOUT, ("torch.sparse_coo",))
    indices = v2(whole, 0, (1, 3), (3, 1))
    sparse = Made(
        REBUILD["_rebuild_sparse_tensor"],
        (layout, (indices, v2(Ref(key="1"), 0, (3,), (1,)), torch.Size([7]), False)),
    )
    quantized = Ref(torch.QInt8Storage, key="0", numel=24)
    untyped = Ref(torch.UntypedStorage, key="1", numel=24)
    return [
        {"w": one, "b": two},
        collections.OrderedDict([("w", one), ("b", two), ("w.x", parameter)]),
        {"model": {"w": one}, "ema": {"w": two}, "step": 3, 1: one, "1": two},
        {"p": parameter, "s": stateful, "l": [one, two, {"x": one}], "t": (one, 1.0, None)},
        {"f": typed, "g": subclass},
        {"z": sparse, "m": Made(REBUILD["_rebuild_meta_tensor_no_storage"], _META)},
        {"u": v3(untyped, [2, 3], [3, 1], torch.float32)},
        {"i": v3(untyped, (3,), (2,), torch.int32), "h": v3(untyped, (5,), (1,), torch.half)},
        {"c": v2(Ref(torch.ComplexFloatStorage, key="2", numel=6), 0, (3,), (2,), {"conj": True})},
        {"n": v2(None, 0, (6,), (1,), {"neg": True}), "size": torch.Size([1, 2])},
        collections.Counter({"a": 1, "b": 2}),
        {"o": collections.OrderedDict({"a": one}), "k": collections.Counter({"c": 3})},
        [one, [two, {"a": one}], {"b": (one, two)}],
        {"w": one, **{f"g{index}": each for index, each in enumerate(_NAMES)}},
        {"q": Made(REBUILD["_rebuild_qtensor"], (quantized, 0, (2, 3), (3, 1), _SCHEME, *_REST))},
        {"d": Made(REBUILD["_rebuild_device_tensor_from_cpu_tensor"], (one, torch.half, *_CPU))},
        {"e": Made(nn.Parameter, (two,)), "v": Made(nn.Parameter, (two,), (True, None, *_HOOKS))},
    ]


class _Keeper(Pickler):
    """Note the storages that a pickle refers to; in a stream, say that each is whole."""

    def __init__(self, file: io.BytesIO, protocol: int, *, streamed: bool) -> None:
        super().__init__(file, protocol)
        self.streamed = streamed
        self.referred: dict[str, int] = {}

    def persistent_id(self, obj: Any) -> Any:
        """Return the reference as torch writes it."""
        reference = super().persistent_id(obj)
        if reference is None:
            return None
        self.referred[reference[2]] = reference[4]
        return (*reference, None) if self.streamed else reference


class Seed(NamedTuple):
    """A pickle, and the storages to which it refers with their numbers of elements."""

    pickled: bytes
    referred: dict[str, int]
    protocol: int
    streamed: bool

    def whole(self, pickled: bytes) -> bytes:
        """Return a file of `pickled`, an edited form of the pickle."""
        return stream(pickled, self.referred) if self.streamed else archive(pickled)


# torch's reader of streams asks a storage for a dtype, which untyped ones have not, and copies a
# tensor of a device before it has read the elements
_NOT_STREAMED = (b"UntypedStorage", b"_from_cpu_tensor")


def seeds(protocol: int = 2, *, streamed: bool = False) -> list[Seed]:
    """The values as pickles, without frames, whose lengths editing would make wrong."""
    made = []
    for value in values():
        file = io.BytesIO()
        pickler = _Keeper(file, protocol, streamed=streamed)
        pickler.dump(value)
        if streamed and any(name in file.getvalue() for name in _NOT_STREAMED):
            continue
        made.append(Seed(unframed(file.getvalue()), pickler.referred, protocol, streamed))
    return made


def unframed(pickled: bytes) -> bytes:
    """Return the pickle without its frames, which only say how much to read at once."""
    starts = [(code.name, at) for code, _, at in pickletools.genops(pickled) if at is not None]
    ends = [at for _, at in starts[1:]] + [len(pickled)]
    parts = zip(starts, ends, strict=True)
    return b"".join(pickled[at:end] for (name, at), end in parts if name != "FRAME")


def pickles() -> list[bytes]:
    """The pickles of protocol 2."""
    return [seed.pickled for seed in seeds()]


_NAMES = [
    *(
        torch.Tensor,
        nn.Parameter,
        vars(torch)["FloatTensor"],
        vars(torch.sparse)["FloatTensor"],
        torch.FloatStorage,
    ),
    *(torch.Size, collections.Counter, collections.OrderedDict, set, REBUILD["_rebuild_tensor_v2"]),
    *(REBUILD["_rebuild_parameter_with_state"], FROM_TYPE, torch.float32, torch.int32),
]
_SCHEME = (torch.per_tensor_affine, 0.5, 1)
_REST: Any = (False, collections.OrderedDict())
_CPU = ("cpu", False)
_HOOKS: Any = (collections.OrderedDict(),)
_META = (torch.float32, (2, 3), (3, 1), False)


def archive(pickled: bytes) -> bytes:
    """A torch archive of that pickle."""
    entries = [Entry("archive/data.pkl", pickled)]
    entries += [Entry(f"archive/data/{key}", data) for key, data in STORAGES.items()]
    return zips.build([*entries, Entry("archive/version", b"3\n")])


def stream(pickled: bytes, referred: dict[str, int]) -> bytes:
    """A stream as torch wrote it before 1.6, of that pickle and its storages."""
    head = [pickle.dumps(part, 2) for part in (legacy_reader.MAGIC, 1001, _SYSTEM)]
    keys = pickle.dumps(list(referred), 2)
    data = [struct.pack("<q", numel) + STORAGES[key] for key, numel in referred.items()]
    return b"".join([*head, pickled, keys, *data])


_ALLOWED = _get_allowed_globals()
_SETS = ("builtins.set", "__builtin__.set")  # torch's unpickler knows them by itself


class _Restricted(pickle.Unpickler):
    """C's unpickler, given the names that torch allows."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what torch's own table says."""
        if f"{module}.{name}" not in _ALLOWED and f"{module}.{name}" not in _SETS:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
        return super().find_class(module, name)


_MODULE = types.SimpleNamespace(
    Unpickler=_Restricted,
    UnpicklingError=pickle.UnpicklingError,
    load=lambda file, **how: _Restricted(file, **how).load(),
    __name__="restricted",
)


def _theirs(data: bytes, protocol: int) -> object:
    file = io.BytesIO(data)
    if protocol == 2:  # the one that torch writes
        return torch.load(file, weights_only=True)
    return torch.load(file, weights_only=False, pickle_module=_MODULE)


def _ours(data: bytes) -> Checkpoint:
    if data.startswith(b"PK"):
        return opened(data)
    return legacy_reader.read(MemoryBytes("x.bin", data))


def compared(data: bytes, protocol: int = 2) -> tuple[str, str]:
    """Who read it ("both", "torch", "ours", "neither"), and what differs; "" if nothing does."""
    theirs: Any
    try:
        theirs = _theirs(data, protocol)
    except (Exception, RecursionError):  # noqa: BLE001  whatever it is, torch does not load it
        theirs = None
        loaded = False
    else:
        loaded = True
    try:
        ours = _ours(data)
    except CgptError:
        return ("torch" if loaded else "neither"), ""
    if not loaded:
        return "ours", ""
    return "both", difference(ours, theirs)


def main() -> int:
    """Exit code 1 if a pickle was read differently."""
    seconds, seed = float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    warnings.simplefilter("ignore")
    rng = random.Random(seed)
    forms = [
        seeds(protocol, streamed=streamed) for protocol in PROTOCOLS for streamed in (False, True)
    ]
    for each in (each for form in forms for each in form):
        outcome = compared(each.whole(each.pickled), each.protocol)
        assert outcome == ("both", ""), f"a seed: {outcome} {each}"
    counts: collections.Counter[str] = collections.Counter()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        form = rng.choice(forms)
        first = rng.choice(form)
        pickled = edited(rng, first.pickled, rng.choice(form).pickled)
        who, what = compared(first.whole(pickled), first.protocol)
        counts[who] += 1
        if what:
            counts["different"] += 1
            container = "stream" if first.streamed else "archive"
            sys.stdout.write(f"{what}\n  protocol {first.protocol}, {container}: {pickled!r}\n")
            sys.stdout.flush()
    sys.stdout.write(f"seed {seed}: {dict(counts)}\n")
    return 1 if counts["different"] else 0


if __name__ == "__main__":
    sys.exit(main())
