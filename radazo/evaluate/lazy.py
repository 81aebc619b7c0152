"""Evaluate a function at x + noise, drawing noise only for the parts in use.

`evaluate` interprets the jaxpr of an unmodified function, in which a parameter is a
lazy `Perturbed`. Operations that select or rearrange a part of it return a `Perturbed`;
a scan takes a stacked leaf layer by layer, a gather only the rows in use, a product
with a large matrix blocks of its rows. Any other operation materializes the leaf.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core as jax_core

from radazo import core, flat, random, validation

_NO_INDEX = np.uint32(0xFFFFFFFF)  # Not the index of any element.
BLOCK = 1 << 20  # Elements of a matrix that are materialized at once.

# Primitives that call a jaxpr.
_CALLS = ("checkpoint", "closed_call", "core_call", "jit", "pjit", "remat2")


class Noise(NamedTuple):
    """Noise that is added to the parameters, by index in the flat direction."""

    part: Callable[[Any, int], jax.Array]  # (offset, size) -> elements offset, ...
    at: Callable[[Any], jax.Array]  # indices -> the elements; uint32 or an `Offset`.
    # Called with a leaf and the number of its elements that are materialized at once.
    record: Callable[[int, int], None] = lambda leaf, size: None


class Perturbed(NamedTuple):
    """A lazy part of x + noise that is contiguous in the flat direction."""

    noise: Noise
    leaf: int
    stored: jax.Array  # The part of x.
    offset: Any  # Of its first element in the flat direction.
    order: tuple[int, ...]  # Permutation of its axes after the noise is added.
    dtype: Any  # Type to which it is converted after that.

    @property
    def in_order(self) -> bool:
        return self.order == tuple(range(len(self.order)))

    def part(self, stored: jax.Array, index: Any = 0, unit: int = 1) -> "Perturbed":
        """Return the part from index · unit on; axes must be in stored order."""
        axes = tuple(range(stored.ndim))
        offset = random.advance(self.offset, index, unit, self.stored.size)
        return self._replace(stored=stored, offset=offset, order=axes)

    def rows(self, start: Any, count: int) -> "Perturbed":
        """Return `count` rows of the stored part, with the axes in the same order."""
        first = jnp.clip(start, 0, self.stored.shape[0] - count)
        stored = lax.dynamic_slice_in_dim(self.stored, first, count)
        row = math.prod(stored.shape[1:])
        return self.part(stored, first, row)._replace(order=self.order)

    def layer(self, number: jax.Array, stored: jax.Array) -> "Perturbed":
        """Return slice `number` along the first axis, of which `stored` is given."""
        order = tuple(axis - 1 for axis in self.order[1:])
        return self.part(stored, number, stored.size)._replace(order=order)

    def whole(self) -> jax.Array:
        """Materialize the part."""
        check_size(self.stored.shape)
        self.noise.record(self.leaf, self.stored.size)
        drawn = self.noise.part(self.offset, self.stored.size)
        perturbed = _add(self.stored, drawn.reshape(self.stored.shape))
        return lax.transpose(perturbed, self.order).astype(self.dtype)


def check_size(shape: tuple[int, ...]) -> None:
    """Check that a part materialized at once has fewer than 2³² elements."""
    if math.prod(shape) >= random.WORD:
        rule = "be used in parts of fewer than 2³² elements"
        got = f"one of shape {shape}"
        hint = "Stack layers along its first axis, and run over that axis by "
        hint += "`jax.lax.scan` in `value_fn`."
        validation.fail("in_place(...).step", "params", rule, got, hint)


def _add(x: jax.Array, noise: jax.Array) -> jax.Array:
    """Return x + noise, in float32 at least, rounded once to the type of x."""
    wide = core.wide(x.dtype)
    return (x.astype(wide) + noise.astype(wide)).astype(x.dtype)


def evaluate(
    value_fn: core.ValueFn, params: core.Params, layout: flat.Layout, noise: Noise
) -> Any:
    """Return `value_fn(params + noise)`; noise is one vector over perturbed leaves."""
    closed, out = jax.make_jaxpr(value_fn, return_shape=True)(params)
    inputs, start = jax.tree.leaves(params), 0
    for i, (on, size) in enumerate(zip(layout.active, layout.sizes, strict=True)):
        if on and size:
            x = jnp.asarray(inputs[i])
            axes = tuple(range(x.ndim))
            inputs[i] = Perturbed(noise, i, x, start, axes, x.dtype)
        start += size
    outs = [_materialize(x) for x in _run(closed.jaxpr, closed.consts, inputs)]
    return jax.tree.unflatten(jax.tree.structure(out), outs)


def _materialize(x: Any) -> Any:
    return x.whole() if isinstance(x, Perturbed) else x


def _run(
    program: jax_core.Jaxpr, consts: Sequence[Any], args: Sequence[Any]
) -> list[Any]:
    """Interpret a jaxpr whose arguments may be lazy."""
    known = dict(zip(program.constvars, consts, strict=True))
    known |= dict(zip(program.invars, args, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, jax_core.Literal) else known[atom]

    for eqn in program.eqns:
        ins = [read(atom) for atom in eqn.invars]
        rule, outs = _RULES.get(eqn.primitive.name), None
        if rule is not None and any(isinstance(x, Perturbed) for x in ins):
            outs = rule(eqn.params, *ins)
        if outs is None:
            outs = _apply(program, eqn, [_materialize(x) for x in ins])
        known |= dict(zip(eqn.outvars, outs, strict=True))
    return [read(atom) for atom in program.outvars]


def _apply(
    program: jax_core.Jaxpr, eqn: jax_core.JaxprEqn, ins: list[Any]
) -> Sequence[Any]:
    """Evaluate one equation as a program: binding differs between versions of JAX."""
    pairs = zip(eqn.invars, ins, strict=True)
    named = {x: value for x, value in pairs if not isinstance(x, jax_core.Literal)}
    own = {"invars": [*named], "outvars": eqn.outvars, "effects": eqn.effects}
    alone = program.replace(constvars=[], eqns=[eqn], **own)
    return jax_core.jaxpr_as_fun(jax_core.ClosedJaxpr(alone, []))(*named.values())


def _called_jaxpr(params: dict[str, Any]) -> tuple[jax_core.Jaxpr, Sequence[Any]]:
    """Return the jaxpr that a primitive calls, and its constants."""
    inner = params["jaxpr" if "jaxpr" in params else "call_jaxpr"]
    closed = isinstance(inner, jax_core.ClosedJaxpr)
    return (inner.jaxpr, inner.consts) if closed else (inner, ())


def _scan_sizes(params: dict[str, Any]) -> tuple[int, int]:
    """Return the number of constants and of carried inputs of a scan."""
    if "num_consts" in params:  # JAX 0.10
        return params["num_consts"], params["num_carry"]
    consts, carried, _ = params["ft_in"].unpack()  # JAX 0.11 and later
    return len(consts), len(carried)


def _scan(params: dict[str, Any], *ins: Any) -> list[Any]:
    program, inner_consts = _called_jaxpr(params)
    num_consts, num_carried = _scan_sizes(params)
    last = num_consts + num_carried
    # A constant stays lazy if each iteration uses only parts of it.
    consts = [
        x if _is_used_in_parts(program, variable) else _materialize(x)
        for x, variable in zip(ins[:num_consts], program.invars, strict=False)
    ]
    init = [_materialize(x) for x in ins[num_consts:last]]
    stacks = [
        _materialize(x) if isinstance(x, Perturbed) and x.order[0] else x
        for x in ins[last:]
    ]

    def body(carry: list[Any], inputs: Any) -> tuple[list[Any], list[Any]]:
        number, slices = inputs
        parts = [
            stack.layer(number, x) if isinstance(stack, Perturbed) else x
            for stack, x in zip(stacks, slices, strict=True)
        ]
        outs = _run(program, inner_consts, [*consts, *carry, *parts])
        outs = [_materialize(x) for x in outs]
        return outs[: len(init)], outs[len(init) :]

    numbers = jnp.arange(params["length"], dtype=jnp.uint32)
    values = [x.stored if isinstance(x, Perturbed) else x for x in stacks]
    options = {name: params[name] for name in ("length", "reverse", "unroll")}
    carry, ys = lax.scan(body, init, (numbers, values), **options)
    return [*carry, *ys]


def _is_used_in_parts(program: jax_core.Jaxpr, variable: Any) -> bool:
    """Return whether a program uses an input only by its slices and rows."""

    def uses_parts(eqn: jax_core.JaxprEqn, place: int) -> bool:
        name, params = eqn.primitive.name, eqn.params
        if name == "scan":
            num_consts, num_carried = _scan_sizes(params)
            if place >= num_consts:
                return place >= num_consts + num_carried  # Stacked: layer by layer.
        if name in (*_CALLS, "scan"):
            inner, _ = _called_jaxpr(params)
            return _is_used_in_parts(inner, inner.invars[place])
        return name in ("dynamic_slice", "gather") and place == 0

    return not any(variable is x for x in program.outvars) and all(
        uses_parts(eqn, place)
        for eqn in program.eqns
        for place, x in enumerate(eqn.invars)
        if variable is x
    )


def _cond(params: dict[str, Any], index: Any, *ins: Any) -> list[Any]:
    def branch(closed: jax_core.ClosedJaxpr) -> Callable[..., list[Any]]:
        def run(*arrays: Any) -> list[Any]:
            rest = iter(arrays)
            args = [x if isinstance(x, Perturbed) else next(rest) for x in ins]
            return [_materialize(x) for x in _run(closed.jaxpr, closed.consts, args)]

        return run

    branches = [branch(closed) for closed in params["branches"]]
    arrays = [x for x in ins if not isinstance(x, Perturbed)]
    return lax.switch(_materialize(index), branches, *arrays)


def _slice(params: dict[str, Any], x: Perturbed) -> list[Any] | None:
    start, limit = params["start_indices"], params["limit_indices"]
    strides = params["strides"] or (1,)
    rest = zip(start[1:], limit[1:], x.stored.shape[1:], strict=True)
    by_rows = all(first == 0 and end == size for first, end, size in rest)
    if not (x.in_order and by_rows and {*strides} == {1}):
        return None
    row = math.prod(x.stored.shape[1:])
    return [x.part(lax.slice(x.stored, start, limit), start[0], row)]


def _dynamic_slice(params: dict[str, Any], x: Any, *starts: Any) -> list[Any] | None:
    if not (isinstance(x, Perturbed) and x.in_order and starts):
        return None
    count, *rest = params["slice_sizes"]
    by_rows = tuple(rest) == x.stored.shape[1:]
    return [x.rows(_materialize(starts[0]), count)] if by_rows else None


def _squeeze(params: dict[str, Any], x: Perturbed) -> list[Any] | None:
    axes = params["dimensions"]
    return [x.part(lax.squeeze(x.stored, axes))] if x.in_order else None


def _reshape(params: dict[str, Any], x: Perturbed, *sizes: Any) -> list[Any] | None:
    if sizes or not x.in_order or params["dimensions"] is not None:
        return None
    return [x.part(x.stored.reshape(params["new_sizes"]))]


def _transpose(params: dict[str, Any], x: Perturbed) -> list[Any]:
    order = tuple(x.order[axis] for axis in params["permutation"])
    return [x._replace(order=order)]


def _convert(params: dict[str, Any], x: Perturbed) -> list[Any] | None:
    dtype = params["new_dtype"]
    # Do not merge two conversions: the first may round more than the second.
    once = x.dtype == x.stored.dtype and jnp.issubdtype(dtype, jnp.floating)
    return [x._replace(dtype=dtype)] if once else None


def _gather(params: dict[str, Any], x: Any, indices: Any) -> list[Any] | None:
    if not (isinstance(x, Perturbed) and x.in_order):
        return None
    names = ("dimension_numbers", "slice_sizes", "unique_indices")
    options = {n: params[n] for n in (*names, "indices_are_sorted", "mode")}
    indices = _materialize(indices)

    def gather(operand: jax.Array, fill_value: Any) -> jax.Array:
        return lax.gather(operand, indices, fill_value=fill_value, **options)

    check_size(x.stored.shape)
    places = lax.iota(jnp.uint32, x.stored.size).reshape(x.stored.shape)
    places = gather(places, _NO_INDEX)
    rows = gather(x.stored, params["fill_value"])
    x.noise.record(x.leaf, rows.size)
    noise = x.noise.at(random.advance(x.offset, places, 1, x.stored.size))
    rows = jnp.where(places == _NO_INDEX, rows, _add(rows, noise))
    return [rows.astype(x.dtype)]


def _dot_general(params: dict[str, Any], *operands: Any) -> list[Any] | None:
    for side, x in enumerate(operands):
        if not isinstance(x, Perturbed) or x.stored.ndim < 2 or x.stored.size <= BLOCK:
            continue
        contracted, batch = (axes[side] for axes in params["dimension_numbers"])
        axis = x.order.index(0)
        if axis not in (*contracted, *batch):
            other = _materialize(operands[1 - side])
            free = [a for a in range(axis) if a not in (*contracted, *batch)]
            before = other.ndim - len(contracted) if side else len(batch)
            return [_in_blocks(params, x, other, side, before + len(free))]
    return None


def _in_blocks(
    params: dict[str, Any], x: Perturbed, other: jax.Array, side: int, place: int
) -> jax.Array:
    """Multiply in blocks of x; axis `place` of the product is the first stored axis."""
    num_rows = x.stored.shape[0]
    count = max(1, BLOCK * num_rows // x.stored.size)

    def product(start: Any) -> jax.Array:
        part = x.rows(start, count).whole()
        pair = (other, part) if side else (part, other)
        return lax.dot_general(*pair, **params)

    def put(i: jax.Array, out: jax.Array) -> jax.Array:
        start = jnp.minimum(i * count, num_rows - count)  # All blocks have one size.
        return lax.dynamic_update_slice_in_dim(out, product(start), start, place)

    block = jax.eval_shape(product, 0)
    shape = [*block.shape[:place], num_rows, *block.shape[place + 1 :]]
    out = jnp.zeros(shape, block.dtype)
    return lax.fori_loop(0, -(-num_rows // count), put, out)


_RULES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(_CALLS, lambda params, *ins: _run(*_called_jaxpr(params), ins)),
    "cond": _cond,
    "convert_element_type": _convert,
    "dot_general": _dot_general,
    "dynamic_slice": _dynamic_slice,
    "gather": _gather,
    "reshape": _reshape,
    "scan": _scan,
    "slice": _slice,
    "squeeze": _squeeze,
    "transpose": _transpose,
}
