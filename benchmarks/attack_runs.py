"""Run all runs of one method as one batch, and remove finished runs from it.

A run is one image, one seed and one learning rate. The batch advances in calls of
`STEPS_PER_CALL` steps. Between calls the unfinished runs are gathered into a batch of
the next size on `LADDER`, so that programs are compiled for a few sizes only. The state
of a run (parameters, key, count, moments) is a row of `Runs` and moves with it. The
batch of a run affects only the last digits of its values.
"""

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
from benchmarks import methods
from benchmarks.attack_methods import Untuned
from benchmarks.checkpoints import Checkpoint
from benchmarks.problems import attack as problem
from benchmarks.victim import Victim

STEPS_PER_CALL = 100
ROUNDS = 3
# Sizes grow by at most 1.5 from 2 on, so at most a third of a batch is padding.
LADDER = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)


class Protocol(NamedTuple):
    """Settings that all runs of an experiment share.

    Attributes:
      bound: Largest change of a pixel.
      start: Initial θ: "normal" or "zeros".
      steps: Largest number of steps.
      num_directions, smoothing: Of the Gaussian estimator.
    """

    bound: float
    start: str
    steps: int
    num_directions: int
    smoothing: float


class Plan(NamedTuple):
    """Starts and targets of the runs, one row each.

    Attributes:
      seeds: (n,) seeds of starts and directions.
      indices: (n,) test images; seed and index make the key of a run.
      images: (n, height, width) in [0, 1].
      targets: (n,) target labels.
      rates: (n,) learning rates.
    """

    seeds: np.ndarray
    indices: np.ndarray
    images: np.ndarray
    targets: np.ndarray
    rates: np.ndarray


class Runs(NamedTuple):
    """The state of the runs, one row each.

    Attributes:
      theta: (n, height, width), the first θ with f < 0, or the last one.
      state: Optimizer state at θ.
      value: (n,) the last f(θ).
      done: (n,) whether it is below 0.
    """

    theta: Any
    state: Any
    value: Any
    done: Any


class Outcome(NamedTuple):
    """The outcome of one method in all its runs.

    Attributes:
      thetas: (n, height, width), the first θ with f < 0, or the last one.
      steps: (n,) smallest t with f(θₜ) < 0, or infinity.
      num_values: (n,) values up to and including the first below 0, or infinity.
      values: (n,) the last f(θ).
      curve_at: (points,) numbers of function values at the points of the curve.
      curve: (points, n), the last f(θ) at each of them.
      run_seconds, compile_seconds: Wall time of all steps, and of compilation.
    """

    thetas: np.ndarray
    steps: np.ndarray
    num_values: np.ndarray
    values: np.ndarray
    curve_at: np.ndarray
    curve: np.ndarray
    run_seconds: float
    compile_seconds: float


def plan(
    victim: Victim, indices: Any, seeds: Any, rates: Any
) -> tuple[Plan, tuple[int, int, int]]:
    """Return a row for each rate, image and seed, in that order, and their shape."""
    shape = len(rates), len(indices), len(seeds)
    rate, index, seed = (
        x.ravel() for x in np.meshgrid(rates, indices, seeds, indexing="ij")
    )
    rows = Plan(
        seeds=seed.astype(np.int32),
        indices=index.astype(np.int32),
        images=np.asarray(victim.pixels(index)),
        targets=victim.targets(index),
        rates=rate.astype(np.float32),
    )
    return rows, shape


class Program(NamedTuple):
    """The steps of one method, compiled once for each batch size.

    Attributes:
      start: `start(rows) -> runs`, before their first step.
      advance: `advance(runs, rows, num, below=0.0) -> runs`, at most `num` steps of
        each; a run ends where f < `below`.
      compile_seconds: By batch size.
      protocol: The settings of its runs.
      values_per_step: Function values of a step.
      values_before: Values of a step up to that of its θ; 0 if it is known before.
    """

    start: Callable[[Plan], Runs]
    advance: Callable[..., Runs]
    compile_seconds: dict[int, float]
    protocol: Protocol
    values_per_step: int
    values_before: int


