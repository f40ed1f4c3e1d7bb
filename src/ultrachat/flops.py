"""What fine-tuning takes in time: FLOPs per token, GPU-hours, and the share of a GPU's peak that is reached.

    flops = flops_per_token(SHAPES["LLaMA-13B"], PAPER, row_tokens=2048)
    gpu_hours(n_tokens, flops, PEAK_FLOPS["A100"], utilisation_fraction=0.4)

Absent on purpose: the time that is not matrix products; utilisation stands for it.
"""

from __future__ import annotations

import re
from math import isfinite
from typing import NamedTuple

from ultrachat.errors import Stop
from ultrachat.recipes import Recipe
from ultrachat.shapes import Shape, lora_targets, n_trained, whole

# Dense bf16 tensor-core peaks with float32 accumulation, from NVIDIA's data sheets (A100, H100, H200:
# half of the figures "with sparsity") and white papers (GA102 for the 3090, Ada for the 4090).
PEAK_FLOPS = {
    "A100": 312e12, "A100 PCIe": 312e12,
    "H100": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12,
    "H200": 989e12, "H200 NVL": 835e12,
    "RTX 3090": 71e12, "RTX 4090": 165e12,
}  # fmt: skip
VARIANTS = {"pcie", "nvl", "ti", "super", "d", "laptop", "mig"}  # words that make a name another device


class Flops(NamedTuple):
    """Floating-point operations of training on one token; a multiplication and an addition are two.

    `matmul` and `attention` are what the method needs, forward and backward; `recomputed` is what is
    done twice to save memory: by checkpointing, and by the fused attention, which keeps no scores.

    Ours: model FLOPs measure progress (Chowdhery et al. 2022, App. B), hardware FLOPs the work.
    """

    matmul: int
    attention: int
    recomputed: int

    @property
    def model(self) -> int:
        """What has to be computed: the base of utilisation and of GPU-hours."""
        return self.matmul + self.attention

    @property
    def hardware(self) -> int:
        """What is computed."""
        return self.model + self.recomputed


def flops_per_token(shape: Shape, recipe: Recipe, row_tokens: int) -> Flops:
    """Return the FLOPs of one token, forward and backward, in rows of so many tokens.

    The backward pass has two products for each of the forward pass: the gradient of the input, and that
    of the weight unless it is frozen. Attention counts all pairs of tokens, though a causal kernel skips
    half: utilisation is published so. For packed rows give the tokens of one dialogue. Raises Stop when
    the tokens are not a whole number above 0.

    Ours: equal to PyTorch's FLOP counter.
    """
    length, rank = whole("row_tokens", row_tokens), recipe.lora_rank
    layers, adapters = 2 * shape.matrices, 2 * n_trained(shape, recipe) if rank else 0
    forward = layers + 2 * shape.head
    scores = 2 * length * shape.hidden_size * shape.n_layers  # and as much for weights x values
    recomputed = scores
    if recipe.gradient_checkpointing:
        # recomputing a layer ends with the last tensor that is needed: before the product with `down`, or
        # before the second half of its adapter, which comes after that product
        adapted = rank and "down_proj" in lora_targets(recipe.lora_targets)
        left_out = 2 * shape.n_layers * shape.hidden_size * (rank if adapted else shape.intermediate_size)
        recomputed += layers + adapters + 2 * scores - left_out
    matmul = 2 * forward + 3 * adapters if rank else 3 * forward
    return Flops(matmul, 3 * 2 * scores, recomputed)


def peak_of(device_name: str) -> float:
    """Return the dense bf16 FLOPs per second of a GPU by the name that its driver gives it.

    "NVIDIA A100-SXM4-80GB" is `PEAK_FLOPS["A100"]`. Raises Stop for a device that the table has not.

    Ours: a guessed peak would make a wrong utilisation.
    """
    words = set(re.findall(r"[a-z0-9]+", device_name.lower()))
    fitting = [name for name in PEAK_FLOPS if set(name.lower().split()) <= words]
    best = max(fitting, key=len, default="")
    if not best or (words & VARIANTS) - set(best.lower().split()):
        raise Stop(f"device: no peak known for {device_name!r}; PEAK_FLOPS has {', '.join(PEAK_FLOPS)}")
    return PEAK_FLOPS[best]


def gpu_hours(n_tokens: float, flops: Flops, peak_flops: float, utilisation_fraction: float) -> float:
    """Return the hours of one GPU that training on so many tokens takes, all epochs counted in.

    On n GPUs divide by n: what communication costs is in the utilisation. Raises Stop when a number is
    not above 0, or the utilisation above 1.

    Ours: the paper names 128 A100 and no time.
    """
    if _above_zero("utilisation_fraction", utilisation_fraction) > 1:
        raise Stop(f"utilisation_fraction: expected at most 1, got {utilisation_fraction}")
    work = _above_zero("n_tokens", n_tokens) * flops.model
    return work / (_above_zero("peak_flops", peak_flops) * utilisation_fraction) / 3600


def mfu(tokens_per_second: float, flops: Flops, peak_flops: float) -> float:
    """Return model-FLOPs utilisation, a fraction of one GPU's peak, at so many tokens a second on it.

    With checkpointing the hardware works more than this shows. Raises Stop when a number is not above 0.

    Ours: Chowdhery et al. 2022, App. B.
    """
    work = _above_zero("tokens_per_second", tokens_per_second) * flops.model
    return work / _above_zero("peak_flops", peak_flops)


def _above_zero(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0 or not isfinite(value):
        raise Stop(f"{name}: expected a number above 0, got {value!r:.80}")
    return value
