"""The state of a run between two calls: parameters, optimizer, history, status.

`minimize` and the runs of a pool share it.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from radazo import core, partition, projections, replicas, validation
from radazo.journal import file, run_id
from radazo.optimizers import combinators
from radazo.run import checkpointing, loop

_SECONDS_PER_CALL = 0.2


class MinimizeResult(NamedTuple):
    """The result of a run.

    Attributes:
      params: The last parameters, a pytree like those given.
      state: The optimizer's state; pass it to `minimize` to continue.
      values: (num_steps,) NumPy array, the value of the estimate of each step: with
        `forward` that of the parameters before the step.
      num_values: (num_steps,) NumPy array, function values up to each step.
      num_steps: Steps taken. With `checkpoints` this, `values` and `num_values` include
        the earlier calls.
      status: "finished", "stopped" (by `stop` or the callback), "exhausted" (no batch
        left, or no budget of a pool) or "interrupted" (Ctrl-C, and SIGTERM with
        `checkpoints`).
    """

    params: core.Params
    state: Any
    values: np.ndarray
    num_values: np.ndarray
    num_steps: int
    status: str


def started(
    api_name: str,
    params: core.Params,
    optimizer: Any,
    num_steps: int,
    state: Any,
    bounds: Any,
) -> tuple["_Run", Callable[[list[jax.Array]], list[jax.Array]] | None]:
    """Return a run before its first step, and the clipping to its bounds."""
    box = None if bounds is None else projections.clipping(api_name, params, bounds)
    arrays, rest = partition.split(params)
    arrays = partition.copied(arrays) if box is None else box(partition.copied(arrays))
    state = _state(api_name, optimizer, rest.join(arrays), state)
    return _Run(rest, arrays, state, num_steps, bounds), box


class _Run:
    """The mutable state of a run between two calls."""

    def __init__(
        self,
        rest: partition.Static,
        arrays: list[jax.Array],
        state: Any,
        num_steps: int,
        bounds: Any,
    ) -> None:
        self.rest, self.arrays, self.state = rest, arrays, state
        self.bounds, self.identity = bounds, {}
        self.history = loop.Record(
            values=np.zeros(num_steps, np.dtype(jnp.result_type(float))),
            num_values=np.zeros(num_steps, np.int64),
        )
        self.done, self.status = 0, "finished"
        self.pace, self.compiled = 1, False
        self.journal: file.Journal | None = None

    def goes_on(self) -> bool:
        return self.done < self.history.values.size and self.status == "finished"

    def advance(self, steps: Any, limit: int, batch: Any) -> int:
        """Make one call and return the number of steps taken."""
        num = min(limit, self.pace)
        begun = time.perf_counter()
        self.arrays, self.state, *seen = steps(self.arrays, self.state, num, batch)
        records, taken, stopped = jax.device_get(seen)
        seconds = time.perf_counter() - begun
        if self.compiled:  # The first call includes compilation.
            fitting = int(num * _SECONDS_PER_CALL / max(seconds, 1e-6))
            self.pace = max(1, min(fitting, 8 * num, loop.MAX_STEPS_PER_CALL))
        self.compiled = True
        records = jax.tree.map(lambda x: x[:taken], records)
        for all_steps, new in zip(self.history[:2], records[:2], strict=True):
            all_steps[self.done : self.done + int(taken)] = new
        if self.journal is not None:
            # Sync before any checkpoint, which must not be ahead of the journal.
            self.journal.append(records.entry)
            self.journal.sync()
        self.done += int(taken)
        if stopped:
            self.status = "stopped"
        return int(taken)

    def last_value(self) -> float:
        return float(self.history.values[self.done - 1])

    def call_back(self, callback: Callable[[MinimizeResult], Any] | None) -> None:
        """Call the callback; only a returned True has an effect."""
        answer = None if callback is None else callback(self.result())
        if isinstance(answer, bool | np.bool_ | jax.Array) and answer:
            self.status = "stopped"

    @contextlib.contextmanager
    def kept_in(
        self, api_name: str, checkpoints: Any
    ) -> Iterator[checkpointing.Checkpoints]:
        """Restore the latest checkpoint on entry; save one on exit."""
        with checkpointing.opened(api_name, checkpoints) as kept:
            if kept.folder:
                self.identity = run_id.told(api_name, *self.here(), self.bounds)
            self.resume(api_name, kept)
            yield kept
            kept.save(self.done, self.tree(), now=True)

    def keep(self, kept: checkpointing.Checkpoints) -> None:
        """Save a checkpoint if one is due, and handle Ctrl-C.

        Processes that share a run must take equally many steps in a call.
        """
        kept.save(self.done, self.tree())
        known = replicas.of_all_processes(self.pace, kept.interrupted())
        self.pace = int(np.min(known[:, 0]))
        if np.any(known[:, 1]) and self.status == "finished":
            self.status = "interrupted"

    def here(self) -> tuple[core.Params, Any]:
        return self.rest.join(self.arrays), self.state

    def result(self) -> MinimizeResult:
        # Copies, since the next call donates these buffers.
        return MinimizeResult(
            self.rest.join(partition.copied(self.arrays)),
            partition.copied(self.state),
            self.history.values[: self.done].copy(),
            self.history.num_values[: self.done].copy(),
            self.done,
            self.status,
        )

    def tree(self) -> dict[str, Any]:
        """Return the tree to save; the checkpoint is numbered by its steps."""
        return {
            "params": self.rest.join(self.arrays),
            "state": self.state,
            "history": jax.tree.map(lambda x: x[: self.done], self.history),
            "stopped": self.status == "stopped",
            "run": self.identity,
        }

    def resume(self, api_name: str, kept: checkpointing.Checkpoints) -> None:
        """Restore the latest checkpoint, if any."""
        done, tree = kept.restore(self.tree())
        if done > self.history.values.size:
            validation.fail(
                api_name,
                "num_steps",
                f"be at least {done}, the steps that the run has taken",
                f"{self.history.values.size} for the run in {kept.folder!r}",
                "It is the total, and what was before is no longer kept: ask for more, "
                "or start in another folder.",
            )
        other = [name for name, x in self.identity.items() if tree["run"][name] != x]
        if other:
            validation.fail(
                api_name,
                "checkpoints",
                "hold this run",
                f"{kept.folder!r}, a run with another {' and another '.join(other)}",
                "Start in another folder.",
            )
        self.arrays, self.state = partition.split(tree["params"])[0], tree["state"]
        for all_steps, before in zip(
            self.history[:2], tree["history"][:2], strict=True
        ):
            all_steps[:done] = before
        self.done, self.status = done, "stopped" if tree["stopped"] else "finished"


def _state(
    api_name: str,
    optimizer: optax.GradientTransformation,
    params: core.Params,
    state: Any,
) -> Any:
    """Return a new state, or a copy of the one given."""
    if state is None:
        state = optimizer.init(params)
        combinators.find_estimator_state(api_name, state)
        return partition.copied(state)
    fresh = jax.eval_shape(lambda: optimizer.init(params))
    combinators.find_estimator_state(api_name, fresh)

    def kinds(tree: Any) -> Any:
        leaves, treedef = jax.tree.flatten(tree)
        return treedef, [
            [getattr(x, a, None) for a in ("shape", "dtype")] for x in leaves
        ]

    if kinds(state) != kinds(fresh):
        validation.fail(
            api_name,
            "state",
            "be a state of `optimizer` for these `params`",
            f"one of another structure or other shapes, {state!r}"[:200],
            "Give the `state` of a result with the same optimizer, or None.",
        )
    return partition.copied(state)


def check_steps(api_name: str, num_steps: Any, callback: Any) -> None:
    """Check the arguments of every run: the number of steps and the callback."""
    validation.integer(
        api_name, "num_steps", num_steps, 0, "It is the number of steps."
    )
    if callback is not None:
        hint = "It is called with the `MinimizeResult` so far."
        validation.function(api_name, "callback", callback, hint)
