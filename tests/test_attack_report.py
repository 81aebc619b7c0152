"""What is made of the attack's result lines, and the statistics behind it."""

import numpy as np
import pytest
import scipy.stats

from benchmarks import attack_report, attack_tuning
from benchmarks.statistics import median_interval, wilson_interval

pytestmark = pytest.mark.gate


def made_line(method, rate, steps, arm="shared", **settings):
    """A result line by hand; seeds 1 and 2."""
    values = [[None if t is None else 3 * t + 1 for t in row] for row in steps]
    curve = {"function_values": [1, 100, 200], "median": [3.0, 1.0, -0.5]}
    curve |= {"lower": [2.0, 0.5, -1.0], "upper": [4.0, 2.0, -0.1]}
    return {
        "command": "attack",
        "seeds": [1, 2],
        "settings": {
            "arm": arm,
            "dataset": "mnist",
            "method": method,
            "images": list(range(len(steps))),
            "steps": 20000,
            **({"learning_rate": 0.01} if arm == "shared" else {}),
            **settings,
        },
        "numbers": {
            "rate": rate,
            "steps": steps,
            "function_values": values,
            "curve": curve,
            "run_seconds": 1234.4,
        },
    }


STEPS = [[1000, 1002], [2000, 2000], [3000, None], [None, None], [50, 60], [70, 70]]
LINES = [
    made_line("radazo", 0.01, [[1, 1]] * 6),
    made_line("radazo", 0.01, STEPS),
    made_line("zo_sgd", 0.02, STEPS, "tuned", tuning_images=[7, 8, 9]),
    made_line("sign_search", None, STEPS, "untuned", max_values=60_000),
    {
        "command": "attack",
        "seeds": [1],
        "settings": {
            "arm": "throughput",
            "dataset": "mnist",
            "method": "radazo",
            "steps": 300,
            "sizes": [1, 8],
        },
        "numbers": {
            "seconds_per_step_and_run": [0.002, 0.0005],
            "processor_seconds_per_step_and_run": [0.003, 0.001],
            "times_one_by_one": [1.0, 4.0],
        },
    },
    {"command": "attack", "seeds": [1], "settings": {"dataset": "digits"}},
]


def test_markdown_of_lines_made_by_hand():
    text = attack_report.markdown(LINES)
    # Medians over seeds: 1001, 2000, ∞ (of 3000 and ∞), ∞, 55, 70: the median of these
    # is (1001 + 2000) / 2, and six of them are needed for 95 %.
    row = "4 of 6 | 30 – 90% | 9 of 12 | 1,500 [55 – ∞] | 4,502 [166 – ∞] | 1,234 |"
    assert f"| radazo | 0.01 | {row}" in text
    assert f"| zo_sgd | 0.02 | {row}" in text
    assert "6 images x 2 seeds, learning rate 0.01 for all" in text
    assert "rates tuned on 3 other images" in text
    assert f"| sign_search | – | {row}" in text
    title = "mnist, 6 images, no learning rate, from θ = 0, at most 60,000 function val"
    assert title in text
    assert "brackets: 96.9%" in text
    assert "| 8 | 0.50 | 1.00 | 4.0 | 4.00 |" in text
    assert text.count("| radazo |") == 1, "the last line of equal settings"
    assert attack_report.markdown([]) == ""


def test_curves_are_drawn_of_lines_alone(tmp_path):
    path = tmp_path / "curves.png"
    attack_report.draw(LINES, path)
    assert path.stat().st_size > 10_000


@pytest.mark.parametrize("n", [1, 5, 6, 21, 40])
def test_median_interval_is_that_of_the_binomial(n):
    x = np.random.default_rng(n).permutation(np.arange(n, dtype=float))
    median, low, high, level = median_interval(x)
    assert median == np.median(x)
    # x₍ᵣ₎ is r − 1 here.
    r = int(low) + 1
    assert high == n - r
    below = scipy.stats.binom(n, 0.5).cdf
    np.testing.assert_allclose(level, 1 - 2 * below(r - 1), atol=1e-12)
    assert level >= 0.95 or r == 1
    assert 1 - 2 * below(r) < 0.95, "the next pair is too narrow"


def test_median_interval_of_runs_that_never_succeeded():
    found = median_interval([1, 2, 3, 4, np.inf, np.inf])
    assert (found.median, found.low, found.high) == (3.5, 1, np.inf)
    assert median_interval([np.inf] * 6).median == np.inf
    assert median_interval([7.0]).level == 0


def test_median_interval_holds_the_median_as_often_as_it_says():
    draws = np.random.default_rng(0).exponential(size=(4000, 21))
    found = [median_interval(x) for x in draws]
    held = np.mean([x.low <= np.log(2) <= x.high for x in found])
    assert abs(held - found[0].level) < 4 * np.sqrt(0.027 * 0.973 / 4000)


@pytest.mark.parametrize("successes", [0, 1, 13, 20, 21])
def test_wilson_interval(successes):
    expected = scipy.stats.binomtest(successes, 21).proportion_ci(0.95, "wilson")
    np.testing.assert_allclose(wilson_interval(successes, 21), expected, atol=1e-12)


def test_tuning_takes_the_least_median_and_of_equals_the_least_mean():
    inf = np.inf
    counts = np.array([[9, 9, inf], [1, inf, inf], [2, 10, 3], [3, 3, 3]])
    values = np.array([[0.0] * 3, [0.0] * 3, [5.0, 1, 1], [1.0, 1, 1]])
    assert attack_tuning.best_rate(counts, values) == 3
    assert attack_tuning.best_rate(counts[:2], values[:2]) == 0
    nothing = np.full((2, 3), inf)
    assert attack_tuning.best_rate(nothing, np.array([[2.0] * 3, [1.0] * 3])) == 1


def test_tuning_is_decided_when_no_rate_can_be_better():
    inf = np.inf
    two_fell = np.array([[10, 30, inf], [5, inf, inf]])
    assert attack_tuning.is_decided(40, two_fell)
    assert not attack_tuning.is_decided(40, np.array([[10, inf, inf], [5, inf, inf]]))
    assert attack_tuning.is_decided(40, np.array([[10, 30, inf], [5, 35, inf]]))
    # Of four images the median lies between two: one is still to fall.
    four = np.array([[10, 30, 39, inf], [5, 6, inf, inf]])
    assert not attack_tuning.is_decided(40, four)
    assert attack_tuning.is_decided(70, four)
