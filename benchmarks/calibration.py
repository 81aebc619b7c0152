"""Compare the settings of `radazo.calibrate` with the best of a grid.

  python -m benchmarks calibration            about ten minutes on one core
  python -m benchmarks calibration --quick    toy sizes, half a minute, no results
  python -m benchmarks calibration --grid benchmarks/results/calibration.jsonl
                                              with the tuned settings of these lines

A task is one of four functions of the paper, or the attack on the bundled digits, with
an update rule. On tuning seeds, all pairs of a smoothing and a learning rate run. The
level is the lowest share of the initial f that a pair reaches after half of the steps
(median over those seeds); for an attack it is success, f below 0. The tuned setting is
the pair that reaches the level with the fewest function values. On other seeds it is
compared with the setting that `calibrate` chooses at each start. Counts include the
first function value at or below the level.

If a run takes all its steps, `calibrate` gets their number. An attack stops at success,
so its number of steps is not known beforehand.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from tqdm import tqdm

import radazo
from benchmarks import calibration_report, records
from benchmarks.estimators_tasks import TASKS
from benchmarks.methods import METHODS, chosen
from benchmarks.problems.synthetic import OF_THE_PAPER, PROBLEMS

RULES = ("radazo", "zo_sgd")
FIELDS = {"radazo": "learning_rate", "zo_sgd": "learning_rate_zo_sgd"}
TUNING_SEED = 1000
QUICK = {"dim": 50, "steps": 60, "seeds": 2, "images": 2, "tuning_seeds": 2}


class Task(NamedTuple):
    """A function with its starts, and the settings of its search.

    Attributes:
      value_fn: `value_fn(x, **data) -> scalar`.
      start: `start(seed) -> (x, data)`.
      sampler: Of the directions.
      num_directions, steps: K, and the steps of a run.
      smoothings: Those of the grid.
      rates: By rule, the middle of the rates of the grid.
      succeeds: Whether a run ends where f < 0, however many steps are left.
      dtype: Of the parameters.
    """

    value_fn: Callable[..., jax.Array]
    start: Callable[[int], tuple[jax.Array, dict[str, Any]]]
    sampler: radazo.directions.DirectionSampler
    num_directions: int
    steps: int
    smoothings: tuple[float, ...]
    rates: dict[str, float]
    succeeds: bool
    dtype: str


PLAIN = {"quadratic": 1e-2, "cubic": 3e-3, "levy": 5e-3, "rosenbrock": 1e-5}
NAMES = (*OF_THE_PAPER, "attack")


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks calibration",
        description="Compare calibrated settings with the best of a grid.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="toy sizes, to check that it runs")
    add("--tasks", default=",".join(NAMES), help=f"of {', '.join(NAMES)}")
    add("--rules", default=",".join(RULES), help=f"of {', '.join(RULES)}")
    add("--dim", type=int, default=1000, help="parameters of a synthetic function")
    add("--steps", type=int, default=1000, help="steps of a run")
    add("--seed", type=int, default=200, help="first reported seed")
    add("--seeds", type=int, default=10, help="reported runs on a function")
    add("--images", type=int, default=30, help="reported attacks, a seed each")
    add("--tuning-seeds", type=int, default=8, help=f"from {TUNING_SEED} on")
    add("--grid", type=Path, help="lines of which the grids are not run again")
    add("--output", type=Path, default=Path("benchmarks/output"), help="folder")
    if parser.parse_args(argv).quick:
        parser.set_defaults(**QUICK)
    args = parser.parse_args(argv)
    args.tasks = chosen(parser, "--tasks", args.tasks, NAMES)
    args.rules = chosen(parser, "--rules", args.rules, RULES)
    if min(args.dim - 1, args.steps - 1, args.tuning_seeds) < 1:
        parser.error("--dim and --steps must be at least 2, --tuning-seeds at least 1")
    if not 1 <= min(args.seeds, args.images) <= max(args.seeds, args.images) <= 400:
        parser.error("--seeds and --images must be 1 to 400")
    if not 0 <= args.seed <= args.seed + 400 <= TUNING_SEED:
        parser.error(f"--seed must be 0 to {TUNING_SEED - 400}; others are for tuning")
    if args.grid and not args.grid.is_file():
        parser.error(f"--grid must be a file of lines of this command: {args.grid}")
    return args


def main(argv: list[str]) -> None:
    args = arguments(argv)
    console = records.console()
    path = args.output / "calibration.jsonl"
    known, lines = records.read(path), []
    grids = records.read(args.grid) if args.grid else []
    work = [(name, rule) for name in args.tasks for rule in args.rules]
    for name, rule in tqdm(work, unit="task", disable=None, leave=False):
        task = task_of(name, args)
        count = args.images if name == "attack" else args.seeds
        seeds = list(range(args.seed, args.seed + count))
        given = settings(name, rule, task, args)
        line = records.find(known, seeds, given)
        if line is None:
            grid = records.find(grids, seeds, given)
            if args.grid and grid is None:
                sys.exit(f"{args.grid} has no line of {name}, {rule} with this setup")
            found = numbers(task, rule, seeds, given, grid)
            line = records.append(path, "calibration", seeds, given, found)
        lines.append(line)
    console.print(calibration_report.table(lines))
    console.print(f"Result lines: {path}")


def task_of(name: str, args: argparse.Namespace) -> Task:
    if name == "attack":
        problem = TASKS["attack"].build()
        # Most images are fooled within a hundred steps.
        return Task(
            *(
                problem.value_fn,
                problem.start,
                radazo.directions.gaussian,
                2,
                args.steps,
            ),
            (0.1, 0.3, 1.0, 3.0),
            {"radazo": 3e-2, "zo_sgd": 3e-1},
            succeeds=True,
            dtype="float32",
        )

    def start(seed: int) -> tuple[jax.Array, dict[str, Any]]:
        key = jax.random.split(jax.random.key(seed))[0]
        return jax.random.normal(key, (args.dim,), jnp.float32), {}

    # Greedy rates: they fall as K / d for ZO-SGD and as √(K / d) for the others.
    plain = PLAIN[name] * 1000 / args.dim
    return Task(
        *(PROBLEMS[name].value_fn, start, radazo.directions.sphere, 10, args.steps),
        (5e-3, 5e-2, 5e-1),
        {"radazo": 1e-2 * (1000 / args.dim) ** 0.5, "zo_sgd": plain},
        succeeds=False,
        dtype="float64",
    )


def grid_of(task: Task, rule: str) -> tuple[np.ndarray, np.ndarray]:
    """Return smoothings and rates of all settings, in quarter powers of ten."""
    rates = task.rates[rule] * 10 ** (np.arange(-4, 5) / 4)
    pairs = np.meshgrid(task.smoothings, rates, indexing="ij")
    return pairs[0].ravel(), pairs[1].ravel()


def settings(
    name: str, rule: str, task: Task, args: argparse.Namespace
) -> dict[str, Any]:
    return {
        "task": name,
        "rule": rule,
        "dim": task.start(0)[0].size,
        "steps": task.steps,
        "num_directions": task.num_directions,
        "dtype": task.dtype,
        "smoothings": task.smoothings,
        "rates": grid_of(task, rule)[1][:9],
        "tuning_seeds": list(range(TUNING_SEED, TUNING_SEED + args.tuning_seeds)),
    }


def numbers(
    task: Task,
    rule: str,
    seeds: list[int],
    given: dict[str, Any],
    grid: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the numbers of the tuning seeds, then of the reported ones.

    The former are those of the line `grid`, if one is given.
    """
    started = time.perf_counter()
    with jax.enable_x64(task.dtype == "float64"):
        run = program(task, rule)
        tuned = (
            tuned_settings(task, rule, given, run) if grid is None else of_line(grid)
        )
        pair = np.array([tuned["smoothing"]]), np.array([tuned["rate"]])
        best = np.array([run(seed, *pair)[0] for seed in seeds])
        calibrations = [calibrated(task, seed) for seed in seeds]
        chosen_rates = [getattr(c, FIELDS[rule]) for c in calibrations]
        mine = np.array(
            [
                run(seed, np.array([c.smoothing]), np.array([rate]))[0]
                for seed, c, rate in zip(seeds, calibrations, chosen_rates, strict=True)
            ]
        )
    return tuned | {
        "values_tuned": values_to(task, best, tuned["level"]),
        "values_calibrated": values_to(task, mine, tuned["level"]),
        "values_to_calibrate": [c.num_values for c in calibrations],
        "smoothing_calibrated": [c.smoothing for c in calibrations],
        "rate_calibrated": chosen_rates,
        "run_seconds": time.perf_counter() - started,
    }


