"""Compare R-AdaZO and seven other rules on synthetic functions: figure 1 of the paper.

  python -m benchmarks synthetic             d = 500, the rate shared by all
  python -m benchmarks synthetic --full      d = 10,000, six functions, four arms

In each arm, all methods have the same starts and directions:

  shared      one learning rate for all, as in the paper
  tuned       each method has its own rate for each function, the one that ends lowest
              on other seeds: powers of 10, then quarters and sixteenths of a power
  cosine      the same, with rates that decay to 0 along a cosine
  precision   R-AdaZO in float64, float32, and float32 with differences term by term

A piece of work is an arm on a function. It writes its result lines when it is finished.
The same command, started again, continues where it stopped, also within a piece.
Precision is double except in the last arm, because a difference over a distance of
0.005 loses digits. Starts and directions are always drawn in single precision, so that
runs of two precisions are comparable.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from tqdm import tqdm

import radazo
from benchmarks import records, sweep, synthetic_figures, synthetic_report
from benchmarks.checkpoints import Checkpoint
from benchmarks.methods import CAVEAT, METHODS, TUNED, chosen
from benchmarks.problems.synthetic import OF_THE_PAPER, PROBLEMS
from benchmarks.synthetic_report import ARMS, LEVELS

POINTS = 80
TUNING_SEED = 1000
# A coarser grid would decide the ranking: a quarter of a power off costs 25 %.
RATES_PER_POWER = (1, 4, 16)
FULL = {
    "dim": 10_000,
    "steps": 20_000,
    "seeds": 5,
    "functions": ",".join(PROBLEMS),
    "arms": ",".join(ARMS),
    "tuning_seeds": 1,
}
PRECISIONS = (("float64", False), ("float32", False), ("float32", True))
PRECISION_FUNCTIONS, PRECISION_SMOOTHINGS = ("quadratic", "rosenbrock"), (1e-4, 1e-3)


def _draw(prepared: Any, k: jax.Array, dim: int, dtype: Any) -> jax.Array:
    """Draw a direction in single precision; double takes far longer.

    The condition always holds. XLA computes the operand of a condition once, and not
    again in the loop of each run that reads it.
    """
    return lax.cond(
        k < jnp.uint32(1 << 31),
        lambda: radazo.directions.sphere.draw(prepared, k, dim, jnp.float32).astype(
            dtype
        ),
        lambda: jnp.zeros(dim, dtype),
    )


SPHERE = radazo.directions.sphere._replace(draw=_draw)


class Piece(NamedTuple):
    """Methods on one function that run together.

    Attributes:
      arm, function: Names.
      methods: Names of methods.
      smoothing, dtype, terms, steps: Of the estimator, the parameters and the run.
    """

    arm: str
    function: str
    methods: tuple[str, ...]
    smoothing: float
    dtype: str
    terms: bool
    steps: int

    def __str__(self) -> str:
        terms = ", terms" if self.terms else ""
        detail = f", {self.smoothing:g}, {self.dtype}{terms}"
        return f"{self.function}, {self.arm}{detail if self.arm == 'precision' else ''}"


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks synthetic",
        description="Minimize synthetic functions with every method.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--full",
        action="store_true",
        help="the experiment of the paper and more: hours; sets the defaults of "
        + ", ".join(f"--{name.replace('_', '-')} {x}" for name, x in FULL.items()),
    )
    add("--dim", type=int, default=500, help="number of parameters")
    add("--steps", type=int, default=6000, help="steps of each run at a shared rate")
    add("--tuned-steps", type=int, default=5000, help="steps of each run when tuned")
    add("--seeds", type=int, default=3, help="runs of each method, in one program")
    add("--seed", type=int, default=456, help="first seed")
    add("--tuning-seeds", type=int, default=2, help=f"from {TUNING_SEED} on")
    add("--num-directions", type=int, default=10, help="directions of a step, K")
    add("--smoothing", type=float, default=5e-3, help="distance moved along one")
    add("--learning-rate", type=float, default=1e-3, help="shared by all methods")
    add("--dtype", choices=["float64", "float32"], default="float64", help="type of x")
    add("--functions", default=",".join(OF_THE_PAPER), help=f"of {', '.join(PROBLEMS)}")
    add("--methods", default=",".join(METHODS), help="separated by commas")
    add("--arms", default="shared", help=f"of {', '.join(ARMS)}")
    add("--output", type=Path, default=Path("benchmarks/output"), help="folder")
    if parser.parse_args(argv).full:
        parser.set_defaults(**FULL)
    args = parser.parse_args(argv)
    args.functions = chosen(parser, "--functions", args.functions, PROBLEMS)
    args.methods = chosen(parser, "--methods", args.methods, METHODS)
    args.arms = chosen(parser, "--arms", args.arms, ARMS)
    counts = (args.steps, args.tuned_steps, args.seeds, args.tuning_seeds)
    if min(args.dim - 1, args.num_directions, *counts) < 1:
        parser.error("--dim is at least 2, and every other count at least 1")
    if set(seeds_of(args)) & set(tuning_seeds_of(args)):
        parser.error(f"--seed must be below {TUNING_SEED}; others are for tuning")
    return args


def seeds_of(args: argparse.Namespace) -> list[int]:
    return list(range(args.seed, args.seed + args.seeds))


def tuning_seeds_of(args: argparse.Namespace) -> list[int]:
    return list(range(TUNING_SEED, TUNING_SEED + args.tuning_seeds))


def main(argv: list[str]) -> None:
    args = arguments(argv)
    console = records.console()
    console.print(CAVEAT, style="dim")
    path = args.output / "synthetic.jsonl"
    todo, lines = missing(pieces(args), args, records.read(path))
    if lines:
        console.print(f"{len(lines)} lines are in {path} already, and not run again.")
    total = sum(num_steps(piece) for piece in todo)
    # tqdm shows a bar on terminals only (disable=None); elsewhere print a line.
    with tqdm(total=total, unit="step", disable=None, leave=False) as bar:
        try:
            for piece in todo:
                bar.set_description(str(piece))
                kept: list[Checkpoint] = []
                curves, rates = run(piece, args, bar, kept)
                lines += record(piece, curves, rates, args, path)
                for checkpoint in kept:
                    checkpoint.remove()
                seconds = curves.run_seconds + curves.compile_seconds
                bar.write(f"{piece}: {len(piece.methods)} methods in {seconds:.0f} s")
        except KeyboardInterrupt:
            bar.write("Interrupted. The same command continues where it stopped.")
    if not lines:
        console.print("No piece was finished.")
        return
    for table in synthetic_report.tables(lines):
        console.print(table)
    for figure in synthetic_figures.draw(lines, args.output):
        console.print(f"Figure: {figure}")
    console.print(f"Result lines: {path}")


def pieces(args: argparse.Namespace) -> list[Piece]:
    """Return all the pieces, the short ones first."""
    found = []
    for arm in args.arms:
        if arm == "precision":
            found += precision_pieces(args)
            continue
        for function in args.functions:
            tuned = arm != "shared"
            known = TUNED if tuned else METHODS
            methods = tuple(name for name in args.methods if name in known)
            steps = args.tuned_steps if tuned else args.steps
            setting = (args.smoothing, args.dtype, False, steps)
            found.append(Piece(arm, function, methods, *setting))
    return [piece for piece in found if piece.methods]


def precision_pieces(args: argparse.Namespace) -> list[Piece]:
    smoothings = sorted({*PRECISION_SMOOTHINGS, args.smoothing})
    return [
        Piece("precision", function, ("radazo",), smoothing, dtype, terms, args.steps)
        for function in PRECISION_FUNCTIONS
        if function in args.functions
        for smoothing in smoothings
        for dtype, terms in PRECISIONS
    ]


def num_steps(piece: Piece) -> int:
    return piece.steps * (1 + len(RATES_PER_POWER) if tuned(piece) else 1)


def tuned(piece: Piece) -> bool:
    return piece.arm in ("tuned", "cosine")


def settings(piece: Piece, method: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return all settings needed to repeat a line, without its outcomes."""
    given = piece._asdict() | {"method": method}
    del given["methods"]
    given |= {"dim": args.dim, "num_directions": args.num_directions}
    if tuned(piece):
        tuning = {
            "tuning_seeds": tuning_seeds_of(args),
            "rates_per_power": RATES_PER_POWER,
        }
        return given | tuning
    return given | {"learning_rate": args.learning_rate}


