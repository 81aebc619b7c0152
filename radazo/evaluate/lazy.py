"""Evaluate a function at x + noise, drawing noise only for the parts in use.

`evaluate` interprets the jaxpr of an unmodified function. A parameter in it is not an
array but a lazy `Moved`: a part of x and its offset in the flat direction. Operations
that select or rearrange a part return a `Moved`. Operations that need numbers
materialize the part temporarily:

  scan                        a stacked leaf, layer by layer in the loop
  gather                      only the rows that are looked up
  slice, dynamic_slice        along the first axis: that part
  squeeze, reshape,           nothing yet
  transpose, convert
  dot_general                 a large matrix, in blocks of its rows
  jit, cond, checkpoint       interpreted recursively
  any other                   the whole leaf, just before use

The values are those of a perturbed copy, since an element of a direction depends only
on its index; a product computed in blocks may round differently.
"""

import functools
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

# Primitives that call a jaxpr, and the parameter that holds it.
_CALLS = {
    "checkpoint": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "remat2": "jaxpr",
}


class Noise(NamedTuple):
    """Noise that is added to the parameters, by element index.

    Attributes:
      part: `part(offset, size) -> (size,)`, elements offset, ... of the noise.
      at: `at(indices) -> like indices`, the elements at these indices, uint32 or an
        `Offset` of arrays.
      seen: `seen(leaf, size)` is called with the number of elements of a leaf that are
        materialized at once.
    """

    part: Callable[[Any, int], jax.Array]
    at: Callable[[Any], jax.Array]
    seen: Callable[[int, int], None] = lambda leaf, size: None


class Moved(NamedTuple):
    """A lazy part of x + noise that is contiguous in the flat direction.

    Attributes:
      noise: The noise.
      leaf: Index of the leaf.
      stored: The part of x.
      offset: Index of its first element in the flat direction.
      order: Permutation of its axes after the noise is added.
      dtype: Type to which it is converted after that.
    """

    noise: Noise
    leaf: int
    stored: jax.Array
    offset: Any
    order: tuple[int, ...]
    dtype: Any

    @property
    def lies_as_stored(self) -> bool:
        return self.order == tuple(range(len(self.order)))

    def part(self, stored: jax.Array, index: Any = 0, unit: int = 1) -> "Moved":
        """Return the part from index · unit on; axes must be in stored order."""
        axes = tuple(range(stored.ndim))
        offset = random.advance(self.offset, index, unit, self.stored.size)
        return self._replace(stored=stored, offset=offset, order=axes)

    def rows(self, start: Any, count: int) -> "Moved":
        """Return `count` rows of the stored part, with the axes in the same order."""
        first = jnp.clip(start, 0, self.stored.shape[0] - count)
        stored = lax.dynamic_slice_in_dim(self.stored, first, count)
        row = math.prod(stored.shape[1:])
        offset = random.advance(self.offset, first, row, self.stored.size)
        return self._replace(stored=stored, offset=offset)

    def whole(self) -> jax.Array:
        """Materialize the part."""
        check_size(self.stored.shape)
        self.noise.seen(self.leaf, self.stored.size)
        drawn = self.noise.part(self.offset, self.stored.size)
        moved = _added(self.stored, drawn.reshape(self.stored.shape))
        return lax.transpose(moved, self.order).astype(self.dtype)


def check_size(shape: tuple[int, ...]) -> None:
    """Check that a part materialized at once has fewer than 2³² elements."""
    if math.prod(shape) >= random.WORD:
        validation.fail(
            "in_place(...).step",
            "params",
            "be used in parts of fewer than 2³² elements",
            f"one of shape {shape}",
            "Hold it with layers along its first axis, and run over that by "
            "`jax.lax.scan` in `value_fn`.",
        )


def _added(x: jax.Array, noise: jax.Array) -> jax.Array:
    """Return x + noise, in float32 at least, rounded once to the type of x."""
    wide = core.wide(x.dtype)
    return (x.astype(wide) + noise.astype(wide)).astype(x.dtype)


def evaluate(
    value_fn: core.ValueFn, params: core.Params, layout: flat.Layout, noise: Noise
) -> Any:
    """Return `value_fn(params + noise)`; noise is one vector over perturbed leaves."""
    closed, out = jax.make_jaxpr(value_fn, return_shape=True)(params)
    starts = np.cumsum([0, *layout.sizes]).tolist()
    inputs = [
        _promise(noise, i, jnp.asarray(leaf), start) if on and leaf.size else leaf
        for i, (leaf, on, start) in enumerate(
            zip(jax.tree.leaves(params), layout.active, starts[:-1], strict=True)
        )
    ]
    outs = [_materialized(x) for x in _run(closed.jaxpr, closed.consts, inputs)]
    return jax.tree.unflatten(jax.tree.structure(out), outs)


def _promise(noise: Noise, leaf: int, stored: jax.Array, start: int) -> Moved:
    axes = tuple(range(stored.ndim))
    return Moved(noise, leaf, stored, start, axes, stored.dtype)


