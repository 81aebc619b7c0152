"""The benchmarks at toy sizes, and the problems against NumPy."""

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import __main__, synthetic
from benchmarks.methods import MATCHED, METHODS
from benchmarks.problems.synthetic import PROBLEMS, sin_squared

ROOT = Path(__file__).parents[1]
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


def quadratic(x):
    return sum(t**2 for t in x) / 2


def cubic(x):
    return sum(abs(t) ** 3 / 3 + t**2 / 2 for t in x)


def levy(x):
    w = [1 + (t - 1) / 4 for t in x]
    f = math.sin(math.pi * w[0]) ** 2
    f += (w[-1] - 1) ** 2 * (1 + math.sin(2 * math.pi * w[-1]) ** 2)
    for t in w[:-1]:
        f += (t - 1) ** 2 * (1 + 10 * math.sin(math.pi * t + 1) ** 2)
    return f


def rosenbrock(x):
    f = 0.0
    for i in range(len(x) - 1):
        f += 100 * (x[i + 1] - x[i] ** 2) ** 2 + (1 - x[i]) ** 2
    return f


def ackley(x):
    distance = math.sqrt(sum(t**2 for t in x) / len(x))
    waves = sum(math.cos(2 * math.pi * t) for t in x) / len(x)
    return 20 * (1 - math.exp(-0.2 * distance)) + math.e - math.exp(waves)


def rastrigin(x):
    return sum(t**2 + 10 * (1 - math.cos(2 * math.pi * t)) for t in x)


BY_HAND = {
    f.__name__: f for f in (quadratic, cubic, levy, rosenbrock, ackley, rastrigin)
}


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", PROBLEMS)
def test_minimum_is_zero_and_stationary(name, x64):
    value_fn, minimizer, _ = PROBLEMS[name]
    x = jnp.full(7, minimizer)
    value, gradient = jax.value_and_grad(value_fn)(x)
    np.testing.assert_allclose(value, 0, atol=1e-15)
    if name != "ackley":  # A cone at its minimum.
        np.testing.assert_allclose(gradient, 0, atol=1e-14)
    moves = 0.1 * jax.random.normal(jax.random.key(0), (50, 7))
    assert bool(jnp.all(jax.vmap(lambda move: value_fn(x + move))(moves) > 0))


@pytest.mark.parametrize("name", PROBLEMS)
def test_value_is_that_of_the_formula(name, x64):
    x = [1.5, -0.75, 0.25, 2.0, -3.0]
    problem, expected = PROBLEMS[name], BY_HAND[name](x)
    np.testing.assert_allclose(problem.value_fn(jnp.array(x)), expected, rtol=1e-14)
    if problem.terms_fn is not None:
        terms = problem.terms_fn(jnp.array(x))
        assert terms.ndim == 1
        np.testing.assert_allclose(terms.sum(), expected, rtol=1e-14)


def test_sine_squared(x64):
    x = np.random.default_rng(0).uniform(-9, 9, 10_000)
    found = sin_squared(jnp.array(x))
    np.testing.assert_allclose(found, np.sin(np.pi * x) ** 2, atol=2e-14)
    near = x / 18  # Where the reference loses no digits to its argument.
    np.testing.assert_allclose(
        sin_squared(jnp.array(near)), np.sin(np.pi * near) ** 2, rtol=1e-14
    )


def test_rosenbrock_and_quadratic_at_zero_and_two(x64):
    assert PROBLEMS["rosenbrock"].value_fn(jnp.zeros(5)) == 4
    assert PROBLEMS["quadratic"].value_fn(jnp.full(5, 2.0)) == 10


def test_problems_do_not_know_radazo():
    for path in (ROOT / "benchmarks" / "problems").glob("*.py"):
        assert "import radazo" not in path.read_text(encoding="utf-8"), path
        assert "from radazo" not in path.read_text(encoding="utf-8"), path


def run_synthetic(folder, *more):
    sizes = ["--dim", "10", "--steps", "300", "--seeds", "2", "--learning-rate", "0.01"]
    synthetic.main([*sizes, "--output", str(folder), *more])


