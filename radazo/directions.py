"""Samplers of the directions of a step.

Direction k is drawn from fold_in(step key, k), independently of which others are drawn;
`hadamard` from fold_in(step key, k div P), see `Bases`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from radazo import core, flat, naming, random, validation

__all__ = ["DirectionSampler", "basis", "coordinate", "gaussian", "hadamard"]
__all__ += ["orthogonal", "rademacher", "sample_directions", "sampler_from", "sphere"]


_STEPS = 2  # Words of a basis before its signs.
# Words whose bit 31 − i is bit 0, 1, ... of i.
_ODD = (0x55555555, 0x33333333, 0x0F0F0F0F, 0x00FF00FF, 0x0000FFFF)


def _only_whole(*arguments: Any) -> Any:
    del arguments


def _folded(key: jax.Array, k: jax.Array, dim: int) -> jax.Array:
    del dim
    return random.fold_in(key, k)


def _one(num_directions: int, dim: int) -> int:
    del num_directions, dim
    return 1


class DirectionSampler(NamedTuple):
    """Functions that draw the directions of a step.

    Attributes:
      prepare: `prepare(key_data, num_directions, dim, dtype) -> prepared`, once a step.
      draw: `draw(prepared, k, dim, dtype) -> (dim,) array`, direction k up to `scale`.
      factor: `factor(dim) -> float`, the inverse of E[uᵢ²].
      scale: `scale(drawn, dim) -> scalar`, ratio of direction to drawn array, of which
        only the norm is used; None for 1.
      independent: Whether the directions of a step are independent of each other.
      part: `part(own, size, dtype, offset) -> (size,) array`, elements offset, ... of
        the array drawn with key `own` of the direction, if parts can be drawn.
      at: `at(own, indices, dtype) -> like indices`, the elements at these indices,
        uint32 or a `random.Offset` of arrays.
      own_key: `own_key(key_data, k, dim) -> own`, uint32 array, direction k's own key.
      num_steps: `num_steps(num_directions, dim) -> int`, how many consecutive steps can
        share the key of the first: step s of these takes directions s · K, ... of it.
    """

    prepare: Callable[[jax.Array, int, int, Any], Any]
    draw: Callable[[Any, jax.Array, int, Any], jax.Array]
    factor: Callable[[int], float]
    scale: Callable[[jax.Array, int], jax.Array] | None = None
    independent: bool = True
    part: Callable[[jax.Array, int, Any, Any], jax.Array] = _only_whole
    at: Callable[[jax.Array, jax.Array, Any], jax.Array] = _only_whole
    own_key: Callable[[jax.Array, jax.Array, int], jax.Array] = _folded
    num_steps: Callable[[int, int], int] = _one

    __repr__ = naming.constant_repr


def _step_key(key: jax.Array, *sizes: Any) -> jax.Array:
    del sizes
    return key


def _inverse_norm(drawn: jax.Array, dim: int) -> jax.Array:
    del dim
    return lax.rsqrt(jnp.sum(jnp.square(drawn)))


def _indices(key: jax.Array, num_directions: int, dim: int, dtype: Any) -> jax.Array:
    # All at once, since XLA on CPU would draw an index again for every element.
    del dtype
    index = jax.vmap(lambda k: random.index_below(random.fold_in(key, k), dim))
    return index(jnp.arange(num_directions, dtype=jnp.uint32))


def _draw_coordinate(indices: Any, k: jax.Array, dim: int, dtype: Any) -> jax.Array:
    return (lax.iota(jnp.uint32, dim) == indices[k]).astype(dtype)


def _each_once(key: jax.Array, num_directions: int, dim: int, dtype: Any) -> None:
    del key, dtype
    if num_directions != max(dim, 1):
        rule = f"be the number of perturbed elements, {dim}"
        hint = "None takes each coordinate once; to sample coordinates, pass "
        hint += "`radazo.directions.coordinate`."
        validation.fail("basis", "num_directions", rule, num_directions, hint)


def _draw_basis(prepared: None, k: jax.Array, dim: int, dtype: Any) -> jax.Array:
    del prepared
    return (lax.iota(jnp.uint32, dim) == k).astype(dtype)


def orthonormal_rows(
    api_name: str,
    key: jax.Array,
    num_directions: int,
    dim: int,
    dtype: Any,
    first: jax.Array | None = None,
) -> jax.Array:
    """Orthonormalize K Gaussian directions in their order and return them as rows.

    `first`, (dim,), replaces the first direction unless it is zero or not finite.
    """
    if num_directions > dim:
        rule = f"be at most the number of perturbed elements, {dim}"
        hint = "There are no more orthogonal directions than dimensions."
        validation.fail(api_name, "num_directions", rule, num_directions, hint)
    # A loop: with `first`, XLA on CPU draws a batch of rows six times as slowly.
    rows = lax.map(
        lambda k: random.normal(random.fold_in(key, k), dim, dtype),
        jnp.arange(num_directions, dtype=jnp.uint32),
    )
    if first is not None:
        largest = jnp.max(jnp.abs(first))
        usable = jnp.isfinite(largest) & (largest > jnp.finfo(dtype).tiny)
        # Scaled like a Gaussian, so that squares do not underflow.
        first = first / jnp.where(usable, largest, jnp.ones_like(largest))
        first = jnp.where(usable, first, rows[0])
        rows = jnp.concatenate([first[None], rows[1:]])
    q, r = jnp.linalg.qr(rows.T)
    # The signs of Gram-Schmidt, since those of QR are not symmetric about 0.
    return jnp.where(jnp.diag(r)[None, :] < 0, -q, q).T


class Bases(NamedTuple):
    """Bases of nearly orthogonal vectors of signs. With P the power of two from d on:

      vector j of a basis = signs ∘ h(row)[:d],   row = (a · j + b) mod P,   0 <= j < P
      h(row)ᵢ = (−1)^(number of ones in i AND row)      a row of Hadamard's matrix

    Basis n, of vectors n · P, ... of a key, is drawn from fold_in(key, n): the first
    two words are a, of which bit 0 is set, and b; the others hold the random signs.

    Attributes:
      words: (num_bases, num_words) uint32.
    """

    words: jax.Array

    def row(self, k: jax.Array, dim: int) -> tuple[jax.Array, jax.Array]:
        """Return the basis of vector k and its row in it."""
        basis, j = jnp.divmod(k, jnp.uint32(size_of_basis(dim)))
        return basis, _row(self.words[basis], j, dim)

    def packed(self, k: jax.Array, dim: int, first: Any, num: int) -> jax.Array:
        """Return words first, ... of vector k."""
        basis, row = self.row(k, dim)
        places = first + lax.iota(jnp.uint32, num)
        return self.signs(basis, first, num) ^ _row_words(row, places)

    def signs(self, basis: jax.Array, first: Any, num: int) -> jax.Array:
        """Return `num` words of the random signs of a basis."""
        start = jnp.uint32(_STEPS) + first
        return lax.dynamic_slice(self.words, (basis, start), (1, num))[0]


def size_of_basis(dim: int) -> int:
    """Return P, the power of two from d on, at least 2 and at most 2³⁰."""
    return 1 << min(max(dim - 1, 1).bit_length(), 30)


def _row(words: jax.Array, j: jax.Array, dim: int) -> jax.Array:
    row = (words[0] | jnp.uint32(1)) * j + words[1]
    return row & jnp.uint32(size_of_basis(dim) - 1)


def _row_words(row: jax.Array, places: jax.Array) -> jax.Array:
    """Return the words at these places of h(row), packed as random signs are."""
    low = jnp.zeros_like(row)
    for bit, pattern in enumerate(_ODD):
        low = low ^ (((row >> jnp.uint32(bit)) & jnp.uint32(1)) * jnp.uint32(pattern))
    odd = lax.population_count(places & (row >> jnp.uint32(5))) & jnp.uint32(1)
    return low ^ (jnp.uint32(0) - odd)


def _bases(key: jax.Array, num_directions: int, dim: int, dtype: Any) -> Bases:
    del dtype

    def words(number: jax.Array) -> jax.Array:
        own, size = random.fold_in(key, number), dim + 32 * (_STEPS + 1)
        drawn = random.pack_signs(lambda i, num: random.bits(own, num, i), size)
        # A slice that ends beyond the last word would be shifted: `pack_signs` may ask
        # for as many words more as stand before the signs.
        return jnp.pad(drawn, (0, _STEPS))

    num_bases = -(-num_directions // size_of_basis(dim))
    if num_bases == 1:
        return Bases(words(jnp.uint32(0))[None])
    return Bases(lax.map(words, jnp.arange(num_bases, dtype=jnp.uint32)))


def _draw_signs(bases: Bases, k: jax.Array, dim: int, dtype: Any) -> jax.Array:
    words = random.pack_signs(lambda *part: bases.packed(k, dim, *part), dim)
    return random.unpack_signs(words, dim, dtype)


def _own_key_of_signs(key: jax.Array, k: jax.Array, dim: int) -> jax.Array:
    """Return the key of the basis of vector k, two words, and the row."""
    basis, j = jnp.divmod(k, jnp.uint32(size_of_basis(dim)))
    own = random.fold_in(key, basis)
    return jnp.append(own, _row(random.bits(own, _STEPS), j, dim))


def _part_of_signs(own: jax.Array, size: int, dtype: Any, offset: Any) -> jax.Array:
    def words(first: jax.Array, num: int) -> jax.Array:
        return _words_at(own, first + lax.iota(jnp.uint32, num))

    packed = random.pack_signs(words, size, offset)
    return random.unpack_signs(packed, size, dtype, offset)


def _signs_at(own: jax.Array, indices: Any, dtype: Any) -> jax.Array:
    places, before = random.word_and_bit(indices)
    return random.sign(_words_at(own, places) << before, dtype)


def _words_at(own: jax.Array, places: jax.Array) -> jax.Array:
    counts = places + jnp.uint32(_STEPS)
    hi, lo = random.threefry(own[:2], jnp.zeros_like(counts), counts)
    return hi ^ lo ^ _row_words(own[2], places)


def _steps_of_a_basis(num_directions: int, dim: int) -> int:
    return max(size_of_basis(dim) // num_directions, 1)


def _elementwise(
    part: Any, at: Any, factor: Callable[[int], float], scale: Any = None
) -> DirectionSampler:
    """Return a sampler that can draw any elements of a direction alone."""

    def draw(key: jax.Array, k: jax.Array, dim: int, dtype: Any) -> jax.Array:
        return part(random.fold_in(key, k), dim, dtype)

    return DirectionSampler(_step_key, draw, factor, scale, part=part, at=at)


gaussian = _elementwise(random.normal, random.normal_at, lambda dim: 1.0)
"""Independent standard normals: ‖u‖ ≈ √d."""

sphere = _elementwise(random.normal, random.normal_at, float, _inverse_norm)
"""Uniform on the unit sphere in R^d: ‖u‖ = 1."""

rademacher = _elementwise(random.signs, random.signs_at, lambda dim: 1.0)
"""Independent signs, one random bit each: ‖u‖ = √d."""

hadamard = DirectionSampler(
    _bases,
    _draw_signs,
    float,
    lambda drawn, dim: jnp.asarray(max(dim, 1) ** -0.5, drawn.dtype),
    independent=False,
    part=_part_of_signs,
    at=_signs_at,
    own_key=_own_key_of_signs,
    num_steps=_steps_of_a_basis,
)
"""Nearly orthogonal signs, without replacement from a random basis: ‖u‖ = 1.

