"""What demo-gpt-java does with a folder of raw files, by its rules and none of our code.

A model folder has `model.properties` and `parameters/`. See its Settings.java (grammar, defaults),
ParameterReader.java (files, orders), QueryKeyValueParameters.java and TransformerDecoder.java.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def properties(path: Path) -> dict[str, str]:
    """`Settings.readProperties`, where lines that it would only warn of are errors."""
    found: dict[str, str] = {}
    for line in path.read_bytes().decode("ascii").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        key, value = line.split("=")
        assert key.strip() not in found
        found[key.strip()] = value.strip()
    return found


class Program:
    """A model that was loaded; `logits` runs it on token ids."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said = properties(folder / "model.properties")
        assert self.said["data.type"] == "FLOAT32"
        assert self.said["position.embedding"] == "LEARNED"
        self.order = "<" if self.said.get("byte.order") == "LITTLE_ENDIAN" else ">"
        self.width = int(self.said["hidden.size"])
        self.inner = int(self.said["feedforward.size"])
        self.n_head = int(self.said["attention.head.count"])

    def read(self, name: str, *shape: int) -> Array:
        """A file of exactly that many numbers; by its standard name if it is not mapped."""
        path = self.folder / "parameters" / self.said.get(f"file.{name}", f"{name}.dat")
        numbers = np.fromfile(path, f"{self.order}f4")
        assert numbers.size == math.prod(shape), f"incorrect file size of {path}"
        return numbers.reshape(shape)

    def weights(self, name: str, rows: int, columns: int) -> Array:
        """(out, in), however they are stored."""
        if self.said.get("weights.transposed") == "true":
            return self.read(name, columns, rows).T
        return self.read(name, rows, columns)

    def query_key_value(self, layer: str) -> list[tuple[Array, Array]]:
        """Weights and biases of the three; a merged matrix is read as it lies, (3*out, in)."""
        if self.said.get("merged.qkv") != "true":
            return [
                (
                    self.weights(f"{layer}att.{part}.w", self.width, self.width),
                    self.read(f"{layer}att.{part}.b", self.width),
                )
                for part in ("query", "key", "value")
            ]
        assert self.said.get("weights.transposed") != "true", "it reads a merged matrix as it lies"
        merged = self.read(f"{layer}att.query.key.value.w", 3, self.width, self.width)
        biases = self.read(f"{layer}att.query.key.value.b", 3, self.width)
        return list(zip(merged, biases, strict=True))

    def norm(self, x: Array, name: str) -> Array:
        epsilon = np.float32(self.said["epsilon"].removesuffix("f"))
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon)
        return x * self.read(f"{name}.w", self.width) + self.read(f"{name}.b", self.width)

    def apply(self, x: Array, name: str, rows: int, columns: int) -> Array:
        return x @ self.weights(f"{name}.w", rows, columns).T + self.read(f"{name}.b", rows)

    def attention(self, x: Array, layer: str) -> Array:
        split = (len(x), self.n_head, self.width // self.n_head)
        query, key, value = (
            (x @ weights.T + biases).reshape(split).swapaxes(0, 1)
            for weights, biases in self.query_key_value(layer)
        )
        scores = query @ key.swapaxes(1, 2) / np.float32(self.said["attention.dividend"])
        scores = np.where(np.tri(len(x), dtype=bool), scores, -np.inf)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (scores / scores.sum(-1, keepdims=True)) @ value
        flat = mixed.swapaxes(0, 1).reshape(len(x), self.width)
        return self.apply(flat, f"{layer}att.proj", self.width, self.width)

    def logits(self, ids: Sequence[int]) -> Array:
        assert self.said["pre.normalization"] == "true"
        tokens = self.read("input/wte", int(self.said["token.count"]), self.width)
        positions = self.read("input/wpe", int(self.said["max.length"]), self.width)
        x = tokens[list(ids)] + positions[: len(ids)]
        for number in range(1, int(self.said["decoder.count"]) + 1):
            assert self.said[f"attention.type.{number}"] == "global"
            layer = f"decoder{number}/"
            x = x + self.attention(self.norm(x, f"{layer}att.norm"), layer)
            hidden = self.norm(x, f"{layer}mlp.norm")
            hidden = self.apply(hidden, f"{layer}mlp.layer1", self.inner, self.width)
            x = x + self.apply(gelu(hidden), f"{layer}mlp.layer2", self.width, self.inner)
        found: Array = self.norm(x, "output/norm") @ tokens.T
        return found


def gelu(x: Array) -> Array:
    """The tanh form, the only one that the program has."""
    found: Array = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return found.astype(np.float32)
