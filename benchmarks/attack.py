"""Black-box attack on an image classifier, by its answers alone.

  python -m benchmarks attack              15 s of processor time, two CPU cores

  digits: the victim is right on 92.80% of the test images. Attacked: 0, 1, 2, ...

                         radazo            zo_adamm
       image   label      steps   values      steps   values
   ─────────────────────────────────────────────────────────
           0   0 → 1        136      409        516    1,549
           1   1 → 2        121      364        676    2,029
         ...
      median                 82      246        400    1,201
   successes           10 of 10            10 of 10

  python -m benchmarks attack --dataset mnist --data-dir DIR    320 s, both cores busy

           1   2 → 3      5,359   16,078     13,915   41,746

Counted are the smallest t with f(θₜ) < 0, t from 0, and the function values up to and
with that one. At a shared rate R-AdaZO needs 2.6 to 4.9 times fewer steps; ZO-AdaMM
with its rate matched (--methods zo_adamm_matched) needs 84 (median) on the digits and
5,150 on MNIST.
"""

import argparse
import functools
import os
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
from benchmarks.problems import attack as problem
from benchmarks.problems import mnist
from benchmarks.victim import BOUNDS, Victim, victim_of

STEPS_PER_CALL = 250
SHOWN = 5


class Outcome(NamedTuple):
    """One method on all images.

    Attributes:
      thetas: (n, height, width), the first with f < 0, or the last.
      steps: (n,) smallest t with f(θₜ) < 0, or infinity.
      num_values: (n,) function values up to and with the first below 0, or infinity.
      run_seconds, compile_seconds: Wall time of all steps, and of compiling them.
    """

    thetas: jax.Array
    steps: np.ndarray
    num_values: np.ndarray
    run_seconds: float
    compile_seconds: float


def whole_numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks attack",
        description="Perturb images until a classifier sees the next digit in them, "
        "by its answers alone.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--dataset", choices=BOUNDS, default="digits", help="digits is bundled")
    add(
        "--data-dir",
        type=Path,
        default=os.environ.get("RADAZO_DATA_DIR") or None,
        help="folder in which mnist/ lies; by default the variable RADAZO_DATA_DIR",
    )
    add("--weights", type=Path, help=f"by default mnist/{mnist.WEIGHTS}, if there")
    add("--epochs", type=int, default=1, help="of training, if there are no weights")
    add("--save-weights", type=Path, help="where to keep weights trained for mnist")
    add(
        "--images",
        type=whole_numbers,
        help="test images from 0, as 1,5,7; one twice starts twice",
    )
    add("--bound", type=float, help=f"largest change of a pixel; by default {BOUNDS}")
    add("--start", choices=["normal", "zeros"], default="normal", help="first θ")
    add("--steps", type=int, default=20000, help="largest number of steps")
    add("--num-directions", type=int, default=2, help="directions of a step, K")
    add("--smoothing", type=float, default=0.5, help="standard deviation of a move")
    add("--learning-rate", type=float, default=0.01, help="shared by all methods")
    add("--methods", default="radazo,zo_adamm", help=f"of {', '.join(METHODS)}")
    add("--seed", type=int, default=456, help="of starts and directions")
    add("--output", type=Path, default=Path("benchmarks/output"), help="folder")
    args = parser.parse_args(argv)
    args.methods = chosen(parser, "--methods", args.methods, METHODS)
    args.bound = BOUNDS[args.dataset] if args.bound is None else args.bound
    if min(args.steps, args.num_directions, args.epochs) < 1:
        parser.error("--steps, --num-directions and --epochs are at least 1")
    if args.dataset == "mnist" and args.data_dir is None:
        parser.error(
            "mnist: say where the data lie, by --data-dir or RADAZO_DATA_DIR. "
            f"The four files of {mnist.SOURCE} belong into its folder mnist/."
        )
    return args


