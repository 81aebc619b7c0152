"""Whether all devices hold the same parameters: a hash of them, compared."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from radazo import core, validation

_WORDS = (0x9E3779B9, 0x7FEB352D)  # One sum each: odd numbers with mixed bits.


def fingerprint(params: core.Params) -> jax.Array:
    """A hash of all bits of a pytree, which depends on no layout over devices.

      h = Σᵢ mix(bitsᵢ + c · i) mod 2³², for two constants c, over all words i

    Two runs that are the same have the same; a single bit that differs changes it, but
    for one chance in 2⁶⁴. It keeps no secret.

    Args:
      params: Pytree of arrays.
    Returns:
      (2,) uint32.
    Cost:
      No function values; one pass over the parameters, no copy of them.
    Example:
      >>> params = {"a": jnp.zeros(3), "b": jnp.ones(2)}
      >>> moved = {"a": jnp.zeros(3).at[1].set(1e-30), "b": jnp.ones(2)}
      >>> print(jnp.any(fingerprint(params) != fingerprint(moved)))
      True
    """
    hashes = [
        _hashed(jnp.asarray(leaf), i) for i, leaf in enumerate(jax.tree.leaves(params))
    ]
    if not hashes:
        return jnp.zeros(2, jnp.uint32)
    return jnp.sum(jnp.stack(hashes), axis=0, dtype=jnp.uint32)


@jax.jit
def short_fingerprint(arrays: list[jax.Array]) -> jax.Array:
    """16 bits of the fingerprint of those that are floating-point, as uint16.

    Others do not change in a run.
    """
    words = fingerprint([x for x in arrays if core.is_floating(x)])
    return ((words[0] ^ words[1]) >> jnp.uint32(16)).astype(jnp.uint16)


def check_replicas(params: core.Params) -> None:
    """Compare the hashes of parameters that several devices should all have.

    Each replica of a run over a mesh makes its own update. They stay the same for ever
    if they are made of the same slopes; a function that differs between processes, or a
    bad memory cell, makes them part in silence. Call it every few hundred steps, in
    all processes: `minimize(..., callback=lambda result: check_replicas(result.params),
    callback_every=500)`.

    Args:
      params: Pytree; leaves with a `NamedSharding` are compared, others are on one
        device.
    Returns:
      Nothing.
    Raises:
      RuntimeError: If a leaf, or a part of it, is not the same on all that have it; it
        names the leaf and the devices.
    Cost:
      No function values; one pass over the parameters, and over the wire two words a
      leaf and device.
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
        gathered = np.asarray(_gathered(mesh, specs, [leaf for _, leaf in named]))
        hashes = np.moveaxis(gathered, -2, 0)  # (leaf, *mesh, 2)
        for (path, _), spec, own in zip(named, specs, hashes, strict=True):
            _compare(mesh, path, spec, own)


def of_all_processes(*numbers: int) -> np.ndarray:
    """(process, number): what each process of the run has, known to all of them."""
    own = np.array(numbers, np.int32)
    if jax.process_count() == 1:
        return own[None]
    return np.asarray(multihost_utils.process_allgather(own))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _gathered(mesh: Any, specs: tuple[Any, ...], leaves: list[Any]) -> jax.Array:
    """(*mesh, leaf, 2): the hash of what each device has of each leaf."""

    def local(leaves: list[jax.Array]) -> jax.Array:
        own = jnp.stack([_hashed(leaf, 0) for leaf in leaves])
        gathered = lax.all_gather(own, mesh.axis_names)
        return gathered.reshape(*mesh.devices.shape, len(leaves), 2)

    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(list(specs),),
        out_specs=PartitionSpec(),
        check_vma=False,
    )(leaves)


def _compare(mesh: Any, path: Any, spec: Any, hashes: np.ndarray) -> None:
    """All devices that have the same part of a leaf have the same hash of it."""
    names = [entry if isinstance(entry, tuple) else (entry,) for entry in spec]
    cut = {name for entry in names for name in entry}
    among = [name not in cut for name in mesh.axis_names]
    first = hashes[tuple(slice(0, 1) if free else slice(None) for free in among)]
    other = np.argwhere(np.any(hashes != first, axis=-1))
    if other.size:
        place = tuple(other[0])
        start = tuple(0 if free else x for free, x in zip(among, place, strict=True))
        validation.fail(
            "check_replicas",
            "params",
            "be the same on all devices that hold them",
            f"other bits at {jax.tree_util.keystr(path) or 'params itself'} on "
            f"{mesh.devices[place]} than on {mesh.devices[start]}",
            "Look for a function, data or random numbers that differ between "
            "processes, and go on from a checkpoint before it.",
            RuntimeError,
        )


def _hashed(leaf: jax.Array, number: int) -> jax.Array:
    """(2,) uint32, of the bits of a leaf that is the `number`-th of its pytree."""
    words = _words(leaf)
    place = lax.iota(jnp.uint32, words.size).reshape(words.shape)
    mixed = [
        _mixed(words + place * jnp.uint32(c) + jnp.uint32(number * c % 2**32))
        for c in _WORDS
    ]
    # Both in one loop: XLA on CPU writes down what a single sum is taken of.
    zeros = [jnp.uint32(0) for _ in _WORDS]
    sums = lax.reduce(mixed, zeros, _added, tuple(range(words.ndim)))
    return jnp.stack(sums)


def _added(some: list[jax.Array], others: list[jax.Array]) -> list[jax.Array]:
    return [x + y for x, y in zip(some, others, strict=True)]


def _words(leaf: jax.Array) -> jax.Array:
    """The bits of an array as an array of uint32."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
        leaf = jax.random.key_data(leaf)
    if leaf.dtype == jnp.bool_:
        return leaf.astype(jnp.uint32)
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        leaf = jnp.stack([leaf.real, leaf.imag])
    if leaf.dtype.itemsize == 8:
        return lax.bitcast_convert_type(leaf, jnp.uint32)
    own = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
    return lax.bitcast_convert_type(leaf, own).astype(jnp.uint32)


def _mixed(x: jax.Array) -> jax.Array:
    """Each bit of a word spread over all of it: two rounds of xor and multiply."""
    for factor, shift in ((0x85EBCA6B, 16), (0xC2B2AE35, 13)):
        x = (x ^ (x >> jnp.uint32(shift))) * jnp.uint32(factor)
    return x ^ (x >> jnp.uint32(16))
