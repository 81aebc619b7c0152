"""Attack an image classifier through its outputs alone.

  python -m benchmarks attack                                 bundled digits
  python -m benchmarks attack --dataset mnist --data-dir DIR  image 1 of the paper
  python -m benchmarks attack --full --data-dir DIR           table 1 of the paper

The first takes about 15 s of processor time, the second a minute:

  digits, 10 images x 1 seed, learning rate 0.01 for all, at most 20,000 steps

   method                 rate     images   iterations   function values
   radazo                 0.01   10 of 10          117               352
   zo_adamm               0.01   10 of 10          596             1,789
   zo_adamm (matched)   0.0436   10 of 10          143               430

  digits, 10 images, no learning rate, from θ = 0, at most 60,000 function values

   sign_search               –   10 of 10           12                12

"iterations" is the smallest t ≥ 0 with f(θₜ) < 0, "function values" the number of
values up to and including that one. All runs of a method form one batch, which
finished runs leave. Methods without a learning rate start at θ = 0, where every pixel
counts, and not at θ ~ N(0, 1) as in the paper; `sign_search` then goes to a vertex of
the box. They have as many function values as the others.

`--full` attacks 21 images of MNIST with 3 seeds each, at the learning rate of the paper
and at a tuned rate. Tuning uses other images and another seed. It chooses the rate with
the smallest median number of function values to success, where a failure counts as
infinite, and among equals the one with the smallest mean final f. Runs at rates that
can no longer win are stopped early. Each finished piece is a result line. The same
command, started again, continues with the missing pieces.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from benchmarks import attack_report, records
from benchmarks import attack_runs as runs
from benchmarks import attack_tuning as tuning
from benchmarks.attack_methods import LABELLED, UNTUNED
from benchmarks.checkpoints import Checkpoint
from benchmarks.methods import CAVEAT, METHODS, chosen
from benchmarks.problems import mnist
from benchmarks.victim import BOUNDS, Victim, victim_of

FULL = {
    "dataset": "mnist",
    "num_images": 21,
    "seeds": 3,
    "methods": "radazo,zo_adamm,zo_adamm_matched,zo_rmsprop",
    "tuned": "radazo,zo_adamm,zo_sgd",
    "untuned": "sign_search",
    "throughput": 100,
}
CURVE_POINTS = 60


class Experiment(NamedTuple):
    """The data that all pieces of work share.

    Attributes:
      args: The command-line options.
      victim: The classifier under attack.
      indices: Indices of the test images.
      seeds: Seeds of the runs of each image.
      protocol: Settings of every run.
      programs: Compiled programs by method.
      bar: Progress bar of the current piece.
    """

    args: argparse.Namespace
    victim: Victim
    indices: np.ndarray
    seeds: list[int]
    protocol: runs.Protocol
    programs: dict[str, runs.Program]
    bar: tqdm


def numbers(kind: type) -> Callable[[str], list[Any]]:
    def parsed(text: str) -> list[Any]:
        return [kind(part) for part in text.split(",")]

    parsed.__name__ = f"list of {kind.__name__}"
    return parsed


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks attack",
        description="Perturb images until a classifier reads the next digit, from its "
        "outputs alone.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    listed = ", ".join(f"{k.replace('_', '-')} {v}" for k, v in FULL.items())
    add("--full", action="store_true", help=f"table 1 of the paper: {listed}")
    add("--dataset", choices=BOUNDS, default="digits", help="digits is bundled")
    add(
        "--data-dir",
        type=Path,
        default=os.environ.get("RADAZO_DATA_DIR") or None,
        help="folder with mnist/ in it; by default the variable RADAZO_DATA_DIR",
    )
    add("--weights", type=Path, help=f"by default mnist/{mnist.WEIGHTS}, if any")
    add("--epochs", type=int, default=1, help="of training, if no weights are given")
    add(
        "--save-weights", type=Path, help="file to save the trained weights of mnist to"
    )
    add("--images", type=numbers(int), help="indices of test images, for example 1,5,7")
    add("--num-images", type=int, help="number of correctly classified images instead")
    add("--seeds", type=int, default=1, help="runs of each image")
    add("--seed", type=int, default=456, help="first seed, of starts and directions")
    add("--bound", type=float, help=f"largest change of a pixel; by default {BOUNDS}")
    add("--start", choices=["normal", "zeros"], default="normal", help="first θ")
    add("--steps", type=int, default=20000, help="largest number of steps")
    add("--num-directions", type=int, default=2, help="directions of a step, K")
    add("--smoothing", type=float, default=0.5, help="standard deviation of a change")
    add("--learning-rate", type=float, default=0.01, help="shared by all methods")
    add("--methods", default="radazo,zo_adamm", help=f"of {', '.join(METHODS)}")
    add("--tuned", default="", help="methods to run at a tuned rate as well")
    names = ", ".join(UNTUNED)
    add(
        "--untuned",
        default="sign_search",
        help=f"methods without a learning rate, from θ = 0, of {names}",
    )
    rates = [float(f"{1e-3 * 10 ** (k / 6):.2g}") for k in range(14)]
    add("--rates", type=numbers(float), default=rates, help="learning rates to try")
    add("--tuning-images", type=int, default=5, help="number of other images")
    add("--throughput", type=int, default=0, help="steps to time batches; 0: none")
    add("--output", type=Path, default=Path("benchmarks/output"), help="folder")
    if parser.parse_known_args(argv)[0].full:
        parser.set_defaults(**FULL)
    args = parser.parse_args(argv)
    checked(parser, args)
    return args


def checked(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    args.methods = chosen(parser, "--methods", args.methods, METHODS)
    tuned = args.tuned and chosen(parser, "--tuned", args.tuned, METHODS)
    args.tuned = tuned or []
    untuned = args.untuned and chosen(parser, "--untuned", args.untuned, UNTUNED)
    args.untuned = untuned or []
    args.bound = BOUNDS[args.dataset] if args.bound is None else args.bound
    least = min(args.steps, args.num_directions, args.epochs, args.seeds)
    if min(least, args.tuning_images, args.num_images or 1) < 1:
        parser.error(
            "--steps, --num-directions, --epochs, --seeds, --num-images and "
            "--tuning-images must be at least 1"
        )
    if args.dataset == "mnist" and args.data_dir is None:
        parser.error(
            "mnist: pass the data folder by --data-dir or RADAZO_DATA_DIR. "
            f"Put the four files of {mnist.SOURCE} in its folder mnist/."
        )


def main(argv: list[str]) -> None:
    args = arguments(argv)
    console = records.console()
    try:
        victim = victim_of(args)
    except FileNotFoundError as error:
        raise SystemExit(f"benchmarks attack: {error}") from None
    indices = selected(args, victim)
    console.print(
        f"{args.dataset}: the victim is right on {victim.accuracy:.2%} of the test "
        f"images. Attacked: {', '.join(map(str, indices))}.",
    )
    args.output.mkdir(parents=True, exist_ok=True)
    seeds = list(range(args.seed, args.seed + args.seeds))
    protocol = runs.Protocol(*(getattr(args, x) for x in runs.Protocol._fields))
    lines = []
    # tqdm shows a bar on terminals only (disable=None); elsewhere print a line.
    with tqdm(unit="step", disable=None, leave=False) as bar:
        work = Experiment(args, victim, indices, seeds, protocol, {}, bar)
        try:
            for piece in pieces(work):
                lines += [piece()]
        except KeyboardInterrupt:
            bar.write("Interrupted. Finished pieces:")
    if not lines:
        console.print("No method was finished.")
        return
    for table in attack_report.tables(lines):
        console.print(table)
    console.print(CAVEAT, style="dim")
    path = attack_report.draw(lines, args.output / f"attack_{args.dataset}.png")
    console.print(f"Figure: {path}\nResult lines: {lines_path(work)}")


def selected(args: argparse.Namespace, victim: Victim) -> np.ndarray:
    """Return the images to attack, without those that are already misclassified."""
    if args.images is None and args.num_images is None:
        args.images, args.num_images = {
            "digits": (None, 10),
            "mnist": ([1], None),
        }[args.dataset]
    if args.images is None:
        return victim.right[: args.num_images]
    indices = np.unique(args.images)
    if indices.min() < 0 or indices.max() >= len(victim.labels):
        last = len(victim.labels) - 1
        raise SystemExit(f"benchmarks attack: test images are 0 to {last}.")
    for index in np.setdiff1d(indices, victim.right):
        print(f"Image {index} is left out: it is classified as {victim.found[index]}.")
    indices = np.intersect1d(indices, victim.right)
    if not indices.size:
        raise SystemExit("benchmarks attack: no image is left to attack.")
    return indices


def pieces(work: Experiment) -> list[Callable[[], dict[str, Any]]]:
    """Return the pieces of work in order; each returns its result line when called."""
    args = work.args
    shared = [lambda name=name: attack_shared(work, name) for name in args.methods]
    measured = [lambda: measure_throughput(work, args.methods[0])]
    untuned = [lambda name=name: attack_untuned(work, name) for name in args.untuned]
    tuned = [lambda name=name: attack_tuned(work, name) for name in args.tuned]
    return [*shared, *(measured if args.throughput else []), *untuned, *tuned]


def lines_path(work: Experiment) -> Path:
    return work.args.output / "attack.jsonl"


def finished(
    work: Experiment,
    seeds: list[int],
    settings: dict[str, Any],
    do: Callable[[Checkpoint], dict[str, Any]],
    protocol: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the stored result line of a piece, or a new one from `do(checkpoint)`.

    Settings exclude folders, which differ between machines, and tuned rates, which are
    outcomes.
    """
    settings = {
        **(work.protocol._asdict() if protocol is None else protocol),
        "dataset": work.args.dataset,
        "victim": work.victim.name,
        "images": work.indices,
        **settings,
    }
    name = f"{settings['arm']}, {LABELLED[settings['method']].label}"
    work.bar.set_description(name)
    line = records.find(records.read(lines_path(work)), seeds, settings)
    if line is not None:
        work.bar.write(f"{name}: finished before")
        return line
    identity = records.identity(seeds, settings)
    checkpoint = Checkpoint(work.args.output, "attack", identity)
    found = do(checkpoint)
    line = records.append(lines_path(work), "attack", seeds, settings, found)
    checkpoint.remove()
    work.bar.write(f"{name}: {found['run_seconds']:.0f} s")
    return line