def main(argv: list[str]) -> None:
    args = arguments(argv)
    console = records.console()
    try:
        victim = victim_of(args, console)
    except FileNotFoundError as error:
        raise SystemExit(f"benchmarks attack: {error}") from None
    console.print(
        f"{args.dataset}: the victim is right on {victim.accuracy:.2%} of the test "
        f"images. Attacked: {', '.join(map(str, victim.indices))}.",
    )
    args.output.mkdir(parents=True, exist_ok=True)
    outcomes = {}
    try:
        for method in args.methods:
            outcomes[method] = run(victim, METHODS[method], args)
            record(method, outcomes[method], victim, args)
    except KeyboardInterrupt:
        console.print("Interrupted: what follows are the methods that were finished.")
    if not outcomes:
        console.print("No method was finished.")
        return
    console.print(table(victim, outcomes))
    console.print(CAVEAT, style="dim")
    path = args.output / f"attack_{args.dataset}.png"
    draw(victim, outcomes, args, path)
    console.print(f"Figure: {path}\nResult lines: {args.output / 'attack.jsonl'}")


def run(victim: Victim, method: Method, args: argparse.Namespace) -> Outcome:
    """All images in one program, until all have succeeded or the steps are spent."""
    start, advance = program(victim, method, args)
    seeds = jax.random.split(jax.random.key(args.seed), len(victim.indices))
    carry = start(seeds, victim.images)
    given = (victim.weights, victim.images, jnp.asarray(victim.targets))
    started = time.perf_counter()
    steps = advance.lower(carry, given, jnp.int32(0)).compile()
    compiled = time.perf_counter()
    taken, all_done = 0, False
    with tqdm(
        total=args.steps, desc=method.label, unit="step", disable=None, leave=False
    ) as bar:
        while taken < args.steps and not all_done:
            limit = min(taken + STEPS_PER_CALL, args.steps)
            carry = steps(carry, given, jnp.int32(limit))
            before, taken, done = taken, int(carry[0]), np.asarray(carry[1][2])
            all_done = bool(done.all())
            bar.set_postfix_str(f"{done.sum()} of {done.size} succeeded", refresh=False)
            bar.update(taken - before)
    run_seconds = time.perf_counter() - compiled
    thetas, state, done = carry[1]
    # The state stands where the value below 0 was seen: that value is one more.
    return Outcome(
        thetas,
        np.where(done, np.asarray(state.count), np.inf),
        np.where(done, np.asarray(state.num_values) + 1, np.inf),
        run_seconds,
        compiled - started,
    )


def program(victim: Victim, method: Method, args: argparse.Namespace) -> Any:
    """`start(keys, images) -> carry` and `advance(carry, given, limit) -> carry`."""
    estimator = radazo.gaussian_estimator(
        num_directions=args.num_directions,
        smoothing=args.smoothing,
        chunk_size=args.num_directions,
    )
    rate = args.learning_rate * method.factor
    make = functools.partial(method.make, rate, estimator)
    optimizer = make(key=0)  # The key of each image is in its state.
    value_fn = problem.objective(victim.log_probs, args.bound)

    def start_one(key: jax.Array, image: jax.Array) -> Any:
        start_key, run_key = jax.random.split(key)
        theta = jax.random.normal(start_key, image.shape, image.dtype)
        theta = theta if args.start == "normal" else jnp.zeros_like(theta)
        return theta, make(key=run_key).init(theta), jnp.asarray(False)

    def step_one(one: Any, weights: Any, image: jax.Array, target: jax.Array) -> Any:
        theta, state, done = one
        updates, new = optimizer.update(
            None,
            state,
            theta,
            value_fn=value_fn,
            weights=weights,
            image=image,
            target=target,
        )
        # Forward differences: the value of the step is f(θ) before the update.
        done = done | (new.last_value < 0)
        moved = (optax.apply_updates(theta, updates), new)
        theta, state = jax.tree.map(
            lambda old, now: jnp.where(done, old, now), (theta, state), moved
        )
        return theta, state, done

    @jax.jit
    def start(keys: jax.Array, images: jax.Array) -> Any:
        return jnp.int32(0), jax.vmap(start_one)(keys, images)

    @jax.jit
    def advance(carry: Any, given: Any, limit: jax.Array) -> Any:
        weights, images, targets = given
        step = jax.vmap(step_one, in_axes=(0, None, 0, 0))
        return lax.while_loop(
            lambda carry: (carry[0] < limit) & ~jnp.all(carry[1][2]),
            lambda carry: (carry[0] + 1, step(carry[1], weights, images, targets)),
            carry,
        )

    return start, advance