`hadamard_estimator` and `in_place` take a basis in sweeps across steps; other
estimators begin with a new one in each step."""

coordinate = DirectionSampler(_indices, _draw_coordinate, float)
"""Unit vectors along coordinates drawn with replacement: ‖u‖ = 1."""

basis = DirectionSampler(_each_once, _draw_basis, float, independent=False)
"""The d unit vectors in order, K = d, without randomness."""

orthogonal = DirectionSampler(
    functools.partial(orthonormal_rows, "orthogonal_estimator"),
    lambda rows, k, dim, dtype: rows[k],
    float,
    independent=False,
)
"""K orthonormal vectors that span a uniformly random subspace: ‖u‖ = 1."""


def sampler_from(
    draw: Callable[[jax.Array, int], jax.Array],
    *,
    factor: Callable[[int], float] | float = 1.0,
) -> DirectionSampler:
    """Make a sampler from a function that draws one direction.

      uₖ = draw(fold_in(step key, k), d),  all perturbed leaves as one vector
      g = factor / |kept| · Σ_{k kept} slopeₖ · uₖ

    The expected estimate of a linear function is factor · E[u uᵀ] times its gradient.

    Args:
      draw: `draw(key, dim) -> (dim,) array` of real numbers of order one, written in
        JAX; the key is typed. Non-finite elements are replaced by 0.
      factor: Inverse of E[uᵢ²], positive, or a function of d (`float` if ‖u‖ = 1).
    Returns:
      A `DirectionSampler` for `finite_difference_estimator`.
    Raises:
      TypeError, ValueError: If `draw` is not callable or `factor` not a number greater
        than 0; at the first estimate, if `draw` returns no real array of shape (d,).
    Cost:
      No function values.
    Example:
      >>> signs = sampler_from(lambda key, dim: jax.random.rademacher(key, (dim,)))
      >>> estimator = radazo.finite_difference_estimator(signs, num_directions=3)
      >>> value_and_grad = jax.jit(radazo.value_and_grad(lambda x: 3 * x[0], estimator))
      >>> print(jnp.round(value_and_grad(0, jnp.zeros(1))[1], 2))
      [3.]
    """
    api_name = "sampler_from"
    validation.function(api_name, "draw", draw, "It takes a key and a dimension.")
    hint = "It is the inverse of the mean square of an element, or a function of d."
    if not callable(factor):
        validation.positive(api_name, "factor", factor, hint)

    def draw_finite(key: jax.Array, k: jax.Array, dim: int, dtype: Any) -> jax.Array:
        own = random.typed(random.fold_in(key, k))
        vector = _real_vector(api_name, draw(own, dim), dim).astype(dtype)
        return jnp.where(jnp.isfinite(vector), vector, jnp.zeros_like(vector))

    def inverse_mean_square(dim: int) -> float:
        number = factor(dim) if callable(factor) else factor
        validation.positive(api_name, "factor", number, hint)
        return float(number)

    return DirectionSampler(_step_key, draw_finite, inverse_mean_square)


def _real_vector(api_name: str, drawn: Any, dim: int) -> jax.Array:
    got = f"a {type(drawn).__name__}"
    if isinstance(drawn, jax.Array | np.ndarray):
        vector = jnp.asarray(drawn)
        if validation.is_real(vector.dtype) and vector.shape == (dim,):
            return vector
        got = f"an array of type {vector.dtype} and shape {vector.shape}"
    rule = f"return a real array of shape ({dim},)"
    hint = "All perturbed leaves form one vector, e.g. "
    hint += "`jax.random.normal(key, (dim,))`."
    return validation.fail(api_name, "draw", rule, got, hint, TypeError)


def check_parts(api_name: str, sampler: DirectionSampler) -> None:
    """Fail if `sampler` draws its directions only as a whole."""
    if _only_whole in (sampler.part, sampler.at):
        rule = "have a `part` and an `at`"
        got = "a sampler that draws directions as a whole"
        hint = "Pass `gaussian`, `sphere`, `rademacher` or `hadamard` of "
        hint += "`radazo.directions`."
        validation.fail(api_name, "sampler", rule, got, hint)


def direction(
    sampler: DirectionSampler, prepared: Any, k: jax.Array, dim: int, dtype: Any
) -> jax.Array:
    """Return direction k, (dim,), scaled."""
    drawn = sampler.draw(prepared, k, dim, dtype)
    return drawn if sampler.scale is None else sampler.scale(drawn, dim) * drawn


def sample_directions(
    key: Any,
    params: core.Params,
    sampler: DirectionSampler = sphere,
    *,
    num_directions: int,
    mask: core.Mask = None,
) -> core.Params:
    """Draw the directions of an estimator from a step key, as pytrees.

      uₖ = draw(fold_in(key, k)) over all perturbed leaves of `params` jointly

    Args:
      key: Step key, typed or an integer seed.
      params: Pytree whose floating-point leaves are perturbed.
      sampler, mask: As in `finite_difference_estimator`.
      num_directions: Number K of directions, at least 1.
    Returns:
      A pytree like `params` with leaves (K, ...), zeros for those not perturbed.
    Raises:
      TypeError, ValueError: If an argument or a leaf cannot be used.
    Cost:
      No function values; `num_directions` copies of the parameters.
    Example:
      >>> params = {"a": jnp.zeros(3), "b": jnp.zeros(())}
      >>> u = sample_directions(0, params, sphere, num_directions=2)
      >>> print(jnp.sum(u["a"] ** 2, axis=1) + u["b"] ** 2)  # one norm over all leaves
      [1. 1.]
    """
    api_name = "sample_directions"
    validation.check(api_name, num_directions=num_directions, sampler=sampler)
    layout = flat.layout(api_name, params, mask)
    shape = layout.dim, layout.dtype
    prepared = sampler.prepare(random.key_data(api_name, key), num_directions, *shape)

    def draw(k: jax.Array) -> core.Params:
        u = direction(sampler, prepared, k, *shape)
        return flat.unravel(layout, params, u, jnp.uint32(0))

    return jax.vmap(draw)(jnp.arange(num_directions, dtype=jnp.uint32))


_HINT = "Pass a sampler, e.g. `radazo.directions.sphere`."
validation.declare(validation.instance, "sampler", of=DirectionSampler, hint=_HINT)
