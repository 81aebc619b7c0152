"""Functions of plain Python that fail by a script, and count themselves.

They import nothing of JAX, so that a worker process has them at once; what they did is
in the files of a folder, which a killed process leaves behind too.
"""

import hashlib
import itertools
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np

SHARES = {"raises": 0.10, "hangs": 0.05, "nan": 0.05}
HANG_SECONDS = 3.0  # Longer than the time-out of any test.


def append(path):
    """One byte more, of which none is lost however many append."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, b"x")
    os.close(file)


def size(path):
    return path.stat().st_size if path.exists() else 0


def value_of(point):
    """A smooth function of a vector, in float64."""
    return float(np.sum(np.square(np.asarray(point, np.float64) - 1)))


def name_of(point):
    return hashlib.blake2b(point.tobytes(), digest_size=8).hexdigest()


def fault(point, attempt, shares):
    """What the script says of an attempt at a point, by the hash of both."""
    text = f"{name_of(point)} {attempt}".encode()
    digest = hashlib.blake2b(text, digest_size=8).digest()
    place = int.from_bytes(digest, "little") / 2**64
    limits = itertools.accumulate(shares.values())
    kinds = zip(shares, limits, strict=True)
    return next((kind for kind, limit in kinds if place < limit), "none")


class Scripted:
    """A function that fails by the script and counts its calls in `folder`."""

    def __init__(self, folder, shares, num_kills=0):
        self.folder, self.shares, self.num_kills = Path(folder), shares, num_kills

    def __call__(self, point):
        append(self.folder / "calls")
        attempts = self.folder / f"attempts-{name_of(point)}"
        attempt = size(attempts)
        append(attempts)
        kind = fault(point, attempt, self.shares)
        if kind == "raises":
            message = "of the script"
            raise OSError(message)
        if kind == "hangs":
            time.sleep(HANG_SECONDS)
        if kind == "kills":
            append(self.folder / "kills")
            os.kill(os.getpid(), signal.SIGKILL)
        return np.nan if kind == "nan" else value_of(point)

    def num(self, what="calls"):
        return size(self.folder / what)

    def attempts(self, point):
        return size(self.folder / f"attempts-{name_of(point)}")


class Expected:
    """What a pool makes of the script: the values, and the counts on the way."""

    def __init__(self, shares, max_retries):
        self.shares, self.max_retries = shares, max_retries
        self.counts = dict.fromkeys((*shares, "none", "failed"), 0)
        self.attempts, self.known = {}, {}

    @property
    def calls(self):
        return sum(self.counts.values()) - self.counts["failed"]

    def __call__(self, point):
        name = name_of(point)
        if name in self.known:
            return self.known[name]
        for _ in range(self.max_retries + 1):
            attempt = self.attempts.get(name, 0)
            self.attempts[name] = attempt + 1
            kind = fault(point, attempt, self.shares)
            self.counts[kind] += 1
            if kind == "none":
                self.known[name] = value_of(point)
                return self.known[name]
            if kind == "nan":
                return np.nan
        self.counts["failed"] += 1
        return np.nan


class Gauge:
    """A function of threads that knows how many of them are in it at once."""

    def __init__(self, parties=0):
        self.lock = threading.Lock()
        self.barrier = threading.Barrier(parties) if parties else None
        self.now = self.most = self.calls = 0

    def __call__(self, point):
        with self.lock:
            self.now += 1
            self.calls += 1
            self.most = max(self.most, self.now)
        if self.barrier is not None:
            self.barrier.wait(timeout=30)
        with self.lock:
            self.now -= 1
        return value_of(point)


class UnpicklableError(Exception):
    """It can be pickled, and not be read again."""

    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


def raises_unpicklable(point):
    raise UnpicklableError(1, 2)


def leaves(point):
    """SystemExit is no answer either."""
    raise SystemExit(3)


def waits_for(folder, point):
    """Begins, says so, and ends when the folder has a file `end`."""
    append(Path(folder) / "calls")
    Path(folder, f"pid-{os.getpid()}").touch()
    while not Path(folder, "end").exists():
        time.sleep(0.01)
    return value_of(point)


def dies_slowly(folder, point):
    """As `waits_for`, but it takes a while to die when it is asked to."""

    def end(number, frame):
        time.sleep(0.5)
        os._exit(1)

    signal.signal(signal.SIGTERM, end)
    return waits_for(folder, point)


def kills_itself_at_once():
    """An initializer of workers that never start."""
    os.kill(os.getpid(), signal.SIGKILL)
