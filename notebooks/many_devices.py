# %% [markdown]
# # Many devices
#
# Distribute the evaluations of a step over a mesh of devices. Each device draws its own
# directions and evaluates the function along them. The devices exchange the function
# values only, and each computes the same update from them. Nothing of the size of the
# parameters is sent.
#
# Without an accelerator this notebook splits the CPU into eight devices. On a TPU or
# several GPUs the same cells use the devices of the machine.
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

jax.config.update("jax_num_cpu_devices", 8)  # Read before JAX looks for devices.

import re

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import radazo

print(jax.device_count(), "devices:", jax.devices()[0].device_kind)

# %% [markdown]
# ## A run on some of the devices
#
# `sharding` names the axis of the mesh along which the function values of a step are
# shared. The optimizer, the step and the compiled loop stay as they are on one device.


# %%
def value_fn(x):
    return jnp.sum(jnp.sqrt(1 + (x - 1) ** 2) - 1)


def compiled(num_devices, num_steps=200):
    mesh = Mesh(np.array(jax.devices()[:num_devices]), ("directions",))
    estimator = radazo.sphere_estimator(
        num_directions=15,
        sharding=NamedSharding(mesh, PartitionSpec("directions")),
    )
    optimizer = radazo.radazo(0.01, estimator, key=0)

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(None, state, params, value_fn=value_fn)
        return (optax.apply_updates(params, updates), state), state.last_value

    params = jnp.zeros(500)
    everywhere = NamedSharding(mesh, PartitionSpec())
    carry = jax.device_put((params, optimizer.init(params)), everywhere)
    run = jax.jit(lambda carry: jax.lax.scan(step, carry, length=num_steps))
    return run.lower(carry).compile(), carry


counts = [n for n in (1, 2, 4, 8) if n <= jax.device_count()]
fingerprints, curves = {}, {}
for num_devices in counts:
    run, carry = compiled(num_devices)
    (params, state), values = run(carry)
    radazo.diagnostics.check_replicas(params)  # Raises if two devices differ.
    curves[num_devices] = values
    fingerprints[num_devices] = np.asarray(
        jax.jit(radazo.diagnostics.fingerprint)(params)
    ).tolist()
    print(
        num_devices, "devices:", values[0], "->", values[-1], fingerprints[num_devices]
    )

# %%
figure, panel = plt.subplots(figsize=(6, 3), layout="constrained")
for (num_devices, values), width in zip(curves.items(), (7, 5, 3, 1)):
    panel.plot(values, linewidth=width, label=f"{num_devices} device(s)")
panel.set(xlabel="steps", ylabel="f(x)", title="the same run on any number of devices")
panel.legend()
plt.show()

# %% [markdown]
# ## How much is sent
#
# The compiled program has one collective, of sixteen values: f(x) and one value for
# each of the fifteen directions. A gradient would have five hundred.

# %%
num_devices = counts[-1]
run, carry = compiled(num_devices)
collective = r"= (.*?) (?:all-|collective-|reduce-scatter)\S*\("
sent = [
    int(np.prod([int(n) for n in shape.split(",") if n]))
    for made in re.findall(collective, run.as_text())
    for shape in re.findall(r"\w\[([\d,]*)\]", made)
]
print("numbers sent in a step:", sent)

# %% [markdown]
# ## Other axes
#
# The other axes of the mesh are free for the function. Here two devices evaluate each
# direction, with half of the batch each, and the function takes the mean over both.

# %%
shape = (max(jax.device_count() // 2, 1), min(jax.device_count(), 2))
mesh = Mesh(np.array(jax.devices()).reshape(shape), ("directions", "data"))
inputs = jax.random.normal(jax.random.key(1), (64, 20))
wanted = inputs @ jnp.linspace(-1.0, 1.0, 20)
batch = jax.device_put((inputs, wanted), NamedSharding(mesh, PartitionSpec("data")))


def loss(w, batch):
    inputs, wanted = batch
    return jnp.mean((inputs @ w - wanted) ** 2)


shared = NamedSharding(mesh, PartitionSpec("directions"))
estimator = radazo.gaussian_estimator(sharding=shared)
optimizer = radazo.radazo(0.02, estimator, key=0)
w = jax.device_put(jnp.zeros(20), NamedSharding(mesh, PartitionSpec()))
result = radazo.minimize(loss, w, optimizer, 300, batches=lambda step: batch)
print("loss", result.values[0], "->", result.values[-1])

# %% [markdown]
# ## Summary
#
# A direction is a function of its key, so a device needs no more than the key and the
# function values. On CPUs the run has the same bits on any number of devices; the
# compilers of other devices may round differently.

# %%
if jax.default_backend() == "cpu":
    assert all(words == fingerprints[1] for words in fingerprints.values())
    assert sent == [16]
assert values[-1] < values[0] / 2
assert result.values[-1] < result.values[0] / 20
