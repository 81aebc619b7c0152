"""What tells one run from another: its key, and digests of what it starts from."""

import hashlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from radazo import core, partition, projections, random, validation
from radazo.journal import file_format
from radazo.optimizers import combinators

_NO_BOUNDS = bytes(16)
# Between two steps a number of Python becomes an array, and is the same.
_NUMBERS = jax.Array | np.ndarray | np.generic | bool | int | float | complex
_ANOTHER = "Each run has a journal of its own: take the one of this run."


class Run(NamedTuple):
    """Where a run stands, and how it is known.

    Attributes:
      key_data: The two words of its key.
      count: Steps so far.
      params: Digest of names, shapes and types.
      state: The same, with the names of rules.
      bounds: Digest of the box; zeros for none.
      start: Digest of params and state as they are now.
    """

    key_data: tuple[int, int]
    count: int
    params: bytes
    state: bytes
    bounds: bytes
    start: bytes

    def header(
        self, num_directions: int, float_bytes: int
    ) -> file_format.JournalHeader:
        """The header of a journal that begins here."""
        device = jax.devices()[0]
        return file_format.JournalHeader(
            file_format.FORMAT,
            random.KEY_CONTRACT_VERSION,
            num_directions,
            float_bytes,
            self.key_data,
            self.count,
            self.params,
            self.state,
            self.start,
            self.bounds,
            f"jax {jax.__version__} on {device.device_kind}"[:48],
        )


def of(api_name: str, params: core.Params, state: Any, bounds: Any) -> Run:
    """The run that stands here."""
    counters = combinators.counters(api_name, state)
    high, low = np.asarray(counters.key_data).tolist()
    return Run(
        (high, low),
        int(counters.count),
        _digest(params),
        _digest(state, _kinds(jax.tree.structure(state))),
        _NO_BOUNDS if bounds is None else _of_bounds(api_name, params, bounds),
        _digest((params, state), contents=True),
    )


def told(api_name: str, params: core.Params, state: Any, bounds: Any) -> dict[str, str]:
    """What must be the same where a run goes on, by the name it has in a message."""
    run = of(api_name, params, state, bounds)
    return {
        "key": str(run.key_data),
        "optimizer": run.state.hex(),
        "start": f"{run.count} {run.start.hex()}",
        "bounds": run.bounds.hex(),
    }


def check(
    api_name: str, path: str, journal: file_format.JournalContents, run: Run
) -> None:
    """The journal is that of the run, and has the step at which it stands."""
    header, first = journal.header, journal.header.first
    kinds = "with other names, shapes or types"
    values = f"with other values before step {first}"
    found = [
        (header.key_data == run.key_data, f"of the key {header.key_data}"),
        (header.params == run.params, f"of parameters {kinds}"),
        (header.state == run.state, f"of an optimizer's state {kinds}"),
        (header.bounds == run.bounds, "of other `bounds`"),
        (
            first != run.count or header.start == run.start,
            f"of parameters or a state {values}",
        ),
    ]
    for fits, got in found:
        if not fits:
            rule = f"be the journal of this run, whose key is {run.key_data}"
            validation.fail(api_name, "path", rule, f"{path!r}, {got}", _ANOTHER)
    if not first <= run.count <= journal.end:
        validation.fail(
            api_name,
            "state",
            f"be of step {first} to {journal.end}, which the journal {path!r} has",
            f"one of step {run.count}",
            "Start from an earlier checkpoint, or with `optimizer.init`.",
        )


def _of_bounds(api_name: str, params: core.Params, bounds: Any) -> bytes:
    """Of what each array is kept in, however the bounds say it."""
    arrays = partition.split(params)[0]
    boxes = [
        [
            _shrunk(np.asarray(side))
            for side in projections.within(*pair, jnp.result_type(x))
        ]
        if core.is_floating(x) and x.size
        else None
        for x, pair in zip(
            arrays, projections.sides(api_name, params, bounds), strict=True
        )
    ]
    return _digest(boxes, contents=True)


def _shrunk(array: np.ndarray) -> np.ndarray:
    """A scalar in the place of an array that is the same everywhere."""
    first = array.reshape(-1)[0]
    return np.asarray(first) if np.all(array == first) else array


def _kinds(treedef: Any) -> str:
    """What the nodes of a tree are: rules may have states that look alike."""
    node = treedef.node_data()
    inner = ",".join(_kinds(child) for child in treedef.children())
    return f"{node[0].__name__}({inner})" if node else ""


def _digest(tree: Any, kinds: str = "", *, contents: bool = False) -> bytes:
    """Of names, shapes and types of leaves, or of what is in them, too."""
    digest = hashlib.blake2b(kinds.encode(), digest_size=len(_NO_BOUNDS))
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path)
        if not isinstance(leaf, _NUMBERS):
            digest.update(f"{name} {type(leaf).__name__}\n".encode())
            continue
        kind: Any = jnp.result_type(leaf)
        array: Any = leaf
        if jnp.issubdtype(kind, jax.dtypes.prng_key):
            array = jax.random.key_data(array)
            kind = array.dtype
        digest.update(f"{name} {kind} {np.shape(array)}\n".encode())
        if contents:
            digest.update(np.asarray(array).astype(kind).tobytes())
    return digest.digest()
