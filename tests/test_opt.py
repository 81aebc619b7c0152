"""OPT is that of PyTorch's transformers, and is read from and written to its files."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import opt_reference
import pytest
from safetensors.numpy import load_file, save_file

from benchmarks.language import opt, weights

pytestmark = [pytest.mark.gate, pytest.mark.usefixtures("of_users")]

LAYOUTS = [*opt_reference.CONFIGS]
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


def config_of(layout):
    return opt.Config(**opt_reference.CONFIGS[layout])


def tensors(layout):
    """The tensors of a model by their names, without a prefix."""
    paths, _ = jax.tree_util.tree_flatten_with_path(opt.abstract(config_of(layout)))
    named = {
        name: leaf.shape[1:] if path[0].key == "layers" else leaf.shape
        for path, leaf in paths
        for name, _ in weights._named(path, leaf)
    }
    return {name: opt_reference.tensor(name, shape) for name, shape in named.items()}


def folder_with(path, layout, prefix="model.decoder.", num_files=1):
    """A folder as Hugging Face writes it."""
    found = {prefix + name: x for name, x in tensors(layout).items()}
    config = {"model_type": "opt"} | opt_reference.CONFIGS[layout]
    (path / "config.json").write_text(json.dumps(config), "utf-8")
    if num_files == 1:
        save_file(found, path / "model.safetensors")
        return path
    places = {}
    for i in range(num_files):
        part = dict([*found.items()][i::num_files])
        save_file(part, path / f"model-{i}.safetensors")
        places |= dict.fromkeys(part, f"model-{i}.safetensors")
    index = json.dumps({"weight_map": places})
    (path / "model.safetensors.index.json").write_text(index, "utf-8")
    return path


def logits(config, params):
    ids, mask = jnp.asarray(opt_reference.IDS), jnp.asarray(opt_reference.MASK)
    with jax.default_matmul_precision("highest"):
        call = jax.jit(
            lambda params: opt.logits(params, opt.hidden(config, params, ids, mask))
        )
        return call(params)


@each_layout
@pytest.mark.parametrize(
    ("prefix", "num_files"), [("model.decoder.", 1), ("decoder.", 3)]
)
def test_logits_are_those_of_pytorch(tmp_path, layout, prefix, num_files):
    folder = folder_with(tmp_path, layout, prefix, num_files)
    config, params = weights.load(str(folder), jnp.float32)
    found = logits(config, params)
    expected = np.load(opt_reference.PATH)[layout]
    seen = opt_reference.MASK > 0
    assert np.max(np.abs(expected[seen])) > 1
    np.testing.assert_allclose(found[seen], expected[seen], atol=1e-5)


@each_layout
def test_what_is_saved_is_read_again(tmp_path, layout):
    config, params = weights.load(str(folder_with(tmp_path, layout)), jnp.float32)
    weights.save(tmp_path / "new", config, params)
    again, same = weights.load(str(tmp_path / "new"), jnp.float32)
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, same, params)
    names = {*load_file(tmp_path / "new" / "model.safetensors")}
    assert names == {f"model.decoder.{name}" for name in tensors(layout)}
    assert {x.name for x in (tmp_path / "new").iterdir()} == {
        "config.json",
        "model.safetensors",
    }


def test_a_file_in_bfloat16_keeps_every_bit(tmp_path):
    config, params = weights.load(str(folder_with(tmp_path, "before")))
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    weights.save(tmp_path / "new", config, params)
    _, same = weights.load(str(tmp_path / "new"))
    jax.tree.map(np.testing.assert_array_equal, same, params)


def test_an_interrupted_write_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    config, params = weights.load(str(folder_with(tmp_path, "before")))
    before = (tmp_path / "model.safetensors").read_bytes()

    def broken(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(weights, "save_file", broken)
    with pytest.raises(OSError, match="no space"):
        weights.save(tmp_path, config, params)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert not [x for x in tmp_path.iterdir() if "part" in x.name]


@each_layout
def test_random_parameters_have_the_shapes_of_the_file(layout):
    config = config_of(layout)
    params = opt.random(config, jax.random.key(0), jnp.bfloat16)
    shapes = opt.abstract(config, jnp.bfloat16)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), shapes
    )
    assert np.all(params["layers"]["final_layer_norm"]["weight"] == 1)
    spread = np.std(np.asarray(params["layers"]["fc1"]["weight"], np.float32))
    assert 0.015 < spread < 0.025


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("opt-125m", 125_239_296),
        ("opt-1.3b", 1_315_758_080),
        ("opt-13b", 12_853_473_280),
    ],
)
def test_the_published_shapes_have_the_published_sizes(name, size):
    found = opt.abstract(opt.SHAPES[name])
    assert sum(x.size for x in jax.tree.leaves(found)) == size


def test_log_likelihoods_are_those_of_the_last_tokens():
    config = config_of("before")
    params = opt.random(config, jax.random.key(0))
    ids, mask = jnp.asarray(opt_reference.IDS), jnp.asarray(opt_reference.MASK)
    found = opt.log_likelihoods(config, params, ids, mask, 2)
    full = jax.nn.log_softmax(logits(config, params))
    for row in range(3):
        for i in (1, 2):
            expected = full[row, -i - 1, ids[row, -i]]
            np.testing.assert_allclose(found[row, -i], expected, rtol=1e-5)


def without(folder, name):
    path = folder / "model.safetensors"
    found = load_file(path)
    found.pop(name)
    save_file(found, path)


def misshapen(folder, name):
    path = folder / "model.safetensors"
    found = load_file(path)
    save_file(found | {name: found[name][:-1]}, path)


def configured(folder, **settings):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | settings), "utf-8")


BREAKS = {
    "a tensor is missing": (
        lambda folder: without(folder, "model.decoder.layers.1.fc2.bias"),
        r"must have a tensor layers\.1\.fc2\.bias; got 51 others, such as layers\.\d",
    ),
    "a tensor has another shape": (
        lambda folder: misshapen(folder, "model.decoder.layers.2.fc1.weight"),
        r"fc1\.weight of the shape \(24, 16\) that config.json says; got \(23, 16\)",
    ),
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        r"must have a model\.safetensors or a model\.safetensors\.index\.json; got",
    ),
    "no config": (
        lambda folder: (folder / "config.json").unlink(),
        r"must have a config\.json; got none",
    ),
    "another model": (
        lambda folder: configured(folder, model_type="llama"),
        r"must say model_type \"opt\"; got 'llama'",
    ),
    "another activation": (
        lambda folder: configured(folder, activation_function="gelu"),
        r"must say activation_function \"relu\"; got 'gelu'",
    ),
}


@pytest.mark.parametrize("broken", BREAKS)
def test_what_is_wrong_with_a_folder_is_named(tmp_path, broken):
    folder = folder_with(tmp_path, "before")
    change, text = BREAKS[broken]
    change(folder)
    with pytest.raises(ValueError, match=text):
        weights.load(str(folder))


def test_a_file_of_the_index_that_is_not_there_is_named(tmp_path):
    folder = folder_with(tmp_path, "before", num_files=2)
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(ValueError, match=r"must have a model-1\.safetensors; got none"):
        weights.load(str(folder))


def test_a_name_that_is_no_folder_is_fetched_from_the_hub(tmp_path, monkeypatch):
    folder = folder_with(tmp_path, "before")
    downloads = []

    def fetched(name, allow_patterns):
        downloads.append((name, allow_patterns))
        return str(folder)

    monkeypatch.setattr(weights, "snapshot_download", fetched)
    config, _ = weights.load("facebook/opt-tiny", jnp.float32)
    assert config == config_of("before")
    assert downloads == [
        ("facebook/opt-tiny", ["*.json", "*.safetensors", "merges.txt"])
    ]


@each_layout
def test_a_soft_prompt_is_what_its_tokens_are(layout):
    """Where all positions are alike, since texts are numbered from 0 behind it."""
    config = config_of(layout)
    params = opt.random(config, jax.random.key(0))
    alike = jnp.ones_like(params["embed_positions"]["weight"])
    params |= {"embed_positions": {"weight": alike}}
    ids = jax.random.randint(jax.random.key(1), (3, 9), 2, config.vocab_size)
    ids = ids.at[:, :4].set(ids[0, :4])
    expected = jax.jit(opt.hidden, static_argnums=0)(config, params, ids)[:, 4:]
    prompted = opt.with_prompt(config, params, ids[0, :4])
    found = jax.jit(opt.hidden, static_argnums=0)(config, prompted, ids[:, 4:])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    keys = prompted["layers"]["self_attn"]["prompt_keys"]
    assert keys.shape == (config.num_hidden_layers, 4, config.hidden_size)
