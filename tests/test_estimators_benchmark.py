"""The comparison of estimators at toy sizes, and its objectives against NumPy."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import quick_jit
from sklearn.metrics import f1_score, log_loss

import radazo
from benchmarks import estimators, estimators_report, estimators_tasks, records
from benchmarks import estimators_runs as runs
from benchmarks.estimators_rows import ROWS, Batches, Row
from benchmarks.estimators_tasks import TASKS, Problem
from benchmarks.problems import digits, learning, pendulum


def half_squares(x):
    return jnp.sum(jnp.square(x)) / 2


def toy_problem():
    def start(seed):
        return jax.random.normal(jax.random.key(seed), (6,), jnp.float32), {}

    return Problem(half_squares, start)


TOY = TASKS["rosenbrock"]._replace(
    label="toy",
    build=toy_problem,
    dim=6,
    num_directions=3,
    smoothing=1e-2,
    budget=60,
    rates=dict.fromkeys(runs.RULES, 0.1),
    dtype="float32",
)
CHOICE = ("--estimators", "sphere,mezo", "--rules", "radazo,zo_sgd", "--seeds", "2")


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(TASKS, "toy", TOY)


def command(folder, *more):
    size = ("--tasks", "toy", "--budget", "1", "--output", str(folder))
    estimators.main([*size, *CHOICE, *more])
    return records.read(folder / "estimators.jsonl")


# Runs


def uneven_estimator(num_values):
    """The exact gradient, at num_values(count) function values a step."""

    def estimate(key, value_fn, params, state, *, has_aux=False):
        value, gradient = jax.value_and_grad(value_fn)(params)
        info = radazo.EstimateInfo(
            jnp.ones(1), jnp.ones(1, bool), num_values(state.count)
        )
        state = state._replace(count=state.count + jnp.int32(1))
        return value, gradient, state, info

    def init(params):
        return radazo.EstimatorState(jnp.int32(0))

    return radazo.Estimator(init, estimate)


def one_run(estimator, rule="zo_sgd", rate=0.1, budget=60):
    found = runs.program(toy_problem(), estimator, "float32", budget)
    return found.run(rule, 3, rate)


def test_marks_end_with_the_budget():
    at = runs.marks(5000)
    assert at[-1] == 5000
    assert len(at) == runs.NUM_MARKS
    assert np.all(np.diff(at) > 0)
    assert runs.marks(3).tolist() == [1, 2, 3]


def test_a_run_ends_at_the_budget_whatever_a_step_costs():
    """The k-th step costs k + 1; f falls by 0.9² a step, so f says which step it is."""
    run = one_run(uneven_estimator(lambda count: count + jnp.int32(1)))
    at = np.append(0, runs.marks(60))
    costs = np.cumsum(np.arange(1, 20))  # 1, 3, 6, 10, ...
    steps = np.searchsorted(np.append(0, costs), at)
    np.testing.assert_array_equal(run.counts, np.append(0, costs)[steps])
    assert run.counts[-1] == 66
    np.testing.assert_allclose(run.values, run.values[0] * 0.81**steps, rtol=1e-5)


@quick_jit
def values_of_the_complete_optimizers(x):
    """f after 15 steps of each rule, of four function values."""
    estimator = radazo.sphere_estimator(num_directions=3)

    def of_rule(make):
        key = jax.random.split(jax.random.key(3))[1]
        optimizer = make(0.02, estimator, key=key)

        def step(_, carry):
            x, state = carry
            updates, state = optimizer.update(None, state, x, value_fn=half_squares)
            return optax.apply_updates(x, updates), state

        return half_squares(jax.lax.fori_loop(0, 15, step, (x, optimizer.init(x)))[0])

    return [of_rule(getattr(radazo, rule)) for rule in runs.RULES]


def test_a_run_is_the_complete_optimizer():
    estimator = radazo.sphere_estimator(num_directions=3)
    found = runs.program(toy_problem(), estimator, "float32", 60)
    done = [found.run(rule, 3, 0.02) for rule in runs.RULES]
    expected = values_of_the_complete_optimizers(toy_problem().start(3)[0])
    np.testing.assert_allclose([x.values[-1] for x in done], expected, rtol=1e-4)
    assert [x.counts[-1] for x in done] == [60] * 3


def test_what_takes_no_values_ends_all_the_same():
    run = one_run(uneven_estimator(lambda count: jnp.int32(0)))
    assert run.counts[-1] == 0


def test_a_run_far_above_its_start_is_given_up():
    run = one_run(uneven_estimator(lambda count: jnp.int32(1)), rate=5.0)
    given_up = run.values > 11 * run.values[0]
    assert given_up.any()
    assert len(set(run.values[given_up])) == 1
    assert run.counts[-1] < 60
    assert estimators.scored([run]) == (math.inf, math.inf)


# Tuning


@pytest.mark.parametrize("target", [-2.9, -1.2, 0.0, 0.6, 3.3])
def test_tuning_finds_the_lowest_to_an_eighth_of_a_power(target):
    tried = estimators.tune(lambda rate: (abs(math.log10(rate) - target), 0.0), 1.0)
    rate = estimators.best(tried)
    assert abs(math.log10(rate) - target) <= 0.13
    assert min(tried) < rate < max(tried)
    assert len(tried) <= 12


def test_tuning_stops_at_its_reach():
    tried = estimators.tune(lambda rate: (rate, 0.0), 1.0)
    assert math.isclose(estimators.best(tried), 1e-4)
    assert math.isclose(min(tried), 1e-4)


def test_of_equal_ends_the_faster_rate_is_taken():
    tried = estimators.tune(lambda rate: (0.0, abs(math.log10(rate) - 1)), 1.0)
    assert math.isclose(estimators.best(tried), 10.0)


# The command


def test_end_to_end_and_again(tmp_path, capsys, monkeypatch, toy):
    lines = command(tmp_path)
    names = [(x["settings"]["estimator"], x["settings"]["rule"]) for x in lines]
    assert names == [(e, r) for e in ("sphere", "mezo") for r in ("radazo", "zo_sgd")]
    for line in lines:
        assert line["command"] == "estimators"
        given, numbers = line["settings"], line["numbers"]
        step = {"sphere": 4, "mezo": 2}[given["estimator"]]
        assert line["seeds"] == [456, 457]
        assert given["tuning_seeds"] == [1000]
        assert given["budget"] == 60
        tried = dict(zip(numbers["rates_tried"], numbers["values_tried"], strict=True))
        assert tried[numbers["rate"]] == min(x for x in tried.values() if x is not None)
        for counts, curve, start, end in zip(
            numbers["counts"],
            numbers["curve"],
            numbers["value_at_start"],
            numbers["value_at_end"],
            strict=True,
        ):
            assert 60 <= counts[-1] < 60 + step
            assert len(counts) == len(curve)
            assert end < start
            np.testing.assert_allclose([curve[0], curve[-1]], [start, end], rtol=1e-3)
    starts = {tuple(x["numbers"]["value_at_start"]) for x in lines}
    assert len(starts) == 1, "all start from the same points"
    assert (tmp_path / "estimators_radazo.png").stat().st_size > 10_000
    assert (tmp_path / "estimators_zo_sgd.png").exists()
    assert not (tmp_path / "estimators_zo_adamm.png").exists()
    capsys.readouterr()
    monkeypatch.setattr(estimators, "measured", None)
    assert command(tmp_path) == lines
    assert "toy: 60 function values, K = 3" in capsys.readouterr().out


def test_an_interrupted_command_goes_on(tmp_path, capsys, monkeypatch, toy):
    numbers_of = estimators.numbers_of

    def interrupted(piece, *args):
        if piece.rule == "zo_sgd":
            raise KeyboardInterrupt
        return numbers_of(piece, *args)

    monkeypatch.setattr(estimators, "numbers_of", interrupted)
    only = ("--estimators", "rademacher")
    (first,) = command(tmp_path, *only)
    printed = capsys.readouterr().out
    assert "Interrupted" in printed
    assert "Rademacher" in printed
    monkeypatch.setattr(estimators, "numbers_of", numbers_of)
    lines = command(tmp_path, *only)
    assert lines[0] == first
    assert [x["settings"]["rule"] for x in lines] == ["radazo", "zo_sgd"]


def test_what_cannot_run_is_shown_as_such(tmp_path, capsys, monkeypatch, toy):
    small = Row("small", ROWS["sphere"].make, max_dim=5)
    monkeypatch.setitem(ROWS, "small", small)
    lines = command(tmp_path, "--estimators", "small")
    assert [x["numbers"]["failed"] for x in lines] == ["not beyond d = 5"] * 2
    assert "not beyond d = 5" in capsys.readouterr().out
    assert "| not beyond d = 5 |" in estimators_report.markdown(lines)
    lines = command(tmp_path, "--estimators", "batches")
    assert [x["numbers"]["failed"] for x in lines[2:]] == ["no batches"] * 2


def test_a_task_whose_library_is_absent_is_skipped(tmp_path, capsys, monkeypatch, toy):
    def build():
        raise ImportError("No module named 'gymnax'")

    monkeypatch.setitem(TASKS, "toy", TOY._replace(build=build))
    assert command(tmp_path) == []
    printed = capsys.readouterr().out
    assert "toy is skipped: No module named 'gymnax'" in printed
    assert "Nothing was finished." in printed


def test_options_are_checked(capsys):
    for options, message in (
        (("--tasks", "sphere"), "'sphere' is none of rosenbrock"),
        (("--estimators", "newton"), "'newton' is none of sphere"),
        (("--rules", "meazo"), "'meazo' is none of radazo"),
        (("--seed", "1000"), "1000 and above are the seeds of tuning"),
        (("--budget", "0"), "--budget above 0"),
    ):
        with pytest.raises(SystemExit):
            estimators.main(list(options))
        assert message in capsys.readouterr().err


def test_full_sets_the_defaults_and_what_is_given_stands():
    args = estimators.arguments(["--full", "--seeds", "2"])
    assert args.tasks == list(TASKS)
    assert args.budget == 1
    assert estimators.seeds_of("attack", args) == [456, 457]
    assert len(estimators.tuning_seeds_of("attack", args)) == 6
    assert len(estimators.seeds_of("attack", estimators.arguments(["--full"]))) == 20


# The tasks


def test_all_estimators_move_the_same_distance():
    for task in TASKS.values():
        setting = task.setting
        assert math.isclose(setting.each * math.sqrt(task.dim), task.smoothing)
    moves = []

    def value_fn(x):
        jax.debug.callback(lambda x: moves.append(np.linalg.norm(x)), x)
        return jnp.sum(x)

    for row in ROWS.values():
        if row.needs_batches or row.is_reference:
            continue
        estimator = row.make(TASKS["rosenbrock"].setting, **row.options)
        moves.clear()
        x = jnp.zeros(100)
        estimate = lambda x, state, e=estimator: e.estimate(0, value_fn, x, state)
        jax.block_until_ready(quick_jit(estimate)(x, estimator.init(x)))
        jax.effects_barrier()
        far = [x for x in moves if x > 0]
        expected = 1e-3 * row.options.get("times", 1.0)
        np.testing.assert_allclose(np.mean(far), expected, 0.2, err_msg=row.label)


@pytest.mark.parametrize("name", ["rosenbrock", "levy", "logistic", "f1"])
def test_a_task_is_as_large_as_it_says(name):
    task = TASKS[name]
    problem = task.build()
    x, data = problem.start(456)
    assert (x.shape, x.dtype) == ((task.dim,), jnp.float32)
    assert np.isfinite(problem.value_fn(x, **data))
    assert not np.array_equal(x, problem.start(457)[0])


def random_weights(dim):
    return np.random.default_rng(0).normal(size=dim).astype(np.float32)


def test_values_of_batches_cost_their_share():
    setting = TASKS["logistic"].setting
    seen = []

    def value_fn(x, key):
        jax.debug.callback(
            lambda k: seen.append(tuple(np.asarray(k).tolist())),
            jax.random.key_data(key),
        )
        return jnp.sum(x)

    batches = Batches(value_fn, None, 0.1)
    estimator = ROWS["batches"].make(setting._replace(batches=batches, chunk_size=1))
    x = jnp.zeros(setting.dim)
    estimate = quick_jit(
        lambda key: estimator.estimate(key, None, x, estimator.init(x))[3].num_values
    )
    assert [int(estimate(jax.random.key(i))) for i in (0, 1)] == [2, 2], "of 11"
    jax.effects_barrier()
    assert len(seen) == 22
    assert len(set(seen)) == 2, "one batch a step"


def test_batches_are_of_the_data():
    problem = TASKS["logistic"].build()
    x, data = problem.start(456)
    whole = problem.value_fn(x, **data)
    batches = problem.batches
    np.testing.assert_allclose(batches.full_value_fn(x), whole, rtol=1e-5)
    of_batch = quick_jit(batches.value_fn)
    keys = jax.random.split(jax.random.key(0), 200)
    values = np.array([of_batch(x, key) for key in keys])
    error = values.std() / math.sqrt(200)
    assert error > 0
    assert abs(values.mean() - whole) < 5 * error


def test_cross_entropy_is_that_of_scikit_learn():
    data, x = learning.samples(), random_weights(learning.DIM_LINEAR)
    scores = data["images"].astype(float) @ x[:640].reshape(10, 64).T + x[640:]
    probs = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    expected = log_loss(data["labels"], probs) + 0.5e-3 * np.sum(x.astype(float) ** 2)
    found = learning.cross_entropy(jnp.asarray(x), **jax.tree.map(jnp.asarray, data))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_f1_is_that_of_scikit_learn():
    data, x = learning.samples(), random_weights(learning.DIM_NETWORK)
    weight, out = x[:512].reshape(8, 64), x[512:592].reshape(10, 8)
    hidden = np.tanh(data["images"].astype(float) @ weight.T + x[592:600])
    found = np.argmax(hidden @ out.T + x[600:], axis=1)
    expected = 1 - f1_score(data["labels"], found, average="macro", zero_division=0)
    value = learning.one_minus_f1(jnp.asarray(x), **jax.tree.map(jnp.asarray, data))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert 0.5 < expected < 1


def test_the_attack_asks_the_classifier(monkeypatch):
    weights = digits.init(jax.random.key(0))
    monkeypatch.setattr(estimators_tasks, "trained", lambda *_: weights)
    problem = TASKS["attack"].build()
    x, data = problem.start(456)
    assert x.shape == (TASKS["attack"].dim,)
    assert problem.value_fn(jnp.zeros(64), **data) > 0, "it is right on the image"
    other = problem.start(457)[1]
    assert not np.array_equal(other["image"], data["image"])
    shown = np.clip(np.ravel(data["image"]) + np.clip(x, -0.3, 0.3), 0, 1)
    for name in ("hidden", "out"):
        weight, bias = weights[name]
        shown = np.asarray(weight) @ shown + np.asarray(bias)
        if name == "hidden":
            shown = np.maximum(shown, 0)
    target = int(data["target"])
    expected = np.max(np.delete(shown, target)) - shown[target]
    np.testing.assert_allclose(problem.value_fn(x, **data), expected, rtol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_the_pendulum_is_that_of_the_equations():
    pytest.importorskip("gymnax")
    x = random_weights(pendulum.DIM)
    keys = jax.random.split(jax.random.key(0), pendulum.NUM_STARTS)
    high = jnp.array([jnp.pi, 1.0])
    uniform = functools.partial(jax.random.uniform, minval=-high, maxval=high)
    angle, speed = np.array(jax.vmap(lambda k: uniform(k, (2,)))(keys), float).T
    weight, out = x[:24].reshape(8, 3).astype(float), x[24:32]
    total = 0.0
    for _ in range(pendulum.NUM_STEPS):
        seen = np.stack([np.cos(angle), np.sin(angle), speed / 8])
        hidden = np.tanh(weight @ seen + x[32:40, None])
        torque = 2 * np.tanh(out @ hidden + x[40])
        wrapped = (angle + np.pi) % (2 * np.pi) - np.pi
        total += wrapped**2 + 0.1 * speed**2 + 0.001 * torque**2
        speed = np.clip(speed + 0.05 * (15 * np.sin(angle) + 3 * torque), -8, 8)
        angle = angle + 0.05 * speed
    value_fn = pendulum.cost()
    found = jax.jit(value_fn)(jnp.asarray(x))
    np.testing.assert_allclose(found, total.mean() / pendulum.NUM_STEPS, rtol=1e-3)
    # Forward mode is a row: the environment must not stop it.
    step = 1e-3
    along = jnp.zeros_like(x).at[0].set(1)
    slope = jax.jvp(value_fn, (jnp.asarray(x),), (along,))[1]
    near = (value_fn(x + step * along) - value_fn(x - step * along)) / (2 * step)
    np.testing.assert_allclose(slope, near, rtol=0.05)


# The report


def line_of(task, estimator, rule, curves, counts=(0, 10, 20, 30)):
    return {
        "command": "estimators",
        "seeds": [1, 2],
        "settings": {
            "task": task,
            "estimator": estimator,
            "rule": rule,
            "budget": 30,
            "num_directions": 2,
            "smoothing": 0.1,
            "dtype": "float32",
        },
        "numbers": {
            "rate": 0.1,
            "at_edge": estimator == "gaussian",
            "value_at_start": [curve[0] for curve in curves],
            "value_at_end": [curve[-1] for curve in curves],
            "counts": [list(counts)] * len(curves),
            "curve": curves,
        },
    }


PLAIN = [[8.0, 6.0, 4.0, 2.0], [8.0, 6.0, 4.0, 2.0]]
FAST = [[8.0, 4.0, 2.0, 1.0], [8.0, 2.0, 1.0, 1.0]]
SLOW = [[8.0, 7.0, 6.0, 5.0], [8.0, 7.0, 6.0, 4.0]]
NEVER = [[8.0, 9.0, 9.0, None], [8.0, 9.0, 9.0, 9.0]]


def test_values_taken_until_a_level():
    counts, curve = np.array([0, 10, 30]), np.array([8.0, 4.0, 6.0])
    assert estimators_report.taken(counts, curve, 8.0) == 0
    assert estimators_report.taken(counts, curve, 5.0) == 7.5
    assert estimators_report.taken(counts, curve, 4.0) == 10
    assert estimators_report.taken(counts, curve, 3.9) == math.inf


def test_factors_of_lines_made_by_hand():
    plain, fast, slow, never = (
        line_of("levy", "sphere", "radazo", curves)
        for curves in (PLAIN, FAST, SLOW, NEVER)
    )
    factors = estimators_report.factors
    np.testing.assert_allclose(factors(plain, plain), 1)
    np.testing.assert_allclose(factors(fast, plain), [30 / 20, 30 / 10])
    np.testing.assert_allclose(factors(slow, plain), [15 / 30, 20 / 30])
    np.testing.assert_allclose(factors(plain, slow), [30 / 15, 30 / 20])
    np.testing.assert_allclose(factors(never, plain), 0)


def all_lines():
    found = []
    for task in ("levy", "logistic"):
        found += [
            line_of(task, "sphere", "radazo", PLAIN),
            line_of(task, "sphere", "zo_sgd", FAST if task == "levy" else SLOW),
            line_of(task, "mezo", "zo_sgd", FAST),
            line_of(task, "gaussian", "radazo", NEVER),
        ]
    broken = line_of("levy", "coordinate", "radazo", PLAIN)
    return [*found, broken | {"numbers": {"failed": "not beyond d = 7"}}]


def test_the_report_names_the_best_combination():
    text = estimators_report.markdown(all_lines())
    # 1.5 and 3 times as fast on both tasks; on Levy tuned ZO-SGD is the same.
    assert "Best over all tasks: **MeZO + zo_sgd**, 2.25 times as fast" in text
    assert "ahead of both references on 1 of 2 tasks, with whole intervals on 1" in text
    assert "| MeZO | zo_sgd | 0.1 | 1 (1 – 1) | 2.25 (1.50 – 3.00) |" in text
    assert "| Gaussian | radazo | 0.1 (edge) | no descent | 0.00 (0.00 – 0.00)" in text
    assert "| coordinate + radazo | not beyond d = 7 | – | – |" in text
    rows = [row for row in text.splitlines() if row.startswith("| sphere + zo_sgd |")]
    assert rows == ["| sphere + zo_sgd | 2.25 | 0.58 | 1.15 |"]


def test_what_takes_more_than_values_is_never_the_best(monkeypatch):
    row = ROWS["mezo"]._replace(is_reference=True)
    monkeypatch.setitem(ROWS, "mezo", row)
    text = estimators_report.markdown(all_lines())
    assert "**sphere + zo_sgd**" in text
    assert "| MeZO + zo_sgd | 2.25 | 2.25 |" in text


def test_the_largest_budget_is_reported(tmp_path):
    quick = line_of("levy", "mezo", "zo_sgd", SLOW, (0, 1, 2, 3))
    quick["settings"]["budget"] = 3
    lines = [quick, *all_lines()]
    mains = estimators_report.main_groups(lines)
    assert mains["levy"]["mezo", "zo_sgd"]["settings"]["budget"] == 30
    assert "3 function values" in estimators_report.markdown(lines)
    paths = estimators_report.draw(lines, tmp_path)
    names = [path.name for path in paths]
    assert names == ["estimators_radazo.png", "estimators_zo_sgd.png"]
