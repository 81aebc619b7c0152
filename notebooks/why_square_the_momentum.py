# %% [markdown]
# # Why square the momentum
#
# Adam divides by the root of a second moment of the **gradients**. R-AdaZO ([Shu et
# al., 2025](https://arxiv.org/abs/2502.01014)) takes the second moment of the
# **momentum** instead. This notebook shows the effect on gradients that are estimated
# from function values, and how much of it a larger learning rate also gives.
#
# The first cell installs what is missing: radazo from the checkout of this notebook,
# or else from the package index.

# %%
import importlib.util
import pathlib
import subprocess
import sys

checkout = ".." if pathlib.Path("../pyproject.toml").exists() else "radazo"
for name, source in (("radazo", checkout), ("matplotlib", "matplotlib")):
    if importlib.util.find_spec(name) is None:
        pip = [sys.executable, "-m", "pip", "install", "-q"]
        subprocess.run([*pip, source], check=True)

# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import radazo

FAST = "RADAZO_FAST" in os.environ  # Small sizes, for tests.
DIM, NUM_DIRECTIONS, B2 = (300 if FAST else 2000), 10, 0.99


def value_fn(x):
    return jnp.sum(x**2) / 2


# %% [markdown]
# ## An estimate is mostly noise
#
# The gradient of this function is `x` itself, so every estimate can be compared with
# it. The cosine between the gradient and an estimate from K random directions in d
# dimensions is about √(K / (d + K)).

# %%
estimator = radazo.sphere_estimator(num_directions=NUM_DIRECTIONS, terms=True)
value_and_grad = radazo.value_and_grad(lambda x: x**2 / 2, estimator)
x = jax.random.normal(jax.random.key(0), DIM)
_, estimate = jax.jit(value_and_grad)(jax.random.key(1), x)
print(f"cosine   {radazo.diagnostics.cosine_similarity(estimate, x):.3f}")
print(f"expected {(NUM_DIRECTIONS / (DIM + NUM_DIRECTIONS)) ** 0.5:.3f}")


# %% [markdown]
# ## Averaging keeps the direction and removes noise
#
# Run R-AdaZO with several values of b1, the decay rate of the momentum. At each step,
# compare with the true gradient
#
# - the estimate g and the momentum m, by their cosine with the gradient;
# - the second moments of g and of m, by their distance from the second moment of the
#   true gradients (figure 2 of the paper).


# %%
def measure(b1, steps=600, counted=300):
    """Means of (cos g, cos m, error of g², error of m²) over the counted steps."""
    rule = radazo.scale_by_radazo(b1=b1, b2=B2)
    second_moment = radazo.scale_by_second_moment(b2=B2)

    def step(carry, t):
        x, state, of_estimates, of_gradients = carry
        _, g = value_and_grad(jax.random.fold_in(jax.random.key(2), t), x)
        update, state = rule.update(g, state)
        _, of_estimates = second_moment.update(g, of_estimates)
        _, of_gradients = second_moment.update(x, of_gradients)
        measures = jnp.stack(
            [
                radazo.diagnostics.cosine_similarity(g, x),
                radazo.diagnostics.cosine_similarity(state.mu, x),
                radazo.diagnostics.second_moment_error(
                    of_estimates.nu, of_gradients.nu
                ),
                radazo.diagnostics.second_moment_error(state.nu, of_gradients.nu),
            ]
        )
        return (x - 1e-3 * update, state, of_estimates, of_gradients), measures

    moments = second_moment.init(x)
    carry = (x, rule.init(x), moments, moments)
    _, measures = jax.jit(lambda c: jax.lax.scan(step, c, jnp.arange(steps)))(carry)
    return measures[-counted:].mean(axis=0)


b1s = [0.0, 0.9, 0.99] if FAST else [0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999]
usual = b1s.index(0.9)
measured = jnp.stack([measure(b1) for b1 in b1s])

# %%
figure, panels = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
for panel, columns, title in zip(
    panels, [(0, 1), (2, 3)], ["cosine with the gradient", "error of the second moment"]
):
    for column, label, color in zip(
        columns, ["estimate g", "momentum m"], ["#0072B2", "#D55E00"]
    ):
        panel.loglog(
            1 - jnp.array(b1s), measured[:, column], "o-", label=label, color=color
        )
    panel.set(xlabel="1 − b1", title=title)
    panel.invert_xaxis()
    panel.legend()
plt.show()

# %% [markdown]
# The momentum points closer to the gradient than an estimate does, until at very large
# b1 it lags behind. Its square is much closer to the second moment of the true
# gradients.
#
# ## How much it speeds up a run
#
# Where estimates are mostly noise, the second moment of m is smaller than that of g by
# the factor (1 − b1) / (1 + b1) in every coordinate. A step of R-AdaZO is therefore
# **longer**, by the root of the inverse: 4.36 at b1 = 0.9. At the same learning rate
# R-AdaZO is faster; ZO-AdaMM with 4.36 times the learning rate catches up. Count the
# steps until the value is a tenth of the first one:

# %%
MATCHED = (1.9 / 0.1) ** 0.5
adamm = radazo.zo_adamm
candidates = {
    "radazo, 0.001": radazo.radazo(1e-3, estimator, key=3),
    "zo_adamm, 0.001": adamm(1e-3, estimator, key=3),
    "zo_adamm, 0.00436": adamm(MATCHED * 1e-3, estimator, key=3),
    "zo_sgd, 0.5 K / d": radazo.zo_sgd(0.5 * NUM_DIRECTIONS / DIM, estimator, key=3),
}
target = 0.1 * value_fn(x)
steps, values = {}, {}
for label, optimizer in candidates.items():
    result = radazo.minimize(
        lambda x: x**2 / 2, x, optimizer, 20_000, stop=lambda value, x: value < target
    )
    steps[label], values[label] = result.num_steps, result.values
    print(f"{label:<20}{result.num_steps:>7} steps")

# %%
figure, panel = plt.subplots(figsize=(6, 3), layout="constrained")
for (label, curve), dash in zip(values.items(), ["-", "-", "--", ":"]):
    panel.semilogy(curve, label=label, linestyle=dash)
panel.set(xlabel="steps", ylabel="f(x)")
panel.legend()
plt.show()

# %% [markdown]
# ## Summary
#
# - The square of the momentum is the better estimate of the second moment, at b1 = 0.9
#   by more than an order of magnitude.
# - At the same learning rate R-AdaZO is several times faster than ZO-AdaMM.
# - Nearly all of that comes from longer steps: at the matched rate ZO-AdaMM needs
#   about as many steps, and ZO-SGD with a good rate needs fewer. Tune the learning
#   rate before you compare optimizers.

# %%
shared = steps["zo_adamm, 0.001"] / steps["radazo, 0.001"]
matched = steps["zo_adamm, 0.00436"] / steps["radazo, 0.001"]
print(f"ZO-AdaMM needs {shared:.2f} times the steps, {matched:.2f} at a matched rate")
assert measured[1:, 1].min() > measured[1:, 0].max()
assert measured[usual, 3] < measured[usual, 2] / 10
assert shared > 2
assert matched < 1.2
assert steps["zo_sgd, 0.5 K / d"] < steps["radazo, 0.001"]
