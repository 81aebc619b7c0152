"""OPT, the language model of the MeZO and R-AdaZO papers, in plain JAX.

  x  = embed[ids] (· project_inᵀ) + positions[place + 2]
  x ← x + attention(norm x);  x ← x + fc2 · relu(fc1 · norm x)      for each layer
  logits = final_norm(x) (· project_outᵀ) · embedᵀ

as in PyTorch transformers' `OPTForCausalLM`: weights are (out, in), and `place` counts
the tokens that are not padding. `do_layer_norm_before=False`, which only OPT-350M has,
applies norms after each sum instead, and has no final norm. Layers are stacked along a
first axis, over which one `jax.lax.scan` runs.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_OFFSET = 2  # The first two rows of the positions are not used.
_EPS = 1e-5


@dataclasses.dataclass(frozen=True)
class Config:
    """The shape of a model, with names and defaults of `config.json`."""

    vocab_size: int = 50272
    hidden_size: int = 768
    num_hidden_layers: int = 12
    ffn_dim: int = 3072
    num_attention_heads: int = 12
    max_position_embeddings: int = 2048
    word_embed_proj_dim: int | None = None
    do_layer_norm_before: bool = True
    activation_function: str = "relu"
    pad_token_id: int = 1

    @property
    def embed_size(self) -> int:
        return self.word_embed_proj_dim or self.hidden_size


SHAPES = {
    "opt-125m": Config(),
    "opt-350m": Config(
        hidden_size=1024,
        num_hidden_layers=24,
        ffn_dim=4096,
        num_attention_heads=16,
        word_embed_proj_dim=512,
        do_layer_norm_before=False,
    ),
    "opt-1.3b": Config(
        hidden_size=2048, num_hidden_layers=24, ffn_dim=8192, num_attention_heads=32
    ),
    "opt-13b": Config(
        hidden_size=5120, num_hidden_layers=40, ffn_dim=20480, num_attention_heads=40
    ),
    # 46 million parameters, for the tests.
    "small": Config(
        vocab_size=16384,
        hidden_size=512,
        ffn_dim=2048,
        num_attention_heads=8,
        max_position_embeddings=126,
    ),
}


def shapes(config: Config) -> dict[str, Any]:
    """Return the shape of each parameter, as a pytree of tuples."""
    hidden, ffn, embed = config.hidden_size, config.ffn_dim, config.embed_size
    norm = {"weight": (hidden,), "bias": (hidden,)}

    def linear(size_out: int, size_in: int) -> dict[str, tuple[int, ...]]:
        return {"weight": (size_out, size_in), "bias": (size_out,)}

    names = ("q_proj", "k_proj", "v_proj", "out_proj")
    layer = {
        "self_attn": {name: linear(hidden, hidden) for name in names},
        "self_attn_layer_norm": norm,
        "fc1": linear(ffn, hidden),
        "fc2": linear(hidden, ffn),
        "final_layer_norm": norm,
    }
    found = {
        "embed_tokens": {"weight": (config.vocab_size, embed)},
        "embed_positions": {
            "weight": (config.max_position_embeddings + _OFFSET, hidden)
        },
        "layers": jax.tree.map(
            lambda shape: (config.num_hidden_layers, *shape),
            layer,
            is_leaf=lambda x: isinstance(x, tuple),
        ),
    }
    if config.do_layer_norm_before:
        found["final_layer_norm"] = norm
    if embed != hidden:
        found["project_in"] = {"weight": (hidden, embed)}
        found["project_out"] = {"weight": (embed, hidden)}
    return found


def abstract(config: Config, dtype: Any = jnp.float32) -> Any:
    """Return parameters without memory, for `jax.eval_shape` and for compilation."""
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, dtype),
        shapes(config),
        is_leaf=lambda x: isinstance(x, tuple),
    )


def random(config: Config, key: jax.Array, dtype: Any = jnp.float32) -> Any:
    """Return untrained parameters: N(0, 0.02²), norms 1 and biases 0."""
    leaves, treedef = jax.tree_util.tree_flatten_with_path(abstract(config, dtype))

    def draw(key: jax.Array, path: Any, leaf: Any) -> jax.Array:
        *_, layer, name = (entry.key for entry in path)
        if name == "bias":
            return jnp.zeros(leaf.shape, dtype)
        if layer.endswith("norm"):
            return jnp.ones(leaf.shape, dtype)
        return (0.02 * jax.random.normal(key, leaf.shape)).astype(dtype)

    keys = jax.random.split(key, len(leaves))
    drawn = [draw(key, *leaf) for key, leaf in zip(keys, leaves, strict=True)]
    return treedef.unflatten(drawn)


def hidden(
    config: Config, params: Any, ids: jax.Array, mask: jax.Array | None = None
) -> jax.Array:
    """Return the output of the last layer: ids (b, t) -> (b, t, embed_size).

    `mask` is 1 at tokens and 0 at padding, left or right.
    """
    x, seen = _start(params, ids, jnp.ones_like(ids) if mask is None else mask)
    layer = functools.partial(_layer, config, seen)
    x, _ = lax.scan(lambda x, p: (layer(p, x), None), x, params["layers"])
    if "final_layer_norm" in params:
        x = _norm(params["final_layer_norm"], x)
    return _linear(params["project_out"], x) if "project_out" in params else x


def with_prompt(config: Config, params: Any, ids: jax.Array) -> Any:
    """Add a soft prompt before all texts: keys and values of each layer.

    They start as those of the tokens `ids`, (t,).
    """
    x, seen = _start(params, ids[None], jnp.ones_like(ids)[None])

    def turn(x: jax.Array, p: Any) -> tuple[jax.Array, Any]:
        before, own = config.do_layer_norm_before, p["self_attn"]
        h = _norm(p["self_attn_layer_norm"], x) if before else x
        found = {
            "prompt_keys": _linear(own["k_proj"], h)[0],
            "prompt_values": _linear(own["v_proj"], h)[0],
        }
        return _layer(config, seen, p, x), found

    _, prompt = lax.scan(turn, x, params["layers"])
    attention = params["layers"]["self_attn"] | prompt
    return params | {"layers": params["layers"] | {"self_attn": attention}}


def logits(params: Any, states: jax.Array) -> jax.Array:
    """Return the logits of the next token: (..., embed_size) -> (..., vocab)."""
    return states @ params["embed_tokens"]["weight"].T


def log_likelihoods(
    config: Config, params: Any, ids: jax.Array, mask: jax.Array, num_last: int
) -> jax.Array:
    """Return the log-probability of each of the last tokens: (b, num_last), in float32.

    It computes logits at these tokens only, which end each row: pad left.
    """
    states = hidden(config, params, ids, mask)[:, -num_last - 1 : -1]
    return of_last(logits(params, states), ids)


def of_last(logits: jax.Array, ids: jax.Array) -> jax.Array:
    """Return the log-probability, in float32, of the last tokens, (b, n).

    Args are the tokens and the logits (b, n, v) before them.
    """
    found = jax.nn.log_softmax(logits.astype(jnp.float32))
    last = ids[:, -logits.shape[1] :, None]
    return jnp.take_along_axis(found, last, axis=-1)[..., 0]


def _start(params: Any, ids: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the input of the first layer, and which token attends to which."""
    places = jnp.cumsum(mask, axis=1) * mask - 1 + _OFFSET
    x = params["embed_tokens"]["weight"][ids]
    if "project_in" in params:
        x = _linear(params["project_in"], x)
    length = ids.shape[1]
    seen = jnp.tril(jnp.ones((length, length), bool))[None] & (mask[:, None, :] > 0)
    return x + params["embed_positions"]["weight"][places], seen


