"""Fine-tune a language model from function values alone: figure 3 of the paper.

  --model minilm   all-MiniLM-L6-v2 as a classifier on SST-2, on any machine in minutes
  --model DIR      an OPT in a Hugging Face folder, or its name on the hub, with the
                   prompts, splits and objectives of MeZO on SST-2 or COPA
  --model stories260K
                   the same with a tiny Llama from the data folder: a check of the code
                   path in a minute; the model has no knowledge of the task

One Gaussian direction, central difference, batches of 16: two function values a step.
The committed results contain no run of a trained OPT. Its logits are tested against
those of PyTorch (`tests/test_opt.py`), and `memory` measures its steps.

A run is one method, one learning rate and one seed. After an interruption or a kill it
resumes from its checkpoint in --output, with the same bits as without one.

--full runs everything in the report: each method at the shared rate, at a matched rate,
and at its own, tuned on another seed (a walk in halves and quarters of a power of ten);
R-AdaZO by b1; and R-AdaZO by how its moments are stored. `taskset -c 1 python -m
benchmarks finetune --full --methods zo_sgd,meazo` can run on another core with the same
folder.
"""

import argparse
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from rich.table import Table
from safetensors.numpy import save_file

from benchmarks import finetune_report, methods, records
from benchmarks.checkpoints import Checkpoint, write_whole
from benchmarks.finetune_report import TUNING_SEED
from benchmarks.finetune_runs import Plan, run
from benchmarks.language import problems, tasks
from benchmarks.tuning import best, tune

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
SHARED = ("radazo", "zo_adamm", "zo_adamm_matched", "zo_rmsprop", "zo_sgd", "meazo")
FULL_SEEDS, PARTS = (0, 1, 2), (0.5, 0.25)
B1S = (0.0, 0.5, 0.8, 0.95, 0.99)
REDUCED = ("bfloat16", "per_part", "factored", "rebuilt")

Made = Callable[[Plan], dict[str, Any]]


def main(argv: list[str]) -> None:
    args = _arguments(argv)
    names = (
        "steps",
        "warmup",
        "batch_size",
        "smoothing",
        "b1",
        "moments",
        "eval_every",
    )
    first = Plan(
        args.methods[0],
        args.learning_rates[0],
        args.seeds[0],
        **{name: getattr(args, name) for name in names},
    )
    made = functools.partial(_made, args, functools.cache(lambda: _problem(args)))
    if args.full:
        lines = [*_full(args.methods, first, made)]
        records.console().print(finetune_report.markdown(lines))
        return
    lines = [
        made(first._replace(method=method, learning_rate=rate, seed=seed))
        for seed in args.seeds
        for rate in args.learning_rates
        for method in args.methods
    ]
    records.console().print(_table(args, lines))
    records.console().print(methods.CAVEAT)


def _full(chosen: list[str], first: Plan, made: Made) -> Iterator[dict[str, Any]]:
    """Return the lines of the report, for these methods."""
    plans = [
        first._replace(method=method, seed=seed)
        for method in chosen
        for seed in FULL_SEEDS
    ]
    if "radazo" in chosen:
        plain = first._replace(method="radazo")
        sweeps = [plain._replace(b1=b1) for b1 in B1S]
        sweeps += [plain._replace(moments=moments) for moments in REDUCED]
        plans += [plan._replace(seed=seed) for plan in sweeps for seed in FULL_SEEDS]
    yield from map(made, plans)
    for method in chosen:
        if method in methods.TUNED:  # A matched method has no rate of its own.
            yield from _tuned(first._replace(method=method), made)


def _tuned(plan: Plan, made: Made) -> Iterator[dict[str, Any]]:
    lines = {}

    def score(rate: float) -> float:
        lines[rate] = made(plan._replace(learning_rate=rate, seed=TUNING_SEED))
        return finetune_report.final_loss(lines[rate])

    rate = best(tune(score, plan.learning_rate, PARTS))
    yield from lines.values()
    for seed in FULL_SEEDS:
        yield made(plan._replace(learning_rate=rate, seed=seed))


def _made(
    args: argparse.Namespace, problem: Callable[[], problems.Problem], plan: Plan
) -> dict[str, Any]:
    """Return the line of a run, from the folder or new."""
    settings = _settings(args, plan)
    if args.output is None:
        numbers = run(problem(), plan)[0]
        return {"seeds": [plan.seed], "settings": settings, "numbers": numbers}
    path = args.output / "finetune.jsonl"
    found = records.find(records.read(path), [plan.seed], settings)
    if found is not None:
        return found
    checkpoint = Checkpoint(
        args.output, "finetune", records.identity([plan.seed], settings)
    )
    numbers, best_on_dev = run(problem(), plan, checkpoint)
    if not args.full:
        tensors = {name: np.asarray(x) for name, x in best_on_dev.items()}
        whole = checkpoint.path.with_suffix(".safetensors")
        write_whole(whole, functools.partial(save_file, tensors))
    line = records.append(path, "finetune", [plan.seed], settings, numbers)
    checkpoint.remove()
    return line


