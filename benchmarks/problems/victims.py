"""Train, by their gradient, the classifiers that are attacked."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.problems.attack import LogProbs


class Data(NamedTuple):
    """Images as uint8 or float arrays (n, height, width) and their labels (n,)."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def train(
    log_probs: LogProbs,
    weights: Any,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int = 0,
) -> Iterator[tuple[Any, float]]:
    """Minimize the mean cross entropy by Adam; yield (weights, loss) per batch."""
    optimizer = optax.adam(learning_rate)

    def loss_fn(weights: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        found = jax.vmap(log_probs, in_axes=(None, 0))(weights, pixels(images))
        return -jnp.mean(jnp.take_along_axis(found, labels[:, None], axis=1))

    @jax.jit
    def step(weights: Any, state: Any, images: jax.Array, labels: jax.Array) -> Any:
        loss, gradient = jax.value_and_grad(loss_fn)(weights, images, labels)
        # optax.adam raises a float to an integer power, which strict promotion forbids.
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(weights, updates), state, loss

    state = optimizer.init(weights)
    shuffle = np.random.default_rng(seed)
    for _ in range(epochs):
        order = shuffle.permutation(len(images))
        for chosen in batches(order, batch_size):
            weights, state, loss = step(weights, state, images[chosen], labels[chosen])
            yield weights, float(loss)


def batches(order: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Yield batches of equal size; the remainder waits for the next shuffle."""
    whole = len(order) - len(order) % batch_size
    return np.split(order[:whole], whole // batch_size)


def num_batches(num_images: int, epochs: int, batch_size: int) -> int:
    return epochs * (num_images // batch_size)


def predict(
    log_probs: LogProbs, weights: Any, images: np.ndarray, batch_size: int = 500
) -> np.ndarray:
    """Return (n, classes) log-probabilities of n images, a batch at a time."""

    @jax.jit
    def of_batch(weights: Any, images: jax.Array) -> jax.Array:
        return jax.vmap(log_probs, in_axes=(None, 0))(weights, pixels(images))

    parts = range(0, len(images), batch_size)
    found = [of_batch(weights, images[i : i + batch_size]) for i in parts]
    return np.concatenate([np.asarray(part) for part in found])


def accuracy(
    log_probs: LogProbs, weights: Any, images: np.ndarray, labels: np.ndarray
) -> float:
    found = predict(log_probs, weights, images).argmax(axis=1)
    return float(np.mean(found == labels))


def pixels(images: Any) -> jax.Array:
    """Return images as float32 in [0, 1]; bytes are divided by 255."""
    images = jnp.asarray(images)
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32) / 255
    return images.astype(jnp.float32)


def dense(
    init: Callable[..., jax.Array], key: jax.Array, shape: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """Return weights (out, in, ...) drawn by `init`, and zero biases (out,)."""
    return init(key, shape, jnp.float32), jnp.zeros(shape[0], jnp.float32)
