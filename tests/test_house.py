"""The house rules hold in radazo, and each rejects what breaks it."""

import importlib.util
import re
import subprocess
import sys
import tomllib

import house
import pytest

MODULES = {module.name: module for module in house.read_package()}
INIT = '''"""A package."""

from radazo.low import ScaleByRuleState, make

__all__ = ["ScaleByRuleState", "make"]
'''
GOOD = '''"""A module that breaks no rule.

A second sentence of it.
"""

from typing import NamedTuple

import jax

from radazo import core


class ScaleByRuleState(NamedTuple):
    """A state.

    Attributes:
      count: Steps.
      mu: A mean.
    """

    count: jax.Array
    mu: jax.Array


def scale_by_rule(key, value_fn, params, state):
    """One line."""
    return jax.random.fold_in(key, core.count(state)), value_fn(params)


def make(params, smoothing):
    """Make it.

      y ← x

    Args:
      params: What.
      smoothing: How far.
    Returns:
      It.
    Cost:
      Nothing.
    Example:
      >>> make(1, 2)
      3
    """
    return scale_by_rule(params, smoothing, None, None)


def _update(updates, state, params):
    return updates
'''
USE = "from radazo import low\nlow.scale_by_rule\n"


def broken_by(old, new, source=GOOD):
    """The good module with one thing changed."""
    assert source.count(old) >= 1
    return source.replace(old, new, 1)


# For each rule what it must reject: (name of the module, source).
REJECTED = {
    house.imports_go_down: [
        ("low", broken_by("from radazo import core", "from radazo.run import loop")),
        *[
            ("estimators.low", broken_by("from radazo import core", line))
            for line in (
                "from radazo.optimizers import high",
                "from radazo.optimizers.high import core",
                "import radazo.optimizers.high as core",
            )
        ],
    ],
    house.imports_are_of_the_core_and_on_top: [
        ("low", broken_by("import jax", "import torch")),
        ("low", broken_by("import jax", "from flax import nnx")),
        ("low", broken_by("import jax", "from . import core")),
        ("low", broken_by("    return updates", "    import math\n    return math")),
    ],
    house.a_body_is_short: [
        ("low", broken_by("    return updates", "    x = 1\n" * 60 + "    return x"))
    ],
    house.nothing_is_asserted: [
        ("low", broken_by("    return updates", "    assert updates"))
    ],
    house.no_key_is_made_of_a_constant: [
        ("low", broken_by("    return updates", "    return jax.random.key(0)")),
        ("low", broken_by("    return updates", "    return PRNGKey(42)")),
    ],
    house.nothing_is_silenced: [
        ("low", broken_by("import jax", f"import jax  # {mark}"))
        for mark in ("noqa: F401", "type: ignore", "pragma: no cover", "fmt: skip")
    ],
    house.only_checks_raise: [
        ("low", broken_by("    return updates", "    raise ValueError(updates)"))
    ],
    house.everything_public_says_what_it_is: [
        ("low", broken_by('    """One line."""\n', "")),
        ("low", broken_by('"""One line."""', '"""One line"""')),
        ("low", "import jax\n"),
    ],
    house.exported_docstrings_have_their_sections: [
        ("low", broken_by("    Cost:\n      Nothing.\n", "")),
        ("low", broken_by("    Args:", "    Example:\n      >>> 1\n    Args:")),
        ("low", broken_by("      smoothing: How far.\n", "")),
        ("low", broken_by("      >>> make(1, 2)\n", "")),
        ("low", broken_by("      mu: A mean.\n", "")),
        (
            "low",
            broken_by("    return scale", "    validation.fail(1)\n    return scale"),
        ),
        ("low", broken_by("Make it.", "Make it")),
    ],
    house.exports_are_what_they_say: [
        ("__init__", broken_by('"make"]', '"_make"]', INIT)),
        ("__init__", broken_by('"make"]', '"make", "build"]', INIT)),
        ("__init__", broken_by('__all__ = ["ScaleByRuleState", "make"]', "", INIT)),
        (
            "__init__",
            broken_by('"ScaleByRuleState", "make"', '"make", "ScaleByRuleState"', INIT),
        ),
        ("__init__", INIT + '__all__ += ["make"]\n'),
        ("__init__", INIT + '__all__ += ["build"]\n'),
    ],
    house.public_names_are_used_elsewhere: [
        ("low", GOOD + "\nextra = 1\n"),
        ("low", broken_by("def _update", "def update")),
    ],
    house.nobody_uses_a_name_of_another_file_alone: [
        ("low", broken_by("core.count", "core._count"))
    ],
    house.arguments_are_in_order: [
        ("low", broken_by("(key, value_fn, params", "(value_fn, key, params")),
        ("low", broken_by("(updates, state, params)", "(updates, params, state)")),
    ],
    house.links_and_states_are_named_alike: [
        ("low", broken_by("def scale_by_rule", "def scale_by_law")),
        ("low", broken_by("class ScaleByRuleState", "class ScaleByLawState")),
    ],
    house.one_word_stands_for_an_idea: [
        ("low", broken_by("def make(params, smoothing", f"def make(params, {word}"))
        for word in ("lr", "beta1", "mu", "epsilon", "loss_fn", "n_samples", "rng")
    ],
    house.classes_are_tuples_or_protocols: [
        ("low", broken_by("(NamedTuple):", ":")),
        ("low", broken_by("(NamedTuple):", "(core.Thing):")),
    ],
    house.states_are_not_mistaken_for_others: [
        ("low", broken_by("class ScaleByRuleState", "class EstimatorState"))
    ],
}
RULES = {rule.__name__: rule for rule in REJECTED}


