"""Classifiers of handwritten digits with a flat weight vector, and two losses.

  cross_entropy   mean −log softmax(W a + b) of the label, and ½ · 10⁻³ · ‖x‖²:
                  linear, x = (W, b), d = 650
  one_minus_f1    1 − mean over digits of 2 TP / (2 TP + FP + FN):
                  a network 64 - 8 - 10, d = 610

Both use the first 600 of the 64-pixel images that train the victim of the attack. The
second is a staircase: it depends only on which digit scores highest.
"""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.problems import digits

NUM_IMAGES, PIXELS, CLASSES = 600, 64, 10
HIDDEN, RIDGE = 8, 1e-3
DIM_LINEAR = CLASSES * (PIXELS + 1)
DIM_NETWORK = HIDDEN * (PIXELS + 1) + CLASSES * (HIDDEN + 1)


def samples() -> dict[str, np.ndarray]:
    """Return images (n, 64) with pixels in [0, 1], and their labels (n,)."""
    data = digits.load()
    images = data.train_images[:NUM_IMAGES].reshape(-1, PIXELS)
    return {"images": images, "labels": data.train_labels[:NUM_IMAGES]}


def linear_scores(x: jax.Array, images: jax.Array) -> jax.Array:
    """Return scores (n, classes)."""
    weight, bias = x[:-CLASSES].reshape(CLASSES, PIXELS), x[None, -CLASSES:]
    return images @ weight.T + bias


def cross_entropy(x: jax.Array, *, images: jax.Array, labels: jax.Array) -> jax.Array:
    scores = jax.nn.log_softmax(linear_scores(x, images))
    of_label = jnp.take_along_axis(scores, labels[:, None], axis=1)
    return RIDGE / 2 * jnp.sum(jnp.square(x)) - jnp.mean(of_label)


def start_of_network(key: jax.Array) -> jax.Array:
    """Return weights of variance 1 / inputs, and biases 0."""
    first, second = jax.random.split(key)
    hidden = jax.random.normal(first, (HIDDEN * PIXELS,), jnp.float32) / PIXELS**0.5
    out = jax.random.normal(second, (CLASSES * HIDDEN,), jnp.float32) / HIDDEN**0.5
    return jnp.concatenate([hidden, out, jnp.zeros(HIDDEN + CLASSES, jnp.float32)])


def network_scores(x: jax.Array, images: jax.Array) -> jax.Array:
    """Return scores (n, classes); x holds both weight matrices, then both biases."""
    sizes = (HIDDEN * PIXELS, CLASSES * HIDDEN, HIDDEN)
    weight, out, bias, last = jnp.split(x, np.cumsum(sizes))
    hidden = jnp.tanh(images @ weight.reshape(HIDDEN, PIXELS).T + bias[None])
    return hidden @ out.reshape(CLASSES, HIDDEN).T + last[None]


def one_minus_f1(x: jax.Array, *, images: jax.Array, labels: jax.Array) -> jax.Array:
    found = jnp.argmax(network_scores(x, images), axis=1)
    classes = jnp.arange(CLASSES)[None]
    is_found, is_true = found[:, None] == classes, labels[:, None] == classes

    def count(which: jax.Array) -> jax.Array:
        return jnp.sum(which, axis=0, dtype=jnp.int32).astype(x.dtype)

    hits = 2 * count(is_found & is_true)
    return 1 - jnp.mean(hits / (count(is_found) + count(is_true)))
