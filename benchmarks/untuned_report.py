"""Tables of `untuned`, from its result lines."""

from typing import Any

import numpy as np

from benchmarks import estimators_report, figures, records
from benchmarks.estimators_runs import RULES
from benchmarks.figures import number
from benchmarks.untuned_runs import ESTIMATORS
from benchmarks.untuned_tasks import TASKS

Line = dict[str, Any]
Lines = list[Line]
Found = dict[tuple[str, str], Line]  # By estimator and rule, of one task.
SIDES = {"sphere": "drawn anew", "hadamard": "in sweeps"}


def spread(line: Line) -> str:
    return estimators_report.spread(line)


def median(line: Line) -> float:
    """Return the median of final f; infinity unless half of the runs descend."""
    return float(np.median(estimators_report.ends(line)))


def by_task(lines: Lines) -> dict[str, Found]:
    """Return the lines by task; of several budgets those of the largest."""
    found: dict[str, Found] = {}
    newest = records.newest(lines)
    for line in sorted(newest, key=lambda line: line["settings"]["budget"]):
        key = line["settings"]["estimator"], line["settings"]["rule"]
        found.setdefault(line["settings"]["task"], {})[key] = line
    return found


def markdown(lines: Lines) -> str:
    """Return the final medians of each rule with both estimators."""
    tasks, rows = by_task(lines), []
    for name, task in TASKS.items():
        found = tasks.get(name, {})
        cells = [
            number(median(found[key])) if (key := (side, rule)) in found else "–"
            for rule in RULES
            for side in ESTIMATORS
        ]
        if any(cell != "–" for cell in cells):
            rows.append([task.label, *cells])
    header = ["task"]
    header += [f"{rule}, {text}" for rule in RULES for text in SIDES.values()]
    return figures.markdown_table(header, rows)