def missing(
    todo: list[Piece], args: argparse.Namespace, known: list[dict]
) -> tuple[list[Piece], list[dict]]:
    """Return the pieces to run, and the lines of the others."""
    left, lines = [], []
    for piece in todo:
        found = [
            records.find(known, seeds_of(args), settings(piece, method, args))
            for method in piece.methods
        ]
        if None in found:
            left.append(piece)
        else:
            lines += found
    return left, lines


def run(
    piece: Piece, args: argparse.Namespace, bar: tqdm, kept: list[Checkpoint]
) -> tuple[sweep.Curves, dict[str, dict]]:
    """Return the curves of the reported seeds, the rates, and how they were found.

    `kept` receives a checkpoint of each sweep, which is needed until all is recorded.
    """

    def swept(rates: dict[str, np.ndarray], seeds: list[int]) -> sweep.Curves:
        given = [settings(piece, method, args) for method in piece.methods]
        identity = records.identity(seeds, {"settings": given, "rates": rates})
        kept.append(Checkpoint(args.output, "synthetic", identity))
        return sweep.run(plan(piece, args, rates, seeds), bar, kept[-1])

    if tuned(piece):
        rates = tune(swept, piece.methods, tuning_seeds_of(args))
    else:
        shared = args.learning_rate
        rates = {m: {"rate": shared * METHODS[m].factor} for m in piece.methods}
    single = {m: np.array([found["rate"]]) for m, found in rates.items()}
    return swept(single, seeds_of(args)), rates


