"""Fine-tuning: what is trained, runs that go on, and what the command writes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import as_a_user
from language import FILMS
from safetensors.numpy import load_file
from tokenizers import ByteLevelBPETokenizer

from benchmarks import checkpoints, finetune, finetune_runs, methods, records
from benchmarks.language import opt, problems, tasks, weights

pytestmark = [pytest.mark.gate, pytest.mark.usefixtures("of_users")]

CONFIG = opt.Config(
    vocab_size=300,
    hidden_size=16,
    num_hidden_layers=2,
    ffn_dim=24,
    num_attention_heads=2,
    max_position_embeddings=62,
)


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


@pytest.fixture(scope="module")
def problem_of(model, data_dir):
    """OPT on a task, made once."""

    @functools.cache
    def problem(task="sst2", tune="all"):
        with as_a_user():
            return problems.of_opt(str(model), task, tune, data_dir, jnp.float32)

    return problem


@pytest.fixture(scope="module")
def toy():
    """Three classes of points on a plane: what runs do is seen of it too."""
    rng = np.random.default_rng(0)
    labels = jnp.asarray(rng.integers(3, size=24))
    points = jnp.asarray(np.eye(3)[labels] + 0.3 * rng.normal(size=(24, 3)), "float32")
    data = {"points": points, "labels": labels}

    def scores(trained, frozen, batch):
        logits = batch["points"] @ trained["weight"] + frozen
        losses = -jax.nn.log_softmax(logits)[jnp.arange(len(logits)), batch["labels"]]
        return losses, jnp.argmax(logits, axis=1) == batch["labels"]

    value = lambda trained, frozen, batch: jnp.mean(scores(trained, frozen, batch)[0])
    trained = {"weight": jnp.zeros((3, 3)), "unused": jnp.zeros(2)}
    everywhere = dict.fromkeys(("train", "dev", "eval"), data)
    return problems.Problem(trained, jnp.zeros(3), value, scores, everywhere, 1.0)


def plan_of(**options):
    settings = {"method": "radazo", "learning_rate": 1e-3, "seed": 0, "steps": 8}
    settings |= {"warmup": 2, "batch_size": 4, "eval_every": 4}
    return finetune_runs.Plan(**settings | options)


@pytest.mark.parametrize("task", tasks.TASKS)
def test_the_objective_is_that_of_mezo(model, problem_of, task):
    """Written out from the logits of all tokens."""
    problem = problem_of(task)
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


def test_adapters_change_nothing_at_first_and_are_all_that_is_trained(problem_of):
    whole, lora = problem_of(), problem_of(tune="lora")
    start = problems.evaluated(lora, lora.trained, "train")
    expected = problems.evaluated(whole, whole.trained, "train")
    assert start == pytest.approx(expected, rel=1e-5)
    assert {*lora.trained} == {
        f"layers.self_attn.{name}.lora_{part}"
        for name in ("q_proj", "v_proj")
        for part in ("down", "up")
    }
    assert not whole.frozen
    moved = jax.tree.map(lambda x: x + 0.1, lora.trained)
    assert problems.evaluated(lora, moved, "train")[0] != start[0]


def test_a_soft_prompt_is_all_that_is_trained(problem_of):
    problem = problem_of(tune="prompt")
    prefix = "layers.self_attn.prompt_"
    assert {*problem.trained} == {f"{prefix}keys", f"{prefix}values"}
    start, _ = problems.evaluated(problem, problem.trained, "train")
    moved = jax.tree.map(lambda x: x + 0.1, problem.trained)
    assert problems.evaluated(problem, moved, "train")[0] != start


def test_a_run_lowers_the_loss_and_tells_its_best_parameters(toy):
    numbers, best = finetune_runs.run(toy, plan_of(learning_rate=0.02, steps=80))
    losses = numbers["train_losses"]
    assert len(losses) == 21
    assert losses[0] == pytest.approx(np.log(3), rel=1e-5)
    assert losses[-1] == pytest.approx(numbers["train_loss"], rel=1e-4)
    assert losses[-1] < 0.7
    assert max(numbers["dev_accuracies"]) == numbers["eval_accuracy_of_best"] > 0.8
    assert problems.evaluated(toy, best, "eval")[1] == numbers["eval_accuracy_of_best"]
    assert numbers["num_values"] == 160


def test_the_rate_rises_for_as_many_steps_as_are_said():
    plan = plan_of(method="zo_adamm_matched", learning_rate=0.1, warmup=4)
    full = 0.1 * methods.MATCHED
    rates = [-float(finetune_runs._rate_of(plan)(count)) for count in range(6)]
    np.testing.assert_allclose(rates, [full * x for x in (0.25, 0.5, 0.75, 1, 1, 1)])
    at_once = finetune_runs._rate_of(plan._replace(warmup=0))
    assert float(at_once(0)) == pytest.approx(-full)


def test_each_method_is_its_own_and_radazo_has_its_b1(toy):
    plans = [
        plan_of(steps=12, learning_rate=0.01, warmup=0, **options)
        for options in (
            {},
            {"b1": 0.5},
            {"method": "zo_adamm"},
            {"method": "zo_sgd"},
            {"seed": 1},
            {"smoothing": 0.5},
        )
    ]
    losses = [finetune_runs.run(toy, plan)[0]["train_loss"] for plan in plans]
    assert len({round(loss, 5) for loss in losses}) == len(plans)


def test_the_whole_comparison_takes_the_best_rate_of_another_seed():
    """Of runs that end the lower the nearer their rate is to 3e-4."""
    plans = []

    def made(plan):
        plans.append(plan)
        loss = abs(np.log10(plan.learning_rate / 3e-4))
        settings = plan._asdict()
        seed = settings.pop("seed")
        return {"seeds": [seed], "settings": settings, "numbers": {"train_loss": loss}}

    first = plan_of(learning_rate=5e-5)
    lines = [*finetune._full(["radazo", "zo_adamm_matched"], first, made)]
    assert len(lines) == len(plans) == len(set(plans))
    shared = [plan for plan in plans if plan.learning_rate == 5e-5]
    assert sum(plan.method == "zo_adamm_matched" for plan in plans) == 3
    assert {plan.b1 for plan in shared} == {0.0, 0.5, 0.8, 0.9, 0.95, 0.99}
    assert {plan.moments for plan in shared} == {"held", *finetune.REDUCED}
    tuning = [plan for plan in plans if plan.seed == finetune.TUNING_SEED]
    best = min(tuning, key=lambda plan: abs(np.log10(plan.learning_rate / 3e-4)))
    assert [plan.seed for plan in plans[-3:]] == [0, 1, 2]
    assert {plan.learning_rate for plan in plans[-3:]} == {best.learning_rate}


@pytest.mark.parametrize("moments", methods.MOMENTS[1:])
def test_moments_in_place_take_the_steps_of_those_beside_a_gradient(toy, moments):
    plan = plan_of(learning_rate=0.01, steps=20)
    expected, _ = finetune_runs.run(toy, plan)
    found, _ = finetune_runs.run(toy, plan._replace(moments=moments))
    moved = expected["train_losses"][0] - expected["train_loss"]
    share = {"float32": 1e-3, "bfloat16": 0.05}.get(moments, 0.5)
    assert abs(found["train_loss"] - expected["train_loss"]) < share * moved
    assert found["num_values"] == expected["num_values"] == 40


def test_a_run_that_was_killed_goes_on_as_if_nothing_had_happened(
    toy, tmp_path, monkeypatch
):
    monkeypatch.setattr(checkpoints, "SECONDS", 0.0)
    monkeypatch.setattr(finetune_runs, "STEPS_PER_CALL", 2)
    plan = plan_of(moments="bfloat16")
    expected, best = finetune_runs.run(toy, plan)
    keep, calls = checkpoints.Checkpoint.keep, []

    def interrupted(self, tree):
        keep(self, tree)
        calls.append(int(tree.steps_done))
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints.Checkpoint, "keep", interrupted)
    checkpoint = checkpoints.Checkpoint(tmp_path, "finetune", "one")
    with pytest.raises(KeyboardInterrupt):
        finetune_runs.run(toy, plan, checkpoint)
    again = checkpoints.Checkpoint(tmp_path, "finetune", "one")
    found, same = finetune_runs.run(toy, plan, again)
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


WHOLE = "--full sets the seeds, rates, b1 and moments itself"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--moments rebuilt", "--moments rebuilt needs --methods radazo"),
        ("--b1 0.5", "--b1 0.5 needs --methods radazo"),
        ("--full --methods radazo --seeds 1", WHOLE),
        ("--full --methods radazo --b1 0.5", WHOLE),
        ("--full --learning-rates 1 2", WHOLE),
        ("--full", "--full needs --output, because it takes hours"),
        ("--steps 0", "must be at least 1; got 0"),
        ("--task copa", "--task must be sst2 with --model minilm"),
        ("--tune lora", "--tune is for an OPT model only; got minilm"),
        (
            "--model stories260K --dtype float32",
            "--dtype is for an OPT model only; got stories260K",
        ),
        ("--model x --moments held", "--moments held needs --dtype float32"),
        ("--methods meazo --moments float32", "--methods meazo needs --moments held"),
    ],
)
def test_what_does_not_go_together_is_refused(data_dir, capsys, options, message):
    with pytest.raises(SystemExit):
        finetune.main([*options.split(), "--data-dir", str(data_dir)])
    assert message in capsys.readouterr().err
