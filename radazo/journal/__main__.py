"""Journals on the command line.

  python -m radazo.journal show FILE
  python -m radazo.journal diff FILE OTHER
  python -m radazo.journal replay FILE --optimizer MODULE:NAME --params MODULE:NAME \
      --output FILE.npz

`main` exits with 0; with 1 if two journals differ; with 2 if something is wrong.
"""

import argparse
import contextlib
import importlib
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
_IMPORTED = (
    "It is imported from your own code, with the current folder in the path; a "
    "function is called without arguments."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; what to exit with."""
    options = _parser().parse_args(arguments)
    with validation.Caught(_tell):
        return options.command(options)
    return 2


def _tell(error: BaseException) -> None:
    """One line; messages of radazo and of the system speak for themselves."""
    own = isinstance(error, ValueError | TypeError | OSError)
    text = str(error) if own else f"{type(error).__name__}: {error}"
    sys.stderr.write(f"{_NAME}: error: {' '.join(text.split())}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        _NAME, description="The slopes of a run: shown, compared, made a run again."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Callable[[Any], int], text: str) -> Any:
        added = commands.add_parser(name, help=text, description=text)
        added.add_argument("file", metavar="FILE")
        added.set_defaults(command=function)
        return added

    command("show", _show, "What a journal says of its run, and what is in it.")
    diff = command("diff", _diff, "The first step at which two runs part; 1 if any.")
    diff.add_argument("other", metavar="OTHER")
    again = command("replay", _replay, "Parameters and state after a step, as npz.")
    name = "MODULE:NAME"
    text = "the optimizer of the run, or a function without arguments that makes it"
    again.add_argument("--optimizer", required=True, metavar=name, help=text)
    text = "the parameters that it started from, or a function that makes them"
    again.add_argument("--params", required=True, metavar=name, help=text)
    again.add_argument("--bounds", metavar=name, help="those of the run")
    text = "the count of the state at which to end; the end of the journal without"
    again.add_argument("--to", type=int, metavar="COUNT", help=text)
    again.add_argument("--output", required=True, metavar="FILE.npz")
    return parser


def _show(options: Any) -> int:
    journal = file_format.read("show", options.file)
    count, fingerprint, slopes, value, stopped = journal.entries
    dropped = np.isnan(slopes)
    lines = [
        *(f"{name:16}{text}" for name, text in _described(journal.header).items()),
        f"{'steps':16}{len(count):,}, from {journal.header.first:,} on",
        f"{'bytes':16}{Path(options.file).stat().st_size:,}",
        f"{'dropped':16}{dropped.sum():,} of {slopes.size:,} directions",
        f"{'skipped':16}{dropped.all(axis=1).sum():,} steps, with all dropped",
    ]
    finite = value[np.isfinite(value)]
    if finite.size:
        text = f"{finite.min():.6g} to {finite.max():.6g}, the last {value[-1]:.6g}"
        lines.append(f"{'values':16}{text}")
    if finite.size < value.size:
        lines.append(f"{'not finite':16}{value.size - finite.size:,} values")
    if stopped.any():
        lines.append(f"{'stopped at':16}{', '.join(map(str, count[stopped]))}")
    if journal.num_trailing_bytes:
        text = f"{journal.num_trailing_bytes:,} bytes of a write that was not finished"
        lines.append(f"{'ignored':16}{text}")
    lines += ["", f"{'step':>12}  {'params':>6}  {'value':>13}  slopes"]
    shown = [*range(min(_SHOWN, len(count)))]
    shown += range(max(_SHOWN, len(count) - _SHOWN), len(count))
    for before, i in zip([-1, *shown], shown, strict=False):
        lines += ["         ..."] * (i > before + 1)
        some = "  ".join(f"{x:.6g}" for x in slopes[i, :_SHOWN])
        more = "  ..." * (slopes.shape[1] > _SHOWN)
        line = f"{count[i]:12,}  {fingerprint[i]:6}  {value[i]:13.6g}"
        lines.append(f"{line}  {some}{more}")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _described(header: file_format.JournalHeader) -> dict[str, str]:
    """The header as words."""
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
    headers = [_described(x.header) for x in (one, other)]
    lines = [
        f"{name}: {old} and {headers[1][name]}"
        for name, old in headers[0].items()
        if old != headers[1][name]
    ]
    first = max(one.header.first, other.header.first)
    end = min(one.end, other.end)
    if one.header[2:4] != other.header[2:4]:
        lines.append("steps: not comparable")
    elif first < end:
        lines += _parting(one, other, first, end)
    if (one.header.first, one.end) != (other.header.first, other.end):
        texts = [f"{x.header.first:,} to {x.end:,}" for x in (one, other)]
        lines.append(f"steps: {texts[0]} and {texts[1]}")
    sys.stdout.write("\n".join(lines or [f"equal, {end - first:,} steps"]) + "\n")
    return 1 if lines else 0


def _parting(
    one: file_format.JournalContents,
    other: file_format.JournalContents,
    first: int,
    end: int,
) -> list[str]:
    """What is different in the first step in which something is."""
    old, new = (
        file_format.JournalEntry(
            *(x[first - run.header.first : end - run.header.first] for x in run.entries)
        )
        for run in (one, other)
    )
    places = [_bits(x) != _bits(y) for x, y in zip(old, new, strict=True)]
    differs = np.any([x.reshape(len(x), -1).any(axis=1) for x in places], axis=0)
    if not differs.any():
        return []
    i = int(np.argmax(differs))
    lines = [f"equal from step {first:,} to {first + i:,}"] * (i > 0)
    lines.append(f"step {first + i:,} differs, as do {differs.sum():,} in all")
    for name, x, y, api_name in zip(old._fields, old, new, places, strict=True):
        for place in np.argwhere(api_name[i])[:_SHOWN]:
            pair = x[i][tuple(place)], y[i][tuple(place)]
            index = "".join(f"[{k}]" for k in place)
            lines.append(f"  {name}{index}: {pair[0]} and {pair[1]}")
    return lines


def _bits(array: np.ndarray) -> np.ndarray:
    """Of each element: a NaN is like itself."""
    return array.view(f"u{array.itemsize}")


def _replay(options: Any) -> int:
    names = ("optimizer", "params", "bounds")
    given = {x: _imported(x, getattr(options, x)) for x in names}
    params, state = replay(options.file, count=options.to, **given)
    arrays = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(
        {"params": params, "state": state}
    ):
        if isinstance(leaf, jax.Array):
            is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            arrays[name] = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
    _write(Path(options.output), arrays)
    return 0


def _imported(argument: str, name: str | None) -> Any:
    """What MODULE:NAME stands for."""
    if name is None:
        return None

    def tell(error: BaseException) -> None:
        rule = "be MODULE:NAME, which can be imported"
        got = f"{name!r}, with {type(error).__name__}: {error}"
        validation.fail("replay", argument, rule, got, _IMPORTED)

    found: Any = None
    sys.path.insert(0, "")
    with contextlib.ExitStack() as stack:
        stack.callback(sys.path.remove, "")
        stack.enter_context(validation.Caught(tell))
        module, _, attribute = name.partition(":")
        found = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
        if isinstance(found, FunctionType):
            found = found()
    return found


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("xb") as file:
            np.savez(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
