"""The command line of journals: show, diff and replay."""

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

import radazo
from radazo.journal import __main__

CODE = """
import jax.numpy as jnp
import radazo

OPTIMIZER = radazo.radazo(0.02, radazo.sphere_estimator(num_directions=5), key=0)

class Holder:
    params = {"w": jnp.ones(4), "b": jnp.zeros((), jnp.bfloat16)}

def params():
    return Holder.params

def no_key():
    return Holder.params["v"]

def leaves():
    raise SystemExit(1)

def none(count):
    return {}[count.shape]

ESTIMATOR = radazo.sphere_estimator(num_directions=5, smoothing=none)
BROKEN = radazo.radazo(0.02, ESTIMATOR, key=0)
"""
PARAMS = {"w": jnp.ones(4), "b": jnp.zeros((), jnp.bfloat16)}
NUM_STEPS = 30


def value_fn(params):
    value = jnp.sum(params["w"] ** 2)
    return jnp.where(params["w"][0] > 1.0005, jnp.nan, value)


def minimized(path, learning_rate=0.02, key=0, num_directions=5, **options):
    estimator = radazo.sphere_estimator(num_directions=num_directions)
    how = radazo.radazo(learning_rate, estimator, key=key)
    options = {"params": PARAMS, "num_steps": NUM_STEPS, **options}
    return radazo.minimize(value_fn, optimizer=how, journal=path, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Journals of a run, of other learning rates and keys, and a truncated one."""
    folder = tmp_path_factory.mktemp("journals")
    minimized(folder / "run")
    minimized(folder / "rate", learning_rate=0.04)
    minimized(folder / "key", key=3, num_directions=2)
    (folder / "cut").write_bytes((folder / "run").read_bytes()[:-75])
    (folder / "ours.py").write_text(CODE)
    return folder


@pytest.fixture
def called(capsys):
    def called(*arguments):
        status = __main__.main([str(x) for x in arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return called


def test_show_says_what_is_in_a_journal(folder, called):
    contents = radazo.journal.read_journal(folder / "run")
    status, out, err = called("show", folder / "run")
    assert (status, err) == (0, "")
    rows = [line.split(maxsplit=1) for line in out.splitlines()]
    lines = dict(row for row in rows if len(row) == 2)
    slopes = contents.entries.slopes
    assert lines["steps"] == "30, from 0 on"
    assert lines["bytes"] == f"{(folder / 'run').stat().st_size:,}"
    assert lines["dropped"] == f"{np.isnan(slopes).sum()} of 150 directions"
    assert np.isnan(slopes).any()
    assert (lines["num_readings"], lines["float_bytes"]) == ("5", "4")
    assert lines["params"] == contents.header.params.hex()
    assert lines["bounds"] == "00" * 16
    last = contents.entries.fingerprint[-1], f"{contents.entries.value[-1]:.6g}"
    shown = lines["29"].split()
    assert shown[:3] == [str(last[0]), last[1], f"{slopes[-1, 0]:.6g}"]
    assert {*"012"} <= {*lines}
    assert "3" not in lines
    assert "ignored" not in lines


def test_show_says_what_was_ignored(folder, called):
    _, out, _ = called("show", folder / "cut")
    size = 15 + 5 * 4
    assert f"ignored         {-75 % size} bytes of an incomplete write" in out
    assert "steps           27, from 0 on" in out


def test_diff_finds_the_first_step_that_differs(folder, called):
    assert called("diff", folder / "run", folder / "run") == (
        0,
        "equal, 30 steps\n",
        "",
    )
    one, other = (
        radazo.journal.read_journal(folder / x).entries for x in ("run", "rate")
    )
    differs = np.any(one.slopes.view("u4") != other.slopes.view("u4"), axis=1)
    differs |= one.value != other.value
    first = int(np.argmax(differs))
    assert first > 0
    status, out, err = called("diff", folder / "run", folder / "rate")
    assert (status, err) == (1, "")
    assert f"equal from step 0 to {first}\nstep {first} differs" in out
    assert f"as do {differs.sum()} in all" in out
    assert f"value: {one.value[first]} and {other.value[first]}" in out
    prints = one.fingerprint[first], other.fingerprint[first]
    assert f"fingerprint: {prints[0]} and {prints[1]}" in out


def test_diff_says_how_headers_differ_and_which_goes_on(folder, called):
    status, out, _ = called("diff", folder / "run", folder / "key")
    assert status == 1
    assert "key_data: (0, 0) and (0, 3)\n" in out
    assert "num_readings: 5 and 2\n" in out
    assert "steps: not comparable\n" in out
    status, out, _ = called("diff", folder / "run", folder / "cut")
    assert (status, out) == (1, "steps: 0 to 30 and 0 to 27\n")


def test_replay_writes_parameters_and_state_whole(folder, tmp_path):
    """In its own process, as a user starts it."""
    result = minimized(folder / "part", num_steps=20)
    call = [
        sys.executable,
        "-m",
        "radazo.journal",
        "replay",
        folder / "run",
        "--to",
        20,
    ]
    call += ["--optimizer", "ours:OPTIMIZER", "--params", "ours:params"]
    call += ["--output", tmp_path / "out.npz"]
    done = subprocess.run(
        [str(x) for x in call], cwd=folder, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [x.name for x in tmp_path.iterdir()] == ["out.npz"]
    with np.load(tmp_path / "out.npz") as arrays:
        assert arrays["state/count"] == 20
        np.testing.assert_array_equal(arrays["params/w"], result.params["w"])
        half = arrays["params/b"].view(jnp.bfloat16)
        np.testing.assert_array_equal(half, np.asarray(result.params["b"]))
        names = {*arrays}
    assert {"state/key_data", "state/optimizer/0/mu/w"} <= names


OURS = ["--optimizer", "ours:OPTIMIZER", "--params", "ours:params"]
WRONG = {
    "no file": (
        ["show", "nothing"],
        "`show(path=...)` must be a readable file; got 'nothing'",
    ),
    "no journal": (["show", "ours.py"], "`show(path=...)` must be a journal, with"),
    "a folder": (
        ["diff", "run", "."],
        "`diff(path=...)` must be a regular file; got '.'",
    ),
    "no module": (
        ["replay", "run", "--optimizer", "theirs:x", "--params", "ours:params"],
        "be an importable MODULE:NAME; got 'theirs:x', with ModuleNotFound",
    ),
    "no name": (
        ["replay", "run", "--optimizer", "ours:OPTIMIZER", "--params", "ours"],
        "`replay(params=...)` must be an importable MODULE:NAME; got 'ours'",
    ),
    "a function that raises": (
        ["replay", "run", "--optimizer", "ours:OPTIMIZER", "--params", "ours:no_key"],
        "be an importable MODULE:NAME; got 'ours:no_key', with KeyError: 'v'.",
    ),
    "a function that leaves": (
        ["replay", "run", "--optimizer", "ours:leaves", "--params", "ours:params"],
        "importable MODULE:NAME; got 'ours:leaves', with SystemExit: 1. Modules are",
    ),
    "an optimizer that raises": (
        ["replay", "run", "--optimizer", "ours:BROKEN", "--params", "ours:params"],
        "error: KeyError: ()",
    ),
    "another model": (
        ["replay", "run", "--optimizer", "ours:OPTIMIZER", "--params", "ours:CODE"],
        "must be the journal of this run",
    ),
    "too far": (
        ["replay", "run", *OURS, "--to", "31"],
        "`replay(count=...)` must be at most 30, where the journal ends; got 31.",
    ),
    "no folder to write to": (
        ["replay", "run", *OURS, "--to", "0"],
        "No such file or directory",
    ),
}


@pytest.mark.parametrize(("arguments", "text"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_one_line_and_status_2(
    folder, called, monkeypatch, arguments, text
):
    monkeypatch.chdir(folder)
    (folder / "ours.py").write_text(CODE + "CODE = jnp.ones(3)\n")
    if arguments[0] == "replay":
        arguments = [*arguments, "--output", "no_folder/out.npz"]
    status, out, err = called(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("python -m radazo.journal: error: ")
    assert err.count("\n") == 1
    assert text in err


def test_a_run_of_no_steps_has_a_journal_of_none(folder, called, monkeypatch):
    monkeypatch.chdir(folder)
    path = folder / "none"
    assert minimized(path, num_steps=0).num_steps == 0
    for command in ("show", "replay"):
        rest = [*OURS, "--output", folder / "out.npz"] if command == "replay" else []
        status, out, err = called(command, path, *rest)
        assert (status, out) == (2, "")
        assert f"`{command}(path=...)` must contain a step; got '{path}'" in err
        assert "which is empty. A run writes the header" in err
    minimized(path)
    assert path.read_bytes() == (folder / "run").read_bytes()


def test_a_command_that_is_none_is_status_2(capsys):
    with pytest.raises(SystemExit) as stopped:
        __main__.main(["play"])
    assert stopped.value.code == 2
    assert "invalid choice: 'play'" in capsys.readouterr().err
