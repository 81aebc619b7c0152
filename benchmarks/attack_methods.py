"""The methods of the attack: update rules with a learning rate, and others without.

A method without a learning rate starts at θ = 0, where f changes with every pixel. To
compare another one, add a row to `UNTUNED`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import radazo
from benchmarks.methods import METHODS


class Untuned(NamedTuple):
    """A complete optimizer without a learning rate, and its label and style.

    Attributes:
      label: Label in tables and figures.
      optimizer: `optimizer(bound, key)`, for θ in [−bound, bound].
      values_per_step: Function values of a step.
      values_before: Values of a step up to that of its θ: 1 if it evaluates θ first,
        0 if an earlier step has.
      is_random: Whether a run depends on its seed. If not, images have one run each.
      color, dash: As in `Method`.
    """

    label: str
    optimizer: Callable[[float, Any], Any]
    values_per_step: int
    values_before: int
    is_random: bool
    color: str
    dash: Any


def _sign_search(bound: float, key: Any) -> Any:
    del key
    return radazo.sign_search(-bound, bound)


UNTUNED = {
    "sign_search": Untuned("sign_search", _sign_search, 1, 0, False, "#000000", "-"),
}
LABELLED = METHODS | UNTUNED
