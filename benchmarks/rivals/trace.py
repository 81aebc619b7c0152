"""The record of a run, the same for every package.

Two values are recorded at some 40 counts of function values:

  current   f at the point that the package would return then: for evolution strategies
            the mean of the sampler, for nevergrad its recommendation
  best      the lowest value that the run has seen, including `current`

Methods are tuned and compared by `best`, so that the choice of the returned point does
not matter. Evaluations of `current` do not count as part of the budget.
"""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

NUM_RECORDS = 40


class Trace(NamedTuple):
    """One run.

    Attributes:
      points: (records,) function values taken up to each record; the first is 0.
      current: (records,) f at the point that would be returned.
      best: (records,) lowest value seen so far.
      seconds: Processor time of the run without compilation; on the one core of the
        process it equals wall time on an idle machine.
      compile_seconds: Wall time of compilation, 0 if nothing was compiled.
    """

    points: np.ndarray
    current: np.ndarray
    best: np.ndarray
    seconds: float
    compile_seconds: float


class Recorder:
    """Count function values and keep a record at every 40th part of the budget."""

    def __init__(self, start_value: float, num_values: int) -> None:
        self.taken, self.lowest = 0, float(start_value)
        self.every, self.due = num_values / NUM_RECORDS, 0.0
        self.rows: list[tuple[int, float, float]] = []
        self.started = time.process_time()
        self._keep(start_value)

    def step(self, values: Sequence[float], current: Callable[[], float]) -> None:
        """Record a step that took `values`; call `current()` if a record is due."""
        # The lowest first: a comparison with NaN then keeps it.
        self._see(len(values), min((self.lowest, *values)))
        if self.taken >= self.due:
            # Record also a step that ends slightly early.
            self.due = self.taken + 0.9 * self.every
            self._keep(current())

    def chunk(self, num: int, lowest: float, current: float) -> None:
        """Record a chunk of steps that took `num` values, with their known lowest."""
        self._see(num, float(lowest))
        self._keep(current)

    def finish(
        self, current: Callable[[], float], compile_seconds: float = 0.0
    ) -> Trace:
        seconds = time.process_time() - self.started
        if self.rows[-1][0] < self.taken:
            self._keep(current())
        points, values, best = map(np.array, zip(*self.rows, strict=True))
        return Trace(points, values, best, seconds, compile_seconds)

    def _see(self, num: int, lowest: float) -> None:
        self.taken += num
        self.lowest = min(self.lowest, lowest)

    def _keep(self, current: float) -> None:
        self.lowest = min(self.lowest, float(current))
        self.rows.append((self.taken, float(current), self.lowest))


def chunks(num_steps: int) -> list[int]:
    """Return the numbers of steps between records, for compiled programs."""
    ends = np.unique(np.linspace(0, num_steps, NUM_RECORDS + 1).astype(int))
    return np.diff(ends).tolist()
