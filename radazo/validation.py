"""What is known about an argument before tracing, and the one form of message.

A message says where, the rule, what came, and the way out. Traced values cannot be
looked at: they are let through, and what they break shows in `EstimateInfo`.
"""

import decimal
import math
import numbers
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, NamedTuple, NoReturn, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def fail(
    where: str,
    argument: str,
    rule: str,
    got: Any,
    way_out: str,
    kind: type[Exception] = ValueError,
) -> NoReturn:
    """Raise `kind` with the message that all of radazo's errors share."""
    raise kind(f"`{where}({argument}=...)` must {rule}; got {got}. {way_out}")


def _is_number(value: Any) -> bool:
    """Whether `value` is a real scalar (of Python, NumPy or JAX) that can be read."""
    if isinstance(value, bool | np.bool_):
        return False
    if isinstance(value, int | float | np.number):
        return not isinstance(value, np.complexfloating)
    return (
        isinstance(value, np.ndarray | jax.Array)
        and value.ndim == 0
        and (
            np.issubdtype(value.dtype, np.integer)
            or jnp.isdtype(value.dtype, "real floating")
        )
    )


def integer(where: str, argument: str, value: Any, minimum: int, way_out: str) -> None:
    """`value` is a Python or NumPy integer of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        fail(where, argument, "be an integer", repr(value), way_out, TypeError)
    if value < minimum:
        fail(where, argument, f"be at least {minimum}", repr(value), way_out)


def _number(
    where: str,
    argument: str,
    value: Any,
    rule: str,
    holds: Callable[[float], bool],
    way_out: str,
    *,
    schedule: bool = False,
) -> None:
    """`value` is a finite real number for which `holds`; or a schedule, if allowed."""
    if isinstance(value, Tracer) or (schedule and callable(value)):
        return
    if not _is_number(value):
        kind = "a number or a schedule" if schedule else "a number"
        fail(where, argument, f"be {kind}", repr(value), way_out, TypeError)
    if not (math.isfinite(float(value)) and holds(float(value))):
        fail(where, argument, rule, repr(value), way_out)


def positive(
    where: str, argument: str, value: Any, way_out: str, *, schedule: bool = False
) -> None:
    """`value` is greater than 0."""
    _number(
        where,
        argument,
        value,
        "be finite and greater than 0",
        lambda x: x > 0,
        way_out,
        schedule=schedule,
    )


def non_negative(
    where: str, argument: str, value: Any, way_out: str, *, schedule: bool = False
) -> None:
    """`value` is 0 or greater."""
    _number(
        where,
        argument,
        value,
        "be finite and at least 0",
        lambda x: x >= 0,
        way_out,
        schedule=schedule,
    )


def decay(where: str, argument: str, value: Any) -> None:
    """`value` is a decay rate, in [0, 1)."""
    _number(
        where,
        argument,
        value,
        "be in [0, 1)",
        lambda x: 0 <= x < 1,
        "It is the share of the past that a moment keeps at each step.",
    )


def share(where: str, argument: str, value: Any, way_out: str) -> None:
    """`value` is a share, in [0, 1]."""
    _number(where, argument, value, "be in [0, 1]", lambda x: 0 <= x <= 1, way_out)


def moments(
    where: str, b1: Any, b2: Any, eps: Any, eps_root: Any, mu_dtype: Any = None
) -> None:
    """The constants of a rule made of moments."""
    decay(where, "b1", b1)
    decay(where, "b2", b2)
    for argument, value in (("eps", eps), ("eps_root", eps_root)):
        way_out = "It keeps the division from overflowing."
        non_negative(where, argument, value, way_out)
    floating(where, "mu_dtype", mu_dtype)


def floating(where: str, argument: str, value: Any) -> None:
    """`value` is None or names a floating-point type."""
    try:
        fits = value is None or jnp.issubdtype(value, jnp.floating)
    except TypeError:
        fits = False
    if not fits:
        rule = "be None or a floating-point type"
        fail(where, argument, rule, repr(value), "Pass `jnp.bfloat16`, say.", TypeError)


def function(where: str, argument: str, value: Any, way_out: str) -> None:
    """`value` can be called."""
    if not callable(value):
        fail(where, argument, "be a function", repr(value), way_out, TypeError)


def transformation(where: str, optimizer: Any, way_out: str) -> None:
    """`optimizer` has the two functions of an `optax.GradientTransformation`."""
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        rule = "be an optax.GradientTransformation"
        fail(where, "optimizer", rule, repr(optimizer), way_out, TypeError)


def current_params(where: str, params: Any, way_out: str) -> None:
    """An `update` was given the parameters, which optax lets one leave out."""
    if params is None:
        fail(where, "params", "be the current parameters", "None", way_out)


def instance(where: str, argument: str, value: Any, of: type, way_out: str) -> None:
    """`value` is an `of`."""
    if not isinstance(value, of):
        fail(where, argument, f"be {_article(of)}", repr(value), way_out, TypeError)


def real(returned: Any) -> float:
    """The value as a float, NaN if it is no real number: a truth value is none."""
    if isinstance(returned, numbers.Real | decimal.Decimal):
        try:
            return math.nan if isinstance(returned, bool) else float(returned)
        except OverflowError:
            return math.inf  # Beyond what a float holds, and no more finite.
    try:
        array = np.asarray(returned)
    except (TypeError, ValueError):
        return math.nan  # Leaves of several shapes, or a key.
    if array.shape == () and jnp.isdtype(array.dtype, ("integral", "real floating")):
        return float(array)
    return math.nan


@contextmanager
def traceable(where: str) -> Iterator[None]:
    """Add the way out to JAX's own error about a `value_fn` that it cannot trace."""
    try:
        yield
    except (
        jax.errors.TracerArrayConversionError,
        jax.errors.ConcretizationTypeError,
    ) as error:
        error.add_note(
            f"`{where}(value_fn=...)` must be traceable by JAX. Wrap a function of "
            "NumPy or plain Python in `jax.pure_callback`."
        )
        raise


def _article(of: type) -> str:
    return f"{'an' if of.__name__[0] in 'AEIOU' else 'a'} {of.__name__}"


class Caught(NamedTuple):
    """Whatever a block raises goes to `tell`, but Ctrl-C, which is for who waits."""

    tell: Callable[[BaseException], Any]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if not isinstance(error, Exception | SystemExit):
            return False
        self.tell(error)
        return True