def number(x: float) -> str:
    return f"{x:,.0f}" if np.isfinite(x) else "not yet"


def table(victim: Victim, outcomes: dict[str, Outcome]) -> Table:
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    shown.add_column("image", justify="right", no_wrap=True)
    shown.add_column("label", no_wrap=True)
    for method in outcomes:
        name = METHODS[method].label.replace(" ", "\n")
        shown.add_column(f"{name}\nsteps", justify="right", no_wrap=True)
        shown.add_column("values", justify="right", no_wrap=True)
    for i, index in enumerate(victim.indices):
        cells = [
            number(x[i]) for o in outcomes.values() for x in (o.steps, o.num_values)
        ]
        shown.add_row(str(index), f"{victim.labels[i]} → {victim.targets[i]}", *cells)
    shown.add_section()
    medians = [
        number(np.median(x)) for o in outcomes.values() for x in (o.steps, o.num_values)
    ]
    shown.add_row("median", "", *medians)
    successes = [
        text
        for o in outcomes.values()
        for text in (f"{np.isfinite(o.steps).sum()} of {o.steps.size}", "")
    ]
    shown.add_row("successes", "", *successes)
    seconds = [text for o in outcomes.values() for text in (f"{o.run_seconds:.1f}", "")]
    shown.add_row("seconds", "", *seconds)
    return shown


def record(
    method: str, outcome: Outcome, victim: Victim, args: argparse.Namespace
) -> None:
    # Folders are not settings: they differ from machine to machine.
    left_out = ("methods", "images", "data_dir", "weights", "save_weights", "output")
    settings = {k: v for k, v in vars(args).items() if k not in left_out}
    rate = args.learning_rate * METHODS[method].factor
    records.append(
        args.output / "attack.jsonl",
        "attack",
        [args.seed],
        {
            **settings,
            "method": method,
            "method_rate": rate,
            "images": victim.indices,
            "targets": victim.targets,
        },
        {
            "accuracy": victim.accuracy,
            "successes": int(np.isfinite(outcome.steps).sum()),
            "steps": outcome.steps,
            "function_values": outcome.num_values,
            "run_seconds": outcome.run_seconds,
            "compile_seconds": outcome.compile_seconds,
        },
    )


def draw(
    victim: Victim,
    outcomes: dict[str, Outcome],
    args: argparse.Namespace,
    path: Path,
) -> None:
    """A row for each image: as it is; for each method what is added, and the sum."""
    rows = min(SHOWN, len(victim.indices))
    columns = 1 + 2 * len(outcomes)
    figure = Figure(figsize=(1.9 * columns, 2.1 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for i in range(rows):
        image = victim.images[i]
        show(panels[i, 0], image, f"image {victim.indices[i]}\n{said(victim, image)}")
        for j, (method, outcome) in enumerate(outcomes.items()):
            result = problem.attacked(outcome.thetas[i], image, args.bound)
            added, summed = panels[i, 1 + 2 * j], panels[i, 2 + 2 * j]
            title = f"{METHODS[method].label}\nafter {number(outcome.steps[i])}"
            limits = {"vmin": -args.bound, "vmax": args.bound}
            show(added, result - image, title, cmap="RdBu", **limits)
            show(summed, result, f"to be {victim.targets[i]}\n{said(victim, result)}")
    figure.savefig(path, dpi=130)


def said(victim: Victim, image: jax.Array) -> str:
    """What the victim says: the likeliest label and its probability."""
    probs = np.exp(np.asarray(victim.log_probs(victim.weights, image)))
    return f"says {probs.argmax()} ({probs.max():.0%})"


def show(panel: Any, image: jax.Array, title: str, **style: Any) -> None:
    style = {"cmap": "gray", "vmin": 0, "vmax": 1, **style}
    panel.imshow(np.asarray(image), **style)
    panel.set_title(title, fontsize="small")
    panel.set_axis_off()
