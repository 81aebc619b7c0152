"""Tables of `synthetic`, from its result lines.

Brackets hold the range over seeds, which contains the median of all seeds with a
probability of 94 % for five seeds, of 75 % for three.
"""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from benchmarks import figures, records
from benchmarks.figures import number
from benchmarks.methods import METHODS
from benchmarks.problems.synthetic import PROBLEMS
from benchmarks.statistics import geometric_mean

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
    """Return the lines with these settings."""
    return [
        line
        for line in lines
        if all(line["settings"].get(name) == x for name, x in settings.items())
    ]


def dims_of(lines: Lines) -> list[int]:
    return sorted({line["settings"]["dim"] for line in lines}, reverse=True)


def groups(lines: Lines) -> Iterator[tuple[str, Lines]]:
    """Yield a title and the lines that differ in their method only.

    In the arm `precision`, lines differ in how differences are taken.
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
    """Return the lines of an arm by function, from the group of most methods."""
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
    """Yield a table for each arm and function, for a terminal."""
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
    """Return the numbers of a result line, with infinity for null."""
    return np.array([np.inf if x is None else x for x in values], float)


def spread(line: dict[str, Any]) -> str:
    """Return median and range of f at the end, or that most runs diverged."""
    at_end = finite(line["numbers"]["value_at_end"])
    if 2 * np.sum(at_end <= finite(line["numbers"]["value_at_start"])) < len(at_end):
        return "diverged"
    low, high = number(at_end.min()), number(at_end.max())
    return f"{number(np.median(at_end))} ({low} – {high})"


def steps_to(line: dict[str, Any], level: str) -> str:
    return number(np.median(finite(line["numbers"]["steps_to"][level])))


def ratio(slow: dict[str, Any], fast: dict[str, Any], level: str) -> str:
    """Return the steps of `slow` over those of `fast`: median and range over seeds.

    Runs of a seed share their start and directions, so they are paired. A run that does
    not reach the level needs more than its steps: `>`, or `<`.
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
    """Return the line with the lowest final median."""
    return min(lines, key=lambda x: np.median(finite(x["numbers"]["value_at_end"])))


def best_table(lines: Lines) -> str:
    """Return for each function and arm the best method, the next, and R-AdaZO."""
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
    """Return the ratio of final values: median and range over paired seeds."""
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
    """Return the steps of ZO-AdaMM over those of R-AdaZO, for each function."""
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
    """Return the ratio of the longest runs of both."""
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
    "Final value over the lowest of all methods and both arms on the same function: "
    "geometric mean over functions, and in brackets the largest. 1 is optimal.\n"
)
CHOICES = ("tuned", "cosine")  # Arms to choose from.
CONVEX = ("quadratic", "cubic")


def at_ends(lines: Lines, arm: str) -> dict[str, dict[str, float]]:
    """Return median final values, by method and function."""
    ends: dict[str, dict[str, float]] = {}
    for function, found in main_groups(lines, arm).items():
        for line in found:
            at_end = np.median(finite(line["numbers"]["value_at_end"]))
            ends.setdefault(line["settings"]["method"], {})[function] = float(at_end)
    return ends


def regrets(lines: Lines, arm: str) -> dict[str, dict[str, float]]:
    """Return final values over the lowest, of methods that ran on all functions."""
    least: dict[str, float] = {}
    for choice in CHOICES:
        for found in at_ends(lines, choice).values():
            for function, end in found.items():
                least[function] = min(end, least.get(function, end))
    return {
        method: {function: found[function] / least[function] for function in least}
        for method, found in at_ends(lines, arm).items()
        if set(found) == set(least)
    }


def advice(lines: Lines) -> str:
    """Return a paragraph of advice, computed from the lines."""
    found = {arm: regrets(lines, arm) for arm in CHOICES}
    needed = [("tuned", "zo_sgd"), ("cosine", "zo_adamm"), ("cosine", "radazo")]
    if not all(method in found[arm] for arm, method in needed):
        return ""
    means = {
        (arm, method): geometric_mean(list(of_method.values()))
        for arm, of_arm in found.items()
        for method, of_method in of_arm.items()
    }
    (arm, best), lowest = min(means.items(), key=lambda item: item[1])
    schedule = {"tuned": "at a constant rate", "cosine": "with a cosine decay"}[arm]
    worst = max(found[arm][best].values())

    def rough(method: str) -> float:
        of_method = found["cosine"][method]
        return max(x for function, x in of_method.items() if function not in CONVEX)

    def convex(method: str) -> str:
        own = [found["cosine"][method][function] for function in CONVEX]
        return f"{min(own):.1f} to {max(own):.1f}"

    shared = at_ends(lines, "shared")
    over = {
        function: shared["radazo"][function] / shared["zo_adamm"][function]
        for function in shared["radazo"]
    }
    behind = [f"{x:.2f} times ({function})" for function, x in over.items() if x > 1]
    steps = select(lines, arm="tuned")[0]["settings"]["steps"]
    return (
        f"Tuned for {steps:,} steps, `{best}` {schedule} ends closest to the lowest f "
        f"of all rules and schedules: {lowest:.2f} times it in the geometric mean over "
        f"functions, {worst:.2f} times at worst. On functions that are not convex, "
        f"`zo_adamm` and `radazo` with a cosine decay end at most "
        f"{rough('zo_adamm') - 1:.0%} and {rough('radazo') - 1:.0%} above it; on the "
        f"convex ones they end at {convex('zo_adamm')} times and {convex('radazo')} "
        f"times it. At the learning rate of the paper, not tuned, `radazo` ends below "
        f"`zo_adamm` on {sum(x < 1 for x in over.values())} functions of {len(over)}; "
        f"on the others its f is {' and '.join(behind) or 'the same'} as high.\n"
    )


def regret_table(lines: Lines) -> str:
    """Return for each method how far it ends from the best, tuned and with a cosine."""
    arms = [arm for arm in CHOICES if select(lines, arm=arm)]
    found = {arm: regrets(lines, arm) for arm in arms}
    methods = [m for m in METHODS if any(m in of_arm for of_arm in found.values())]
    table = []
    for method in methods:
        cells = [
            f"{geometric_mean(x):.2f} ({max(x):.2f})" if x else "–"
            for x in (list(found[arm].get(method, {}).values()) for arm in arms)
        ]
        table.append([f"`{method}`", *cells])
    return figures.markdown_table(["method", *arms], table) if table else ""


SUMMARY = (
    "Steps of `zo_adamm` to half of f(x0), divided by those of `radazo` (median and "
    "range over seeds), and final f with tuned constant rates.\n"
)


def summary_table(lines: Lines) -> str:
    """Return for each function ratios of steps, and final values when tuned."""
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
    """Return all tables of the lines."""
    parts = []
    for dim in dims_of(lines):
        found = select(lines, dim=dim)
        summary = summary_table(found)
        if summary:
            parts += [f"### d = {dim:,}: summary\n", SUMMARY, summary]
            parts += [f"### d = {dim:,}: choosing a rule\n", REGRET]
            parts += [regret_table(found), advice(found)]
        parts += [f"### d = {dim:,}: which method is best\n", best_table(found)]
        parts += [f"\n### d = {dim:,}: steps of `zo_adamm` over those of `radazo`\n"]
        parts += [ratio_table(found)]
    for name, found in groups(lines):
        parts += [f"\n**{name}**\n", figures.markdown_table(COLUMNS, rows(found))]
    return "\n".join(parts)
