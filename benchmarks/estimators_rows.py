"""The estimators that are compared: one table.

A row is made at the setting of a task, so that all move the same distance along a
direction: laws whose directions are about √d long get the distance over √d.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import radazo


class Setting(NamedTuple):
    """What a task gives to all estimators.

    Attributes:
      dim: d, number of parameters.
      num_directions: K.
      smoothing: Distance moved along a direction, whatever its law.
      chunk_size: Directions evaluated in one batch, for those that can.
    """

    dim: int
    num_directions: int
    smoothing: float
    chunk_size: int

    @property
    def each(self) -> float:
        """How far each parameter moves when all do."""
        return self.smoothing / self.dim**0.5

    @property
    def shared(self) -> dict[str, int]:
        """Arguments of all means over directions, but for `smoothing`."""
        return {
            "num_directions": self.num_directions,
            "chunk_size": self.chunk_size,
        }


class Row(NamedTuple):
    """An estimator, and how it is shown.

    Attributes:
      label: What tables and figures call it.
      make: `make(setting, **options) -> radazo.Estimator`.
      options: What else it is made with; a result line keeps it.
      notes: What a reader of its numbers must know.
      max_dim: The largest d that it is for, or None.
      is_reference: Whether it takes more than function values: it is shown, and never
        named the best.
    """

    label: str
    make: Callable[..., radazo.Estimator]
    options: Mapping[str, Any] = MappingProxyType({})
    notes: str = ""
    max_dim: int | None = None
    is_reference: bool = False


def _sphere(setting: Setting) -> radazo.Estimator:
    return radazo.sphere_estimator(smoothing=setting.smoothing, **setting.shared)


def _gaussian(setting: Setting) -> radazo.Estimator:
    return radazo.gaussian_estimator(smoothing=setting.each, **setting.shared)


def _rademacher(setting: Setting) -> radazo.Estimator:
    return radazo.rademacher_estimator(smoothing=setting.each, **setting.shared)


def _coordinate(setting: Setting) -> radazo.Estimator:
    return radazo.coordinate_estimator(smoothing=setting.smoothing, **setting.shared)


def _orthogonal(setting: Setting) -> radazo.Estimator:
    return radazo.orthogonal_estimator(smoothing=setting.smoothing, **setting.shared)


def _central(setting: Setting) -> radazo.Estimator:
    return radazo.gaussian_estimator(
        smoothing=setting.each, difference=radazo.central, **setting.shared
    )


def _mezo(setting: Setting) -> radazo.Estimator:
    return radazo.gaussian_estimator(
        smoothing=setting.each, difference=radazo.central, num_directions=1
    )


ROWS = {
    "sphere": Row("sphere", _sphere),
    "gaussian": Row("Gaussian", _gaussian),
    "rademacher": Row("Rademacher", _rademacher),
    "coordinate": Row("coordinate", _coordinate),
    "orthogonal": Row("orthogonal", _orthogonal),
    "gaussian_central": Row("Gaussian, central", _central),
    "mezo": Row("MeZO", _mezo, notes="Gaussian, central, K = 1"),
}
