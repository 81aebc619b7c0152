"""Tables of `estimators`, from its result lines."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from benchmarks import figures, records
from benchmarks.estimators_rows import ROWS
from benchmarks.estimators_runs import RULES
from benchmarks.estimators_tasks import TASKS
from benchmarks.figures import number
from benchmarks.methods import METHODS
from benchmarks.statistics import geometric_mean, median_interval

Line = dict[str, Any]
Lines = list[Line]
Combination = tuple[str, str]  # An estimator and a rule.
Found = dict[Combination, Line]  # Lines of one task.
REFERENCES = (("sphere", "radazo"), ("sphere", "zo_sgd"))
NAMES = ("plain R-AdaZO", "tuned ZO-SGD")
NOTE = (
    "Two combinations are compared at the lowest f that both reach. The factor is the "
    "number of function values that the reference needs to reach it, divided by that "
    "of the combination: above 1, the combination is ahead. Seeds are paired by their "
    "starts. Brackets and bands are intervals of the median at a level of 95 % or more "
    "(94 % with five seeds, 75 % with three). Learning rates are tuned, K and the "
    "smoothing distance are not. The best combination is chosen on the reported seeds, "
    "so its factor is biased upwards.\n"
)
# Settings that differ between the lines of one table.
COMPARED = ("estimator", "rule", "options", "first_rate")
COLUMNS = (
    "estimator",
    "rule",
    "rate",
    "f at the end",
    *(f"factor over {name}" for name in NAMES),
)


def combination(line: Line) -> Combination:
    return line["settings"]["estimator"], line["settings"]["rule"]


def label(combined: Combination) -> str:
    return f"{ROWS[combined[0]].label} + {METHODS[combined[1]].label}"


def failed(line: Line) -> bool:
    return "failed" in line["numbers"]


def finite(values: Any) -> np.ndarray:
    """Return the numbers of a result line, with infinity for null."""
    return np.array(
        [[np.inf if x is None else x for x in row] for row in values], float
    )


def ends(line: Line) -> np.ndarray:
    """Return (seeds,) final f; infinity for a run that does not end below its start."""
    numbers = line["numbers"]
    at_end, starts = finite([numbers["value_at_end"], numbers["value_at_start"]])
    return np.where(at_end < starts, at_end, np.inf)


def spread(line: Line) -> str:
    """Return median and interval of the final f, or why there is none."""
    if failed(line):
        return line["numbers"]["failed"]
    at_end = ends(line)
    if not np.isfinite(np.median(at_end)):
        return "no descent"
    kept = inner(at_end)
    return f"{number(np.median(at_end))} ({number(kept[0])} – {number(kept[-1])})"


def inner(values: np.ndarray) -> np.ndarray:
    """Sort runs at each point and drop the outermost: an interval of the median."""
    kept = median_interval(np.arange(len(values)))
    return np.sort(values, axis=0)[int(kept.low) : int(kept.high) + 1]


def order(line: Line) -> float:
    """Sort key; the best comes first."""
    return np.inf if failed(line) else float(np.median(ends(line)))


def taken(counts: np.ndarray, curve: np.ndarray, level: float) -> float:
    """Return the number of function values until f ≤ level; infinity if never.

    Interpolates between points, but not before the first one after the start, where
    there may be no step.
    """
    lowest = np.minimum.accumulate(curve)
    if not lowest[-1] <= level:
        return np.inf
    i = int(np.argmax(lowest <= level))
    if i <= 1:
        return float(counts[i])
    share = (lowest[i - 1] - level) / (lowest[i - 1] - lowest[i])
    return float(counts[i - 1] + share * (counts[i] - counts[i - 1]))


def factors(line: Line, reference: Line) -> np.ndarray:
    """Return (seeds,) factors: 0 for a run that never falls below its start.

    Infinity if only the reference never does.
    """
    found = []
    for counts, curve, other_counts, other in zip(
        finite(line["numbers"]["counts"]),
        finite(line["numbers"]["curve"]),
        finite(reference["numbers"]["counts"]),
        finite(reference["numbers"]["curve"]),
        strict=True,
    ):
        level = max(curve.min(), other.min())
        if curve.min() >= curve[0]:
            found.append(0.0)
        elif level >= min(curve[0], other[0]):
            found.append(np.inf)
        else:
            own = taken(counts, curve, level)
            found.append(taken(other_counts, other, level) / own)
    return np.array(found)


def factor(line: Line, reference: Line | None) -> str:
    if reference is None or failed(line) or failed(reference):
        return "–"
    found = inner(factors(line, reference))
    return f"{np.median(found):.2f} ({found[0]:.2f} – {found[-1]:.2f})"


def groups(lines: Lines) -> Iterator[tuple[str, Found]]:
    """Yield task and lines, for lines that differ only in what is compared."""
    newest = records.newest(lines)
    for name in TASKS:
        apart: dict[str, Found] = {}
        for line in newest:
            given = line["settings"]
            if given["task"] == name and given["estimator"] in ROWS:
                shared = {k: x for k, x in given.items() if k not in COMPARED}
                key = json.dumps([line["seeds"], shared], sort_keys=True)
                apart.setdefault(key, {})[combination(line)] = line
        yield from ((name, found) for found in apart.values())


def main_groups(lines: Lines) -> dict[str, Found]:
    """Return the lines of each task; of several groups, those of the largest budget."""

    def budget(found: Found) -> int:
        return next(iter(found.values()))["settings"]["budget"]

    largest: dict[str, Found] = {}
    for name, found in groups(lines):
        largest[name] = max(largest.get(name, found), found, key=budget)
    return largest


def title(name: str, found: Found) -> str:
    line = next(iter(found.values()))
    given = line["settings"]
    return (
        f"{TASKS[name].label}: {given['budget']:,} function values, "
        f"K = {given['num_directions']}, distance {given['smoothing']:g}, "
        f"{given['dtype']}, {len(line['seeds'])} seeds"
    )


def rows(found: Found) -> list[list[str]]:
    """Return the rows of a table, best first."""
    references = [found.get(reference) for reference in REFERENCES]
    return [
        [
            ROWS[line["settings"]["estimator"]].label,
            METHODS[line["settings"]["rule"]].label,
            rate(line),
            spread(line),
            *(factor(line, reference) for reference in references),
        ]
        for line in sorted(found.values(), key=order)
    ]


def rate(line: Line) -> str:
    """Return the rate, marked if it is the smallest or largest of those tried."""
    if failed(line):
        return "–"
    numbers = line["numbers"]
    return f"{numbers['rate']:.2g}{' (edge)' if numbers['at_edge'] else ''}"


def tables(lines: Lines) -> Iterator[Table]:
    """Return one table per task, for a terminal."""
    for name, found in groups(lines):
        table = Table(
            title=title(name, found),
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            title_justify="left",
        )
        for i, column in enumerate(COLUMNS):
            justify = "right" if i > 1 else "left"
            # Two columns have their range in a second line.
            table.add_column(column.replace(" over", "\nover"), justify=justify)
        for row in rows(found):
            table.add_row(*(cell.replace(" (", "\n(") for cell in row))
        yield table


def medians(mains: dict[str, Found], i: int) -> dict[Combination, dict[str, float]]:
    """Return the median factor over reference number `i`, by combination and task."""
    table: dict[Combination, dict[str, float]] = {}
    for name, found in mains.items():
        reference = found.get(REFERENCES[i])
        if reference is None or failed(reference):
            continue
        for combined, line in found.items():
            if not failed(line):
                median = float(np.median(factors(line, reference)))
                table.setdefault(combined, {})[name] = median
    return table


def ranked(lines: Lines) -> list[tuple[Combination, float]]:
    """Rank combinations that ran on all tasks by mean factor over plain R-AdaZO."""
    mains = main_groups(lines)
    found = [
        (combined, geometric_mean(list(of_task.values())))
        for combined, of_task in medians(mains, 0).items()
        if len(of_task) == len(mains) and not ROWS[combined[0]].is_reference
    ]
    return sorted(found, key=lambda pair: -pair[1])


def lows(found: Found, combined: Combination) -> list[float]:
    """Return the lower ends of the intervals of its factors over both references."""
    return [
        float(inner(factors(found[combined], found[reference]))[0])
        for reference in REFERENCES
    ]


def best_of(found: Found) -> Combination:
    """Return the combination with the lowest final median."""
    own = [c for c in found if not ROWS[c[0]].is_reference]
    return min(own, key=lambda combined: order(found[combined]))


def summary(lines: Lines) -> str:
    """Summarize the best combination over all tasks, and the best on each."""
    mains, ranking = main_groups(lines), ranked(lines)
    if not ranking:
        return ""
    winner, geometric = ranking[0]
    over = [medians(mains, i).get(winner, {}) for i in range(len(REFERENCES))]
    ahead = [x for x in mains if all(of.get(x, 0.0) > 1 for of in over)]
    surely = [x for x in ahead if all(low > 1 for low in lows(mains[x], winner))]
    text = (
        f"Best over all tasks: **{label(winner)}**, {geometric:.2f} times as fast as "
        f"plain R-AdaZO (geometric mean of factors). It is ahead of both references on "
        f"{len(ahead)} of {len(mains)} tasks, with whole intervals on {len(surely)}.\n"
    )
    table = []
    for name, found in mains.items():
        references = [found.get(reference) for reference in REFERENCES]
        first = best_of(found)
        table.append(
            [
                TASKS[name].label,
                *(factor(found[winner], reference) for reference in references),
                label(first),
                *(factor(found[first], reference) for reference in references),
            ]
        )
    header = ["task", *(f"over {name}" for name in NAMES), "lowest f at the end"]
    header += [f"its factor over {name}" for name in NAMES]
    return f"{text}\n{figures.markdown_table(header, table)}"


def overview(lines: Lines) -> str:
    """Return median factors over plain R-AdaZO: all combinations, all tasks."""
    mains = main_groups(lines)
    table, means = medians(mains, 0), dict(ranked(lines))

    def cell(combined: Combination, name: str) -> str:
        line = mains[name].get(combined)
        if line is not None and failed(line):
            return line["numbers"]["failed"]
        median = table.get(combined, {}).get(name)
        return "–" if median is None else f"{median:.2f}"

    known = [
        (e, r) for e in ROWS for r in RULES if any((e, r) in f for f in mains.values())
    ]
    known.sort(key=lambda combined: -means.get(combined, -1.0))
    found = [
        [
            label(combined),
            *(cell(combined, name) for name in mains),
            f"{means[combined]:.2f}" if combined in means else "–",
        ]
        for combined in known
    ]
    header = ["combination", *(TASKS[name].label for name in mains), "mean"]
    return figures.markdown_table(header, found)


def markdown(lines: Lines) -> str:
    parts = [NOTE, summary(lines)]
    parts += ["\n**Factors over plain R-AdaZO, all combinations**\n", overview(lines)]
    for name, found in groups(lines):
        table = figures.markdown_table(COLUMNS, rows(found))
        parts += [f"\n**{title(name, found)}**\n", table]
    notes = [f"{row.label}: {row.notes}." for row in ROWS.values() if row.notes]
    return "\n".join([*parts, *notes, ""])
