"""GPT-2's forward pass (Radford et al. 2019), as functions of arrays. No files are read here.

The code is the same for every backend `xp`. Shapes: b sequences, t new tokens each, p tokens before
them in the cache, s = p + t, h heads of size d, n = h * d the hidden size. Parameters have the
names and layout in which they are stored: a Conv1D's weight is (in, out), so a layer is `x @ weight
+ bias`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol

from cgpt_convert.architectures.activations import ERF
from cgpt_convert.architectures.gpt2 import defaults
from cgpt_convert.architectures.gpt2 import hyperparameters as gpt2_hyperparameters
from cgpt_convert.architectures.gpt2.hyperparameters import Hyperparameters

if TYPE_CHECKING:
    import numpy as np

    from cgpt_convert.inference.backend import Array, Backend
    from cgpt_convert.inference.kv_cache import KVCache

CONFIG_DEFAULTS = defaults.CONFIG_DEFAULTS
hyperparameters, as_config = gpt2_hyperparameters.hyperparameters, gpt2_hyperparameters.as_config
# the names of the parameters in the architecture's TOML; of a block, in the order of `Block`
EMBEDDING, POSITIONS, HEAD, FINAL_NORM = "wte.weight", "wpe.weight", "lm_head.weight", "ln_f"
BLOCK = tuple(
    f"h.{{i}}.{name}"
    for name in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
)

QUERIES = 128  # rows of attention computed at once; their scores stay in the cache


class Affine(NamedTuple):
    """A weight and a bias: for Conv1D (in, out) and (out,), for LayerNorm (n,) and (n,)."""

    weight: Array
    bias: Array


class Block(NamedTuple):
    """The parameters of one layer, in the order of use."""

    ln_1: Affine
    attn_c_attn: Affine
    attn_c_proj: Affine
    ln_2: Affine
    mlp_c_fc: Affine
    mlp_c_proj: Affine


class Parameters(Protocol):
    """The source of parameters: rows of the embeddings, and one block at a time."""

    hyper: Hyperparameters

    def embeddings(self, ids: np.ndarray) -> Array:
        """Return the embeddings (len(ids), n) of these tokens."""

    def positions(self, start: int, stop: int) -> Array:
        """Return the embeddings (stop - start, n) of these positions."""

    def block(self, layer: int) -> Block:
        """Return the parameters of a layer, counted from 0."""


def hidden_states(
    xp: Backend, ids: np.ndarray, parameters: Parameters, cache: KVCache | None = None
) -> Iterator[Array]:
    """Yield the residual stream (b, t, n) after the embeddings, then after each layer.

    `ids` is (b, t), int64. With a cache, they follow the tokens in it, and are in it once the last
    state has been yielded. These are transformers' `hidden_states`, except that transformers
    applies `ln_f` to the last one.
    """
    b, t = ids.shape
    p = cache.length if cache else 0
    hyper = parameters.hyper
    x = parameters.embeddings(ids.reshape(-1))  # (b*t, n)
    x = (x.reshape(b, t, -1) + parameters.positions(p, p + t)).reshape(b * t, -1)  # (b*t, n)
    yield x.reshape(b, t, -1)
    for layer in range(hyper.n_layer):
        x = block(xp, x, parameters.block(layer), hyper, layer, SequenceRows(b, t, cache))
        if cache and layer == hyper.n_layer - 1:
            cache.length += t
        yield x.reshape(b, t, -1)


class SequenceRows(NamedTuple):
    """The sequences in the rows of a (b*t, n) array, and the cache of earlier tokens."""

    b: int
    t: int
    cache: KVCache | None


def block(
    xp: Backend, x: Array, w: Block, hyper: Hyperparameters, layer: int, rows: SequenceRows
) -> Array:
    """Return the residual stream (b*t, n) after the layer."""
    h = layer_norm(xp, x, w.ln_1, hyper.layer_norm_epsilon)  # (b*t, n)
    qkv = linear(xp, h, w.attn_c_attn)  # (b*t, 3n)
    h = attention(xp, qkv, hyper, layer, rows)  # (b*t, n)
    x = x + linear(xp, h, w.attn_c_proj)  # (b*t, n)
    h = layer_norm(xp, x, w.ln_2, hyper.layer_norm_epsilon)  # (b*t, n)
    x += mlp(xp, h, w, hyper.activation)  # (b*t, n)
    return x


def layer_norm(xp: Backend, x: Array, w: Affine, epsilon: float) -> Array:
    """Normalise `x` (..., n) to mean 0 and variance 1 along its last axis, then scale and shift."""
    x = x - xp.mean(x)  # (..., n)
    variance = xp.mean(x * x)  # (..., 1)
    variance += epsilon
    x *= xp.rsqrt_(variance)
    x *= w.weight
    x += w.bias
    return x


def linear(xp: Backend, x: Array, w: Affine) -> Array:
    """Map (rows, in) to (rows, out)."""
    y = xp.matmul(x, w.weight)
    y += w.bias
    return y


def mlp(xp: Backend, x: Array, w: Block, activation: str) -> Array:
    """Apply the feed-forward layer: (b*t, n), n_inner inside, (b*t, n)."""
    x = linear(xp, x, w.mlp_c_fc)  # (b*t, n_inner)
    x = xp.gelu_erf_(x) if activation == ERF else xp.gelu_tanh_(x)
    return linear(xp, x, w.mlp_c_proj)


def attention(
    xp: Backend, qkv: Array, hyper: Hyperparameters, layer: int, rows: SequenceRows
) -> Array:
    """Apply causal self-attention: (b*t, 3n) to (b*t, n)."""
    b, t, cache = rows
    q, k, v = split_heads(qkv, b, t, hyper.n_head)  # each (b, h, t, d)
    if cache:
        k, v = cache.extended(layer, k, v)  # (b, h, s, d)
    q = q * hyper.score_scale(layer)
    out = xp.empty((b, t, hyper.n_head, q.shape[-1]))  # (b, t, h, d)
    into = out.swapaxes(1, 2)  # (b, h, t, d)
    mask = xp.causal_mask(min(t, QUERIES)) if t > 1 else None
    p = k.shape[2] - t

    def some(heads: slice) -> None:
        for start in range(0, t, QUERIES):
            stop = min(start + QUERIES, t)
            seen = p + stop  # no query of this block attends beyond it
            into[:, heads, start:stop] = attend(
                xp, q[:, heads, start:stop], k[:, heads, :seen], v[:, heads, :seen], mask
            )

    xp.share(hyper.n_head, b * t * (p + t) * hyper.n_embd, some)
    return out.reshape(b * t, -1)


def attend(xp: Backend, q: Array, k: Array, v: Array, mask: Array | None) -> Array:
    """Return softmax(q k^T + mask) v: (b, h, m, d), for the last m of s tokens. `q` is scaled.

    A single query needs no mask.
    """
    m = q.shape[2]
    scores = q @ k.swapaxes(-1, -2)  # (b, h, m, s)
    if mask is not None:
        scores[..., -m:] += mask[:m, :m]
    scores -= xp.amax(scores)
    scores = xp.exp_(scores)
    out = scores @ v  # (b, h, m, d)
    out /= xp.sum(scores)
    return out


def split_heads(qkv: Array, b: int, t: int, n_head: int) -> tuple[Array, Array, Array]:
    """Return queries, keys and values, each (b, h, t, d), as views of (b*t, 3n)."""
    parts = qkv.reshape(b, t, 3, n_head, -1)  # (b, t, 3, h, d)
    q, k, v = (parts[:, :, which].swapaxes(1, 2) for which in range(3))
    return q, k, v


def final_norm(xp: Backend, x: Array, ln_f: Affine, hyper: Hyperparameters) -> Array:
    """Return the last residual stream (..., n) after the final LayerNorm."""
    return layer_norm(xp, x, ln_f, hyper.layer_norm_epsilon)


def logits(xp: Backend, x: Array, head: Array) -> Array:
    """Map normed (rows, n) to (rows, k) with the head's rows `head` (k, n), all or a part."""
    return xp.matmul(x, head.swapaxes(0, 1))
