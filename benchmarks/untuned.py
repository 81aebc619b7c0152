"""Compare `zo_auto`, for which nothing is tuned, with tuned rules.

  python -m benchmarks untuned                  all groups: an hour
  python -m benchmarks untuned --sensitivity    constants of `zo_auto`, times ½ and 2

A run ends at a number of function values. `zo_auto` is run as it is. The learning rate
of each rule on `sphere_estimator` and `hadamard_estimator` is tuned on other seeds, by
the walk of `estimators`; K and the smoothing distance are those of the task. Runs of a
seed share their start. Where the results of `synthetic` and `estimators` have the tuned
rules already, they are copied.

Each (task, method) is a result line once it is finished, and the same command, started
again, skips it.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks import records, untuned_low, untuned_report, untuned_runs
from benchmarks import untuned_sensitivity as sensitivity
from benchmarks.estimators import TUNING_SEED
from benchmarks.estimators_tasks import Problem, Task
from benchmarks.methods import chosen
from benchmarks.untuned_runs import COMMITTED, NAMES, Piece
from benchmarks.untuned_tasks import GROUPS, LOW, LOW_BUDGET, LOW_DIM, LOW_SEEDS, TASKS

SEED = 456


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks untuned",
        description="Compare zo_auto, untuned, with tuned rules at equal values.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add, everything = parser.add_argument, (*GROUPS, "low")
    add("--groups", default=",".join(everything), help="separated by commas")
    add("--tasks", default="", help="of the groups; all if empty")
    add("--methods", default=",".join(NAMES), help="separated by commas")
    add("--budget", type=float, default=1.0, help="share of the budget of each task")
    add("--sensitivity", action="store_true", help="vary the constants of zo_auto")
    add("--output", type=Path, default=Path("benchmarks/output"), help="folder")
    args = parser.parse_args(argv)
    args.groups = chosen(parser, "--groups", args.groups, everything)
    args.methods = chosen(parser, "--methods", args.methods, NAMES)
    known = {**TASKS, **LOW}
    args.tasks = chosen(parser, "--tasks", args.tasks, known) if args.tasks else known
    if args.budget <= 0:
        parser.error("--budget must be above 0")
    return args


def main(argv: list[str]) -> None:
    args = arguments(argv)
    console = records.console()
    path, lines = args.output / "untuned.jsonl", []
    # tqdm shows a bar on terminals only (disable=None); elsewhere print a line.
    with tqdm(unit="line", disable=None, leave=False) as bar:
        try:
            for line in work(args, path, bar):
                lines.append(line)
                bar.update()
        except KeyboardInterrupt:
            bar.write("Interrupted. The same command continues with the missing lines.")
    if not lines:
        console.print("No line was finished.")
        return
    console.print(untuned_report.markdown(lines), markup=False)
    for figure in untuned_report.draw(lines, args.output):
        console.print(f"Figure: {figure}")
    console.print(f"Result lines: {path}")


def work(args: argparse.Namespace, path: Path, bar: tqdm) -> Iterator[dict[str, Any]]:
    """Yield the lines that the arguments ask for, stored or new."""
    if args.sensitivity:
        yield from sensitivity.lines(args.budget, path, bar)
        return
    names = ("synthetic", "estimators")
    known = {name: records.read(COMMITTED / f"{name}.jsonl") for name in names}
    for group in args.groups:
        for name in LOW if group == "low" else GROUPS[group]:
            if name in args.tasks and group == "low":
                yield from of_low_task(name, args, path, bar)
            elif name in args.tasks:
                yield from of_task(name, args, path, bar, known)


def of_task(
    name: str, args: argparse.Namespace, path: Path, bar: tqdm, known: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Yield the lines of a task."""
    task, stored = TASKS[name], records.read(path)
    budget = max(1, round(args.budget * task.budget))
    copied = []
    if budget == task.budget and "sphere" in args.methods:
        copied = list(untuned_runs.copies(name, task, known))
    for found in copied:
        seeds = found["seeds"]
        given = settings(Piece(name, "sphere", found["rule"]), task, budget)
        line = records.find(stored, seeds, given)
        yield line or records.append(path, "untuned", seeds, given, found["numbers"])
    seeds, missing = list(range(SEED, SEED + task.seeds)), []
    for piece in untuned_runs.pieces(name, args.methods):
        if copied and piece.estimator == "sphere" and untuned_runs.is_tuned(piece):
            continue
        given = settings(piece, task, budget) | tuning(piece, task, known)
        line = records.find(stored, seeds, given)
        if line is None:
            missing.append((piece, given))
        else:
            yield line
    if missing:
        try:
            problem = task.build()
        except ImportError as error:
            bar.write(f"{name} is skipped: {error}; install 'radazo[control]'.")
            return
        for piece, given, numbers in measured(task, problem, missing, seeds, bar):
            line = records.append(path, "untuned", seeds, given, numbers)
            bar.write(f"{piece}: {untuned_report.spread(line)}")
            yield line


