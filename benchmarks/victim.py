"""The victim of the attack: a trained classifier and its test images."""

import argparse
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from benchmarks.problems import attack as problem
from benchmarks.problems import digits, mnist, victims

# The bound of the paper for MNIST. On digits, no method fools two of ten images
# within 20,000 steps at a bound of 0.2; at 0.3 all ten succeed.
BOUNDS = {"digits": 0.3, "mnist": 0.2}


class Victim(NamedTuple):
    """A trained classifier and the test images on which it can be attacked.

    Attributes:
      name: How it was trained, or the file of its weights.
      log_probs: `log_probs(weights, image) -> (classes,)`.
      weights: Its weights.
      images: (n, height, width), all test images.
      labels, found: (n,) labels, and predicted labels.
    """

    name: str
    log_probs: problem.LogProbs
    weights: Any
    images: np.ndarray
    labels: np.ndarray
    found: np.ndarray

    @property
    def accuracy(self) -> float:
        """Return the share of test images that are classified correctly."""
        return float(np.mean(self.found == self.labels))

    @property
    def right(self) -> np.ndarray:
        """Return the indices of the test images that are classified correctly."""
        return np.flatnonzero(self.found == self.labels)

    def pixels(self, indices: Any) -> jax.Array:
        """Return the images of these indices, in [0, 1]."""
        return victims.pixels(self.images[np.asarray(indices)])

    def targets(self, indices: Any) -> np.ndarray:
        """Return the target labels of these images: the next digit."""
        return ((self.labels[np.asarray(indices)] + 1) % 10).astype(np.int32)


def victim_of(args: argparse.Namespace) -> Victim:
    """Return the trained victim of `args.dataset`."""
    if args.dataset == "digits":
        data, log_probs = digits.load(), digits.log_probs
        name = f"trained for {digits.EPOCHS} epochs"
        weights = trained(digits, data, digits.EPOCHS)
    else:
        folder = args.data_dir / "mnist"
        data, log_probs = mnist.load(folder), mnist.log_probs
        path = args.weights
        if path is None and (folder / mnist.WEIGHTS).exists():
            path = folder / mnist.WEIGHTS
        if path is None:
            name = f"trained for {args.epochs} epochs"
            weights = trained(mnist, data, args.epochs)
            if args.save_weights is not None:
                np.savez(args.save_weights, **weights)
        else:
            name, weights = path.name, mnist.load_weights(path)
    found = victims.predict(log_probs, weights, data.test_images).argmax(axis=1)
    return Victim(name, log_probs, weights, data.test_images, data.test_labels, found)


def trained(module: Any, data: victims.Data, epochs: int) -> Any:
    """Train the network of `module` from its initial weights."""
    total = victims.num_batches(len(data.train_images), epochs, module.BATCH_SIZE)
    batches = victims.train(
        module.log_probs,
        module.init(jax.random.key(0)),
        data.train_images,
        data.train_labels,
        epochs=epochs,
        batch_size=module.BATCH_SIZE,
        learning_rate=module.LEARNING_RATE,
    )
    with tqdm(
        total=total, desc="training", unit="batch", disable=None, leave=False
    ) as bar:
        for step in batches:
            weights, loss = step
            bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            bar.update()
    return weights