def tune(
    swept: Callable[[dict[str, np.ndarray], list[int]], sweep.Curves],
    methods: tuple[str, ...],
    seeds: list[int],
) -> dict[str, dict]:
    """Return for each method the rate with the lowest final median over seeds."""
    tried: dict[str, dict[float, float]] = {method: {} for method in methods}
    rates = {method: np.array(METHODS[method].rates) for method in methods}
    for finer in (*RATES_PER_POWER[1:], None):
        curves = swept(rates, seeds)
        for method, values in curves.values.items():
            at_end = np.median(np.nan_to_num(values[..., -1], nan=np.inf), axis=1)
            found = zip(rates[method].tolist(), at_end.tolist(), strict=True)
            tried[method] |= dict(found)
        if finer is not None:
            around = 10 ** (np.array([-3, -2, -1, 1, 2, 3]) / finer)
            rates = {m: best(found) * around for m, found in tried.items()}
    return {
        method: {
            "rate": best(found),
            "rates_tried": sorted(found),
            "values_tried": [found[rate] for rate in sorted(found)],
        }
        for method, found in tried.items()
    }


def best(found: dict[float, float]) -> float:
    return min(found, key=lambda rate: found[rate])


def plan(
    piece: Piece, args: argparse.Namespace, rates: dict[str, Any], seeds: list[int]
) -> sweep.Plan:
    problem = PROBLEMS[piece.function]
    value_fn = problem.terms_fn if piece.terms else problem.value_fn
    estimator = radazo.finite_difference_estimator(
        SPHERE,
        num_directions=args.num_directions,
        smoothing=piece.smoothing,
        terms=piece.terms,
    )
    cosine = piece.arm == "cosine"
    return sweep.Plan(
        value_fn, estimator, args.dim, piece.dtype, rates, seeds, piece.steps, cosine
    )


def record(
    piece: Piece,
    curves: sweep.Curves,
    rates: dict[str, dict],
    args: argparse.Namespace,
    path: Path,
) -> list[dict]:
    """Write a line for each method."""
    at = np.unique(np.linspace(0, piece.steps, POINTS + 1, dtype=int))
    lines = []
    for method, of_rates in curves.values.items():
        values = of_rates[0]  # There is one rate: (seeds, steps + 1).
        numbers = {
            **rates[method],
            "value_at_start": values[:, 0],
            "value_at_end": values[:, -1],
            "steps_to": {level: reached(values, float(level)) for level in LEVELS},
            "curve_at_step": at,
            "curve": records.rounded(values[:, at]),
            "run_seconds": curves.run_seconds,
            "compile_seconds": curves.compile_seconds,
        }
        given = settings(piece, method, args)
        lines.append(records.append(path, "synthetic", seeds_of(args), given, numbers))
    return lines


def reached(values: np.ndarray, level: float) -> np.ndarray:
    """Return (seeds,) the first step at which f ≤ level · f(x₀); infinity if none."""
    below = values <= level * values[:, :1]
    return np.where(below.any(axis=1), np.argmax(below, axis=1), np.inf)
