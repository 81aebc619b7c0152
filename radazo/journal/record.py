"""A step in two: what is seen of the function, then the move that this alone makes.

  entry         = what the estimator sees along its directions
  params, state = the step that has this entry

The second half is a program of its own, and a replay runs the same. Two programs round
apart, where one fuses a product into a sum and the other does not: no step that is
compiled together with a function is equal in every bit to one without.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer

from radazo import core, partition, replicas, validation
from radazo.evaluate import answers
from radazo.journal import file_format
from radazo.optimizers import combinators
from radazo.optimizers.in_place import InPlace

Box = Callable[[list[jax.Array]], list[jax.Array]]


def recorded_step(
    optimizer: Any, value_fn: core.ValueFn
) -> Callable[..., tuple[core.Params, Any, file_format.JournalEntry]]:
    """Steps for a loop of your own that keeps a journal: `replay` makes them again.

      entry = (hash of params, slopes, value), along those of fold_in(key, count)
      params, state ← the step of an optimizer that has seen these

    Args:
      optimizer: A complete ZO optimizer, as `radazo`, or an `in_place`.
      value_fn: The function.
    Returns:
      `step(params, state, **extra) -> (params, state, entry)`, where the keywords go to
      `value_fn`; `entry` is a `JournalEntry` to append. It is compiled, in two parts
      that must not be compiled together: do not call it within `jax.jit`. The
      parameters and the state that it is given are used up, as by `donate_argnums`.
    Raises:
      TypeError: If an argument is of the wrong kind; in `step`, if the optimizer needs
        more than one mean of slope times direction, as with `svrg_estimator` or a line
        search, or if it is traced.
    Cost:
      The function values of a step; K directions are drawn once more, and the
      parameters are read once more.
    Example:
      >>> optimizer = radazo.radazo(0.1, key=0)
      >>> params = jnp.ones(3)
      >>> step = recorded_step(optimizer, jnp.sum)
      >>> params, state, entry = step(params, optimizer.init(params))
      >>> print(state.num_values, entry.count, entry.slopes.shape, entry.value)
      11 0 (10,) 3.0
    """
    api_name = "recorded_step"
    check_optimizer(api_name, optimizer)
    validation.function(
        api_name, "value_fn", value_fn, "It takes the parameters first."
    )

    @functools.partial(jax.jit, static_argnums=0)
    def look(rest: partition.Static, arrays: Any, state: Any, extra: Any) -> Any:
        return seen(optimizer, value_fn, rest.join(arrays), state, **extra)[0]

    def step(
        params: core.Params, state: Any, **extra: Any
    ) -> tuple[core.Params, Any, file_format.JournalEntry]:
        arrays, rest = partition.split(params)
        if any(isinstance(x, Tracer) for x in jax.tree.leaves((arrays, state))):
            validation.fail(
                "recorded_step(...)",
                "params",
                "be arrays, since a step is two programs",
                "traced ones",
                "Call it in a loop of Python, outside of `jax.jit` and `lax.scan`.",
                TypeError,
            )
        entry = look(rest, arrays, state, extra)
        arrays, state = advanced(optimizer, rest, None, arrays, state, *entry[2:])
        return rest.join(arrays), state, entry

    return step


def seen(
    optimizer: Any,
    value_fn: core.ValueFn,
    params: core.Params,
    state: Any,
    **extra: Any,
) -> tuple[file_format.JournalEntry, combinators.WithEstimatorState]:
    """The first half: the entry, and the counters after the step."""
    watched = answers.Watched(value_fn, [])
    new = _state_after(optimizer, watched, params, state, **extra)
    counters = combinators.counters("recorded_step", new)
    if len(watched.infos) != 1:
        validation.fail(
            "recorded_step",
            "optimizer",
            "have an estimator that takes one mean of slope times direction in a step",
            f"one that takes {len(watched.infos)}",
            "Take `radazo.sphere_estimator()`, say.",
            TypeError,
        )
    info = watched.infos[0]
    entry = file_format.JournalEntry(
        counters.count - 1,
        replicas.short_fingerprint(partition.split(params)[0]),
        jnp.where(info.kept, info.slopes, jnp.nan),
        counters.last_value.astype(info.slopes.dtype),
        jnp.zeros((), jnp.bool_),
    )
    return entry, counters


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=(3, 4))
def advanced(
    optimizer: Any,
    rest: partition.Static,
    box: Box | None,
    arrays: list[jax.Array],
    state: Any,
    slopes: jax.Array,
    value: jax.Array,
    stopped: jax.Array,
) -> tuple[list[jax.Array], Any]:
    """The second half, of a run and of its replay."""
    arrays, state = jax.tree.map(_strong, (arrays, state))
    params = rest.join(arrays)
    replayed = answers.Replayed(slopes, ~jnp.isnan(slopes), value)
    if isinstance(optimizer, InPlace):
        params, state, _ = optimizer.step(replayed, params, state)
        return rest.pick(rest.treedef.flatten_up_to(params)), state
    updates, state = optimizer.update(None, state, params, value_fn=replayed)
    moved = core.moved(updates, params)
    new = rest.pick(rest.treedef.flatten_up_to(moved))
    new = new if box is None else box(new)
    pairs = zip(arrays, new, strict=True)
    return [
        jnp.where(stopped, old, x) if core.is_floating(x) else old for old, x in pairs
    ], state


def num_directions(optimizer: Any, params: core.Params, state: Any) -> int | None:
    """K of a step, which is not made; None where no mean is taken over directions."""
    counted = answers.Counted([])
    arrays, rest = partition.split(params)

    jax.eval_shape(
        lambda arrays, state: _state_after(
            optimizer, counted, rest.join(arrays), state
        ),
        arrays,
        state,
    )
    return counted.found[0] if counted.found else None


def _state_after(
    optimizer: Any, given: Any, params: core.Params, state: Any, **extra: Any
) -> Any:
    if isinstance(optimizer, InPlace):
        return optimizer.step(given, params, state, **extra)[1]
    return optimizer.update(None, state, params, value_fn=given, **extra)[1]


def _strong(leaf: jax.Array) -> jax.Array:
    """Without a weak type, so that the first step is the program of all others."""
    return lax.convert_element_type(leaf, leaf.dtype)


def check_optimizer(api_name: str, optimizer: Any) -> None:
    """It makes steps, in one way or the other."""
    if not isinstance(optimizer, InPlace):
        hint = "Pass `radazo.radazo(0.01, key=0)`, say, or `radazo.in_place(...)`."
        validation.transformation(api_name, optimizer, hint)