def program(
    victim: Victim, method: methods.Method | Untuned, protocol: Protocol
) -> Program:
    start, steps = _functions(victim.log_probs, method, protocol)
    compiled, compile_seconds = {}, {}

    def advance(runs: Runs, rows: Plan, num: int, below: float = 0.0) -> Runs:
        size = len(rows.rates)
        given = (runs, rows, victim.weights, jnp.int32(num), jnp.float32(below))
        if size not in compiled:
            started = time.perf_counter()
            compiled[size] = steps.lower(*given).compile()
            compile_seconds[size] = time.perf_counter() - started
        return jax.tree.map(np.asarray, compiled[size](*given))

    # Copy, because rows are written to.
    return Program(
        lambda rows: jax.tree.map(np.array, start(rows)),
        advance,
        compile_seconds,
        protocol,
        *(
            (method.values_per_step, method.values_before)
            if isinstance(method, Untuned)
            else (protocol.num_directions + 1, 1)
        ),
    )


def _functions(
    log_probs: problem.LogProbs, method: methods.Method | Untuned, protocol: Protocol
) -> tuple[Any, Any]:
    """Return `start(rows)` and `advance(runs, rows, weights, num, below)`, of runs."""
    # One direction at a time: the runs fill a batch, and with two batch axes (runs and
    # directions) XLA takes twice the time on a CPU.
    estimator = radazo.gaussian_estimator(
        num_directions=protocol.num_directions,
        smoothing=protocol.smoothing,
        chunk_size=1,
    )
    value_fn = problem.objective(log_probs, protocol.bound)

    def optimizer(rate: Any, key: Any) -> optax.GradientTransformationExtraArgs:
        if isinstance(method, Untuned):
            return method.optimizer(protocol.bound, key)
        return methods.optimizer(method, rate, estimator, key)

    def start_one(row: Plan) -> Runs:
        key = jax.random.fold_in(jax.random.key(row.seeds), row.indices)
        start_key, run_key = jax.random.split(key)
        theta = jax.random.normal(start_key, row.images.shape, row.images.dtype)
        theta = theta if protocol.start == "normal" else jnp.zeros_like(theta)
        state = optimizer(row.rates, run_key).init(theta)
        return Runs(theta, state, jnp.float32(jnp.inf), jnp.asarray(False))

    def step_one(run: Runs, row: Plan, weights: Any, below: jax.Array) -> Runs:
        # The key of each run is in its state.
        updates, state = optimizer(row.rates, 0).update(
            None,
            run.state,
            run.theta,
            value_fn=value_fn,
            weights=weights,
            image=row.images,
            target=row.targets,
        )
        # The value of the step is f(θ) before the update.
        value = jnp.where(run.done, run.value, state.last_value)
        done = run.done | (value < below)
        moved = (optax.apply_updates(run.theta, updates), state)
        theta, state = jax.tree.map(
            lambda old, new: jnp.where(done, old, new), (run.theta, run.state), moved
        )
        return Runs(theta, state, value, done)

    def advance(
        runs: Runs, rows: Plan, weights: Any, num: jax.Array, below: jax.Array
    ) -> Runs:
        step = jax.vmap(step_one, in_axes=(0, 0, None, None))
        _, runs = lax.while_loop(
            lambda carry: (carry[0] < num) & ~jnp.all(carry[1].done),
            lambda carry: (carry[0] + 1, step(carry[1], rows, weights, below)),
            (jnp.int32(0), runs),
        )
        return runs

    return jax.jit(jax.vmap(start_one)), jax.jit(advance)


