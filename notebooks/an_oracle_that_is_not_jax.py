# %% [markdown]
# # An oracle that is not JAX
#
# **A forest fooled through its answers.** A random forest of scikit-learn reads digits.
# It has no gradient, JAX cannot trace it, and here it is served by workers that fail:
# calls raise, hang and return NaN. The run converges all the same, counts every call,
# and stays within its budget.

# %%
import importlib.util
import pathlib
import subprocess
import sys

if importlib.util.find_spec("radazo") is None:
    source = ".." if pathlib.Path("../pyproject.toml").exists() else "radazo"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", source], check=True)
if importlib.util.find_spec("sklearn") is None:
    command = [sys.executable, "-m", "pip", "install", "-q", "scikit-learn"]
    subprocess.run(command, check=True)

# %%
import threading
import time
from concurrent.futures import ThreadPoolExecutor

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
# By how much the forest prefers the right digit, at the image plus a change; below 0 it
# is fooled. A staircase: a share of a hundred trees. One call in ten fails, and all are
# counted where they arrive, to be compared with what the pool says.

# %%
lock, arrived = threading.Lock(), []


def margin(change):
    shares = forest.predict_proba(np.clip(image + change, 0, 16)[None])[0]
    return shares[label] - np.max(np.delete(shares, label))


def oracle(change):
    with lock:
        arrived.append(1)
        number = len(arrived)
    if number % 20 == 0:
        raise ConnectionError("the server is busy")
    if number % 50 == 1:
        time.sleep(1)  # Longer than the pool waits.
    if number % 30 == 2:
        return np.nan
    return margin(change)


# %% [markdown]
# ## A run through the pool
#
# Four calls are under way at a time. A call without an answer is repeated; one that
# answers NaN drops its direction. Points are made when a worker is free for them.

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
    ledger = workers.ledger()
print(result.status, "after", result.num_steps, "steps; margin", margin(result.params))
print(ledger)
print("directions dropped:", result.state.num_dropped)

# %% [markdown]
# ## By hand: ask and tell
#
# The pool is a loop around two functions. `ask` names the points of a step, and makes
# each when it is asked for; `tell` takes the values, in any order, without those that
# never came. Whoever has parameters and state makes the same points: nothing else need
# be sent to a worker.

# %%
ids, point = radazo.ask(optimizer, result.params, result.state)
some = [query for query in ids if query.index != 3]
values = {query: margin(point(query)) for query in some}
params, state = radazo.tell(optimizer, result.params, result.state, values)
print("values so far", state.num_values, "dropped", state.num_dropped)

# %% [markdown]
# ## What this teaches
#
# A function value is the currency: each call is counted once, wherever it ended.

# %%
assert margin(start) > 0.2
assert margin(result.params) < 0
assert ledger.calls == len(arrived) <= 2000
assert ledger.exceptions > 0
assert ledger.timeouts > 0
assert state.num_dropped == result.state.num_dropped + 1
