"""Result lines: JSON records with everything needed to repeat a measurement.

  {"command": "synthetic", "date": "...", "commit": "...", "versions": {...},
   "device": {...}, "seeds": [...], "settings": {...}, "numbers": {...}}

Numbers that are not finite are null, because JSON has no infinity. Curves are rounded
to four digits. A line is written when its piece of work is finished. An interrupted
command skips the pieces that `find` finds.
"""

import datetime as dt
import json
import math
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from rich.console import Console

import radazo


def console() -> Console:
    """Return a console as wide as the terminal, or 100 columns without one."""
    return Console(width=None if sys.stdout.isatty() else 100, highlight=False)


def append(
    path: Path, command: str, seeds: list[int], settings: dict, numbers: dict
) -> dict[str, Any]:
    """Append one result line to the file at `path`, and return it as `read` would."""
    line = _plain(
        {
            "command": command,
            "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            "commit": _COMMIT,
            "versions": _versions(),
            "device": _device(),
            "seeds": seeds,
            "settings": settings,
            "numbers": numbers,
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(line, allow_nan=False) + "\n"
    if path.exists() and not path.read_bytes().endswith(b"\n"):
        text = "\n" + text  # The last line is incomplete; leave it alone.
    with path.open("a", encoding="utf-8") as file:
        file.write(text)
    return line


def read(path: Path) -> list[dict[str, Any]]:
    """Return the lines of the file at `path`; none if there is no file.

    Lines that a killed program left incomplete are skipped.
    """
    if not path.exists():
        return []
    found = []
    for line in path.read_text("utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            print(f"{path}: skipped an incomplete line: {line[:60]} ...")
    return found


def newest(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the last line of each combination of seeds and settings."""
    last = {json.dumps([line["seeds"], line["settings"]]): line for line in lines}
    return list(last.values())


def find(
    lines: list[dict[str, Any]], seeds: list[int], settings: dict
) -> dict[str, Any] | None:
    """Return the last line of these seeds and settings that this machine could make.

    Versions of radazo, jax, optax and Python and the platform must agree.
    """
    wanted = _wanted(seeds, settings)
    platform = _device()["platform"]
    found = [
        line
        for line in lines
        if all(line[name] == value for name, value in wanted.items())
        and line["device"]["platform"] == platform
    ]
    return found[-1] if found else None


def identity(seeds: list[int], settings: dict) -> str:
    """Return what `find` compares, as a text, to identify unfinished work."""
    return json.dumps([_wanted(seeds, settings), _device()["platform"]])


def rounded(x: Any, digits: int = 4) -> np.ndarray:
    """Round `x` to this number of significant digits, for drawing."""
    return np.vectorize(lambda value: float(f"{value:.{digits - 1}e}"))(np.asarray(x))


def _wanted(seeds: list[int], settings: dict) -> dict[str, Any]:
    return _plain({"versions": _versions(), "seeds": seeds, "settings": settings})


def _versions() -> dict[str, str]:
    return {
        "radazo": radazo.__version__,
        "jax": jax.__version__,
        "optax": optax.__version__,
        "python": platform.python_version(),
    }


def _device() -> dict[str, Any]:
    device = jax.devices()[0]
    return {
        "platform": device.platform,
        "kind": device.device_kind,
        "machine": platform.machine(),
        "cpu_cores": _num_cores(),
    }


def _num_cores() -> int | None:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _commit() -> str | None:
    """Return the commit that is checked out, or None outside of a repository."""
    root = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


# At the start of the program, because another commit may be checked out later.
_COMMIT = _commit()


def _plain(x: Any) -> Any:
    """Convert `x` to types of JSON."""
    if isinstance(x, dict):
        return {str(name): _plain(value) for name, value in x.items()}
    if isinstance(x, list | tuple | np.ndarray):
        return [_plain(value) for value in x]
    if isinstance(x, np.generic):
        x = x.item()
    if isinstance(x, float) and not math.isfinite(x):
        return None
    return str(x) if isinstance(x, Path) else x
