"""Recipes: every number of a training run in one frozen record, and the schedule computed from the data.

    recipe = replace(PAPER, batch=64, micro_batch=2)
    schedule(n_rows, recipe)      # steps, and how many of them warm up

Absent on purpose: defaults that depend on the machine, and torch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import ceil, inf
from typing import Any, Literal, get_args

from ultrachat.errors import Stop

Batching = Literal["padded", "grouped", "packed"]


@dataclass(frozen=True)
class Recipe:
    """Every number of a training run.

    `batch` rows make one step, `micro_batch` of them at a time on each device; `epochs` passes over
    the data, unless `max_steps` says how many steps. The learning rate rises linearly during the
    first `warmup_fraction` of the steps and then falls to 0 along a cosine. `lora_rank` 0 trains all
    weights; `load_in_4bit` keeps the frozen base in NF4 and needs LoRA.

    `batching` "padded" fills a batch's rows up to its longest, "grouped" puts rows of similar length
    together first, and "packed" puts several into one row of at most `pack_tokens`, without one reading
    another; `batch` then counts packs. `attention` is transformers' name of an implementation. `liger`
    takes Liger's fused kernels, `compile` torch's compiler; `fsdp` shares weights, gradients and optimizer
    out over the GPUs. The held-out loss and a checkpoint are taken `n_evaluations` times, evenly spread,
    the last time at the end.

    Ours: one record instead of a script's arguments.
    """

    lr: float
    epochs: float = 3.0
    max_steps: int | None = None
    batch: int = 512
    micro_batch: int = 4
    warmup_fraction: float = 0.03
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    lora_rank: int = 0
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    lora_targets: str | tuple[str, ...] = "all-linear"
    load_in_4bit: bool = False
    bf16: bool = False
    gradient_checkpointing: bool = False
    batching: Batching = "padded"
    pack_tokens: int = 2048
    attention: str = "sdpa"
    liger: bool = False
    compile: bool = False
    fsdp: bool = False
    n_evaluations: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if self.load_in_4bit and not self.lora_rank:
            raise Stop("load_in_4bit: 4-bit weights cannot be trained themselves, expected lora_rank > 0")
        if self.load_in_4bit and self.fsdp:
            raise Stop("fsdp: cannot share out weights in 4 bits, expected load_in_4bit or fsdp, not both")
        if self.batching not in get_args(Batching):
            raise Stop(f"batching: expected one of {', '.join(get_args(Batching))}, got {self.batching!r}")
        for name in ("lr", "epochs", "batch", "micro_batch", "pack_tokens", "n_evaluations"):
            if not 0 < getattr(self, name) < inf:  # not-a-number is no such number either
                raise Stop(f"{name}: expected more than 0, got {getattr(self, name)}")
        for name, most in (("warmup_fraction", 1), ("lora_dropout", 1), ("lora_rank", inf), ("seed", 2**32 - 1),
                           ("weight_decay", inf), ("max_grad_norm", inf)):  # fmt: skip
            if not 0 <= getattr(self, name) <= most:
                raise Stop(f"{name}: expected from 0 to {most}, got {getattr(self, name)}")
        if self.max_steps is not None and self.max_steps <= 0:
            raise Stop(f"max_steps: expected more than 0 or None, got {self.max_steps}")


PAPER = Recipe(
    lr=1e-5, epochs=3, batch=512, micro_batch=4, warmup_fraction=0.03, weight_decay=0.0, max_grad_norm=1.0,
    bf16=True, gradient_checkpointing=True,
)  # fmt: skip
"""The paper's recipe for LLaMA-13B. §4.6 gives the batch of 512 on 128 GPUs (so 4 rows each) and 2,048
tokens a row. Rate, 3 epochs, cosine with 3 % warm-up, no weight decay and the clip at 1.0 are the
defaults of the authors' `train/train_bm.py`. Ours: bf16 for their scaled fp16, and checkpointing; and
the schedule's length, a constant of 2,000,000 steps there, comes from the data (8,604 steps for
1,468,352 rows), since 3 % of their constant is more than the whole run and the rate would never fall.
"""


def schedule(n_examples: int, recipe: Recipe) -> tuple[int, int]:
    """Return how many steps the run takes, and how many of them warm up.

    A last, smaller batch of an epoch is a step as well.

    Ours: the authors' constant keeps the whole run in warm-up.
    """
    n_steps = recipe.max_steps or ceil(ceil(n_examples / recipe.batch) * recipe.epochs)
    return n_steps, ceil(n_steps * recipe.warmup_fraction)


def recipe_from(settings: dict[str, Any]) -> Recipe:
    """Return the Recipe of a mapping as read from YAML.

    Raises Stop that names an unknown setting, a missing `lr`, or a value of another type.

    Ours: a misspelt number of a long run must not be ignored.
    """
    known = {field.name: field for field in fields(Recipe)}
    for name, value in settings.items():
        if name not in known:
            raise Stop(f"recipe: unknown setting '{name}', expected one of {', '.join(known)}")
        if not _fits(value, str(known[name].type)):
            raise Stop(
                f"recipe: {name} expected {_in_words(str(known[name].type))}, got {value!r}{_hint(value)}"
            )
    if "lr" not in settings:
        raise Stop("recipe: lr is missing, expected the highest learning rate, such as 0.00001")
    if isinstance(settings.get("lora_targets"), list):
        settings = settings | {"lora_targets": tuple(settings["lora_targets"])}
    return Recipe(**settings)


def _fits(value: Any, wanted: str) -> bool:
    """Whether a value from YAML is of a field's type, written as the source writes it."""
    if value is None:
        return "None" in wanted
    if isinstance(value, bool):
        return wanted == "bool"
    if isinstance(value, int):
        return "int" in wanted or wanted == "float"
    if isinstance(value, float):
        return wanted == "float"
    if isinstance(value, list):
        return "tuple" in wanted and all(isinstance(item, str) for item in value)
    return isinstance(value, str) and ("str" in wanted or wanted == "Batching")


def _in_words(wanted: str) -> str:
    return wanted.replace("Batching", f"one of {', '.join(get_args(Batching))}")


def _hint(value: Any) -> str:
    """What is wrong with 1e-5, where it looks right."""
    if not isinstance(value, str):
        return ""
    try:
        float(value)
    except ValueError:
        return ""
    return ", which is text in YAML: write it with a point, such as 1.0e-5, and without quotes"
