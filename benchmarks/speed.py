"""Measure time and memory of one step: radazo against a plain implementation.

The plain step draws K directions by `jax.random.normal`, maps over them with
`jax.vmap`, and applies R-AdaZO in three lines. It is compared with `radazo.radazo(...)`
as a user calls it, one direction at a time. The floor is the unavoidable part: K + 1
evaluations of the function, and one pass over the parameters and both moments.

Sides are compiled separately and timed in turn, A B C A B C ..., each to its end
(`block_until_ready`), with many steps per call as in a run. The ratio is the median
over rounds of the ratio within a round.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import radazo
from benchmarks import figures, records
from benchmarks.problems import synthetic, transformer

SMOOTHING, LEARNING_RATE, B1, B2, EPS_ROOT = 5e-3, 1e-3, 0.9, 0.99, 1e-8
ESTIMATORS = {
    "gaussian": radazo.gaussian_estimator,
    "sphere": radazo.sphere_estimator,
    "rademacher": radazo.rademacher_estimator,
}
# Largest shares of the plain step, by (function, dim), for normal draws and for signs.
TARGETS = {
    ("quadratic", 10**4): (0.7, 0.2),
    ("rosenbrock", 10**4): (0.8, 0.25),
    ("quadratic", 10**7): (0.4, 0.2),
}


def plain_step(function: Callable[..., Any], num_directions: int) -> Callable[..., Any]:
    """Return the plain step that radazo is compared with."""

    def step(x, state):
        key, mu, nu = state
        key, sub = jax.random.split(key)
        keys = jax.random.split(sub, num_directions)
        directions = jax.vmap(lambda k: jax.random.normal(k, x.shape, x.dtype))(keys)
        base = function(x)
        values = jax.vmap(lambda u: function(x + SMOOTHING * u))(directions)
        slopes = (values - base) / SMOOTHING
        gradient = jnp.mean(slopes[:, None] * directions, axis=0)
        mu = B1 * mu + (1 - B1) * gradient
        nu = B2 * nu + (1 - B2) * mu**2
        return x - LEARNING_RATE * mu / jnp.sqrt(nu + EPS_ROOT), (key, mu, nu)

    return step


def radazo_step(
    function: Callable[..., Any], estimator: radazo.Estimator
) -> tuple[Callable[..., Any], Any]:
    """Return the step of the complete optimizer, and the optimizer."""
    optimizer = radazo.radazo(
        LEARNING_RATE, estimator, key=0, b1=B1, b2=B2, eps_root=EPS_ROOT
    )

    def step(x, state):
        updates, state = optimizer.update(None, state, x, value_fn=function)
        return optax.apply_updates(x, updates), state

    return step, optimizer


def floor_step(function: Callable[..., Any], num_directions: int) -> Callable[..., Any]:
    """Evaluate K + 1 times, and pass over parameters and moments once; draw nothing."""

    def step(x, state):
        mu, nu = state

        def one(total, k):
            return total + function(x + SMOOTHING * k), None

        ks = jnp.arange(1.0, num_directions + 1.0, dtype=x.dtype)
        total, _ = jax.lax.scan(one, function(x), ks)
        mu = B1 * mu + total * x
        nu = B2 * nu + (1 - B2) * mu**2
        return x - LEARNING_RATE * mu / jnp.sqrt(nu + EPS_ROOT), (mu, nu)

    return step


def time_sides(
    sides: dict[str, tuple[Callable[..., Any], Any, Any]], rounds: int, num_steps: int
) -> dict[str, np.ndarray]:
    """Return the seconds per step of each side in each round; sides take turns."""

    def repeated(step):
        return jax.jit(
            lambda x, state, num: jax.lax.fori_loop(
                0, num, lambda _, carry: step(*carry), (x, state)
            )
        )

    runs = {name: repeated(step) for name, (step, _, _) in sides.items()}
    for name, (_, x, state) in sides.items():
        jax.block_until_ready(runs[name](x, state, 1))
    seconds = {name: np.zeros(rounds) for name in sides}
    for round_ in tqdm(range(rounds), desc="rounds", leave=False, disable=None):
        for name, (_, x, state) in sides.items():
            start = time.perf_counter()
            jax.block_until_ready(runs[name](x, state, num_steps))
            seconds[name][round_] = (time.perf_counter() - start) / num_steps
    return seconds


def compare(
    name: str, dim: int, num_directions: int, rounds: int, chunk_size: int
) -> list[dict[str, Any]]:
    """Return a row per side: milliseconds, share of the plain step, temporaries."""
    function = synthetic.PROBLEMS[name].value_fn
    x = jax.random.normal(jax.random.key(1), (dim,))
    zeros = jnp.zeros_like(x)
    steps = {
        "plain": (
            plain_step(function, num_directions),
            (jax.random.key(0), zeros, zeros),
        ),
        "floor": (floor_step(function, num_directions), (zeros, zeros)),
    }
    for sampler, make in ESTIMATORS.items():
        estimator = make(
            num_directions=num_directions, smoothing=SMOOTHING, chunk_size=chunk_size
        )
        step, optimizer = radazo_step(function, estimator)
        steps[sampler] = (step, optimizer.init(x))
    sides = {side: (step, x, state) for side, (step, state) in steps.items()}
    seconds = time_sides(sides, rounds, max(5, 500_000 // dim))
    rows = []
    for side, times in seconds.items():
        step, state = steps[side]
        memory = jax.jit(step).lower(x, state).compile().memory_analysis()
        rows.append(
            {
                "function": name,
                "dim": dim,
                "num_directions": num_directions,
                "chunk_size": chunk_size,
                "side": side,
                "milliseconds": 1e3 * float(np.median(times)),
                "share_of_plain": float(np.median(times / seconds["plain"])),
                "temporaries_in_copies": memory.temp_size_in_bytes / x.nbytes,
                "at_most": _target(name, dim, side),
            }
        )
    return rows


def _target(name: str, dim: int, side: str) -> float | None:
    normal, signs = TARGETS.get((name, dim), (None, None))
    return {"gaussian": normal, "sphere": normal, "rademacher": signs}.get(side)


def first_order_step(value: Callable[..., Any]) -> tuple[Callable[..., Any], Any]:
    """Return a step of backpropagation and Adam, for comparison."""
    optimizer = optax.adam(LEARNING_RATE)

    def step(params, state):
        updates, state = optimizer.update(jax.grad(value)(params), state, params)
        return optax.apply_updates(params, updates), state

    return step, optimizer


def compile_times(num_layers: int, rounds: int) -> list[dict[str, Any]]:
    """Return the CPU seconds to trace and compile a step, and the function alone."""
    value, params = transformer.cross_entropy, transformer.parameters(num_layers)
    sides = {"function alone": (value, (params,))}
    for sampler, make in ESTIMATORS.items():
        step, optimizer = radazo_step(value, make())
        sides[f"radazo, {sampler}"] = (step, (params, optimizer.init(params)))
    step, optimizer = first_order_step(value)
    sides["backpropagation, adam"] = (step, (params, optimizer.init(params)))
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in tqdm(range(rounds), desc="compilations", leave=False, disable=None):
        for side, (fn, args) in sides.items():
            jax.clear_caches()
            # Processor time: compilation uses threads, and the machine may be shared.
            start = time.process_time()
            jax.jit(fn).lower(*args).compile()
            seconds[side].append(time.process_time() - start)
    alone = np.array(seconds["function alone"])
    return [
        {
            "leaves": len(jax.tree.leaves(params)),
            "compiled": side,
            "cpu_seconds": float(np.median(times)),
            "of_function_alone": float(np.median(np.array(times) / alone)),
            "at_most": 2.5 if side.startswith("radazo") else None,
        }
        for side, times in seconds.items()
    ]


def print_steps(console: Console, rows: list[dict[str, Any]]) -> None:
    table = Table(title="One step")
    columns = (
        "function",
        "d",
        "K",
        "step",
        "ms",
        "of plain",
        "at most",
        "temp, copies",
    )
    for column in columns:
        table.add_column(column, justify="left" if column == "step" else "right")
    for row in rows:
        table.add_row(
            row["function"],
            f"{row['dim']:.0e}",
            str(row["num_directions"]),
            row["side"],
            f"{row['milliseconds']:.3f}",
            f"{row['share_of_plain']:.3f}",
            "" if row["at_most"] is None else f"{row['at_most']:.2f}",
            f"{row['temporaries_in_copies']:.2f}",
        )
    console.print(table)


def print_compilation(console: Console, rows: list[dict[str, Any]]) -> None:
    table = Table(title=f"Compiling a model of {rows[0]['leaves']} leaves")
    table.add_column("compiled")
    for column in ("CPU s", "of function alone", "at most"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row["compiled"],
            f"{row['cpu_seconds']:.2f}",
            f"{row['of_function_alone']:.2f}",
            "" if row["at_most"] is None else f"{row['at_most']:.2f}",
        )
    console.print(table)


def markdown(lines: list[dict[str, Any]]) -> str:
    """Return the newest line as tables."""
    numbers = lines[-1]["numbers"]
    header = ["function", "d", "K", "step", "ms", "share of plain", "temporaries"]
    rows = [
        [
            row["function"],
            f"{row['dim']:,}",
            str(row["num_directions"]),
            row["side"],
            f"{row['milliseconds']:.3g}",
            f"{row['share_of_plain']:.2f}",
            f"{row['temporaries_in_copies']:.2f} copies",
        ]
        for row in numbers["steps"]
    ]
    compiled = [
        [
            row["compiled"],
            f"{row['cpu_seconds']:.2f}",
            f"{row['of_function_alone']:.2f}",
        ]
        for row in numbers["compilation"]
    ]
    leaves = numbers["compilation"][0]["leaves"]
    columns = [f"compiled, {leaves} leaves", "processor s", "of the function alone"]
    return (
        figures.markdown_table(header, rows)
        + "\n"
        + figures.markdown_table(columns, compiled)
    )


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks speed",
        description=__doc__.split("\n\n", maxsplit=1)[0],
    )
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--large-rounds", type=int, default=5, help="at d = 10^7")
    parser.add_argument("--no-large", action="store_true", help="leave d = 10^7 out")
    parser.add_argument("--chunk-size", type=int, default=1)
    parser.add_argument("--layers", type=int, default=11, help="nine leaves a layer")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/output"))
    args = parser.parse_args(argv)
    cases = [(name, 10**4, 10, args.rounds) for name in ("quadratic", "rosenbrock")]
    if not args.no_large:
        cases += [
            (name, 10**7, 4, args.large_rounds) for name in ("quadratic", "rosenbrock")
        ]
    rows = [
        row
        for name, dim, num_directions, rounds in cases
        for row in compare(name, dim, num_directions, rounds, args.chunk_size)
    ]
    console = records.console()
    print_steps(console, rows)
    compilation = compile_times(args.layers, 3)
    print_compilation(console, compilation)
    settings = {k: v for k, v in vars(args).items() if k != "output"}
    numbers = {"steps": rows, "compilation": compilation}
    records.append(args.output / "speed.jsonl", "speed", [0, 1], settings, numbers)
