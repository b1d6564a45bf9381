"""The one contract of all formats: what a plan says, its own reader finds again.

Formats of installed plug-ins are checked, too. What a format cannot store it refuses with a reason;
GGUF and the formats of plug-ins may refuse aliases, metadata and shapes.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cgpt_convert.core.errors import BadRequest, Unsupported
from cgpt_convert.formats import registry
from cgpt_convert.formats.registry import Format
from cgpt_convert.plan import FilePlan
from cgpt_convert.tensors.dtypes import BY_NAME, TABLE, DType
from cgpt_convert.tensors.tensor import Storage, Tensor
from tests.helpers import samples
from tests.helpers.render import dense, render, request, tensor_bytes, write

FORMATS = registry.writable()
STORE_ALL = {"npy", "npz", "parameters", "safetensors", "torch"}  # aliases, metadata, shapes


@pytest.fixture(params=FORMATS)
def fmt(request: pytest.FixtureRequest) -> Format:
    return registry.by_name(request.param)


def name_of(fmt: Format) -> str:
    return f"out{fmt.suffix}"


def held(fmt: Format) -> tuple[DType, ...]:
    """The element types that the format writes."""
    assert fmt.dtypes is not None
    return fmt.dtypes()


def planned(fmt: Format, *tensors: Tensor, **rest: Any) -> list[FilePlan]:
    """The plan of a request that the format may refuse, which skips the test."""
    try:
        return fmt.planned(request(name_of(fmt), *tensors, **rest))
    except Unsupported as error:
        if fmt.name in STORE_ALL:
            raise
        pytest.skip(error.message)


def stored(fmt: Format, tensors: list[Tensor]) -> list[Tensor]:
    """The tensors that the format stores, which are some of every type that it claims."""
    kept = [tensor for tensor in tensors if fmt.name in STORE_ALL or is_stored(fmt, tensor)]
    assert {tensor.dtype for tensor in kept} == set(held(fmt))
    return kept


def is_stored(fmt: Format, tensor: Tensor) -> bool:
    try:
        return bool(fmt.planned(request(name_of(fmt), tensor)))
    except Unsupported:
        return False


def placed(fmt: Format, files: dict[str, bytes], folder: Path) -> str:
    """Write the files and return the path that the format is to read."""
    write(files, folder)
    return str(folder if fmt.folder else folder / name_of(fmt))


def test_every_claimed_type_and_shape_comes_back(fmt: Format, tmp_path: Path) -> None:
    tensors = [
        tensor
        for tensor in samples.every(held(fmt))
        if tensor.shape or tensor.dtype.name != "float4_e2m1fn_x2"
    ]
    tensors = stored(fmt, tensors)
    files = render(fmt.planned(request(name_of(fmt), *tensors)))
    found = fmt.read(placed(fmt, files, tmp_path))
    assert sorted(found) == sorted(tensor.name for tensor in tensors)
    for tensor in tensors:
        back = found[tensor.name]
        assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
        assert tensor_bytes(back) == tensor_bytes(tensor)
        assert back.name == tensor.name


def test_views_are_written_in_c_order(fmt: Format, tmp_path: Path) -> None:
    tensor = samples.tensor("w", BY_NAME["float32"], (3, 4)).transposed()
    files = render(fmt.planned(request(name_of(fmt), tensor)))
    back = fmt.read(placed(fmt, files, tmp_path))["w"]
    assert back.shape == (4, 3)
    assert tensor_bytes(back) == tensor_bytes(tensor)


def test_big_endian_becomes_little(fmt: Format, tmp_path: Path) -> None:
    plain = dense("w", "int32", (2,), (1).to_bytes(4, "big") + (7).to_bytes(4, "big"))
    swapped = Storage(plain.storage.source, 0, 8, "w", "big").whole()
    tensor = type(plain)("w", plain.stored, (2,), (1,), 0, swapped.storage)
    files = render(fmt.planned(request(name_of(fmt), tensor)))
    back = fmt.read(placed(fmt, files, tmp_path))["w"]
    assert tensor_bytes(back) == (1).to_bytes(4, "little") + (7).to_bytes(4, "little")


def test_aliases_share_their_keepers_view(fmt: Format, tmp_path: Path) -> None:
    kept, other = (samples.tensor(name, BY_NAME["float16"], (2, 3)) for name in ("wte", "x"))
    aliases = {"lm_head": "wte", "again": "wte"}
    plans = planned(fmt, kept, other, aliases=aliases)
    found = fmt.read(placed(fmt, render(plans), tmp_path))
    assert sorted(found) == ["again", "lm_head", "wte", "x"]
    assert found["lm_head"].view == found["wte"].view == found["again"].view
    assert found["x"].view != found["wte"].view
    assert found.ties == dict.fromkeys(("lm_head", "again"), "wte")
    assert found["lm_head"].name == "lm_head"


def test_metadata_comes_back(fmt: Format, tmp_path: Path) -> None:
    plain = {"license": "Apache-2.0", "note": 'line\n"quoted" \\ é 🦊 \x7f'}
    metadata = {**plain, "": ""} if fmt.name in STORE_ALL else plain
    tensor = samples.tensor("w", BY_NAME["float32"])
    files = render(planned(fmt, tensor, metadata=metadata))
    found = fmt.read(placed(fmt, files, tmp_path))
    assert found.metadata.items() >= metadata.items()


def test_no_tensors_at_all_is_a_valid_file(fmt: Format, tmp_path: Path) -> None:
    files = render(fmt.planned(request(name_of(fmt))))
    assert not fmt.read(placed(fmt, files, tmp_path))


def test_the_order_of_equal_types_by_name_is_kept(fmt: Format, tmp_path: Path) -> None:
    tensors = [samples.tensor(name, BY_NAME["float32"]) for name in ("a", "b", "c")]
    files = render(fmt.planned(request(name_of(fmt), *tensors)))
    assert list(fmt.read(placed(fmt, files, tmp_path))) == ["a", "b", "c"]


def test_plans_are_deterministic(fmt: Format) -> None:
    tensors = [samples.tensor(name, BY_NAME["bfloat16"]) for name in ("b", "a")]
    rest = {"metadata": {"z": "1", "y": "2"}, "aliases": {"q": "a", "p": "b"}}
    if fmt.name not in STORE_ALL:
        rest = {}
    once, twice = (render(fmt.planned(request(name_of(fmt), *tensors, **rest))) for _ in range(2))
    assert once == twice


def test_unicode_names_come_back(fmt: Format, tmp_path: Path) -> None:
    names = ["größe", "重み", "a b", "layers[0].w", "x/y:0", "🦊"]
    tensors = [samples.tensor(name, BY_NAME["int8"], (2,), i) for i, name in enumerate(names)]
    files = render(fmt.planned(request(name_of(fmt), *tensors)))
    found = fmt.read(placed(fmt, files, tmp_path))
    assert sorted(found) == sorted(names)
    assert all(tensor_bytes(found[t.name]) == tensor_bytes(t) for t in tensors)


def test_all_unholdable_types_are_named(fmt: Format) -> None:
    misfits = [row for row in TABLE if row not in held(fmt)]
    if not misfits:
        pytest.skip("it holds every type")
    tensors = [samples.tensor(f"t.{row.name}", row) for row in misfits]
    with pytest.raises(Unsupported) as caught:
        fmt.planned(request(name_of(fmt), *tensors, samples.tensor("fine", BY_NAME["int8"])))
    assert all(f"'t.{row.name}' ({row.name})" in caught.value.message for row in misfits)
    assert "fine" not in caught.value.message
    assert "--exclude" in caught.value.hint


@pytest.mark.parametrize(
    "aliases", [{"a": "gone"}, {"w": "w"}, {"w": "v"}, {"a": "b", "b": "w"}, {"\udc80": "w"}]
)
def test_impossible_aliases_are_refused(fmt: Format, aliases: dict[str, str]) -> None:
    tensors = [samples.tensor(name, BY_NAME["int8"]) for name in ("w", "v")]
    with pytest.raises(Unsupported):
        fmt.planned(request(name_of(fmt), *tensors, aliases=aliases))


def test_impossible_names_are_refused(fmt: Format) -> None:
    twice = [samples.tensor("w", BY_NAME["int8"]) for _ in range(2)]
    with pytest.raises(Unsupported, match="the same name"):
        fmt.planned(request(name_of(fmt), *twice))
    with pytest.raises(Unsupported, match="Unicode"):
        fmt.planned(request(name_of(fmt), samples.tensor("\ud800", BY_NAME["int8"])))


def test_a_shard_size_is_honoured_or_refused(fmt: Format) -> None:
    tensors = [samples.tensor(name, BY_NAME["int8"], (4,)) for name in ("w", "v")]
    if fmt.sharded:
        assert len(fmt.planned(request(name_of(fmt), *tensors, max_shard_nbytes=4))) == 3
    else:
        with pytest.raises(BadRequest, match="shards"):
            fmt.planned(request(name_of(fmt), *tensors, max_shard_nbytes=4))


def test_a_missing_file_is_a_bad_request(fmt: Format, tmp_path: Path) -> None:
    with pytest.raises(BadRequest):
        fmt.read(str(tmp_path / "none"))


def test_the_registry_finds_formats_by_name_and_suffix() -> None:
    assert {"npy", "npz", "safetensors", "torch"}.issubset(registry.names())
    for name in registry.names():
        assert name == registry.by_name(name).name
    found = registry.for_suffix("/some/where/Model.SafeTensors")
    assert found is registry.by_name("safetensors")
    assert registry.for_suffix("x.npz") is registry.by_name("npz")
    for name in ("pytorch_model.bin", "x.pt", "x.PTH"):
        assert registry.for_suffix(name) is registry.by_name("torch")
    assert registry.for_suffix("model.ckpt") is None
    assert registry.for_suffix("npz") is None
    with pytest.raises(BadRequest, match="unknown format") as caught:
        registry.by_name("../npz")
    assert "npz" in caught.value.hint


LIGHT = """
import sys
from cgpt_convert.formats import registry as formats
from cgpt_convert.formats.registry import Format
assert not [name for name in sys.modules if name.startswith("cgpt_convert.formats.gguf")]
for name in ("safetensors", "npz", "npy"):
    formats.by_name(name)
formats.by_name("safetensors").read(sys.argv[1])
formats.by_name("npz").read(sys.argv[2])
formats.by_name("npy").read(sys.argv[3])
heavy = {"numpy", "zipfile", "torch", "pathlib", "hashlib", "safetensors"} & set(sys.modules)
assert not heavy, heavy
"""


def test_planning_and_reading_import_nothing_heavy(tmp_path: Path) -> None:
    tensor = samples.tensor("w", BY_NAME["bfloat16"])
    paths = []
    for name in ("safetensors", "npz", "npy"):
        fmt = registry.by_name(name)
        files = render(fmt.planned(request(name_of(fmt), tensor)))
        paths.append(placed(fmt, files, tmp_path / name))
    subprocess.run([sys.executable, "-c", LIGHT, *paths], check=True)