def _materialized(x: Any) -> Any:
    return x.whole() if isinstance(x, Moved) else x


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
        rule = _RULES.get(eqn.primitive.name)
        outs = None
        if rule is not None and any(isinstance(x, Moved) for x in ins):
            outs = rule(eqn.params, *ins)
        if outs is None:
            outs = _applied(program, eqn, [_materialized(x) for x in ins])
        known |= dict(zip(eqn.outvars, outs, strict=True))
    return [read(atom) for atom in program.outvars]


def _applied(
    program: jax_core.Jaxpr, eqn: jax_core.JaxprEqn, ins: list[Any]
) -> Sequence[Any]:
    """Evaluate one equation as a program of its own.

    How to bind its parameters, and in which context, differs between versions of JAX.
    """
    named = {
        atom: x
        for atom, x in zip(eqn.invars, ins, strict=True)
        if not isinstance(atom, jax_core.Literal)
    }
    alone = program.replace(
        constvars=[],
        invars=[*named],
        outvars=eqn.outvars,
        eqns=[eqn],
        effects=eqn.effects,
    )
    return jax_core.jaxpr_as_fun(jax_core.ClosedJaxpr(alone, []))(*named.values())


def _call(name: str, params: dict[str, Any], *ins: Any) -> list[Any]:
    inner = params[_CALLS[name]]
    if isinstance(inner, jax_core.ClosedJaxpr):
        return _run(inner.jaxpr, inner.consts, ins)
    return _run(inner, (), ins)


def _scan_sizes(params: dict[str, Any]) -> tuple[int, int]:
    """Return the number of constants and of carried inputs of a scan."""
    if "num_consts" in params:  # JAX 0.10
        return params["num_consts"], params["num_carry"]
    consts, carried, _ = params["ft_in"].unpack()  # JAX 0.11 and later
    return len(consts), len(carried)


def _scan(params: dict[str, Any], *ins: Any) -> list[Any]:
    program = params["jaxpr"]
    num_consts, num_carried = _scan_sizes(params)
    last = num_consts + num_carried
    variables = program.jaxpr.invars[:num_consts]
    # A constant stays lazy if each iteration uses only parts of it.
    consts = [
        x if _is_used_in_parts(program.jaxpr, variable) else _materialized(x)
        for x, variable in zip(ins[:num_consts], variables, strict=True)
    ]
    init = [_materialized(x) for x in ins[num_consts:last]]
    stacks = [
        _materialized(x) if isinstance(x, Moved) and x.order[0] else x
        for x in ins[last:]
    ]

    def body(carry: list[Any], inputs: Any) -> tuple[list[Any], list[Any]]:
        number, slices = inputs
        parts = [
            _layer(stack, number, x) if isinstance(stack, Moved) else x
            for stack, x in zip(stacks, slices, strict=True)
        ]
        outs = _run(program.jaxpr, program.consts, [*consts, *carry, *parts])
        outs = [_materialized(x) for x in outs]
        return outs[: len(init)], outs[len(init) :]

    numbers = jnp.arange(params["length"], dtype=jnp.uint32)
    values = [x.stored if isinstance(x, Moved) else x for x in stacks]
    options = {name: params[name] for name in ("length", "reverse", "unroll")}
    carry, ys = lax.scan(body, init, (numbers, values), **options)
    return [*carry, *ys]


def _layer(stack: Moved, number: jax.Array, stored: jax.Array) -> Moved:
    """Return slice `number` of a stacked leaf."""
    order = tuple(axis - 1 for axis in stack.order[1:])
    layer = stack.part(stored, number, stored.size)
    return layer._replace(order=order)


def _is_used_in_parts(program: jax_core.Jaxpr, variable: Any) -> bool:
    """Return whether a program uses an input only by its slices and rows."""
    if any(variable is x for x in program.outvars):
        return False
    return all(
        _uses_parts(eqn, place)
        for eqn in program.eqns
        for place, x in enumerate(eqn.invars)
        if variable is x
    )


def _uses_parts(eqn: jax_core.JaxprEqn, place: int) -> bool:
    name, params = eqn.primitive.name, eqn.params
    if name in _CALLS:
        inner = params[_CALLS[name]]
        inner = inner.jaxpr if isinstance(inner, jax_core.ClosedJaxpr) else inner
        return _is_used_in_parts(inner, inner.invars[place])
    if name == "scan":
        inner = params["jaxpr"].jaxpr
        num_consts, num_carried = _scan_sizes(params)
        if place < num_consts:
            return _is_used_in_parts(inner, inner.invars[place])
        return place >= num_consts + num_carried  # Stacked: layer by layer.
    return name in ("dynamic_slice", "gather") and place == 0


