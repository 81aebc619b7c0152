"""What is replayed from a journal is the run, equal in every bit."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import raises
from journaled import (
    PARAMS,
    bits,
    minimized,
    of_step,
    optimizer,
    replayed,
    run_in,
    value_fn,
)

import radazo
from radazo import partition, replicas


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.journal"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return run_in(tmp_path_factory.mktemp("run"))


CENTRAL = radazo.gaussian_estimator(
    num_directions=2,
    difference=radazo.central,
    smoothing=lambda count: 1e-3 / (1 + 0.1 * count.astype(jnp.float32)),
)
OPTIMIZERS = {
    "radazo": optimizer(),
    "past steps": radazo.with_estimator(
        radazo.history_mean_estimator(num_directions=2), optax.sgd(0.01), 0
    ),
    "a schedule, two estimates a step of adam": radazo.with_estimator(
        CENTRAL,
        optax.MultiSteps(optax.adam(optax.cosine_decay_schedule(0.1, 40)), 2),
        0,
    ),
    "a rule that takes the value": radazo.with_estimator(
        radazo.rademacher_estimator(num_directions=1), optax.polyak_sgd(0.1), 0
    ),
    "votes": radazo.zo_signsgd(0.02, radazo.majority_vote_estimator(), key=0),
}


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("how", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_replay_is_the_run_bit_for_bit(how, path):
    result = minimized(path, optimizer=how)
    assert np.isfinite(result.params["w"]).all()
    assert bits(replayed(path, how=how)) == bits((result.params, result.state))
    entries = radazo.journal.read_journal(path).entries
    dropped = np.isnan(entries.slopes)
    assert result.state.num_dropped == dropped.sum() > 0
    assert result.state.num_skipped == dropped.all(axis=1).sum() > 0
    assert not np.all(dropped)
    np.testing.assert_array_equal(entries.value, result.values)
    assert entries.count.tolist() == [*range(40)]


def test_guards_answer_in_a_replay_as_they_did_in_the_run(path):
    estimator = radazo.sphere_estimator(num_directions=3)
    guarded = radazo.skip_outliers(estimator, factor=1.5)
    how = radazo.roll_back(radazo.zo_sgd(0.05, guarded, key=0), every=5, patience=1)
    result = minimized(path, optimizer=how)
    assert bits(replayed(path, how=how)) == bits((result.params, result.state))
    assert optax.tree.get(result.state, "num_rolled_back") > 0
    assert optax.tree.get(result.state, "num_outliers") > 0
    # What the function showed is kept of a step that was skipped, too.
    dropped = np.isnan(radazo.journal.read_journal(path).entries.slopes)
    assert dropped.sum() < optax.tree.get(result.state, "num_dropped")


def test_float64_is_kept_and_the_steps_are_those_without_a_journal(path, x64):
    how = radazo.zo_sgd(0.1, radazo.gaussian_estimator(num_directions=2), key=0)
    start = jnp.ones(3, jnp.float64)
    result = radazo.minimize(lambda x: jnp.sum(x**4), start, how, 5, journal=path)
    again = radazo.journal.replay(path, how, start)
    assert bits(again) == bits((result.params, result.state))
    assert radazo.journal.read_journal(path).entries.slopes.dtype == np.float64
    without = radazo.minimize(lambda x: jnp.sum(x**4), start, how, 5)
    np.testing.assert_allclose(result.params, without.params, rtol=1e-9)


def test_bounds_and_a_stop_are_part_of_the_run(path):
    def stop(value, params):
        return value < 9

    options = {"bounds": (-0.5, 0.7), "optimizer": optimizer(learning_rate=0.05)}
    result = minimized(path, 200, stop=stop, **options)
    assert result.status == "stopped"
    assert jnp.max(result.params["w"]) == np.float32(0.7)
    how = options["optimizer"]
    again = replayed(path, how=how, bounds=(-0.5, 0.7))
    assert bits(again) == bits((result.params, result.state))
    entries = radazo.journal.read_journal(path).entries
    assert entries.stopped.tolist() == [False] * (result.num_steps - 1) + [True]
    before, _ = replayed(path, how=how, count=result.num_steps - 1, bounds=(-0.5, 0.7))
    assert bits(before) == bits(result.params)
    free = dict(PARAMS, w=jnp.clip(PARAMS["w"], -0.5, 0.7))
    for params, bounds in ((PARAMS, (-0.5, 0.8)), (free, None)):
        with raises(
            ValueError, "a run with other `bounds`", "Use one journal for each run"
        ):
            replayed(path, params, how=how, bounds=bounds)


@pytest.mark.gate
def test_equal_boxes_are_equal_however_they_are_given(path):
    how = optimizer(learning_rate=0.05)
    result = minimized(path, optimizer=how, bounds=(-0.5, 0.5))
    wanted = bits((result.params, result.state))
    assert jnp.max(result.params["w"]) == 0.5
    lower = {"w": np.full(7, -0.5), "half": jnp.full(5, -0.5, jnp.bfloat16), "int": 0}
    for bounds in (
        (-0.5, {"w": jnp.full(7, 0.5), "half": 0.5, "int": 9}),
        (lower, np.float32(0.5)),
        # A number in float32 that no parameter in it can tell from the bound.
        (-0.5 - 1e-12, lower | {"w": np.full(7, 0.5 + 1e-12), "half": 0.5}),
    ):
        assert bits(replayed(path, how=how, bounds=bounds)) == wanted
    one_off = np.full(7, 0.5)
    one_off[3] = 0.25
    for upper in (0.25, {"w": one_off, "half": 0.5, "int": 0}):
        with raises(ValueError, "with other `bounds`"):
            replayed(path, how=how, bounds=(-0.5, upper))


def test_any_step_is_reached_from_the_start_or_from_a_checkpoint(run):
    _, path, steps = run
    params, state = replayed(path, count=0)
    assert bits(params) == bits(PARAMS)
    for count in (1, 17, 17, 40):
        params, state = replayed(path, params, state, count=count)
        assert (
            bits((params, state)) == steps[count] == bits(replayed(path, count=count))
        )


def test_what_is_given_to_a_replay_is_left_as_it_is(run):
    _, path, _ = run
    params, state = replayed(path, count=20)
    before = bits((params, state))
    replayed(path, params, state)
    assert bits((params, state)) == before


def test_a_branch_has_a_journal_that_begins_where_it_leaves(run, path):
    _, trunk, _ = run
    half, state = replayed(trunk, count=20)
    other = optimizer(learning_rate=0.1)
    result = minimized(path, 15, params=half, state=state, optimizer=other)
    assert radazo.journal.read_journal(path).header.first == 20
    again = replayed(path, half, state, how=other)
    assert bits(again) == bits((result.params, result.state))
    with raises(ValueError, "a step from 20 to 35", "one of step 0", "an earlier"):
        replayed(path)


@pytest.mark.gate
def test_a_loop_of_ones_own_is_replayed_and_is_the_run_of_minimize(path):
    """Entries one by one and stacked make the same file."""
    how, params = optimizer(), {k: jnp.asarray(PARAMS[k]) for k in ("w", "half")}
    step, entries = radazo.journal.recorded_step(how, value_fn), []
    here = jax.tree.map(jnp.copy, (params, how.init(params)))
    with radazo.journal.open_journal(path, *here) as journal:
        for i in range(20):
            *here, entry = step(*here, batch=of_step(np.int32(i)))
            entries.append(entry)
            journal.append(entry)
    assert bits(replayed(path, params, how=how)) == bits(here)
    stacked = path.with_suffix(".stacked")
    with radazo.journal.open_journal(stacked, params, how.init(params)) as journal:
        journal.append(jax.tree.map(lambda *x: np.stack(x), *entries))
    assert path.read_bytes() == stacked.read_bytes()
    result = minimized(path.with_suffix(".whole"), 20, params=params)
    assert bits((result.params, result.state)) == bits(here)


def test_an_optimizer_in_place_is_replayed_with_its_moments(path):
    how = radazo.in_place(optax.sgd(0.02), key=0, num_directions=2, b1=0.5)
    params = {"w": PARAMS["w"], "half": PARAMS["half"]}
    step = radazo.journal.recorded_step(how, value_fn)
    here = jax.tree.map(jnp.copy, (params, how.init(params)))
    with radazo.journal.open_journal(path, *here) as journal:
        for i in range(20):
            *here, entry = step(*here, batch=np.float32(1.7 * i))
            journal.append(entry)
    assert bits(radazo.journal.replay(path, how, params)) == bits(here)


def other_sampler(preset):
    return radazo.radazo(0.02, preset(num_directions=3), key=0)


def other_rule(b1):
    estimator = radazo.sphere_estimator(num_directions=3)
    return radazo.radazo(0.02, estimator, key=0, b1=b1)


OTHERS = {
    "another learning rate": optimizer(learning_rate=0.0201),
    "another decay": other_rule(0.8),
    "signs": other_sampler(radazo.rademacher_estimator),
    "normal draws": other_sampler(radazo.gaussian_estimator),
}


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("how", OTHERS.values(), ids=OTHERS)
def test_an_optimizer_that_is_not_that_of_the_run_is_refused(run, how):
    """With the first step before which it shows: up to there it is the run."""
    _, path, steps = run
    with raises(ValueError, "replay(optimizer", "before step", "learning") as caught:
        replayed(path, how=how)
    step = int(re.search(r"before step (\d+);", str(caught.value))[1])
    assert step in (1, 2, 3)
    with raises(ValueError, f"the run had before step {step}; got others"):
        replayed(path, how=how, count=step)
    params, _ = replayed(path, how=how, count=step - 1)
    before = bits(PARAMS) if step == 1 else steps[step - 1]
    assert bits(params) == before[: len(bits(params))]


def test_other_parameters_in_the_middle_are_refused_before_the_first_step(run):
    """One bit of one of them; other moments when they have moved something."""
    _, path, _ = run
    params, state = replayed(path, count=20)
    for name in ("w", "half"):
        leaf = params[name]
        last = jnp.nextafter(leaf[-1], jnp.ones((), leaf.dtype))
        other = params | {name: leaf.at[-1].set(last)}
        for count in (20, 40):
            with raises(ValueError, "replay(params", "before step 20; got others"):
                replayed(path, other, state, count=count)
    _, earlier = replayed(path, count=5)
    # A skipped step moves nothing, whatever the moments. The next kept one does.
    skipped = np.isnan(radazo.journal.read_journal(path).entries.slopes).all(axis=1)
    at = int(np.flatnonzero(skipped[6:])[0]) + 6
    moves = int(np.flatnonzero(~skipped[at:])[0]) + at
    params, state = replayed(path, count=at)
    mixed = state._replace(optimizer=earlier.optimizer)
    with raises(ValueError, "replay(optimizer", f"before step {moves + 1}; got others"):
        replayed(path, params, mixed)


@pytest.mark.gate
def test_what_differs_far_from_the_start_is_found_where_it_does(path):
    """In a later block; the last step of all has nothing behind it that could tell."""

    def how(rate_at):
        estimator = radazo.rademacher_estimator(num_directions=1)
        rule = optax.sgd(lambda count: jnp.where(count == rate_at, 0.02, 0.01))
        return radazo.with_estimator(estimator, rule, 0)

    start = jnp.ones(3)
    radazo.minimize(lambda x: jnp.sum(x**2), start, how(-1), 300, journal=path)
    for at in (0, 200, 298):
        with raises(ValueError, "replay(optimizer", f"before step {at + 1}; got"):
            radazo.journal.replay(path, how(at), start)
    radazo.journal.replay(path, how(200), start, count=200)
    radazo.journal.replay(path, how(299), start)


@pytest.mark.gate
def test_an_optimizer_in_place_that_is_another_is_refused(path):
    def how(rate, **options):
        return radazo.in_place(optax.sgd(rate), key=0, num_directions=2, **options)

    params = {"w": PARAMS["w"], "half": PARAMS["half"]}
    step = radazo.journal.recorded_step(how(0.02), value_fn)
    here = jax.tree.map(jnp.copy, (params, how(0.02).init(params)))
    with radazo.journal.open_journal(path, *here) as journal:
        for i in range(10):
            *here, entry = step(*here, batch=np.float32(1.7 * i))
            journal.append(entry)
    others = how(0.03), how(0.02, sampler=radazo.directions.rademacher)
    for other in others:
        with raises(ValueError, "replay(optimizer", "the run had before step"):
            radazo.journal.replay(path, other, params)
    half = radazo.journal.replay(path, how(0.02), params, count=5)
    moved = half[0] | {"w": half[0]["w"] + 1}
    with raises(ValueError, "replay(params", "before step 5; got others"):
        radazo.journal.replay(path, how(0.02), moved, half[1])


def test_a_fingerprint_is_the_same_over_devices_and_in_a_compiled_step(run):
    _, path, _ = run
    params, _ = replayed(path, count=20)
    wanted = radazo.journal.read_journal(path).entries.fingerprint[20]
    assert wanted.dtype == np.uint16
    arrays = partition.split(params)[0]
    assert replicas.short_fingerprint(arrays) == wanted
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:7]), ("model",))
    spec = jax.sharding.PartitionSpec("model")
    cut = [
        jax.device_put(x, jax.sharding.NamedSharding(mesh, spec)) if x.size == 7 else x
        for x in arrays
    ]
    for alone in (cut[0], cut[1]):
        whole = jnp.asarray(np.asarray(alone))
        assert replicas.short_fingerprint([alone]) == replicas.short_fingerprint(
            [whole]
        )
