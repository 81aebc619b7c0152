"""Read and write weights of OPT in Hugging Face files.

A folder has `config.json` and either `model.safetensors` or several files with
`model.safetensors.index.json`; names begin with `model.decoder.` or `decoder.`. Layers
are read one by one into their place in a stack, so that at most one tensor is held
twice.
"""

import dataclasses
import difflib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from huggingface_hub import snapshot_download
from safetensors import safe_open
from safetensors.numpy import save_file
from tqdm import tqdm

from benchmarks.checkpoints import write_whole
from benchmarks.language import opt

_FILES = ["*.json", "*.safetensors", "merges.txt"]
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PREFIXES = ("model.decoder.", "decoder.")


def folder_of(model: str) -> Path:
    """Return the folder of this name, or download it from the hub."""
    path = Path(model)
    if path.is_dir():
        return path
    # This import takes half a second, and a local folder does not need it.
    return Path(snapshot_download(model, allow_patterns=_FILES))


def load(model: str, dtype: Any = jnp.bfloat16) -> tuple[opt.Config, Any]:
    """Return the config and the parameters of the model in a folder or on the hub."""
    folder = folder_of(model)
    config = config_of(folder)
    tensors = _Tensors(folder)
    shapes = opt.abstract(config, dtype)
    paths, treedef = jax.tree_util.tree_flatten_with_path(shapes)
    bar = tqdm(paths, desc=f"reading {folder.name}", unit="tensor", leave=False)
    return config, treedef.unflatten(_leaf(tensors, path, leaf) for path, leaf in bar)


def config_of(folder: Path) -> opt.Config:
    """Return the config of a folder whose `config.json` describes an OPT."""
    path = folder / "config.json"
    if not path.exists():
        _fail(folder, "have a config.json", "none", "Is it the folder of a model?")
    found = json.loads(path.read_text("utf-8"))
    kind, activation = found.get("model_type"), found.get("activation_function", "relu")
    if kind != "opt":
        hint = "Only OPT is built here; write the forward pass of another yourself."
        _fail(path, 'say model_type "opt"', repr(kind), hint)
    if activation != "relu":
        hint = "All published OPT models have it."
        _fail(path, 'say activation_function "relu"', repr(activation), hint)
    names = [field.name for field in dataclasses.fields(opt.Config)]
    return opt.Config(**{name: found[name] for name in names if name in found})


def save(folder: Path, config: opt.Config, params: Any) -> None:
    """Write a folder that `load` and PyTorch's transformers read.

    Each file is written under another name first, and moved when it is complete.
    """
    tensors = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        for name, part in _named(path, np.asarray(leaf)):
            tensors[_PREFIXES[0] + name] = np.ascontiguousarray(part)
    write_whole(folder / _SINGLE, lambda to: save_file(tensors, to, {"format": "pt"}))
    settings = {"model_type": "opt", "architectures": ["OPTForCausalLM"]}
    text = json.dumps(settings | dataclasses.asdict(config), indent=2)
    write_whole(folder / "config.json", lambda to: to.write_text(text, "utf-8"))


class _Tensors:
    """The tensors of a folder, by their names without the prefix."""

    def __init__(self, folder: Path):
        self.folder = folder
        index = folder / _INDEX
        if index.exists():
            found = json.loads(index.read_text("utf-8"))["weight_map"]
        elif (folder / _SINGLE).exists():
            with safe_open(folder / _SINGLE, "numpy") as file:
                found = dict.fromkeys(file.keys(), _SINGLE)
        else:
            rule = f"have a {_SINGLE} or a {_INDEX}"
            hint = "Convert a pytorch_model.bin by transformers' save_pretrained."
            _fail(folder, rule, "neither", hint)
        self.names = {
            _without_prefix(name): (name, file) for name, file in found.items()
        }

    def read(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name not in self.names:
            near = difflib.get_close_matches(name, self.names, 2, 0.0)
            got = f"{len(self.names)} others, such as {' and '.join(near) or 'none'}"
            _fail(self.folder, f"have a tensor {name}", got, "Is config.json its own?")
        full, file = self.names[name]
        path = self.folder / file
        if not path.exists():
            hint = "The index names it: fetch all files of the model."
            _fail(self.folder, f"have a {file}", "none", hint)
        with safe_open(path, "numpy") as opened:
            tensor = opened.get_tensor(full)
        if tensor.shape != shape:
            rule = f"have {full} of the shape {shape} that config.json says"
            _fail(path, rule, str(tensor.shape), "Is config.json its own?")
        return tensor


def _without_prefix(name: str) -> str:
    for prefix in _PREFIXES:
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name


def _named(path: Any, leaf: Any) -> Iterator[tuple[str, Any]]:
    """Yield (name, part) of each tensor that makes up a leaf."""
    keys = [entry.key for entry in path]
    if keys[0] != "layers":
        yield ".".join(keys), leaf
        return
    for i in range(leaf.shape[0]):
        part = leaf[i] if isinstance(leaf, np.ndarray) else leaf
        yield ".".join(["layers", str(i), *keys[1:]]), part


def _leaf(tensors: _Tensors, path: Any, leaf: Any) -> jax.Array:
    names = [name for name, _ in _named(path, leaf)]
    stacked = path[0].key == "layers"
    shape = leaf.shape[1:] if stacked else leaf.shape
    out = np.empty(leaf.shape, leaf.dtype)
    for i, name in enumerate(names):
        out[i if stacked else ...] = tensors.read(name, shape)
    return jnp.asarray(out)


def _fail(place: Any, rule: str, got: str, hint: str) -> NoReturn:
    raise ValueError(f"{place} must {rule}; got {got}. {hint}")