def _layer(config: Config, seen: jax.Array, p: Any, x: jax.Array) -> jax.Array:
    before = config.do_layer_norm_before
    h = _norm(p["self_attn_layer_norm"], x) if before else x
    x = x + _attention(config, p["self_attn"], h, seen)
    x = x if before else _norm(p["self_attn_layer_norm"], x)
    h = _norm(p["final_layer_norm"], x) if before else x
    x = x + _linear(p["fc2"], jax.nn.relu(_linear(p["fc1"], h)))
    return x if before else _norm(p["final_layer_norm"], x)


def _linear(p: Any, x: jax.Array) -> jax.Array:
    y = x @ p["weight"].T
    if "lora_up" in p:  # A low-rank adapter, whose scale is in `lora_down`.
        y = y + (x @ p["lora_down"].T) @ p["lora_up"].T
    return y + p["bias"] if "bias" in p else y


def _norm(p: Any, x: jax.Array) -> jax.Array:
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    root = lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + _EPS)
    return (centred * root).astype(x.dtype) * p["weight"] + p["bias"]


def _attention(config: Config, p: Any, x: jax.Array, seen: jax.Array) -> jax.Array:
    heads = config.num_attention_heads

    def split(h: jax.Array) -> jax.Array:
        return h.reshape(*h.shape[:2], heads, -1)

    def behind(prompt: str, own: jax.Array) -> jax.Array:
        if prompt not in p:
            return own
        first = jnp.broadcast_to(p[prompt], (len(own), *p[prompt].shape))
        return jnp.concatenate([first, own], axis=1)

    size = config.hidden_size // heads
    q = split(_linear(p["q_proj"], x)) * (1 / math.sqrt(size))
    k = split(behind("prompt_keys", _linear(p["k_proj"], x)))
    v = split(behind("prompt_values", _linear(p["v_proj"], x)))
    # All tokens attend to the prompt.
    seen = jnp.pad(
        seen, ((0, 0), (0, 0), (k.shape[1] - q.shape[1], 0)), constant_values=True
    )
    scores = jnp.einsum("bthd,bshd->bhts", q, k).astype(jnp.float32)
    scores = jnp.where(seen[:, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores).astype(x.dtype)
    mixed = jnp.einsum("bhts,bshd->bthd", weights, v)
    return _linear(p["out_proj"], mixed.reshape(x.shape))
