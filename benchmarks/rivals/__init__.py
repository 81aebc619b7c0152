"""Other packages, each behind one function of the same signature.

`run(algorithm, problem, start, seed, knob, num_values) -> Trace`, in a module for each
package, which is imported only if one of its methods runs. The docstring of a module
describes the settings of its package. NumPy packages compute in float64; the others in
the dtype of `start`.

Methods are ordered by their time, the slowest last. `max_dim` bounds methods whose
matrix or time grows too fast. It also bounds SPSA of nevergrad, which takes half a
minute for a run of a few seconds in noisyopt. DiagonalCMA of nevergrad is left out: it
is the separable CMA-ES of pycma, which has a row, at twice the time.
"""

import importlib
import math
from types import ModuleType
from typing import NamedTuple


class Package(NamedTuple):
    """A package: its label in tables, and its colour, of Okabe and Ito."""

    label: str
    color: str


class Method(NamedTuple):
    """An algorithm of a package, and its tuned setting.

    Attributes:
      package: Module of `benchmarks.rivals`.
      algorithm: Its name there.
      knob: The tuned setting: the learning rate, the initial standard deviation of
        samples or mutations, or the gain a of SPSA.
      center: Its first value in tuning, as (c, p) for c · dᵖ.
      max_dim: Most parameters it is run for.
    """

    package: str
    algorithm: str
    knob: str
    center: tuple[float, float]
    max_dim: float = math.inf


PACKAGES = {
    "radazo": Package("radazo", "#D55E00"),
    "torch_loop": Package("PyTorch loop", "#0072B2"),
    "noisyopt": Package("noisyopt", "#000000"),
    "evosax": Package("evosax", "#009E73"),
    "evotorch": Package("EvoTorch", "#56B4E9"),
    "pycma": Package("pycma", "#CC79A7"),
    "nevergrad": Package("nevergrad", "#E69F00"),
}
RATE, STD, GAIN = "rate", "std", "gain"
METHODS = {
    "radazo_radazo": Method("radazo", "radazo", RATE, (3e-3, 0)),
    "radazo_zo_adamm": Method("radazo", "zo_adamm", RATE, (1e-2, 0)),
    "radazo_zo_adamm_rademacher": Method(
        "radazo", "zo_adamm Rademacher", RATE, (1e-2, 0)
    ),
    "radazo_zo_sgd": Method("radazo", "zo_sgd", RATE, (1, -1)),
    "radazo_zo_sgd_central": Method("radazo", "zo_sgd central", RATE, (1, -1)),
    "torch_radazo": Method("torch_loop", "R-AdaZO", RATE, (3e-3, 0)),
    "torch_zo_adamm": Method("torch_loop", "ZO-AdaMM", RATE, (1e-2, 0)),
    "noisyopt_spsa": Method("noisyopt", "SPSA", GAIN, (10, -1)),
    "evosax_open_es": Method("evosax", "Open_ES", RATE, (1e-2, 0)),
    "evosax_pgpe": Method("evosax", "PGPE", RATE, (1e-3, 0.5)),
    "evosax_snes": Method("evosax", "SNES", STD, (0.1, 0)),
    "evosax_sep_cma": Method("evosax", "Sep_CMA_ES", STD, (0.1, 0)),
    "evosax_cma": Method("evosax", "CMA_ES", STD, (0.1, 0), 1000),
    "evotorch_pgpe": Method("evotorch", "PGPE", RATE, (1e-3, 0.5)),
    "evotorch_snes": Method("evotorch", "SNES", STD, (0.1, 0)),
    "pycma_cma": Method("pycma", "CMA", STD, (0.1, 0), 1000),
    "pycma_sep_cma": Method("pycma", "sep-CMA", STD, (0.1, 0)),
    "nevergrad_one_plus_one": Method("nevergrad", "OnePlusOne", STD, (0.1, 0)),
    "nevergrad_spsa": Method("nevergrad", "SPSA", GAIN, (10, -1), 1000),
}


def label(name: str) -> str:
    method = METHODS[name]
    return f"{PACKAGES[method.package].label} {method.algorithm}"


def load(package: str) -> ModuleType | str:
    """Return the module of a package, or a message if the package is not installed."""
    try:
        return importlib.import_module(f"benchmarks.rivals.{package}")
    except ImportError as error:
        return (
            f"{PACKAGES[package].label} cannot be imported ({error}), and its methods "
            f"are left out. To install it: pip install '.[peers]'"
        )
