"""Tables and figure of `finetune`, from its result lines."""

import collections
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import figures, methods
from benchmarks.figures import markdown_table
from benchmarks.statistics import mean_interval

Lines = list[dict[str, Any]]

HEADER = (
    "method",
    "rate",
    "training loss",
    "against radazo",
    "steps to the loss of zo_adamm",
    "dev accuracy",
    "eval accuracy",
)
NOTE = (
    "Means over seeds ± half of Student's 95 % interval. Seeds differ in directions "
    "and in the order of batches, and share start and data. Training loss: of all "
    "training examples, at the end. Against radazo: difference of training losses, "
    "paired by seed. Steps: until the mean loss, evaluated every {every} steps, "
    "reaches the final one of zo_adamm at the shared rate, and in brackets by what "
    "factor they are fewer. Dev: best accuracy of the run. Eval: accuracy of the "
    "parameters with the best dev accuracy."
)
TUNING_SEED = 100  # The runs that choose rates are not reported.
# The varied setting of each part of the report; all others are as in the first.
_VARIED = {"learning_rate": None, "b1": methods.B1, "moments": "held"}


def final_loss(line: dict[str, Any]) -> float:
    """Return the final loss of the training examples, infinite if the run diverged."""
    loss = line["numbers"]["train_loss"]
    return math.inf if loss is None or math.isnan(loss) else loss


def curve(line: dict[str, Any]) -> np.ndarray:
    """Return the training loss at the start and after every `eval_every` steps."""
    losses = np.array(line["numbers"]["train_losses"], float)
    return np.where(np.isnan(losses), np.inf, losses)


def experiments(lines: Lines) -> list[Lines]:
    """Group lines that differ only in method, rate, b1, moments and seed."""
    found: dict[str, Lines] = {}
    for line in lines:
        rest = {k: v for k, v in line["settings"].items() if k not in _VARIED}
        del rest["method"]
        found.setdefault(json.dumps(rest), []).append(line)
    return list(found.values())


def runs(lines: Lines, **settings: Any) -> dict[int, dict[str, Any]]:
    """Return the line of each seed, for a method with these settings."""
    wanted = {name: x for name, x in _VARIED.items() if x is not None} | settings
    return {
        line["seeds"][0]: line
        for line in lines
        if all(line["settings"][name] == x for name, x in wanted.items())
    }


def reported(group: dict[int, Any]) -> dict[int, Any]:
    return {seed: line for seed, line in group.items() if seed != TUNING_SEED}


def arms(lines: Lines) -> dict[str, dict[str, dict[int, Any]]]:
    """Return the lines by method, for the shared rate (of most methods) and tuned ones.

    The tuned rate ends lowest on a seed that is not reported.
    """
    main = [x for x in lines if x in runs([x], method=x["settings"]["method"]).values()]
    by_rate: dict[float, set[str]] = {}
    for line in main:
        given = line["settings"]
        by_rate.setdefault(given["learning_rate"], set()).add(given["method"])
    shared = max(by_rate, key=lambda rate: len(by_rate[rate]))
    found: dict[str, dict[str, dict[int, Any]]] = {"shared": {}, "tuned": {}}
    for method in methods.METHODS:
        own = reported(runs(main, method=method, learning_rate=shared))
        if own:
            found["shared"][method] = own
        tuning = [
            line
            for line in main
            if line["settings"]["method"] == method and line["seeds"][0] == TUNING_SEED
        ]
        if tuning:
            rate = min(tuning, key=final_loss)["settings"]["learning_rate"]
            own = runs(main, method=method, learning_rate=rate)
            if reported(own):
                found["tuned"][method] = reported(own)
    return found


def steps_to(loss: float, group: dict[int, Any]) -> float:
    """Return the step at which the mean curve of a group first reaches a loss.

    Interpolates between two losses of the curve; infinite if the loss is not reached.
    """
    every = next(iter(group.values()))["settings"]["eval_every"]
    mean = np.mean([curve(line) for line in group.values()], axis=0)
    below = np.flatnonzero(mean[1:] <= loss)
    if not len(below) or mean[0] <= loss:
        return math.inf
    i = 1 + int(below[0])
    part = (mean[i - 1] - loss) / (mean[i - 1] - mean[i])
    return float(every * (i - 1 + part))


def with_half(x: Sequence[float], digits: int = 4) -> str:
    mean, half = mean_interval(x)
    if not math.isfinite(mean):
        return "diverges"
    return f"{mean:.{digits}f}" + (f" ± {half:.{digits}f}" if len(x) > 1 else "")


