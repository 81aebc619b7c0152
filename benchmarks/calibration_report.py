"""Tables of the result lines of `calibration`."""

from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from benchmarks import records
from benchmarks.statistics import MedianInterval, median_interval

WANTED = 1.5
COLUMNS = (
    "task",
    "rule",
    "level",
    "tuned: smoothing",
    "rate",
    "values",
    "calibrated: smoothing",
    "rate",
    "values",
    "ratio",
    "with calibration",
    "reached: tuned, calibrated",
)


def ratios(line: dict[str, Any], *, whole: bool = False) -> np.ndarray:
    """Return (seeds,) calibrated over tuned function values; 1 where neither succeeds.

    `whole` includes the function values of the calibration.
    """
    numbers = line["numbers"]
    mine, tuned = (
        np.array([np.inf if x is None else x for x in numbers[name]], float)
        for name in ("values_calibrated", "values_tuned")
    )
    if whole:
        mine = mine + np.array(numbers["values_to_calibrate"])
    both = np.isinf(mine) & np.isinf(tuned)
    return np.divide(mine, tuned, out=np.ones_like(mine), where=~both)


def rows(lines: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    return [row(line) for line in records.newest(lines)]


def row(line: dict[str, Any]) -> tuple[str, ...]:
    numbers, settings = line["numbers"], line["settings"]
    level = numbers["level"]
    return (
        f"{settings['task']}, d = {settings['dim']:,}",
        settings["rule"],
        f"{level:.3g} f(x₀)" if level else "f < 0",
        f"{numbers['smoothing']:.3g}",
        f"{numbers['rate']:.3g}" + (" (edge)" if numbers["at_edge"] else ""),
        count(numbers["values_tuned"]),
        spread(numbers["smoothing_calibrated"]),
        spread(numbers["rate_calibrated"]),
        count(numbers["values_calibrated"]),
        interval(median_interval(ratios(line))),
        interval(median_interval(ratios(line, whole=True))),
        reached(numbers["values_tuned"], numbers["values_calibrated"]),
    )


def reached(tuned: list[float | None], mine: list[float | None]) -> str:
    counts = [sum(x is not None for x in values) for values in (tuned, mine)]
    return f"{counts[0]}, {counts[1]} of {len(tuned)}"


def count(values: list[float | None]) -> str:
    middle = np.median([np.inf if x is None else x for x in values])
    return f"{middle:,.0f}" if np.isfinite(middle) else "not reached"


def spread(x: list[float]) -> str:
    low, middle, high = np.quantile(x, [0.25, 0.5, 0.75])
    return f"{middle:.2g} ({low:.2g} to {high:.2g})"


def interval(found: MedianInterval) -> str:
    low, middle, high = (
        "∞" if np.isinf(x) else f"{x:.2f}"
        for x in (found.low, found.median, found.high)
    )
    return f"{middle} ({low} to {high})"


def verdict(lines: list[dict[str, Any]]) -> str:
    """Say where the factor holds and where it does not, with the numbers."""
    within, beyond = [], []
    for line in records.newest(lines):
        middle = float(np.median(ratios(line)))
        name = f"{line['settings']['task']} with {line['settings']['rule']}"
        shown = "∞" if np.isinf(middle) else f"{middle:.3f}"
        (within if middle <= WANTED else beyond).append(f"{name} ({shown})")
    held = f"Median ratio at most {WANTED}, not counting the function values of the "
    held += f"calibration: {', '.join(within) or 'none'}."
    return f"{held} Above: {', '.join(beyond) or 'none'}."


def table(lines: list[dict[str, Any]]) -> Table:
    found = Table(box=box.SIMPLE, title="Untuned by `radazo.calibrate`, against a grid")
    for column in COLUMNS:
        found.add_column(column, justify="left" if column == "task" else "right")
    for cells in rows(lines):
        found.add_row(*cells)
    found.caption = verdict(lines)
    return found


def markdown(lines: list[dict[str, Any]]) -> str:
    head = [
        f"| {' | '.join(COLUMNS)} |",
        f"|{'|'.join(' --- ' for _ in COLUMNS)}|",
    ]
    body = [f"| {' | '.join(cells)} |" for cells in rows(lines)]
    told = (
        "Function values to a level: the f that the best setting of the grid reaches "
        "after half of its steps, or success of the attack. Tuned is the setting of "
        "the grid that needs the fewest on other seeds; calibrated is the choice of "
        "`radazo.calibrate` at each start. Medians over seeds; brackets hold the "
        "quartiles of the chosen settings and a 95 % interval of the median ratio "
        "(the range with fewer than 6 seeds). ∞: the level is not reached by the last "
        "step.\n"
    )
    earlier = {line["numbers"].get("grid_commit") for line in lines} - {None}
    if earlier:
        told += f"The grids ran at an earlier commit: {', '.join(sorted(earlier))}.\n"
    return "\n".join([told, *head, *body, f"\n{verdict(lines)}\n"])
