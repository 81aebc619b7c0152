"""Compare all estimators with R-AdaZO, ZO-AdaMM and ZO-SGD at equal function values.

  python -m benchmarks estimators            two tasks, a fifth of their budgets
  python -m benchmarks estimators --full     six tasks, full budgets: two hours

A run ends at a number of function values, because the cost of a step depends on the
estimator. A task fixes K and the smoothing distance for all. The learning rate of each
estimator and rule is tuned on other seeds: a walk over powers of ten to the lowest
final f, then over halves and quarters of a power around it. Runs of a seed share their
start and key.

A piece of work is an estimator with a rule on a task. It writes its result line when it
is finished. The same command, started again, continues with the missing pieces.
"""

import argparse
import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from benchmarks import estimators_figures, estimators_report, records
from benchmarks import estimators_runs as runs
from benchmarks.estimators_rows import ROWS, unfit
from benchmarks.estimators_tasks import TASKS, Problem, Task
from benchmarks.methods import chosen
from benchmarks.tuning import best, tune

TUNING_SEED = 1000
# First whole powers of ten, then parts of one.
PARTS = (1.0, 0.5, 0.25)
FULL = {"tasks": ",".join(TASKS), "budget": 1.0, "seeds": 0, "tuning_seeds": 0}

# Minimized: f at the end, and of equals the mean of f over the marks.
Score = tuple[float, float]


class Piece(NamedTuple):
    """The task, estimator and rule of a result line, by name."""

    task: str
    estimator: str
    rule: str

    def __str__(self) -> str:
        return ", ".join(self)


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks estimators",
        description="Compare estimators under several rules at equal function values.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--full",
        action="store_true",
        help="the whole comparison: sets the defaults of "
        + ", ".join(f"--{name.replace('_', '-')} {x}" for name, x in FULL.items()),
    )
    add("--tasks", default="rosenbrock,attack", help=f"of {', '.join(TASKS)}")
    add("--estimators", default=",".join(ROWS), help="separated by commas")
    add("--rules", default=",".join(runs.RULES), help="separated by commas")
    add("--budget", type=float, default=0.2, help="share of the budget of each task")
    add("--seeds", type=int, default=3, help="reported runs; 0: by task")
    add("--seed", type=int, default=456, help="first seed")
    text = f"runs for each rate, of seeds from {TUNING_SEED} on; 0: by task"
    add("--tuning-seeds", type=int, default=1, help=text)
    add("--output", type=Path, default=Path("benchmarks/output"), help="folder")
    if parser.parse_known_args(argv)[0].full:
        parser.set_defaults(**FULL)
    args = parser.parse_args(argv)
    args.tasks = chosen(parser, "--tasks", args.tasks, TASKS)
    args.estimators = chosen(parser, "--estimators", args.estimators, ROWS)
    args.rules = chosen(parser, "--rules", args.rules, runs.RULES)
    if min(args.seeds, args.tuning_seeds) < 0 or args.budget <= 0:
        parser.error("--seeds and --tuning-seeds must be at least 0, --budget above 0")
    for task in args.tasks:
        if {*seeds_of(task, args)} & {*tuning_seeds_of(task, args)}:
            parser.error(f"--seed must be below {TUNING_SEED}; others are for tuning")
    return args


def seeds_of(task: str, args: argparse.Namespace) -> list[int]:
    return list(range(args.seed, args.seed + (args.seeds or TASKS[task].seeds)))


def tuning_seeds_of(task: str, args: argparse.Namespace) -> list[int]:
    number = args.tuning_seeds or TASKS[task].tuning_seeds
    return list(range(TUNING_SEED, TUNING_SEED + number))


def main(argv: list[str]) -> None:
    args = arguments(argv)
    console = records.console()
    path = args.output / "estimators.jsonl"
    total = len(args.tasks) * len(args.estimators) * len(args.rules)
    lines = []
    # tqdm shows a bar on terminals only (disable=None); elsewhere print a line.
    with tqdm(total=total, unit="piece", disable=None, leave=False) as bar:
        try:
            for name in args.tasks:
                for line in of_task(name, args, path, bar):
                    lines.append(line)
                    bar.update()
        except KeyboardInterrupt:
            bar.write(
                "Interrupted. The same command continues with the missing pieces."
            )
    if not lines:
        console.print("No piece was finished.")
        return
    for table in estimators_report.tables(lines):
        console.print(table)
    for figure in estimators_figures.draw(lines, args.output):
        console.print(f"Figure: {figure}")
    console.print(f"Result lines: {path}")


