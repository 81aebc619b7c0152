"""Measure the memory of one fine-tuning step by mode, before renting a machine for it.

Programs are compiled for shapes, and run only with `--repeats`, so that a laptop can
measure a model of any size. The numbers are those of `compiled.memory_analysis()` for
the program of a step: arguments (parameters, state, batch) and results, counted once
where results take the memory of donated arguments, and temporaries. The compiler of
another device may need other amounts; the result line records the device. The CPU
backend has no bfloat16 products and converts stacked bfloat16 weights to float32 before
the loop over them: there, read the excess over inference, not the ratio. A direction
drawn as a whole has at most 2³² elements, so the rows of opt-13b that hold a gradient
are empty.

The objective is the mean negative log-probability of the last tokens of each row, as in
scoring the options of a prompt.
"""

import argparse
import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from rich.table import Table

import radazo
from benchmarks import records
from benchmarks.figures import markdown_table
from benchmarks.language import opt

RATE, B1 = 1e-6, 0.9
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
HEADER = ("mode", "GB", "of inference", "temporaries, GB", "s per step")
NOTE = (
    "Counted from the compiled program of a step. Seconds are the median of a few "
    "steps on a shared machine, where the program was run. On CPU, XLA converts "
    "stacked bfloat16 weights to float32 before the loop over them, also for "
    "inference: for bfloat16, read the difference to inference. Opt-13b has no rows "
    "for a held gradient, because its directions would be drawn as a whole.\n"
)
# Largest multiples of the memory of inference, for "small" in float32.
LIMITS = {
    "evaluation": 1.06,
    "ZO-SGD": 1.10,
    "R-AdaZO": 3.1,
    "R-AdaZO, bfloat16 moments": 2.15,
    "R-AdaZO, bfloat16 momentum, factored": 1.65,
    "R-AdaZO, rebuilt momentum, factored": 1.2,
}


