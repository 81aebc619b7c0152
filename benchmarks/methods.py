"""The methods that are compared, with the paper's constants for all of them.

At an equal learning rate a step of R-AdaZO is about √((1 + b1) / (1 − b1)) = 4.36 times
that of ZO-AdaMM where estimates are mostly noise, so that a comparison at a shared rate
is mostly one of rates. `zo_adamm_matched` is ZO-AdaMM with its learning rate multiplied
by that number: the row to read R-AdaZO against.
"""

import argparse
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import radazo

B1, B2, EPS_ROOT = 0.9, 0.99, 1e-8
MATCHED = math.sqrt((1 + B1) / (1 - B1))

CAVEAT = (
    f"At a shared learning rate a step of R-AdaZO is about √((1 + b1) / (1 − b1)) = "
    f"{MATCHED:.2f} times that of ZO-AdaMM, so comparing the two is mostly comparing "
    f"learning rates. The method zo_adamm_matched has its rate multiplied by "
    f"{MATCHED:.2f}: read R-AdaZO against that one too."
)


class Method(NamedTuple):
    """A label, an optimizer as `make(learning_rate, estimator, key=...)`, its rate.

    Attributes:
      label: What tables and figures call it.
      make: `make(learning_rate, estimator, *, key)`, a complete optimizer.
      factor: What the shared learning rate is multiplied by.
      color: For figures, of the colour-blind safe palette of Okabe and Ito.
      dash: Line style, so that lines that lie on each other are both seen.
    """

    label: str
    make: Callable[..., Any]
    factor: float
    color: str
    dash: str


_AVERAGES = {"b1": B1, "b2": B2, "eps_root": EPS_ROOT}
_RADAZO = functools.partial(radazo.radazo, **_AVERAGES)
_ZO_ADAMM = functools.partial(radazo.zo_adamm, **_AVERAGES)
_ZO_RMSPROP = functools.partial(radazo.zo_rmsprop, b2=B2, eps_root=EPS_ROOT)

METHODS = {
    "radazo": Method("radazo", _RADAZO, 1.0, "#D55E00", "-"),
    "zo_adamm": Method("zo_adamm", _ZO_ADAMM, 1.0, "#0072B2", "-"),
    "zo_adamm_matched": Method(
        "zo_adamm (matched)", _ZO_ADAMM, MATCHED, "#56B4E9", "--"
    ),
    "zo_rmsprop": Method("zo_rmsprop", _ZO_RMSPROP, 1.0, "#000000", ":"),
    "zo_sgd": Method("zo_sgd", radazo.zo_sgd, 1.0, "#009E73", "-."),
    "zo_signsgd": Method("zo_signsgd", radazo.zo_signsgd, 1.0, "#CC79A7", "-."),
}


def chosen(
    parser: argparse.ArgumentParser, option: str, names: str, known: dict[str, Any]
) -> list[str]:
    """The names in a list separated by commas, each one of `known`."""
    found = [name.strip() for name in names.split(",")]
    for name in found:
        if name not in known:
            parser.error(f"{option}: '{name}' is none of {', '.join(known)}")
    return found
