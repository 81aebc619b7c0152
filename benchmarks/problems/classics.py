"""Test functions of few parameters, and two quadratics whose curvatures differ.

At d parameters, with z = x − s, s uniform in [−2, 2], and R a random rotation; the
minimum is 0 at z = 0, but for Styblinski-Tang:

  ackley, rosenbrock    of z and z + 1, as in `synthetic`
  griewank              1 + Σ (20 zᵢ)² / 4000 − Π cos(20 zᵢ / √i)
  zakharov              Σ zᵢ² + w² + w⁴,  w = Σ i zᵢ / 2
  styblinski_tang       Σ (½ zᵢ⁴ − 8 zᵢ² + 2.5 zᵢ) + 39.166166 d      0 at z = −2.903534
  ellipsoid             Σ cᵢ (R z)ᵢ²,  cᵢ from 1 to 10⁶ in equal ratios
  rotated_rastrigin     of R z, as in `synthetic`
  step                  Σ ⌊|zᵢ| + ½⌋²
  plateau               ⌊Σ cᵢ (R z)ᵢ²⌋,  cᵢ from 1 to 100 in equal ratios
  sphere                Σ zᵢ²

The quadratics have their minimum of 0 at x = 0:

  ill_conditioned       Σ ½ cᵢ xᵢ²,  cᵢ from 10⁻² to 10² in equal ratios
  sparse                Σ ½ cᵢ xᵢ²,  cᵢ = 100 for every twentieth i, else 1
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.problems.synthetic import PROBLEMS

Function = Callable[[jax.Array], jax.Array]


def griewank(z: jax.Array) -> jax.Array:
    scale = jnp.sqrt(jnp.arange(1, z.size + 1, dtype=z.dtype))
    return 1 + jnp.sum(jnp.square(20 * z)) / 4000 - jnp.prod(jnp.cos(20 * z / scale))


def zakharov(z: jax.Array) -> jax.Array:
    w = jnp.sum(jnp.arange(1, z.size + 1, dtype=z.dtype) * z) / 2
    return jnp.sum(jnp.square(z)) + w**2 + w**4


def styblinski_tang(z: jax.Array) -> jax.Array:
    return jnp.sum(z**4 / 2 - 8 * jnp.square(z) + 2.5 * z + 39.16616570377142)


def weighted(z: jax.Array, low: float, high: float) -> jax.Array:
    """Return Σ cᵢ zᵢ², cᵢ from 10^low to 10^high in equal ratios."""
    weights = np.logspace(low, high, z.size)
    return jnp.sum(jnp.asarray(weights, z.dtype) * jnp.square(z))


def step(z: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(jnp.floor(jnp.abs(z) + 0.5)))


def sphere(z: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(z))


def ill_conditioned(x: jax.Array) -> jax.Array:
    return weighted(x, -2, 2) / 2


def sparse(x: jax.Array) -> jax.Array:
    weights = np.where(np.arange(x.size) % 20 == 0, 100, 1)
    return jnp.sum(jnp.asarray(weights, x.dtype) * jnp.square(x)) / 2


def functions(dim: int, seed: int = 0) -> dict[str, Function]:
    """Return the functions of z by name, as functions of x."""
    generator = np.random.default_rng(seed)
    shift = generator.uniform(-2, 2, dim)
    rotation, _ = np.linalg.qr(generator.standard_normal((dim, dim)))

    def moved(of_z: Function) -> Function:
        return lambda x: of_z(x - jnp.asarray(shift, x.dtype))

    def rotated(of_z: Function) -> Function:
        return moved(lambda z: of_z(jnp.asarray(rotation, z.dtype) @ z))

    return {
        "ackley": moved(PROBLEMS["ackley"].value_fn),
        "griewank": moved(griewank),
        "zakharov": moved(zakharov),
        "styblinski_tang": moved(styblinski_tang),
        "ellipsoid": rotated(lambda z: weighted(z, 0, 6)),
        "rotated_rastrigin": rotated(PROBLEMS["rastrigin"].value_fn),
        "step": moved(step),
        "plateau": rotated(lambda z: jnp.floor(weighted(z, 0, 2))),
        "rosenbrock": moved(lambda z: PROBLEMS["rosenbrock"].value_fn(z + 1)),
        "sphere": moved(sphere),
    }
