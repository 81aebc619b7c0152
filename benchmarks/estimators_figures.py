"""Figures of `estimators`, from its result lines."""

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import figures
from benchmarks.estimators_report import (
    Lines,
    failed,
    finite,
    inner,
    main_groups,
    order,
)
from benchmarks.estimators_rows import ROWS
from benchmarks.estimators_runs import RULES
from benchmarks.estimators_tasks import TASKS
from benchmarks.figures import COLORS
from benchmarks.methods import METHODS

NUM_SHOWN = 5  # Named lines per task, besides the reference; the others are grey.
PLAIN, GREY = "sphere", "#BBBBBB"


def draw(lines: Lines, folder: Path) -> list[Path]:
    """Draw a figure for each rule, with a panel for each task."""
    mains = main_groups(lines)
    paths = []
    for rule in RULES:
        shown = {
            name: [x for x in found.values() if x["settings"]["rule"] == rule]
            for name, found in mains.items()
        }
        shown = {name: found for name, found in shown.items() if found}
        if shown:
            paths.append(folder / f"estimators_{rule}.png")
            draw_rule(rule, shown, paths[-1])
    return paths


DASHES = ("-", "--", ":", "-.")


def draw_rule(rule: str, shown: dict[str, Lines], path: Path) -> None:
    figure, panels = figures.figure_of(len(shown))
    drawn = []
    for panel, (name, found) in zip(panels, shown.items(), strict=True):
        panel.set_yscale(TASKS[name].scale)
        drawn += draw_lines(panel, found)
        panel.set_title(TASKS[name].label, fontsize="medium")
        panel.set_ylim(*limits(found, TASKS[name].scale))
        panel.set_xlabel("function values")
        panel.set_ylabel("f(x)")
    text = (
        f"{METHODS[rule].label}, tuned: median over seeds and its interval, of the "
        f"best {NUM_SHOWN} of each task; grey: the others"
    )
    figure.suptitle(text, fontsize="medium")
    figures.save(figure, drawn, path)


def draw_lines(panel: Any, lines: Lines) -> list[Any]:
    """Draw lines, the best last and in front, and return those with a label."""
    found = sorted((x for x in lines if not failed(x)), key=order, reverse=True)
    named = found[-NUM_SHOWN:]
    named += [x for x in found[:-NUM_SHOWN] if x["settings"]["estimator"] == PLAIN]
    # A logarithmic axis needs a floor; a linear one allows negative values.
    floor = 1e-30 if panel.get_yscale() == "log" else -1e30
    for line in found:
        if line not in named:
            counts, curves = drawable(line)
            middle = np.clip(np.median(curves, axis=0), floor, 1e30)
            panel.plot(counts, middle, color=GREY, linewidth=0.6)
    drawn, names = [], list(ROWS)
    for line in named:
        i = names.index(line["settings"]["estimator"])
        color, dash = COLORS[i % len(COLORS)], DASHES[i // len(COLORS) % len(DASHES)]
        text = ROWS[names[i]].label
        drawn.append(
            figures.draw_band(panel, *drawable(line), text, color, dash, floor)
        )
    return drawn


def drawable(line: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return function values, and the runs within the interval of the median."""
    counts = np.median(finite(line["numbers"]["counts"]), axis=0)
    return counts, inner(finite(line["numbers"]["curve"]))


def limits(lines: Lines, scale: str) -> tuple[float, float]:
    """Return limits from below the lowest median to above the start."""
    curves = [finite(x["numbers"]["curve"]) for x in lines if not failed(x)]
    medians = [np.median(curve, axis=0) for curve in curves]
    low = min((float(x.min()) for x in medians), default=0.0)
    high = max((float(x[0]) for x in medians), default=1.0)
    if scale == "log":
        return max(low, high * 1e-9) / 1.5, high * 1.5
    return low - 0.05 * (high - low), high + 0.05 * (high - low)
