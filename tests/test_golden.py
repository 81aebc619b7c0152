"""Estimators and optimizers give the numbers that they gave on fixed keys before.

Bit for bit with the version and on the processor of the record; elsewhere XLA may round
otherwise, and a Gaussian process amplifies that.
"""

import json
from pathlib import Path

import golden
import jax
import numpy as np
import pytest
from conftest import as_a_user

import radazo

RECORD = json.loads(golden.FILE.read_text(encoding="utf-8"))
SAME_MACHINE = RECORD["machine"] == golden.machine()
# Fused otherwise than in the record: the last digits of float64 differ.
FUSED_OTHERWISE = {
    "interpolation, float64",
    "interpolation, terms, float64",
    "svrg, float64",
}


def numbers(name, dtype):
    kinds = [dtype] * 3 + ["int32"]
    kinds[2] = "float64" if dtype == "float64" else "float32"
    for text, kind in zip(RECORD[name], kinds, strict=True):
        yield np.frombuffer(bytes.fromhex(text), kind)


@pytest.mark.optimized
@pytest.mark.parametrize("name", sorted({*RECORD} - {"machine"}))
def test_the_numbers_are_those_of_the_record(name):
    short, _, dtype = name.rpartition(", ")
    with as_a_user(), jax.enable_x64(dtype == "float64"):
        optimizer, function = golden.rows()[short]
        found = golden.run(optimizer, function, dtype)
    if SAME_MACHINE and name not in FUSED_OTHERWISE:
        assert found == RECORD[name]
    rtol = 1e-10 if dtype == "float64" else 1e-4
    if "trajectory" in name:
        rtol = max(rtol, 1e-2 if dtype == "float32" else 1e-6)
    pairs = zip(found, numbers(name, dtype), strict=True)
    for text, wanted in pairs:
        given = np.frombuffer(bytes.fromhex(text), wanted.dtype)
        np.testing.assert_allclose(given, wanted, rtol=rtol, atol=rtol)


def test_the_record_has_every_estimator_and_optimizer():
    names = {key.rpartition(", ")[0] for key in RECORD if key != "machine"}
    assert names == {*golden.rows()}
    source = Path(golden.__file__).read_text(encoding="utf-8")
    made = {x for x in radazo.estimators.__all__ if x.endswith("_estimator")}
    for name in made - {"finite_difference_estimator"}:  # By its presets.
        assert f"radazo.{name}(" in source
    named = {
        x for x in radazo.optimizers.__all__ if x.startswith(("zo_", "projected_"))
    }
    assert named | {"radazo", "meazo", "pars", "roll_back"} <= names