def measured(
    task: Task, problem: Problem, missing: list[Any], seeds: list[int], bar: tqdm
) -> Iterator[tuple[Piece, dict[str, Any], dict[str, Any]]]:
    """Yield pieces of a task, their settings and their numbers."""
    programs: dict[str, Any] = {}
    for piece, given in missing:
        bar.set_description(str(piece))
        budget, name = given["budget"], piece.estimator
        if untuned_runs.is_tuned(piece):
            if name not in programs:
                made = untuned_runs.tuned_program(name, task, problem, budget)
                programs[name] = made
            walk = given["first_rate"], given["tuning_seeds"]
            numbers = untuned_runs.tuned_numbers(piece, programs[name], *walk, seeds)
        else:
            numbers = untuned_runs.untuned_numbers(piece, task, problem, budget, seeds)
        yield piece, given, numbers


def settings(piece: Piece, task: Task, budget: int) -> dict[str, Any]:
    """Return all settings needed to repeat a line, but for those of tuning."""
    own = (
        {}
        if piece.rule == "zo_auto"
        else {
            "num_directions": task.num_directions,
            "smoothing": task.smoothing,
        }
    )
    shared = {"dim": task.dim, "dtype": task.dtype, "budget": budget}
    return piece._asdict() | own | shared


def tuning(piece: Piece, task: Task, known: dict[str, Any]) -> dict[str, Any]:
    """Return the first rate and the seeds of a tuned rule; no seeds keep the rate."""
    if not untuned_runs.is_tuned(piece):
        return {}
    seeds = list(range(TUNING_SEED, TUNING_SEED + task.tuning_seeds))
    rate = untuned_runs.rate_of(piece.task, piece.rule, known)
    if rate is None:
        return {"first_rate": task.rates[piece.rule], "tuning_seeds": seeds}
    return {"first_rate": rate, "tuning_seeds": []}


def of_low_task(
    name: str, args: argparse.Namespace, path: Path, bar: tqdm
) -> Iterator[dict[str, Any]]:
    """Yield the lines of a function of few parameters."""
    stored, seeds = records.read(path), list(range(SEED, SEED + LOW_SEEDS))
    budget = max(1, round(args.budget * LOW_BUDGET))
    for method in untuned_low.NAMES:
        if method == "zo_auto" and method not in args.methods:
            continue
        if method != "zo_auto" and "sphere" not in args.methods:
            continue
        given = {"task": name, "estimator": "", "rule": method, "dim": LOW_DIM}
        given |= {"dtype": untuned_low.DTYPE, "budget": budget}
        line = records.find(stored, seeds, given)
        if line is None:
            bar.set_description(f"{name}, {method}")
            found = untuned_low.numbers(LOW[name].build(), method, budget, seeds)
            line = records.append(path, "untuned", seeds, given, found)
            bar.write(f"{name}, {method}: {untuned_report.spread(line)}")
        yield line
