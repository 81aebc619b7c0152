"""The attack at toy sizes: its problem, its batches and its result lines."""

import argparse
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from tqdm import tqdm

import radazo
from benchmarks import attack, attack_report, attack_runs, checkpoints, records
from benchmarks.attack_methods import UNTUNED
from benchmarks.methods import METHODS
from benchmarks.problems import attack as problem
from benchmarks.problems import digits, mnist, victims
from benchmarks.victim import victim_of

pytestmark = pytest.mark.gate

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("RADAZO_DATA_DIR") or ROOT.parent / "shared" / "data")
PROTOCOL = attack_runs.Protocol(0.3, "normal", 3000, 2, 0.5)


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def victim():
    """A small network on the digits, and the cheapest one to attack."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digits, "EPOCHS", 10)
        return victim_of(argparse.Namespace(dataset="digits"))


@pytest.fixture
def quick(victim, monkeypatch):
    """The command with the victim that is trained already, in calls of 20 steps."""
    monkeypatch.setattr(attack, "victim_of", lambda args: victim)
    monkeypatch.setattr(attack_runs, "STEPS_PER_CALL", 20)


@pytest.fixture(scope="module")
def program(victim):
    return attack_runs.program(victim, METHODS["radazo"], PROTOCOL)


@pytest.fixture(scope="module")
def rows(victim):
    """Three images with two seeds each."""
    return attack_runs.plan(victim, victim.right[:3], [5, 6], [0.01])[0]


def run(program, rows, *, compact=True, **options):
    with tqdm(disable=True) as bar:
        return attack_runs.run(program, rows, bar, compact=compact, **options)


def assert_same(found, expected):
    """Bit for bit: the same programs on the same batches."""
    for name in ("steps", "num_values", "thetas", "values", "curve_at", "curve"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_margin_is_negative_where_the_target_wins():
    log_probs = jnp.log(jnp.array([0.1, 0.7, 0.2]))
    margin = jax.vmap(problem.margin, in_axes=(None, 0))
    found = margin(log_probs, jnp.arange(3))
    expected = np.log([0.7 / 0.1, 0.2 / 0.7, 0.7 / 0.2])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_attacked_image_stays_in_both_boxes():
    theta, image = jnp.array([5.0, -5.0, 0.1, 0.1]), jnp.array([0.5, 0.5, 0.95, 0.2])
    found = problem.attacked(theta, image, 0.3)
    np.testing.assert_allclose(found, [0.8, 0.2, 1.0, 0.3], rtol=1e-6)


def test_plan_has_a_row_for_each_rate_image_and_seed(victim):
    rows, shape = attack_runs.plan(victim, [3, 1], [7, 8], [0.1, 0.2])
    assert shape == (2, 2, 2)
    np.testing.assert_allclose(rows.rates, [0.1] * 4 + [0.2] * 4, rtol=1e-6)
    assert rows.indices.tolist() == [3, 3, 1, 1] * 2
    assert rows.seeds.tolist() == [7, 8] * 4
    assert rows.targets.tolist() == ((victim.labels[rows.indices] + 1) % 10).tolist()
    np.testing.assert_array_equal(rows.images, victim.pixels(rows.indices))


def test_batch_holds_the_unfinished_runs_and_few_more():
    done = np.zeros(63, bool)
    assert attack_runs.batch_of(done, True).tolist() == list(range(63))
    done[:] = True
    done[[3, 10, 20, 40, 41]] = False
    assert attack_runs.batch_of(done, True).tolist() == [3, 10, 20, 40, 41, 3]
    assert attack_runs.batch_of(done, False).tolist() == list(range(63))
    assert len(attack_runs.batch_of(np.zeros(500, bool), True)) == 500


@pytest.mark.optimized
def test_a_run_in_a_batch_is_that_run_alone(program, rows, monkeypatch):
    monkeypatch.setattr(attack_runs, "STEPS_PER_CALL", 20)
    batch, kept = run(program, rows), run(program, rows, compact=False)
    assert set(program.compile_seconds) > {6, 1}, "the batch has become smaller"
    assert np.all(np.isfinite(batch.steps))
    assert len({*batch.steps}) == 6, "runs differ in image or start"
    np.testing.assert_array_equal(batch.num_values, 3 * batch.steps + 1)
    np.testing.assert_array_equal(batch.steps, kept.steps)
    np.testing.assert_allclose(batch.thetas, kept.thetas, atol=1e-4)
    for i in range(6):
        alone = run(program, jax.tree.map(lambda x, i=i: x[i : i + 1], rows))
        assert alone.steps == batch.steps[i]
        np.testing.assert_allclose(alone.thetas[0], batch.thetas[i], atol=1e-4)
        np.testing.assert_allclose(alone.values[0], batch.values[i], atol=1e-4)


def test_what_a_run_ends_with_is_below_zero(program, rows, victim):
    outcome = run(program, rows)
    value_fn = problem.objective(victim.log_probs, PROTOCOL.bound)
    for i, theta in enumerate(outcome.thetas):
        found = value_fn(
            theta,
            weights=victim.weights,
            image=rows.images[i],
            target=rows.targets[i],
        )
        np.testing.assert_allclose(found, outcome.values[i], atol=1e-5)
        assert found < 0
    assert outcome.curve.shape == (len(outcome.curve_at), 6)
    np.testing.assert_array_equal(outcome.curve[-1], outcome.values)
    assert outcome.curve_at[0] == 3 * (attack_runs.STEPS_PER_CALL - 1) + 1


def test_an_interrupted_batch_goes_on_as_if_it_had_not_been(
    program, rows, tmp_path, monkeypatch
):
    monkeypatch.setattr(attack_runs, "STEPS_PER_CALL", 20)
    monkeypatch.setattr(checkpoints, "SECONDS", 0.0)
    calls, expected = [], run(program, rows)

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return program.advance(*args)

    kept = checkpoints.Checkpoint(tmp_path, "a", "this")
    with pytest.raises(KeyboardInterrupt):
        run(program._replace(advance=interrupted), rows, checkpoint=kept)
    assert list(tmp_path.iterdir()) == [kept.path]
    calls += [None] * 10
    before, again = len(calls), program._replace(advance=interrupted)
    assert_same(run(again, rows, checkpoint=kept), expected)
    assert len(calls) - before == len(expected.curve) - 3


def test_a_search_counts_the_values_up_to_the_first_below_zero(victim):
    indices, method = victim.right[:3], UNTUNED["sign_search"]
    rows, _ = attack_runs.plan(victim, indices, [5], [0.0])
    protocol = PROTOCOL._replace(start="zeros")
    program = attack_runs.program(victim, method, protocol)
    outcome = run(program, rows)
    objective = problem.objective(victim.log_probs, PROTOCOL.bound)
    for i, image in enumerate(victim.pixels(indices)):
        inputs = {"weights": victim.weights, "image": image, "target": rows.targets[i]}
        alone = radazo.minimize(
            lambda theta, inputs=inputs: objective(theta, **inputs),
            jnp.zeros(image.shape),
            radazo.sign_search(-PROTOCOL.bound, PROTOCOL.bound),
            protocol.steps,
            stop=lambda value, theta: value < 0,
        )
        # It ends with the next evaluation, when the value is that of its parameters.
        assert outcome.num_values[i] == outcome.steps[i] == alone.num_values[-1] - 1
        np.testing.assert_array_equal(outcome.thetas[i], alone.params)
        np.testing.assert_allclose(outcome.values[i], alone.values[-1], rtol=1e-4)
    assert np.all(outcome.values < 0)
    assert outcome.curve_at[0] == attack_runs.STEPS_PER_CALL - 1


def test_throughput_does_not_stop_early(program, rows):
    with tqdm(disable=True) as bar:
        found = attack_runs.throughput(program, rows, [1, 4, 6], 30, bar)
    assert np.shape(found) == (2, attack_runs.ROUNDS, 3)
    assert np.min(found) > 0
    runs = program.advance(program.start(rows), rows, 700, -np.inf)
    assert runs.state.count.tolist() == [700] * 6


def test_attack_end_to_end(quick, tmp_path, capsys):
    methods = "radazo,zo_adamm_matched"
    options = ["--num-images", "3", "--seeds", "2", "--methods", methods]
    options += ["--throughput", "20", "--output", str(tmp_path)]
    attack.main(options)
    printed = capsys.readouterr().out
    for word in ("radazo", "(matched)", "6 of 6", "3 of 3", "one by one", "mostly"):
        assert word in printed, word
    lines = lines_of(tmp_path / "attack.jsonl")
    arms = [(x["settings"]["arm"], x["settings"]["method"]) for x in lines]
    assert arms == [
        ("shared", "radazo"),
        ("shared", "zo_adamm_matched"),
        ("throughput", "radazo"),
        ("untuned", "sign_search"),
    ]
    for line in lines[:2]:
        steps = np.array(line["numbers"]["steps"])
        assert steps.shape == (3, 2)
        assert np.all((steps > 0) & (steps < 3000))
        values = np.array(line["numbers"]["function_values"])
        np.testing.assert_array_equal(values, 3 * steps + 1)
        assert np.max(line["numbers"]["value_at_end"]) < 0
        assert line["seeds"] == [456, 457]
    rates = [line["numbers"]["rate"] for line in lines[:2]]
    np.testing.assert_allclose(rates, [0.01, 0.01 * np.sqrt(19)])
    assert lines[2]["settings"]["sizes"] == [1, 3, 6]
    settings, numbers = lines[3]["settings"], lines[3]["numbers"]
    assert (settings["start"], settings["max_values"]) == ("zeros", 60_000)
    assert not {"smoothing", "num_directions", "learning_rate"} & {*settings}
    assert lines[3]["seeds"] == [456], "its runs do not depend on a seed"
    assert np.shape(numbers["function_values"]) == (3, 1)
    assert np.max(numbers["value_at_end"]) < 0
    for name in ("attack_digits.png", "attack_digits_shared_radazo.png"):
        assert (tmp_path / name).stat().st_size > 10_000
    assert not list(tmp_path.glob("*.npz"))

    attack.main(options)
    assert capsys.readouterr().out.count("finished before") == 4
    assert lines_of(tmp_path / "attack.jsonl") == lines


def test_tuning_sees_no_reported_image_and_no_reported_seed(quick, tmp_path, victim):
    options = ["--images", "0,1,2", "--seeds", "2", "--methods", "radazo"]
    options += ["--tuned", "radazo", "--rates", "0.0001,0.02,0.05", "--untuned", ""]
    attack.main([*options, "--tuning-images", "3", "--output", str(tmp_path)])
    shared, tuning, tuned = lines_of(tmp_path / "attack.jsonl")
    arms = [x["settings"]["arm"] for x in (shared, tuning, tuned)]
    assert arms == ["shared", "tuning", "tuned"]
    assert not {*tuning["settings"]["images"]} & {*tuned["settings"]["images"]}
    assert {*tuning["settings"]["images"]} < {*victim.right.tolist()}
    assert not {*tuning["seeds"]} & {*tuned["seeds"]}
    assert tuned["settings"]["tuning_seed"] == tuning["seeds"][0]
    assert tuned["settings"]["tuning_images"] == tuning["settings"]["images"]
    assert tuned["settings"]["images"] == shared["settings"]["images"] == [0, 1, 2]
    counts = np.array(tuning["numbers"]["function_values"], float)
    best = np.median(np.nan_to_num(counts, nan=np.inf), axis=1).argmin()
    assert tuned["numbers"]["rate"] == tuning["settings"]["rates"][best] > 0.0001
    assert tuning["numbers"]["rate"] == tuned["numbers"]["rate"]
    assert not {"rate", "tuned_rate"} & {*tuned["settings"]}, "an outcome"


def test_attack_without_success_says_so(quick, tmp_path, capsys):
    options = ["--steps", "2", "--start", "zeros", "--methods", "radazo"]
    options += ["--untuned", ""]
    attack.main([*options, "--images", "0", "--output", str(tmp_path)])
    assert "0 of 1" in capsys.readouterr().out
    (line,) = lines_of(tmp_path / "attack.jsonl")
    assert line["numbers"]["steps"] == [[None]]
    assert attack_report.to_success(line, "steps").tolist() == [np.inf]
    assert "∞" in attack_report.markdown([line])


def test_attack_prints_what_was_finished_when_interrupted(
    quick, tmp_path, capsys, monkeypatch
):
    attack_shared = attack.attack_shared

    def interrupted(work, method):
        if method == "zo_adamm":
            raise KeyboardInterrupt
        return attack_shared(work, method)

    monkeypatch.setattr(attack, "attack_shared", interrupted)
    attack.main(["--num-images", "2", "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "Interrupted" in printed
    assert "2 of 2" in printed
    assert len(lines_of(tmp_path / "attack.jsonl")) == 1


def test_images_that_are_wrong_or_missing_are_named(quick, victim, tmp_path, capsys):
    wrong = np.setdiff1d(np.arange(len(victim.labels)), victim.right)[0]
    with pytest.raises(SystemExit, match="no image is left"):
        attack.main(["--images", str(wrong), "--output", str(tmp_path)])
    assert f"Image {wrong} is left out" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="test images are 0 to 499"):
        attack.main(["--images", "500", "--output", str(tmp_path)])


def test_full_is_the_table_of_the_paper():
    args = attack.arguments(["--full", "--data-dir", "x", "--seeds", "2"])
    assert (args.dataset, args.num_images, args.seeds) == ("mnist", 21, 2)
    rules = ["radazo", "zo_adamm", "zo_adamm_matched", "zo_rmsprop"]
    assert args.methods == rules
    assert args.tuned == ["radazo", "zo_adamm", "zo_sgd"]
    assert args.untuned == ["sign_search"]
    assert (args.bound, args.num_directions, args.smoothing) == (0.2, 2, 0.5)
    assert (args.learning_rate, args.steps, args.start) == (0.01, 20000, "normal")


def test_missing_data_are_named(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit, match=r"train-images-idx3-ubyte\.gz.*https://"):
        attack.main(["--dataset", "mnist", "--data-dir", str(tmp_path)])
    monkeypatch.delenv("RADAZO_DATA_DIR", raising=False)
    with pytest.raises(SystemExit):
        attack.main(["--dataset", "mnist"])
    assert "--data-dir or RADAZO_DATA_DIR" in capsys.readouterr().err


def channels_first(weights, image):
    """The network in the layout of its weights: the reference."""
    x = ((image - 0.1307) / 0.3081)[None, None]
    for name in ("conv1", "conv2"):
        x = lax.conv_general_dilated(x, weights[f"{name}.weight"], (1, 1), "VALID")
        x = jax.nn.relu(x + weights[f"{name}.bias"][None, :, None, None])
    x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
    x = jax.nn.relu(weights["fc1.weight"] @ jnp.ravel(x) + weights["fc1.bias"])
    return jax.nn.log_softmax(weights["fc2.weight"] @ x + weights["fc2.bias"])


def test_mnist_network_is_that_of_its_weights():
    keys = iter(jax.random.split(jax.random.key(1), 5))
    weights = mnist.init(next(keys))
    for name in [name for name in weights if name.endswith("bias")]:
        weights[name] = 0.1 * jax.random.normal(next(keys), weights[name].shape)
    images = jax.random.uniform(jax.random.key(2), (3, 28, 28))
    found = jax.vmap(mnist.log_probs, (None, 0))(weights, images)
    expected = jax.vmap(channels_first, (None, 0))(weights, images)
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6)


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


def test_identity_says_what_is_compared():
    same = records.identity([1], {"a": np.float32(0.5), "b": np.arange(2)})
    assert same == records.identity([1], {"a": 0.5, "b": [0, 1]})
    assert same != records.identity([2], {"a": 0.5, "b": [0, 1]})
    assert same != records.identity([1], {"a": 0.5})