def _cond(params: dict[str, Any], index: Any, *ins: Any) -> list[Any]:
    def branch(closed: jax_core.ClosedJaxpr) -> Callable[..., list[Any]]:
        def run(*arrays: Any) -> list[Any]:
            rest = iter(arrays)
            args = [x if isinstance(x, Moved) else next(rest) for x in ins]
            return [_materialized(x) for x in _run(closed.jaxpr, closed.consts, args)]

        return run

    branches = [branch(closed) for closed in params["branches"]]
    arrays = [x for x in ins if not isinstance(x, Moved)]
    return lax.switch(_materialized(index), branches, *arrays)


def _slice(params: dict[str, Any], x: Moved) -> list[Any] | None:
    start, limit = params["start_indices"], params["limit_indices"]
    strides = params["strides"] or (1,)
    rest = zip(start[1:], limit[1:], x.stored.shape[1:], strict=True)
    by_rows = all(first == 0 and end == size for first, end, size in rest)
    if not (x.lies_as_stored and by_rows and {*strides} == {1}):
        return None
    row = math.prod(x.stored.shape[1:])
    return [x.part(lax.slice(x.stored, start, limit), start[0], row)]


def _dynamic_slice(params: dict[str, Any], x: Any, *starts: Any) -> list[Any] | None:
    sizes = params["slice_sizes"]
    if not (isinstance(x, Moved) and x.lies_as_stored and starts):
        return None
    if tuple(sizes[1:]) != x.stored.shape[1:]:
        return None
    return [x.rows(_materialized(starts[0]), sizes[0])]


def _squeeze(params: dict[str, Any], x: Moved) -> list[Any] | None:
    if not x.lies_as_stored:
        return None
    return [x.part(lax.squeeze(x.stored, params["dimensions"]))]


def _reshape(params: dict[str, Any], x: Moved, *sizes: Any) -> list[Any] | None:
    if sizes or not x.lies_as_stored or params["dimensions"] is not None:
        return None
    return [x.part(x.stored.reshape(params["new_sizes"]))]


def _transpose(params: dict[str, Any], x: Moved) -> list[Any]:
    order = tuple(x.order[axis] for axis in params["permutation"])
    return [x._replace(order=order)]


def _convert(params: dict[str, Any], x: Moved) -> list[Any] | None:
    dtype = params["new_dtype"]
    # Do not merge two conversions: the first may round more than the second.
    once = x.dtype == x.stored.dtype and jnp.issubdtype(dtype, jnp.floating)
    return [x._replace(dtype=dtype)] if once else None


def _gather(params: dict[str, Any], x: Any, indices: Any) -> list[Any] | None:
    if not (isinstance(x, Moved) and x.lies_as_stored):
        return None
    names = ("dimension_numbers", "slice_sizes", "unique_indices")
    taken = functools.partial(
        lax.gather,
        start_indices=_materialized(indices),
        indices_are_sorted=params["indices_are_sorted"],
        mode=params["mode"],
        **{name: params[name] for name in names},
    )
    check_size(x.stored.shape)
    places = lax.iota(jnp.uint32, x.stored.size).reshape(x.stored.shape)
    places = taken(places, fill_value=_NO_INDEX)
    rows = taken(x.stored, fill_value=params["fill_value"])
    x.noise.seen(x.leaf, rows.size)
    indices = random.advance(x.offset, places, 1, x.stored.size)
    moved = _added(rows, x.noise.at(indices))
    return [jnp.where(places == _NO_INDEX, rows, moved).astype(x.dtype)]


def _dot_general(params: dict[str, Any], *operands: Any) -> list[Any] | None:
    for side, x in enumerate(operands):
        if not (isinstance(x, Moved) and x.stored.ndim > 1 and x.stored.size > BLOCK):
            continue
        contracted, batch = (axes[side] for axes in params["dimension_numbers"])
        axis = x.order.index(0)
        if axis not in (*contracted, *batch):
            other = _materialized(operands[1 - side])
            free = [a for a in range(axis) if a not in (*contracted, *batch)]
            before = other.ndim - len(contracted) if side else len(batch)
            return [_in_blocks(params, x, other, side, before + len(free))]
    return None


def _in_blocks(
    params: dict[str, Any], x: Moved, other: jax.Array, side: int, place: int
) -> jax.Array:
    """Multiply in blocks of x; axis `place` of the product is the first stored axis.

    The last block ends with the last row, so that all blocks have one size.
    """
    num_rows = x.stored.shape[0]
    count = max(1, BLOCK * num_rows // x.stored.size)

    def product(start: Any) -> jax.Array:
        part = x.rows(start, count).whole()
        pair = (other, part) if side else (part, other)
        return lax.dot_general(*pair, **params)

    def put(i: jax.Array, out: jax.Array) -> jax.Array:
        start = jnp.minimum(i * count, num_rows - count)
        return lax.dynamic_update_slice_in_dim(out, product(start), start, place)

    block = jax.eval_shape(product, 0)
    shape = [*block.shape[:place], num_rows, *block.shape[place + 1 :]]
    start = jnp.zeros(shape, block.dtype)
    return lax.fori_loop(0, -(-num_rows // count), put, start)


_RULES = {name: functools.partial(_call, name) for name in _CALLS} | {
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
