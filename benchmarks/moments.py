"""Why square the momentum: figure 2 of the paper, with the theory of its curves.

  python -m benchmarks moments                half a minute on two CPU cores

R-AdaZO runs on Quadratic, whose gradient is known, for several b1:

  cos g, cos m    cosine of the estimate and of the first moment with the gradient
  error of g²     relative distance of the second moment of the estimates (ZO-AdaMM's)
                  from that of the true gradients: ‖nu − nu*‖ / ‖nu*‖
  error of m²     the same for the second moment of the first moment (R-AdaZO's)

The command reports means over the steps t > 3 / (1 − b2), after the second moment has
warmed up. If estimates are mostly noise and the gradient hardly changes,

  cos g = √(K / (d + K))       cos m = √(Kₑ / (d + Kₑ)),  Kₑ = K (1 + b1) / (1 − b1)
  error of g² = d / (K √3)     error of m² = (1 − b1) / (1 + b1) · d / (K √3)

The first moment keeps more of the direction and less of the noise, up to the b1 at
which it lags behind the gradient; its square is the better second moment. It is also
smaller, by (1 − b1) / (1 + b1), which makes steps longer, as a larger learning rate
would (see `synthetic`).
"""

import argparse
import math
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from rich import box
from rich.table import Table
from tqdm import tqdm

import radazo
from benchmarks import figures, records
from benchmarks.methods import B2, EPS_ROOT, METHODS
from benchmarks.problems.synthetic import PROBLEMS

B1S = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
MEASURES = ("cos_g", "cos_m", "error_g", "error_m")
LABELS = ("cos g", "cos m", "error of g²", "error of m²")


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks moments",
        description="Compare both moments with the true gradient, against b1.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--dim", type=int, default=2000, help="number of parameters")
    add("--steps", type=int, default=600, help="of each run, with 300 of warm-up")
    add("--seeds", type=int, default=5, help="runs for each b1, in one program")
    add("--seed", type=int, default=456, help="first seed")
    add("--num-directions", type=int, default=10, help="directions of a step, K")
    add("--smoothing", type=float, default=5e-3, help="distance moved along one")
    add("--learning-rate", type=float, default=1e-3, help="of R-AdaZO")
    add("--b1", default=",".join(map(str, B1S)), help="separated by commas")
    add("--output", type=Path, default=Path("benchmarks/output"), help="folder")
    args = parser.parse_args(argv)
    args.b1 = [float(part) for part in args.b1.split(",")]
    if args.steps <= warm_up():
        parser.error(f"--steps: the first {warm_up()} are not counted")
    return args


def warm_up() -> int:
    return round(3 / (1 - B2))


def main(argv: list[str]) -> None:
    args = arguments(argv)
    console = records.console()
    path = args.output / "moments.jsonl"
    known, seeds = records.read(path), list(range(args.seed, args.seed + args.seeds))
    lines = []
    with tqdm(args.b1, unit="b1", disable=None, leave=False) as bar:
        try:
            for b1 in bar:
                given = settings(b1, args)
                line = records.find(known, seeds, given)
                if line is None:
                    numbers = measured(b1, args, seeds)
                    line = records.append(path, "moments", seeds, given, numbers)
                lines.append(line)
        except KeyboardInterrupt:
            bar.write("Interrupted. The same command continues with the missing runs.")
    if not lines:
        console.print("No run was finished.")
        return
    console.print(table(lines))
    console.print(f"Figure: {draw(lines, args.output)}\nResult lines: {path}")


def settings(b1: float, args: argparse.Namespace) -> dict[str, Any]:
    left_out = ("output", "seed", "seeds")
    given = {name: x for name, x in vars(args).items() if name not in left_out}
    return given | {"b1": b1, "function": "quadratic"}


def measured(b1: float, args: argparse.Namespace, seeds: list[int]) -> dict[str, Any]:
    """Return (seeds,) means of each measure over the counted steps."""
    started = time.perf_counter()
    with jax.enable_x64(True):
        run = jax.jit(jax.vmap(lambda seed: measures_of_run(seed, b1, args)))
        found = np.asarray(run(jnp.asarray(seeds))).mean(axis=1)
    numbers = dict(zip(MEASURES, found.T, strict=True))
    return numbers | {"seconds": time.perf_counter() - started}


