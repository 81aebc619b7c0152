"""radazo against what people use today: evosax, EvoTorch, pycma, nevergrad and others.

  python -m benchmarks peers                    needs pip install '.[benchmarks,peers]'

The same functions, the same start, N(0, I), the same number of function values, and
each method tuned by the same rule: one knob, eight runs on a seed that is not reported.
Tuning starts at a value given before and goes up or down by factors of ten, then of
half and of a quarter of a power, towards what ended lowest; a knob that is the largest
or smallest of those tried is marked (edge). A run that ends above its start, where its
point was last finite, counts as infinite, however low the first points that it tried
happen to be.

Compared is the lowest value that a run has seen, at the points that it evaluated or at
the one that it would return: for evolution strategies that is the mean of the
sampler, for nevergrad its recommendation, for the others the last point. So no
package is at a disadvantage by what it returns. radazo's own rows show only the values
at their points, not those at the perturbed ones, which may be lower by a hair. The
value of the returned point stands beside it in the result lines. Looking at returned
points, 40 times in a run, is free.

A knob is known to half or a quarter of a power of ten, and radazo has five rows where
most packages have one or two: a difference of a few per cent between two methods is
none.

JAX and PyTorch compute in float32, or both in float64 (`--dtype`); packages of NumPy
know float64 only. JAX's loops are compiled, which is not in the seconds of a run. The
process keeps to one core, where the system lets it, and libraries to one thread: these
arrays are small, and while anything else runs on the machine a second thread makes
PyTorch and CMA-ES 20 times slower. Seconds are those of the processor.

Each (function, dim, method) is a result line once it is finished, and is left out when
the command is started again. It takes some three hours, half of it for nevergrad,
which comes last: all else is finished before, and Ctrl-C shows it. On another core
`taskset -c 1 python -m benchmarks peers --methods nevergrad` can work on the same
folder.
"""

import argparse
import contextlib
import functools
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import threadpoolctl
from rich.console import Console
from tqdm import tqdm

from benchmarks import records
from benchmarks.methods import chosen
from benchmarks.problems.twins import TWINS, Twin
from benchmarks.rivals import METHODS, PACKAGES, label, load, report
from benchmarks.rivals.report import draw, markdown
from benchmarks.rivals.trace import Trace

__all__ = ["draw", "main", "markdown"]

FUNCTIONS = ("quadratic", "rosenbrock", "levy", "rastrigin")
Run = Callable[[int, float], Trace]  # Of a seed and a knob.


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks peers",
        description="Minimize the same functions by radazo and by its rivals.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--functions", default=",".join(FUNCTIONS), help="separated by commas")
    add("--dims", default="100,10000", help="numbers of parameters")
    add("--methods", default=",".join(PACKAGES), help="packages or methods of them")
    add("--budget", type=int, default=55_000, help="function values of a run")
    add("--trials", type=int, default=8, help="runs that tune a method")
    add("--tuning-seed", type=int, default=1, help="seed of those runs")
    add("--seeds", type=int, default=3, help="runs that are reported")
    add("--seed", type=int, default=456, help="the first of their seeds")
    add("--dtype", choices=["float32", "float64"], default="float32", help="type of x")
    add("--output", type=Path, default=Path("benchmarks/output"), help="folder")
    args = parser.parse_args(argv)
    args.functions = chosen(parser, "--functions", args.functions, TWINS)
    known = {**PACKAGES, **METHODS}
    names = set(chosen(parser, "--methods", args.methods, known))
    args.methods = [x for x in METHODS if {x, METHODS[x].package} & names]
    try:
        args.dims = [int(dim) for dim in args.dims.split(",")]
    except ValueError:
        parser.error(f"--dims: '{args.dims}' is no list of numbers")
    if min(args.dims) < 2 or args.budget < 100 or min(args.trials, args.seeds) < 1:
        parser.error("--dims are at least 2, --budget 100, --trials and --seeds 1")
    args.seeds = list(range(args.seed, args.seed + args.seeds))
    if args.tuning_seed in args.seeds:
        parser.error(f"--tuning-seed: {args.tuning_seed} is one of the reported seeds")
    return args


def main(argv: list[str]) -> None:
    args = arguments(argv)
    console = records.console()
    # JAX counts cores when it is first used: evosax does so while it is imported.
    with one_core():
        finished = compared(args, console)
    if not finished:
        console.print("Nothing was finished.")
        return
    for key, lines in report.cells(finished).items():
        console.print(report.heading(key, lines))
        console.print(report.table(lines))
    console.print(
        f"{report.AHEAD} ends lower, in all runs, than radazo's best method in any."
    )
    path = draw(finished, args.output / "peers.png")
    console.print(f"Figure: {path}\nResult lines: {args.output / 'peers.jsonl'}")


