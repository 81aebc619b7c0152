"""Shared parts of the figures: panels, lines with bands, numbers as text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

# From the colour-blind safe palette of Okabe and Ito, without its yellow.
COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")


def figure_of(num_panels: int, columns: int = 3) -> tuple[Figure, list[Any]]:
    """Return a figure with this number of panels, in rows."""
    columns = min(columns, num_panels)
    rows = -(-num_panels // columns)
    size = (max(3.9 * columns, 7.0), 3.1 * rows + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel in panels[num_panels:]:
        panel.set_visible(False)
    return figure, panels[:num_panels]


def draw_band(
    panel: Any,
    x: np.ndarray,
    curves: Any,
    label: str,
    color: str,
    dash: Any,
    floor: float = 1e-30,
) -> Any:
    """Draw the median of curves (runs, points), and a band from minimum to maximum.

    Values without a finite logarithm are drawn far outside the panel.
    """
    curves = np.nan_to_num(np.array(curves, float), nan=1e30)  # None becomes NaN.
    curves = np.clip(curves, floor, 1e30)
    low, high = curves.min(axis=0), curves.max(axis=0)
    panel.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
    (line,) = panel.plot(x, np.median(curves, axis=0), color=color, label=label)
    line.set_linestyle(dash)
    return line


def save(figure: Figure, lines: Sequence[Any], path: Path) -> None:
    """Save the figure with one legend for all panels, below them."""
    labels = dict.fromkeys(line.get_label() for line in lines)
    first = {line.get_label(): line for line in reversed(lines)}
    figure.legend(
        handles=[first[label] for label in labels],
        loc="outside lower center",
        ncols=4,
        frameon=False,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def number(x: float | None) -> str:
    """Format three digits, or all digits before the decimal point."""
    if x is None or not np.isfinite(x):
        return "–"
    return f"{x:,.0f}" if 1000 <= x < 1e7 else f"{x:.3g}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
