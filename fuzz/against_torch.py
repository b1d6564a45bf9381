"""`python -m fuzz.against_torch SECONDS [SEED]`: our reading of edited pickles against torch's.

Each pickle of a torch archive is edited by whole opcodes. Where `torch.load(weights_only=True)` and
this package both read it, names, dtypes, shapes and every element must be equal; an entry that we
list as unreadable counts as rejected. Exit code 1 if a pickle was read differently.
"""

from __future__ import annotations

import collections
import io
import random
import sys
import time
import warnings
from typing import Any

import torch
from torch import nn

from cgpt_convert.core.errors import CgptError
from tests.helpers import zips
from tests.helpers.forged_pickles import Made, Pickler, Ref, v2, v3
from tests.helpers.mutations import edited
from tests.helpers.torch_agreement import difference, opened
from tests.helpers.zips import Entry

REBUILD: dict[str, Any] = vars(torch._utils)  # noqa: SLF001  what pickles name
FROM_TYPE: Any = vars(torch._tensor)["_rebuild_from_type_v2"]  # noqa: SLF001
LAYOUT: Any = vars(torch.serialization)["_get_layout"]
STORAGES = {"0": bytes(range(24)), "1": bytes(range(100, 124)), "2": bytes(range(48))}


def pickles() -> list[bytes]:
    """Small pickles of every form that torch's restricted unpickler takes."""
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
    values: list[Any] = [
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
    made = []
    for value in values:
        file = io.BytesIO()
        Pickler(file, 2).dump(value)
        made.append(file.getvalue())
    return made


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


def compared(data: bytes) -> tuple[str, str]:
    """Who read it ("both", "torch", "ours", "neither"), and what differs; "" if nothing does."""
    try:
        theirs = torch.load(io.BytesIO(data), weights_only=True)
    except (Exception, RecursionError):  # noqa: BLE001  whatever it is, torch does not load it
        theirs = None
        loaded = False
    else:
        loaded = True
    try:
        ours = opened(data)
    except CgptError:
        return ("torch" if loaded else "neither"), ""
    if not loaded:
        return "ours", ""
    return "both", difference(ours, theirs)


def main() -> int:
    """Exit code 1 if a pickle was read differently."""
    seconds, seed = float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    warnings.simplefilter("ignore")
    rng, seeds = random.Random(seed), pickles()
    for pickled in seeds:
        who, what = compared(archive(pickled))
        assert (who, what) == ("both", ""), f"a seed: {who} {what}"
    counts: collections.Counter[str] = collections.Counter()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pickled = edited(rng, rng.choice(seeds), rng.choice(seeds))
        who, what = compared(archive(pickled))
        counts[who] += 1
        if what:
            counts["different"] += 1
            sys.stdout.write(f"{what}\n  {pickled!r}\n")
            sys.stdout.flush()
    sys.stdout.write(f"seed {seed}: {dict(counts)}\n")
    return 1 if counts["different"] else 0


if __name__ == "__main__":
    sys.exit(main())
