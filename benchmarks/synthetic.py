"""R-AdaZO on the paper's synthetic functions: 3 times fewer steps, and why.

  python -m benchmarks synthetic           111 s of processor time, two CPU cores

  quadratic: d = 500, K = 10, 6000 steps, 3 seeds, f(x0) = 244

                                                      steps to   values to
   method                      f at the end (range)       10 %        10 %     s
   ─────────────────────────────────────────────────────────────────────────────
   radazo                  0.0584 (0.0539 – 0.0653)      1,641      18,051   5.5
   zo_adamm                      8.87 (8.51 – 11.8)      5,032      55,352   3.7
   zo_adamm (matched)      0.0613 (0.0533 – 0.0617)      1,175      12,925   6.0
   zo_rmsprop                    8.73 (8.31 – 11.6)      5,015      55,165   4.0
   zo_sgd               0.00231 (0.00217 – 0.00235)      1,185      13,035   3.6
   zo_signsgd                      29 (28.4 – 35.1)    not yet     not yet   3.6

Counted are the first t with f(xₜ) ≤ 0.1 · f(x₀), and the function values of t steps.
At the learning rate that the paper gives to all methods R-AdaZO needs 3.1 times fewer
steps than ZO-AdaMM on this function (2.9, 2.5 and 2.7 times on Cubic, Levy and
Rosenbrock), and ZO-RMSProp goes with ZO-AdaMM. That is a matter of the rate: ZO-AdaMM
with its rate matched is faster than R-AdaZO on all four. A shared rate is chance for
ZO-SGD too: this one suits Quadratic, and on Rosenbrock it diverges.

Double precision, since a difference over 0.005 loses digits in single.
"""

import argparse
import functools
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from matplotlib.figure import Figure
from rich import box
from rich.table import Table
from tqdm import tqdm

import radazo
from benchmarks import records
from benchmarks.methods import CAVEAT, METHODS, Method, chosen
from benchmarks.problems.synthetic import OF_THE_PAPER, PROBLEMS

NUM_CHUNKS = 20
REACHED = 0.1


class Curve(NamedTuple):
    """One method on one function.

    Attributes:
      values: (seeds, steps + 1), f of the parameters before each step and at the end.
      run_seconds, compile_seconds: Wall time of all steps, and of compiling them.
    """

    values: np.ndarray
    run_seconds: float
    compile_seconds: float


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks synthetic",
        description="Minimize the synthetic functions of the paper by every method.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--dim", type=int, default=500, help="number of parameters")
    add("--steps", type=int, default=6000, help="steps of each run")
    add("--seeds", type=int, default=3, help="runs of each method, in one program")
    add("--seed", type=int, default=456, help="the first of the seeds")
    add("--num-directions", type=int, default=10, help="directions of a step, K")
    add("--smoothing", type=float, default=5e-3, help="distance moved along one")
    add("--learning-rate", type=float, default=1e-3, help="shared by all methods")
    add("--dtype", choices=["float64", "float32"], default="float64", help="type of x")
    add("--functions", default=",".join(OF_THE_PAPER), help="separated by commas")
    add("--methods", default=",".join(METHODS), help="separated by commas")
    add("--output", type=Path, default=Path("benchmarks/output"), help="folder")
    args = parser.parse_args(argv)
    args.functions = chosen(parser, "--functions", args.functions, PROBLEMS)
    args.methods = chosen(parser, "--methods", args.methods, METHODS)
    smallest = min(args.dim - 1, args.steps, args.seeds, args.num_directions)
    if smallest < 1:
        parser.error("--dim is at least 2; --steps, --seeds, --num-directions, 1")
    return args


def main(argv: list[str]) -> None:
    args = arguments(argv)
    console = records.console()
    console.print(CAVEAT, style="dim")
    args.output.mkdir(parents=True, exist_ok=True)
    finished = {}
    total = len(args.functions) * len(args.methods) * args.steps
    # A bar on terminals only (disable=None); elsewhere a line for each function.
    with tqdm(total=total, unit="step", disable=None, leave=False) as bar:
        try:
            for name in args.functions:
                curves = run_function(name, args, bar)
                finished[name] = curves
                record(name, curves, args)
                seconds = sum(
                    c.run_seconds + c.compile_seconds for c in curves.values()
                )
                bar.write(f"{name}: {len(curves)} methods in {seconds:.0f} s")
        except KeyboardInterrupt:
            bar.write("Interrupted: what follows are the functions that were finished.")
    if not finished:
        console.print("No function was finished.")
        return
    for name, curves in finished.items():
        first = next(iter(curves.values())).values[:, 0]
        console.print(
            f"{name}: d = {args.dim}, K = {args.num_directions}, {args.steps} steps, "
            f"{args.seeds} seeds, f(x0) = {number(np.median(first))}",
        )
        console.print(table(curves, args.num_directions + 1))
    path = args.output / "synthetic.png"
    draw(finished, args, path)
    console.print(f"Figure: {path}\nResult lines: {args.output / 'synthetic.jsonl'}")


def run_function(name: str, args: argparse.Namespace, bar: tqdm) -> dict[str, Curve]:
    with jax.enable_x64(args.dtype == "float64"):
        curves = {}
        for method in args.methods:
            bar.set_description(f"{name}, {METHODS[method].label}")
            curves[method] = run(PROBLEMS[name].value_fn, METHODS[method], args, bar)
        return curves


