# %% [markdown]
# # First steps
#
# Separate two classes with a line by minimizing its number of mistakes. This metric is
# a staircase: its gradient is zero wherever it exists. radazo needs only its values.
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
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

import radazo

points = jax.random.normal(jax.random.key(1), (200, 2))
labels = points @ jnp.array([3.0, -4.0]) > 1.0


# %% [markdown]
# The function to minimize is the share of points on the wrong side of the line.


# %%
def share_of_mistakes(line):
    return jnp.mean((points @ line["slope"] > line["offset"]) != labels)


start = {"slope": jnp.array([1.0, 1.0]), "offset": jnp.zeros(())}

# %% [markdown]
# ## One call
#
# `minimize` needs the function and a start. It chooses the points to evaluate and the
# lengths of the steps from the values that it sees, ends when these no longer fall, and
# keeps the best parameters.

# %%
result = radazo.minimize(share_of_mistakes, start)
first, best = result.values[0], result.best_value
print(f"mistakes {first:.1%} -> {best:.1%} after {result.num_values[-1]} values")
print(result.message)

# %%
figure, (curve, plane) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
curve.plot(result.num_values, result.values)
curve.set(xlabel="function values", ylabel="share of mistakes")
plane.scatter(*points.T, c=labels, cmap="coolwarm", s=12)
ends = jnp.array([-3.0, 3.0])
for line, label, dash in ((start, "start", ":"), (result.best_params, "result", "-")):
    heights = (line["offset"] - line["slope"][0] * ends) / line["slope"][1]
    plane.plot(ends, heights, "k", linestyle=dash, label=label)
plane.set(xlim=(-3, 3), ylim=(-3, 3), title="two classes")
plane.legend()
plt.show()

# %% [markdown]
# ## With any optax optimizer
#
# `with_estimator` puts the estimator in front of an optax optimizer: here Adam with
# clipping and a cosine schedule, in a loop of your own. The estimator evaluates the
# function at the current parameters and at ten points around them, and turns these 11
# values into an estimate of the gradient. `smoothing` is the distance of the points:
# large enough to see past one stair. `monitor_estimate` records statistics of the
# estimates and needs no further function values.

# %%
estimator = radazo.sphere_estimator(smoothing=0.5)
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
print(f"signal-to-noise ratio of an estimate {statistics.signal_to_noise:.2f}")

# %% [markdown]
# ## Summary
#
# Both runs remove most mistakes, although the gradient of the metric is zero.

# %%
gradient = jax.grad(lambda line: share_of_mistakes(line) + 0.0)(start)
assert all(jnp.all(leaf == 0) for leaf in jax.tree.leaves(gradient))
assert best < first / 4
assert share_of_mistakes(line) < first / 4
