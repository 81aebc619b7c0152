"""Fine-tuning a language model with function values alone: figure 3 of the paper.

  --model minilm   all-MiniLM-L6-v2 as a classifier on SST-2, on any machine in minutes
  --model DIR      an OPT in a folder of Hugging Face, or its name on the hub, with the
                   prompts, the splits and the objectives of MeZO on SST-2 or COPA

One Gaussian direction, central difference, batches of 16: two function values a step.
OPT weights themselves could not be had where this was written: what is shown of them is
that their logits are those of PyTorch (`tests/test_opt.py`), and `memory`.

A run is one method, one learning rate and one seed. It can be interrupted, or killed,
and goes on from its checkpoint in --output, bit for bit as if nothing had happened.
"""

import argparse
import functools
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from rich.table import Table
from safetensors.numpy import save_file
from tqdm import tqdm

import radazo
from benchmarks import methods, records
from benchmarks.checkpoints import Checkpoint, write_whole
from benchmarks.language import problems, tasks

STEPS_PER_CALL = 50
_BLOCK = 50  # Steps whose mean loss is one number of a curve.
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
# How moments are kept: beside a gradient that is held, or in place.
MOMENTS = ("held", "float32", "bfloat16", "factored", "rebuilt")


class Plan(NamedTuple):
    """What is run."""

    method: str
    learning_rate: float
    seed: int
    steps: int
    batch_size: int = 16
    smoothing: float = 1e-3
    b1: float = methods.B1
    moments: str = "held"
    eval_every: int = 500


class Progress(NamedTuple):
    """What is kept of an unfinished run; curves are as long as the run."""

    steps_done: Any
    trained: Any
    state: Any
    losses: Any
    dev_losses: Any
    dev_accuracies: Any
    best: Any


def stepper(plan: Plan) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """(init, step): `step(value_fn, trained, state) -> (trained, state, value)`."""
    method = methods.METHODS[plan.method]
    rate = optax.scale(-plan.learning_rate * method.factor)
    rule = method.rule()
    if plan.b1 != methods.B1 and plan.method == "radazo":
        rule = radazo.scale_by_radazo(plan.b1, methods.B2, 0.0, methods.EPS_ROOT)
    options = {"num_directions": 1, "smoothing": plan.smoothing}
    options["difference"] = radazo.central
    if plan.moments == "held":
        estimator = radazo.gaussian_estimator(**options)
        held = radazo.with_estimator(estimator, optax.chain(rule, rate), plan.seed)

        def step(value_fn: Any, trained: Any, state: Any) -> Any:
            updates, state = held.update(None, state, trained, value_fn=value_fn)
            return optax.apply_updates(trained, updates), state, state.last_value

        return held.init, step
    own = _in_place(plan, optax.chain(rule, rate), rate, options)

    def step_in_place(value_fn: Any, trained: Any, state: Any) -> Any:
        trained, state, _ = own.step(value_fn, trained, state)
        return trained, state, state.last_value

    return own.init, step_in_place


def _in_place(plan: Plan, chain: Any, rate: Any, options: dict[str, Any]) -> Any:
    if plan.moments in ("float32", "bfloat16"):
        narrow = jnp.bfloat16 if plan.moments == "bfloat16" else None
        return radazo.in_place(chain, key=plan.seed, moment_dtype=narrow, **options)
    constants = {"b2": methods.B2, "eps_root": methods.EPS_ROOT}
    if plan.moments == "factored":
        rule = radazo.scale_by_radazo(plan.b1, granularity=radazo.factored, **constants)
        moments = {"moment_dtype": jnp.bfloat16}
    else:
        rule = radazo.scale_by_second_moment(granularity=radazo.factored, **constants)
        moments = {"b1": plan.b1}
    rule = optax.chain(rule, rate)
    return radazo.in_place(rule, key=plan.seed, **moments, **options)


