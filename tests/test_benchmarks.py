"""The benchmarks at toy sizes, and the problems against NumPy."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import __main__, records
from benchmarks.methods import MATCHED, METHODS
from benchmarks.problems.synthetic import PROBLEMS, sin_squared

ROOT = Path(__file__).parents[1]


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


@pytest.mark.fast_cases(2)
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


def test_lines_are_found_again(tmp_path):
    path, settings = tmp_path / "a.jsonl", {"dim": 3, "arms": ("x",), "rate": 0.1}
    assert records.read(path) == []
    written = [records.append(path, "a", [1, 2], settings, {"f": x}) for x in (1, 2)]
    lines = records.read(path)
    assert lines == written
    assert records.find(lines, [1, 2], settings) == lines[1]
    assert records.find(lines, [1], settings) is None
    assert records.find(lines, [1, 2], settings | {"dim": 4}) is None
    older = lines[1] | {"versions": lines[1]["versions"] | {"jax": "0.0"}}
    assert records.find([older], [1, 2], settings) is None


def test_a_line_that_was_cut_off_is_left_out(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    whole = records.append(path, "a", [1], {}, {"f": 1})
    with path.open("a", encoding="utf-8") as file:
        file.write('{"command": "a", "see')
    assert records.read(path) == [whole]
    assert "an incomplete line" in capsys.readouterr().out
    later = records.append(path, "a", [2], {}, {"f": 2})
    assert records.read(path) == [whole, later]
    assert records.newest([whole, later, whole]) == [whole, later]


def test_curves_are_rounded_to_four_digits():
    found = records.rounded([[12345.6, 1.23456e-9], [np.inf, 0.0]])
    assert found.tolist() == [[12350.0, 1.235e-9], [math.inf, 0.0]]


def test_problems_do_not_know_radazo():
    for path in (ROOT / "benchmarks" / "problems").glob("*.py"):
        assert "import radazo" not in path.read_text(encoding="utf-8"), path
        assert "from radazo" not in path.read_text(encoding="utf-8"), path


def test_matched_rate():
    assert math.isclose(MATCHED, 4.3588989, rel_tol=1e-7)
    assert METHODS["zo_adamm_matched"].factor == MATCHED


@pytest.mark.parametrize("command", list(__main__.COMMANDS))
def test_help_of_each_command(command, capsys):
    with pytest.raises(SystemExit) as ended:
        __main__.main([command, "--help"])
    assert ended.value.code == 0
    assert f"python -m benchmarks {command}" in capsys.readouterr().out


def test_help_lists_the_commands(capsys):
    with pytest.raises(SystemExit):
        __main__.main(["--help"])
    printed = capsys.readouterr().out
    assert all(command in printed for command in __main__.COMMANDS)


def test_a_command_names_the_extra_that_is_missing_but_hides_no_fault(
    monkeypatch, capsys
):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(
        __main__.importlib, "import_module", lambda _: missing("rich.x")
    )
    for command, extra in {"memory": "benchmarks", "finetune": "language"}.items():
        with pytest.raises(SystemExit):
            __main__.main([command])
        printed = capsys.readouterr().err
        assert f"'rich.x': run `pip install '.[{extra}]'`" in printed
    own = "benchmarks.absent"
    monkeypatch.setattr(__main__.importlib, "import_module", lambda _: missing(own))
    with pytest.raises(ModuleNotFoundError, match=own):
        __main__.main(["memory"])