def program_of(work: Experiment, method: str) -> runs.Program:
    if method not in work.programs:
        work.programs[method] = runs.program(
            work.victim, LABELLED[method], protocol_of(work, method)
        )
    return work.programs[method]


def protocol_of(work: Experiment, method: str) -> runs.Protocol:
    """Return the protocol, at equal function values and from θ = 0 without a rate."""
    if method not in UNTUNED:
        return work.protocol
    steps = max_values(work.protocol) // UNTUNED[method].values_per_step
    return work.protocol._replace(start="zeros", steps=steps)


def max_values(protocol: runs.Protocol) -> int:
    """Return the function values of all steps with a learning rate."""
    return protocol.steps * (protocol.num_directions + 1)


def outcome_of(
    work: Experiment,
    method: str,
    rows: runs.Plan,
    checkpoint: Checkpoint,
    decided: Callable[[int, np.ndarray], bool] | None = None,
) -> runs.Outcome:
    return runs.run(
        program_of(work, method),
        rows,
        work.bar,
        # On digits, the steps take less time than compiling another program.
        compact=work.args.dataset != "digits",
        checkpoint=checkpoint,
        decided=decided,
    )


def attack_at(
    work: Experiment, arm: str, method: str, rate: float | None, seeds: list[int]
) -> Callable[[Checkpoint], dict[str, Any]]:
    """Return `do` for all reported runs of a method at one rate, or without."""

    def do(checkpoint: Checkpoint) -> dict[str, Any]:
        rows, (_, *shape) = runs.plan(work.victim, work.indices, seeds, [rate or 0.0])
        outcome = outcome_of(work, method, rows, checkpoint)
        picture = f"attack_{work.args.dataset}_{arm}_{method}.png"
        attack_report.draw_pictures(
            work.victim,
            work.indices,
            outcome,
            work.protocol.bound,
            work.args.output / picture,
        )
        return {
            "accuracy": work.victim.accuracy,
            "targets": work.victim.targets(work.indices),
            "rate": rate,
            "steps": outcome.steps.reshape(shape),
            "function_values": outcome.num_values.reshape(shape),
            "value_at_end": outcome.values.reshape(shape),
            "curve": curve(outcome),
            "run_seconds": outcome.run_seconds,
            "compile_seconds": outcome.compile_seconds,
        }

    return do