def run(
    program: Program,
    rows: Plan,
    bar: tqdm,
    *,
    compact: bool,
    checkpoint: Checkpoint | None = None,
    decided: Callable[[int, np.ndarray], bool] | None = None,
) -> Outcome:
    """Advance all runs until each has succeeded or has taken all steps.

    `compact` removes finished runs from the batch. A run resumes from `checkpoint`.
    `decided(taken, steps)` ends the batch early.
    """
    total = program.protocol.steps
    runs, taken, seconds = program.start(rows), 0, 0.0
    curve = np.zeros((0, *runs.value.shape), runs.value.dtype)
    if checkpoint is not None:
        runs, taken, seconds, curve = checkpoint.restored((runs, taken, seconds, curve))
    compiled = sum(program.compile_seconds.values())
    bar.reset(total)
    while taken < total and not runs.done.all():
        if decided is not None and decided(taken, steps_of(runs)):
            break
        num = min(STEPS_PER_CALL, total - taken)
        started, compiling = time.perf_counter(), sum(program.compile_seconds.values())
        chosen = batch_of(runs.done, compact)
        part = program.advance(_take(runs, chosen), _take(rows, chosen), num)
        for old, new in zip(jax.tree.leaves(runs), jax.tree.leaves(part), strict=True):
            old[chosen] = new
        compiling -= sum(program.compile_seconds.values())
        seconds += time.perf_counter() - started + compiling
        taken += num
        curve = np.concatenate([curve, runs.value[None]])
        bar.set_postfix_str(f"{runs.done.sum()} of {runs.done.size}", refresh=False)
        bar.update(taken - bar.n)
        if checkpoint is not None:
            checkpoint.keep((runs, taken, seconds, curve))
    compiled = sum(program.compile_seconds.values()) - compiled
    return _outcome(program, runs, curve, float(seconds), compiled)


def batch_of(done: np.ndarray, compact: bool) -> np.ndarray:
    """Return the rows of the next batch: the unfinished runs, padded with repeats."""
    if not compact:
        return np.arange(len(done))
    unfinished = np.flatnonzero(~done)
    fitting = (size for size in LADDER if size >= len(unfinished))
    return np.resize(unfinished, min(next(fitting, len(done)), len(done)))


def steps_of(runs: Runs) -> np.ndarray:
    """Return (n,) smallest t with f(θₜ) < 0, or infinity."""
    return np.where(runs.done, runs.state.count, np.inf)


def _outcome(
    program: Program,
    runs: Runs,
    curve: np.ndarray,
    run_seconds: float,
    compile_seconds: float,
) -> Outcome:
    calls, per_step = np.arange(len(curve)) + 1, program.values_per_step
    taken = np.minimum(calls * STEPS_PER_CALL, program.protocol.steps)
    before = program.values_before
    return Outcome(
        thetas=runs.theta,
        steps=steps_of(runs),
        # The state is at the point with the value below 0.
        num_values=np.where(runs.done, runs.state.num_values + before, np.inf),
        values=runs.value,
        curve_at=(taken - 1) * per_step + before,
        curve=curve,
        run_seconds=run_seconds,
        compile_seconds=compile_seconds,
    )


def _take(rows: Any, chosen: np.ndarray) -> Any:
    return jax.tree.map(lambda x: x[chosen], rows)


def throughput(
    program: Program, rows: Plan, sizes: list[int], steps: int, bar: tqdm
) -> tuple[np.ndarray, np.ndarray]:
    """Return (rounds, sizes) wall and processor seconds per step and run.

    The work is equal: all runs take `steps` steps, `size` of them at a time, without
    early stopping. Sizes take turns, so that other load affects all of them alike.
    """
    runs, n = program.start(rows), len(rows.rates)
    bar.reset((ROUNDS + 1) * len(sizes) * n)
    found = []
    for turn in range(ROUNDS + 1):
        # The first round compiles and warms up.
        num = steps if turn else 1
        timed = [_timed(program, runs, rows, size, num, bar) for size in sizes]
        found += [timed] if turn else []
    wall, processor = np.moveaxis(np.array(found), -1, 0)
    return wall, processor


def _timed(
    program: Program, runs: Runs, rows: Plan, size: int, steps: int, bar: tqdm
) -> np.ndarray:
    """Return wall and processor seconds per step and run, in batches of one size."""
    n, clocks = len(rows.rates), (time.perf_counter, time.process_time)
    # Pad the last batch, so that one program is timed.
    order = np.resize(np.arange(n), -(-n // size) * size)
    started = [clock() for clock in clocks]
    for chosen in order.reshape(-1, size):
        program.advance(_take(runs, chosen), _take(rows, chosen), steps, -np.inf)
        bar.update(min(size, n))
    return np.subtract([clock() for clock in clocks], started) / (steps * len(order))
