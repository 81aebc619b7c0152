# %% [markdown]
# # Many devices
#
# **One run over a mesh.** Each device draws directions of its own and evaluates the
# function there; one number for each value goes over the wire, and every device makes
# the same update of the same slopes. Nothing of the size of the parameters is sent.
#
# On a machine without an accelerator this notebook makes eight devices of its CPU; on
# a TPU or with several GPUs the same cells use what is there.

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

jax.config.update("jax_num_cpu_devices", 8)  # Read before JAX looks for devices.

import re

import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import radazo

print(jax.device_count(), "devices:", jax.devices()[0].device_kind)

# %% [markdown]
# ## A run on some of the devices
#
# `sharding` says along which axis of a mesh the function values of a step are shared.
# Everything else is as ever: an optimizer, a step, a compiled loop.


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
fingerprints = {}
for num_devices in counts:
    run, carry = compiled(num_devices)
    (params, state), values = run(carry)
    radazo.diagnostics.check_replicas(params)  # An error if two devices had parted.
    fingerprints[num_devices] = np.asarray(
        jax.jit(radazo.diagnostics.fingerprint)(params)
    ).tolist()
    print(
        num_devices, "devices:", values[0], "->", values[-1], fingerprints[num_devices]
    )

# %% [markdown]
# ## What goes over the wire
#
# The compiled program has one collective: sixteen values, f(x) and one for each of the
# fifteen directions. A gradient would have been five hundred numbers.

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
# ## Further axes
#
# Other axes of the mesh are yours: here half of the devices of a direction have half
# of the batch each, and the mean over it is taken inside of the function.

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
# ## What this teaches
#
# Directions are functions of their keys: a device that knows the key and the slope
# needs nothing else. So the run is the same however many devices it is cut over
# (shown on CPUs; compilers of other devices may round otherwise).

# %%
if jax.default_backend() == "cpu":
    assert all(words == fingerprints[1] for words in fingerprints.values())
    assert sent == [16]
assert values[-1] < values[0] / 2
assert result.values[-1] < result.values[0] / 20
