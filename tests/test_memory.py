"""Steps in place take hardly more memory than the function itself."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import as_a_user, raises

import radazo
from benchmarks import memory, records
from benchmarks.language import opt

pytestmark = [pytest.mark.gate, pytest.mark.usefixtures("of_users")]
ROOT = Path(__file__).parent.parent
SMALL = memory.Work(opt.SHAPES["small"], jnp.float32, 2, 64)
TINY = opt.Config(
    vocab_size=50,
    hidden_size=16,
    num_hidden_layers=2,
    ffn_dim=24,
    num_attention_heads=2,
    max_position_embeddings=12,
)


@pytest.fixture(scope="module")
def inference():
    with as_a_user():
        return memory.measured(SMALL, "inference")["total"]


@pytest.mark.parametrize("mode", memory.LIMITS)
def test_a_mode_takes_no_more_than_its_limit(mode, inference):
    found = memory.measured(SMALL, mode)
    assert inference < found["total"] <= memory.LIMITS[mode] * inference


def test_inference_is_counted_as_its_parameters_and_little_more(inference):
    size = 4 * sum(x.size for x in jax.tree.leaves(SMALL.params))
    assert size < inference < 1.1 * size
    assert memory.settings(SMALL, "small", "inference")["parameters"] * 4 == size


def test_a_copy_shows_where_one_is_made():
    work = memory.Work(TINY, jnp.float32, 2, 8)
    size = 4 * sum(x.size for x in jax.tree.leaves(work.params))
    extra = {
        mode: memory.measured(work, mode)["temporaries"]
        - memory.measured(work, "inference")["temporaries"]
        for mode in ("evaluation", "evaluation of a copy", "ZO-SGD, held gradient")
    }
    assert extra["evaluation"] < 0.5 * size < 0.9 * size < extra["evaluation of a copy"]
    assert extra["ZO-SGD, held gradient"] > 0.9 * size


@pytest.mark.parametrize(
    "mode", [mode for mode in memory.MODES if mode not in memory.LIMITS]
)
def test_each_mode_is_a_step_that_runs(mode):
    work = memory.Work(TINY, jnp.bfloat16, 2, 8)
    step, init = memory.MODES[mode](work)
    state = jax.eval_shape(init, work.params)
    shapes = jax.eval_shape(step, work.params, state, work.ids)
    if not memory.moves(mode):
        assert (shapes.shape, shapes.dtype) == ((), jnp.float32)
    else:
        same = jax.tree.map(
            lambda x, y: x.shape == y.shape, shapes, (work.params, state)
        )
        assert all(jax.tree.leaves(same))


def test_the_numbers_of_the_readme_are_those_of_the_committed_lines():
    lines = records.read(ROOT / "benchmarks" / "results" / "memory.jsonl")
    totals = {
        line["settings"]["mode"]: line["numbers"]["total"]
        for line in lines
        if line["settings"]["model"] == "small"
    }
    share = {mode: total / totals["inference"] for mode, total in totals.items()}
    seconds = {
        line["settings"]["mode"]: line["numbers"]["seconds_per_step"]
        for line in lines
        if line["settings"]["model"] == "small"
    }
    slow = seconds["R-AdaZO, rebuilt momentum, factored"] / seconds["R-AdaZO"]
    assert slow > 8  # The price of drawing the momentum again.
    assert share["ZO-SGD"] == pytest.approx(1.01, abs=0.005)
    assert share["R-AdaZO, rebuilt momentum, factored"] == pytest.approx(
        1.01, abs=0.005
    )
    text = (ROOT / "README.md").read_text("utf-8")
    for mode, shown in (
        ("ZO-SGD", "{:.2f} times that of inference with in-place `zo_sgd`"),
        ("R-AdaZO", ", {:.2f} times with R-AdaZO"),
        ("Adam, backpropagation", "Adam with backpropagation {:.2f} times"),
    ):
        assert shown.format(share[mode]) in text


def test_a_direction_drawn_as_a_whole_is_refused_where_it_is_too_large():
    large = dataclasses.replace(SMALL, config=opt.SHAPES["opt-13b"])
    small = dataclasses.replace(SMALL, config=opt.SHAPES["opt-1.3b"])
    assert memory.is_too_large(large, "ZO-SGD, held gradient")
    assert not memory.is_too_large(large, "R-AdaZO")
    assert not memory.is_too_large(small, "ZO-SGD, held gradient")


def test_the_command_writes_a_line_and_a_row_for_each_mode(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(opt.SHAPES, "small", TINY)
    call = "--modes inference evaluation --length 8 --batch-size 3 --dtype bfloat16"
    call += " --repeats 2"
    memory.main([*call.split(), "--output", str(tmp_path)])
    lines = records.read(tmp_path / "memory.jsonl")
    assert [line["settings"]["mode"] for line in lines] == ["inference", "evaluation"]
    for line in lines:
        assert line["settings"]["dtype"] == "bfloat16"
        assert line["settings"]["batch_size"] == 3
        parts = dict(line["numbers"])
        assert parts.pop("seconds_per_step") > 0
        total = parts.pop("total")
        assert total == sum(parts.values()) > 0
    text = capsys.readouterr().out
    assert "inference" in text
    assert "1.000" in text
    report = memory.markdown(lines)
    assert "parameters, bfloat16, 3 x 8 tokens" in report
    ratio = lines[1]["numbers"]["total"] / lines[0]["numbers"]["total"]
    assert f"| evaluation | 0.000 | {ratio:.3f} |" in report


@functools.cache
def compiled(work):
    return jax.jit(work.value)


@pytest.mark.parametrize(
    "sampler",
    [
        radazo.directions.gaussian,
        radazo.directions.sphere,
        radazo.directions.rademacher,
        radazo.directions.hadamard,
    ],
    ids=["gaussian", "sphere", "rademacher", "hadamard"],
)
def test_values_along_a_direction_are_those_of_the_moved_point(sampler):
    params = opt.random(TINY, jax.random.key(0))
    ids = jnp.array([[1, 1, 5, 6, 7], [3, 4, 5, 6, 8]])
    work = memory.Work(TINY, jnp.float32, 2, 5)
    direction = radazo.directions.sample_directions(
        4, params, sampler, num_directions=1
    )
    moved = jax.tree.map(lambda x, u: x + jnp.float32(0.02) * u[0], params, direction)
    value = jax.jit(radazo.evaluate.perturbed_value_fn(work.value, sampler))(
        4, params, 0.02, ids
    )
    plain = compiled(work)
    expected, before = plain(moved, ids), plain(params, ids)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert abs(value - before) > 1e-5


def test_what_cannot_be_perturbed_in_parts_is_refused():
    with raises(TypeError, "perturbed_value_fn(value_fn", "be a function", "3"):
        radazo.evaluate.perturbed_value_fn(3)
    with raises(TypeError, "perturbed_value_fn(sampler", "a DirectionSampler", "3"):
        radazo.evaluate.perturbed_value_fn(jnp.sum, 3)
    with raises(ValueError, "perturbed_value_fn(sampler", "a `part`", "as a whole"):
        radazo.evaluate.perturbed_value_fn(jnp.sum, radazo.directions.coordinate)
