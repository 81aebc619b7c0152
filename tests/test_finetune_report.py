"""What the report says of fine-tuning, from lines that are written by hand."""

import math

import numpy as np
import pytest
import scipy.stats

from benchmarks import finetune_report, methods, statistics

pytestmark = pytest.mark.gate

EVERY, STEPS = 100, 400


def line(method, rate, seed, losses, b1=methods.B1, moments="held", accuracy=0.7):
    settings = {"model": "minilm", "task": "sst2", "method": method}
    settings |= {"learning_rate": rate, "steps": STEPS, "batch_size": 16}
    settings |= {"b1": b1, "moments": moments, "eval_every": EVERY}
    numbers = {"train_losses": losses, "train_loss": losses[-1]}
    numbers |= {"dev_accuracies": [accuracy, None], "eval_accuracy_of_best": accuracy}
    return {"seeds": [seed], "settings": settings, "numbers": numbers}


def lines():
    found = []
    for seed in (0, 1):
        shift = 0.01 * seed
        slow = [1.0, 0.9, 0.8, 0.7, 0.6 + shift]
        fast = [1.0, 0.7, 0.5, 0.4, 0.3 + shift]
        found += [line("zo_adamm", 1e-3, seed, slow), line("radazo", 1e-3, seed, fast)]
        found += [line("radazo", 1e-3, seed, slow, b1=0.5)]
        found += [line("radazo", 1e-3, seed, fast, moments="rebuilt")]
        found += [line("zo_adamm", 1e-2, seed, fast)]
    found += [line("zo_adamm", 1e-2, 100, [1.0, 0.5, 0.4, 0.3, 0.2])]
    found += [line("zo_adamm", 1e-3, 100, [1.0, 0.5, 0.4, 0.3, 0.25])]
    found += [line("zo_adamm", 1e-1, 100, [1.0, None, None, None, None])]
    return found


def test_rates_are_shared_or_those_of_a_seed_that_is_not_reported():
    arms = finetune_report.arms(lines())
    assert {*arms["shared"]} == {"radazo", "zo_adamm"}
    assert {*arms["tuned"]} == {"zo_adamm"}
    for group in (*arms["shared"].values(), *arms["tuned"].values()):
        assert {*group} == {0, 1}
    tuned = arms["tuned"]["zo_adamm"][0]["settings"]
    assert tuned["learning_rate"] == 1e-2


def test_a_run_that_diverged_has_an_infinite_loss():
    last = lines()[-1]
    assert finetune_report.final_loss(last) == math.inf
    assert finetune_report.curve(last).tolist() == [1.0, *[math.inf] * 4]
    row = finetune_report.row("x", {100: last}, {}, 0.5)
    assert row[2] == "diverges"
    assert row[4] == "–"


@pytest.mark.parametrize(
    ("loss", "step"), [(0.85, 150.0), (0.9, 100.0), (0.6, 400.0), (0.5, math.inf)]
)
def test_the_step_of_a_loss_is_between_those_that_were_taken(loss, step):
    group = {0: line("radazo", 1e-3, 0, [1.0, 0.9, 0.8, 0.7, 0.6])}
    assert finetune_report.steps_to(loss, group) == pytest.approx(step)


def test_a_loss_that_the_start_has_takes_no_step_worth_the_name():
    group = {0: line("radazo", 1e-3, 0, [1.0, 0.9, 0.8, 0.7, 0.6])}
    assert finetune_report.steps_to(1.1, group) == math.inf


def test_runs_for_tuning_alone_are_no_arm(tmp_path):
    alone = [line("radazo", 1e-3, 100, [1.0, 0.9, 0.8, 0.7, 0.6])]
    assert finetune_report.arms(alone) == {"shared": {}, "tuned": {}}
    assert finetune_report.draw(alone, tmp_path) == []
    assert finetune_report.markdown(alone)


def test_experiments_have_figures_and_names_of_their_own(tmp_path):
    found = lines()
    for more in (
        {"tune": "lora", "dtype": "float32"},
        {"batch_size": 32},
        {"batch_size": 8},
    ):
        other = [x | {"settings": x["settings"] | more} for x in lines()]
        found += other
    names = [path.stem for path in finetune_report.draw(found, tmp_path)]
    first = "finetune_minilm_sst2"
    assert names == [first, f"{first}_lora_float32", f"{first}_2", f"{first}_3"]
    assert "**minilm on sst2, lora, float32, 400 steps" in finetune_report.markdown(
        found
    )


def test_the_tables_have_what_the_lines_say():
    text = finetune_report.markdown(lines())
    rows = [x.split(" | ") for x in text.splitlines() if x.startswith("| ")]
    assert [x[0] for x in rows if "method" not in x[0] and "--" not in x[0]] == [
        "| radazo",
        "| zo_adamm",
        "| zo_adamm",
        "| b1 = 0.5",
        "| b1 = 0.9",
        "| held",
        "| rebuilt",
    ]
    mean, half = statistics.mean_interval([0.3, 0.31])
    assert half == pytest.approx(12.706 * 0.005, rel=1e-3)
    radazo = next(x for x in rows if x[0] == "| radazo")
    assert radazo[2] == f"{mean:.4f} ± {half:.4f}"
    # The mean curve 1, 0.7, 0.5, ... is at 0.605, where zo_adamm ends, after 147.5.
    assert radazo[4] == f"148 ({400 / 147.5:.2f})"
    adamm = next(x for x in rows if x[0] == "| zo_adamm")
    assert adamm[3] == "0.3000 ± 0.0000"
    assert adamm[4] == "400 (1.00)"
    assert "2 seed(s): shared rate" in text


def test_the_figure_has_a_panel_for_each_table(tmp_path):
    (path,) = finetune_report.draw(lines(), tmp_path)
    assert path.name == "finetune_minilm_sst2.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    assert len(finetune_report.parts(lines())) == 4
    assert finetune_report.draw(lines()[:2], tmp_path) == []


def test_a_mean_has_the_interval_of_student():
    x = np.random.default_rng(0).normal(size=5)
    mean, half = statistics.mean_interval(x, 0.9)
    low, high = scipy.stats.ttest_1samp(x, 0).confidence_interval(0.9)
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert statistics.mean_interval([2.0]) == (2.0, math.inf)