def tuned_settings(
    task: Task, rule: str, given: dict[str, Any], run: Callable[..., np.ndarray]
) -> dict[str, Any]:
    """Run all settings on the tuning seeds, and return the level and the best one."""
    smoothings, rates = grid_of(task, rule)
    tried = np.array([run(s, smoothings, rates) for s in given["tuning_seeds"]])
    level = level_of(task, tried)
    counts = np.array([values_to(task, curves, level) for curves in tried])
    best = best_of(counts, tried)
    return {
        "level": level,
        "smoothing": smoothings[best],
        "rate": rates[best],
        "at_edge": bool(rates[best] in (rates[0], rates[-1])),
        "tuning_values": np.median(counts, axis=0),
    }


def of_line(line: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of a line that its grid gave, and the commit of the grid."""
    numbers = line["numbers"]
    names = "level", "smoothing", "rate", "at_edge", "tuning_values"
    made_at = numbers.get("grid_commit", line["commit"])
    return {name: numbers[name] for name in names} | {"grid_commit": made_at}


def program(task: Task, rule: str) -> Callable[..., np.ndarray]:
    """Return `run(seed, smoothings, rates) -> (n, steps + 1)`.

    It returns f before each step and after the last, along the same directions for all
    settings.
    """
    method = METHODS[rule].rule()

    def of_one(key: Any, x: Any, data: Any, smoothing: Any, rate: Any) -> jax.Array:
        value_and_grad = radazo.value_and_grad(
            lambda x: task.value_fn(x, **data),
            radazo.finite_difference_estimator(
                task.sampler, num_directions=task.num_directions, smoothing=smoothing
            ),
        )

        def step(carry: Any, t: jax.Array) -> Any:
            x, state = carry
            value, gradient = value_and_grad(jax.random.fold_in(key, t), x)
            updates, state = method.update(gradient, state)
            return (x - rate * updates, state), value

        carry, values = lax.scan(step, (x, method.init(x)), jnp.arange(task.steps))
        return jnp.append(values, task.value_fn(carry[0], **data))

    compiled = jax.jit(jax.vmap(of_one, in_axes=(None, None, None, 0, 0)))

    def run(seed: int, smoothings: np.ndarray, rates: np.ndarray) -> np.ndarray:
        x, data = started(task, seed)
        key = jax.random.split(jax.random.key(seed))[1]
        given = (jnp.asarray(y, task.dtype) for y in (smoothings, rates))
        return np.asarray(compiled(key, x, data, *given))

    return run


def started(task: Task, seed: int) -> tuple[jax.Array, Any]:
    x, data = task.start(seed)
    return x.astype(task.dtype), jax.tree.map(jnp.asarray, data)


def calibrated(task: Task, seed: int) -> radazo.calibration.Calibration:
    x, data = started(task, seed)
    value_fn = jax.jit(task.value_fn)
    return radazo.calibrate(
        seed,
        lambda x: value_fn(x, **data),
        x,
        sampler=task.sampler,
        num_directions=task.num_directions,
        num_steps=None if task.succeeds else task.steps,
    )


def level_of(task: Task, tried: np.ndarray) -> float:
    """Return the level as a share of f at the start, from (seeds, settings, steps + 1).

    It is what the best setting reaches after half of the steps; 0 for an attack.
    """
    if task.succeeds:
        return 0.0
    shares = tried[..., task.steps // 2] / tried[..., 0]
    return float(np.nan_to_num(np.median(shares, axis=0), nan=np.inf).min())


def values_to(task: Task, curves: np.ndarray, level: float) -> np.ndarray:
    """Return (n,) function values up to the first at the level, infinity if none."""
    below = curves < 0 if task.succeeds else curves <= level * curves[:, :1]
    first = np.argmax(below, axis=1) * (task.num_directions + 1) + 1.0
    return np.where(below.any(axis=1), first, np.inf)


def best_of(counts: np.ndarray, tried: np.ndarray) -> int:
    """Return the setting with the smallest median count; of equals by final f."""
    at_end = np.median(np.nan_to_num(tried[..., -1], nan=np.inf), axis=0)
    return int(np.lexsort((at_end, np.median(counts, axis=0)))[0])
