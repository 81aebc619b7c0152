"""`untuned` at toy sizes, and its functions against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import estimators_runs as runs
from benchmarks import (
    records,
    untuned,
    untuned_report,
    untuned_runs,
    untuned_sensitivity,
)
from benchmarks.problems import classics
from benchmarks.untuned_tasks import GROUPS, LOW, TASKS

pytestmark = pytest.mark.gate

TOY = TASKS["noise_1"]._replace(budget=60, seeds=2, tuning_seeds=1)


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(TASKS, "noise_1", TOY)
    monkeypatch.setitem(GROUPS["noise"], "noise_1", TOY)


def command(folder, *more):
    untuned.main([*more, "--output", str(folder)])
    return records.read(folder / "untuned.jsonl")


def of_rule(lines, estimator, rule):
    (line,) = (
        line
        for line in lines
        if (line["settings"]["estimator"], line["settings"]["rule"])
        == (estimator, rule)
    )
    return line


def test_end_to_end_and_again(tmp_path, capsys, monkeypatch, toy):
    given = ("--groups", "noise", "--tasks", "noise_1")
    lines = command(tmp_path, *given)
    assert len(lines) == 9
    auto = of_rule(lines, "", "zo_auto")
    assert "smoothing" not in auto["settings"]
    for line in (auto, of_rule(lines, "hadamard", "parabola")):
        (counts, *_), (curve, *_) = line["numbers"]["counts"], line["numbers"]["curve"]
        assert counts[-1] >= 75, "beyond the budget"
        end = next(i for i, count in enumerate(counts) if count >= 60)
        assert curve[end] == pytest.approx(line["numbers"]["value_at_end"][0], rel=1e-3)
    for line in lines:
        if not untuned_runs.is_tuned(
            untuned_runs.Piece("", "", line["settings"]["rule"])
        ):
            continue
        settings, numbers = line["settings"], line["numbers"]
        assert not {*line["seeds"]} & {*settings["tuning_seeds"]}
        assert settings["smoothing"] == 1.68
        assert numbers["counts"][0][-1] == 66
        np.testing.assert_allclose(numbers["curve"][0][0], 500, rtol=0.2)
    starts = {tuple(line["numbers"]["value_at_start"]) for line in lines}
    assert len(starts) == 1, "all start from the same points"
    assert "noise of 1" in capsys.readouterr().out
    assert (tmp_path / "untuned.png").stat().st_size > 10_000
    monkeypatch.setattr(untuned, "measured", None)
    assert command(tmp_path, *given) == lines


def test_committed_results_are_copied(tmp_path, monkeypatch):
    known = {
        name: records.read(untuned_runs.COMMITTED / f"{name}.jsonl")
        for name in ("synthetic", "estimators")
    }
    found = {
        copied["rule"]: copied
        for copied in untuned_runs.copies("levy_10000", TASKS["levy_10000"], known)
    }
    assert {*runs.RULES, "zo_adamm, cosine", "meazo"} <= {*found}
    numbers = found["zo_sgd"]["numbers"]
    assert numbers["counts"][0][-1] == 55_000
    assert numbers["source"]["command"] == "synthetic"
    assert np.median(numbers["value_at_end"]) == pytest.approx(671.2, abs=0.1)
    assert untuned_runs.rate_of("levy_10000", "zo_sgd", known) == numbers["rate"]
    assert untuned_runs.rate_of("levy_1000", "zo_sgd", known) is None
    found = list(untuned_runs.copies("f1", TASKS["f1"], known))
    assert [copied["rule"] for copied in found] == [*runs.RULES]
    assert all(len(copied["numbers"]["counts"]) == 10 for copied in found)
    assert not list(untuned_runs.copies("levy_1000", TASKS["levy_1000"], known))


def test_each_evaluation_has_its_own_noise():
    problem = TASKS["noise_10"].build()

    @jax.jit
    def noise(x):
        seen = jax.lax.map(lambda _: problem.sampled.value_fn(x), jnp.arange(400))
        return seen - problem.value_fn(x)

    found = []
    for _ in range(2):
        x, data = problem.start(3)
        assert data == {}
        found.append(np.asarray(noise(x)))
    np.testing.assert_array_equal(found[0], found[1])  # A run starts its generator.
    assert len(set(found[0])) == 400
    assert abs(found[0].mean()) < 4 * 10 / 400**0.5
    assert abs(found[0].std() / 10 - 1) < 4 / (2 * 400) ** 0.5


def test_a_batch_is_that_of_its_step():
    problem = TASKS["logistic_batches"].build()
    x, data = problem.start(3)
    seen = jax.jit(problem.sampled.value_fn)
    drawn = [problem.sampled.draw(jax.random.key(i)) for i in range(40)]
    values = np.array([seen(x, **given) for given in drawn])
    assert seen(x, **drawn[0]) == values[0]
    assert len(set(values)) == 40
    error = values.std(ddof=1) / 40**0.5
    assert abs(values.mean() - problem.value_fn(x, **data)) < 4 * error


def line_of(task, estimator, rule, curves, counts=(0, 10, 20, 30), budget=30):
    end = list(counts).index(budget)
    return {
        "command": "untuned",
        "seeds": [1, 2, 3],
        "settings": {
            "task": task,
            "estimator": estimator,
            "rule": rule,
            "budget": budget,
        },
        "numbers": {
            "rate": 0.1,
            "value_at_start": [curve[0] for curve in curves],
            "value_at_end": [curve[end] for curve in curves],
            "counts": [list(counts)] * len(curves),
            "curve": curves,
        },
    }


def test_the_report_of_lines_made_by_hand():
    slow, fast = [8.0, 6.0, 4.0, 2.0], [8.0, 4.0, 2.0, 1.0]
    beyond = (0, 10, 20, 30, 36)
    lines = [
        line_of("sparse", "sphere", "zo_sgd", [slow] * 3),
        line_of("sparse", "sphere", "radazo", [[8.0, 7.0, 6.0, 5.0]] * 3),
        line_of("sparse", "hadamard", "zo_adamm", [fast] * 3),
        # The level of `slow` after 20, 25 and 36 values, that of `fast` never twice.
        line_of(
            "sparse",
            "",
            "zo_auto",
            [[8.0, 4.0, 2.0, 1.0, 1.0], [8.0, 4.0, 3.0, 1.5, 1.2], [8.0, 7, 6, 4, 2]],
            beyond,
        ),
    ]
    text = untuned_report.markdown(lines)
    (row,) = (x for x in text.splitlines() if "| zo_sgd | 2 (2 – 2) |" in x)
    cells = [cell.strip() for cell in row.split("|")][1:-1]
    assert cells[3:] == [
        *("zo_adamm", "1 (1 – 1)", "1.5 (1 – 4)"),
        *("0.89 (0.67 – 1.20)", "> 1.25 (1.00 – > 1.25)"),
    ]
    assert "anew, `zo_auto` takes fewer function values on 1 of 1 tasks, and" in text
    assert "sweeps, `zo_auto` takes fewer function values on 0 of 1 tasks, and" in text
    assert "More: Quadratic, one steep coordinate in 20, d = 1,000 (> 1.25)." in text
    noise = [
        line_of("noise_1", "hadamard", "zo_sgd", [slow] * 3),
        line_of("noise_1", "", "zo_auto", [fast] * 3),
    ]
    text = untuned_report.markdown(noise)
    assert "tuned in sweeps: Quadratic, d = 1,000, noise of 1 0.50." in text


def low_line(rule, ends):
    line = line_of("step", "", rule, [[8.0, end] for end in ends], (0, 30))
    return line | {"numbers": line["numbers"] | {"num_values": [30] * len(ends)}}


def test_the_report_says_where_others_end_lower_and_where_f_rose():
    others = [low_line("radazo", [4.0] * 3), low_line("zo_adamm_5", [3.0] * 3)]
    text = untuned_report.markdown([*others, low_line("zo_auto", [2.0, 3.0, 9.0])])
    assert "| step | 8 | 3 (2 – 9) | 4 (4 – 4) | 3 (3 – 3) |" in text
    assert (
        "its start in a run on: step; above the lower of both others on: none" in text
    )
    text = untuned_report.markdown([*others, low_line("zo_auto", [2.0, 3.1, 4.0])])
    assert (
        "its start in a run on: none; above the lower of both others on: step" in text
    )


def by_numpy(x, dim):
    """The functions of few parameters, from their formulas in float64."""
    generator = np.random.default_rng(0)
    shift = generator.uniform(-2, 2, dim)
    z = x - shift
    rotated = np.linalg.qr(generator.standard_normal((dim, dim)))[0] @ z
    i, powers = np.arange(1, dim + 1), np.arange(dim) / (dim - 1)
    w = np.sum(i * z) / 2
    return {
        "ackley": 20 * (1 - np.exp(-0.2 * np.sqrt(np.mean(z**2))))
        + np.e
        - np.exp(np.mean(np.cos(2 * np.pi * z))),
        "griewank": 1 + np.sum(z**2) / 10 - np.prod(np.cos(20 * z / np.sqrt(i))),
        "zakharov": np.sum(z**2) + w**2 + w**4,
        "styblinski_tang": np.sum(z**4 - 16 * z**2 + 5 * z) / 2 + 39.166165704 * dim,
        "ellipsoid": np.sum(1e6**powers * rotated**2),
        "rotated_rastrigin": np.sum(rotated**2 + 10 - 10 * np.cos(2 * np.pi * rotated)),
        "step": np.sum(np.floor(np.abs(z) + 0.5) ** 2),
        "plateau": np.floor(np.sum(100**powers * rotated**2)),
        "rosenbrock": np.sum(100 * (z[1:] + 1 - (z[:-1] + 1) ** 2) ** 2 + z[:-1] ** 2),
        "sphere": np.sum(z**2),
    }


def test_functions_are_their_formulas(x64):
    dim = 12
    x = np.random.default_rng(5).uniform(-4, 4, dim)
    functions, expected = classics.functions(dim), by_numpy(x, dim)
    assert {*functions} == {*expected} == {task.function for task in LOW.values()}
    shift = np.random.default_rng(0).uniform(-2, 2, dim)

    @jax.jit
    def values(x):
        return {name: function(x) for name, function in functions.items()}

    found, lowest = values(jnp.asarray(x)), values(jnp.asarray(shift))
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-8, err_msg=name)
        if name != "styblinski_tang":
            np.testing.assert_allclose(lowest[name], 0, atol=1e-8, err_msg=name)
    lowest = values(jnp.asarray(shift - 2.903534))
    np.testing.assert_allclose(lowest["styblinski_tang"], 0, atol=1e-4)
    x = jnp.asarray(np.random.default_rng(5).standard_normal(40))
    curvatures = 10.0 ** (4 * np.arange(40) / 39 - 2)
    np.testing.assert_allclose(
        classics.ill_conditioned(x), np.sum(curvatures * np.square(x)) / 2
    )
    curvatures = np.where(np.isin(np.arange(40), [0, 20]), 100.0, 1.0)
    np.testing.assert_allclose(
        classics.sparse(x), np.sum(curvatures * np.square(x)) / 2
    )


@pytest.mark.parametrize("name", ["sphere_added", "step"])
def test_out_of_the_box(tmp_path, name):
    given = ("--groups", "low", "--tasks", name, "--budget", "0.05")
    lines = command(tmp_path, *given)
    once, five = of_rule(lines, "", "radazo"), of_rule(lines, "", "zo_adamm_5")
    auto = of_rule(lines, "", "zo_auto")
    assert auto["numbers"]["value_at_start"] == once["numbers"]["value_at_start"]
    assert all(1000 <= count < 1000 + 24 for count in auto["numbers"]["num_values"])
    assert once["numbers"]["value_at_start"] == five["numbers"]["value_at_start"]
    assert np.shape(five["numbers"]["value_after_rounds"]) == (3, 6)
    for line in (once, five):
        assert line["settings"]["budget"] == 1000
        counts = np.array(line["numbers"]["num_values"])
        rounds = {"radazo": 1, "zo_adamm_5": 5}[line["settings"]["rule"]]
        assert np.all((counts > 1000 - 11 * rounds) & (counts <= 1000))
        assert np.all(
            np.array(line["numbers"]["value_at_end"])
            < np.array(line["numbers"]["value_at_start"])
        )


def test_a_constant_is_halved_and_doubled(tmp_path, monkeypatch):
    """Some changes change the run; without any it is that of `zo_auto` as it is."""
    names = ("_RISE", "_WINDOW_STEPS", "GROWTH", "_DECAYS")
    known = untuned_sensitivity.constants()
    assert {*untuned_sensitivity.modules()} == {*known}
    assert untuned_sensitivity.changed("_RISE", 2.0, 0.5) == 1.0
    assert untuned_sensitivity.changed("_WINDOW_STEPS", 30, 2.0) == 60
    assert untuned_sensitivity.changed("GROWTH", 1.44, 0.5) == pytest.approx(1.2)
    found = untuned_sensitivity.changed("_DECAYS", (0.9, 0.95), 2.0)
    assert found == pytest.approx((0.8, 0.9))
    monkeypatch.setattr(untuned_sensitivity, "NAMES", ("low_rosenbrock",))
    monkeypatch.setattr(untuned_sensitivity, "SEEDS", (456,))
    kept = {name: known[name] for name in names}
    monkeypatch.setattr(untuned_sensitivity, "constants", lambda: kept)
    (line,) = command(tmp_path, "--sensitivity", "--budget", "0.1")
    numbers = line["numbers"]
    ends = {(x["constant"], x["times"]): x["value_at_end"] for x in numbers["changed"]}
    assert {*ends} == {(name, times) for name in names for times in (0.5, 2.0)}
    assert ends["GROWTH", 0.5] != numbers["value_at_end"] != ends["_DECAYS", 2.0]
    assert numbers["value_at_end"] < numbers["value_at_start"]
    given = ("--groups", "low", "--tasks", "low_rosenbrock", "--methods", "zo_auto")
    auto = of_rule(command(tmp_path, *given, "--budget", "0.1"), "", "zo_auto")
    assert auto["numbers"]["value_at_end"][0] == numbers["value_at_end"][0]
    assert "| `_RISE` | 2.0 |" in untuned_report.markdown([line])


def test_options_are_checked(capsys):
    for options, message in (
        (("--groups", "levy"), "'levy' is none of synthetic"),
        (("--tasks", "sphere"), "'sphere' is none of quadratic_100"),
        (("--methods", "meazo"), "'meazo' is none of sphere"),
        (("--budget", "0"), "--budget must be above 0"),
    ):
        with pytest.raises(SystemExit):
            untuned.main(list(options))
        assert message in capsys.readouterr().err