def curve(outcome: runs.Outcome) -> dict[str, np.ndarray]:
    """Return median and quartiles over runs; a finished run keeps its last value."""
    count = len(outcome.curve_at)
    at = np.unique(np.linspace(0, count - 1, CURVE_POINTS).astype(int))
    lower, median, upper = np.quantile(outcome.curve[at], [0.25, 0.5, 0.75], axis=1)
    return {
        "function_values": outcome.curve_at[at],
        "median": records.rounded(median),
        "lower": records.rounded(lower),
        "upper": records.rounded(upper),
    }


def attack_shared(work: Experiment, method: str) -> dict[str, Any]:
    rate = work.args.learning_rate
    settings = {"arm": "shared", "method": method, "learning_rate": rate}
    do = attack_at(work, "shared", method, rate * METHODS[method].factor, work.seeds)
    return finished(work, work.seeds, settings, do)


def attack_untuned(work: Experiment, method: str) -> dict[str, Any]:
    seeds = work.seeds if UNTUNED[method].is_random else work.seeds[:1]
    protocol = {
        "bound": work.protocol.bound,
        "start": "zeros",
        "max_values": max_values(work.protocol),
    }
    settings = {"arm": "untuned", "method": method}
    do = attack_at(work, "untuned", method, None, seeds)
    return finished(work, seeds, settings, do, protocol)


