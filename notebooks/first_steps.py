# %% [markdown]
# # First steps
#
# **A black box in a dozen lines.** Fit a line between two classes by its number of
# mistakes: a metric that is a staircase, whose gradient is zero wherever it exists.
# radazo needs its values alone.
#
# The first cell installs what is missing: radazo from the checkout that this notebook
# lies in, or else from the package index.

# %%
import importlib.util
import pathlib
import subprocess
import sys

if importlib.util.find_spec("radazo") is None:
    source = ".." if pathlib.Path("../pyproject.toml").exists() else "radazo"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", source], check=True)

# %%
import jax
import jax.numpy as jnp
import optax

import radazo

points = jax.random.normal(jax.random.key(1), (200, 2))
labels = points @ jnp.array([3.0, -4.0]) > 1.0


# %% [markdown]
# The black box: the share of points on the wrong side of a line. It is only evaluated.


# %%
def share_of_mistakes(line):
    return jnp.mean((points @ line["slope"] > line["offset"]) != labels)


start = {"slope": jnp.array([1.0, 1.0]), "offset": jnp.zeros(())}

# %% [markdown]
# ## One call
#
# An estimator turns K + 1 = 11 function values into a gradient estimate. The points
# that it compares must be far enough apart for the staircase to show: `smoothing`.
# R-AdaZO makes a step of it, `minimize` a run.

# %%
estimator = radazo.sphere_estimator(smoothing=0.5)
optimizer = radazo.radazo(0.02, estimator, key=0)
result = radazo.minimize(share_of_mistakes, start, optimizer, num_steps=300)
first, last = result.values[0], result.values[-1]
print(f"mistakes {first:.1%} -> {last:.1%} after {result.num_values[-1]} values")

# %% [markdown]
# ## Chained into optax
#
# `with_estimator` puts the estimator around any optax optimizer: here clipped Adam
# with a cosine schedule, in a loop of your own. `monitor_estimate` keeps what the
# estimates say of themselves, at no further function value.

# %%
optimizer = radazo.with_estimator(
    estimator,
    optax.chain(
        radazo.diagnostics.monitor_estimate(),
        optax.clip_by_global_norm(1.0),
        optax.adam(optax.cosine_decay_schedule(0.05, 300)),
    ),
    key=0,
)


@jax.jit
def step(line, state):
    updates, state = optimizer.update(None, state, line, value_fn=share_of_mistakes)
    return optax.apply_updates(line, updates), state


line, state = start, optimizer.init(start)
for _ in range(300):
    line, state = step(line, state)
statistics = optax.tree.get(state, "statistics")
print(f"mistakes {share_of_mistakes(line):.1%}, values {state.num_values}")
print(f"signal to noise of an estimate {statistics.signal_to_noise:.2f}")

# %% [markdown]
# ## What this teaches
#
# No gradient was needed, and none was there to be had.

# %%
gradient = jax.grad(lambda line: share_of_mistakes(line) + 0.0)(start)
assert all(jnp.all(leaf == 0) for leaf in jax.tree.leaves(gradient))
assert last < first / 4
assert share_of_mistakes(line) < first / 4