def test_synthetic_end_to_end(tmp_path, capsys):
    methods = ["radazo", "zo_adamm", "zo_adamm_matched"]
    run_synthetic(tmp_path, "--functions", "quadratic", "--methods", ",".join(methods))
    printed = capsys.readouterr().out
    for method in methods:
        assert METHODS[method].label in printed
    assert "mostly comparing" in printed
    assert (tmp_path / "synthetic.png").stat().st_size > 10_000

    lines = lines_of(tmp_path / "synthetic.jsonl")
    assert len(lines) == len(methods)
    for line in lines:
        assert set(line) == FIELDS
        assert set(line["versions"]) == {"radazo", "jax", "optax", "python"}
        assert line["seeds"] == [456, 457]
    by_method = {line["settings"]["method"]: line["numbers"] for line in lines}
    assert list(by_method) == methods
    starts = {tuple(numbers["value_at_start"]) for numbers in by_method.values()}
    assert len(starts) == 1, "every method starts from the same points"
    for method, numbers in by_method.items():
        assert max(numbers["value_at_end"]) < min(numbers["value_at_start"]), method
    numbers = by_method["radazo"]
    assert numbers["function_values_to_tenth"] == [
        11 * steps for steps in numbers["steps_to_tenth"]
    ]


def test_divergence_is_shown(tmp_path, capsys):
    only = ("--functions", "rosenbrock", "--methods", "zo_sgd")
    run_synthetic(tmp_path, *only, "--dtype", "float32")
    assert "diverged" in capsys.readouterr().out
    assert (tmp_path / "synthetic.png").exists()
    (line,) = lines_of(tmp_path / "synthetic.jsonl")
    for start, end in zip(
        line["numbers"]["value_at_start"], line["numbers"]["value_at_end"], strict=True
    ):
        assert end is None or end > start


def test_synthetic_keeps_what_was_finished_when_interrupted(
    tmp_path, capsys, monkeypatch
):
    run_function = synthetic.run_function

    def interrupted(name, args, bar):
        if name == "cubic":
            raise KeyboardInterrupt
        return run_function(name, args, bar)

    monkeypatch.setattr(synthetic, "run_function", interrupted)
    run_synthetic(
        tmp_path, "--methods", "zo_signsgd", "--functions", "quadratic,cubic,levy"
    )
    printed = capsys.readouterr().out
    assert "Interrupted" in printed
    assert "quadratic: d = 10" in printed
    assert "cubic: d" not in printed
    assert (tmp_path / "synthetic.png").exists()
    assert len(lines_of(tmp_path / "synthetic.jsonl")) == 1


def test_curves_in_float64_and_float32_start_alike(tmp_path):
    starts = []
    for dtype in ("float64", "float32"):
        one = ("--methods", "zo_rmsprop", "--functions", "cubic", "--dtype", dtype)
        run_synthetic(tmp_path / dtype, *one, "--steps", "3")
        (line,) = lines_of(tmp_path / dtype / "synthetic.jsonl")
        starts.append(line["numbers"]["value_at_start"])
    assert all(math.isfinite(x) for start in starts for x in start)
    assert any(x != float(np.float32(x)) for x in starts[0])
    assert all(x == float(np.float32(x)) for x in starts[1])


def test_steps_to_a_tenth():
    values = np.array([[10.0, 5.0, 1.0, 0.5], [10.0, 9.0, np.nan, 2.0]])
    assert synthetic.reached(values).tolist() == [2, np.inf]
    assert synthetic.spread(np.array([[1.0, 0.5], [1.0, 0.25]])) == "0.375 (0.25 – 0.5)"
    assert synthetic.spread(np.array([[1.0, np.nan], [1.0, 3.0]])) == "diverged"


def test_matched_rate():
    assert math.isclose(MATCHED, 4.3588989, rel_tol=1e-7)
    assert METHODS["zo_adamm_matched"].factor == MATCHED


@pytest.mark.parametrize("command", ["synthetic", "attack"])
def test_help_of_each_command(command, capsys):
    with pytest.raises(SystemExit) as ended:
        __main__.main([command, "--help"])
    assert ended.value.code == 0
    assert f"python -m benchmarks {command}" in capsys.readouterr().out


def test_help_lists_the_commands(capsys):
    with pytest.raises(SystemExit):
        __main__.main(["--help"])
    printed = capsys.readouterr().out
    assert all(command in printed for command in ("synthetic", "attack", "speed"))
    with pytest.raises(SystemExit):
        synthetic.main(["--functions", "sphere"])
    assert "'sphere' is none of quadratic" in capsys.readouterr().err
