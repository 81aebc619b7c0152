"""Directions over a mesh: the same run on any number of devices, a number a value."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import radazo
from radazo import replicas

PARAMS = {"a": jnp.linspace(0.0, 1.0, 3000), "b": jnp.ones((20, 30))}
EVERYWHERE = PartitionSpec()


def value_fn(params, scale=1.0):
    rough = jnp.sum(jnp.cos(3 * params["b"]))
    return scale * (jnp.sum((params["a"] - 1) ** 2) + rough)


def over(num_devices):
    mesh = Mesh(np.array(jax.devices()[:num_devices]), ("directions",))
    return NamedSharding(mesh, PartitionSpec("directions"))


@functools.cache
def compiled(sharding, num_steps, **options):
    """A run as one program, and what it starts from where its devices find it."""
    estimator = radazo.sphere_estimator(sharding=sharding, **options)
    optimizer = radazo.radazo(0.01, estimator, key=3)

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(None, state, params, value_fn=value_fn)
        return (optax.apply_updates(params, updates), state), None

    start = PARAMS, optimizer.init(PARAMS)
    if sharding is not None:
        start = jax.device_put(start, NamedSharding(sharding.mesh, EVERYWHERE))
    steps = jax.jit(lambda *start: jax.lax.scan(step, start, length=num_steps)[0])
    return steps.lower(*start).compile(), start


def run(sharding, num_steps=50, **options):
    steps, start = compiled(sharding, num_steps, **options)
    return jax.device_get(steps(*start))


def assert_same_bits(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.gate
@pytest.mark.parametrize("num_devices", [2, 4, 8])
@pytest.mark.parametrize(
    ("num_directions", "difference"), [(10, radazo.forward), (3, radazo.central)]
)
def test_fifty_steps_have_the_same_bits_on_any_number_of_devices(
    num_devices, num_directions, difference
):
    options = {"num_directions": num_directions, "difference": difference}
    alone = run(over(1), **options)
    assert_same_bits(run(over(num_devices), **options), alone)
    assert alone[1].num_values == 50 * difference.num_values(num_directions)


def test_over_a_mesh_the_estimate_is_that_without_one(x64):
    x = jnp.linspace(0.0, 1.0, 300)

    def gradient(sharding):
        estimator = radazo.sphere_estimator(num_directions=3, sharding=sharding)
        value_and_grad = radazo.value_and_grad(lambda x: jnp.sum(x**3), estimator)
        return jax.jit(value_and_grad)(0, x)[1]

    # Rounding of a value of order 100 over the smoothing, times d.
    np.testing.assert_allclose(gradient(over(2)), gradient(None), atol=1e-9)


def sent(text):
    """Numbers in each array that a collective of a compiled program makes."""
    kinds = r"(?:ragged-)?all-[\w-]+|collective-[\w-]+|reduce-scatter[\w-]*"
    made = re.findall(rf"= (.*?) (?:{kinds})\(", text)
    shapes = [shape for one in made for shape in re.findall(r"\w\[([\d,]*)\]", one)]
    return [math.prod(int(n) for n in shape.split(",") if n) for shape in shapes]


def test_what_is_sent_is_read_of_every_kind_of_collective():
    text = """
      %a = f32[16]{0} all-gather(f32[2]{0} %x), dimensions={0}
      %b = (f32[3000]{0}, f32[20,30]{1,0}) all-reduce(%y, %z), to_apply=%add
      %c = (f32[2]{0}, f32[8]{0}) all-gather-start(%x), dimensions={0}
      ROOT %d = bf16[] all-reduce(%y), to_apply=%add
      %e = u32[5]{0} collective-permute(%w), source_target_pairs={{0,1}}
      %f = f32[7]{0} reduce-scatter(%w), dimensions={0}
      %g = f32[9]{0} add(f32[9]{0} %h, f32[9]{0} %i), metadata={op_name="all-gather"}
    """
    assert sent(text) == [16, 3000, 600, 2, 8, 1, 5, 7]


def test_a_collective_moves_a_number_for_each_value_and_nothing_of_the_size_of_params():
    steps, _ = compiled(over(8), 50, num_directions=10, difference=radazo.forward)
    # The eleven values, rounded up to a multiple of the devices.
    assert sent(steps.as_text()) == [16]


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize(("num_devices", "num_turns"), [(1, 12), (4, 3), (8, 2)])
def test_each_device_takes_its_share_of_the_values_and_no_value_is_taken_twice(
    num_devices, num_turns
):
    taken = []

    def counted(device, x):
        taken.append((int(device), x.tobytes()))
        return np.sum(x)

    def value_fn(x):
        device = jax.lax.axis_index("directions")
        kind = jax.ShapeDtypeStruct((), x.dtype)
        return jax.pure_callback(counted, kind, device, x, vmap_method="sequential")

    estimator = radazo.gaussian_estimator(num_directions=11, sharding=over(num_devices))
    value_and_grad = jax.jit(radazo.value_and_grad(value_fn, estimator))
    jax.block_until_ready(value_and_grad(0, jnp.arange(5.0)))
    devices = [device for device, _ in taken]
    assert len({point for _, point in taken}) == len(taken) == 12
    assert {devices.count(i) for i in range(num_devices)} <= {num_turns, num_turns - 1}


@pytest.mark.optimized
@pytest.mark.parametrize("chunk_size", [2, 3, 12])
def test_a_chunk_changes_no_bit_where_a_batch_of_terms_rounds_as_one_does(chunk_size):
    def steps(chunk_size):
        estimator = radazo.sphere_estimator(
            sharding=over(2), chunk_size=chunk_size, terms=True
        )
        optimizer = radazo.radazo(0.01, estimator, key=3)

        @jax.jit
        def run(params):
            def step(carry, _):
                params, state = carry
                updates, state = optimizer.update(
                    None, state, params, value_fn=lambda x: (x - 1) ** 2
                )
                return (params + updates, state), None

            carry = params, optimizer.init(params)
            return jax.lax.scan(step, carry, length=50)[0]

        return jax.device_get(run(PARAMS["a"]))

    assert_same_bits(steps(chunk_size), steps(1))


def estimates(sharding, params, batch):
    estimator = radazo.gaussian_estimator(sharding=sharding)
    value_and_grad = radazo.value_and_grad(
        lambda params, batch: jnp.mean((batch @ params["w"] - 1) ** 2), estimator
    )
    estimate = jax.jit(value_and_grad).lower(5, params, batch).compile()
    value, gradient = estimate(5, params, batch)
    return value, gradient["w"], estimate.as_text()


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("spec", [EVERYWHERE, PartitionSpec("model")])
def test_further_axes_share_the_batch_and_the_parameters(spec):
    devices = np.array(jax.devices()).reshape(2, 2, 2)
    mesh = Mesh(devices, ("directions", "data", "model"))
    params = {"w": jnp.linspace(-1.0, 1.0, 64).reshape(16, 4)}
    batch = jax.random.normal(jax.random.key(0), (8, 16))
    alone = estimates(None, params, batch)
    params = jax.device_put(params, NamedSharding(mesh, spec))
    batch = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
    sharding = NamedSharding(mesh, PartitionSpec("directions"))
    value, gradient, text = estimates(sharding, params, batch)
    # What the function itself adds up of its four rows and columns; not 64 parameters.
    assert max(sent(text)) <= 16
    # One place in a float32 of order one, over the smoothing.
    np.testing.assert_allclose(value, alone[0], rtol=1e-6)
    np.testing.assert_allclose(gradient, alone[1], atol=20 * 1e-7 / 5e-3)


@pytest.mark.gate
def test_directions_may_be_shared_over_two_axes_at_once():
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("hosts", "chips"))
    both = NamedSharding(mesh, PartitionSpec(("hosts", "chips")))
    assert_same_bits(run(both, num_steps=3), run(over(8), num_steps=3))


SAMPLERS = {
    "gaussian": radazo.directions.gaussian,
    "rademacher": radazo.directions.rademacher,
    "hadamard": radazo.directions.hadamard,
    "own": radazo.directions.sampler_from(
        lambda key, dim: jax.random.normal(key, (dim,))
    ),
}


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_directions_of_sharded_parameters_are_those_of_parameters_on_one_device(
    sampler,
):
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("directions", "model"))
    params = {"a": jnp.zeros((24, 3)), "b": jnp.zeros(40)}
    draw = functools.partial(
        radazo.directions.sample_directions, sampler=sampler, num_directions=3
    )
    cut = NamedSharding(mesh, PartitionSpec(None, "model"))
    kept = jax.jit(draw)(0, params)
    own = NamedSharding(mesh, PartitionSpec("model"))
    drawn = jax.jit(draw, out_shardings=cut)(0, jax.device_put(params, own))
    assert drawn["a"].sharding == cut
    assert_same_bits(jax.device_get(drawn), jax.device_get(kept))


@pytest.mark.gate
def test_outside_of_jit_the_estimate_is_the_same():
    estimator = radazo.gaussian_estimator(num_directions=1, sharding=over(2))
    value_and_grad = radazo.value_and_grad(lambda x: jnp.sum(x**2), estimator)
    x = jnp.arange(4.0)
    inside = jax.jit(value_and_grad)(0, x)
    np.testing.assert_allclose(value_and_grad(0, x)[1], inside[1], rtol=1e-2)


def test_what_a_function_returns_beside_its_value_is_that_of_the_first_point():
    estimator = radazo.gaussian_estimator(num_directions=3, sharding=over(4))
    value_and_grad = jax.jit(
        radazo.value_and_grad(lambda x: (x[0], {"at": x}), estimator, has_aux=True)
    )
    (value, aux), _ = value_and_grad(0, jnp.arange(1.0, 4.0))
    np.testing.assert_array_equal(aux["at"], [1, 2, 3])
    assert value == 1


@pytest.mark.parametrize(
    ("options", "error", "rule"),
    [
        ({"sharding": "directions"}, TypeError, "be a NamedSharding"),
        (
            {"sharding": NamedSharding(Mesh(jax.devices(), ("x",)), EVERYWHERE)},
            ValueError,
            "shard one axis, that of the directions; got P()",
        ),
        (
            {
                "sharding": NamedSharding(
                    Mesh(jax.devices(), ("x",), axis_types=(AxisType.Explicit,)),
                    PartitionSpec("x"),
                )
            },
            ValueError,
            "have a mesh whose axes are `AxisType.Auto`",
        ),
        (
            {"sharding": over(1), "difference": radazo.forward_mode},
            ValueError,
            "take values at known points",
        ),
    ],
    ids=["kind", "spec", "explicit", "exact"],
)
def test_a_sharding_that_cannot_be_used_is_refused(options, error, rule):
    with pytest.raises(error, match=re.escape(rule)):
        radazo.sphere_estimator(**options)


def test_replicas_that_differ_in_a_bit_are_named():
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("directions", "model"))
    devices = mesh.devices.ravel()
    x = np.arange(6.0, dtype=np.float32)
    same = jax.device_put({"w": x}, NamedSharding(mesh, EVERYWHERE))
    radazo.diagnostics.check_replicas(same)
    parts = [jax.device_put(x, device) for device in devices]
    parts[2] = parts[2].at[5].set(np.nextafter(np.float32(5), 6, dtype=np.float32))
    apart = jax.make_array_from_single_device_arrays(
        (6,), NamedSharding(mesh, EVERYWHERE), parts
    )
    with pytest.raises(RuntimeError, match=r"\['w'\] on \S*2 than on \S*0"):
        radazo.diagnostics.check_replicas({"v": same["w"], "w": apart})
    cut = NamedSharding(mesh, PartitionSpec("model"))
    halves = [jax.device_put(x[:3], devices[0]), jax.device_put(x[3:], devices[1])]
    halves += [
        jax.device_put(half, d) for half, d in zip(halves, devices[2:], strict=True)
    ]
    radazo.diagnostics.check_replicas(
        jax.make_array_from_single_device_arrays((6,), cut, halves)
    )
    halves[3] = halves[3] + 1
    with pytest.raises(RuntimeError, match=r"params itself on \S*3 than on \S*1"):
        radazo.diagnostics.check_replicas(
            jax.make_array_from_single_device_arrays((6,), cut, halves)
        )


def test_replicas_that_are_checked_again_are_compiled_once(monkeypatch):
    hashed, traced = replicas._hash, []

    def counted(leaf, number):
        traced.append(leaf.shape)
        return hashed(leaf, number)

    monkeypatch.setattr(replicas, "_hash", counted)
    mesh = Mesh(np.array(jax.devices()[:2]), ("directions",))
    x = jax.device_put(jnp.zeros(13), NamedSharding(mesh, EVERYWHERE))
    for _ in range(3):
        radazo.diagnostics.check_replicas(x)
        x = x + 1
    assert traced == [(13,)]


def test_a_fingerprint_in_a_jax_with_float64_is_the_same(x64):
    x = [jnp.arange(6, dtype=jnp.float32), jnp.ones(3, jnp.bfloat16)]
    found = radazo.diagnostics.fingerprint(x)
    with jax.enable_x64(False):
        expected = radazo.diagnostics.fingerprint(x)
    assert found.dtype == expected.dtype == jnp.uint32
    np.testing.assert_array_equal(found, expected)


@pytest.mark.gate
def test_a_fingerprint_sees_places_types_and_every_bit_and_no_layout():
    x = jnp.arange(6.0)
    mesh = Mesh(np.array(jax.devices()[:2]), ("model",))
    cut = jax.device_put(x, NamedSharding(mesh, PartitionSpec("model")))
    others = [x[::-1], x.at[0].set(-0.0), x.at[3].add(1e-6), x.astype(jnp.bfloat16)]
    hashes = [
        tuple(np.asarray(radazo.diagnostics.fingerprint(y)).tolist())
        for y in (x, cut, *others)
    ]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 5
    swapped = [
        radazo.diagnostics.fingerprint(pair) for pair in ((x, x + 1), (x + 1, x))
    ]
    assert jnp.any(swapped[0] != swapped[1])
    kinds = {
        "key": jax.random.key(1),
        "i": 3,
        "b": jnp.array([True, False]),
        "e": jnp.zeros(0),
        "c": jnp.array([1 + 2j]),
    }
    assert radazo.diagnostics.fingerprint(kinds).shape == (2,)
    other = radazo.diagnostics.fingerprint(kinds | {"c": jnp.array([1 + 3j])})
    assert jnp.any(radazo.diagnostics.fingerprint(kinds) != other)
    radazo.diagnostics.check_replicas(
        jax.device_put(kinds["c"], NamedSharding(mesh, EVERYWHERE))
    )