def run(value_fn: Any, method: Method, args: argparse.Namespace, bar: tqdm) -> Curve:
    """All seeds of one method on one function: one program, called chunk by chunk."""
    estimator = radazo.sphere_estimator(
        num_directions=args.num_directions, smoothing=args.smoothing
    )
    make = functools.partial(method.make, args.learning_rate * method.factor, estimator)
    optimizer = make(key=0)  # The key of each run is in its state.

    @jax.jit
    @jax.vmap
    def start(seed: jax.Array) -> Any:
        start_key, run_key = jax.random.split(jax.random.key(seed))
        x = jax.random.normal(start_key, (args.dim,), args.dtype)
        return x, make(key=run_key).init(x)

    size = -(-args.steps // NUM_CHUNKS)

    def advance(carry: Any, num: jax.Array) -> Any:
        def step(i: jax.Array, carry: Any) -> Any:
            (x, state), values = carry
            updates, state = optimizer.update(None, state, x, value_fn=value_fn)
            x = optax.apply_updates(x, updates)
            return (x, state), values.at[i].set(state.last_value)

        values = jnp.zeros(size, carry[1].last_value.dtype)
        return lax.fori_loop(jnp.int32(0), num, step, (carry, values))

    started = time.perf_counter()
    carry = start(jnp.arange(args.seed, args.seed + args.seeds))
    num = jnp.int32(size)
    steps = jax.jit(jax.vmap(advance, in_axes=(0, None))).lower(carry, num).compile()
    compiled = time.perf_counter()
    parts = []
    for done in range(0, args.steps, size):
        num = min(size, args.steps - done)
        carry, values = steps(carry, jnp.int32(num))
        parts.append(np.asarray(values)[:, :num])
        bar.update(num)
    run_seconds = time.perf_counter() - compiled
    last = np.asarray(jax.vmap(value_fn)(carry[0]))[:, None]
    values = np.concatenate([*parts, last], axis=1)
    return Curve(values, run_seconds, compiled - started)


def reached(values: np.ndarray) -> np.ndarray:
    """(seeds,) the first step at which f ≤ 0.1 · f(x₀), infinity if there is none."""
    below = values <= REACHED * values[:, :1]
    return np.where(below.any(axis=1), np.argmax(below, axis=1), np.inf)


def number(x: float) -> str:
    return f"{x:,.0f}" if 1000 <= x < 1e7 else f"{x:.3g}"


def spread(values: np.ndarray) -> str:
    """Median and range of f at the end, or that most runs ended above their start."""
    at_end = values[:, -1]
    kept = at_end <= values[:, 0]  # False for NaN too.
    if 2 * kept.sum() < len(kept):
        return "diverged"
    return (
        f"{number(np.median(at_end))} ({number(at_end.min())} – {number(at_end.max())})"
    )


def count(x: np.ndarray) -> str:
    median = np.median(x)
    return f"{median:,.0f}" if np.isfinite(median) else "not yet"


def table(curves: dict[str, Curve], num_values: int) -> Table:
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    shown.add_column("method", no_wrap=True)
    for column in ("f at the end (range)", "steps to\n10 %", "values to\n10 %", "s"):
        shown.add_column(column, justify="right", no_wrap=True)
    for method, curve in curves.items():
        steps = reached(curve.values)
        shown.add_row(
            METHODS[method].label,
            spread(curve.values),
            count(steps),
            count(steps * num_values),
            f"{curve.run_seconds:.1f}",
        )
    return shown


def record(name: str, curves: dict[str, Curve], args: argparse.Namespace) -> None:
    settings = {
        k: v for k, v in vars(args).items() if k not in ("functions", "methods")
    }
    for method, curve in curves.items():
        steps = reached(curve.values)
        rate = args.learning_rate * METHODS[method].factor
        records.append(
            args.output / "synthetic.jsonl",
            "synthetic",
            list(range(args.seed, args.seed + args.seeds)),
            {**settings, "function": name, "method": method, "method_rate": rate},
            {
                "value_at_start": curve.values[:, 0],
                "value_at_end": curve.values[:, -1],
                "steps_to_tenth": steps,
                "function_values_to_tenth": steps * (args.num_directions + 1),
                "run_seconds": curve.run_seconds,
                "compile_seconds": curve.compile_seconds,
            },
        )


def draw(
    finished: dict[str, dict[str, Curve]], args: argparse.Namespace, path: Path
) -> None:
    """A panel for each function: median over seeds with a band from least to most."""
    columns = min(2, len(finished))
    rows = -(-len(finished) // columns)
    figure = Figure(figsize=(5 * columns, 3.4 * rows + 0.6), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for panel, (name, curves) in zip(panels.flat, finished.items(), strict=False):
        lines = draw_panel(panel, curves, args)
        panel.set_title(f"{name}, d = {args.dim}")
    for panel in panels.flat[len(finished) :]:
        panel.set_visible(False)
    figure.legend(handles=lines, loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=150)


def draw_panel(
    panel: Any, curves: dict[str, Curve], args: argparse.Namespace
) -> list[Any]:
    at = np.unique(np.linspace(0, args.steps, 400, dtype=int))
    x = at * (args.num_directions + 1)
    lines, lowest, highest = [], np.inf, 0.0
    for method, curve in curves.items():
        # The logarithm of infinity cannot be drawn; 1e30 is far outside of the panel.
        values = np.clip(np.nan_to_num(curve.values[:, at], nan=1e30), 1e-30, 1e30)
        lowest = min(lowest, float(values.min()))
        highest = max(highest, float(values[:, 0].max()))
        style = METHODS[method]
        middle = np.median(values, axis=0)
        lines += panel.plot(x, middle, style.dash, color=style.color, label=style.label)
        band = (values.min(axis=0), values.max(axis=0))
        panel.fill_between(x, *band, color=style.color, alpha=0.2, linewidth=0)
    panel.set_yscale("log")
    panel.set_ylim(lowest / 2, highest * 3)
    panel.set_xlabel("function values")
    panel.set_ylabel("f(x)")
    return lines
