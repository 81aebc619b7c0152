"""Figures of `synthetic`, from its result lines."""

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import figures
from benchmarks.methods import METHODS
from benchmarks.synthetic_report import ARMS, Lines, dims_of, finite, groups, select


def draw(lines: Lines, folder: Path) -> list[Path]:
    """Draw a figure for each arm and dimension, with a panel for each function."""
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
            # Of runs of several lengths, keep those of most methods.
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
