"""A random OPT of each layout, and the logits that PyTorch's transformers gives it.

`python tests/opt_reference.py` makes `opt_reference.npz` again; it needs torch and
transformers, which the tests do not. Parameters are made of their names alone.
"""

import zlib
from pathlib import Path

import numpy as np

PATH = Path(__file__).with_suffix(".npz")
CONFIGS = {
    "before": {
        "vocab_size": 40,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "ffn_dim": 24,
        "num_attention_heads": 4,
        "max_position_embeddings": 20,
    }
}
CONFIGS["behind"] = CONFIGS["before"] | {
    "word_embed_proj_dim": 8,
    "do_layer_norm_before": False,
}
MASK = np.array([[1] * 10, [0] * 3 + [1] * 7, [0] * 6 + [1] * 4])
IDS = np.where(MASK, np.random.default_rng(0).integers(3, 40, MASK.shape), 1)


def tensor(name, shape):
    """A parameter of this name, without its prefix."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    centre = 1.0 if name.endswith("norm.weight") else 0.0
    return (centre + 0.3 * rng.normal(size=shape)).astype(np.float32)


def main():
    import torch
    from transformers import OPTConfig, OPTForCausalLM

    found = {}
    for layout, settings in CONFIGS.items():
        config = OPTConfig(**settings, dropout=0.0, attention_dropout=0.0)
        model = OPTForCausalLM(config).eval()
        with torch.no_grad():
            for name, x in model.named_parameters():
                value = tensor(name.removeprefix("model.decoder."), tuple(x.shape))
                x.copy_(torch.from_numpy(value))
            out = model(torch.tensor(IDS), attention_mask=torch.tensor(MASK))
        found[layout] = out.logits.numpy()
    np.savez(PATH, **found)


if __name__ == "__main__":
    main()