def row(
    name: str, group: dict[int, Any], radazo: dict[int, Any], goal: float
) -> Sequence[str]:
    lines = list(group.values())
    steps, last = steps_to(goal, group), lines[0]["settings"]["steps"]
    both = sorted({*group} & {*radazo})
    less = [final_loss(group[seed]) - final_loss(radazo[seed]) for seed in both]
    dev = [max(x or 0 for x in line["numbers"]["dev_accuracies"]) for line in lines]
    evaluated = [line["numbers"]["eval_accuracy_of_best"] for line in lines]
    settings = lines[0]["settings"]
    rate = settings["learning_rate"] * methods.METHODS[settings["method"]].factor
    return (
        name,
        f"{rate:.3g}",
        with_half([final_loss(line) for line in lines]),
        with_half(less) if any(less) else "–",
        f"{steps:,.0f} ({last / steps:.2f})" if math.isfinite(steps) else "–",
        with_half(dev, 3),
        with_half(evaluated, 3),
    )


def parts(lines: Lines) -> dict[str, dict[str, dict[int, Any]]]:
    """Yield the groups of each table, by title and name."""
    found = arms(lines)
    labels = {name: method.label for name, method in methods.METHODS.items()}
    tables: dict[str, Any] = {
        f"{arm} rate": {labels[method]: group for method, group in groups.items()}
        for arm, groups in found.items()
        if groups
    }
    plain = found["shared"].get("radazo")
    if not plain:
        return tables
    rate = next(iter(plain.values()))["settings"]["learning_rate"]
    of_radazo = {"method": "radazo", "learning_rate": rate}
    values: dict[str, Callable[[Any], str]] = {
        "b1": lambda b1: f"b1 = {b1:g}",
        "moments": lambda moments: moments,
    }
    for option, name in values.items():
        swept = {
            line["settings"][option]
            for line in lines
            if line["settings"]["method"] == "radazo"
            and line["settings"]["learning_rate"] == rate
        }
        if len(swept) > 1:
            order = sorted(swept, key=None if option == "b1" else methods.MOMENTS.index)
            tables[f"R-AdaZO at the shared rate by {option}"] = {
                name(x): runs(lines, **of_radazo, **{option: x}) for x in order
            }
    return {
        title: {x: reported(group) for x, group in groups.items() if reported(group)}
        for title, groups in tables.items()
    }


def name_of(settings: dict[str, Any]) -> str:
    """Return the name of an experiment; a folder is named by its last part."""
    options = [str(settings[x]) for x in ("tune", "dtype") if x in settings]
    name = f"{Path(settings['model']).name} on {settings['task']}"
    return ", ".join([name, *options])


def markdown(lines: Lines) -> str:
    text = []
    for group in experiments(lines):
        given = group[0]["settings"]
        tables = parts(group)
        shared = arms(group)["shared"]
        radazo, adamm = shared.get("radazo", {}), shared.get("zo_adamm")
        goal = -math.inf
        if adamm:
            goal = float(np.mean([final_loss(line) for line in adamm.values()]))
        for title, groups in tables.items():
            num = max(len(group) for group in groups.values())
            text.append(
                f"**{name_of(given)}, {given['steps']:,} steps of "
                f"two function values, batches of {given['batch_size']}, {num} "
                f"seed(s): {title}**\n"
            )
            rows = [row(name, group, radazo, goal) for name, group in groups.items()]
            text.append(markdown_table(HEADER, rows))
        text.append(NOTE.format(every=given["eval_every"]) + "\n")
    return "\n".join(text)


def draw(lines: Lines, folder: Path) -> list[Path]:
    """Draw a figure for each experiment of several seeds, with a panel per table."""
    paths, drawn_before = [], collections.Counter()
    for group in experiments(lines):
        given, tables = group[0]["settings"], parts(group)
        if not any(len(x) > 1 for groups in tables.values() for x in groups.values()):
            continue
        figure, panels = figures.figure_of(len(tables), columns=2)
        drawn = []
        for panel, (title, groups) in zip(panels, tables.items(), strict=True):
            for i, (name, found) in enumerate(groups.items()):
                style = next(iter(found.values()))["settings"]["method"]
                color, dash = methods.METHODS[style].color, methods.METHODS[style].dash
                if "by" in title.split():
                    color, dash = figures.COLORS[i % len(figures.COLORS)], "-"
                curves = [curve(line) for line in found.values()]
                x = given["eval_every"] * np.arange(len(curves[0]))
                drawn.append(figures.draw_band(panel, x, curves, name, color, dash))
            panel.set_title(title, fontsize="medium")
            panel.set_xlabel("steps")
            panel.set_ylabel("training loss")
            shown = [curve(x) for found in groups.values() for x in found.values()]
            lowest, start = np.min(shown), np.max(shown, axis=0)[0]
            span = max(start - lowest, 1e-6)
            panel.set_ylim(lowest - 0.05 * span, start + 0.2 * span)
        name = name_of(given)
        figure.suptitle(f"{name}: median, and range over seeds", fontsize="medium")
        words = name.replace(" on ", " ").replace(",", "").split()
        stem = "_".join(["finetune", *words])
        drawn_before[stem] += 1
        number = f"_{drawn_before[stem]}" if drawn_before[stem] > 1 else ""
        paths.append(folder / f"{stem}{number}.png")
        figures.save(figure, drawn, paths[-1])
    return paths
