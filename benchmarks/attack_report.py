"""Tables and figures of `attack`, from its result lines; pictures from its outcomes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from benchmarks.attack_methods import LABELLED
from benchmarks.attack_runs import Outcome
from benchmarks.problems import attack as problem
from benchmarks.statistics import median_interval, wilson_interval
from benchmarks.victim import Victim

SHOWN = 4
ARMS = ("shared", "tuned", "untuned")
HEADER = (
    "method",
    "rate",
    "images",
    "95 %",
    "runs",
    "iterations",
    "function values",
    "s",
)
TIMED = (
    "batch",
    "ms per step and run",
    "of processor time",
    "ms per step",
    "times one by one",
)
NOTE = (
    "Images: the number fooled with most seeds, and Wilson's 95 % interval. Iterations "
    "and function values to success: median over images of the median over seeds, with "
    "an interval from order statistics in brackets; ∞ means not within the budget. s: "
    "wall time of all runs, without compilation."
)


class Summary(NamedTuple):
    """A table.

    Attributes:
      title: Title.
      header: Names of the columns.
      rows: Cells.
    """

    title: str
    header: Sequence[str]
    rows: list[Sequence[str]]


def number(x: float) -> str:
    return f"{x:,.0f}" if np.isfinite(x) else "∞"


def grouped(lines: list[dict[str, Any]], arms: Sequence[str]) -> list[list[dict]]:
    """Group lines that differ in their method only; keep the last of each method.

    Without a learning rate, they may differ in their seeds: some need only one.
    """
    groups: dict[str, dict[str, dict]] = {}
    for line in lines:
        settings = dict(line["settings"])
        if line["command"] == "attack" and settings.get("arm") in arms:
            method = settings.pop("method")
            seeds = None if settings["arm"] == "untuned" else line["seeds"]
            group = groups.setdefault(json.dumps([settings, seeds]), {})
            group.pop(method, None)  # Keep the order of the last lines.
            group[method] = line
    return [list(group.values()) for group in groups.values()]


def counts(line: dict[str, Any], name: str) -> np.ndarray:
    """Return (images, seeds) counts, with infinity or NaN for runs without success."""
    return np.array(line["numbers"][name], dtype=float, ndmin=2, copy=True)


def to_success(line: dict[str, Any], name: str) -> np.ndarray:
    """Return (images,) medians over seeds."""
    found = counts(line, name)
    return np.median(np.where(np.isnan(found), np.inf, found), axis=1)


def interval(x: np.ndarray) -> str:
    found = median_interval(x)
    if len(x) == 1:
        return number(found.median)
    return f"{number(found.median)} [{number(found.low)} – {number(found.high)}]"


def heading(line: dict[str, Any]) -> str:
    settings = line["settings"]
    images, seeds = len(settings["images"]), len(line["seeds"])
    runs = f"{images} image{'s' * (images > 1)}"
    if settings["arm"] == "untuned":
        rate = f"no learning rate, from θ = 0, at most {settings['max_values']:,} "
        rate += "function values"
    else:
        runs += f" x {seeds} seed{'s' * (seeds > 1)}"
        if settings["arm"] == "tuned":
            rate = f"rates tuned on {len(settings['tuning_images'])} other images"
        else:
            rate = f"learning rate {settings['learning_rate']:g} for all"
        rate += f", at most {settings['steps']:,} steps"
    title = f"{settings['dataset']}, {runs}, {rate}"
    if images == 1:  # One image has no interval.
        return title
    return f"{title}; brackets: {median_interval(np.zeros(images)).level:.1%}"


def row(line: dict[str, Any]) -> Sequence[str]:
    steps, values = (to_success(line, name) for name in ("steps", "function_values"))
    images, runs = int(np.isfinite(steps).sum()), np.isfinite(counts(line, "steps"))
    low, high = wilson_interval(images, len(steps))
    return (
        LABELLED[line["settings"]["method"]].label,
        rate_of(line),
        f"{images} of {len(steps)}",
        f"{100 * low:.0f} – {high:.0%}",
        f"{runs.sum()} of {runs.size}",
        interval(steps),
        interval(values),
        f"{line['numbers']['run_seconds']:,.0f}",
    )


def rate_of(line: dict[str, Any]) -> str:
    """Return the rate, if any, marked if it is the least or largest of those tried."""
    rate, tried = line["numbers"]["rate"], line["settings"].get("rates", [])
    if rate is None:
        return "–"
    at_edge = bool(tried) and rate in (min(tried), max(tried))
    return f"{rate:.3g}{' (edge)' if at_edge else ''}"


def throughput_rows(line: dict[str, Any]) -> list[Sequence[str]]:
    seconds = line["numbers"]["seconds_per_step_and_run"]
    processor = line["numbers"]["processor_seconds_per_step_and_run"]
    return [
        (
            str(size),
            f"{1000 * wall:.2f}",
            f"{1000 * used:.2f}",
            f"{1000 * wall * size:.1f}",
            f"{times:.2f}",
        )
        for size, wall, used, times in zip(
            line["settings"]["sizes"],
            seconds,
            processor,
            line["numbers"]["times_one_by_one"],
            strict=True,
        )
    ]


def summaries(lines: list[dict[str, Any]]) -> list[Summary]:
    """Return a table for each group of lines."""
    found = [
        Summary(heading(group[0]), HEADER, [row(line) for line in group])
        for group in grouped(lines, ARMS)
    ]
    for (line,) in grouped(lines, ("throughput",)):
        settings = line["settings"]
        title = f"{settings['dataset']}, {LABELLED[settings['method']].label}, "
        title += f"{settings['steps']} steps of each run without early stopping"
        found.append(Summary(title, TIMED, throughput_rows(line)))
    return found


def markdown(lines: list[dict[str, Any]]) -> str:
    """Return the tables of all result lines."""
    parts = []
    for title, header, rows in summaries(lines):
        rule = "| --- |" + " ---: |" * (len(header) - 1)
        cells = [f"| {' | '.join(cells)} |" for cells in rows]
        table = "\n".join([f"| {' | '.join(header)} |", rule, *cells])
        parts += [f"**{title}**", table]
    return "\n\n".join([*parts, NOTE]) + "\n" if parts else ""


def tables(lines: list[dict[str, Any]]) -> list[Table]:
    """Return the same tables for a terminal."""
    found = []
    for title, header, rows in summaries(lines):
        table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False)
        for i, name in enumerate(header):
            justify = "right" if i else "left"
            table.add_column(name, justify=justify, no_wrap=True)
        for cells in rows:
            table.add_row(*(cell.replace(" [", "\n[") for cell in cells))
        found.append(table)
    return found


def draw(lines: list[dict[str, Any]], path: Path) -> Path:
    """Draw median and quartiles of f against function values, one panel per group.

    Methods without a learning rate are drawn beside those with the shared one.
    """
    groups = grouped(lines, ("shared", "tuned"))
    for group in groups:
        if group[0]["settings"]["arm"] == "shared":
            for others in grouped(lines, ["untuned"]):
                group.extend(others if _alike(others[0], group[0]) else [])
    figure = Figure(figsize=(5.6 * len(groups), 4.2), layout="constrained")
    panels = figure.subplots(1, len(groups), squeeze=False)[0]
    for panel, group in zip(panels, groups, strict=True):
        for line in group:
            style, curve = (
                LABELLED[line["settings"]["method"]],
                line["numbers"]["curve"],
            )
            x = curve["function_values"]
            rate = line["numbers"]["rate"]
            label = style.label if rate is None else f"{style.label}, rate {rate:.3g}"
            marker = "." if len(x) == 1 else None
            options = {"color": style.color, "label": label, "marker": marker}
            panel.plot(x, curve["median"], style.dash, **options)
            band = curve["lower"], curve["upper"]
            panel.fill_between(x, *band, color=style.color, alpha=0.2, linewidth=0)
        settings = group[0]["settings"]
        panel.set_title(f"{settings['dataset']}, {settings['arm']} rate")
        panel.axhline(0, color="0.4", linewidth=0.8)
        panel.set_xlabel("function values")
        panel.set_ylabel("f(θ); below 0 is success")
        panel.legend(loc="upper right", fontsize="small")
    figure.savefig(path, dpi=150)
    return path


def _alike(line: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether two lines attack the same images within the same bound."""
    names = "dataset", "images", "bound"
    pair = line["settings"], other["settings"]
    return all(pair[0].get(name) == pair[1].get(name) for name in names)