@dataclasses.dataclass(frozen=True)
class Work:
    """The model, type and batch to measure."""

    config: opt.Config
    dtype: Any
    batch_size: int
    length: int
    num_last: int = 3

    @property
    def params(self) -> Any:
        return opt.abstract(self.config, self.dtype)

    @property
    def num_parameters(self) -> int:
        return sum(x.size for x in jax.tree.leaves(self.params))

    @property
    def ids(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((self.batch_size, self.length), jnp.int32)

    def value(self, params: Any, ids: jax.Array) -> jax.Array:
        mask = (ids != self.config.pad_token_id).astype(jnp.int32)
        found = opt.log_likelihoods(self.config, params, ids, mask, self.num_last)
        return -jnp.mean(found)


def in_place(rule: Any, **options: Any) -> Callable[[Work], Any]:
    """Return a step that copies nothing, and the function that makes its state."""
    optimizer = radazo.in_place(optax.chain(rule, optax.scale(-RATE)), key=0, **options)

    def make(work: Work) -> tuple[Any, Any]:
        def step(params: Any, state: Any, ids: jax.Array) -> tuple[Any, Any]:
            return optimizer.step(work.value, params, state, ids=ids)[:2]

        return step, optimizer.init

    return make


def with_gradient(optimizer: Any) -> Callable[[Work], Any]:
    """Return a step that holds its gradient: of backpropagation, or of an estimator."""

    def make(work: Work) -> tuple[Any, Any]:
        def step(params: Any, state: Any, ids: jax.Array) -> tuple[Any, Any]:
            value_fn = functools.partial(work.value, ids=ids)
            if isinstance(state, radazo.optimizers.WithEstimatorState):
                gradient = None
                extra = {"value_fn": value_fn}
            else:
                gradient, extra = jax.grad(value_fn)(params), {}
            updates, state = optimizer.update(gradient, state, params, **extra)
            return optax.apply_updates(params, updates), state

        return step, optimizer.init

    return make


def inference(work: Work) -> tuple[Any, Any]:
    return lambda params, state, ids: work.value(params, ids), lambda params: ()


def evaluation(work: Work) -> tuple[Any, Any]:
    """Return one value along a direction, without building the point."""
    value = radazo.evaluate.perturbed_value_fn(work.value)

    def step(params: Any, state: Any, ids: jax.Array) -> Any:
        return value(state, params, 1e-3, ids=ids)

    return step, lambda params: jax.random.key(0)


def evaluation_of_a_copy(work: Work) -> tuple[Any, Any]:
    """Return one value along a direction, at a perturbed copy."""

    def step(params: Any, state: Any, ids: jax.Array) -> Any:
        leaves, treedef = jax.tree.flatten(params)
        keys = jax.random.split(state, len(leaves))
        moved = [
            x + jnp.asarray(1e-3, x.dtype) * jax.random.normal(key, x.shape, x.dtype)
            for key, x in zip(keys, leaves, strict=True)
        ]
        return work.value(treedef.unflatten(moved), ids)

    return step, lambda params: jax.random.key(0)


ESTIMATOR = radazo.gaussian_estimator(
    num_directions=1, smoothing=1e-3, difference=radazo.central
)
MODES = {
    "inference": inference,
    "evaluation": evaluation,
    "evaluation of a copy": evaluation_of_a_copy,
    "ZO-SGD": in_place(optax.identity()),
    "R-AdaZO": in_place(radazo.scale_by_radazo()),
    "R-AdaZO, bfloat16 moments": in_place(
        radazo.scale_by_radazo(), moment_dtype=jnp.bfloat16
    ),
    "R-AdaZO, a second moment per part": in_place(
        radazo.scale_by_radazo(granularity=radazo.optimizers.per_leaf)
    ),
    "R-AdaZO, bfloat16 momentum, factored": in_place(
        radazo.scale_by_radazo(granularity=radazo.optimizers.factored),
        moment_dtype=jnp.bfloat16,
    ),
    "R-AdaZO, rebuilt momentum, factored": in_place(
        radazo.scale_by_second_moment(granularity=radazo.optimizers.factored), b1=B1
    ),
    "R-AdaZO, held gradient": with_gradient(radazo.radazo(RATE, ESTIMATOR, key=0)),
    "ZO-SGD, held gradient": with_gradient(radazo.zo_sgd(RATE, ESTIMATOR, key=0)),
    "Adam, backpropagation": with_gradient(optax.adam(RATE)),
}


def moves(mode: str) -> bool:
    """Return whether a step returns parameters and state rather than a value."""
    return mode not in ("inference", "evaluation", "evaluation of a copy")


def measured(work: Work, mode: str) -> dict[str, int]:
    """Return the bytes of the program of a step."""
    step, init = MODES[mode](work)
    # Results take the memory of donated parameters and state.
    program = jax.jit(step, donate_argnums=(0, 1) if moves(mode) else ())
    lowered = program.lower(work.params, jax.eval_shape(init, work.params), work.ids)
    # Buffers are assigned before machine code is generated, which is not needed.
    found = lowered.compile({"xla_backend_optimization_level": 0}).memory_analysis()
    sizes = {
        "arguments": found.argument_size_in_bytes,
        "results": found.output_size_in_bytes - found.alias_size_in_bytes,
        "temporaries": found.temp_size_in_bytes,
    }
    return sizes | {"total": sum(sizes.values())}


def seconds_per_step(work: Work, mode: str, repeats: int) -> float:
    """Return the median time of a step of a model with random parameters."""
    step, init = MODES[mode](work)
    program = jax.jit(step, donate_argnums=(0, 1) if moves(mode) else ())
    params = opt.random(work.config, jax.random.key(0), work.dtype)
    state = jax.jit(init)(params)
    ids = jax.random.randint(jax.random.key(1), work.ids.shape, 2, 100)
    found = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        out = jax.block_until_ready(program(params, state, ids))
        found.append(time.perf_counter() - start)
        params, state = out if moves(mode) else (params, state)
    return statistics.median(found[1:])  # The first step includes compilation.


def is_too_large(work: Work, mode: str) -> bool:
    """Return whether a direction drawn as a whole would have too many elements."""
    return mode.endswith("held gradient") and work.num_parameters >= 1 << 32


def row(mode: str, found: dict[str, Any], first: dict[str, Any]) -> list[str]:
    seconds = found.get("seconds_per_step")
    return [
        mode,
        f"{found['total'] / 1e9:.3f}",
        f"{found['total'] / first['total']:.3f}",
        f"{found['temporaries'] / 1e9:.3f}",
        "–" if seconds is None else f"{seconds:.3g}",
    ]


def markdown(lines: list[dict[str, Any]]) -> str:
    """Return a table for each shape, type and batch of the lines."""
    groups: dict[str, dict[str, dict[str, Any]]] = {}
    for line in lines:
        given = line["settings"]
        name = (
            f"{given['model']}, {given['parameters']:,} parameters, {given['dtype']}, "
            f"{given['batch_size']} x {given['length']} tokens, "
            f"{line['device']['kind']}"
        )
        groups.setdefault(name, {})[given["mode"]] = line["numbers"]
    parts = []
    for name, group in groups.items():
        first = group.get("inference", {"total": math.nan})
        rows = [row(mode, group[mode], first) for mode in group]
        parts += [f"**{name}**\n", markdown_table(HEADER, rows)]
    return "\n".join([*parts, NOTE])


def settings(work: Work, model: str, mode: str) -> dict[str, Any]:
    return {
        "model": model,
        "parameters": work.num_parameters,
        "dtype": jnp.dtype(work.dtype).name,
        "batch_size": work.batch_size,
        "length": work.length,
        "mode": mode,
    }


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", choices=opt.SHAPES, default="small")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--length", type=int, default=64, help="tokens of a row")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=[*MODES])
    parser.add_argument("--repeats", type=int, default=0, help="steps that are timed")
    parser.add_argument("--output", type=Path, help="folder of result lines")
    args = parser.parse_args(argv)
    work = Work(
        opt.SHAPES[args.model], DTYPES[args.dtype], args.batch_size, args.length
    )
    table = Table(
        title=f"{args.model}, {args.dtype}, {args.batch_size} x {args.length}"
    )
    for name in HEADER:
        table.add_column(name, justify="left" if name == "mode" else "right")
    first = measured(work, "inference")
    for mode in args.modes:
        if is_too_large(work, mode):
            table.add_row(mode, *["–"] * (len(HEADER) - 1))
            continue
        found = first if mode == "inference" else measured(work, mode)
        if args.repeats:
            seconds = seconds_per_step(work, mode, args.repeats)
            found = found | {"seconds_per_step": seconds}
        if args.output:
            path = args.output / "memory.jsonl"
            records.append(path, "memory", [], settings(work, args.model, mode), found)
        table.add_row(*row(mode, found, first))
    records.console().print(table)
