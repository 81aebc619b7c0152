"""Toy files of SST-2 and COPA."""

import json

import pytest

from benchmarks.language import tasks

FILMS = ["a fine film", "a dull bore", "the plot is thin", "it sings", "no , never"]
COPA = [
    {
        "premise": "The man fell.",
        "choice1": "I laughed.",
        "choice2": "He got hurt.",
        "question": "effect",
        "label": 1,
    },
    {
        "premise": "It rained. ",
        "choice1": "The street is wet.",
        "choice2": "Clouds came.",
        "question": "cause",
        "label": 1,
    },
]


def toy_files(folder):
    """A folder with both tasks, which have few rows for as long as it is in use."""
    rows = [f"{FILMS[i % 5]} {i}\t{i % 5 in (0, 3):d}" for i in range(20)]
    lines = [json.dumps(COPA[i % 2] | {"idx": i}) for i in range(20)]
    for name, header, content in (
        ("sst2/train.tsv", ["sentence\tlabel"], rows),
        ("sst2/dev.tsv", ["sentence\tlabel"], rows[:8]),
        ("copa/train.jsonl", [], lines),
        ("copa/val.jsonl", [], lines[:8]),
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(header + content) + "\n", "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        for name, task in tasks.TASKS.items():
            small = task._replace(num_train=8, num_dev=8)
            patch.setitem(tasks.TASKS, name, small)
        yield folder