def _problem(args: argparse.Namespace) -> problems.Problem:
    if args.model == "minilm":
        return problems.of_minilm(args.data_dir)
    if args.model == "stories260K":
        return problems.of_stories(args.task, args.data_dir)
    dtype = DTYPES[args.dtype]
    return problems.of_opt(args.model, args.task, args.tune, args.data_dir, dtype)


def _settings(args: argparse.Namespace, plan: Plan) -> dict[str, Any]:
    settings = plan._asdict()
    del settings["seed"]
    if args.model == "minilm":
        return {"model": "minilm", "task": "sst2"} | settings
    if args.model == "stories260K":
        return {"model": args.model, "task": args.task} | settings
    model = {name: getattr(args, name) for name in ("model", "task", "tune", "dtype")}
    return model | settings


def _table(args: argparse.Namespace, lines: list[dict[str, Any]]) -> Table:
    table = Table(title=f"{args.model}, {args.steps} steps of two function values")
    for name in ("method", "rate", "seed", "train loss", "dev", "eval of best dev"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for line in lines:
        settings, numbers = line["settings"], line["numbers"]
        highest = max(x for x in numbers["dev_accuracies"] if x is not None)
        table.add_row(
            methods.METHODS[settings["method"]].label,
            f"{settings['learning_rate']:g}",
            f"{line['seeds'][0]}",
            f"{finetune_report.final_loss(line):.4f}",
            f"{highest:.3f}",
            f"{numbers['eval_accuracy_of_best']:.3f}",
        )
    return table


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1; got {number}")
    return number


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks finetune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    defaults, add = Plan._field_defaults, parser.add_argument
    add("--full", action="store_true", help="all runs of the report; takes hours")
    add("--model", default="minilm", help="minilm, stories260K, a folder, or a name")
    add("--task", choices=tasks.TASKS, default="sst2", help="for a causal model")
    add("--tune", choices=problems.TUNED, help="for an OPT; default all")
    add("--dtype", choices=DTYPES, help="for an OPT; default bfloat16")
    add("--methods", help="comma-separated; default radazo,zo_adamm")
    add("--learning-rates", type=float, nargs="+", default=[5e-5])
    add("--seeds", type=int, nargs="+", default=[0])
    add("--steps", type=_positive, default=1000)
    add("--eval-every", type=_positive, default=defaults["eval_every"])
    add("--warmup", type=int, default=defaults["warmup"], help="warm-up steps")
    add("--batch-size", type=_positive, default=defaults["batch_size"])
    add("--smoothing", type=float, default=defaults["smoothing"])
    add("--b1", type=float, default=defaults["b1"], help="for radazo")
    add(
        "--moments",
        choices=methods.MOMENTS,
        help="default held; for an OPT float32, in place",
    )
    add("--data-dir", type=Path, required=True)
    add("--output", type=Path, help="folder for lines and checkpoints")
    args = parser.parse_args(argv)
    is_opt = args.model not in ("minilm", "stories260K")
    given = {"--tune": args.tune, "--dtype": args.dtype}
    for option, value in given.items():
        if value and not is_opt:
            parser.error(f"{option} is for an OPT model only; got {args.model}")
    if args.model == "minilm" and args.task != "sst2":
        parser.error("--task must be sst2 with --model minilm")
    args.tune, args.dtype = args.tune or "all", args.dtype or "bfloat16"
    args.moments = args.moments or ("float32" if is_opt else defaults["moments"])
    if is_opt and args.moments == "held" and args.dtype == "bfloat16":
        parser.error(
            "--moments held needs --dtype float32, because bfloat16 weights round "
            "updates away. Or use --moments float32, in place"
        )
    names = args.methods or ",".join(SHARED if args.full else SHARED[:2])
    args.methods = methods.chosen(parser, "--methods", names, methods.METHODS)
    of_radazo = {
        f"--moments {args.moments}": args.moments in REDUCED[1:],
        f"--b1 {args.b1:g}": args.b1 != defaults["b1"],
    }
    for option, is_given in of_radazo.items():
        if is_given and args.methods != ["radazo"]:
            parser.error(f"{option} needs --methods radazo")
    if args.moments != "held" and "meazo" in args.methods:
        parser.error("--methods meazo needs --moments held: it has one second moment")
    given = (args.seeds, args.b1, args.moments, len(args.learning_rates))
    if args.full and given != ([0], defaults["b1"], defaults["moments"], 1):
        parser.error("--full sets the seeds, rates, b1 and moments itself")
    if args.full and args.output is None:
        parser.error("--full needs --output, because it takes hours")
    return args
