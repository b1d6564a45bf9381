"""The models that are known by name: sizes, what was published of them, where their storages lie."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from cgpt_convert.architecture import LAYERS, Place, architectures, fill, template
from cgpt_convert.dtypes import FLOAT32
from cgpt_convert.errors import BadRequest
from cgpt_convert.mapping_files import parsed, reading
from cgpt_convert.tensor import c_strides


class StoredAs(NamedTuple):
    """A tensor in a folder of bare files: the file starts with it. Strides count elements."""

    file: str  # relative to the folder; parts are separated by `/`
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Storages(NamedTuple):
    """The order in which a family's checkpoints number their storages."""

    first: tuple[str, ...]
    layer: tuple[str, ...]
    last: tuple[str, ...]
    conv1d_transposed: bool  # do the bytes of a Conv1D weight lie (out, in)?


@dataclass(frozen=True, eq=False)
class Model:
    """One row of `mappings/models/`. What was not published is None or empty."""

    title: str  # as published, without the owner
    family: str
    architecture: str
    sizes: Mapping[str, int]
    n_head: int
    activation: str  # as config.json's activation_function
    layer_norm_epsilon: float
    published: str  # the number of parameters, as its authors write it
    training_tokens: int | None = None
    training_flops: float | None = None
    pile_loss: float | None = None  # nats a token, on the Pile's test set; from the model card
    pile_loss_paper: float | None = None  # from the paper, where it may differ
    training: Mapping[str, Any] = field(default_factory=dict)
    storages: Storages | None = None
    shard_storages: tuple[int, ...] = ()  # how many each shard has; empty for a single file

    @property
    def name(self) -> str:
        """What users call it: the title in lower case."""
        return self.title.lower()

    @property
    def d_head(self) -> int:
        """The width of one attention head."""
        return self.sizes["n_embd"] // self.n_head

    @property
    def parameters(self) -> int:
        """The exact number of parameters, tied tensors counted once; from the shapes."""
        architecture = architectures()[self.architecture]
        places = architecture.places(self.sizes[LAYERS])
        rules = [place.rule for place in places if not place.rule.tied_to]
        return sum(math.prod(rule.shape(self.sizes) or ()) for rule in rules)

    @property
    def float32_nbytes(self) -> int:
        """The bytes of the parameters as float32, computed; a file adds masks and its header."""
        return self.parameters * FLOAT32.nbytes


@functools.cache
def models() -> tuple[Model, ...]:
    """Every known model: files by name, the rows of each in its order. Read once.

    Raises Malformed, naming the file, where one is not of the form.
    """
    rows: list[Model] = []
    for path, content in parsed("models"):
        with reading(path):
            rows += _parse(content)
    return tuple(rows)


def find_model(name: str) -> Model:
    """The model of that name; case and an owner before it (`cerebras/`) do not matter.

    Raises BadRequest, listing the names there are, for others.
    """
    wanted = name.rpartition("/")[2].lower()
    for model in models():
        if model.name == wanted:
            return model
    known = ", ".join(model.name for model in models())
    raise BadRequest(f"no model is called {name!r}", hint=f"known are: {known}")


def storage_mapping(model_name: str) -> dict[str, StoredAs]:
    """Where each parameter lies in a folder of a model's bare storages, under canonical names.

    The masks and the tied head, which have no values of their own, are left out. Raises BadRequest
    for a model that is not known or has no ready mapping.
    """
    model = find_model(model_name)
    if model.storages is None:
        ready = ", ".join(model.name for model in models() if model.storages)
        raise BadRequest(f"there is no ready mapping of {model.name}", hint=f"there are: {ready}")
    architecture = architectures()[model.architecture]
    mapping = {}
    for place, file in zip(_storage_order(model), _files(model), strict=True):
        if place is not None:
            stored = _stored(place, file, model)
            mapping[place.name(architecture.canonical)] = stored
    return mapping


def _storage_order(model: Model) -> Iterator[Place | None]:
    """What each storage holds, None for a mask."""
    if model.storages is None:
        return
    first, layer, last, _ = model.storages
    names = [*first]
    names += [fill(name, number) for number in range(model.sizes[LAYERS]) for name in layer]
    architecture = architectures()[model.architecture]
    for name in (*names, *last):
        pattern, number = template(name)
        masked = pattern in architecture.skipped
        yield None if masked else Place(architecture.rules[pattern], number)


def _files(model: Model) -> Iterator[str]:
    """The storages' files in order: 0, 1, 2 ..., or 1/0, 1/1 ... 2/0 ... where there are shards."""
    for shard, count in enumerate(model.shard_storages, 1):
        yield from (f"{shard}/{number}" for number in range(count))
    if not model.shard_storages:
        yield from map(str, range(sum(1 for _ in _storage_order(model))))


def _stored(place: Place, file: str, model: Model) -> StoredAs:
    shape = place.rule.shape(model.sizes) or ()
    strides = c_strides(shape)
    if place.rule.conv1d and model.storages and model.storages.conv1d_transposed:
        strides = c_strides(shape[::-1])[::-1]
    return StoredAs(file, FLOAT32.name, shape, strides)


def _parse(content: dict[str, Any]) -> Iterator[Model]:
    orders = {name: _storages(table) for name, table in content.get("storages", {}).items()}
    common = {key: content[key] for key in ("family", "architecture", "activation")}
    common["layer_norm_epsilon"] = content["layer_norm_epsilon"]
    architecture = architectures()[common["architecture"]]
    for row in content["models"]:
        sizes = content["sizes"] | row["sizes"]
        if sizes.keys() != architecture.symbols:
            raise ValueError(f"{row['title']}: sizes {sorted(sizes)}")
        model = Model(**common, **(row | {"sizes": sizes, "storages": None, "shard_storages": ()}))
        yield _with_storages(model, orders, row)


def _with_storages(model: Model, orders: dict[str, Storages], row: dict[str, Any]) -> Model:
    """The model with its storages' order, whose length must be what the shards add up to."""
    if "storages" not in row:
        return model
    shards = tuple(row.get("shard_storages", ()))
    whole = replace(model, storages=orders[row["storages"]], shard_storages=shards)
    if len(list(_files(whole))) != len(list(_storage_order(whole))):
        raise ValueError(f"{model.title}: its shards have another number of storages")
    return whole


def _storages(table: dict[str, Any]) -> Storages:
    if table["conv1d"] not in ("out_in", "in_out"):
        raise ValueError(f"conv1d = {table['conv1d']!r}")
    names = (tuple(table[part]) for part in ("first", "layer", "last"))
    return Storages(*names, conv1d_transposed=table["conv1d"] == "out_in")
