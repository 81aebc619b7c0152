"""Tables and the figure of `untuned`, from its result lines."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks import estimators_report, figures, records, untuned_low
from benchmarks.estimators_report import finite
from benchmarks.estimators_runs import RULES
from benchmarks.figures import COLORS, number
from benchmarks.methods import METHODS
from benchmarks.statistics import geometric_mean, median_interval
from benchmarks.untuned_runs import BEYOND, ESTIMATORS
from benchmarks.untuned_sensitivity import TIMES
from benchmarks.untuned_tasks import GROUPS, LOW, TASKS

Line = dict[str, Any]
Lines = list[Line]
Found = dict[tuple[str, str], Line]  # By estimator and rule, of one task.

TITLES = {
    "synthetic": "Synthetic functions",
    "estimators": "The tasks of `estimators`",
    "quadratics": "Quadratics whose curvatures differ",
    "noise": "Noise of the values",
    "batches": "Batches",
}
SIDES = {"sphere": "drawn anew", "hadamard": "in sweeps"}
WANTED = 1.2
NOTE = (
    "Nothing is tuned for `zo_auto`. Its f is that of its best point, with noise or "
    "batches of its last one, as that of the others. The rules beside it have the "
    "learning rate that ends lowest on other seeds, and the K and smoothing distance "
    "of the task; *drawn anew* is `sphere_estimator`, *in sweeps* "
    "`hadamard_estimator`. On synthetic functions at d = 10,000 the rules in sweeps "
    "have the rates tuned without them; all rules of the library are candidates there, "
    "at constant rates and with a cosine decay. *Values to the level* are the function "
    "values that `zo_auto` takes to the final median of the best tuned rule, over the "
    f"budget of that rule; its runs go on to {BEYOND:g} times the budget. The best "
    "rule is chosen on the reported seeds, which favours it. Medians over seeds; "
    "brackets hold an interval of the median at a level of 94 % or more with at least "
    "five seeds, and the range with three. Noise is drawn for each evaluation; a "
    "batch, of a tenth of the images, for each step.\n"
)
LOW_NOTE = (
    "d = 40, 20,000 function values, starts uniform in [−4, 4], float32, three seeds. "
    "`radazo` has the smoothing and rate of `calibrate` at its start; `zo_adamm` those "
    "of five calls in five equal rounds. f is without its noise.\n"
)
SENSITIVITY_NOTE = (
    "Of a decay or a share c it is 1 − c that is halved and doubled, of a factor its "
    "logarithm. Ratio of the final median of f to that with the constants as they are: "
    "geometric mean over tasks, and the largest.\n"
)


def key_of(line: Line) -> tuple[str, str]:
    return line["settings"]["estimator"], line["settings"]["rule"]


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
        found.setdefault(line["settings"]["task"], {})[key_of(line)] = line
    return found


def best(found: Found, estimator: str) -> Line | None:
    """Return the tuned line of an estimator that ends lowest."""
    tuned = [
        line
        for (name, rule), line in found.items()
        if name == estimator and rule.partition(",")[0] in METHODS
    ]
    return min(tuned, key=median) if tuned else None


def shares(line: Line, reference: Line | None) -> np.ndarray | None:
    """Return (seeds,) values to the final median of the reference, over its budget."""
    if reference is None or not np.isfinite(median(reference)):
        return None
    numbers, level = line["numbers"], median(reference)
    counts, curves = finite(numbers["counts"]), finite(numbers["curve"])
    taken = [
        estimators_report.taken(*run, level) for run in zip(counts, curves, strict=True)
    ]
    return np.array(taken) / reference["settings"]["budget"]


def share(x: float) -> str:
    return f"{x:.2f}" if np.isfinite(x) else f"> {BEYOND:g}"


def interval(found: np.ndarray | None, text: Callable[[float], str] = share) -> str:
    if found is None:
        return "–"
    middle, low, high, _ = median_interval(found)
    return f"{text(middle)} ({text(low)} – {text(high)})"


def named(line: Line | None) -> list[str]:
    """Return the rule and the final f of a tuned line."""
    if line is None:
        return ["–", "–"]
    rule, _, decay = line["settings"]["rule"].partition(",")
    return [METHODS[rule].label + ("," + decay if decay else ""), spread(line)]


def table(tasks: dict[str, Found], group: str) -> str:
    """Return the table of a group: the best tuned rules, and `zo_auto`."""
    rows = []
    for name, task in GROUPS[group].items():
        found = tasks.get(name)
        if not found:
            continue
        row, references = [task.label], [best(found, side) for side in ESTIMATORS]
        for line in references:
            row += named(line)
        auto = found.get(("", "zo_auto"))
        row.append("–" if auto is None else spread(auto))
        row += [
            "–" if auto is None else interval(shares(auto, line)) for line in references
        ]
        rows.append(row)
    header = ["task"]
    for text in SIDES.values():
        header += [f"best tuned rule, {text}", "its f"]
    header.append("zo_auto: f")
    header += [f"values to the level, {text}" for text in SIDES.values()]
    return figures.markdown_table(header, rows) if rows else ""


def apart(tasks: dict[str, Found]) -> str:
    """Return the final medians of each rule with both estimators, and of `zo_auto`."""
    rules = (*RULES, "parabola")
    rows = []
    for name, task in TASKS.items():
        found = tasks.get(name, {})
        cells = [
            number(median(found[key])) if (key := (side, rule)) in found else "–"
            for rule in rules
            for side in ESTIMATORS
        ]
        auto = found.get(("", "zo_auto"))
        if any(cell != "–" for cell in cells):
            last = "–" if auto is None else number(median(auto))
            rows.append([task.label, *cells, last])
    header = ["task"]
    header += [f"{rule}, {text}" for rule in rules for text in SIDES.values()]
    return figures.markdown_table([*header, "zo_auto"], rows)


def median_shares(tasks: dict[str, Found], side: str) -> dict[str, float]:
    """Return by task the median share of the best tuned rule of an estimator."""
    found = {}
    for name, lines in tasks.items():
        if name in TASKS and ("", "zo_auto") in lines:
            shown = shares(lines["", "zo_auto"], best(lines, side))
            if shown is not None:
                found[name] = float(np.median(shown))
    return found


def verdict(tasks: dict[str, Found]) -> str:
    """Say on how many tasks `zo_auto` reaches the best tuned rule, and where not."""
    parts = []
    for side, text in SIDES.items():
        found = median_shares(tasks, side)
        if found:
            within = [name for name, x in found.items() if x <= WANTED]
            fewer = [name for name, x in found.items() if x < 1]
            beyond = [
                f"{TASKS[name].label} ({share(x)})"
                for name, x in found.items()
                if x > WANTED
            ]
            parts.append(
                f"To the final f of the best tuned rule with directions {text}, "
                f"`zo_auto` takes fewer function values on {len(fewer)} of "
                f"{len(found)} tasks, and at most {WANTED:g} times as many on "
                f"{len(within)}. More: {'; '.join(beyond) or 'none'}.\n"
            )
    return "\n".join(parts)


def over_sgd(tasks: dict[str, Found], group: str) -> str:
    """Return final f of `zo_auto` over that of `zo_sgd` in sweeps, as a sentence."""
    found = []
    for name, task in GROUPS[group].items():
        lines = tasks.get(name, {})
        pair = [lines.get(key) for key in (("", "zo_auto"), ("hadamard", "zo_sgd"))]
        if None not in pair:
            ratio = median(pair[0]) / median(pair[1])
            found.append(f"{task.label} {ratio:.2f}")
    if not found:
        return ""
    text = "; ".join(found)
    return f"Final f over that of `zo_sgd` tuned in sweeps: {text}.\n"


def low_table(tasks: dict[str, Found]) -> str:
    """Return the functions of few parameters, and where `zo_auto` holds its own."""
    rows, above, behind, total = [], [], [], 0
    for name, task in LOW.items():
        lines = {rule: line for (_, rule), line in tasks.get(name, {}).items()}
        if not lines:
            continue
        starts = next(iter(lines.values()))["numbers"]["value_at_start"]
        row = [task.label, number(float(np.median(starts)))]
        row += [low_spread(lines.get(rule)) for rule in untuned_low.NAMES]
        rows.append(row)
        if set(untuned_low.NAMES) <= {*lines}:
            total += 1
            ends = {rule: at_end(lines[rule]) for rule in untuned_low.NAMES}
            above += [task.label] if np.any(ends["zo_auto"] > starts) else []
            others = min(np.median(ends[rule]) for rule in untuned_low.CALIBRATED)
            behind += [task.label] if np.median(ends["zo_auto"]) > others else []
    header = ["function", "f(x₀)", "zo_auto", "radazo, calibrated"]
    text = figures.markdown_table([*header, "zo_adamm, calibrated 5 times"], rows)
    if total:
        text += (
            f"\nOf {total} functions, `zo_auto` ends above its start in a run on: "
            f"{', '.join(above) or 'none'}; above the lower of both others on: "
            f"{', '.join(behind) or 'none'}.\n"
        )
    return text


def at_end(line: Line) -> np.ndarray:
    return finite([line["numbers"]["value_at_end"]])[0]


def low_spread(line: Line | None) -> str:
    return "–" if line is None else interval(at_end(line), number)


def sensitivity_table(tasks: dict[str, Found]) -> str:
    """Return the ratios of final f with each constant halved and doubled."""
    ratios: dict[tuple[str, float], dict[str, float]] = {}
    known: dict[str, Any] = {}
    for name, lines in tasks.items():
        line = lines.get(("", "sensitivity"))
        if line is None:
            continue
        numbers, label = line["numbers"], label_of(name)
        known |= line["settings"]["constants"]
        # Below a millionth of the start, values of f do not differ.
        floor = 1e-6 * abs(float(np.median(numbers["value_at_start"])))
        usual = max(float(np.median(at_end(line))), floor)
        for changed in numbers["changed"]:
            end = float(np.median(finite([changed["value_at_end"]])))
            key = changed["constant"], changed["times"]
            ratios.setdefault(key, {})[label] = max(end, floor) / usual
    rows = []
    for constant, value in known.items():
        row = [f"`{constant}`", str(value)]
        for times in TIMES:
            found = ratios[constant, times]
            worst = max(found, key=lambda name: found[name])
            mean = geometric_mean(list(found.values()))
            row += [f"{mean:.2f}", f"{number(found[worst])} ({worst})"]
        rows.append(row)
    header = ["constant", "value", "halved: mean", "worst", "doubled: mean", "worst"]
    return figures.markdown_table(header, rows) if rows else ""


def label_of(name: str) -> str:
    return (LOW if name in LOW else TASKS)[name].label


def markdown(lines: Lines) -> str:
    tasks = by_task(lines)
    parts = [NOTE, verdict(tasks)]
    for group, title in TITLES.items():
        text = table(tasks, group)
        if text:
            parts += [f"\n**{title}**\n", text]
            parts += [over_sgd(tasks, group)] if group in ("noise", "batches") else []
    apart_text = apart(tasks)
    parts += ["\n**Directions and rate apart: f at the end**\n", apart_text]
    if any(name in LOW for name in tasks):
        parts += ["\n**Out of the box**\n", LOW_NOTE, low_table(tasks)]
    sensitivity = sensitivity_table(tasks)
    if sensitivity:
        parts += ["\n**Constants of `zo_auto`, halved and doubled**\n"]
        parts += [SENSITIVITY_NOTE, sensitivity]
    return "\n".join(part for part in parts if part)


def draw(lines: Lines, folder: Path) -> list[Path]:
    """Draw the values that `zo_auto` takes to the levels of tuned rules, by task."""
    tasks = by_task(lines)
    found = {
        name: [shares(tasks[name]["", "zo_auto"], best(tasks[name], s)) for s in SIDES]
        for name in TASKS
        if ("", "zo_auto") in tasks.get(name, {})
    }
    if not found:
        return []
    figure = Figure(figsize=(7.5, 1.5 + 0.24 * len(found)), layout="constrained")
    panel = figure.subplots()
    for i, text in enumerate(SIDES.values()):
        draw_side(panel, [sides[i] for sides in found.values()], i, text)
    panel.axvline(1, color="gray", linewidth=0.8)
    panel.set_yticks(range(len(found)), [label_of(name) for name in found])
    panel.invert_yaxis()
    panel.set_xscale("log")
    panel.set_xlabel("values of zo_auto to the level, over the budget")
    path = folder / "untuned.png"
    figures.save(figure, panel.get_legend_handles_labels()[0], path)
    return [path]


def draw_side(panel: Any, found: list[np.ndarray | None], i: int, text: str) -> None:
    """Draw medians and intervals; at the right edge what is not reached."""
    edge, shown = 1.15 * BEYOND, False
    for y, ratios in enumerate(found):
        if ratios is None:
            continue
        middle, low, high = (min(x, edge) for x in median_interval(ratios)[:3])
        at, color = y + 0.25 * i - 0.12, COLORS[i]
        panel.plot([low, high], [at, at], color=color, linewidth=1.2)
        label = None if shown else f"directions of the rule {text}"
        marker = "o" if middle < edge else ">"
        panel.plot([middle], [at], marker, color=color, markersize=4, label=label)
        shown = True
