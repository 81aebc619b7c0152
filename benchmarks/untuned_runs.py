"""Methods that `untuned` compares, and the numbers of their runs.

  sphere, hadamard    both estimators with tuned rules
  parabola            `scale_by_parabola` after either of them: no rate is given
  zo_auto             complete, and nothing is given; f is that of its best point

On tasks of `synthetic` and `estimators` the tuned rules of `sphere_estimator` are those
of their committed lines. At d = 10,000 rules of `hadamard_estimator` have the rates of
these lines.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

import radazo
from benchmarks import estimators, estimators_runs, records
from benchmarks.estimators_rows import Setting
from benchmarks.estimators_runs import RULES, Run
from benchmarks.estimators_tasks import Problem, Task
from benchmarks.methods import METHODS

ESTIMATORS = {
    "sphere": radazo.sphere_estimator,
    "hadamard": radazo.hadamard_estimator,
}
NAMES = (*ESTIMATORS, "parabola", "zo_auto")
COMMITTED = Path(__file__).parent / "results"
BEYOND = 1.25  # Runs without tuning go on to this multiple of the budget.


class Piece(NamedTuple):
    """The task, estimator and rule of a result line, by name."""

    task: str
    estimator: str
    rule: str

    def __str__(self) -> str:
        return ", ".join(part for part in self if part)


def pieces(name: str, methods: list[str]) -> list[Piece]:
    """Return the pieces of a task, in the order of `NAMES`."""
    found = []
    for estimator in ESTIMATORS:
        if estimator in methods:
            found += [Piece(name, estimator, rule) for rule in RULES]
    if "parabola" in methods:
        found += [Piece(name, estimator, "parabola") for estimator in ESTIMATORS]
    if "zo_auto" in methods:
        found.append(Piece(name, "", "zo_auto"))
    return found


def is_tuned(piece: Piece) -> bool:
    return piece.rule in METHODS


def copies(name: str, task: Task, known: dict[str, list[dict]]) -> Iterator[dict]:
    """Yield rule, seeds and numbers of the tuned rules on `sphere_estimator`.

    `known` has the committed lines by command.
    """
    for line in known["estimators"]:
        given = line["settings"]
        alike = given["task"] == name and given["budget"] == task.budget
        if alike and given["estimator"] == "sphere":
            yield _copy(line, given["rule"], line["numbers"]["counts"])
    for line in known["synthetic"]:
        given = line["settings"]
        alike = f"{given['function']}_{given['dim']}" == name
        num_values = task.num_directions + 1
        if alike and given["arm"] in ("tuned", "cosine"):
            if given["steps"] * num_values != task.budget:
                continue
            counts = num_values * np.array(line["numbers"]["curve_at_step"])
            rule = given["method"] + (", cosine" if given["arm"] == "cosine" else "")
            yield _copy(line, rule, [counts] * len(line["seeds"]))


def _copy(line: dict[str, Any], rule: str, counts: Any) -> dict[str, Any]:
    kept = ("rate", "value_at_start", "value_at_end", "curve")
    numbers = {name: line["numbers"][name] for name in kept}
    source = {name: line[name] for name in ("command", "date", "commit")}
    numbers |= {"counts": counts, "source": source}
    return {"rule": rule, "seeds": line["seeds"], "numbers": numbers}


def rate_of(name: str, rule: str, known: dict[str, list[dict]]) -> float | None:
    """Return the committed rate of a rule at d = 10,000, or None."""
    for line in known["synthetic"]:
        given = line["settings"]
        alike = f"{given['function']}_10000" == name and given["dim"] == 10_000
        if alike and (given["arm"], given["method"]) == ("tuned", rule):
            return line["numbers"]["rate"]
    return None


def estimator_of(name: str, setting: Setting) -> radazo.Estimator:
    return ESTIMATORS[name](smoothing=setting.smoothing, **setting.shared)


def tuned_program(name: str, task: Task, problem: Problem, budget: int) -> Any:
    """Compile the rules on an estimator: `run(rule, seed, rate)`."""
    estimator = estimator_of(name, task.setting)
    return estimators_runs.program(problem, estimator, task.dtype, budget)


def untuned_optimizer(piece: Piece, task: Task, key: Any) -> Any:
    if piece.rule == "zo_auto":
        return radazo.zo_auto(key=key)
    rule = optax.chain(radazo.scale_by_parabola(), optax.scale(-1.0))
    estimator = estimator_of(piece.estimator, task.setting)
    return radazo.with_estimator(estimator, rule, key)


def best_point(x: Any, state: Any) -> Any:
    """Return the point of the lowest value; with noise or batches the last one."""
    return state.estimator.search.best.astype(x.dtype)


def untuned_marks(budget: int) -> np.ndarray:
    """Return the marks of tuned runs, then equal steps up to `BEYOND`."""
    more = np.linspace(1, BEYOND, 11)[1:] * budget
    marks = estimators_runs.marks(budget)
    return np.unique(np.append(marks, np.ceil(more)).astype(np.int32))


def untuned_numbers(
    piece: Piece, task: Task, problem: Problem, budget: int, seeds: list[int]
) -> dict[str, Any]:
    """Return the numbers of runs of a method without a rate."""

    def optimizer(given: Any, key: Any) -> Any:
        del given
        return untuned_optimizer(piece, task, key)

    at, given = untuned_marks(budget), jnp.int32(0)
    point = {"point": best_point} if piece.rule == "zo_auto" else {}
    program = estimators_runs.compile_runs(
        problem, optimizer, given, task.dtype, at, **point
    )
    started = time.perf_counter()
    done = [program.run(seed, given) for seed in seeds]
    numbers = measured(done, 1 + int(np.searchsorted(at, budget)))
    numbers["run_seconds"] = time.perf_counter() - started
    return numbers | {"compile_seconds": program.compile_seconds}


def measured(done: list[Run], end: int) -> dict[str, Any]:
    """Return the numbers of runs whose budget is used up at point `end`."""
    return {
        "value_at_start": [run.values[0] for run in done],
        "value_at_end": [run.values[end] for run in done],
        "counts": [run.counts for run in done],
        "curve": [records.rounded(run.values) for run in done],
    }


def tuned_numbers(
    piece: Piece, program: Any, first: float, tuning_seeds: list[int], seeds: list[int]
) -> dict[str, Any]:
    def run(seed: int, rate: float) -> Run:
        return program.run(piece.rule, seed, rate)

    numbers = estimators.tuned(run, first, tuning_seeds, seeds)
    return numbers | {"compile_seconds": program.compile_seconds}