def small_package(name="low", source=GOOD):
    package = dict.fromkeys(("core", "validation"), '"""One of them."""\n')
    package |= {"__init__": INIT, "low": GOOD, "high": USE, name: source}
    return house.Module(name, source, package)


@pytest.mark.parametrize(
    "rule",
    [
        # Reads every file of the tests and the benchmarks once for each name.
        pytest.param(
            x, marks=[pytest.mark.gate] * (x is house.public_names_are_used_elsewhere)
        )
        for x in RULES.values()
    ],
    ids=RULES,
)
def test_the_rule_holds(rule):
    broken = {name: rule(module) for name, module in MODULES.items()}
    assert {name: found for name, found in broken.items() if found} == {}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_the_rule_accepts_what_keeps_it(rule):
    assert rule(small_package()) == []


@pytest.mark.parametrize(
    ("rule", "name", "source"),
    [(rule, *case) for rule, cases in REJECTED.items() for case in cases],
    ids=[f"{rule.__name__}-{i}" for rule, x in REJECTED.items() for i in range(len(x))],
)
def test_the_rule_rejects_what_breaks_it(rule, name, source):
    assert rule(small_package(name, source))


def test_every_rule_is_held_and_has_something_to_reject():
    helpers = {"exports", "imports", "functions", "arguments", "public"}
    helpers |= {"fields", "sections", "read_package", "floor", "short", "listed"}
    helpers |= {"public_module", "parse", "lists"}
    defined = {n.name for n in house.parse(source_of("house")).body if is_def(n)}
    assert defined - helpers == {*RULES}
    assert all(REJECTED.values())


def source_of(name):
    return (house.ROOT / "tests" / f"{name}.py").read_text(encoding="utf-8")


def is_def(node):
    return isinstance(node, house.ast.FunctionDef)


@pytest.mark.parametrize("folder", ["tests", "benchmarks", "notebooks"])
def test_nothing_is_silenced_outside_of_the_package_either(folder):
    paths = (house.ROOT / folder).rglob("*.py")
    found = {
        path.name: house.nothing_is_silenced(
            house.Module(path.stem, path.read_text(encoding="utf-8"), {})
        )
        for path in paths
    }
    assert {name: marks for name, marks in found.items() if marks} == {}


def test_benchmarks_use_what_is_public_and_their_problems_nothing_of_radazo():
    package = MODULES["__init__"].package
    public = {
        name.removesuffix("__init__").strip("."): {*house.listed(house.parse(source))}
        for name, source in package.items()
        if house.public_module(name)
    }
    broken = []
    for path in sorted((house.ROOT / "benchmarks").rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        tree = house.parse(source)
        inner = [name for first, name, _ in house.imports(tree) if first == "radazo"]
        if path.parent.name == "problems":
            broken += [f"{path.name} imports radazo" for _ in inner]
        elif inner:
            text = house.ast.unparse(tree)
            for first, second in re.findall(r"\bradazo\.(\w+)(?:\.(\w+))?", text):
                known = public[""] | {"__version__"}
                fits = first in known and (
                    first not in public or not second or second in public[first]
                )
                broken += [] if fits else [f"{path.name}: {first}.{second}"]
    assert broken == []


def test_every_folder_is_on_one_floor():
    folders = [folder for row in house.FOLDERS for folder in row]
    assert len(folders) == len({*folders})
    assert {*folders} == {name.partition(".")[0] for name in MODULES if "." in name}
    assert house.floor("core") == house.floor("validation") == 0
    assert house.floor("optimizers.presets") > house.floor("estimators.mean") > 0


@pytest.mark.skipif(importlib.util.find_spec("ruff") is None, reason="needs ruff")
@pytest.mark.parametrize("command", [["check"], ["format", "--check"]])
def test_ruff_has_nothing_to_say(command):
    call = [sys.executable, "-m", "ruff", *command, "radazo", "tests", "benchmarks"]
    done = subprocess.run(
        call, cwd=house.ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_core_needs_jax_optax_and_chex_alone():
    text = (house.ROOT / "pyproject.toml").read_text(encoding="utf-8")
    needed = tomllib.loads(text)["project"]["dependencies"]
    names = [re.match(r"[\w-]+", line).group() for line in needed]
    assert sorted(names) == ["chex", "jax", "optax"]
