"""The figure of the README, from the result lines of `synthetic` and `attack`."""

from pathlib import Path
from typing import Any

from benchmarks import attack_report, figures, synthetic_figures
from benchmarks.methods import METHODS
from benchmarks.synthetic_report import Lines, main_groups, select

FUNCTION, DIM = "rosenbrock", 10_000
SHARED = ("radazo", "zo_adamm", "zo_adamm_matched")
ARMS = {"shared": "same rate", "tuned": "tuned rates"}
TUNED = ("radazo", "zo_adamm", "zo_sgd")
CAPTION = (
    "Medians over runs. At the same learning rate a step of R-AdaZO is longer than one "
    "of ZO-AdaMM; the dashed line is ZO-AdaMM with its rate multiplied by that factor. "
    "In the right panel each method has its best constant rate.\n"
)


def draw(synthetic: Lines, attack: Lines, folder: Path) -> list[Path]:
    """Draw an attack and a function, at the same rate and at tuned rates.

    Returns no path if one of the experiments was not run.
    """
    found = select(synthetic, function=FUNCTION, dim=DIM)
    shared, tuned = (main_groups(found, arm).get(FUNCTION) for arm in ARMS)
    attacks = attack_report.grouped(attack, ["shared"])
    if not (shared and tuned and attacks):
        return []
    figure, panels = figures.figure_of(3)
    drawn = _draw_attack(panels[0], max(attacks, key=lambda x: len(x[0]["seeds"])))
    drawn += synthetic_figures.draw_panel(panels[1], _of_methods(shared, SHARED))
    drawn += synthetic_figures.draw_panel(panels[2], _of_methods(tuned, TUNED))
    for panel, rates in zip(panels[1:], ARMS.values(), strict=True):
        panel.set_title(f"Rosenbrock, {DIM:,} parameters: {rates}", fontsize="medium")
    path = folder / "overview.png"
    figures.save(figure, drawn, path)
    return [path]


def _of_methods(lines: Lines, methods: tuple[str, ...]) -> Lines:
    return [line for line in lines if line["settings"]["method"] in methods]


def _draw_attack(panel: Any, lines: Lines) -> list[Any]:
    drawn = []
    for line in _of_methods(lines, SHARED):
        style, curve = METHODS[line["settings"]["method"]], line["numbers"]["curve"]
        x, y = curve["function_values"], curve["median"]
        (shown,) = panel.plot(x, y, color=style.color, label=style.label)
        shown.set_linestyle(style.dash)
        drawn.append(shown)
    data = lines[0]["settings"]["dataset"]
    panel.axhline(0, color="gray", linewidth=0.8)
    panel.set_xlabel("function values")
    panel.set_ylabel("margin; below 0 is success")
    panel.set_title(f"attack on a classifier of {data}: same rate", fontsize="medium")
    return drawn
