"""Who writes a file or a folder: one process at a time."""

import importlib
from typing import Any


def is_taken(file: Any) -> bool:
    """Whether another has the file, or folder; else it is ours until it is closed."""
    try:
        fcntl = importlib.import_module("fcntl")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (ImportError, OSError):
        return False  # Windows, or a file system without locks.
    return False
