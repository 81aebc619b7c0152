"""Compile many steps of a run into one call and record each of them."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from radazo import core, partition, validation
from radazo.journal import replaying
from radazo.optimizers import combinators, stepping

MAX_STEPS_PER_CALL, SECONDS_PER_CALL = 1024, 0.2
_MAX_SLOPES_PER_CALL = 2**22  # 16 MB of float32.


class Record(NamedTuple):
    """The record of a step; of a call, with a leading axis of steps.

    Attributes:
      values: The value that the estimate of the step returned.
      num_values: Function values up to and including the step.
      entry: The journal entry of the step; None without a journal.
    """

    values: Any
    num_values: Any
    entry: Any = None


class Best(NamedTuple):
    """The lowest finite value of a run, and the parameters before that step."""

    value: jax.Array
    arrays: list[jax.Array]

    def update(self, value: jax.Array, arrays: list[jax.Array]) -> "Best":
        """Return the better of this point and another."""
        value = value.astype(self.value.dtype)
        lower = jnp.isfinite(value) & (value < self.value)
        kept = core.select(lower, arrays, self.arrays)
        return Best(jnp.where(lower, value, self.value), kept)


class Position(NamedTuple):
    """What a step changes: arrays of the parameters, state, and `Best` or None."""

    arrays: list[jax.Array]
    state: Any
    best: Best | None = None


class Setup(NamedTuple):
    """The arguments of `minimize` that are compiled; `value_fn` takes a batch, too.

    `last_count` is the number of function values, by the counter of the state, that no
    step may exceed.
    """

    value_fn: core.ValueFn
    optimizer: Any
    rest: partition.Static
    box: replaying.Box
    batches: Any
    stop: Callable[[jax.Array, core.Params], Any] | None
    target: float | None = None
    last_count: int | None = None

    def ends(self, value: jax.Array, arrays: list[jax.Array]) -> Any:
        """Return whether the run ends with these parameters, or None if never."""
        ended = None
        if self.stop is not None:
            ended = _answer(self.stop(value, self.rest.join(arrays)))
        if self.target is not None:
            reached = value <= self.target
            ended = reached if ended is None else ended | reached
        return ended

    def num_needed(self, arrays: list[jax.Array], state: Any) -> Any:
        """Return the function values of the next step; an int if they are constant."""
        *_, queries = stepping.first_evaluation(
            self.optimizer, self.rest.join(arrays), state
        )
        return queries.num_needed()

    def has_room(self, arrays: list[jax.Array], state: Any) -> Any:
        """Return whether the next step keeps within `last_count`."""
        if self.last_count is None:
            return jnp.asarray(True)
        found = combinators.find_estimator_state("minimize", state)
        # Subtract: the counter is close to the largest int32 in long runs.
        return found.num_values <= self.last_count - self.num_needed(arrays, state)

    def batch_of(self, state: Any, batch: Any) -> Any:
        """Return the batch of the step that follows `state`."""
        count = combinators.find_estimator_state("minimize", state).count
        return self.batches(count) if callable(self.batches) else batch


def compiled_steps(setup: Setup) -> Callable[..., Any]:
    """Compile `steps(position, num, batch)`, which takes up to `num` steps.

    It returns `(position, records, taken, stopped)`; only the first `taken` elements of
    the arrays in the `Record` are valid. It ends early where `setup` says so.
    """
    value_fn, optimizer, rest, box = setup[:4]

    @functools.partial(jax.jit, donate_argnums=0)
    def steps(position: Position, num: int, batch: Any) -> Any:
        def step(carry: Any) -> Any:
            (arrays, state, best), records, i, _ = carry
            params, now = rest.join(arrays), setup.batch_of(state, batch)
            params, state = stepping.take_step(
                optimizer, value_fn, params, state, batch=now
            )
            found = combinators.find_estimator_state("minimize", state)
            ended = setup.ends(found.last_value, arrays)
            ended = jnp.asarray(False) if ended is None else ended
            moved = box(rest.pick(rest.treedef.flatten_up_to(params)))
            if best is not None:
                best = best.update(found.last_value, arrays)
            arrays = core.select(ended, arrays, moved)
            new = Record(found.last_value, found.num_values)
            records = jax.tree.map(lambda x, y: x.at[i].set(y), records, new)
            return Position(arrays, state, best), records, i + 1, ended

        def goes_on(carry: Any) -> jax.Array:
            (arrays, state, _), _, i, ended = carry
            go = (i < num) & ~ended
            return (
                go if setup.last_count is None else go & setup.has_room(arrays, state)
            )

        records = Record(
            jnp.zeros(MAX_STEPS_PER_CALL, jnp.result_type(float)),
            jnp.zeros(MAX_STEPS_PER_CALL, jnp.int32),
        )
        start = (position, records, jnp.int32(0), jnp.asarray(False))
        return lax.while_loop(goes_on, step, start)

    return steps


def recorded_steps(setup: Setup) -> Callable[..., Any]:
    """Return `compiled_steps` for a journal: two programs a step, as in a replay."""
    value_fn, optimizer, rest, box = setup[:4]

    @jax.jit
    def read(position: Position, batch: Any) -> Any:
        arrays, state, best = position
        params, now = rest.join(arrays), setup.batch_of(state, batch)
        entry = replaying.read_entry(optimizer, value_fn, params, state, batch=now)
        value = entry.value.astype(jnp.result_type(float))
        ended = setup.ends(value, arrays)
        if ended is not None:
            entry = entry._replace(stopped=ended)
        return entry, None if best is None else best.update(value, arrays)

    has_room = jax.jit(setup.has_room)
    may_end = setup.stop is not None or setup.target is not None

    def steps(position: Position, num: int, batch: Any) -> Any:
        records = []
        while len(records) < num:
            arrays, state, _ = position
            if setup.last_count is not None and not has_room(arrays, state):
                break
            entry, best = read(position, batch)
            arrays, state = replaying.apply_entry(
                optimizer, rest, box, arrays, state, entry
            )
            position = Position(arrays, state, best)
            found = combinators.find_estimator_state("minimize", state)
            # Copies, since the next step donates the state.
            numbers = jnp.copy(found.last_value), jnp.copy(found.num_values)
            records.append(Record(*numbers, entry))
            size = len(records) * entry.slopes.size
            if size > _MAX_SLOPES_PER_CALL or (may_end and entry.stopped):
                break
        last = records[-1].entry.stopped
        records = jax.tree.map(lambda *x: np.stack(x), *jax.device_get(records))
        return position, records, len(records.values), last

    return steps


def _answer(answer: Any) -> jax.Array:
    if jnp.shape(answer) != () or jnp.result_type(answer) != jnp.bool_:
        got = f"shape {jnp.shape(answer)} of type {jnp.result_type(answer)}"
        hint = "Take `jnp.all` or `jnp.any` of an array."
        validation.fail("minimize", "stop", "return one bool", got, hint, TypeError)
    return jnp.asarray(answer)
