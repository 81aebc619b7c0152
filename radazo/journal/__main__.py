"""The command line of journals: `python -m radazo.journal --help`.

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
from radazo.journal.replaying import replay

_NAME = "python -m radazo.journal"
_SHOWN = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status."""
    options = _parser().parse_args(arguments)
    with validation.pass_errors_to(_print_error):
        return options.command(options)
    return 2


def _print_error(error: BaseException) -> None:
    """Print an error on one line; a ValueError, TypeError or OSError needs no type."""
    own = isinstance(error, ValueError | TypeError | OSError)
    text = str(error) if own else f"{type(error).__name__}: {error}"
    sys.stderr.write(f"{_NAME}: error: {' '.join(text.split())}\n")


def _parser() -> argparse.ArgumentParser:
    text = "Show, compare and replay journals, the slopes of optimization runs."
    parser = argparse.ArgumentParser(_NAME, description=text)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(function: Callable[[Any], int], text: str) -> Callable[..., Any]:
        name = function.__name__.removeprefix("_")
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(command=function)
        added.add_argument("file", metavar="FILE")
        return added.add_argument

    command(_show, "describe a run and show its first and last steps")
    diff = command(_diff, "find the first step at which two runs differ; exit with 1")
    diff("other", metavar="OTHER")
    add = command(_replay, "write parameters and state after a step to an npz file")
    texts = {
        "optimizer": "the optimizer of the run, or a function that returns it",
        "params": "the initial parameters, or a function that returns them",
        "bounds": "the bounds of the run, if any",
    }
    for name, text in texts.items():
        needed = name != "bounds"
        add(f"--{name}", required=needed, metavar="MODULE:NAME", help=text)
    text = "the step count at which to end; default: the end of the journal"
    add("--to", type=int, metavar="COUNT", help=text)
    add("--output", required=True, metavar="FILE.npz")
    return parser


def _show(options: Any) -> int:
    journal = file_format.read("show", options.file)
    count, fingerprint, slopes, value, stopped = journal.entries
    dropped, finite = np.isnan(slopes), value[np.isfinite(value)]
    rows = _describe(journal.header) | {
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
    more = ["..."] * (slopes.shape[1] > _SHOWN)
    for i in range(len(count)):
        if i < _SHOWN or i >= len(count) - _SHOWN:
            line = f"{count[i]:12,}  {fingerprint[i]:6}  {value[i]:13.6g}"
            some = [f"{x:.6g}" for x in slopes[i, :_SHOWN]]
            lines.append("  ".join([line, *some, *more]))
        elif i == _SHOWN:
            lines.append("         ...")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _describe(header: file_format.JournalHeader) -> dict[str, str]:
    """Return the fields of a header as text."""
    fields = header._asdict().items()
    return {name: x.hex() if isinstance(x, bytes) else str(x) for name, x in fields}


def _diff(options: Any) -> int:
    one, other = (file_format.read("diff", x) for x in (options.file, options.other))
    old, new = _describe(one.header), _describe(other.header)
    lines = [
        f"{name}: {x} and {new[name]}" for name, x in old.items() if x != new[name]
    ]
    first, end = max(one.header.first, other.header.first), min(one.end, other.end)
    if file_format.record_dtype(one.header) != file_format.record_dtype(other.header):
        lines.append("steps: not comparable")
    elif first < end:
        lines += _differences(first, *(x.between(first, end) for x in (one, other)))
    spans = [f"{x.header.first:,} to {x.end:,}" for x in (one, other)]
    if spans[0] != spans[1]:
        lines.append(f"steps: {spans[0]} and {spans[1]}")
    sys.stdout.write("\n".join(lines or [f"equal, {end - first:,} steps"]) + "\n")
    return 1 if lines else 0


def _differences(
    first: int, one: file_format.JournalEntry, other: file_format.JournalEntry
) -> list[str]:
    """Describe the first step that differs, and count the others."""

    def bits(entries: file_format.JournalEntry) -> list[np.ndarray]:
        return [x.view(f"u{x.itemsize}") for x in entries]  # NaN equals NaN.

    places = [x != y for x, y in zip(bits(one), bits(other), strict=True)]
    differs = np.any([x.reshape(len(x), -1).any(axis=1) for x in places], axis=0)
    if not differs.any():
        return []
    i = int(np.argmax(differs))
    lines = [f"equal from step {first:,} to {first + i:,}"] * (i > 0)
    lines.append(f"step {first + i:,} differs, as do {differs.sum():,} in all")
    for name, x, y, different in zip(one._fields, one, other, places, strict=True):
        for place in np.argwhere(different[i])[:_SHOWN]:
            index = "".join(f"[{k}]" for k in place)
            lines.append(f"  {name}{index}: {x[(i, *place)]} and {y[(i, *place)]}")
    return lines


def _replay(options: Any) -> int:
    names = ("optimizer", "params", "bounds")
    given = {name: _import(name, getattr(options, name)) for name in names}
    params, state = replay(options.file, count=options.to, **given)
    tree, arrays = {"params": params, "state": state}, {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, jax.Array):
            is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            arrays[name] = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
    _write(Path(options.output), arrays)
    return 0


def _import(argument: str, name: str | None) -> Any:
    """Import MODULE:NAME; call it if it is a function."""

    def explain(error: BaseException) -> None:
        rule = "be an importable MODULE:NAME"
        got = f"{name!r}, with {type(error).__name__}: {error}"
        hint = "Modules are also found in the current folder; functions are called."
        validation.fail("replay", argument, rule, got, hint)

    with validation.pass_errors_to(explain), contextlib.ExitStack() as stack:
        if name is not None:
            sys.path.insert(0, "")
            stack.callback(sys.path.remove, "")
            module, _, attribute = name.partition(":")
            found = operator.attrgetter(attribute)(importlib.import_module(module))
            return found() if isinstance(found, FunctionType) else found
    return None


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
