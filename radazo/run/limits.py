"""The limits of a run: when it ends, and a sentence that says why.

A run without a number of steps also ends by itself; see `has_converged`.
"""

import math
from typing import NamedTuple

import jax
import numpy as np

from radazo import core, validation

_FIRST_CHECK = 200  # Steps.
_GROWTH = 4  # The next check is a quarter of the steps later.
_VALUES_PER_ELEMENT = 4
_FEWEST_OF_BATCHES = 8
IDLE = 2  # Rounds of `zo_auto` without much gain that end a run.
DIVERGED_IF = ("finished", "max_values", "max_seconds", "converged")
_MAX_COUNT = 2**31 - 1  # Of the counter of function values.


class Limits(NamedTuple):
    """The limits of `minimize`; None for no limit."""

    num_steps: int | None = None
    max_values: int | None = None
    max_seconds: float | None = None
    target: float | None = None

    def check(self, api_name: str) -> None:
        """Check the arguments before the run."""
        if self.num_steps is not None:
            validation.integer(api_name, "num_steps", self.num_steps, 0, _STEPS)
        numbers = self._asdict()
        del numbers["num_steps"]
        validation.check(api_name, **numbers)

    def last_count(self, api_name: str, used: int) -> int | None:
        """Return the counter of function values that no step may exceed."""
        if self.max_values is None:
            return None
        if self.max_values > _MAX_COUNT - used:
            rule = f"be at most {_MAX_COUNT - used}, since the counter has 32 bits"
            hint = "Use `num_steps` or `max_seconds` for a longer run."
            validation.fail(api_name, "max_values", rule, repr(self.max_values), hint)
        return used + int(self.max_values)

    def next_check(self, num_steps: int) -> float:
        """Return the number of steps after which to look whether values still fall."""
        return next_check(num_steps) if self.num_steps is None else math.inf


def next_check(num_steps: int) -> int:
    """Return the first check after `num_steps` steps: 200, 250, 312, 390, ..."""
    return _checks(num_steps)[1]


def is_check(num_steps: int) -> bool:
    """Return whether to look after `num_steps` steps if values still fall."""
    return num_steps > 0 and _checks(num_steps)[0] == num_steps


def _checks(num_steps: int) -> tuple[int, int]:
    """Return the last check before or at `num_steps`, 0 if none, and the next one."""
    last, following = 0, _FIRST_CHECK
    while following <= num_steps:
        last, following = following, following + following // _GROWTH
    return last, following


def has_converged(values: np.ndarray, num_values: int, num_elements: int) -> bool:
    """Return whether the values of a run have stopped falling.

    Looked at after 200, 250, 312, ... steps, each time a quarter more, from 4 function
    values per element of the parameters on: the last quarter of the values has neither
    a lower median than the quarter before, nor a value below all earlier ones; and so
    it was at the previous check. It depends on nothing else, so a run that is resumed
    ends where it would have ended.

    Medians are not moved by single outliers; the last half of the run has to be without
    progress, so in a slow valley the longer the run the smaller the progress that keeps
    it going. Values with noise end it where noise exceeds the progress of a quarter.
    """
    last = len(values)
    if not is_check(last) or num_values < _VALUES_PER_ELEMENT * num_elements:
        return False
    before = _checks(last - 1)[0]
    return before > 0 and all(_has_stalled(values[:n]) for n in (last, before))


def _has_stalled(values: np.ndarray) -> bool:
    values = np.where(np.isnan(values), np.inf, values)
    quarter = len(values) // 4
    earlier, last = values[:-quarter], values[-quarter:]
    lower_median = np.median(last) < np.median(earlier[-quarter:])
    return not (lower_median or last.min() < earlier.min())


def has_diverged(values: np.ndarray, with_batches: bool) -> bool:
    """Return whether a run ended above its first value or at a non-finite one.

    One value may be high by chance: all of the last quarter must be above the first.
    Values of different batches are compared only if these are at least eight.
    """
    if not values.size:
        return False
    last = values[-max(len(values) // 4, 1) :]
    enough = len(last) >= (_FEWEST_OF_BATCHES if with_batches else 1)
    return bool(not np.isfinite(values[-1]) or (enough and np.min(last) > values[0]))


def num_elements(arrays: list[jax.Array]) -> int:
    """Return the number of floating-point elements."""
    return sum(x.size for x in arrays if core.is_floating(x))


def describe(
    limits: Limits,
    status: str,
    values: np.ndarray,
    used: int,
    *,
    diverged: bool,
    restarts: bool = False,
    is_tuned: bool = True,
) -> str:
    """Return a sentence about why a run ended; `used` counts its function values.

    `restarts` tells if `zo_auto` had exact values, `is_tuned` if another optimizer ran.
    """
    level = "the last quarter has neither a lower median than the quarter before nor a "
    level += "new lowest value"
    if restarts:
        level = "each of the last two wide searches, with the local search after it, "
        level += "gained at most 1 % of what was gained before"
    reasons = {
        "finished": f"All {limits.num_steps} steps are taken.",
        "running": "The run goes on.",
        "stopped": "`stop` held, or the callback returned True.",
        "exhausted": "No batch, or no budget of the pool, is left.",
        "interrupted": "A signal interrupted the run.",
        "target": f"The target {limits.target} is reached.",
        "max_values": f"The next step would exceed {limits.max_values} function "
        f"values; {used} are used.",
        "max_seconds": f"The limit of {limits.max_seconds} seconds is reached.",
        "converged": f"The values no longer fall: {level}.",
    }
    text = reasons[status]
    if diverged:
        last = f"The last value, {values[-1]:.6g}, is not finite. "
        if np.isfinite(values[-1]):
            last = f"The values rose from {values[0]:.6g} to {values[-1]:.6g}. "
        advice = "Lower the learning rate, or change the smoothing."
        text += f" {last}{advice if is_tuned else 'Start elsewhere.'}"
    elif status == "converged" and np.all(values == values[0]):
        advice = "increase the smoothing, or start elsewhere."
        text += (
            f" All are {values[0]:.6g}: {advice if is_tuned else 'start elsewhere.'}"
        )
    return text


_STEPS = "0 takes no step."
_VALUES = "It is the number of function values that the run may take."
validation.declare(
    validation.integer, "max_values", optional=True, minimum=1, hint=_VALUES
)
_SECONDS = "It is the time that the run may take, including compilation."
validation.declare(validation.positive, "max_seconds", optional=True, hint=_SECONDS)
_TARGET = "The run ends at the first value that is at most `target`."
validation.declare(validation.finite, "target", optional=True, hint=_TARGET)
