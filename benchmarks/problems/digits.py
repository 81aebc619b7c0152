"""A classifier of the 8 x 8 digits of scikit-learn, a victim without downloads.

1,797 images with 17 levels of grey, the last 500 of them for tests; a network
64 - 64 - 10. It trains in seconds and has a test accuracy of 92.8 %.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

from benchmarks.problems.victims import Data, dense

NUM_TEST = 500
EPOCHS, BATCH_SIZE, LEARNING_RATE = 40, 64, 3e-3


def load() -> Data:
    bunch = load_digits()
    images = (bunch.images / 16).astype(np.float32)
    labels = bunch.target.astype(np.int32)
    return Data(
        images[:-NUM_TEST], labels[:-NUM_TEST], images[-NUM_TEST:], labels[-NUM_TEST:]
    )


def init(key: jax.Array) -> dict[str, Any]:
    first, second = jax.random.split(key)
    he = jax.nn.initializers.he_normal(in_axis=1, out_axis=0)
    return {"hidden": dense(he, first, (64, 64)), "out": dense(he, second, (10, 64))}


def log_probs(weights: dict[str, Any], image: jax.Array) -> jax.Array:
    weight, bias = weights["hidden"]
    hidden = jax.nn.relu(weight @ jnp.ravel(image) + bias)
    weight, bias = weights["out"]
    return jax.nn.log_softmax(weight @ hidden + bias)
