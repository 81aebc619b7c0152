"""Tables and figures of `synthetic`, from its result lines alone.

Brackets hold the range over seeds. That of five holds the median of all seeds with a
probability of 94 %, that of three with one of 75 %.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from benchmarks import figures, records
from benchmarks.figures import number
from benchmarks.methods import METHODS
from benchmarks.problems.synthetic import PROBLEMS

Lines = list[dict[str, Any]]
COLUMNS = ("method", "rate", "f at the end (range)", "steps to 50 %", "10 %", "1 %")
LEVELS = ("0.5", "0.1", "0.01")
ARMS = {
    "shared": "one learning rate for all",
    "tuned": "each method with its best constant rate",
    "cosine": "each method with its best rate, decaying to 0 along a cosine",
    "precision": "R-AdaZO, how differences are taken",
}


def select(lines: Lines, **settings: Any) -> Lines:
    """The lines with these settings."""
    return [
        line
        for line in lines
        if all(line["settings"].get(name) == x for name, x in settings.items())
    ]


def dims_of(lines: Lines) -> list[int]:
    return sorted({line["settings"]["dim"] for line in lines}, reverse=True)


def groups(lines: Lines) -> Iterator[tuple[str, Lines]]:
    """A title and the lines, for all that differ in their method alone.

    Or, in the arm of precisions, in how differences are taken.
    """
    varied = ("method", "smoothing", "dtype", "terms")
    for dim in dims_of(lines):
        for arm in ARMS:
            for function in PROBLEMS:
                found = select(lines, dim=dim, arm=arm, function=function)
                apart: dict[str, Lines] = {}
                for line in records.newest(found):
                    left_out = varied if arm == "precision" else varied[:1]
                    given = line["settings"].items()
                    kept = {k: x for k, x in given if k not in left_out}
                    key = json.dumps([kept, line["seeds"]])
                    apart.setdefault(key, []).append(line)
                for group in apart.values():
                    yield title(group[0]), group


def main_groups(lines: Lines, arm: str) -> dict[str, Lines]:
    """By function the lines of an arm: of several groups that of most methods."""
    found: dict[str, Lines] = {}
    for _, group in groups(select(lines, arm=arm)):
        function = group[0]["settings"]["function"]
        found[function] = max(found.get(function, []), group, key=len)
    return found


def title(line: dict[str, Any]) -> str:
    given, starts = line["settings"], line["numbers"]["value_at_start"]
    return (
        f"{given['function']}, {given['arm']}: d = {given['dim']:,}, "
        f"K = {given['num_directions']}, {given['steps']:,} steps, "
        f"{len(line['seeds'])} seeds, f(x0) = {number(np.median(starts))}"
    )


def tables(lines: Lines) -> Iterator[Table]:
    """One for each arm and function, for a terminal."""
    for name, found in groups(lines):
        table = Table(
            title=name, box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left"
        )
        for i, column in enumerate(COLUMNS):
            table.add_column(column, justify="right" if i else "left", no_wrap=True)
        for row in rows(found):
            table.add_row(*row)
        yield table


def rows(lines: Lines) -> list[list[str]]:
    return [
        [
            label(line),
            f"{line['numbers']['rate']:.2g}",
            spread(line),
            *(steps_to(line, level) for level in LEVELS),
        ]
        for line in lines
    ]


def label(line: dict[str, Any]) -> str:
    given = line["settings"]
    if given["arm"] != "precision":
        return METHODS[given["method"]].label
    terms = ", terms" if given["terms"] else ""
    return f"{given['dtype']}{terms}, smoothing {given['smoothing']:g}"


def finite(values: Any) -> np.ndarray:
    """Numbers of a result line: infinity where it has null."""
    return np.array([np.inf if x is None else x for x in values], float)


def spread(line: dict[str, Any]) -> str:
    """Median and range of f at the end, or that most runs ended above their start."""
    at_end = finite(line["numbers"]["value_at_end"])
    if 2 * np.sum(at_end <= finite(line["numbers"]["value_at_start"])) < len(at_end):
        return "diverged"
    low, high = number(at_end.min()), number(at_end.max())
    return f"{number(np.median(at_end))} ({low} – {high})"


def steps_to(line: dict[str, Any], level: str) -> str:
    return number(np.median(finite(line["numbers"]["steps_to"][level])))


def ratio(slow: dict[str, Any], fast: dict[str, Any], level: str) -> str:
    """How many times the steps of `fast` `slow` needs: median and range over seeds.

    Runs of a seed have one start and the same directions, so that they are paired. One
    that does not get there in its steps needs more than those: `>`, or `<`.
    """
    steps = finite(slow["numbers"]["steps_to"][level])
    against = finite(fast["numbers"]["steps_to"][level])
    there = np.isfinite(steps).all(), np.isfinite(against).all()
    if not any(there):
        return "–"
    total = slow["settings"]["steps"]
    ratios = np.minimum(steps, total) / np.clip(against, 1, total)
    if not all(there):
        return f"{'<' if there[0] else '>'} {np.median(ratios):.2f}"
    return f"{np.median(ratios):.2f} ({ratios.min():.2f} – {ratios.max():.2f})"


def best(lines: Lines) -> dict[str, Any]:
    """The line with the lowest median at the end."""
    return min(lines, key=lambda x: np.median(finite(x["numbers"]["value_at_end"])))


def best_table(lines: Lines) -> str:
    """For each function and arm the best method, the next, and R-AdaZO."""
    header = ["function", "arm", "best at the end", "next", "next : best", "`radazo`"]
    table = []
    for arm in ("shared", "tuned", "cosine"):
        for function, found in main_groups(lines, arm).items():
            own = select(found, method="radazo")
            if not own or len(found) < 2:
                continue
            first = best(found)
            second = best([line for line in found if line is not first])
            texts = [f"`{label(line)}` {spread(line)}" for line in (first, second)]
            apart = end_ratio(second, first)
            table.append([function, arm, *texts, apart, spread(own[0])])
    return figures.markdown_table(header, table)


def end_ratio(line: dict[str, Any], against: dict[str, Any]) -> str:
    """The ratio of values at the end: median and range over seeds, which are paired."""
    ratios = finite(line["numbers"]["value_at_end"])
    ratios = ratios / finite(against["numbers"]["value_at_end"])
    return f"{np.median(ratios):.2f} ({ratios.min():.2f} – {ratios.max():.2f})"


PAIRS = (
    ("shared", "zo_adamm"),
    ("shared", "zo_adamm_matched"),
    ("tuned", "zo_adamm"),
    ("cosine", "zo_adamm"),
)


def ratio_table(lines: Lines) -> str:
    """Steps of ZO-AdaMM over those of R-AdaZO, for each function."""
    header = ["function", "level", "shared rate", "matched rate", "tuned", "cosine"]
    table = []
    for function in PROBLEMS:
        for level in LEVELS:
            found = select(lines, function=function)
            cells = [ratio_of(select(found, arm=arm), x, level) for arm, x in PAIRS]
            if any(cell != "–" for cell in cells):
                table.append([function, f"{float(level):.0%}", *cells])
    return figures.markdown_table(header, table)


def ratio_of(lines: Lines, rival: str, level: str) -> str:
    """Of the longest runs that there are of both."""
    pairs = []
    for _, group in groups(lines):
        slow, fast = select(group, method=rival), select(group, method="radazo")
        if slow and fast:
            pairs.append((group[0]["settings"]["steps"], len(group), slow[0], fast[0]))
    if not pairs:
        return "–"
    _, _, slow, fast = max(pairs, key=lambda pair: pair[:2])
    return ratio(slow, fast, level)


REGRET = (
    "The value at the end over that of the best method on the same function: geometric "
    "mean over functions, and the worst. 1 is the best choice there is.\n"
)


def regrets(lines: Lines, arm: str) -> dict[str, np.ndarray]:
    """(functions,) by method, for those that ran on all functions of an arm."""
    ends: dict[str, dict[str, float]] = {}
    for function, found in main_groups(lines, arm).items():
        for line in found:
            at_end = np.median(finite(line["numbers"]["value_at_end"]))
            ends.setdefault(line["settings"]["method"], {})[function] = float(at_end)
    functions = {name for found in ends.values() for name in found}
    least = {f: min(x[f] for x in ends.values() if f in x) for f in functions}
    return {
        method: np.array([found[f] / least[f] for f in sorted(functions)])
        for method, found in ends.items()
        if set(found) == functions
    }


def regret_table(lines: Lines) -> str:
    """For each method how far it ends from the best, tuned and with a cosine."""
    arms = [arm for arm in ("tuned", "cosine") if select(lines, arm=arm)]
    found = {arm: regrets(lines, arm) for arm in arms}
    methods = [m for m in METHODS if any(m in of_arm for of_arm in found.values())]
    table = []
    for method in methods:
        cells = [
            f"{np.exp(np.mean(np.log(x))):.2f} ({x.max():.2f})" if len(x) else "–"
            for x in (found[arm].get(method, np.array([])) for arm in arms)
        ]
        table.append([f"`{method}`", *cells])
    return figures.markdown_table(["method", *arms], table) if table else ""


SUMMARY = (
    "Steps of `zo_adamm` to half of f(x0) for one of `radazo` (median and range over "
    "seeds), and f at the end with tuned constant rates.\n"
)


def summary_table(lines: Lines) -> str:
    """A row for each function: ratios of steps, and values at the end when tuned."""
    tuned = ("radazo", "zo_adamm", "zo_sgd")
    header = ["function", "shared rate", "matched rate"]
    header += [f"`{name}`, tuned" for name in tuned] + ["best, tuned"]
    table = []
    for function in PROBLEMS:
        found = select(lines, function=function)
        cells = [ratio_of(select(found, arm=arm), x, "0.5") for arm, x in PAIRS[:2]]
        ends = main_groups(found, "tuned").get(function, [])
        if not ends:
            continue
        for name in tuned:
            own = select(ends, method=name)
            cells.append(spread(own[0]).partition(" (")[0] if own else "–")
        table.append([function, *cells, f"`{label(best(ends))}`"])
    return figures.markdown_table(header, table) if table else ""


def markdown(lines: Lines) -> str:
    """All that is to be said of the lines."""
    parts = []
    for dim in dims_of(lines):
        found = select(lines, dim=dim)
        summary = summary_table(found)
        if summary:
            parts += [f"### d = {dim:,}: in short\n", SUMMARY, summary]
            parts += [f"### d = {dim:,}: choosing a rule\n", REGRET]
            parts += [regret_table(found)]
        parts += [f"### d = {dim:,}: which method is best\n", best_table(found)]
        parts += [f"\n### d = {dim:,}: steps of `zo_adamm` for one of `radazo`\n"]
        parts += [ratio_table(found)]
    for name, found in groups(lines):
        parts += [f"\n**{name}**\n", figures.markdown_table(COLUMNS, rows(found))]
    return "\n".join(parts)


def draw(lines: Lines, folder: Path) -> list[Path]:
    """A figure for each arm and dimension, with a panel for each function."""
    paths = []
    for dim in dims_of(lines):
        for arm, text in ARMS.items():
            found = select(lines, dim=dim, arm=arm)
            if found:
                paths.append(folder / f"synthetic_{arm}_{dim}.png")
                draw_arm(found, text, paths[-1])
    return paths


def draw_arm(lines: Lines, text: str, path: Path) -> None:
    shown = {}
    for _, found in groups(lines):
        for smoothing in sorted({line["settings"]["smoothing"] for line in found}):
            panel = select(found, smoothing=smoothing)
            given = panel[0]["settings"]
            name = given["function"]
            if given["arm"] == "precision":
                name = f"{name}, smoothing {smoothing:g}"
            # Of runs of several lengths those of most methods.
            shown[name] = max(panel, shown.get(name, []), key=len)
    figure, panels = figures.figure_of(len(shown))
    drawn = []
    for panel, (name, found) in zip(panels, shown.items(), strict=True):
        drawn += draw_panel(panel, found)
        panel.set_title(name)
    given = lines[0]["settings"]
    sizes = f"d = {given['dim']:,}, K = {given['num_directions']}"
    bands = "median, and range over seeds"
    figure.suptitle(f"{sizes}: {text} ({bands})", fontsize="medium")
    figures.save(figure, drawn, path)


def draw_panel(panel: Any, lines: Lines) -> list[Any]:
    drawn, lowest, highest = [], np.inf, 0.0
    for line in lines:
        given, numbers = line["settings"], line["numbers"]
        x = np.array(numbers["curve_at_step"]) * (given["num_directions"] + 1)
        curves = [finite(curve) for curve in numbers["curve"]]
        style = METHODS[given["method"]]
        color, dash, name = style.color, style.dash, style.label
        if given["arm"] == "precision":
            color, dash, name = precision_style(given)
        drawn.append(figures.draw_band(panel, x, curves, name, color, dash))
        median = np.median(curves, axis=0)
        lowest = min(lowest, np.min(median[np.isfinite(median)]))
        highest = max(highest, median[0])
    panel.set_yscale("log")
    panel.set_ylim(max(lowest / 2, highest * 1e-9), highest * 3)
    panel.set_xlabel("function values")
    panel.set_ylabel("f(x)")
    return drawn


def precision_style(given: dict[str, Any]) -> tuple[str, str, str]:
    if given["dtype"] == "float64":
        return "#000000", "-", "float64"
    if given["terms"]:
        return "#009E73", "--", "float32, term by term"
    return "#D55E00", "-", "float32"
