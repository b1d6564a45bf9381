"""The table of known models: sizes, published figures and the order of their storages."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from cgpt_convert.architectures.schema import LAYERS, Architecture, TensorPosition, architectures
from cgpt_convert.architectures.toml_files import parsed, reading
from cgpt_convert.core.errors import BadRequest
from cgpt_convert.core.text import quoted
from cgpt_convert.tensors.dtypes import FLOAT32
from cgpt_convert.tensors.shapes import c_strides


class RawTensorLayout(NamedTuple):
    """A tensor stored at the start of a file in a raw folder. Strides count elements."""

    file: str  # relative to the folder; parts are separated by `/`
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class StorageOrder(NamedTuple):
    """The order in which a family's checkpoints number their storages."""

    first: tuple[str, ...]
    layer: tuple[str, ...]
    last: tuple[str, ...]
    conv1d_transposed: bool  # whether Conv1D weights are stored as (out, in)

    def count(self, n_layer: int) -> int:
        """Return the number of storages of a checkpoint with `n_layer` layers, masks included."""
        return len(self.first) + n_layer * len(self.layer) + len(self.last)


class KnownModel(NamedTuple):
    """One row of `mappings/models/`. Values that were not published are None or empty."""

    title: str  # as published, without the owner
    family: str
    architecture: str
    sizes: Mapping[str, int]
    n_head: int
    activation: str  # as config.json's activation_function
    layer_norm_epsilon: float
    license: str  # as in model cards: "apache-2.0"
    published: str  # the number of parameters, as published by its authors
    training_tokens: int | None = None
    training_flops: float | None = None
    pile_loss: float | None = None  # nats per token on the Pile's test set, from the model card
    pile_loss_paper: float | None = None  # from the paper, which may differ
    training: Mapping[str, Any] = MappingProxyType({})
    zero_shot: Mapping[str, float] = MappingProxyType({})  # task of lm-eval -> published accuracy
    five_shot: Mapping[str, float] = MappingProxyType({})  # the same, with five examples
    storages: StorageOrder | None = None
    shard_storages: tuple[int, ...] = ()  # number in each shard; empty for a single file

    @property
    def name(self) -> str:
        """The name of the model for users: the title in lower case."""
        return self.title.lower()

    def is_named(self, name: object) -> bool:
        """Return whether `name` is this model's, ignoring case and a leading path or owner."""
        return isinstance(name, str) and name.rstrip("/").rpartition("/")[2].lower() == self.name

    @property
    def d_head(self) -> int:
        """The size of one attention head."""
        return self.sizes["n_embd"] // self.n_head

    @property
    def parameters(self) -> int:
        """The exact number of parameters, computed from the shapes; tied tensors count once."""
        architecture = architectures()[self.architecture]
        places = architecture.places(self.sizes[LAYERS])
        rules = [place.rule for place in places if not place.rule.tied_to]
        return sum(math.prod(rule.shape(self.sizes) or ()) for rule in rules)

    @property
    def float32_nbytes(self) -> int:
        """The computed size of the parameters as float32, in bytes, without masks and headers."""
        return self.parameters * FLOAT32.nbytes

    @property
    def file_nbytes(self) -> int | None:
        """The computed size of all storages in the vendor's layout, masks included, in bytes.

        None if the order of storages is unknown. Archives add about 300 bytes per storage.
        """
        if self.storages is None:
            return None
        places = _order(self.storages, self.sizes)
        return sum(self._storage_nbytes(name) for name, _layer in places)

    def _storage_nbytes(self, name: str) -> int:
        rules = architectures()[self.architecture].rules
        if name in rules:
            return math.prod(rules[name].shape(self.sizes) or ()) * FLOAT32.nbytes
        if name.endswith(".masked_bias"):
            return FLOAT32.nbytes
        return self.sizes["n_positions"] ** 2  # a causal mask, one byte per element


@functools.cache
def models() -> tuple[KnownModel, ...]:
    """Return every known model, by file name and then in file order. The files are read once.

    Raises Malformed, naming the file, if a file is invalid.
    """
    rows: list[KnownModel] = []
    for path, content in parsed("models"):
        with reading(path):
            rows += _parse(content)
    return tuple(rows)


