"""What is calibrated against a grid, at toy sizes, and what the report makes of it."""

import json

import jax
import numpy as np
import pytest

import radazo
from benchmarks import calibration, calibration_report, records

pytestmark = pytest.mark.gate

QUICK = ["--quick", "--tasks", "quadratic,attack", "--rules", "radazo"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The lines of a quick run, by task."""
    folder = tmp_path_factory.mktemp("calibration")
    calibration.main([*QUICK, "--output", str(folder)])
    lines = records.read(folder / "calibration.jsonl")
    return folder, {line["settings"]["task"]: line for line in lines}


def task(name, **options):
    argv = ["--quick", *(x for k, v in options.items() for x in (f"--{k}", str(v)))]
    return calibration.task_of(name, calibration.arguments(argv))


def test_a_line_holds_what_both_needed(made):
    _, lines = made
    assert set(lines) == {"quadratic", "attack"}
    for line in lines.values():
        numbers, settings = line["numbers"], line["settings"]
        assert not set(line["seeds"]) & set(settings["tuning_seeds"])
        assert len(line["seeds"]) == len(numbers["values_calibrated"]) == 2
        assert numbers["smoothing"] in settings["smoothings"]
        assert np.isclose(settings["rates"], numbers["rate"]).any()
        assert len(numbers["tuning_values"]) == 9 * len(settings["smoothings"])
        assert all(50 <= x <= 80 for x in numbers["values_to_calibrate"])
        per_step = settings["num_directions"] + 1
        reached = [x for x in numbers["values_tuned"] if x is not None]
        assert reached
        assert all(x % per_step == 1 for x in reached)
    assert lines["attack"]["numbers"]["level"] == 0
    assert 0 < lines["quadratic"]["numbers"]["level"] < 1


def test_what_is_finished_is_not_run_again(made, monkeypatch):
    folder, _ = made
    monkeypatch.setattr(calibration, "numbers", None)
    before = (folder / "calibration.jsonl").read_text()
    calibration.main([*QUICK, "--output", str(folder)])
    assert (folder / "calibration.jsonl").read_text() == before


def test_the_grid_of_a_line_need_not_run_again(made, tmp_path, monkeypatch, capsys):
    folder, lines = made
    monkeypatch.setattr(calibration, "tuned_settings", None)
    grid = ["--grid", str(folder / "calibration.jsonl"), "--tasks", "quadratic"]
    calibration.main([*QUICK, *grid, "--output", str(tmp_path)])
    (again,) = records.read(tmp_path / "calibration.jsonl")
    first = lines["quadratic"]
    of_other_runs = {"grid_commit": first["commit"]}
    of_other_runs["run_seconds"] = again["numbers"]["run_seconds"]
    assert again["numbers"] == first["numbers"] | of_other_runs
    assert again["settings"] == first["settings"]
    with pytest.raises(SystemExit, match="no line of quadratic, radazo"):
        calibration.main([*QUICK, *grid, "--dim", "9", "--output", str(tmp_path)])
    with pytest.raises(SystemExit):
        calibration.arguments(["--grid", str(tmp_path / "none")])
    assert "--grid must be a file" in capsys.readouterr().err


def test_a_run_of_the_grid_is_the_run_of_the_optimizer():
    toy, seed, rate = task("levy", dim=6, steps=15), 3, 0.01
    with jax.enable_x64(True):
        run = calibration.program(toy, "radazo")
        curves = run(seed, np.array([0.05, 0.2]), np.array([0.1, rate]))
        x, _ = calibration.started(toy, seed)
        key = jax.random.split(jax.random.key(seed))[1]
        optimizer = radazo.radazo(rate, radazo.sphere_estimator(smoothing=0.2), key=key)
        alone = radazo.minimize(toy.value_fn, x, optimizer, 15, progress=False)
        np.testing.assert_allclose(curves[1, :-1], alone.values, rtol=1e-9)
        np.testing.assert_allclose(curves[1, -1], toy.value_fn(alone.params), 1e-9)
    assert not np.allclose(curves[0, 5:], curves[1, 5:])


def test_levels_counts_and_the_best_by_hand():
    toy = task("quadratic")._replace(steps=4, num_directions=10)
    tried = np.array([[[8, 4, 2, 1, 1], [8, 8, 1, 6, 9], [8, np.nan, 9, 9, 9]]] * 2)
    assert calibration.level_of(toy, tried) == 1 / 8
    counts = calibration.values_to(toy, tried[0], 1 / 8)
    np.testing.assert_array_equal(counts, [34, 23, np.inf])
    assert calibration.best_of(np.array([counts] * 2), tried) == 1
    # Of equals the one that ends lower.
    assert calibration.best_of(np.array([[5.0, 5.0, np.inf]] * 2), tried) == 0
    attack = toy._replace(succeeds=True)
    assert calibration.level_of(attack, tried) == 0
    found = calibration.values_to(attack, np.array([[3, 0, -1], [1, 1, 1.0]]), 0)
    np.testing.assert_array_equal(found, [23, np.inf])


def made_line(name, tuned, mine, **numbers):
    return {
        "command": "calibration",
        "seeds": list(range(len(tuned))),
        "settings": {"task": name, "rule": "radazo", "dim": 1000},
        "numbers": {
            "level": 0.05,
            "smoothing": 0.05,
            "rate": 0.01,
            "at_edge": False,
            "values_tuned": tuned,
            "values_calibrated": mine,
            "values_to_calibrate": [55] * len(tuned),
            "smoothing_calibrated": [0.1, 0.2, 0.3],
            "rate_calibrated": [0.005, 0.01, 0.02],
            **numbers,
        },
    }


GOOD = made_line("levy", [1000, 2000, 1000], [1100, 2000, 1300])
BAD = made_line("cubic", [100, None, 200], [300, None, None], level=0, at_edge=True)


def test_ratios_are_of_the_same_seed():
    np.testing.assert_allclose(calibration_report.ratios(GOOD), [1.1, 1, 1.3])
    whole = calibration_report.ratios(GOOD, whole=True)
    np.testing.assert_allclose(whole, [1.155, 2055 / 2000, 1.355])
    # Where neither gets there they are equal, where one does not it is the loser.
    np.testing.assert_array_equal(calibration_report.ratios(BAD), [3, 1, np.inf])
    other = made_line("cubic", [None, 1, 1], [5, 1, 1])
    np.testing.assert_array_equal(calibration_report.ratios(other), [0, 1, 1])


def test_the_report_says_what_holds_and_where_it_does_not():
    text = calibration_report.markdown([GOOD, BAD, GOOD])
    assert text.count("| levy, d = 1,000 |") == 1
    row = next(x for x in text.splitlines() if x.startswith("| levy"))
    assert "| 0.05 f(x₀) | 0.05 | 0.01 | 1,000 | 0.2 (0.15 to 0.25) |" in row
    assert "| 1,300 | 1.10 (1.00 to 1.30) | 1.16 (1.03 to 1.35) | 3, 3 of 3 |" in row
    row = next(x for x in text.splitlines() if x.startswith("| cubic"))
    assert "| f < 0 | 0.05 | 0.01 (edge) | 200 |" in row
    assert "| not reached | 3.00 (1.00 to ∞) |" in row
    assert row.endswith("| 2, 1 of 3 |")
    assert "the calibration: levy with radazo (1.100)." in text
    assert "Above: cubic with radazo (3.000)." in text
    assert "earlier commit" not in text
    of_others = made_line("levy", [1, 2, 3], [1, 2, 3], grid_commit="abc")
    assert "earlier commit: abc." in calibration_report.markdown([BAD, of_others])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--seeds 401", "--seeds and --images must be 1 to 400"),
        ("--images 0", "--seeds and --images must be 1 to 400"),
        ("--seed 700", "--seed must be 0 to 600; others are for tuning"),
        ("--dim 1", "--dim and --steps must be at least 2"),
        ("--tasks sphere", "'sphere' is none of quadratic"),
        ("--rules adam", "'adam' is none of radazo"),
    ],
)
def test_wrong_options_are_explained(options, said, capsys):
    with pytest.raises(SystemExit):
        calibration.arguments(options.split())
    assert said in capsys.readouterr().err


def test_lines_are_json_without_infinities(made):
    folder, _ = made
    text = (folder / "calibration.jsonl").read_text()
    assert all(json.loads(line) for line in text.splitlines())
    assert "Infinity" not in text
