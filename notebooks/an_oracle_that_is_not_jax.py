# %% [markdown]
# # An oracle that is not JAX
#
# Fool a random forest of scikit-learn that reads digits. The forest has no gradient
# and JAX cannot trace it. Here it also runs in workers that fail: calls raise, time
# out and return NaN. The run converges nevertheless, counts every call, and stays
# within its budget.
#
# The first cell installs what is missing: radazo from the checkout of this notebook,
# or else from the package index.

# %%
import importlib.util
import pathlib
import subprocess
import sys

checkout = ".." if pathlib.Path("../pyproject.toml").exists() else "radazo"
packages = {
    "radazo": checkout,
    "matplotlib": "matplotlib",
    "sklearn": "scikit-learn",
}
for name, source in packages.items():
    if importlib.util.find_spec(name) is None:
        pip = [sys.executable, "-m", "pip", "install", "-q"]
        subprocess.run([*pip, source], check=True)

# %%
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier

import radazo

images, labels = load_digits(return_X_y=True)
forest = RandomForestClassifier(100, random_state=0).fit(images[:1500], labels[:1500])
image, label = images[1600], labels[1600]
print("read as", forest.predict(image[None])[0], "and is", label)

# %% [markdown]
# ## The oracle
#
# `margin` is the share of trees that vote for the right digit, minus the largest share
# for another digit; it is a staircase. Where it is below 0, the forest is fooled.
# `oracle` is the margin as a server would return it: some calls raise, some take too
# long, some return NaN. It counts its calls, to compare with the count of the pool.

# %%
lock, calls = threading.Lock(), []


def attacked(change):
    return np.clip(image + change, 0, 16)


def margin(change):
    shares = forest.predict_proba(attacked(change)[None])[0]
    return shares[label] - np.max(np.delete(shares, label))


def oracle(change):
    with lock:
        calls.append(1)
        number = len(calls)
    if number % 20 == 0:
        raise ConnectionError("the server is busy")
    if number % 50 == 1:
        time.sleep(1)  # Longer than the time limit of the pool.
    if number % 30 == 2:
        return np.nan
    return margin(change)


# %% [markdown]
# ## A run through a pool of workers
#
# At most four calls run at a time. The pool repeats a call that raises or times out;
# a call that returns NaN drops its direction from the estimate.

# %%
estimator = radazo.gaussian_estimator(num_directions=10, smoothing=2.0)
optimizer = radazo.radazo(0.05, estimator, key=0)
start = np.zeros(64, np.float32)
pool = radazo.pool.evaluation_pool(
    oracle, ThreadPoolExecutor, max_concurrent=4, timeout=0.5, budget=2000
)
with pool as workers:
    result = workers.minimize(
        start,
        optimizer,
        num_steps=150,
        callback=lambda result: bool(result.values[-1] < 0),
    )
    stats = workers.stats()
print(result.status, "after", result.num_steps, "steps; margin", margin(result.params))
print(stats)
print("directions dropped:", result.state.num_dropped)

# %%
shown = {
    f"image: {label}": image,
    "change": np.asarray(result.params),
    f"read as {forest.predict(attacked(result.params)[None])[0]}": attacked(
        result.params
    ),
}
figure, panels = plt.subplots(
    1, 4, figsize=(9, 2.4), width_ratios=[1, 1, 1, 1.6], layout="constrained"
)
for panel, (title, pixels) in zip(panels, shown.items()):
    panel.imshow(pixels.reshape(8, 8), cmap="gray")
    panel.set(title=title, xticks=[], yticks=[])
panels[3].plot(result.values)
panels[3].axhline(0, color="gray", linewidth=0.8)
panels[3].set(xlabel="steps", ylabel="margin", title="the run")
plt.show()

# %% [markdown]
# ## By hand: ask and tell
#
# The pool is a loop around two functions. `ask` returns the identifiers of the points
# of a step and a function that computes a point. `tell` takes the values in any
# order; missing ones may be left out. Points are functions of the parameters and
# the optimizer state, so a worker that has both computes its points itself.

# %%
ids, point, _ = radazo.ask(optimizer, result.params, result.state)
some = [query for query in ids if query.index != 3]
values = {query: margin(point(query)) for query in some}
params, state = radazo.tell(optimizer, result.params, result.state, values)
print("values so far", state.num_values, "dropped", state.num_dropped)

# %% [markdown]
# ## Summary
#
# The pool counts each call once, including those that fail.

# %%
assert margin(start) > 0.2
assert margin(result.params) < 0
assert stats.calls == len(calls) <= 2000
assert stats.exceptions > 0
assert stats.timeouts > 0
assert state.num_dropped == result.state.num_dropped + 1
