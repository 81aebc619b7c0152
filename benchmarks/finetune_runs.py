"""A fine-tuning run of one method, learning rate and seed, which resumes after a kill.

One Gaussian direction, central difference: two function values a step.
"""

import functools
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from tqdm import tqdm

import radazo
from benchmarks import methods, records
from benchmarks.checkpoints import Checkpoint
from benchmarks.language import problems, tasks

try:
    import resource
except ImportError:  # On Windows.
    resource = None

STEPS_PER_CALL = 50
_BLOCK = 50  # Number of steps whose mean loss is one point of a curve.


class Plan(NamedTuple):
    """The settings of a run; `b1` is that of R-AdaZO, other methods have their own."""

    method: str
    learning_rate: float
    seed: int
    steps: int
    warmup: int = 100
    batch_size: int = 16
    smoothing: float = 1e-3
    b1: float = methods.B1
    moments: str = "held"
    eval_every: int = 100


class Progress(NamedTuple):
    """The state of an unfinished run; curves have the length of the run."""

    steps_done: Any
    trained: Any
    state: Any
    losses: Any
    train_losses: Any
    dev_losses: Any
    dev_accuracies: Any
    best: Any


def stepper(plan: Plan) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return init and `step(value_fn, trained, state) -> (trained, state, value)`."""
    method = methods.METHODS[plan.method]
    rate = optax.scale_by_schedule(_rate_of(plan))
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


def _rate_of(plan: Plan) -> Callable[[Any], Any]:
    """Return minus the learning rate: constant after its warm-up."""
    full = plan.learning_rate * methods.METHODS[plan.method].factor
    return lambda count: -full * jnp.minimum(1, (1 + count) / max(1, plan.warmup))


def _in_place(plan: Plan, chain: Any, rate: Any, options: dict[str, Any]) -> Any:
    if plan.moments in ("float32", "bfloat16"):
        narrow = jnp.bfloat16 if plan.moments == "bfloat16" else None
        return radazo.in_place(chain, key=plan.seed, moment_dtype=narrow, **options)
    constants = {"b2": methods.B2, "eps_root": methods.EPS_ROOT}
    if plan.moments == "factored":
        rule = radazo.scale_by_radazo(
            plan.b1, granularity=radazo.optimizers.factored, **constants
        )
        moments = {"moment_dtype": jnp.bfloat16}
    elif plan.moments == "per_part":
        rule = radazo.scale_by_radazo(
            plan.b1, granularity=radazo.optimizers.per_leaf, **constants
        )
        moments = {}
    else:
        rule = radazo.scale_by_second_moment(
            granularity=radazo.optimizers.factored, **constants
        )
        moments = {"b1": plan.b1}
    rule = optax.chain(rule, rate)
    return radazo.in_place(rule, key=plan.seed, **moments, **options)


def run(
    problem: problems.Problem, plan: Plan, checkpoint: Checkpoint | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the numbers of a run, and the parameters that were best on dev."""
    init, step = stepper(plan)
    train = problem.data["train"]

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def call(trained: Any, state: Any, frozen: Any, train: Any, rows: Any) -> Any:
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
            to_evaluation = plan.eval_every - done % plan.eval_every
            num = min(STEPS_PER_CALL, plan.steps - done, to_evaluation)
            rows = np.stack(
                [_rows(plan, done + i, len(train["labels"])) for i in range(num)]
            )
            start = time.perf_counter()
            (trained, state), values = call(
                now.trained, now.state, problem.frozen, train, rows
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
    trained = jax.tree.map(jnp.array, problem.trained)  # Donated: copy.
    return Progress(
        steps_done=np.asarray(0),
        trained=trained,
        state=init(trained),
        losses=np.zeros(plan.steps, np.float32),
        train_losses=np.array(
            [problems.evaluated(problem, trained, "train")[0], *[np.nan] * num_evals]
        ),
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
    now.train_losses[i + 1], _ = problems.evaluated(problem, now.trained, "train")
    return now


def _shown(now: Progress, done: int, num_tokens: int, seconds: float) -> dict[str, str]:
    recent = np.mean(now.losses[max(0, done - 100) : done])
    shown = {"loss": f"{recent:.4f}", "tokens/s": f"{num_tokens / seconds:.0f}"}
    shown["peak"] = f"{peak_memory() / 1e9:.2f} GB"
    if not np.isnan(now.dev_accuracies).all():
        shown["dev"] = f"{np.nanmax(now.dev_accuracies):.3f}"
    return shown


def peak_memory() -> int:
    """Return the peak bytes of the device so far; on CPU, of the process."""
    found = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in found or resource is None:
        return found.get("peak_bytes_in_use", 0)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _numbers(problem: problems.Problem, now: Progress) -> dict[str, Any]:
    train_loss, train_accuracy = problems.evaluated(problem, now.trained, "train")
    eval_loss, eval_accuracy = problems.evaluated(problem, now.best, "eval")
    block = min(_BLOCK, len(now.losses))
    blocks = now.losses[: len(now.losses) // block * block].reshape(-1, block)
    return {
        "losses": records.rounded(np.mean(blocks, axis=1)),
        "train_losses": records.rounded(now.train_losses, 6),
        "dev_losses": records.rounded(now.dev_losses),
        "dev_accuracies": records.rounded(now.dev_accuracies),
        "train_loss": train_loss,
        "train_accuracy": train_accuracy,
        "eval_loss_of_best": eval_loss,
        "eval_accuracy_of_best": eval_accuracy,
        "num_values": 2 * len(now.losses),
    }


def _name(plan: Plan) -> str:
    parts = [plan.method, f"{plan.learning_rate:.3g}", f"seed {plan.seed}"]
    if plan.b1 != methods.B1:
        parts.append(f"b1 {plan.b1:g}")
    if plan.moments != "held":
        parts.append(plan.moments)
    return " ".join(parts)
