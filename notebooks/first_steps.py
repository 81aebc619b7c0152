# %% [markdown]
# # First steps
# Fit a decision stump to noisy labels by its number of mistakes: a metric that is a
# staircase, whose gradient is zero wherever it exists.

# %%
import jax
import jax.numpy as jnp

import radazo

points = jax.random.normal(jax.random.key(1), (200, 2))
labels = points @ jnp.array([3.0, -4.0]) > 1.0


# %% [markdown]
# The black box: the share of points on the wrong side of a line. It is only evaluated.


# %%
def share_of_mistakes(line):
    return jnp.mean((points @ line["slope"] > line["offset"]) != labels)


# %% [markdown]
# R-AdaZO estimates a gradient from function values: K + 1 = 11 of them a step. The
# points compared must be far enough apart for the staircase to show: `smoothing`.

# %%
start = {"slope": jnp.array([1.0, 1.0]), "offset": jnp.zeros(())}
estimator = radazo.sphere_estimator(smoothing=0.5)
optimizer = radazo.radazo(0.02, estimator, key=0)
result = radazo.minimize(share_of_mistakes, start, optimizer, num_steps=300)
first, last = result.values[0], result.values[-1]
print(f"mistakes {first:.1%} -> {last:.1%} after {result.num_values[-1]} values")

# %% [markdown]
# What this teaches: no gradient was needed.

# %%
gradient = jax.grad(lambda line: share_of_mistakes(line) + 0.0)(start)
assert all(jnp.all(leaf == 0) for leaf in jax.tree.leaves(gradient))
assert last < first / 4
