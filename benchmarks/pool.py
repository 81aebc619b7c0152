"""Compare the throughput of an evaluation pool of n workers with n times that of one.

  python -m benchmarks pool           a function that sleeps for half a second
  python -m benchmarks pool --quick   a tenth of that: a check that it runs

One worker and n workers are timed in turn, after all of them have started. The
difference from 1 is the cost of sending, waiting and collecting.
"""

import argparse
import contextlib
import functools
import importlib.util
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

import radazo
from benchmarks import records

NUM_WORKERS = {"threads": (4, 16), "processes": (4, 16), "dask": (4,)}
COLUMNS = ("workers", "number", "calls per second of one", "of all", "share")


def sleeping(point: np.ndarray) -> float:
    """Sleep for `point[0]` seconds, and return `point[1]`."""
    time.sleep(float(point[0]))
    return float(point[1])


@contextlib.contextmanager
def executor_of(kind: str, num_workers: int) -> Iterator[Callable[[], Any]]:
    if kind == "threads":
        yield futures.ThreadPoolExecutor
    elif kind == "processes":
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["radazo"])
        yield functools.partial(futures.ProcessPoolExecutor, 1, mp_context=context)
    else:
        distributed = importlib.import_module("dask.distributed")
        options = {"dashboard_address": None, "host": "127.0.0.1"}
        with (
            distributed.LocalCluster(
                n_workers=num_workers, threads_per_worker=1, **options
            ) as cluster,
            distributed.Client(cluster) as client,
        ):
            yield client.get_executor


def rate(kind: str, num_workers: int, seconds: float, calls_each: int) -> float:
    """Return calls per second."""
    with (
        executor_of(kind, num_workers) as executor,
        radazo.pool.evaluation_pool(
            sleeping, executor, max_concurrent=num_workers, progress=False
        ) as pool,
    ):

        def timed(first: int, num: int) -> float:
            queries = ((i, np.array([seconds, i])) for i in range(first, first + num))
            begun = time.perf_counter()
            assert len(dict(pool.evaluate(queries))) == num
            return num / (time.perf_counter() - begun)

        timed(0, 3 * num_workers)  # Workers start, and import.
        return timed(3 * num_workers, calls_each * num_workers)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks pool",
        description="Throughput of n workers against n times one.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="to see that it runs")
    kinds = ", ".join(NUM_WORKERS)
    parser.add_argument("--workers", nargs="+", choices=NUM_WORKERS, help=f"of {kinds}")
    parser.add_argument("--rounds", type=int, default=3, help="one and n in turn")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/output"))
    args = parser.parse_args(argv)
    seconds, calls_each = (0.05, 2) if args.quick else (0.5, 8)
    lines = []
    for kind in args.workers or NUM_WORKERS:
        if kind == "dask" and not importlib.util.find_spec("distributed"):
            records.console().print("dask: skipped; pip install '.[pool]'")
            continue
        for num in NUM_WORKERS[kind]:
            pairs = [
                [rate(kind, n, seconds, calls_each) for n in (1, num)]
                for _ in range(args.rounds)
            ]
            given = {"kind": kind, "workers": num, "seconds": seconds}
            given |= {"calls_each": calls_each, "rounds": args.rounds}
            one, many = np.transpose(pairs)
            numbers = {"one": one, "many": many, "share": many / (num * one)}
            path = args.output / "pool.jsonl"
            lines.append(records.append(path, "pool", [], given, numbers))
    console = records.console()
    table = Table(box=box.SIMPLE, title=f"Calls of {seconds} s")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for line in lines:
        table.add_row(*row(line))
    console.print(table)


def row(line: dict[str, Any]) -> tuple[str, ...]:
    settings, numbers = line["settings"], line["numbers"]
    rates = (f"{np.median(numbers[name]):.2f}" for name in ("one", "many"))
    low, middle, high = np.quantile(numbers["share"], [0, 0.5, 1])
    share = f"{middle:.3f} ({low:.3f} to {high:.3f})"
    return settings["kind"], f"{settings['workers']}", *rates, share


def markdown(lines: list[dict[str, Any]]) -> str:
    head = [f"| {' | '.join(COLUMNS)} |", f"|{' --- |' * len(COLUMNS)}"]
    body = [f"| {' | '.join(row(line))} |" for line in records.newest(lines)]
    told = (
        "A function that sleeps, in workers of an evaluation pool: n of them against n "
        "times one, timed in turn; the median share over rounds, and the range.\n"
    )
    return "\n".join([told, *head, *body])
