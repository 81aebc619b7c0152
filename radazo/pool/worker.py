"""One call in a worker, and the mark that it leaves before it begins.

A file of a pool has eight bytes for each of its calls: the number of the process that
began it, or 0. A worker that is killed cannot say how far it was; the file can.
"""

import contextlib
import hashlib
import math
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from radazo import validation

_SIZE = 8


class Answer(NamedTuple):
    """What a worker says of a call.

    Attributes:
      kind: "values", "invalid" (NaN, or no real number), "exceptions", or "lost" if it
        had begun before: somebody else started it again when its worker was gone.
      value: The value, NaN where there is none.
      text: What went wrong, or "".
    """

    kind: str
    value: float
    text: str


def answer(
    path: str, number: int, value_fn: Callable[[Any], Any], point: Any
) -> Answer:
    """Call `value_fn(point)` as call `number` of the pool whose marks are in `path`."""
    if begun_by(path, number):
        return Answer("lost", math.nan, "its worker was lost")
    _mark(path, number)
    # As text: not every exception survives being pickled.
    texts: list[str] = []
    with validation.Caught(lambda error: texts.append(_text(error))):
        # Its own arrays: what it writes into them is not in the next try.
        returned = value_fn(plain(point))
        value = validation.real(returned)
        if math.isnan(value):
            return Answer("invalid", value, f"returned {returned!r}"[:200])
        return Answer("values", value, "")
    return Answer("exceptions", math.nan, texts[0])


def _text(error: BaseException) -> str:
    return "".join(traceback.format_exception_only(error)).strip()[:1000]


def begun_by(path: str, number: int) -> int:
    """The process that began call `number`, or 0."""
    with contextlib.suppress(OSError), Path(path).open("rb", buffering=0) as file:
        file.seek(_SIZE * number)
        return int.from_bytes(file.read(_SIZE), "little")
    return 0


def _mark(path: str, number: int) -> None:
    # Workers on other machines do not have the file.
    with contextlib.suppress(OSError), Path(path).open("r+b", buffering=0) as file:
        file.seek(_SIZE * number)
        file.write(os.getpid().to_bytes(_SIZE, "little"))


def plain(point: Any) -> Any:
    """A copy of the point with arrays of NumPy, which any process can read."""

    def plain_leaf(leaf: Any) -> Any:
        if isinstance(leaf, np.ndarray):
            return leaf.copy()
        is_array = isinstance(leaf, jax.Array)
        if is_array and not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return np.array(leaf)
        return leaf

    return jax.tree.map(plain_leaf, point)


def digest(point: Any) -> bytes:
    """What two points share if, and only if, they are the same."""
    seen = hashlib.blake2b(digest_size=16)
    leaves, treedef = jax.tree.flatten(point)
    seen.update(str(treedef).encode())
    for leaf in leaves:
        data, kind = leaf, str(type(leaf))
        if isinstance(leaf, jax.Array):
            data = np.asarray(jax.random.key_data(leaf))
        if isinstance(data, np.ndarray | np.generic) and data.dtype != object:
            seen.update(f"{kind} {data.dtype} {data.shape}".encode())
            seen.update(data.tobytes())
        elif isinstance(leaf, bool | int | float | complex | str | bytes):
            seen.update(f"{kind} {leaf!r}".encode())
        else:
            hint = "Pass `cache=False` for points that cannot be compared."
            rule = "be points of arrays and numbers"
            got = f"{kind} of objects" if isinstance(leaf, np.ndarray) else kind
            api_name = "EvaluationPool.evaluate"
            validation.fail(api_name, "queries", rule, got, hint, TypeError)
    return seen.digest()
