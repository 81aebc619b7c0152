"""The identity of a run: its key, and digests of where it starts."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from radazo import core, partition, projections, random, validation
from radazo.journal import file_format
from radazo.optimizers import combinators

_DIGEST_BYTES = 16
# A Python number becomes an array in the first step; both have the same digest.
_NUMBERS = jax.Array | np.ndarray | np.generic | bool | int | float | complex


def of(
    api_name: str, params: core.Params, state: Any, bounds: Any
) -> file_format.JournalHeader:
    """Return the header of a journal that begins at `state`, with 0 directions."""
    counters = combinators.find_estimator_state(api_name, state)
    high, low = np.asarray(counters.key_data).tolist()
    return file_format.JournalHeader(
        file_format.FORMAT,
        random.KEY_CONTRACT_VERSION,
        num_directions=0,
        float_bytes=0,
        key_data=(high, low),
        first=int(counters.count),
        params=_digest(params),
        state=_digest(state, _node_types(jax.tree.structure(state))),
        start=_digest((params, state), contents=True),
        bounds=_bounds_digest(api_name, params, bounds),
        writer=f"jax {jax.__version__} on {jax.devices()[0].device_kind}"[:48],
    )


def check(
    api_name: str,
    path: str,
    journal: file_format.JournalContents,
    run: file_format.JournalHeader,
) -> None:
    """Check that the journal belongs to the run and contains its position."""
    header, first = journal.header, journal.header.first
    differences = {
        "key_data": f"the key {header.key_data}",
        "params": "parameters of other names, shapes or dtypes",
        "state": "a state of other names, shapes or dtypes",
        "bounds": "other `bounds`",
        "start": f"other values of parameters or state before step {first}",
    }
    if run.first != first:
        del differences["start"]
    for name, difference in differences.items():
        if getattr(header, name) != getattr(run, name):
            rule = f"be the journal of this run, whose key is {run.key_data}"
            got = f"{path!r}, of a run with {difference}"
            hint = "Use one journal for each run."
            validation.fail(api_name, "path", rule, got, hint)
    if not first <= run.first <= journal.end:
        rule = f"be of a step from {first} to {journal.end}, the range of {path!r}"
        hint = "Start from an earlier checkpoint or from `optimizer.init`."
        validation.fail(api_name, "state", rule, f"one of step {run.first}", hint)


def _bounds_digest(api_name: str, params: core.Params, bounds: Any) -> bytes:
    """Return a digest that is equal for bounds that restrict each array alike."""
    if bounds is None:
        return bytes(_DIGEST_BYTES)

    def box(x: Any, lower: Any, upper: Any) -> list[np.ndarray] | None:
        if not (core.is_floating(x) and x.size):
            return None
        sides = projections.within(lower, upper, jnp.result_type(x))
        # A constant array restricts as a scalar does.
        return [x.ravel()[0] if (x == x.ravel()[0]).all() else x for x in sides]

    pairs = projections.sides(api_name, params, bounds)
    arrays = partition.split(params)[0]
    boxes = [box(x, *pair) for x, pair in zip(arrays, pairs, strict=True)]
    return _digest(boxes, contents=True)


def _node_types(treedef: Any) -> str:
    """Return the types of the nodes, which tell apart states with equal leaves."""
    node = treedef.node_data()
    inner = ",".join(map(_node_types, treedef.children()))
    return f"{node[0].__name__}({inner})" if node else ""


def _digest(tree: Any, node_types: str = "", *, contents: bool = False) -> bytes:
    """Return a digest of the names, shapes, dtypes, and `contents` of the leaves."""
    digest = hashlib.blake2b(node_types.encode(), digest_size=_DIGEST_BYTES)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path)
        if not isinstance(leaf, _NUMBERS):
            digest.update(f"{name} {type(leaf).__name__}\n".encode())
            continue
        array: Any = leaf
        if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
            array = jax.random.key_data(array)
        kind: Any = jnp.result_type(array)
        digest.update(f"{name} {kind} {np.shape(array)}\n".encode())
        if contents:
            digest.update(np.asarray(array).astype(kind).tobytes())
    return digest.digest()
