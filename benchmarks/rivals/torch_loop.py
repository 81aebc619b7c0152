"""A plain PyTorch loop of R-AdaZO and ZO-AdaMM, batched over K.

All K directions are drawn and evaluated at once. K, smoothing and the constants of the
rules are those of the radazo rows, so that only the implementation differs. Only the
learning rate is tuned; the run returns its last parameters.
"""

import importlib.metadata

import numpy as np
import torch

from benchmarks.methods import B1, B2, EPS_ROOT
from benchmarks.problems.twins import Twin
from benchmarks.rivals.trace import Recorder, Trace

VERSION = importlib.metadata.version("torch")
NUM_DIRECTIONS, SMOOTHING = 10, 5e-3


@torch.inference_mode()
def run(
    algorithm: str,
    problem: Twin,
    start: np.ndarray,
    seed: int,
    knob: float,
    num_values: int,
) -> Trace:
    def value_fn(x: torch.Tensor) -> torch.Tensor:
        return problem.array_fn(torch, x)

    generator = torch.Generator().manual_seed(seed)
    x = torch.tensor(start)
    m, v = torch.zeros_like(x), torch.zeros_like(x)
    recorder = Recorder(value_fn(x).item(), num_values)
    for _ in range(num_values // (NUM_DIRECTIONS + 1)):
        u = torch.randn(NUM_DIRECTIONS, x.numel(), generator=generator, dtype=x.dtype)
        u /= u.norm(dim=1, keepdim=True)
        value, values = value_fn(x), value_fn(x + SMOOTHING * u)
        slopes = (values - value) / SMOOTHING
        gradient = x.numel() / NUM_DIRECTIONS * (slopes @ u)
        m.mul_(B1).add_(gradient, alpha=1 - B1)
        squared = m if algorithm == "R-AdaZO" else gradient
        v.mul_(B2).addcmul_(squared, squared, value=1 - B2)
        x.addcdiv_(m, (v + EPS_ROOT).sqrt_(), value=-knob)
        recorder.step([value.item(), *values.tolist()], lambda: value_fn(x).item())
    return recorder.finish(lambda: value_fn(x).item())