def attack_tuned(work: Experiment, method: str) -> dict[str, Any]:
    others = work.victim.right
    others = others[others > work.indices.max()][: work.args.tuning_images]
    if len(others) < work.args.tuning_images:
        raise SystemExit("benchmarks attack: too few images are left to tune on.")
    seed = work.seeds[-1] + 1
    rates = work.args.rates
    settings = {"arm": "tuning", "method": method, "images": others, "rates": rates}
    line = finished(work, [seed], settings, tune(work, method, others, seed))
    settings = {
        "arm": "tuned",
        "method": method,
        "rates": rates,
        "tuning_images": others,
        "tuning_seed": seed,
    }
    do = attack_at(work, "tuned", method, line["numbers"]["rate"], work.seeds)
    return finished(work, work.seeds, settings, do)


def tune(
    work: Experiment, method: str, others: np.ndarray, seed: int
) -> Callable[[Checkpoint], dict[str, Any]]:
    """Return `do` for the choice of a rate."""
    rates = work.args.rates

    def do(checkpoint: Checkpoint) -> dict[str, Any]:
        rows, (*shape, _) = runs.plan(work.victim, others, [seed], rates)
        outcome = outcome_of(
            work,
            method,
            rows,
            checkpoint,
            lambda taken, steps: tuning.is_decided(taken, steps.reshape(shape)),
        )
        counts = outcome.num_values.reshape(shape)
        values = outcome.values.reshape(shape)
        return {
            "rate": rates[tuning.best_rate(counts, values)],
            "function_values": counts,
            "value_at_end": values,
            "run_seconds": outcome.run_seconds,
            "compile_seconds": outcome.compile_seconds,
        }

    return do


def measure_throughput(work: Experiment, method: str) -> dict[str, Any]:
    """Measure the time per step and run in batches of several sizes, at equal work."""
    rate = work.args.learning_rate * METHODS[method].factor
    steps, total = work.args.throughput, len(work.indices) * len(work.seeds)
    sizes = sorted({x for x in (1, 8, len(work.indices), total) if x <= total})

    def do(_: Checkpoint) -> dict[str, Any]:
        rows, _ = runs.plan(work.victim, work.indices, work.seeds, [rate])
        program = program_of(work, method)
        wall, processor = runs.throughput(program, rows, sizes, steps, work.bar)
        return {
            "seconds_per_step_and_run": np.median(wall, axis=0),
            "processor_seconds_per_step_and_run": np.median(processor, axis=0),
            # Compare within a round, so that other load affects both sides alike.
            "times_one_by_one": np.median(wall[:, :1] / wall, axis=0),
            "seconds_of_rounds": wall,
            "run_seconds": float(wall.sum()) * steps * total,
        }

    settings = {"arm": "throughput", "method": method, "steps": steps, "sizes": sizes}
    return finished(work, work.seeds, settings, do)
