"""The synthetic benchmark at toy sizes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tqdm import tqdm

import radazo
from benchmarks import checkpoints, methods, records, sweep, synthetic, synthetic_report
from benchmarks.methods import METHODS
from benchmarks.problems.synthetic import PROBLEMS

pytestmark = pytest.mark.gate

FIELDS = {
    "command",
    "date",
    "commit",
    "versions",
    "device",
    "seeds",
    "settings",
    "numbers",
}
ESTIMATOR = radazo.sphere_estimator(num_directions=3)


def swept(rates, checkpoint=None, **changes):
    plan = sweep.Plan(
        PROBLEMS["levy"].value_fn, ESTIMATOR, 6, "float64", rates, [456, 9], 40
    )
    with tqdm(disable=True) as bar:
        return sweep.run(plan._replace(**changes), bar, checkpoint).values


def run_alone(rate, steps=40):
    """(steps + 1,) for each method f along a run of the complete optimizer."""
    value_fn = PROBLEMS["levy"].value_fn
    start_key, run_key = jax.random.split(jax.random.key(9))
    x = jax.random.normal(start_key, 6, jnp.float32).astype(jnp.float64)

    def of_method(method):
        optimizer = methods.optimizer(method, rate, ESTIMATOR, run_key)

        def step(carry, _):
            x, state = carry
            updates, state = optimizer.update(None, state, x, value_fn=value_fn)
            return (optax.apply_updates(x, updates), state), value_fn(x)

        (last, _), values = jax.lax.scan(step, (x, optimizer.init(x)), length=steps)
        return jnp.append(values, value_fn(last))

    return jax.jit(lambda: {name: of_method(x) for name, x in METHODS.items()})()


def test_an_interrupted_sweep_goes_on_as_if_it_had_not_been(x64, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "SECONDS", 0.0)
    rates = {name: np.array([1e-3, 2e-3]) for name in ("radazo", "zo_amsgrad")}
    expected, kept = swept(rates), checkpoints.Checkpoint(tmp_path, "a", "this")
    keep, calls = kept.keep, []

    def interrupted(tree):
        keep(tree)
        calls.append(tree)
        if len(calls) == 7:
            raise KeyboardInterrupt

    monkeypatch.setattr(kept, "keep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        swept(rates, kept)
    found = swept(rates, kept)
    assert len(calls) == sweep.NUM_CALLS, "what was kept is not done again"
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


def test_a_checkpoint_is_of_one_piece_of_work(tmp_path, monkeypatch):
    nothing, tree = {"a": np.zeros(2)}, {"a": np.array([1.0, 2.0])}
    kept = checkpoints.Checkpoint(tmp_path, "a", "this")
    kept.keep(tree)
    assert kept.restored(nothing) is nothing, "not each time: writing takes a while"
    monkeypatch.setattr(checkpoints, "SECONDS", 0.0)
    kept.keep(tree)
    again = checkpoints.Checkpoint(tmp_path, "a", "this")
    np.testing.assert_array_equal(again.restored(nothing)["a"], tree["a"])
    other = checkpoints.Checkpoint(tmp_path, "a", "other")
    assert other.restored(nothing) is nothing
    other.path = kept.path  # As if by accident the names were the same.
    assert other.restored(nothing) is nothing
    again.remove()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cosine", [False, True])
def test_a_sweep_is_the_complete_optimizers(cosine, x64):
    rates = {name: np.array([1e-3, 2e-3]) for name in METHODS}
    found = swept(rates, cosine=cosine)
    decay = optax.cosine_decay_schedule(2e-3, 40)
    alone = run_alone((lambda t: decay(t.astype(float))) if cosine else 2e-3)
    assert list(found) == list(METHODS)
    for name, values in found.items():
        assert values.shape == (2, 2, 41)
        np.testing.assert_allclose(values[1, 1], alone[name], rtol=1e-9, err_msg=name)


def test_terms_and_value_are_one_function(x64):
    rates = {"radazo": np.array([1e-2])}
    terms = radazo.sphere_estimator(num_directions=3, terms=True)
    by_terms = swept(rates, value_fn=PROBLEMS["levy"].terms_fn, estimator=terms)
    np.testing.assert_allclose(by_terms["radazo"], swept(rates)["radazo"], rtol=1e-6)


def test_meazo_is_one_scalar_second_moment(x64):
    rule = methods.METHODS["meazo"].rule()
    gradient = {"a": jnp.array([3.0, 4.0]), "b": jnp.array(0.0)}
    state = rule.init(gradient)
    nu = 0.0
    for _ in range(3):
        updates, state = rule.update(gradient, state)
        nu = 0.99 * nu + 0.01 * 25 / 3
    np.testing.assert_allclose(state.nu, nu, rtol=1e-14)
    np.testing.assert_allclose(updates["a"], gradient["a"] / math.sqrt(nu + 1e-8))


def command(folder, *more):
    sizes = ["--dim", "10", "--steps", "300", "--tuned-steps", "300", "--seeds", "2"]
    synthetic.main([*sizes, "--output", str(folder), *more])
    return records.read(folder / "synthetic.jsonl")


@pytest.fixture(scope="module")
def shared_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    return folder, command(
        folder, "--functions", "quadratic,rastrigin", "--learning-rate", "0.01"
    )


def test_a_line_for_each_function_and_method(shared_run):
    folder, lines = shared_run
    names = [(x["settings"]["function"], x["settings"]["method"]) for x in lines]
    assert names == [(f, m) for f in ("quadratic", "rastrigin") for m in METHODS]
    assert (folder / "synthetic_shared_10.png").stat().st_size > 10_000
    starts = {tuple(x["numbers"]["value_at_start"]) for x in lines[: len(METHODS)]}
    assert len(starts) == 1, "every method starts from the same points"
    for line in lines:
        assert set(line) == FIELDS
        assert line["seeds"] == [456, 457]
        numbers, method = line["numbers"], METHODS[line["settings"]["method"]]
        assert math.isclose(numbers["rate"], 0.01 * method.factor)
        assert numbers["curve_at_step"][0] == 0
        assert numbers["curve_at_step"][-1] == 300
        for curve, start, end in zip(
            numbers["curve"],
            numbers["value_at_start"],
            numbers["value_at_end"],
            strict=True,
        ):
            assert len(curve) == len(numbers["curve_at_step"])
            np.testing.assert_allclose([curve[0], curve[-1]], [start, end], rtol=1e-3)
            if line["settings"]["function"] == "quadratic":
                assert end < start


def test_a_second_start_runs_nothing(shared_run, capsys, monkeypatch):
    folder, lines = shared_run
    monkeypatch.setattr(synthetic, "run", None)
    again = command(
        folder, "--functions", "quadratic,rastrigin", "--learning-rate", "0.01"
    )
    assert again == lines
    printed = capsys.readouterr().out
    assert "16 lines are in" in printed
    assert "quadratic, shared: d = 10" in printed


def test_an_interrupted_command_goes_on(tmp_path, capsys, monkeypatch):
    run = synthetic.run

    def interrupted(piece, *args):
        if piece.function == "cubic":
            raise KeyboardInterrupt
        return run(piece, *args)

    only = ("--methods", "zo_signsgd", "--functions", "quadratic,cubic")
    monkeypatch.setattr(synthetic, "run", interrupted)
    assert len(command(tmp_path, *only)) == 1
    printed = capsys.readouterr().out
    assert "Interrupted" in printed
    assert "cubic, shared: d" not in printed
    monkeypatch.setattr(synthetic, "run", run)
    lines = command(tmp_path, *only)
    assert [x["settings"]["function"] for x in lines] == ["quadratic", "cubic"]


def test_an_interrupted_piece_goes_on_within_itself(tmp_path, monkeypatch):
    only = ("--functions", "quadratic", "--methods", "radazo")
    only += ("--arms", "tuned", "--tuning-seeds", "1")
    (expected,) = command(tmp_path / "whole", *only)
    keep, calls = checkpoints.Checkpoint.keep, []

    def interrupted(checkpoint, tree):
        keep(checkpoint, tree)
        calls.append(tree)
        if len(calls) == 30:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "SECONDS", 0.0)
    monkeypatch.setattr(checkpoints.Checkpoint, "keep", interrupted)
    folder = tmp_path / "parts"
    assert command(folder, *only) == []
    assert len(list(folder.glob("*.npz"))) == 2, "the first sweep and half the second"
    (found,) = command(folder, *only)
    assert len(calls) == 4 * sweep.NUM_CALLS
    assert not list(folder.glob("*.npz"))
    for name in ("rate", "values_tried", "value_at_end", "curve"):
        assert found["numbers"][name] == expected["numbers"][name]


@pytest.fixture(scope="module")
def tuned_run(tmp_path_factory):
    only = ("--functions", "quadratic", "--methods", "radazo,zo_adamm_matched,zo_sgd")
    arms = ("--arms", "tuned,cosine", "--tuning-seeds", "1")
    return command(tmp_path_factory.mktemp("tuned"), *only, *arms)


def test_tuning_takes_the_best_rate_of_other_seeds(tuned_run):
    names = [(x["settings"]["arm"], x["settings"]["method"]) for x in tuned_run]
    assert names == [(a, m) for a in ("tuned", "cosine") for m in ("radazo", "zo_sgd")]
    for line in tuned_run:
        numbers = line["numbers"]
        tried = dict(zip(numbers["rates_tried"], numbers["values_tried"], strict=True))
        reached = {rate: x for rate, x in tried.items() if x is not None}
        assert numbers["rate"] == min(reached, key=reached.get)
        coarse = METHODS[line["settings"]["method"]].rates
        assert set(coarse) < set(tried)
        assert len(tried) == len(coarse) + 6 + 6
        assert line["settings"]["tuning_seeds"] == [1000]
        assert not set(line["seeds"]) & {1000}


def test_a_cosine_ends_lower_than_a_constant_rate(tuned_run):
    at_end = [np.median(x["numbers"]["value_at_end"]) for x in tuned_run]
    assert at_end[2] < at_end[0]


def test_precision_arm_tells_float32_from_float64(tmp_path):
    """Runs of the same start along the same directions part where rounding sets in."""
    only = ("--functions", "quadratic", "--arms", "precision", "--smoothing", "1e-3")
    lines = command(tmp_path, *only, "--dim", "3000", "--steps", "60", "--seeds", "1")
    found = {
        (x["settings"]["smoothing"], synthetic_report.label(x).split(", s")[0]): x
        for x in lines
    }
    assert len(found) == 6
    for smoothing in (1e-4, 1e-3):
        double, single, terms = (
            np.array(found[smoothing, name]["numbers"]["curve"][0])
            for name in ("float64", "float32", "float32, terms")
        )
        np.testing.assert_allclose(single[0], double[0], rtol=1e-3)
        off = abs(terms[-1] / double[-1] - 1)
        assert off < abs(single[-1] / double[-1] - 1)
        assert off < 0.01
    assert (tmp_path / "synthetic_precision_3000.png").exists()


def test_divergence_is_shown(tmp_path, capsys):
    only = ("--functions", "rosenbrock", "--methods", "zo_sgd", "--dtype", "float32")
    (line,) = command(tmp_path, *only, "--learning-rate", "0.01")
    assert "diverged" in capsys.readouterr().out
    numbers = line["numbers"]
    for start, end in zip(
        numbers["value_at_start"], numbers["value_at_end"], strict=True
    ):
        assert end is None or end > start


def test_steps_to_a_level():
    values = np.array([[10.0, 5.0, 1.0, 0.5], [10.0, 9.0, np.nan, 2.0]])
    assert synthetic.reached(values, 0.1).tolist() == [2, np.inf]
    assert synthetic.reached(values, 0.5).tolist() == [1, 3]


def line_of(arm, method, at_end, steps, function="quadratic"):
    return {
        "seeds": [1, 2, 3],
        "settings": {
            "arm": arm,
            "function": function,
            "method": method,
            "dim": 10,
            "num_directions": 2,
            "steps": 1000,
        },
        "numbers": {
            "rate": 0.1,
            "value_at_start": [8.0, 8.0, 8.0],
            "value_at_end": at_end,
            "steps_to": {"0.5": steps, "0.1": steps, "0.01": [None] * 3},
        },
    }


def test_report_of_lines_made_by_hand():
    lines = [
        line_of("shared", "radazo", [1.0, 2.0, 3.0], [100, 110, 120]),
        line_of("shared", "zo_adamm", [4.0, 5.0, 6.0], [400, 330, None]),
        line_of("shared", "zo_adamm_matched", [0.5, 0.75, 0.9], [90, 110, 96]),
    ]
    older = line_of("shared", "radazo", [9.0, 9.0, 9.0], [1, 1, 1])
    more = line_of("shared", "radazo", [9.0, 9.0, 9.0], [1, 1, 1])
    more["settings"]["num_directions"] = 7
    text = synthetic_report.markdown([older, *lines, more])
    assert "K = 7" in text
    best = "`zo_adamm (matched)` 0.75 (0.5 – 0.9) | `radazo` 2 (1 – 3)"
    assert f"| {best} | 2.67 (2.00 – 3.33) | 2 (1 – 3) |" in text
    assert "| quadratic | 10% | > 4.00 | 0.90 (0.80 – 1.00) | – | – |" in text
    assert "| quadratic | 1% " not in text
    assert "| radazo | 0.1 | 2 (1 – 3) | 110 | 110 | – |" in text


def test_a_ratio_that_is_not_known_is_bounded():
    fast = line_of("shared", "radazo", [1.0] * 3, [100, 100, 100])
    slow = line_of("shared", "zo_adamm", [1.0] * 3, [None, None, None])
    assert synthetic_report.ratio(slow, fast, "0.1") == "> 10.00"
    assert synthetic_report.ratio(fast, slow, "0.1") == "< 0.10"
    assert synthetic_report.ratio(slow, slow, "0.1") == "–"


def test_regret_is_the_value_over_that_of_the_best():
    lines = [
        line_of("tuned", method, [end] * 3, [1] * 3, function)
        for method, ends in (("radazo", (2.0, 9.0)), ("zo_sgd", (4.0, 3.0)))
        for function, end in zip(("quadratic", "cubic"), ends, strict=True)
    ]
    found = synthetic_report.regrets(lines, "tuned")
    assert found == {
        "radazo": {"quadratic": 1.0, "cubic": 3.0},
        "zo_sgd": {"quadratic": 2.0, "cubic": 1.0},
    }
    assert "| `zo_sgd` | 1.41 (2.00) |" in synthetic_report.regret_table(lines)
    # A lower end in the other arm is the measure of both.
    lines.append(line_of("cosine", "zo_sgd", [0.5] * 3, [1] * 3, "cubic"))
    found = synthetic_report.regrets(lines, "tuned")
    assert found["zo_sgd"] == {"quadratic": 2.0, "cubic": 6.0}


def test_options_are_checked(capsys):
    for options, message in (
        (("--functions", "sphere"), "'sphere' is none of quadratic"),
        (("--arms", "best"), "'best' is none of shared"),
        (("--seed", "1000"), "must be below 1000; others are for tuning"),
        (("--dim", "1"), "--dim is at least 2"),
    ):
        with pytest.raises(SystemExit):
            synthetic.main(list(options))
        assert message in capsys.readouterr().err


def test_full_sets_the_defaults_and_what_is_given_stands():
    args = synthetic.arguments(["--full", "--dim", "50"])
    assert (args.dim, args.steps, args.seeds) == (50, 20_000, 5)
    assert args.functions == list(PROBLEMS)
    assert args.arms == list(synthetic.ARMS)
