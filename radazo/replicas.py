"""Hashes of parameters, and their comparison across devices."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from radazo import core, validation

_WORDS = (0x9E3779B9, 0x7FEB352D)  # Odd multipliers, one for each sum.


def fingerprint(params: core.Params) -> jax.Array:
    """Return a hash of all bits of a pytree, independent of its sharding.

      h = Σᵢ mix(bitsᵢ + c · i) mod 2³², for two constants c, over all words i

    Different bits have equal hashes with a probability of 2⁻⁶⁴.

    Args:
      params: Pytree of arrays.
    Returns:
      (2,) uint32.
    Cost:
      No function values; one pass over the parameters without a copy.
    Example:
      >>> params, other = jnp.zeros(3), jnp.zeros(3).at[1].set(1e-30)
      >>> print(jnp.any(fingerprint(params) != fingerprint(other)))
      True
    """
    leaves = enumerate(jax.tree.leaves(params))
    hashes = (_hash(jnp.asarray(leaf), i) for i, leaf in leaves)
    return sum(hashes, start=jnp.zeros(2, jnp.uint32))


@jax.jit
def short_fingerprint(arrays: list[jax.Array]) -> jax.Array:
    """Return 16 bits of the fingerprint of the floating-point arrays, as uint16."""
    words = fingerprint([x for x in arrays if core.is_floating(x)])
    return ((words[0] ^ words[1]) >> jnp.uint32(16)).astype(jnp.uint16)


def check_replicas(params: core.Params) -> None:
    """Check that all devices hold the same replicated parameters, by their hashes.

    In a run over a mesh each replica computes its own update from the same slopes; a
    function that differs between processes or a hardware fault makes them diverge
    silently. Call this every few hundred steps in all processes, e.g. as the `callback`
    of `minimize`: `lambda result: check_replicas(result.params)`.

    Args:
      params: Pytree; only leaves with a `NamedSharding` are compared.
    Returns:
      None.
    Raises:
      RuntimeError: If devices hold different values of a leaf or shard.
    Cost:
      One pass over the parameters, and a transfer of two words per leaf and device.
    Example:
      >>> mesh = jax.sharding.Mesh(jax.devices(), ("directions",))
      >>> everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
      >>> check_replicas(jax.device_put(jnp.ones(3), everywhere))
    """
    meshes: dict[Any, list[tuple[Any, Any]]] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding):
            meshes.setdefault(sharding.mesh, []).append((path, leaf))
    for mesh, named in meshes.items():
        specs = tuple(leaf.sharding.spec for _, leaf in named)
        gathered = np.asarray(_gather(mesh, specs, [leaf for _, leaf in named]))
        hashes = np.moveaxis(gathered, -2, 0)  # (leaf, *mesh, 2)
        for (path, _), spec, own in zip(named, specs, hashes, strict=True):
            _compare(mesh, path, spec, own)


def of_all_processes(*numbers: int) -> np.ndarray:
    """Gather the numbers of each process; return shape (process, number)."""
    own = np.array(numbers, np.int32)
    if jax.process_count() == 1:
        return own[None]
    return np.asarray(multihost_utils.process_allgather(own))


@partial(jax.jit, static_argnums=(0, 1))
def _gather(mesh: Any, specs: tuple[Any, ...], leaves: list[Any]) -> jax.Array:
    """Return (*mesh, leaf, 2), the hash of each leaf on each device."""

    def local(leaves: list[jax.Array]) -> jax.Array:
        own = jnp.stack([_hash(leaf, 0) for leaf in leaves])
        gathered = lax.all_gather(own, mesh.axis_names)
        return gathered.reshape(*mesh.devices.shape, len(leaves), 2)

    options = {"in_specs": (list(specs),), "out_specs": PartitionSpec()}
    return jax.shard_map(local, mesh=mesh, check_vma=False, **options)(leaves)


def _compare(mesh: Any, path: Any, spec: Any, hashes: np.ndarray) -> None:
    """Check that devices with the same shard of a leaf have the same hash."""
    names = [entry if isinstance(entry, tuple) else (entry,) for entry in spec]
    sharded = {name for entry in names for name in entry}
    replicated = [name not in sharded for name in mesh.axis_names]
    first = hashes[tuple(slice(0, 1) if x else slice(None) for x in replicated)]
    different = np.argwhere(np.any(hashes != first, axis=-1))
    if different.size:
        place = different[0]
        devices = mesh.devices[*place], mesh.devices[*np.where(replicated, 0, place)]
        name = jax.tree_util.keystr(path) or "params itself"
        rule = "be the same on all devices that hold them"
        got = f"other bits at {name} on {devices[0]} than on {devices[1]}"
        hint = "Look for functions, data or random numbers that differ between "
        hint += "processes, and resume from an earlier checkpoint."
        validation.fail("check_replicas", "params", rule, got, hint, RuntimeError)


def _hash(leaf: jax.Array, number: int) -> jax.Array:
    """Return the (2,) uint32 hash of the leaf with this number in its pytree."""
    words = _words(leaf)
    place = lax.iota(jnp.uint32, words.size).reshape(words.shape)
    mixed = [
        _mix(words + place * jnp.uint32(c) + jnp.uint32(number * c % 2**32))
        for c in _WORDS
    ]
    # One reduction of both: XLA on CPU materializes the operand of a single sum.
    zeros, axes = [jnp.uint32(0) for _ in _WORDS], tuple(range(words.ndim))
    return jnp.stack(lax.reduce(mixed, zeros, partial(jax.tree.map, lax.add), axes))


def _words(leaf: jax.Array) -> jax.Array:
    """Return the bits of an array as an array of uint32."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
        leaf = jax.random.key_data(leaf)
    if leaf.dtype == jnp.bool_:
        return leaf.astype(jnp.uint32)
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        leaf = jnp.stack([leaf.real, leaf.imag])
    unsigned = f"uint{8 * min(leaf.dtype.itemsize, 4)}"  # Two words if 8 bytes.
    return lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)


def _mix(x: jax.Array) -> jax.Array:
    """Mix the bits of each word by two rounds of xor and multiply."""
    for factor, shift in ((0x85EBCA6B, 16), (0xC2B2AE35, 13)):
        x = (x ^ (x >> jnp.uint32(shift))) * jnp.uint32(factor)
    return x ^ (x >> jnp.uint32(16))
