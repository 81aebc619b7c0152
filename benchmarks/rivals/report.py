"""Tables and a figure of `peers`, from its result lines.

A cell is one function at one number of parameters. The last line of a method in a cell
counts. Methods are compared by the median over seeds of the lowest value seen.
"""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from benchmarks.figures import markdown_table
from benchmarks.rivals import METHODS, PACKAGES, label

AHEAD = "◀"
COLUMNS = ("method", "tuned", "lowest f, median (range)", "s", "compile s")
NOTE = (
    "The lowest f that a run has seen, which may differ from its final one. Seconds "
    "are processor time on one core, without compilation. A knob is tuned on another "
    "seed. The best method of each package is chosen on the reported seeds. NumPy "
    "packages compute in float64, the others in float32. SPSA of nevergrad is too "
    "slow at d = 10,000; its DiagonalCMA is that of pycma."
)
LOWEST = 1e-16  # Below it, a figure shows no differences.


def cells(lines: list[dict[str, Any]]) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """Return lines by (function, dim), the lowest value first."""
    found: dict[tuple[str, int], dict[str, dict]] = {}
    for line in lines:
        settings = line["settings"]
        if line["command"] == "peers" and settings["method"] in METHODS:
            cell = found.setdefault((settings["function"], settings["dim"]), {})
            cell[settings["method"]] = line
    return {
        key: sorted(cell.values(), key=final)
        for key, cell in sorted(found.items(), key=lambda item: (item[0][1],))
    }


def ends(line: dict[str, Any]) -> list[float]:
    """Return the lowest value of each run."""
    return line["numbers"]["best_at_end"]


def final(line: dict[str, Any]) -> float:
    return float(np.median(ends(line)))


def seconds(line: dict[str, Any]) -> float:
    return float(np.median(line["numbers"]["run_seconds"]))


def all_seconds(line: dict[str, Any]) -> float:
    """Return the seconds of a first run, with compilation."""
    return seconds(line) + (line["numbers"]["compile_seconds"] or 0.0)


def package(line: dict[str, Any]) -> str:
    return METHODS[line["settings"]["method"]].package


def name(line: dict[str, Any]) -> str:
    return label(line["settings"]["method"])


def best_of(lines: list[dict[str, Any]], wanted: str) -> dict[str, Any] | None:
    """Return the first line of a package, from lines sorted by value."""
    return next((line for line in lines if package(line) == wanted), None)


