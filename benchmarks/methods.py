"""The compared methods, with the constants of the paper for all of them.

At the same learning rate, and if estimates are mostly noise, a step of R-AdaZO is about
√((1 + b1) / (1 − b1)) = 4.36 times as long as one of ZO-AdaMM. A comparison at a shared
rate is therefore mostly one of rates. `zo_adamm_matched` is ZO-AdaMM with its learning
rate multiplied by that factor: compare R-AdaZO with that row.
"""

import argparse
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import optax

import radazo

B1, B2, EPS_ROOT = 0.9, 0.99, 1e-8
MATCHED = math.sqrt((1 + B1) / (1 - B1))
# How fine-tuning stores moments: next to a held gradient, or in place.
MOMENTS = ("held", "float32", "bfloat16", "per_part", "factored", "rebuilt")

CAVEAT = (
    f"At a shared learning rate a step of R-AdaZO is about √((1 + b1) / (1 − b1)) = "
    f"{MATCHED:.2f} times that of ZO-AdaMM, so comparing the two is mostly comparing "
    f"learning rates. The method zo_adamm_matched has its rate multiplied by "
    f"{MATCHED:.2f}: compare R-AdaZO with that one too."
)


class Method(NamedTuple):
    """An update rule, and its label and style.

    Attributes:
      label: Label in tables and figures.
      rule: `rule() -> optax.GradientTransformation`, without the learning rate.
      factor: Factor of the shared learning rate.
      color: Of lines in figures, from the colour-blind safe palette of Okabe and Ito.
      dash: Line style, which keeps lines that coincide visible.
      rates: Learning rates of the first round of tuning.
    """

    label: str
    rule: Callable[[], Any]
    factor: float
    color: str
    dash: Any
    rates: tuple[float, ...]


_AVERAGES = {"b1": B1, "b2": B2, "eps_root": EPS_ROOT}
_RADAZO = functools.partial(radazo.scale_by_radazo, **_AVERAGES)
_ZO_ADAMM = functools.partial(radazo.scale_by_zo_adamm, **_AVERAGES)
_AMSGRAD = functools.partial(_ZO_ADAMM, amsgrad=True)
_RMSPROP = functools.partial(radazo.scale_by_second_moment, b2=B2, eps_root=EPS_ROOT)
_MEAZO = functools.partial(_RMSPROP, granularity=radazo.optimizers.scalar)

# A step of a normalized rule is about its rate in each coordinate; a step of
# ZO-SGD is proportional to the gradient.
_NORMALIZED = tuple(10.0**k for k in range(-4, 1))
_PLAIN = tuple(10.0**k for k in range(-7, 2))
_DOTS = (0, (1, 3))

METHODS = {
    "radazo": Method("radazo", _RADAZO, 1.0, "#D55E00", "-", _NORMALIZED),
    "zo_adamm": Method("zo_adamm", _ZO_ADAMM, 1.0, "#0072B2", "-", _NORMALIZED),
    "zo_adamm_matched": Method(
        "zo_adamm (matched)", _ZO_ADAMM, MATCHED, "#56B4E9", "--", _NORMALIZED
    ),
    "zo_amsgrad": Method("zo_amsgrad", _AMSGRAD, 1.0, "#E69F00", "-", _NORMALIZED),
    "zo_rmsprop": Method("zo_rmsprop", _RMSPROP, 1.0, "#000000", ":", _NORMALIZED),
    "zo_sgd": Method("zo_sgd", optax.identity, 1.0, "#009E73", "-.", _PLAIN),
    "zo_signsgd": Method(
        "zo_signsgd", optax.scale_by_sign, 1.0, "#CC79A7", "-.", _NORMALIZED
    ),
    "meazo": Method("meazo", _MEAZO, 1.0, "#7F7F7F", _DOTS, _NORMALIZED),
}
# At a tuned rate, the matched method equals the plain one.
TUNED = tuple(name for name in METHODS if name != "zo_adamm_matched")


def optimizer(
    method: Method, learning_rate: Any, estimator: radazo.Estimator, key: Any
) -> optax.GradientTransformationExtraArgs:
    """Return the complete method: estimator, rule, learning rate."""
    rule = optax.chain(method.rule(), optax.scale_by_learning_rate(learning_rate))
    return radazo.with_estimator(estimator, rule, key)


def chosen(
    parser: argparse.ArgumentParser, option: str, names: str, known: Any
) -> list[str]:
    """Return the names in a comma-separated list, each one of `known`."""
    found = [name.strip() for name in names.split(",")]
    for name in found:
        if name not in known:
            parser.error(f"{option}: '{name}' is none of {', '.join(known)}")
    return found
