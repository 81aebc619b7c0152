"""SST-2 and COPA with the prompts of MeZO.

An example is one text with several candidate endings; the one whose tokens have the
highest mean log-probability is the answer. Splits follow MeZO: a permutation of the
training set by its seed, the first for training and the next for dev. The final
evaluation uses the published validation set.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

URL = "`--data-dir` holds sst2/train.tsv and dev.tsv, copa/train.jsonl and val.jsonl."


class Example(NamedTuple):
    """A text, the endings to compare, and the index of the correct one."""

    text: str
    endings: tuple[str, ...]
    label: int


class Task(NamedTuple):
    """A task: its files, the reader of a file, and the sizes of its splits.

    Attributes:
      train_file, eval_file: Within the data folder.
      read: `read(path) -> examples`.
      num_train, num_dev: Of the training file.
      as_classifier: Whether the loss compares the endings; else it is that of the
        tokens of the correct one.
    """

    train_file: str
    eval_file: str
    read: Callable[[Path], list[Example]]
    num_train: int
    num_dev: int
    as_classifier: bool


def _sst2(path: Path) -> list[Example]:
    lines = path.read_text("utf-8").splitlines()[1:]
    rows = [line.rsplit("\t", 1) for line in lines]
    return [
        Example(f"{sentence.strip()} It was", (" terrible", " great"), int(label))
        for sentence, label in rows
    ]


def _copa(path: Path) -> list[Example]:
    found = []
    for line in path.read_text("utf-8").splitlines():
        row = json.loads(line)
        link = " so" if row["question"] == "effect" else " because"
        text = row["premise"].rstrip().removesuffix(".") + link
        choices = (row["choice1"], row["choice2"])
        endings = tuple(" " + _lowered(choice) for choice in choices)
        found.append(Example(text, endings, row["label"]))
    return found


def _lowered(choice: str) -> str:
    first, _, rest = choice.partition(" ")
    return choice if first == "I" else f"{first.lower()} {rest}".rstrip()


TASKS = {
    "sst2": Task("sst2/train.tsv", "sst2/dev.tsv", _sst2, 1000, 500, True),
    "copa": Task("copa/train.jsonl", "copa/val.jsonl", _copa, 300, 100, False),
}


def splits(name: str, folder: Path, seed: int = 0) -> dict[str, list[Example]]:
    """Return the examples for training, for dev and for the final evaluation."""
    task = TASKS[name]
    for file in (task.train_file, task.eval_file):
        if not (folder / file).exists():
            raise FileNotFoundError(f"{folder / file} does not exist. {URL}")
    examples = task.read(folder / task.train_file)
    order = np.random.RandomState(seed).permutation(len(examples))
    chosen = [examples[i] for i in order[: task.num_train + task.num_dev]]
    return {
        "train": chosen[: task.num_train],
        "dev": chosen[task.num_train :],
        "eval": task.read(folder / task.eval_file),
    }


def encoded(
    examples: list[Example],
    tokens: Callable[[str], list[int]],
    first: int,
    padding: int,
    length: int | None = None,
) -> dict[str, np.ndarray]:
    """Return rows of tokens padded on the left, one for each ending of each example.

    `tokens(text)` returns the tokens of a text; a row begins with the token `first`.
    The text alone is encoded to find the start of an ending. Returns `ids`
    (n, endings, t), `sizes` (n, endings), the number of tokens of the ending, and
    `labels` (n,).
    """
    rows = []
    for text, endings, _ in examples:
        start = len(tokens(text))
        full = [tokens(text + ending) for ending in endings]
        rows.append([([first, *row], len(row) - start) for row in full])
    longest = max(len(row) for group in rows for row, _ in group)
    longest = -(-longest // 8) * 8 if length is None else length
    ids = np.full((len(rows), len(rows[0]), longest), padding, np.int32)
    sizes = np.zeros(ids.shape[:2], np.int32)
    for i, group in enumerate(rows):
        for j, (row, size) in enumerate(group):
            kept = row[-longest:]
            ids[i, j, longest - len(kept) :] = kept
            sizes[i, j] = size
    labels = np.array([example.label for example in examples], np.int32)
    return {"ids": ids, "sizes": sizes, "labels": labels}


def batch_of(step: int, num_examples: int, batch_size: int, seed: int) -> np.ndarray:
    """Return the examples in the batch of a step: shuffled epochs.

    It is a function of the step alone, so that a resumed run sees the same data.
    """
    places = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, within = np.divmod(places, num_examples)
    orders = {
        epoch: np.random.default_rng([seed, int(epoch)]).permutation(num_examples)
        for epoch in np.unique(epochs)
    }
    return np.array(
        [orders[epoch][i] for epoch, i in zip(epochs, within, strict=True)], np.int32
    )