def of_task(
    name: str, args: argparse.Namespace, path: Path, bar: tqdm
) -> Iterator[dict[str, Any]]:
    """Return the lines of a task: the stored ones, then new ones."""
    known, missing, seeds = records.read(path), [], seeds_of(name, args)
    for estimator in args.estimators:
        for rule in args.rules:
            piece = Piece(name, estimator, rule)
            line = records.find(known, seeds, settings(piece, args))
            if line is None:
                missing.append(piece)
            else:
                yield line
    if not missing:
        return
    try:
        problem = TASKS[name].build()
    except ImportError as error:
        bar.write(f"{name} is skipped: {error}; install 'radazo[control]'.")
        return
    for estimator in dict.fromkeys(piece.estimator for piece in missing):
        pieces = [piece for piece in missing if piece.estimator == estimator]
        bar.set_description(f"{name}, {estimator}")
        for piece, numbers in measured(pieces, problem, args):
            given = settings(piece, args)
            line = records.append(path, "estimators", seeds, given, numbers)
            bar.write(f"{piece}: {estimators_report.spread(line)}")
            yield line


def settings(piece: Piece, args: argparse.Namespace) -> dict[str, Any]:
    """Return all settings needed to repeat a line, without its outcomes."""
    task = TASKS[piece.task]
    return piece._asdict() | {
        "options": dict(ROWS[piece.estimator].options),
        "dim": task.dim,
        "num_directions": task.num_directions,
        "smoothing": task.smoothing,
        "dtype": task.dtype,
        "budget": budget_of(task, args),
        "first_rate": task.rates[piece.rule],
        "tuning_seeds": tuning_seeds_of(piece.task, args),
    }


def budget_of(task: Task, args: argparse.Namespace) -> int:
    return max(1, round(args.budget * task.budget))


def measured(
    pieces: list[Piece], problem: Problem, args: argparse.Namespace
) -> Iterator[tuple[Piece, dict[str, Any]]]:
    """Return the numbers of pieces of one task and estimator, which share a program."""
    task, row = TASKS[pieces[0].task], ROWS[pieces[0].estimator]
    setting = task.setting._replace(batches=problem.batches)
    reason = unfit(row, setting)
    if reason is not None:
        yield from ((piece, {"failed": reason}) for piece in pieces)
        return
    estimator = row.make(setting, **row.options)
    program = runs.program(problem, estimator, task.dtype, budget_of(task, args))
    for piece in pieces:
        yield piece, numbers_of(piece, program, args)


def numbers_of(
    piece: Piece, program: runs.Program, args: argparse.Namespace
) -> dict[str, Any]:
    """Tune on the tuning seeds, then run on the reported ones."""
    given = TASKS[piece.task].rates[piece.rule], tuning_seeds_of(piece.task, args)
    run = functools.partial(program.run, piece.rule)
    numbers = tuned(run, *given, seeds_of(piece.task, args))
    return numbers | {"compile_seconds": program.compile_seconds}


def tuned(
    run: Callable[[int, float], runs.Run],
    first: float,
    tuning_seeds: list[int],
    seeds: list[int],
) -> dict[str, Any]:
    """Return the numbers of `run(seed, rate)` at the best rate of a walk from `first`.

    Without tuning seeds the rate is `first`.
    """
    started, used = time.perf_counter(), time.process_time()

    def score(rate: float) -> Score:
        return scored([run(seed, rate) for seed in tuning_seeds])

    tried = tune(score, first, PARTS) if tuning_seeds else {first: (np.inf, np.inf)}
    rate = best(tried)
    done = [run(seed, rate) for seed in seeds]
    return {
        "rate": rate,
        "at_edge": len(tried) > 1 and rate in (min(tried), max(tried)),
        "rates_tried": sorted(tried),
        "values_tried": [tried[rate][0] for rate in sorted(tried)],
        "value_at_start": [run.values[0] for run in done],
        "value_at_end": [run.values[-1] for run in done],
        "counts": [run.counts for run in done],
        "curve": [records.rounded(run.values) for run in done],
        "run_seconds": time.perf_counter() - started,
        "processor_seconds": time.process_time() - used,
    }


def scored(done: list[runs.Run]) -> Score:
    """Return medians over runs; a run that does not end below its start is infinite."""
    better = [bool(run.values[-1] < run.values[0]) for run in done]
    ends = [
        run.values[-1] if x else np.inf for run, x in zip(done, better, strict=True)
    ]
    means = [
        run.values.mean() if x else np.inf for run, x in zip(done, better, strict=True)
    ]
    return float(np.median(ends)), float(np.median(means))
