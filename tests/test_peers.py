"""radazo against its rivals at toy sizes; a rival that is not installed is skipped."""

import json
import math
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

from benchmarks import peers, records, rivals
from benchmarks.problems.synthetic import PROBLEMS
from benchmarks.problems.twins import TWINS, Twin
from benchmarks.rivals import METHODS, PACKAGES, report
from benchmarks.rivals.trace import NUM_RECORDS, Recorder, chunks

pytestmark = pytest.mark.gate

LARGEST_GENERATION = 50
SIZES = ["--dims", "10", "--budget", "550", "--trials", "3", "--seeds", "2"]
OWN = [name for name in METHODS if METHODS[name].package == "radazo"]


@pytest.fixture
def lenient():
    """JAX as other packages expect it."""
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.debug_key_reuse(False),
    ):
        yield


def module_of(name):
    module = rivals.load(METHODS[name].package)
    if isinstance(module, str):
        pytest.skip(module)
    return module


def knob_of(name, dim):
    factor, power = METHODS[name].center
    return factor * dim**power


def run_peers(folder, *more):
    peers.main([*SIZES, "--functions", "quadratic", "--output", str(folder), *more])


def lines_of(folder):
    text = (folder / "peers.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("name", PROBLEMS)
def test_twins_in_numpy_are_the_same_functions(name, x64):
    x = np.random.default_rng(0).normal(0, 2, (20, 11))
    expected = jax.vmap(PROBLEMS[name].value_fn)(jnp.array(x))
    found = TWINS[name].array_fn(np, x)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(TWINS[name].array_fn(np, x[0]), expected[0], rtol=1e-12)
    assert TWINS[name].value_fn is PROBLEMS[name].value_fn


@pytest.mark.parametrize("name", PROBLEMS)
def test_twins_in_pytorch_are_the_same_functions(name):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(0, 2, (20, 11))
    found = TWINS[name].array_fn(torch, torch.tensor(x)).numpy()
    np.testing.assert_allclose(found, TWINS[name].array_fn(np, x), rtol=1e-12)


def counting(problem, counted):
    """The problem, every evaluation of which is noted in the list `counted`."""

    def value_fn(x):
        io_callback(lambda _: counted.append(1), None, x)
        return problem.value_fn(x)

    def array_fn(library, x):
        counted.extend([1] * math.prod(x.shape[:-1]))
        return problem.array_fn(library, x)

    return Twin(value_fn, array_fn)


@pytest.mark.parametrize("name", METHODS)
def test_each_method_takes_its_budget_and_improves(name, lenient):
    counted, budget = [], 1100
    problem = counting(TWINS["quadratic"], counted)
    start = np.random.default_rng(3).standard_normal(10).astype(np.float32)
    before = start.copy()
    run, algorithm = module_of(name).run, METHODS[name].algorithm
    trace = run(algorithm, problem, start, 3, knob_of(name, 10), budget)
    jax.effects_barrier()
    # What is evaluated for the record comes on top: the start and each record after it.
    assert len(counted) == trace.points[-1] + len(trace.points)
    assert budget - LARGEST_GENERATION < trace.points[-1] <= budget
    assert trace.points[0] == 0
    assert np.all(np.diff(trace.points) > 0)
    assert 20 < len(trace.points) < 2 * NUM_RECORDS
    assert trace.best[0] == trace.current[0] == pytest.approx(start @ start / 2)
    assert trace.best[-1] < trace.best[0]
    assert trace.current[-1] < trace.current[0]
    assert np.all(np.diff(trace.best) <= 0)
    assert np.all(trace.best <= trace.current)
    assert trace.seconds > 0
    np.testing.assert_array_equal(start, before)


@pytest.mark.parametrize("name", METHODS)
def test_the_seed_fixes_a_run(name, lenient):
    run, algorithm = module_of(name).run, METHODS[name].algorithm
    start = np.random.default_rng(4).standard_normal(10).astype(np.float32)
    ends = [
        run(algorithm, TWINS["levy"], start, seed, knob_of(name, 10), 330).best[-1]
        for seed in (1, 1, 2)
    ]
    assert ends[0] == ends[1] != ends[2]


@pytest.mark.parametrize("name", OWN)
def test_radazo_starts_where_it_is_told_in_either_type(name, lenient):
    start = np.random.default_rng(5).standard_normal(10)
    for dtype in (np.float32, np.float64):
        run = module_of(name).run
        x = start.astype(dtype)
        trace = run(METHODS[name].algorithm, TWINS["ackley"], x, 1, 1e-3, 110)
        expected = TWINS["ackley"].array_fn(np, x.astype(float))
        rtol = 1e-5 if dtype == np.float32 else 1e-13
        np.testing.assert_allclose(trace.current[0], expected, rtol=rtol)


def test_recorder_counts_and_ignores_nan():
    recorder = Recorder(5.0, 400)
    for value in (math.nan, 3.0, math.inf, 4.0):
        recorder.step([value] * 100, lambda: 4.5)
    trace = recorder.finish(lambda: 2.0)
    assert trace.points.tolist() == [0, 100, 200, 300, 400]
    assert trace.best.tolist() == [5.0, 4.5, 3.0, 3.0, 3.0]
    assert trace.current.tolist() == [5.0, 4.5, 4.5, 4.5, 4.5]


def test_chunks_are_the_steps():
    assert sum(chunks(5000)) == 5000
    assert len(chunks(5000)) == NUM_RECORDS
    assert chunks(3) == [1, 1, 1]


@pytest.mark.parametrize("target", [-3.0, -1.5, -0.4, 0.0, 2.3])
def test_tuning_walks_to_the_lowest(target):
    tried = peers.tune(lambda knob: abs(math.log10(knob) - target), 1.0, 6)
    assert len(tried) == 6
    assert abs(math.log10(peers.lowest(tried)) - target) <= 0.5


def test_tuning_leaves_what_diverges():
    tried = peers.tune(lambda knob: math.nan if knob > 1e-2 else knob, 1.0, 6)
    assert peers.lowest(tried) <= 1e-2
    assert math.inf in tried.values()


@pytest.mark.parametrize("end", [5.0, 9.0, math.inf, math.nan])
def test_what_ends_above_its_start_has_not_improved(end):
    recorder = Recorder(5.0, 400)
    recorder.step([4.0] * 400, lambda: end)  # Perturbed points may be lower by a hair.
    assert peers.improved(recorder.finish(lambda: end)) == math.inf
    recorder.step([6.0], lambda: 4.5)
    assert peers.improved(recorder.finish(lambda: 4.5)) == 4.0


def test_what_ends_in_nan_is_judged_by_its_last_finite_point():
    recorder = Recorder(5.0, 400)
    recorder.step([2.0] * 200, lambda: 2.5)
    recorder.step([math.nan] * 200, lambda: math.nan)
    assert peers.improved(recorder.finish(lambda: math.nan)) == 2.0


def test_tuning_keeps_the_first_of_those_that_reach_zero():
    tried = peers.tune(lambda knob: 0.0, 3.0, 4)
    assert peers.lowest(tried) == 3.0


def test_end_to_end(tmp_path, capsys, lenient):
    run_peers(tmp_path, "--methods", "radazo")
    printed = capsys.readouterr().out
    assert "quadratic: d = 10, 550 function values, seeds 456, 457" in printed
    assert (tmp_path / "peers.png").stat().st_size > 10_000
    lines = lines_of(tmp_path)
    assert [line["settings"]["method"] for line in lines] == OWN
    for line in lines:
        assert rivals.label(line["settings"]["method"]) in printed
        assert line["command"] == "peers"
        assert line["seeds"] == [456, 457]
        numbers = line["numbers"]
        assert len(numbers["tuning"]) == 3
        knobs = dict(numbers["tuning"])
        reached = [value for value in knobs.values() if value is not None]
        assert knobs[numbers["tuned_knob"]] == min(reached)
        assert numbers["function_values"] == [550, 550]
        assert numbers["points"][-1] == 550
        assert [len(x) for x in numbers["best"]] == [len(numbers["points"])] * 2
        assert all(
            end < start
            for start, end in zip(
                numbers["value_at_start"], numbers["best_at_end"], strict=True
            )
        )
    starts = {tuple(line["numbers"]["value_at_start"]) for line in lines}
    assert len(starts) == 1, "every method starts from the same points"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux lets choose")
def test_a_comparison_keeps_to_one_core():
    before = os.sched_getaffinity(0)
    with peers.one_core():
        assert os.sched_getaffinity(0) == {min(before)}
    assert os.sched_getaffinity(0) == before


def test_what_is_finished_is_not_run_again(tmp_path, capsys, monkeypatch, lenient):
    run_peers(tmp_path, "--methods", "radazo_zo_sgd")
    (line,) = lines_of(tmp_path)
    monkeypatch.setattr(peers, "measured", None)
    run_peers(tmp_path, "--methods", "radazo_zo_sgd")
    assert lines_of(tmp_path) == [line]
    assert "radazo zo_sgd: found" in capsys.readouterr().out
    with pytest.raises(TypeError):  # Another budget is other work.
        run_peers(tmp_path, "--methods", "radazo_zo_sgd", "--budget", "440")


def test_a_missing_package_is_named_and_others_go_on(
    tmp_path, capsys, monkeypatch, lenient
):
    monkeypatch.setitem(sys.modules, "evosax", None)
    monkeypatch.delitem(sys.modules, "benchmarks.rivals.evosax", raising=False)
    run_peers(tmp_path, "--methods", "evosax,radazo_zo_sgd")
    printed = " ".join(capsys.readouterr().out.split())
    assert "evosax cannot be imported" in printed
    assert "pip install '.[peers]'" in printed
    assert [x["settings"]["method"] for x in lines_of(tmp_path)] == ["radazo_zo_sgd"]


def test_interrupted_it_shows_what_is_finished(tmp_path, capsys, monkeypatch, lenient):
    piece = peers.piece

    def interrupted(module, name, *rest):
        if name == "radazo_zo_sgd":
            raise KeyboardInterrupt
        return piece(module, name, *rest)

    monkeypatch.setattr(peers, "piece", interrupted)
    run_peers(tmp_path, "--methods", "radazo_zo_adamm,radazo_zo_sgd")
    printed = capsys.readouterr().out
    assert "Interrupted" in printed
    assert "radazo zo_adamm " in printed
    assert len(lines_of(tmp_path)) == 1


def test_arguments_that_do_not_fit(capsys):
    wrong = {
        ("--methods", "sgd"): "'sgd' is none of",
        ("--dims", "ten"): "'ten' is not a list of numbers",
        ("--dims", "1"): "at least 2",
        ("--tuning-seed", "457"): "one of the reported seeds",
    }
    for arguments, message in wrong.items():
        with pytest.raises(SystemExit):
            peers.main(list(arguments))
        assert message in capsys.readouterr().err


def test_packages_and_dimensions_choose_methods():
    assert peers.arguments(["--methods", "radazo"]).methods == OWN
    args = peers.arguments([])
    assert args.methods == list(METHODS)
    assert args.seeds == [456, 457, 458]
    for name, method in METHODS.items():
        assert method.package in PACKAGES
        assert name.startswith(method.package.removesuffix("_loop")), name


def line_of(method, values, seconds, function="quadratic", dim=10):
    numbers = {
        "tuned_knob": 0.1,
        "tuned_at_edge": method == "pycma_cma",
        "value_at_start": [10.0, 20.0, 30.0],
        "best_at_end": values,
        "points": [0, 50, 100],
        "best": [[20.0, 15.0, value] for value in values],
        "run_seconds": [seconds] * 3,
        "compile_seconds": 0.0,
    }
    settings = {"method": method, "function": function, "dim": dim, "budget": 100}
    return {
        "command": "peers",
        "seeds": [1, 2, 3],
        "settings": settings,
        "numbers": numbers,
    }


LINES = [
    line_of("radazo_zo_sgd", [9.0, 9.0, 9.0], 1.0),  # Made again below.
    line_of("radazo_zo_sgd", [2.0, 1.6, 3.0], 1.0),
    line_of("radazo_radazo", [4.0, 4.0, 4.0], 0.1),
    line_of("pycma_cma", [0.5, 1.5, 1.0], 5.0),
    line_of("evosax_snes", [2.5, 2.5, 2.5], 0.5),
    line_of("evotorch_snes", [2.2, 1.7, 2.1], 1.0),  # Lower, but not in all runs.
    line_of("radazo_zo_sgd", [1.0, 1.0, 1.0], 1.0, "levy", 1000),
    line_of("nevergrad_spsa", [7.0, 7.0, 7.0], 2.0, "levy", 1000),
    {**line_of("pycma_cma", [0.0] * 3, 0.0), "command": "synthetic"},
]


def test_markdown_says_where_rivals_win():
    text = report.markdown(LINES)
    first, second = text.split("**levy: d = 1,000")
    assert (
        "**quadratic: d = 10, 100 function values, seeds 1, 2, 3, f(x0) = 20**\n\n"
        "| method | tuned | lowest f, median (range) | s | compile s |\n"
        "| --- | --- | --- | --- | --- |\n"
        "| pycma CMA | std 0.1 (edge) | 1 (0.5 – 1.5) | 5.00 | – |\n"
        "| radazo zo_sgd | rate 0.1 | 2 (1.6 – 3) | 1.00 | – |\n"
    ) in first
    assert (
        "Best method of radazo: radazo zo_sgd (2, 1.00 s). Rivals that end lower in "
        "all runs: pycma CMA (1). Rivals that take less time: evosax SNES (0.50 s)."
    ) in first
    assert "Rivals that end lower in all runs: none. Rivals that take less" in second
    assert "Lower in the median only: none." in first
    assert peers.markdown is report.markdown


def test_who_is_lower_in_the_median_and_faster_with_compiling_is_named():
    own, lower = LINES[1], line_of("evotorch_snes", [1.9, 1.7, 2.1], 1.5)
    compiled = own | {"numbers": own["numbers"] | {"compile_seconds": 2.0}}
    text = report.markdown([compiled, lower])
    assert "end lower in all runs: none. Rivals that take less time: none." in text
    assert "Lower in the median only: EvoTorch SNES (1.9)." in text
    assert "Less time including compilation: EvoTorch SNES (1.50 s)." in text


def test_the_table_marks_who_is_ahead(capsys):
    wide = line_of("evosax_cma", [1.23e-20] * 3, 123.45)
    found = report.cells([*LINES, wide])["quadratic", 10]
    records.console().print(report.table(found))
    printed = capsys.readouterr().out
    assert "evosax CMA_ES ◀" in printed
    assert "pycma CMA ◀" in printed
    assert printed.count("◀") == 2


def test_figure_is_drawn_from_lines_alone(tmp_path):
    peers.draw(LINES, tmp_path / "made" / "peers.png")
    assert (tmp_path / "made" / "peers.png").stat().st_size > 10_000


def test_names_in_a_figure_do_not_overlap():
    moved = report.apart([0.0, 0.01, 0.02, 0.98, 0.99], 0.1)
    assert np.all(np.diff(moved) >= 0.1 - 1e-12)
    assert 0 <= moved[0] <= moved[-1] <= 1
    assert report.apart([0.2, 0.5], 0.1) == [0.2, 0.5]