def find_model(name: str) -> KnownModel:
    """Return the model called `name`, ignoring case and a leading owner (`cerebras/`).

    Raises BadRequest, listing the known names, if there is none.
    """
    wanted = name.rpartition("/")[2].lower()
    for model in models():
        if model.name == wanted:
            return model
    known = ", ".join(model.name for model in models())
    raise BadRequest(f"unknown model {quoted(name)}", hint=f"known models: {known}")


def storage_mapping(model_name: str) -> dict[str, RawTensorLayout]:
    """Return where each parameter is stored in a raw folder of the model, by canonical name.

    Masks and the tied head are omitted, since they have no values of their own. Raises BadRequest
    for an unknown model and for a model without a built-in mapping.
    """
    model = find_model(model_name)
    if model.storages is None:
        ready = ", ".join(model.name for model in models() if model.storages)
        raise BadRequest(
            f"there is no built-in mapping for {model.name}", hint=f"built-in mappings: {ready}"
        )
    architecture = architectures()[model.architecture]
    mapping = {}
    files = _files(model.storages.count(model.sizes[LAYERS]), model.shard_storages)
    for (name, layer), file in zip(_order(model.storages, model.sizes), files, strict=True):
        if name in architecture.skipped:
            continue
        place = TensorPosition(architecture.rules[name], layer)
        shape = place.rule.shape(model.sizes) or ()
        strides = c_strides(shape)
        if place.rule.conv1d and model.storages.conv1d_transposed:
            strides = c_strides(shape[::-1])[::-1]
        mapping[place.name(architecture.canonical)] = RawTensorLayout(
            file, FLOAT32.name, shape, strides
        )
    return mapping


def _order(storages: StorageOrder, sizes: Mapping[str, int]) -> Iterator[tuple[str, int | None]]:
    """Yield the content of each storage: the name of a rule or mask, and the layer."""
    yield from ((name, None) for name in storages.first)
    for layer in range(sizes[LAYERS]):
        yield from ((name, layer) for name in storages.layer)
    yield from ((name, None) for name in storages.last)


def _files(count: int, shards: tuple[int, ...]) -> Iterator[str]:
    """Yield the storages' files in order: 0, 1, 2 ...; with shards 1/0, 1/1 ... 2/0 ...."""
    if not shards:
        yield from map(str, range(count))
    for shard, part in enumerate(shards, 1):
        yield from (f"{shard}/{number}" for number in range(part))


def _parse(content: dict[str, Any]) -> Iterator[KnownModel]:
    architecture = architectures()[content["architecture"]]
    tables = content.get("storages", {})
    orders = {name: _storages(table, architecture) for name, table in tables.items()}
    family = ("family", "architecture", "activation", "layer_norm_epsilon", "license")
    common = {key: content[key] for key in family}
    for row in content["models"]:
        sizes = content["sizes"] | row["sizes"]
        if sizes.keys() != architecture.symbols:
            raise ValueError(
                f"{row['title']} has the sizes {sorted(sizes)}, "
                f"expected {sorted(architecture.symbols)}"
            )
        storages = orders[row["storages"]] if "storages" in row else None
        shards = tuple(row.get("shard_storages", ()))
        if shards and (storages is None or sum(shards) != storages.count(sizes[LAYERS])):
            raise ValueError(
                f"the shard_storages of {row['title']} do not add up to its storages: {shards}"
            )
        made = {"sizes": sizes, "storages": storages, "shard_storages": shards}
        for shots in {"zero_shot", "five_shot"} & row.keys():
            made[shots] = dict(zip(content["tasks"], row[shots], strict=True))
        yield KnownModel(**(common | row | made))


def _storages(table: dict[str, Any], architecture: Architecture) -> StorageOrder:
    first, layer, last = (tuple(table[part]) for part in ("first", "layer", "last"))
    unknown = {*first, *layer, *last} - architecture.rules.keys() - architecture.skipped
    if unknown or table["conv1d"] not in ("out_in", "in_out"):
        raise ValueError(
            f"invalid storages: unknown names {sorted(unknown)}, conv1d {table['conv1d']!r}"
        )
    return StorageOrder(first, layer, last, conv1d_transposed=table["conv1d"] == "out_in")
