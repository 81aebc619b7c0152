"""stories260K tells the story that is known of it, and is trained as an OPT is."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import finetune_runs
from benchmarks.language import llama, problems

FOLDER = Path(os.environ.get("RADAZO_DATA_DIR", "")) / "stories260K"
pytestmark = [
    pytest.mark.gate,
    pytest.mark.usefixtures("of_users"),
    pytest.mark.skipif(
        not (FOLDER / "stories260K.npz").exists(),
        reason="needs stories260K in the folder RADAZO_DATA_DIR",
    ),
]
STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside "
    "in the park. One day, she saw a big, red ball."
)


@pytest.fixture(scope="module")
def params():
    return llama.load(FOLDER)


def test_the_likeliest_story_is_the_published_one(params):
    tokenizer = llama.tokenizer(FOLDER)
    ids = np.full((1, 80), llama.FIRST, np.int32)

    @jax.jit
    def likeliest(ids, last):
        return jnp.argmax(llama.logits(params, llama.hidden(params, ids)[0, last]))

    for last in range(79):
        ids[0, last + 1] = likeliest(ids, last)
    text = tokenizer.decode(ids[0, 1:].tolist(), skip_special_tokens=False)
    assert text.replace(" ", "").startswith(STORY.replace(" ", ""))


def test_its_tokens_are_a_text_and_join_the_best_pairs_first():
    tokenizer = llama.tokenizer(FOLDER)
    assert tokenizer.get_vocab_size() == 512
    ids = tokenizer.encode(STORY + " It was naïve ☕.").ids
    assert len(ids) < len(STORY)
    assert llama.PADDING not in ids
    pieces = [tokenizer.id_to_token(i) for i in ids]
    assert "".join(pieces).startswith(" Once upon a time, there was")
    assert "<0xE2>" in pieces  # What is in no token is spelt in bytes.


def test_padding_on_the_left_changes_nothing(params):
    ids = jnp.array([[1, 50, 261, 300, 77], [2, 2, 1, 50, 261]])
    found = jax.jit(llama.log_likelihoods, static_argnums=3)(params, ids, ids != 2, 1)
    alone = llama.log_likelihoods(params, ids[1:, 2:], jnp.ones((1, 3), int), 1)
    np.testing.assert_allclose(found[1], alone[0], rtol=1e-4)


def test_all_its_parameters_are_trained_on_reviews(data_dir, tmp_path):
    (tmp_path / "sst2").symlink_to(data_dir / "sst2")
    (tmp_path / "stories260K").symlink_to(FOLDER)
    problem = problems.of_stories("sst2", tmp_path)
    assert sum(x.size for x in problem.trained.values()) == 260_032
    options = {"warmup": 2, "batch_size": 8, "eval_every": 10}
    plan = finetune_runs.Plan("radazo", 1e-3, seed=0, steps=20, **options)
    numbers, _ = finetune_runs.run(problem, plan)
    assert numbers["train_loss"] < numbers["train_losses"][0]


def test_a_folder_without_it_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="pass the folder with `stories260K`"):
        llama.load(tmp_path)
