"""The shape of a LLaMA-like model, and how many parameters it has, of which how many are trained.

    SHAPES["LLaMA-13B"]                    # hidden size, layers, heads …
    n_parameters(SHAPES["LLaMA-13B"])      # equal to LlamaForCausalLM's

Absent on purpose: other makes of model; `footprint` and `flops` say what a shape takes in memory and time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ultrachat.errors import Stop
from ultrachat.recipes import Recipe

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # a layer's matrices


def whole(name: str, value: int) -> int:
    """Return the value. Raises Stop naming it unless it is a whole number above 0.

    Ours: a size that is none would give a footprint that is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise Stop(f"{name}: expected a whole number above 0, got {value!r:.80}")
    return value


@dataclass(frozen=True)
class Shape:
    """The sizes of a model of LLaMA's make; `tied` when input and output embeddings are one matrix.

    Raises Stop when a size is not a whole number above 0, or the heads do not divide.

    Paper: §4.6 trains LLaMA-13B.
    """

    hidden_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    intermediate_size: int
    vocab_size: int
    tied: bool = False

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name != "tied":
                whole(name, value)
        if self.hidden_size % self.n_heads:
            raise Stop(f"n_heads: {self.n_heads} does not divide hidden_size {self.hidden_size}")
        if self.n_heads % self.n_kv_heads:
            raise Stop(f"n_kv_heads: {self.n_kv_heads} does not divide n_heads {self.n_heads}")

    @classmethod
    def of(cls, config: Any) -> Shape:
        """Return the shape that a transformers config, or the mapping in a config.json, describes.

        Raises Stop naming the field that is missing, or that another make of model has (biases, heads
        of a width of their own), since its parameters would be counted wrong.

        Ours: a base's config.json can be read before its weights are downloaded.
        """
        fields = config if isinstance(config, Mapping) else config.to_dict()
        if fields.get("model_type", "llama") not in ("llama", "mistral"):
            raise Stop(f"model_type: expected llama or mistral, got {fields['model_type']!r}")
        for bias in ("attention_bias", "mlp_bias"):
            if fields.get(bias):
                raise Stop(f"{bias}: expected a model without, as LLaMA is")
        names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
        for name in names:
            if fields.get(name) is None:
                raise Stop(f"config: no {name}; is it a Llama's?")
        hidden, layers, heads, wide, vocab = (fields[name] for name in names)
        kv_heads = fields.get("num_key_value_heads") or heads  # not in the first LLaMA's config.json
        shape = cls(hidden, layers, heads, kv_heads, wide, vocab, bool(fields.get("tie_word_embeddings")))
        if (fields.get("head_dim") or hidden // heads) != hidden // heads:
            raise Stop(
                f"head_dim: expected {hidden // heads} (hidden_size / heads), got {fields['head_dim']}"
            )
        return shape

    @property
    def kv_size(self) -> int:
        """The width of a token's keys, and of its values."""
        return self.hidden_size // self.n_heads * self.n_kv_heads

    @property
    def linear(self) -> dict[str, tuple[int, int]]:
        """The (input, output) sizes of a layer's seven matrices by name."""
        h, kv, wide = self.hidden_size, self.kv_size, self.intermediate_size
        sizes = ((h, h), (h, kv), (h, kv), (h, h), (h, wide), (h, wide), (wide, h))
        return dict(zip(LINEAR, sizes, strict=True))

    @property
    def matrices(self) -> int:
        """The parameters in the matrices of all layers: all but norms and embeddings."""
        return self.n_layers * sum(n_in * n_out for n_in, n_out in self.linear.values())

    @property
    def head(self) -> int:
        """The parameters of the output embeddings."""
        return self.vocab_size * self.hidden_size


# Touvron et al. 2023, Table 2, with the feed-forward widths that the weights have (2/3 of 4 hidden sizes,
# rounded up to a multiple of 256); TinyLlama: Zhang et al. 2024, Table 2
SHAPES = {
    "TinyLlama-1.1B": Shape(2048, 22, 32, 4, 5632, 32000),
    "LLaMA-7B": Shape(4096, 32, 32, 32, 11008, 32000),
    "LLaMA-13B": Shape(5120, 40, 40, 40, 13824, 32000),
    "LLaMA-33B": Shape(6656, 60, 52, 52, 17920, 32000),
    "LLaMA-65B": Shape(8192, 80, 64, 64, 22016, 32000),
}


def n_parameters(shape: Shape) -> int:
    """Return the number of parameters: embeddings, matrices, norms; equal to LlamaForCausalLM's.

    Ours: counted before anything is downloaded.
    """
    embeddings = shape.head * (1 if shape.tied else 2)
    return embeddings + shape.matrices + (2 * shape.n_layers + 1) * shape.hidden_size


def n_lora_parameters(shape: Shape, rank: int, targets: str | tuple[str, ...] = "all-linear") -> int:
    """Return the number of LoRA's parameters, rank x (input + output) for each target; equal to peft's.

    "all-linear" are the seven matrices of each layer and not the output embeddings. Raises Stop when the
    rank is not above 0 or a target is none of `LINEAR`.

    Ours: Hu et al. 2021, §4.1.
    """
    return (
        shape.n_layers
        * whole("lora_rank", rank)
        * sum(sum(shape.linear[name]) for name in lora_targets(targets))
    )


def n_trained(shape: Shape, recipe: Recipe) -> int:
    """Return the number of parameters that are trained: all, or the adapters'.

    Ours: what gradients and optimizer are kept for.
    """
    if not recipe.lora_rank:
        return n_parameters(shape)
    return n_lora_parameters(shape, recipe.lora_rank, recipe.lora_targets)


def lora_targets(targets: str | tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the matrices that LoRA adapts. Raises Stop when one is none of `LINEAR`.

    Ours: "all-linear" by peft's meaning.
    """
    chosen = LINEAR if targets == "all-linear" else targets
    if isinstance(chosen, str) or not chosen or set(chosen) - set(LINEAR):
        raise Stop(f"lora_targets: expected 'all-linear' or some of {', '.join(LINEAR)}, got {targets!r}")
    return tuple(chosen)
