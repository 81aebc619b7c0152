"""The command line of journals.

  python -m radazo.journal show FILE
  python -m radazo.journal diff FILE OTHER
  python -m radazo.journal replay FILE --optimizer MODULE:NAME --params MODULE:NAME \
      --output FILE.npz

The exit status of `main` is 0, 1 if two journals differ, and 2 for an error.
"""

import argparse
import contextlib
import importlib
import operator
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FunctionType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from radazo import validation
from radazo.journal import file_format
from radazo.journal.replay import replay

_NAME = "python -m radazo.journal"
_SHOWN = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status."""
    options = _parser().parse_args(arguments)
    with validation.Caught(_print_error):
        return options.command(options)
    return 2


def _print_error(error: BaseException) -> None:
    """Print one line; messages of radazo and of the system need no type."""
    own = isinstance(error, ValueError | TypeError | OSError)
    text = str(error) if own else f"{type(error).__name__}: {error}"
    sys.stderr.write(f"{_NAME}: error: {' '.join(text.split())}\n")


def _parser() -> argparse.ArgumentParser:
    text = "Show, compare and replay journals, the slopes of optimization runs."
    parser = argparse.ArgumentParser(_NAME, description=text)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(function: Callable[[Any], int], text: str) -> argparse.ArgumentParser:
        name = function.__name__.removeprefix("_")
        added = commands.add_parser(name, help=text, description=text)
        added.add_argument("file", metavar="FILE")
        added.set_defaults(command=function)
        return added

    command(_show, "describe a run and show its first and last steps")
    diff = command(_diff, "find the first step at which two runs differ; exit with 1")
    diff.add_argument("other", metavar="OTHER")
    again = command(_replay, "write parameters and state after a step to an npz file")
    texts = {
        "--optimizer": "the optimizer of the run, or a function that returns it",
        "--params": "the initial parameters, or a function that returns them",
        "--bounds": "the bounds of the run, if any",
    }
    for name, text in texts.items():
        required = name != "--bounds"
        again.add_argument(name, required=required, metavar="MODULE:NAME", help=text)
    text = "the step count at which to end; default: the end of the journal"
    again.add_argument("--to", type=int, metavar="COUNT", help=text)
    again.add_argument("--output", required=True, metavar="FILE.npz")
    return parser


def _show(options: Any) -> int:
    journal = file_format.read("show", options.file)
    count, fingerprint, slopes, value, stopped = journal.entries
    dropped, finite = np.isnan(slopes), value[np.isfinite(value)]
    rows = _described(journal.header) | {
        "steps": f"{len(count):,}, from {journal.header.first:,} on",
        "bytes": f"{Path(options.file).stat().st_size:,}",
        "dropped": f"{dropped.sum():,} of {slopes.size:,} directions",
        "skipped": f"{dropped.all(axis=1).sum():,} steps, with all dropped",
    }
    if finite.size:
        span = f"{finite.min():.6g} to {finite.max():.6g}"
        rows["values"] = f"{span}, the last {value[-1]:.6g}"
    if finite.size < value.size:
        rows["not finite"] = f"{value.size - finite.size:,} values"
    if stopped.any():
        rows["stopped at"] = ", ".join(map(str, count[stopped]))
    if journal.num_trailing_bytes:
        rows["ignored"] = f"{journal.num_trailing_bytes:,} bytes of an incomplete write"
    lines = [f"{name:16}{text}" for name, text in rows.items()]
    lines += ["", f"{'step':>12}  {'params':>6}  {'value':>13}  slopes"]
    for i in range(len(count)):
        if _SHOWN <= i < len(count) - _SHOWN:
            lines += ["         ..."] * (i == _SHOWN)
            continue
        line = f"{count[i]:12,}  {fingerprint[i]:6}  {value[i]:13.6g}"
        some = [f"{x:.6g}" for x in slopes[i, :_SHOWN]]
        some += ["..."] * (slopes.shape[1] > _SHOWN)
        lines.append("  ".join([line, *some]))
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _described(header: file_format.JournalHeader) -> dict[str, str]:
    """Return the fields of a header as text."""
    return {
        "format": str(header.format),
        "key contract": str(header.key_contract),
        "written with": header.writer,
        "key": f"{header.key_data[0]} {header.key_data[1]}",
        "directions": f"{header.num_directions:,}, float{8 * header.float_bytes}",
        "params": header.params.hex(),
        "state": header.state.hex(),
        "start": header.start.hex(),
        "bounds": header.bounds.hex() if any(header.bounds) else "none",
    }


def _diff(options: Any) -> int:
    one, other = (file_format.read("diff", x) for x in (options.file, options.other))
    old, new = _described(one.header), _described(other.header)
    lines = [
        f"{name}: {x} and {new[name]}" for name, x in old.items() if x != new[name]
    ]
    first, end = max(one.header.first, other.header.first), min(one.end, other.end)
    if one.header[2:4] != other.header[2:4]:
        lines.append("steps: not comparable")
    elif first < end:
        lines += _differences(one, other, first, end)
    spans = [f"{x.header.first:,} to {x.end:,}" for x in (one, other)]
    if spans[0] != spans[1]:
        lines.append(f"steps: {spans[0]} and {spans[1]}")
    sys.stdout.write("\n".join(lines or [f"equal, {end - first:,} steps"]) + "\n")
    return 1 if lines else 0


def _differences(
    one: file_format.JournalContents,
    other: file_format.JournalContents,
    first: int,
    end: int,
) -> list[str]:
    """Describe the first step that differs, and count the others."""

    def steps(run: file_format.JournalContents) -> list[np.ndarray]:
        start = run.header.first
        return [x[first - start : end - start] for x in run.entries]

    def bits(array: np.ndarray) -> np.ndarray:
        return array.view(f"u{array.itemsize}")  # NaN is equal to itself.

    pairs = list(zip(steps(one), steps(other), strict=True))
    places = [bits(x) != bits(y) for x, y in pairs]
    differs = np.any([x.reshape(len(x), -1).any(axis=1) for x in places], axis=0)
    if not differs.any():
        return []
    i = int(np.argmax(differs))
    lines = [f"equal from step {first:,} to {first + i:,}"] * (i > 0)
    lines.append(f"step {first + i:,} differs, as do {differs.sum():,} in all")
    for name, (x, y), different in zip(one.entries._fields, pairs, places, strict=True):
        for place in np.argwhere(different[i])[:_SHOWN]:
            index = "".join(f"[{k}]" for k in place)
            at = (i, *place)
            lines.append(f"  {name}{index}: {x[at]} and {y[at]}")
    return lines


def _replay(options: Any) -> int:
    names = ("optimizer", "params", "bounds")
    given = {name: _imported(name, getattr(options, name)) for name in names}
    params, state = replay(options.file, count=options.to, **given)
    tree, arrays = {"params": params, "state": state}, {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, jax.Array):
            is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            arrays[name] = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
    _write(Path(options.output), arrays)
    return 0


def _imported(argument: str, name: str | None) -> Any:
    """Import MODULE:NAME; call it if it is a function."""
    if name is None:
        return None

    def explain(error: BaseException) -> None:
        rule = "be MODULE:NAME, which can be imported"
        got = f"{name!r}, with {type(error).__name__}: {error}"
        hint = "Modules are also found in the current folder; functions are called."
        validation.fail("replay", argument, rule, got, hint)

    with contextlib.ExitStack() as stack:
        stack.enter_context(validation.Caught(explain))
        sys.path.insert(0, "")
        stack.callback(sys.path.remove, "")
        module, _, attribute = name.partition(":")
        found = operator.attrgetter(attribute)(importlib.import_module(module))
        return found() if isinstance(found, FunctionType) else found


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write the npz file completely or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("xb") as file:
            np.savez(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
