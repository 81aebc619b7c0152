"""A small decoder-only language model with separate layers.

Rotary positions, RMS norms, a gated feed-forward block and a tied embedding. It has
nine leaves a layer and one more, so that eleven layers make a model of 100 leaves.
"""

from typing import Any

import jax
import jax.numpy as jnp

WIDTH, HEADS, HIDDEN, VOCABULARY, LENGTH, BATCH = 64, 4, 128, 96, 16, 4


def parameters(num_layers: int) -> dict[str, Any]:
    """Return random float32 parameters of 9 · num_layers + 1 leaves."""

    def matrix(key, rows, columns):
        return jax.random.normal(key, (rows, columns)) * rows**-0.5

    def layer(key):
        keys = jax.random.split(key, 7)
        return {
            "attention_norm": jnp.ones(WIDTH),
            "query": matrix(keys[0], WIDTH, WIDTH),
            "key": matrix(keys[1], WIDTH, WIDTH),
            "value": matrix(keys[2], WIDTH, WIDTH),
            "output": matrix(keys[3], WIDTH, WIDTH),
            "feed_norm": jnp.ones(WIDTH),
            "gate": matrix(keys[4], WIDTH, HIDDEN),
            "up": matrix(keys[5], WIDTH, HIDDEN),
            "down": matrix(keys[6], HIDDEN, WIDTH),
        }

    first, *rest = jax.random.split(jax.random.key(2), num_layers + 1)
    return {
        "embedding": matrix(first, VOCABULARY, WIDTH),
        "layers": [layer(key) for key in rest],
    }


def cross_entropy(params: dict[str, Any]) -> jax.Array:
    """Return the mean negative log-likelihood of the tokens of a random text."""
    tokens = jax.random.randint(jax.random.key(3), (BATCH, LENGTH), 0, VOCABULARY)
    stream = params["embedding"][tokens]
    for layer in params["layers"]:
        stream = stream + _attention(layer, _normed(stream, layer["attention_norm"]))
        inner = _normed(stream, layer["feed_norm"])
        gated = jax.nn.silu(inner @ layer["gate"]) * (inner @ layer["up"])
        stream = stream + gated @ layer["down"]
    logits = stream @ params["embedding"].T
    scores = jax.nn.log_softmax(logits[:, :-1])
    return -jnp.mean(jnp.take_along_axis(scores, tokens[:, 1:, None], axis=-1))


def _normed(x, gain):
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-5) * gain


def _rotated(x):
    """Rotate pairs of coordinates by an angle proportional to the position."""
    half = x.shape[-1] // 2
    angles = jnp.arange(LENGTH)[:, None, None] / 100 ** (jnp.arange(half) / half)
    x1, x2 = jnp.split(x, 2, axis=-1)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([x1 * cos - x2 * sin, x1 * sin + x2 * cos], axis=-1)


def _attention(layer, x):
    def heads(weight):
        return (x @ weight).reshape(BATCH, LENGTH, HEADS, WIDTH // HEADS)

    query, key = _rotated(heads(layer["query"])), _rotated(heads(layer["key"]))
    scores = jnp.einsum("bthd,bshd->bhts", query, key) * (WIDTH // HEADS) ** -0.5
    past = jnp.tril(jnp.ones((LENGTH, LENGTH), bool))
    weights = jax.nn.softmax(jnp.where(past, scores, -1e9))
    mixed = jnp.einsum("bhts,bshd->bthd", weights, heads(layer["value"]))
    return mixed.reshape(BATCH, LENGTH, WIDTH) @ layer["output"]
