"""Memory of one step of fine-tuning, by mode, before a machine is rented for it.

Programs are compiled for shapes and never run, so that a model of any size can be asked
about on a laptop. What is counted is what `compiled.memory_analysis()` says of the
program of a step: arguments (parameters, state, batch) and results, those that lie in
the memory of donated arguments counted once, and temporaries. What the compiler's
backend of another device would need can differ; the device is in the result line. The
CPU's, which multiplies no bfloat16, converts stacked bfloat16 weights to float32 before
the loop over them: there look at the difference to inference, not at the ratio. A
direction as long as a gradient that is held has at most 2³² elements: of opt-13b those
rows are empty.

The objective is the mean negative log-probability of the last tokens of each row, as in
scoring the options of a prompt.
"""

import argparse
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from rich.table import Table

import radazo
from benchmarks import records
from benchmarks.language import opt

RATE, B1 = 1e-6, 0.9
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
# At most this many times the memory of inference, on "small" in float32.
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
    """What is asked about."""

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
    """A step that copies nothing, and its state."""
    optimizer = radazo.in_place(optax.chain(rule, optax.scale(-RATE)), key=0, **options)

    def make(work: Work) -> tuple[Any, Any]:
        def step(params: Any, state: Any, ids: jax.Array) -> tuple[Any, Any]:
            return optimizer.step(work.value, params, state, ids=ids)[:2]

        return step, jax.eval_shape(optimizer.init, work.params)

    return make


def with_gradient(optimizer: Any) -> Callable[[Work], Any]:
    """A step that holds its gradient: of backpropagation, or of an estimator."""

    def make(work: Work) -> tuple[Any, Any]:
        def step(params: Any, state: Any, ids: jax.Array) -> tuple[Any, Any]:
            value_fn = functools.partial(work.value, ids=ids)
            if isinstance(state, radazo.WithEstimatorState):
                gradient = None
                extra = {"value_fn": value_fn}
            else:
                gradient, extra = jax.grad(value_fn)(params), {}
            updates, state = optimizer.update(gradient, state, params, **extra)
            return optax.apply_updates(params, updates), state

        return step, jax.eval_shape(optimizer.init, work.params)

    return make


def inference(work: Work) -> tuple[Any, Any]:
    return lambda params, state, ids: work.value(params, ids), ()


def evaluation(work: Work) -> tuple[Any, Any]:
    """One value along a direction, without that point."""
    value = radazo.perturbed(work.value)

    def step(params: Any, state: Any, ids: jax.Array) -> Any:
        return value(state, params, 1e-3, ids=ids)

    return step, jax.eval_shape(lambda: jax.random.key(0))


def evaluation_of_a_copy(work: Work) -> tuple[Any, Any]:
    """One value along a direction, at that point."""

    def step(params: Any, state: Any, ids: jax.Array) -> Any:
        leaves, treedef = jax.tree.flatten(params)
        keys = jax.random.split(state, len(leaves))
        moved = [
            x + jnp.asarray(1e-3, x.dtype) * jax.random.normal(key, x.shape, x.dtype)
            for key, x in zip(keys, leaves, strict=True)
        ]
        return work.value(treedef.unflatten(moved), ids)

    return step, jax.eval_shape(lambda: jax.random.key(0))


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
        radazo.scale_by_radazo(granularity=radazo.per_leaf)
    ),
    "R-AdaZO, bfloat16 momentum, factored": in_place(
        radazo.scale_by_radazo(granularity=radazo.factored), moment_dtype=jnp.bfloat16
    ),
    "R-AdaZO, rebuilt momentum, factored": in_place(
        radazo.scale_by_second_moment(granularity=radazo.factored), b1=B1
    ),
    "R-AdaZO, held gradient": with_gradient(radazo.radazo(RATE, ESTIMATOR, key=0)),
    "ZO-SGD, held gradient": with_gradient(radazo.zo_sgd(RATE, ESTIMATOR, key=0)),
    "Adam, backpropagation": with_gradient(optax.adam(RATE)),
}


def measured(work: Work, mode: str) -> dict[str, int]:
    """Bytes of the program of a step."""
    step, state = MODES[mode](work)
    # Results lie where donated parameters and state lay.
    moves = mode not in ("inference", "evaluation", "evaluation of a copy")
    program = jax.jit(step, donate_argnums=(0, 1) if moves else ())
    lowered = program.lower(work.params, state, work.ids)
    # Where buffers lie is decided before machine code is made, which nobody runs.
    found = lowered.compile({"xla_backend_optimization_level": 0}).memory_analysis()
    sizes = {
        "arguments": found.argument_size_in_bytes,
        "results": found.output_size_in_bytes - found.alias_size_in_bytes,
        "temporaries": found.temp_size_in_bytes,
    }
    return sizes | {"total": sum(sizes.values())}


def is_too_large(work: Work, mode: str) -> bool:
    """Whether there are more parameters than a direction drawn as a whole can have."""
    return mode.endswith("held gradient") and work.num_parameters >= 1 << 32


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
    parser.add_argument("--output", type=Path, help="folder of result lines")
    args = parser.parse_args(argv)
    work = Work(
        opt.SHAPES[args.model], DTYPES[args.dtype], args.batch_size, args.length
    )
    table = Table(
        title=f"{args.model}, {args.dtype}, {args.batch_size} x {args.length}"
    )
    for name in ("mode", "GB", "of inference", "temporaries, GB"):
        table.add_column(name, justify="left" if name == "mode" else "right")
    first = measured(work, "inference")
    for mode in args.modes:
        if is_too_large(work, mode):
            table.add_row(mode, "–", "–", "–")
            continue
        found = first if mode == "inference" else measured(work, mode)
        if args.output:
            path = args.output / "memory.jsonl"
            records.append(path, "memory", [], settings(work, args.model, mode), found)
        table.add_row(
            mode,
            f"{found['total'] / 1e9:.3f}",
            f"{found['total'] / first['total']:.3f}",
            f"{found['temporaries'] / 1e9:.3f}",
        )
    records.console().print(table)