def draw_pictures(
    victim: Victim,
    indices: np.ndarray,
    outcome: Outcome,
    bound: float,
    path: Path,
) -> None:
    """Draw a row per image: the image, its perturbation (first seed), and their sum."""
    each = len(outcome.thetas) // len(indices)
    count = min(SHOWN, len(indices))
    figure = Figure(figsize=(6, 2.2 * count), layout="constrained")
    panels = figure.subplots(count, 3, squeeze=False)
    for i, image in enumerate(victim.pixels(indices[:count])):
        result = problem.attacked(outcome.thetas[i * each], image, bound)
        steps = outcome.steps[i * each]
        after = f"after {number(steps)}" if np.isfinite(steps) else "without success"
        limits = {"cmap": "RdBu", "vmin": -bound, "vmax": bound}
        target = victim.targets(indices)[i]
        show(panels[i, 0], image, f"image {indices[i]}\n{said(victim, image)}")
        show(panels[i, 1], result - image, f"perturbation\n{after}", **limits)
        show(panels[i, 2], result, f"to be {target}\n{said(victim, result)}")
    figure.savefig(path, dpi=130)


def said(victim: Victim, image: jax.Array) -> str:
    """Return the most likely label of the victim, with its probability."""
    probs = np.exp(np.asarray(victim.log_probs(victim.weights, image)))
    return f"says {probs.argmax()} ({probs.max():.0%})"


def show(panel: Any, image: jax.Array, title: str, **style: Any) -> None:
    style = {"cmap": "gray", "vmin": 0, "vmax": 1, **style}
    panel.imshow(np.asarray(image), **style)
    panel.set_title(title, fontsize="small")
    panel.set_axis_off()
