"""Check arguments before tracing, with one form of message.

A message gives place, rule, value and remedy. Traced values cannot be read and pass the
checks; `EstimateInfo` shows the effects of invalid ones.
"""

import decimal
import math
import numbers
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def fail(
    api_name: str,
    argument: str,
    rule: str,
    got: Any,
    hint: str,
    kind: type[Exception] = ValueError,
) -> NoReturn:
    """Raise `kind` with the message form that all errors of radazo share."""
    raise kind(f"`{api_name}({argument}=...)` must {rule}; got {got}. {hint}")


def _is_number(value: Any) -> bool:
    """Return whether `value` is a concrete real scalar of Python, NumPy or JAX."""
    if isinstance(value, int | float | np.integer | np.floating):
        return not isinstance(value, bool)
    is_scalar = isinstance(value, np.ndarray | jax.Array) and value.ndim == 0
    return is_scalar and is_real(value.dtype)


def is_real(dtype: Any) -> bool:
    """Return whether `dtype` is an integer or a real floating-point type."""
    return any(jnp.issubdtype(dtype, kind) for kind in (jnp.integer, jnp.floating))


def integer(api_name: str, argument: str, value: Any, minimum: int, hint: str) -> None:
    """Check that `value` is a Python or NumPy integer of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        fail(api_name, argument, "be an integer", repr(value), hint, TypeError)
    if value < minimum:
        fail(api_name, argument, f"be at least {minimum}", repr(value), hint)


def _number(
    api_name: str,
    argument: str,
    value: Any,
    hint: str,
    *,
    rule: str,
    holds: Callable[[float], bool],
    schedule: bool = False,
) -> None:
    """Check that `value` is finite, real and satisfies `holds`, or is a schedule."""
    if isinstance(value, Tracer) or (schedule and callable(value)):
        return
    if not _is_number(value):
        kind = "a number or a schedule" if schedule else "a number"
        fail(api_name, argument, f"be {kind}", repr(value), hint, TypeError)
    if not (math.isfinite(float(value)) and holds(float(value))):
        fail(api_name, argument, rule, repr(value), hint)


finite = partial(_number, rule="be finite", holds=lambda x: True)
positive = partial(_number, rule="be finite and greater than 0", holds=lambda x: x > 0)
non_negative = partial(_number, rule="be finite and at least 0", holds=lambda x: x >= 0)
share = partial(_number, rule="be in [0, 1]", holds=lambda x: 0 <= x <= 1)
decay = partial(
    _number,
    rule="be in [0, 1)",
    holds=lambda x: 0 <= x < 1,
    hint="It is the share of the past that a moment keeps at each step.",
)


def _floating(api_name: str, argument: str, value: Any) -> None:
    """Check that `value` is None or a floating-point dtype."""
    try:
        fits = value is None or jnp.issubdtype(value, jnp.floating)
    except TypeError:
        fits = False
    if not fits:
        rule, hint = "be None or a floating-point type", "Pass e.g. `jnp.bfloat16`."
        fail(api_name, argument, rule, repr(value), hint, TypeError)


def function(api_name: str, argument: str, value: Any, hint: str) -> None:
    """Check that `value` is callable."""
    if not callable(value):
        fail(api_name, argument, "be a function", repr(value), hint, TypeError)


def transformation(api_name: str, optimizer: Any, *, complete: bool = False) -> None:
    """Check that `optimizer` has an `init` and an `update`."""
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        rule = "be an optax.GradientTransformation"
        hint = "Pass a rule, e.g. `optax.sgd(learning_rate)`."
        if complete:
            hint = "Pass `radazo.radazo(0.01, key=0)`, or another complete optimizer."
        fail(api_name, "optimizer", rule, repr(optimizer), hint, TypeError)


def current_params(api_name: str, params: Any) -> None:
    """Check that `update` received the parameters, which are optional in optax."""
    if params is None:
        hint = "The step starts there: call `optimizer.update(updates, state, params)`."
        call = f"{api_name}(...).update"
        fail(call, "params", "be the current parameters", "None", hint)


def instance(api_name: str, argument: str, value: Any, of: type, hint: str) -> None:
    """Check that `value` is an instance of `of`."""
    if not isinstance(value, of):
        article = "an" if of.__name__[0] in "AEIOU" else "a"
        rule = f"be {article} {of.__name__}"
        fail(api_name, argument, rule, repr(value), hint, TypeError)


def real(returned: Any) -> float:
    """Return the value as a float, NaN if it is a bool or not a real number."""
    if isinstance(returned, numbers.Real | decimal.Decimal):
        try:
            return math.nan if isinstance(returned, bool) else float(returned)
        except OverflowError:
            return math.inf  # Too large for a float.
    try:
        array = np.asarray(returned)
    except (TypeError, ValueError):
        return math.nan  # Ragged, or a key.
    if array.shape == () and jnp.isdtype(array.dtype, ("integral", "real floating")):
        return float(array)
    return math.nan


_RULES: dict[str, tuple[Any, ...]] = {}


def declare(
    rule: Callable[..., None], *names: str, optional: bool = False, **options: Any
) -> None:
    """Declare one rule for the arguments of these names in every function.

    An `optional` argument may be None. A name has one rule in all of radazo; classes
    are compared by name, since reloading a module makes new ones.
    """
    declared = rule, optional, options
    for name in names:
        if str(_RULES.get(name, declared)) != str(declared):
            fail("declare", "names", "have one rule each", repr(name), "Rename it.")
        _RULES[name] = declared


def check(api_name: str, **arguments: Any) -> None:
    """Check each argument by the rule that `declare` gave its name."""
    for name, value in arguments.items():
        rule, optional, options = _RULES[name]
        if not (optional and value is None):
            rule(api_name, name, value, **options)


@contextmanager
def traceable(api_name: str) -> Iterator[None]:
    """Add a hint to JAX's error about a `value_fn` that it cannot trace."""
    untraceable = jax.errors.TracerArrayConversionError
    try:
        yield
    except (untraceable, jax.errors.ConcretizationTypeError) as error:
        note = f"`{api_name}(value_fn=...)` must be traceable by JAX. Wrap a function "
        error.add_note(note + "of NumPy or plain Python in `jax.pure_callback`.")
        raise


_ERRORS = (Exception, SystemExit)  # Not KeyboardInterrupt.


@contextmanager
def pass_errors_to(handle: Callable[[BaseException], Any]) -> Iterator[None]:
    """Pass exceptions to `handle`; let KeyboardInterrupt propagate."""
    try:
        yield
    except _ERRORS as error:
        handle(error)


_DISTANCE = "It is the distance moved along a direction, or a schedule of it: "
_DISTANCE += "for float32 and a function of order one, 5e-3 is a good start."
_NUMBER = "More directions give a better estimate; 10 is a good start."
_BATCH = "1 evaluates one direction at a time, `num_directions` all in one batch."
_TERMS = "With True, `value_fn` returns terms whose sum is the objective."
declare(positive, "smoothing", hint=_DISTANCE, schedule=True)
declare(integer, "num_directions", minimum=1, hint=_NUMBER)
declare(integer, "chunk_size", minimum=1, hint=_BATCH)
declare(instance, "terms", of=bool, hint=_TERMS)
declare(function, "value_fn", hint="It takes the parameters first.")
declare(decay, "b1", "b2", "momentum")
declare(non_negative, "eps", "eps_root", hint="It keeps the division from overflowing.")
declare(_floating, "mu_dtype", "moment_dtype")