def measures_of_run(seed: jax.Array, b1: float, args: argparse.Namespace) -> jax.Array:
    """Return the (counted steps, 4) measures of one run."""
    start_key, run_key = jax.random.split(jax.random.key(seed))
    estimator = radazo.sphere_estimator(
        num_directions=args.num_directions, smoothing=args.smoothing
    )
    value_fn = PROBLEMS["quadratic"].value_fn
    value_and_grad = radazo.value_and_grad(value_fn, estimator)
    rule = radazo.scale_by_radazo(b1=b1, b2=B2, eps_root=EPS_ROOT)
    second_moment = radazo.scale_by_second_moment(b2=B2, eps_root=EPS_ROOT)

    def step(carry: Any, t: jax.Array) -> Any:
        x, state, of_estimates, ideal = carry
        _, estimate = value_and_grad(jax.random.fold_in(run_key, t), x)
        true = jax.grad(value_fn)(x)
        update, state = rule.update(estimate, state)
        _, of_estimates = second_moment.update(estimate, of_estimates)
        _, ideal = second_moment.update(true, ideal)
        seen = jnp.stack(
            [
                radazo.diagnostics.cosine_similarity(estimate, true),
                radazo.diagnostics.cosine_similarity(state.mu, true),
                radazo.diagnostics.second_moment_error(of_estimates.nu, ideal.nu),
                radazo.diagnostics.second_moment_error(state.nu, ideal.nu),
            ]
        )
        x = optax.apply_updates(x, -args.learning_rate * update)
        return (x, state, of_estimates, ideal), seen

    x = jax.random.normal(start_key, args.dim)
    moments = second_moment.init(x)
    carry = (x, rule.init(x), moments, moments)
    return lax.scan(step, carry, jnp.arange(args.steps))[1][warm_up() :]


def theory(given: dict[str, Any]) -> dict[str, float]:
    """Return the expected measures while the gradient hardly changes."""
    dim, num, b1 = given["dim"], given["num_directions"], given["b1"]
    longer = (1 + b1) / (1 - b1)
    error = dim / (num * math.sqrt(3))
    return {
        "cos_g": math.sqrt(num / (dim + num)),
        "cos_m": math.sqrt(num * longer / (dim + num * longer)),
        "error_g": error,
        "error_m": error / longer,
    }


def rows(lines: list[dict[str, Any]]) -> list[list[str]]:
    """Return for each b1 the measured means over seeds, and the theory."""
    found = []
    for line in records.newest(lines):
        expected = theory(line["settings"])
        cells = [
            f"{np.mean(line['numbers'][name]):.3g} ({expected[name]:.3g})"
            for name in MEASURES
        ]
        found.append([f"{line['settings']['b1']:g}", *cells])
    return found


def title(lines: list[dict[str, Any]]) -> str:
    given = lines[0]["settings"]
    return (
        f"quadratic: d = {given['dim']:,}, K = {given['num_directions']}, steps "
        f"{warm_up()} to {given['steps']}, {len(lines[0]['seeds'])} seeds; brackets "
        "hold the theory for a constant gradient"
    )


def table(lines: list[dict[str, Any]]) -> Table:
    shown = Table(
        title=title(lines), box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left"
    )
    for column in ("b1", *LABELS):
        shown.add_column(column, justify="right", no_wrap=True)
    for row in rows(lines):
        shown.add_row(*row)
    return shown


def markdown(lines: list[dict[str, Any]]) -> str:
    return f"{title(lines)}\n\n{figures.markdown_table(['b1', *LABELS], rows(lines))}"


def draw(lines: list[dict[str, Any]], folder: Path) -> Path:
    """Draw cosines and errors against 1 − b1 in two panels; dotted lines are theory."""
    figure, panels = figures.figure_of(2, columns=2)
    x = np.array([1 - line["settings"]["b1"] for line in lines])
    colors = (METHODS["zo_adamm"].color, METHODS["radazo"].color)
    drawn = []
    for i, name in enumerate(MEASURES):
        panel, color = panels[i // 2], colors[i % 2]
        curves = np.array([line["numbers"][name] for line in lines]).T
        drawn.append(figures.draw_band(panel, x, curves, LABELS[i], color, "-"))
        expected = [theory(line["settings"])[name] for line in lines]
        panel.plot(x, expected, color=color, linestyle=":")
    for panel, name in zip(panels, ("cosine", "relative error"), strict=True):
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.invert_xaxis()
        panel.set_xlabel("1 − b1")
        panel.set_title(f"{name} (dotted: theory)")
    path = folder / "moments.png"
    figures.save(figure, drawn, path)
    return path
