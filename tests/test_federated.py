"""A round is local steps and a mean; the corrections are those of their papers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import radazo
from radazo.estimators import gaussian_process

DIM, NUM_CLIENTS, RATE = 3, 4, 0.05
CURVATURES = jnp.array([[1.0, 4.0, 0.5], [8.0, 1.0, 2.0], [2.0, 0.5, 6.0], [1, 1, 1]])
TARGETS = jnp.array([[3.0, -1.0, 2.0], [-2.0, 2.0, 0.0], [0.0, 1.0, -3.0], [5, 0, 1]])
MINIMIZER = np.sum(CURVATURES * TARGETS, axis=0) / np.sum(CURVATURES, axis=0)


def client_value_fn(x, client):
    curvature, target = (a[client].astype(x.dtype) for a in (CURVATURES, TARGETS))
    return jnp.sum(curvature * (x - target) ** 2) / 2


def along_axes(key, num_directions, dim, dtype):
    return jnp.eye(dim, dtype=dtype)


# All coordinates in turn, whatever the key: exact for quadratics with `central`.
AXES = radazo.directions.DirectionSampler(
    along_axes, lambda rows, k, dim, dtype: rows[k], float, independent=False
)
EXACT = radazo.finite_difference_estimator(
    AXES, num_directions=DIM, smoothing=0.1, difference=radazo.central
)
SURROGATE = radazo.trajectory_estimator(
    num_directions=DIM, num_points=24, sampler=AXES, length_scale=10.0
)


def rounds(value_fn, estimator, num_rounds, num_clients, **options):
    options = {"num_local_steps": 5, "key": 3, **options}
    local = options.pop("local_optimizer", optax.sgd(RATE))
    run = radazo.federated.federated(
        value_fn, estimator, local, num_clients=num_clients, **options
    )
    one_round = jax.jit(run.round)
    state, infos = run.init(jnp.zeros(DIM)), []
    for _ in range(num_rounds):
        state, info = one_round(state)
        infos.append(info)
    return state, infos


def transcribed(num_rounds, num_local_steps, kind, shares):
    """FedAvg, FedProx and SCAFFOLD (option II) with exact gradients, in float64."""
    a, b = np.asarray(CURVATURES, np.float64), np.asarray(TARGETS, np.float64)
    x, c = np.zeros(DIM), np.zeros(DIM)
    controls = np.zeros((NUM_CLIENTS, DIM))
    for _ in range(num_rounds):
        reached = np.tile(x, (NUM_CLIENTS, 1))
        for i in range(NUM_CLIENTS):
            y = x
            for _ in range(num_local_steps):
                g = a[i] * (y - b[i])
                if kind == "prox":
                    g = g + 0.7 * (y - x)
                if kind == "scaffold":
                    g = g - controls[i] + c
                y = y - RATE * g
            reached[i] = y
            if kind == "scaffold":
                moved = (x - y) / (num_local_steps * RATE)
                controls[i] = controls[i] - c + moved
        x = x + shares @ (reached - x)
        c = shares @ controls
    return x


CORRECTIONS = {
    "avg": radazo.federated.fed_avg,
    "prox": radazo.federated.fed_prox(0.7),
    "scaffold": radazo.federated.scaffold,
}


@pytest.mark.parametrize("kind", CORRECTIONS)
def test_rounds_are_those_of_the_transcription(kind):
    shares = np.array([0.1, 0.4, 0.3, 0.2])
    state, infos = rounds(
        client_value_fn,
        EXACT,
        3,
        NUM_CLIENTS,
        correction=CORRECTIONS[kind],
        shares=2 * shares,
    )
    expected = transcribed(3, 5, kind, shares)
    np.testing.assert_allclose(state.params, expected, rtol=2e-4, atol=2e-4)
    assert state.num_values == sum(info.num_values for info in infos) == 3 * 4 * 5 * 6


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("correction", ["fed_avg", "scaffold", "fzoos"])
def test_one_client_is_the_local_method(x64, correction):
    local = optax.sgd(RATE, momentum=0.9)
    estimator = radazo.trajectory_estimator(num_directions=2, num_points=9)
    choice = getattr(radazo.federated, correction)
    choice = choice(num_features=50) if correction == "fzoos" else choice
    value_fn = functools.partial(client_value_fn, client=0)
    state, infos = rounds(
        lambda x, client: value_fn(x),
        estimator,
        2,
        1,
        local_optimizer=local,
        correction=choice,
    )
    params, inner, values = jnp.zeros(DIM), estimator.init(jnp.zeros(DIM)), []
    for count in range(2):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), count), 0)
        optimizer = radazo.with_estimator(estimator, local, key)
        step = jax.jit(
            lambda params, state, optimizer=optimizer: optimizer.update(
                None, state, params, value_fn=value_fn
            )
        )
        own = optimizer.init(params)._replace(estimator=inner)
        for _ in range(5):
            updates, own = step(params, own)
            params = optax.apply_updates(params, updates)
            values.append(own.last_value)
        inner = own.estimator
    np.testing.assert_allclose(state.params, params, rtol=1e-7)
    seen = np.concatenate([info.values[0] for info in infos])
    np.testing.assert_allclose(seen, values, rtol=1e-7)
    assert state.num_values == 2 * 5 * 3


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("correction", ["scaffold", "fzoos"])
def test_clients_that_are_the_same_are_one(x64, correction):
    choice = getattr(radazo.federated, correction)
    choice = choice(num_features=50) if correction == "fzoos" else choice
    value_fn = lambda x, client: client_value_fn(x, 1)
    one, _ = rounds(value_fn, SURROGATE, 2, 1, correction=choice)
    many, infos = rounds(value_fn, SURROGATE, 2, 3, correction=choice)
    np.testing.assert_allclose(many.params, one.params, rtol=1e-7)
    assert infos[-1].drift < 1e-7
    assert many.num_values == 3 * one.num_values


def test_clients_of_one_function_look_along_their_own_directions():
    estimator = radazo.sphere_estimator(num_directions=2)
    _, infos = rounds(lambda x, client: client_value_fn(x, 1), estimator, 1, 3)
    assert infos[0].drift > 0.01


def test_the_state_is_arrays_that_alias_nothing_and_keep_their_types():
    params = {"a": jnp.ones(2, jnp.bfloat16), "b": (jnp.zeros(()), None)}
    run = radazo.federated.federated(
        lambda p, client: jnp.sum(p["a"].astype(jnp.float32) ** 2) + p["b"][0],
        radazo.trajectory_estimator(num_directions=2, num_points=6),
        optax.sgd(0.01),
        num_clients=2,
        num_local_steps=2,
        key=0,
        correction=radazo.federated.fzoos(num_features=10),
    )
    state = run.init(params)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(state))
    described = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    after, info = jax.jit(run.round, donate_argnums=0)(state)
    assert described(after) == described(run.init(params))
    assert info.values.shape == (2, 2)
    assert info.num_values == 2 * 2 * 3
    assert not params["a"].is_deleted()


def test_a_round_takes_the_values_it_counts():
    calls = []

    def value_fn(x, client, scale):
        def on_the_host(value):
            calls.append(1)
            return value

        value = client_value_fn(x, client) * scale
        shape = jax.ShapeDtypeStruct(value.shape, value.dtype)
        return jax.pure_callback(on_the_host, shape, value, vmap_method="sequential")

    estimator = radazo.trajectory_estimator(num_directions=2, num_points=6)
    run = radazo.federated.federated(
        value_fn,
        estimator,
        optax.sgd(RATE),
        num_clients=3,
        num_local_steps=2,
        key=0,
    )
    state, info = jax.jit(run.round)(run.init(jnp.zeros(DIM)), jnp.float32(2))
    jax.block_until_ready(state)
    jax.effects_barrier()
    assert len(calls) == state.num_values == info.num_values == 3 * 2 * 3


def distances(correction, keys):
    """From the common minimizer after 15 rounds, and of clients from each other."""
    estimator = radazo.trajectory_estimator(
        num_directions=DIM, num_points=40, length_scale=10.0
    )

    def whole(key):
        run = radazo.federated.federated(
            client_value_fn,
            estimator,
            optax.sgd(RATE),
            num_clients=NUM_CLIENTS,
            num_local_steps=5,
            key=key,
            correction=correction,
        )
        one_round = lambda state, _: run.round(state)
        state, infos = jax.lax.scan(one_round, run.init(jnp.zeros(DIM)), length=15)
        return jnp.linalg.norm(state.params - MINIMIZER), infos.drift[-1]

    return jax.jit(jax.vmap(whole))(keys)


@pytest.mark.gate
def test_what_clients_know_of_each_other_leads_nearer_to_the_common_minimizer():
    keys = lambda: jax.random.split(jax.random.key(0), 3)
    away, drift = distances(radazo.federated.fed_avg, keys())
    for correction in (
        radazo.federated.scaffold,
        radazo.federated.fzoos(num_features=500, length_scale=10.0),
    ):
        nearer, less = distances(correction, keys())
        assert np.all(nearer < away / 2)
        assert np.all(less < drift)


def test_leaves_of_all_kinds_pass_a_round():
    params = {
        "w": jnp.ones(2),
        "mask": jnp.array([0.0, -jnp.inf]),
        "count": jnp.array([3, 4]),
        "key": jax.random.key(1),
    }
    estimator = radazo.sphere_estimator(
        mask={"w": True, "mask": False, "count": False, "key": False}
    )
    for correction in (radazo.federated.fed_avg, radazo.federated.fed_prox(0.5)):
        run = radazo.federated.federated(
            lambda p, client: jnp.sum((p["w"] - client.astype(jnp.float32)) ** 2),
            estimator,
            optax.sgd(0.05),
            num_clients=2,
            key=0,
            num_local_steps=2,
            correction=correction,
        )
        with jax.numpy_dtype_promotion("standard"):  # Of optax, with integers.
            state, info = jax.jit(run.round, donate_argnums=0)(run.init(params))
        assert np.all(np.isfinite(state.params["w"]))
        assert not np.array_equal(state.params["w"], params["w"])
        np.testing.assert_array_equal(state.params["mask"], params["mask"])
        np.testing.assert_array_equal(state.params["count"], [3, 4])
        assert state.params["key"] == params["key"]
        assert np.isfinite(info.drift)


def test_a_client_without_values_keeps_what_it_has_learnt():
    def value_fn(x, client, broken):
        return jnp.where(
            broken & (client == 1), jnp.nan, jnp.sum(x) * (1.0 + client.astype(x.dtype))
        )

    run = radazo.federated.federated(
        value_fn,
        EXACT,
        optax.sgd(0.01),
        num_clients=2,
        key=0,
        num_local_steps=2,
        correction=radazo.federated.scaffold,
    )
    one_round = jax.jit(run.round)
    state, _ = one_round(run.init(jnp.zeros(DIM)), jnp.asarray(False))
    learnt = np.asarray(state.corrections[0])
    np.testing.assert_allclose(learnt, [[1.0] * DIM, [2.0] * DIM], rtol=1e-5)
    state, _ = one_round(state, jnp.asarray(True))
    np.testing.assert_allclose(state.corrections[0], learnt, rtol=1e-5)


def test_a_step_that_saw_nothing_does_not_count_in_the_mean_gradient():
    """Client 1 falls off an edge by its first step."""

    def value_fn(x, client):
        over = (client == 1) & (jnp.sum(x) < -0.03)
        return jnp.where(over, jnp.nan, jnp.sum(x) * (1.0 + client.astype(x.dtype)))

    run = radazo.federated.federated(
        value_fn,
        radazo.finite_difference_estimator(AXES, num_directions=DIM, smoothing=1e-3),
        optax.sgd(0.01),
        num_clients=2,
        key=0,
        num_local_steps=2,
        correction=radazo.federated.scaffold,
    )
    state, info = jax.jit(run.round)(run.init(jnp.zeros(DIM)))
    assert np.isnan(info.values).sum() == 1
    np.testing.assert_allclose(state.corrections[0], [[1.0] * DIM, [2.0] * DIM], 1e-3)


def test_a_client_of_no_share_moves_nothing_however_far_it_goes():
    run = radazo.federated.federated(
        lambda x, client: jnp.sum(x) * jnp.where(client == 1, 1e20, 1.0),
        EXACT,
        optax.sgd(1e9),
        num_clients=2,
        key=0,
        num_local_steps=2,
        shares=[1, 0],
    )
    state, info = jax.jit(run.round)(run.init(jnp.zeros(DIM)))
    assert np.all(np.isfinite(state.params))
    assert np.isfinite(info.drift)


@pytest.mark.gate
def test_the_surrogates_of_clients_are_those_of_the_paper(x64):
    """FZooS: weights by ridge regression on shared waves, and the term from them."""
    rng = np.random.default_rng(0)
    correction = radazo.federated.fzoos(num_features=40, length_scale=2.0, jitter=1e-3)
    estimator = radazo.trajectory_estimator(num_points=6, num_directions=2)
    x = jnp.asarray(rng.normal(size=DIM))
    points, values = rng.normal(size=(6, DIM)), rng.normal(size=6)
    inner = estimator.init(x)
    buffer = gaussian_process.put(
        inner.buffer, jnp.asarray(points), jnp.asarray(values)
    )
    waves = correction.prepare(jnp.array([0, 7], jnp.uint32), x)
    own = correction.learn(waves, x, (), inner._replace(buffer=buffer))

    w, b = map(np.asarray, waves)
    features = np.sqrt(2 / 40) * np.cos(points @ w.T + b)
    y = (values - values.mean()) / values.std()
    gram = features @ features.T + 1e-3 * np.eye(6)
    expected = values.std() * features.T @ np.linalg.solve(gram, y)
    np.testing.assert_allclose(own, expected, rtol=1e-6)

    others = jnp.asarray(rng.normal(size=40))
    for count in (0, 3):
        (term,) = correction.term(waves, own, others, x, x, jnp.int32(count))
        slopes = (np.asarray(others) - expected) * np.sin(w @ np.asarray(x) + b)
        of_paper = -np.sqrt(2 / 40) * slopes @ w / (count + 1)
        np.testing.assert_allclose(term, of_paper, rtol=1e-6)
