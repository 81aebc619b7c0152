"""Save the progress of an unfinished piece of work in a file.

A command that was interrupted or killed resumes from the file when it is run again.
"""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

SECONDS = 30.0


def write_whole(path: Path, save: Callable[[Path], Any]) -> None:
    """Have `save(beside)` write a file beside `path`, then move it to `path`.

    A kill leaves either the old file or the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".partial")
    try:
        save(beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


class Checkpoint:
    """A pytree of arrays in a file of `folder`, for one piece of work.

    A piece restores only a checkpoint of the same `identity`: its seeds and settings,
    as a text.
    """

    def __init__(self, folder: Path, name: str, identity: str) -> None:
        # Each piece has its own file; others may be unfinished in the same folder.
        tail = hashlib.sha256(identity.encode()).hexdigest()[:8]
        self.path = folder / f"{name}_{tail}.npz"
        self.identity, self.written = identity, time.perf_counter()

    def restored(self, tree: Any) -> Any:
        """Return the saved pytree in the structure of `tree`, or `tree` itself."""
        if not self.path.exists():
            return tree
        with np.load(self.path) as file:
            if str(file["identity"]) != self.identity:
                return tree
            old, structure = jax.tree.flatten(tree)
            kept = [file[f"leaf_{i}"] for i in range(structure.num_leaves)]
            # NumPy saves bfloat16 without its name, as raw bytes.
            leaves = [
                x.view(np.asarray(own).dtype) if x.dtype.kind == "V" else x
                for x, own in zip(kept, old, strict=True)
            ]
            return jax.tree.unflatten(structure, leaves)

    def keep(self, tree: Any) -> None:
        """Write `tree`, unless it was written less than `SECONDS` ago."""
        if time.perf_counter() - self.written < SECONDS:
            return
        leaves = {f"leaf_{i}": x for i, x in enumerate(jax.tree.leaves(tree))}

        def save(beside: Path) -> None:
            with beside.open("wb") as file:
                np.savez(file, identity=self.identity, **leaves)

        write_whole(self.path, save)
        self.written = time.perf_counter()

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
