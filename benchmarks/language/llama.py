"""stories260K, a trained causal language model, in plain JAX.

A Llama of 260,032 parameters (5 layers, 64 wide, 512 tokens) that tells short stories.
It runs in seconds whatever runs on a causal model. Two files are read from the folder
`stories260K`: the parameters, by their names in an .npz, and the tokens with scores.
"""

import struct
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from tokenizers import Tokenizer, models, normalizers

from benchmarks.language import opt

FIRST, PADDING = 1, 2  # <s>, and </s>, which occurs in no text.
_HEAD, _EPS, _BASE = 8, 1e-5, 10_000.0


def load(folder: Path) -> dict[str, Any]:
    """Return the parameters, with layers stacked."""
    path = folder / "stories260K.npz"
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist: pass the folder with `stories260K` as --data-dir."
        )
    with np.load(path) as file:
        found = {name: jnp.asarray(file[name]) for name in file.files}
    outside = {name: found.pop(name) for name in ("tok_embeddings", "final_norm")}
    return {**outside, "layers": found}


def tokenizer(folder: Path) -> Tokenizer:
    """Return a tokenizer that joins pairs in the order of the scores of the results."""
    data = (folder / "tok512.bin").read_bytes()
    place, vocabulary = 4, {}
    while place < len(data):
        _, size = struct.unpack_from("fi", data, place)
        place += 8
        vocabulary[data[place : place + size].decode()] = len(vocabulary)
        place += size
    merges = [
        (token[:i], token[i:])
        for token in vocabulary  # The file has them in this order.
        for i in range(1, len(token))
        if token[:i] in vocabulary and token[i:] in vocabulary
    ]
    found = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True))
    found.normalizer = normalizers.Prepend(" ")
    return found


def hidden(params: Any, ids: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Return the output of the last layer at each token: ids (b, t) -> (b, t, 64)."""
    mask = jnp.ones_like(ids) if mask is None else mask
    places = jnp.cumsum(mask, axis=1) * mask - 1
    length = ids.shape[1]
    seen = jnp.tril(jnp.ones((length, length), bool))[None] & (mask[:, None, :] > 0)

    def layer(x: jax.Array, p: Any) -> tuple[jax.Array, None]:
        x = x + _attention(p, _norm(p["attn_norm"], x), places, seen)
        h = _norm(p["ffn_norm"], x)
        h = jax.nn.silu(h @ p["w1"].T) * (h @ p["w3"].T)
        return x + h @ p["w2"].T, None

    x, _ = lax.scan(layer, params["tok_embeddings"][ids], params["layers"])
    return _norm(params["final_norm"], x)


def logits(params: Any, states: jax.Array) -> jax.Array:
    """Return the logits of the next token at these states."""
    return states @ params["tok_embeddings"].T


def log_likelihoods(
    params: Any, ids: jax.Array, mask: jax.Array, num_last: int
) -> jax.Array:
    """Return the log-probability of each of the last tokens, as `opt` does."""
    states = hidden(params, ids, mask)[:, -num_last - 1 : -1]
    return opt.of_last(logits(params, states), ids)


def _norm(weight: jax.Array, x: jax.Array) -> jax.Array:
    return weight * x * lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + _EPS)


def _turned(x: jax.Array, places: jax.Array) -> jax.Array:
    """Rotate each pair of neighbours by an angle proportional to the position."""
    speeds = _BASE ** (-jnp.arange(0, _HEAD, 2) / _HEAD)
    angles = (places[..., None] * speeds)[:, :, None]  # (b, t, 1, pairs)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    a, b = x[..., 0::2], x[..., 1::2]
    return jnp.stack([a * cos - b * sin, a * sin + b * cos], axis=-1).reshape(x.shape)


def _attention(p: Any, x: jax.Array, places: jax.Array, seen: jax.Array) -> jax.Array:
    def split(weight: jax.Array) -> jax.Array:
        return (x @ weight.T).reshape(*x.shape[:2], -1, _HEAD)

    q, k, v = split(p["wq"]), split(p["wk"]), split(p["wv"])
    q, k = _turned(q, places), _turned(k, places)
    # Two query heads share one key head.
    k, v = (jnp.repeat(y, q.shape[2] // k.shape[2], axis=2) for y in (k, v))
    scores = jnp.einsum("bthd,bshd->bhts", q, k) / np.sqrt(_HEAD)
    weights = jax.nn.softmax(jnp.where(seen[:, None], scores, -1e30))
    mixed = jnp.einsum("bhts,bshd->bthd", weights, v)
    return mixed.reshape(x.shape) @ p["wo"].T
