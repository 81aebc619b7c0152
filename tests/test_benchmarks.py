"""The benchmarks at toy sizes, and the problems against NumPy."""

import json
import math
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import __main__, attack, records
from benchmarks.methods import MATCHED, METHODS
from benchmarks.problems import attack as attack_problem
from benchmarks.problems import digits, mnist, victims
from benchmarks.problems.synthetic import PROBLEMS, sin_squared

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("RADAZO_DATA_DIR") or ROOT.parent / "shared" / "data")
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


def test_margin_is_negative_where_the_target_wins():
    log_probs = jnp.log(jnp.array([0.1, 0.7, 0.2]))
    margin = jax.vmap(attack_problem.margin, in_axes=(None, 0))
    found = margin(log_probs, jnp.arange(3))
    expected = np.log([0.7 / 0.1, 0.2 / 0.7, 0.7 / 0.2])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_attacked_image_stays_in_both_boxes():
    theta, image = jnp.array([5.0, -5.0, 0.1, 0.1]), jnp.array([0.5, 0.5, 0.95, 0.2])
    found = attack_problem.attacked(theta, image, 0.3)
    np.testing.assert_allclose(found, [0.8, 0.2, 1.0, 0.3], rtol=1e-6)


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    """One attack on three digits, with its lines and what it ended with."""
    folder = tmp_path_factory.mktemp("attack")
    kept = {}
    draw = attack.draw

    def keep(victim, outcomes, args, path):
        kept.update(victim=victim, outcomes=outcomes, args=args)
        draw(victim, outcomes, args, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attack, "draw", keep)
        patch.setattr(digits, "EPOCHS", 10)
        attack.main(["--images", "0,1,2", "--steps", "3000", "--output", str(folder)])
    return folder, kept


def test_attack_end_to_end(digits_run):
    folder, kept = digits_run
    assert kept["victim"].accuracy > 0.8
    assert (folder / "attack_digits.png").stat().st_size > 10_000
    lines = lines_of(folder / "attack.jsonl")
    assert [x["settings"]["method"] for x in lines] == ["radazo", "zo_adamm"]
    for line in lines:
        assert set(line) == FIELDS
        numbers = line["numbers"]
        assert numbers["successes"] == 3
        assert numbers["function_values"] == [3 * t + 1 for t in numbers["steps"]]
        assert all(0 < t < 3000 for t in numbers["steps"])


def test_attacked_images_are_what_was_asked_for(digits_run):
    victim, args = digits_run[1]["victim"], digits_run[1]["args"]
    for outcome in digits_run[1]["outcomes"].values():
        for image, theta, target in zip(
            victim.images, outcome.thetas, victim.targets, strict=True
        ):
            result = attack_problem.attacked(theta, image, args.bound)
            assert victim.log_probs(victim.weights, result).argmax() == target
            assert float(jnp.abs(result - image).max()) <= args.bound + 1e-6
            assert 0 <= float(result.min()) <= float(result.max()) <= 1


def test_attack_prints_both_rules(digits_run, capsys):
    kept = digits_run[1]
    records.console().print(attack.table(kept["victim"], kept["outcomes"]))
    printed = capsys.readouterr().out
    for word in ("radazo", "zo_adamm", "median", "successes", "3 of 3", "0 → 1"):
        assert word in printed, word


def test_attack_without_success_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(digits, "EPOCHS", 5)
    options = ["--steps", "2", "--start", "zeros", "--methods", "radazo"]
    attack.main([*options, "--images", "0", "--output", str(tmp_path)])
    assert "not yet" in capsys.readouterr().out
    (line,) = lines_of(tmp_path / "attack.jsonl")
    assert line["numbers"]["steps"] == [None]
    assert line["numbers"]["successes"] == 0


def test_missing_data_are_named(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit, match=r"train-images-idx3-ubyte\.gz.*https://"):
        attack.main(["--dataset", "mnist", "--data-dir", str(tmp_path)])
    monkeypatch.delenv("RADAZO_DATA_DIR", raising=False)
    with pytest.raises(SystemExit):
        attack.main(["--dataset", "mnist"])
    assert "--data-dir or RADAZO_DATA_DIR" in capsys.readouterr().err


@pytest.mark.skipif(
    not (DATA / "mnist" / mnist.WEIGHTS).exists(),
    reason="MNIST is not there: set RADAZO_DATA_DIR to the folder that holds mnist/",
)
def test_mnist_victim():
    data = mnist.load(DATA / "mnist")
    assert data.train_images.shape == (60_000, 28, 28)
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert np.bincount(data.test_labels).tolist() == counts
    assert data.test_labels[1] == 2
    weights = mnist.load_weights(DATA / "mnist" / mnist.WEIGHTS)
    first = slice(500)
    images, labels = data.test_images[first], data.test_labels[first]
    # 98.88 % of all; 500 of them have a standard error of 0.5 %.
    assert victims.accuracy(mnist.log_probs, weights, images, labels) > 0.97


def test_mnist_network_learns_one_batch():
    images = np.random.default_rng(0).integers(0, 256, (10, 28, 28), dtype=np.uint8)
    labels = np.arange(10, dtype=np.int32)
    steps = victims.train(
        mnist.log_probs,
        mnist.init(jax.random.key(0)),
        images,
        labels,
        epochs=12,
        batch_size=10,
        learning_rate=1e-4,
    )
    losses = [loss for _, loss in steps]
    assert len(losses) == victims.num_batches(10, 12, 10) == 12
    assert losses[-1] < losses[0] / 2


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
