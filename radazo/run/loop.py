"""Compile many steps of a run into one call and record each of them."""

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


class Setup(NamedTuple):
    """The arguments of `minimize` that are compiled; `value_fn` takes a batch, too."""

    value_fn: core.ValueFn
    optimizer: Any
    rest: partition.Static
    box: replaying.Box
    batches: Any
    stop: Callable[[jax.Array, core.Params], Any] | None

    def batch_of(self, state: Any, batch: Any) -> Any:
        """Return the batch of the step that follows `state`."""
        count = combinators.find_estimator_state("minimize", state).count
        return self.batches(count) if callable(self.batches) else batch


def compiled_steps(setup: Setup) -> Callable[..., Any]:
    """Compile `steps(arrays, state, num, batch)`.

    It returns `(arrays, state, records, taken, stopped)`; only the first `taken`
    elements of the arrays in the `Record` are valid.
    """
    value_fn, optimizer, rest, box, _, stop = setup

    @jax.jit(donate_argnums=(0, 1))
    def steps(arrays: list[jax.Array], state: Any, num: int, batch: Any) -> Any:
        def step(carry: Any) -> Any:
            arrays, state, records, i, _ = carry
            params, now = rest.join(arrays), setup.batch_of(state, batch)
            params, state = stepping.take_step(
                optimizer, value_fn, params, state, batch=now
            )
            found = combinators.find_estimator_state("minimize", state)
            ended = jnp.asarray(False)
            if stop is not None:
                ended = _answer(stop(found.last_value, rest.join(arrays)))
            moved = box(rest.pick(rest.treedef.flatten_up_to(params)))
            arrays = core.select(ended, arrays, moved)
            new = Record(found.last_value, found.num_values)
            records = jax.tree.map(lambda x, y: x.at[i].set(y), records, new)
            return arrays, state, records, i + 1, ended

        records = Record(
            jnp.zeros(MAX_STEPS_PER_CALL, jnp.result_type(float)),
            jnp.zeros(MAX_STEPS_PER_CALL, jnp.int32),
        )
        start = (arrays, state, records, jnp.int32(0), jnp.asarray(False))
        return lax.while_loop(lambda carry: (carry[3] < num) & ~carry[4], step, start)

    return steps


def recorded_steps(setup: Setup) -> Callable[..., Any]:
    """Return `compiled_steps` for a journal: two programs a step, as in a replay."""
    value_fn, optimizer, rest, box, _, stop = setup

    @jax.jit
    def read(arrays: list[jax.Array], state: Any, batch: Any) -> Any:
        params, now = rest.join(arrays), setup.batch_of(state, batch)
        entry = replaying.read_entry(optimizer, value_fn, params, state, batch=now)
        if stop is not None:
            value = entry.value.astype(jnp.result_type(float))
            entry = entry._replace(stopped=_answer(stop(value, params)))
        return entry

    def steps(arrays: list[jax.Array], state: Any, num: int, batch: Any) -> Any:
        records = []
        while len(records) < num:
            entry = read(arrays, state, batch)
            arrays, state = replaying.apply_entry(
                optimizer, rest, box, arrays, state, entry
            )
            found = combinators.find_estimator_state("minimize", state)
            # Copies, since the next step donates the state.
            numbers = jnp.copy(found.last_value), jnp.copy(found.num_values)
            records.append(Record(*numbers, entry))
            size = len(records) * entry.slopes.size
            if size > _MAX_SLOPES_PER_CALL or (stop and entry.stopped):
                break
        last = records[-1].entry.stopped
        records = jax.tree.map(lambda *x: np.stack(x), *jax.device_get(records))
        return arrays, state, records, len(records.values), last

    return steps


def _answer(answer: Any) -> jax.Array:
    if jnp.shape(answer) != () or jnp.result_type(answer) != jnp.bool_:
        got = f"shape {jnp.shape(answer)} of type {jnp.result_type(answer)}"
        hint = "Take `jnp.all` or `jnp.any` of an array."
        validation.fail("minimize", "stop", "return one bool", got, hint, TypeError)
    return jnp.asarray(answer)
