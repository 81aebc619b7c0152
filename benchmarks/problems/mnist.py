"""MNIST and the network that the paper attacks: the MNIST example of PyTorch.

  conv 1-32 3x3, relu, conv 32-64 3x3, relu, maxpool 2, dense 9216-128, relu, dense -10

Names and layouts of the weights are those of PyTorch (OIHW, out x in), so that a
network trained there can be read. The input is normalized by (x − 0.1307) / 0.3081.
"""

import gzip
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.problems.victims import Data, dense

SOURCE = "https://ossci-datasets.s3.amazonaws.com/mnist/"
WEIGHTS = "mnist_cnn_trained_fp16.npz"
BATCH_SIZE, LEARNING_RATE = 64, 1e-3
LAYERS = {
    "conv1": (32, 1, 3, 3),
    "conv2": (64, 32, 3, 3),
    "fc1": (128, 9216),
    "fc2": (10, 128),
}


def load(folder: Path) -> Data:
    """Read the four IDX files in `folder`, as published."""
    images = [
        _read(folder / f"{part}-images-idx3-ubyte.gz", (28, 28))
        for part in ("train", "t10k")
    ]
    labels = [
        _read(folder / f"{part}-labels-idx1-ubyte.gz", ()).astype(np.int32)
        for part in ("train", "t10k")
    ]
    return Data(images[0], labels[0], images[1], labels[1])


def _read(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    if not path.exists():
        raise FileNotFoundError(f"No file {path}. Get it as {SOURCE}{path.name}")
    with gzip.open(path) as file:
        raw = np.frombuffer(file.read(), np.uint8)
    return raw[8 + 4 * len(shape) :].reshape(-1, *shape)


def init(key: jax.Array) -> dict[str, jax.Array]:
    he = jax.nn.initializers.he_normal(in_axis=1, out_axis=0)
    weights = {}
    for (name, shape), part in zip(
        LAYERS.items(), jax.random.split(key, len(LAYERS)), strict=True
    ):
        weights[f"{name}.weight"], weights[f"{name}.bias"] = dense(he, part, shape)
    return weights


def load_weights(path: Path) -> dict[str, jax.Array]:
    if not path.exists():
        raise FileNotFoundError(f"No file {path}. Leave it out to train the network.")
    with np.load(path) as file:
        return {name: jnp.asarray(file[name], jnp.float32) for name in file.files}


def log_probs(weights: dict[str, Any], image: jax.Array) -> jax.Array:
    x = ((image - 0.1307) / 0.3081)[None, :, :, None]
    for name in ("conv1", "conv2"):
        # Channels last, also in the kernel: within a loop XLA uses its fast convolution
        # on a CPU for this layout only, which is 30 times faster.
        kernel = weights[f"{name}.weight"].transpose(2, 3, 1, 0)
        x = lax.conv_general_dilated(
            x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x + weights[f"{name}.bias"][None, None, None])
    x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    x = jnp.ravel(x[0].transpose(2, 0, 1))  # Channels first, as fc1 was trained.
    x = jax.nn.relu(weights["fc1.weight"] @ x + weights["fc1.bias"])
    return jax.nn.log_softmax(weights["fc2.weight"] @ x + weights["fc2.bias"])
