"""Locks on files and folders against a second writer."""

import importlib
from typing import Any


def is_taken(file: Any) -> bool:
    """Lock a file or folder until it is closed; return True if it is locked already."""
    try:
        fcntl = importlib.import_module("fcntl")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (ImportError, OSError):
        return False  # Windows, or a file system without locks.
    return False
