"""A Gaussian process in closed form, against NumPy in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import radazo
from radazo.estimators import gaussian_process

KERNELS = {"matern": radazo.estimators.matern, "rbf": radazo.estimators.rbf}


def covariance(name, r, length):
    if name == "rbf":
        return np.exp(-(r**2) / (2 * length**2))
    a = np.sqrt(5) * r / length
    return (1 + a + a**2 / 3) * np.exp(-a)


def gradient_rows(name, x, points, length):
    """∇ of k(·, point) at x, a row for each point."""
    r = np.linalg.norm(x - points, axis=1)
    if name == "rbf":
        factor = -covariance(name, r, length) / length**2
    else:
        a = np.sqrt(5) * r / length
        factor = -5 / (3 * length**2) * (1 + a) * np.exp(-a)
    return factor[:, None] * (x - points)


def process(name, points, values, x, length, jitter):
    """Mean, its gradient, and relative variance of the derivative at x, in float64."""
    points, values, x = (np.asarray(a, np.float64) for a in (points, values, x))
    r = np.linalg.norm(points[:, None] - points[None], axis=2)
    gram = covariance(name, r, length) + jitter * np.eye(len(points))
    center, deviation = values.mean(), values.std()
    weights = np.linalg.solve(gram, (values - center) / deviation)
    rows = gradient_rows(name, x, points, length)
    k = covariance(name, np.linalg.norm(x - points, axis=1), length)
    prior = {"rbf": 1.0, "matern": 5 / 3}[name] / length**2
    variance = prior * np.eye(x.size) - rows.T @ np.linalg.solve(gram, rows)
    return (
        center + deviation * k @ weights,
        deviation * rows.T @ weights,
        np.trace(variance) / (x.size * prior),
    )


def likelihood(name, points, values, length, jitter):
    """Log density of standardised values at the best amplitude, but for constants."""
    r = np.linalg.norm(points[:, None] - points[None], axis=2)
    gram = covariance(name, r, length) + jitter * np.eye(len(points))
    y = (values - values.mean()) / values.std()
    amplitude = y @ np.linalg.solve(gram, y) / len(y)
    _, log_det = np.linalg.slogdet(amplitude * gram)
    return -log_det / 2


put = jax.jit(gaussian_process.put)


def a_buffer(num_points, num_put, dim=3, dtype=jnp.float64):
    rng = np.random.default_rng(7)
    points = rng.normal(size=(num_put, dim))
    values = np.sin(points[:, 0]) + points[:, 1] ** 2
    buffer = gaussian_process.empty_buffer(num_points, dim, dtype)
    for i in range(0, num_put, 3):
        rows = jnp.asarray(points[i : i + 3], dtype), jnp.asarray(values[i : i + 3])
        buffer = put(buffer, *rows)
    return buffer, points[-num_points:], values[-num_points:]


@functools.partial(jax.jit, static_argnames=("kernel", "length_scale", "jitter"))
def at(kernel, buffer, x, length_scale, jitter=1e-6):
    posterior = gaussian_process.fit(kernel, buffer, length_scale, jitter)
    distances = gaussian_process.squared_distances(buffer.points, x)
    return (
        gaussian_process.mean(posterior, distances),
        gaussian_process.mean_gradient(posterior, x, distances),
        gaussian_process.uncertainty(posterior, distances, x.size),
    )


@pytest.mark.parametrize("name", KERNELS)
def test_a_slope_is_the_derivative_of_its_kernel(x64, name):
    s = jnp.array([1e-6, 0.1, 1.0, 3.0, 20.0])
    expected = jax.vmap(jax.grad(KERNELS[name].covariance))(s)
    np.testing.assert_allclose(KERNELS[name].slope(s), expected, rtol=1e-12)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(
    "num_put", [3, 6, 9], ids=["partly filled", "just full", "wrapped around"]
)
def test_the_posterior_is_that_of_the_points_in_the_buffer(x64, name, num_put):
    buffer, points, values = a_buffer(6, num_put)
    x = jnp.array([0.3, -0.2, 0.5])
    expected = process(name, points, values, x, 1.3, 1e-6)
    for out, wanted in zip(at(KERNELS[name], buffer, x, 1.3), expected, strict=True):
        np.testing.assert_allclose(out, wanted, rtol=1e-8)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("num_put", [3, 9])
def test_the_length_scale_is_the_likeliest_of_the_grid(x64, name, num_put):
    buffer, points, values = a_buffer(6, num_put)
    r = np.linalg.norm(points[:, None] - points[None], axis=2)
    tried = np.sqrt(np.mean(r**2)) * 2.0 ** np.arange(5)
    best = max(tried, key=lambda length: likelihood(name, points, values, length, 1e-6))
    fit = lambda buffer: gaussian_process.fit(KERNELS[name], buffer, None, 1e-6)
    found = jax.jit(lambda buffer: fit(buffer).length_scale)(buffer)
    np.testing.assert_allclose(found, best, rtol=1e-12)


def test_a_function_in_the_span_of_the_kernel_has_its_own_gradient(x64):
    buffer, points, _ = a_buffer(8, 8)
    gram = covariance("rbf", np.linalg.norm(points[:, None] - points[None], axis=2), 1)
    # A combination of kernels whose values at the points have a mean of 0.
    c = np.random.default_rng(1).normal(size=8)
    c = c - gram.sum(0) * (gram.sum(0) @ c) / (gram.sum(0) @ gram.sum(0))
    buffer = buffer._replace(values=jnp.asarray(gram @ c))
    x = np.array([0.1, 0.4, -0.3])
    _, gradient, _ = at(radazo.estimators.rbf, buffer, jnp.asarray(x), 1.0, 0.0)
    expected = gradient_rows("rbf", x, points, 1.0).T @ c
    np.testing.assert_allclose(gradient, expected, rtol=1e-9)


def test_in_float32_close_points_far_from_the_origin_give_the_gradient():
    rng = np.random.default_rng(3)
    x = jnp.asarray(rng.normal(size=4) + 1000, jnp.float32)
    buffer = gaussian_process.empty_buffer(30, 4, jnp.float32)
    points = x[None] + jnp.asarray(rng.normal(size=(30, 4)) / 10, jnp.float32)
    slope = np.array([1.0, -2.0, 0.5, 3.0])
    values = jnp.asarray((np.asarray(points, np.float64) - 1000) @ slope, jnp.float32)
    _, gradient, _ = at(radazo.estimators.matern, put(buffer, points, values), x, None)
    np.testing.assert_allclose(gradient, slope, rtol=2e-2)


def test_points_and_values_that_are_not_finite_are_not_put():
    buffer, _, _ = a_buffer(5, 3, dtype=jnp.float32)
    points = jnp.array([[jnp.nan, 0, 0], [1, 1, 1], [2, 2, 2], [3, 3, 3]])
    after = put(buffer, points, jnp.array([1, 5, jnp.inf, jnp.nan]))
    assert (after.num_filled, after.next_row) == (4, 4)
    np.testing.assert_array_equal(after.points[3], [1, 1, 1])
    np.testing.assert_array_equal(after.values[3:], [5, 0])
    assert all(np.all(np.isfinite(x)) for x in after)


def test_values_that_are_the_same_have_no_deviation_and_no_gradient():
    values = jnp.full(22, 0.7, jnp.float32)
    center, _, standard = gaussian_process.standardize(values, jnp.arange(22) < 20)
    np.testing.assert_allclose(center, 0.7, rtol=1e-6)
    np.testing.assert_array_equal(standard, 0)


def test_values_far_from_zero_keep_their_digits():
    values = jnp.asarray(1e6 + np.array([0.0, 1.0, 2.0, 3.0]), jnp.float32)
    holds = jnp.ones(4, bool)
    _, deviation, standard = gaussian_process.standardize(values, holds)
    np.testing.assert_allclose(deviation, np.std(np.arange(4)), rtol=1e-6)
    np.testing.assert_allclose(standard * deviation, np.arange(4) - 1.5, rtol=1e-6)