def run(
    problem: problems.Problem, plan: Plan, checkpoint: Checkpoint | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The numbers of a run, and the parameters that were best on dev."""
    init, step = stepper(plan)
    train = problem.data["train"]

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def call(trained: Any, state: Any, frozen: Any, rows: jax.Array) -> Any:
        def turn(carry: Any, row: jax.Array) -> tuple[Any, jax.Array]:
            batch = {name: x[row] for name, x in train.items()}
            value_fn = functools.partial(problem.value, frozen=frozen, batch=batch)
            trained, state, value = step(value_fn, *carry)
            return (trained, state), value

        return lax.scan(turn, (trained, state), rows)

    now = _start(problem, plan, init)
    if checkpoint is not None:
        now = checkpoint.restored(now)
    done = int(now.steps_done)
    bar = tqdm(total=plan.steps, initial=done, desc=_name(plan), unit="step")
    with bar:
        while done < plan.steps:
            num = min(
                STEPS_PER_CALL, plan.steps - done, -done % plan.eval_every or 10**9
            )
            rows = np.stack(
                [_rows(plan, done + i, len(train["labels"])) for i in range(num)]
            )
            start = time.perf_counter()
            (trained, state), values = call(
                now.trained, now.state, problem.frozen, rows
            )
            now.losses[done : done + num] = np.asarray(values)
            seconds = time.perf_counter() - start
            done += num
            now = now._replace(
                steps_done=np.asarray(done), trained=trained, state=state
            )
            if done % plan.eval_every == 0 or done == plan.steps:
                now = _evaluated(problem, plan, now, done)
            num_tokens = 2 * num * plan.batch_size * problem.num_tokens
            shown = _shown(now, done, num_tokens, seconds)
            bar.set_postfix(shown, refresh=False)
            bar.update(num)
            if checkpoint is not None:
                checkpoint.keep(now)
    return _numbers(problem, now), now.best


def _start(problem: problems.Problem, plan: Plan, init: Any) -> Progress:
    num_evals = -(-plan.steps // plan.eval_every)
    trained = jax.tree.map(jnp.array, problem.trained)  # Copies: they are donated.
    return Progress(
        steps_done=np.asarray(0),
        trained=trained,
        state=init(trained),
        losses=np.zeros(plan.steps, np.float32),
        dev_losses=np.full(num_evals, np.nan),
        dev_accuracies=np.full(num_evals, np.nan),
        best=jax.tree.map(np.asarray, problem.trained),
    )


def _rows(plan: Plan, step: int, num_examples: int) -> np.ndarray:
    return tasks.batch_of(step, num_examples, plan.batch_size, plan.seed)


def _evaluated(
    problem: problems.Problem, plan: Plan, now: Progress, done: int
) -> Progress:
    loss, accuracy = problems.evaluated(problem, now.trained, "dev")
    i = -(-done // plan.eval_every) - 1
    if not np.any(now.dev_accuracies >= accuracy):
        now = now._replace(best=jax.tree.map(np.array, now.trained))
    now.dev_losses[i], now.dev_accuracies[i] = loss, accuracy
    return now


def _shown(now: Progress, done: int, num_tokens: int, seconds: float) -> dict[str, str]:
    recent = np.mean(now.losses[max(0, done - 100) : done])
    shown = {"loss": f"{recent:.4f}", "tokens/s": f"{num_tokens / seconds:.0f}"}
    shown["peak"] = f"{peak_memory() / 1e9:.2f} GB"
    if not np.isnan(now.dev_accuracies).all():
        shown["dev"] = f"{np.nanmax(now.dev_accuracies):.3f}"
    return shown


def peak_memory() -> int:
    """The most bytes that the device held so far; on CPU, the process."""
    found = jax.devices()[0].memory_stats() or {}
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return found.get("peak_bytes_in_use", own)


def _numbers(problem: problems.Problem, now: Progress) -> dict[str, Any]:
    train_loss, train_accuracy = problems.evaluated(problem, now.trained, "train")
    eval_loss, eval_accuracy = problems.evaluated(problem, now.best, "eval")
    block = min(_BLOCK, len(now.losses))
    blocks = now.losses[: len(now.losses) // block * block].reshape(-1, block)
    return {
        "losses": records.rounded(np.mean(blocks, axis=1)),
        "dev_losses": records.rounded(now.dev_losses),
        "dev_accuracies": records.rounded(now.dev_accuracies),
        "train_loss": train_loss,
        "train_accuracy": train_accuracy,
        "eval_loss_of_best": eval_loss,
        "eval_accuracy_of_best": eval_accuracy,
        "num_values": 2 * len(now.losses),
    }


def _name(plan: Plan) -> str:
    return f"{plan.method} {plan.learning_rate:g} seed {plan.seed}"


def _problem(args: argparse.Namespace) -> problems.Problem:
    if args.model == "minilm":
        return problems.of_minilm(args.data_dir)
    dtype = DTYPES[args.dtype]
    return problems.of_opt(args.model, args.task, args.tune, args.data_dir, dtype)


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks finetune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    defaults = Plan._field_defaults
    parser.add_argument("--model", default="minilm", help="minilm, a folder, or a name")
    parser.add_argument("--task", choices=tasks.TASKS, default="sst2", help="of an OPT")
    parser.add_argument("--tune", choices=("all", "lora"), default="all", help="of OPT")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of an OPT")
    parser.add_argument("--methods", default="radazo,zo_adamm", help="separated by ,")
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[2e-4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--eval-every", type=int, default=defaults["eval_every"])
    parser.add_argument("--batch-size", type=int, default=defaults["batch_size"])
    parser.add_argument("--smoothing", type=float, default=defaults["smoothing"])
    parser.add_argument("--b1", type=float, default=defaults["b1"], help="of radazo")
    parser.add_argument("--moments", choices=MOMENTS, default=defaults["moments"])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, help="folder of lines and checkpoints")
    args = parser.parse_args(argv)
    args.methods = methods.chosen(parser, "--methods", args.methods, methods.METHODS)
    rebuilding = args.moments in ("factored", "rebuilt")
    if rebuilding and args.methods != ["radazo"]:
        parser.error(
            f"--moments {args.moments}: is of R-AdaZO, --methods radazo, alone"
        )
    return args


def _settings(args: argparse.Namespace, plan: Plan) -> dict[str, Any]:
    settings = plan._asdict()
    del settings["seed"]
    if args.model == "minilm":
        return {"model": "minilm", "task": "sst2"} | settings
    model = {name: getattr(args, name) for name in ("model", "task", "tune", "dtype")}
    return model | settings


def main(argv: list[str]) -> None:
    args = _arguments(argv)
    names = ("steps", "batch_size", "smoothing", "b1", "moments", "eval_every")
    common = {name: getattr(args, name) for name in names}
    plans = [
        Plan(method, rate, seed, **common)
        for seed in args.seeds
        for rate in args.learning_rates
        for method in args.methods
    ]
    path = args.output / "finetune.jsonl" if args.output else None
    kept = records.read(path) if path else []
    problem = None
    table = Table(title=f"{args.model}, {args.steps} steps of two function values")
    for name in ("method", "rate", "seed", "train loss", "dev", "eval of best dev"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for plan in plans:
        settings = _settings(args, plan)
        line = records.find(kept, [plan.seed], settings)
        if line is None:
            problem = problem or _problem(args)
            line = _made(problem, plan, settings, args.output)
        numbers = line["numbers"]
        best = max(x for x in numbers["dev_accuracies"] if x is not None)
        table.add_row(
            methods.METHODS[plan.method].label,
            f"{plan.learning_rate:g}",
            f"{plan.seed}",
            f"{numbers['train_loss']:.4f}",
            f"{best:.3f}",
            f"{numbers['eval_accuracy_of_best']:.3f}",
        )
    records.console().print(table)
    records.console().print(methods.CAVEAT)


def _made(
    problem: problems.Problem, plan: Plan, settings: dict[str, Any], output: Path | None
) -> dict[str, Any]:
    """The line of a run, with its checkpoint and its best parameters in the folder."""
    if output is None:
        return {"numbers": run(problem, plan)[0]}
    identity = records.identity([plan.seed], settings)
    checkpoint = Checkpoint(output, "finetune", identity)
    numbers, best = run(problem, plan, checkpoint)
    tensors = {name: np.asarray(x) for name, x in best.items()}
    whole = checkpoint.path.with_suffix(".safetensors")
    write_whole(whole, functools.partial(save_file, tensors))
    path = output / "finetune.jsonl"
    line = records.append(path, "finetune", [plan.seed], settings, numbers)
    checkpoint.remove()
    return line
