"""One call in a worker, and the mark that the worker writes before it.

The file of marks has eight bytes for each call of a pool: the id of the process that
began the call, or 0. After a worker is killed, its mark tells whether the call began.
"""

import contextlib
import hashlib
import math
import os
from collections.abc import Callable
from pathlib import Path
from traceback import format_exception_only
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from radazo import validation

_EVALUATE = "EvaluationPool.evaluate"
_MARK_SIZE = 8


class Mark(NamedTuple):
    """The place of call `number` in the file of marks at `path`."""

    path: str
    number: int

    def process(self) -> int:
        """Return the id of the process that began the call, or 0."""
        with contextlib.suppress(OSError), Path(self.path).open("rb", 0) as file:
            file.seek(_MARK_SIZE * self.number)
            return int.from_bytes(file.read(_MARK_SIZE), "little")
        return 0

    def write(self) -> None:
        """Write the id of this process."""
        # Workers on other machines do not have the file.
        with contextlib.suppress(OSError), Path(self.path).open("r+b", 0) as file:
            file.seek(_MARK_SIZE * self.number)
            file.write(os.getpid().to_bytes(_MARK_SIZE, "little"))


class Outcome(NamedTuple):
    """The outcome of a call."""

    kind: str  # The counter of `PoolStats`.
    value: float = math.nan
    failure: str = ""  # Why there is no value.


def call(mark: Mark, value_fn: Callable[[Any], Any], point: Any) -> Outcome:
    """Mark the call as begun, and call `value_fn(point)`."""
    if mark.process():  # An executor may resubmit a call of a lost worker.
        return Outcome("lost", failure="its worker was lost")
    mark.write()
    # As text: some exceptions cannot be pickled, and others keep resources open.
    lines: list[str] = []
    with validation.pass_errors_to(
        lambda error: lines.extend(format_exception_only(error))
    ):
        returned = value_fn(to_numpy(point))  # A copy, which it may modify.
        value = validation.real(returned)
        if math.isnan(value):
            return Outcome("invalid", failure=f"returned {returned!r}"[:200])
        return Outcome("values", value)
    return Outcome("exceptions", failure="".join(lines).strip()[:1000])


def to_numpy(point: Any) -> Any:
    """Copy a point; JAX arrays become NumPy arrays, which any process can read."""

    def copy(leaf: Any) -> Any:
        is_array = isinstance(leaf, jax.Array)
        is_key = is_array and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        if isinstance(leaf, np.ndarray) or (is_array and not is_key):
            return np.array(leaf, order="C", subok=True)
        return leaf

    return jax.tree.map(copy, point)


def digest(point: Any) -> bytes:
    """Return a hash of the structure, types and bytes of a point."""
    found = hashlib.blake2b(digest_size=16)
    leaves, treedef = jax.tree.flatten(point)
    found.update(str(treedef).encode())
    for leaf in leaves:
        data, kind = leaf, str(type(leaf))
        if isinstance(leaf, jax.Array):
            data = np.asarray(jax.random.key_data(leaf))
        if isinstance(data, np.ndarray | np.generic) and data.dtype != object:
            found.update(f"{kind} {data.dtype} {data.shape}".encode())
            found.update(data.tobytes())
        elif isinstance(leaf, bool | int | float | complex | str | bytes):
            found.update(f"{kind} {leaf!r}".encode())
        else:
            rule = "have points of arrays and numbers"
            got = f"{kind} of objects" if isinstance(leaf, np.ndarray) else kind
            hint = "Pass `cache=False` to evaluate points that cannot be hashed."
            validation.fail(_EVALUATE, "queries", rule, got, hint, TypeError)
    return found.digest()