def ahead(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rivals whose runs all end lower than any of radazo's best method."""
    own = best_of(lines, "radazo")
    if own is None:
        return []
    bar = min(ends(own))
    return [x for x in lines if package(x) != "radazo" and max(ends(x)) < bar]


def number(x: float | None) -> str:
    if x is None or not np.isfinite(x):
        return "inf"
    return f"{x:,.0f}" if 1000 <= x < 1e7 else f"{x:.3g}"


def row(line: dict[str, Any]) -> list[str]:
    """Return method, knob, value with its range, seconds of run and compilation."""
    numbers = line["numbers"]
    values = ends(line)
    edge = " (edge)" if numbers["tuned_at_edge"] else ""
    knob = METHODS[line["settings"]["method"]].knob
    spread = f"{number(min(values))} – {number(max(values))}"
    return [
        name(line),
        f"{knob} {numbers['tuned_knob']:.2g}{edge}",
        f"{number(final(line))} ({spread})",
        f"{seconds(line):.2f}",
        f"{numbers['compile_seconds']:.1f}" if numbers["compile_seconds"] else "–",
    ]


def heading(key: tuple[str, int], lines: list[dict[str, Any]]) -> str:
    line = lines[0]
    start = np.median(line["numbers"]["value_at_start"])
    budgets = sorted({x["settings"]["budget"] for x in lines})
    return (
        f"{key[0]}: d = {key[1]:,}, {' or '.join(f'{n:,}' for n in budgets)} function "
        f"values, seeds {', '.join(map(str, line['seeds']))}, f(x0) = {number(start)}"
    )


def table(lines: list[dict[str, Any]]) -> Table:
    """Return a table of the methods of one cell."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("method", "tuned"):
        shown.add_column(column, no_wrap=True)
    for column in ("lowest f (range)", "s", "compile\ns"):
        shown.add_column(column, justify="right", no_wrap=True)
    marked = ahead(lines)
    for line in lines:
        first, *rest = row(line)
        style = "bold" if package(line) == "radazo" else None
        shown.add_row(
            f"{first} {AHEAD}" if line in marked else first, *rest, style=style
        )
    return shown


def markdown(lines: list[dict[str, Any]]) -> str:
    """Return a table for each cell, and which rivals are ahead."""
    parts = [NOTE]
    for key, found in cells(lines).items():
        parts += [
            f"**{heading(key, found)}**",
            markdown_table(COLUMNS, [row(line) for line in found]).rstrip("\n"),
            verdict(found),
        ]
    return "\n\n".join(parts)


def verdict(lines: list[dict[str, Any]]) -> str:
    """Say which packages are ahead of radazo in a cell, by value and by time."""
    own = best_of(lines, "radazo")
    if own is None:
        return "radazo did not run here."
    rivals = [line for line in lines if package(line) != "radazo"]
    in_all = ahead(lines)
    in_median = [x for x in rivals if x not in in_all and final(x) < final(own)]
    mine = f"{name(own)} ({number(final(own))}, {seconds(own):.2f} s)"

    def listed(found: list[dict[str, Any]], text: Callable[[Any], str]) -> str:
        return ", ".join(f"{name(x)} ({text(x)})" for x in found) or "none"

    def lower(found: list[dict[str, Any]]) -> str:
        return listed(found, lambda x: number(final(x)))

    def faster(time: Callable[[dict[str, Any]], float]) -> str:
        found = [x for x in rivals if time(x) < time(own)]
        return listed(found, lambda x: f"{time(x):.2f} s")

    return (
        f"Best method of radazo: {mine}. "
        f"Rivals that end lower in all runs: {lower(in_all)}. "
        f"Rivals that take less time: {faster(seconds)}. "
        f"Lower in the median only: {lower(in_median)}. "
        f"Less time including compilation: {faster(all_seconds)}."
    )


def draw(lines: list[dict[str, Any]], path: Path) -> Path:
    """Draw a row of panels for each function, a column for each dimension."""
    found = cells(lines)
    functions = list(dict.fromkeys(function for function, _ in found))
    dims = sorted({dim for _, dim in found})
    size = (6.4 * len(dims), 3.4 * len(functions))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(functions), len(dims), squeeze=False)
    places = itertools.product(functions, dims)
    for panel, (function, dim) in zip(panels.flat, places, strict=True):
        panel.set_visible((function, dim) in found)
        if (function, dim) in found:
            draw_panel(panel, found[function, dim])
            panel.set_title(f"{function}, d = {dim:,}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


def draw_panel(panel: Any, lines: list[dict[str, Any]]) -> None:
    """Draw the best algorithm of each package, labelled at the end of its line."""
    shown = [line for p in PACKAGES if (line := best_of(lines, p)) is not None]
    labels = {}
    for line in shown:
        points = line["numbers"]["points"]
        values = np.clip(np.array(line["numbers"]["best"], float), LOWEST, None)
        color, middle = PACKAGES[package(line)].color, np.median(values, axis=0)
        front = 3 if package(line) == "radazo" else 2
        panel.plot(points, middle, color=color, zorder=front, linewidth=front - 0.8)
        band = values.min(axis=0), values.max(axis=0)
        panel.fill_between(points, *band, color=color, alpha=0.2, linewidth=0)
        labels[name(line)] = (middle[-1], color)
    panel.set_yscale("log")
    panel.set_xlabel("function values")
    panel.set_ylabel("lowest f so far")
    panel.set_xlim(left=0)
    panel.margins(x=0)
    low, high = np.log10(panel.get_ylim())
    names = sorted(labels, key=lambda key: labels[key][0])
    heights = [(np.log10(labels[key][0]) - low) / (high - low) for key in names]
    for key, height in zip(names, apart(heights, 0.075), strict=True):
        panel.text(
            1.02,
            height,
            key,
            color=labels[key][1],
            transform=panel.transAxes,
            va="center",
            fontsize=8,
        )


def apart(heights: list[float], least: float) -> list[float]:
    """Move ascending heights until neighbours are `least` apart, within [0, 1]."""
    moved = []
    for height in heights:
        moved.append(max(height, moved[-1] + least if moved else 0.0))
    ceiling = 1.0
    for i in reversed(range(len(moved))):
        moved[i] = min(moved[i], ceiling)
        ceiling = moved[i] - least
    return moved