def compared(args: argparse.Namespace, console: Console) -> list[dict[str, Any]]:
    """The result lines of all methods that can be run."""
    packages = dict.fromkeys(METHODS[name].package for name in args.methods)
    modules = {}
    for package in packages:
        module = load(package)
        if isinstance(module, str):
            console.print(module, style="yellow", markup=False)
        else:
            modules[package] = module
    pieces = [
        (name, dim, function)
        for name in args.methods
        if METHODS[name].package in modules
        for dim in args.dims
        if dim <= METHODS[name].max_dim
        for function in args.functions
    ]
    finished: list[dict[str, Any]] = []
    total = len(pieces) * (args.trials + len(args.seeds))
    with (
        # Only libraries that are loaded by now are limited.
        threadpoolctl.threadpool_limits(1),
        # A bar on terminals only (disable=None); elsewhere a line for each piece.
        tqdm(total=total, unit="run", disable=None, leave=False) as bar,
    ):
        try:
            for name, dim, function in pieces:
                module = modules[METHODS[name].package]
                finished.append(piece(module, name, dim, function, args, bar))
        except KeyboardInterrupt:
            bar.write("Interrupted: what follows are the pieces that were finished.")
    return finished


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Keep to the first core; only Linux lets a process choose."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def piece(
    module: ModuleType,
    name: str,
    dim: int,
    function: str,
    args: argparse.Namespace,
    bar: tqdm,
) -> dict[str, Any]:
    """The result line of one method on one function, found or made."""
    names = ("budget", "trials", "tuning_seed", "dtype")
    settings = {key: getattr(args, key) for key in names}
    settings |= {"function": function, "dim": dim, "method": name}
    settings |= {"package_version": module.VERSION}
    path, what = args.output / "peers.jsonl", f"{function}, d = {dim:,}, {label(name)}"
    # Read anew each time: another process may be writing to the same file.
    line = records.find(records.read(path), args.seeds, settings)
    if line is not None:
        bar.write(f"{what}: found")
        bar.update(args.trials + len(args.seeds))
        return line
    bar.set_description(what)
    started = time.perf_counter()
    run = functools.partial(
        one_run, module, name, TWINS[function], dim, args.dtype, args.budget, bar
    )
    numbers = measured(run, METHODS[name].center, dim, args)
    line = records.append(path, "peers", args.seeds, settings, numbers)
    bar.write(
        f"{what}: {report.number(report.final(line))}, "
        f"{time.perf_counter() - started:.0f} s for all runs"
    )
    return line


def one_run(
    module: ModuleType,
    name: str,
    problem: Twin,
    dim: int,
    dtype: str,
    budget: int,
    bar: tqdm,
    seed: int,
    knob: float,
) -> Trace:
    start = np.random.default_rng(seed).standard_normal(dim).astype(dtype)
    trace = module.run(METHODS[name].algorithm, problem, start, seed, knob, budget)
    bar.update(1)
    return trace


def measured(
    run: Run, center: tuple[float, float], dim: int, args: argparse.Namespace
) -> dict[str, Any]:
    """Tune on one seed, run on the others: the numbers of a result line."""
    started = time.perf_counter()
    first = center[0] * dim ** center[1]
    tried = tune(lambda knob: improved(run(args.tuning_seed, knob)), first, args.trials)
    tuning_seconds = time.perf_counter() - started
    knob = lowest(tried)
    traces = [run(seed, knob) for seed in args.seeds]
    return {
        "tuned_knob": knob,
        "tuned_at_edge": len(tried) > 1 and knob in (min(tried), max(tried)),
        "tuning": sorted(tried.items()),
        "tuning_seconds": tuning_seconds,
        "value_at_start": [t.current[0] for t in traces],
        "best_at_end": [t.best[-1] for t in traces],
        "returned_at_end": [t.current[-1] for t in traces],
        "function_values": [t.points[-1] for t in traces],
        "points": traces[0].points,
        "best": [records.rounded(t.best) for t in traces],
        "returned": [records.rounded(t.current) for t in traces],
        "run_seconds": [t.seconds for t in traces],
        "compile_seconds": max(t.compile_seconds for t in traces),
    }


def improved(trace: Trace) -> float:
    """The lowest value of a run; infinity if it does not end below its start.

    It ends where its point was last finite: in float32 a distribution that has shrunk
    to a point may end in NaN.
    """
    ends = trace.current[np.isfinite(trace.current)]
    return trace.best[-1] if len(ends) and ends[-1] < trace.current[0] else math.inf


def tune(
    value_at: Callable[[float], float], center: float, trials: int
) -> dict[float, float]:
    """Value by knob: a walk over center · 10ᵉ towards the lowest, then finer."""
    knobs, tried, step = {0.0: center}, {}, 1.0
    tried[center] = finite(value_at(center))
    while len(tried) < trials:
        best = next(e for e, knob in knobs.items() if knob == lowest(tried))
        near = [e for e in (best - step, best + step) if e not in knobs]
        if not near:
            step /= 2
            continue
        knob = knobs[near[0]] = center * 10 ** near[0]
        tried[knob] = finite(value_at(knob))
    return tried


def finite(value: float) -> float:
    return float(value) if math.isfinite(value) else math.inf


def lowest(tried: dict[float, float]) -> float:
    """The knob of the lowest value: the first, or the smallest if all diverge."""
    return min(tried, key=lambda knob: (tried[knob], tried[knob] == math.inf and knob))
