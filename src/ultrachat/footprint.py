"""What fine-tuning takes, from the model's shape alone: bytes on a GPU, FLOPs per token, GPU-hours.

    shape, recipe = SHAPES["LLaMA-13B"], replace(PAPER, lora_rank=16)
    memory(shape, recipe, row_tokens=2048).gib()      # {"weights": 24.5, "gradients": 0.2, …, "total": 31.4}
    flops = flops_per_token(shape, recipe, row_tokens=2048)
    gpu_hours(n_tokens, flops, PEAK_FLOPS["A100"], utilisation_fraction=0.4)

Full fine-tuning keeps 16 bytes for each parameter (weight, gradient and AdamW's two means in float32)
and, under bf16 autocast, 2 more. LoRA keeps 2 bytes of each frozen one, QLoRA about half a byte. To
these come the tensors that the forward pass leaves for the backward pass, and the logits. The terms are
those of transformers' Llama with PyTorch's fused attention, as the tests count them on a CPU, under the
Trainer too; what only GPUs can show (FSDP's gathered layers, DDP's buckets, Liger's kernels) is an
estimate from how they work, measured nowhere yet.

Absent on purpose: the CUDA context (about half a GiB), the allocator's fragmentation, attention that
keeps its scores, masks (padded rows have one), `compile`, LoRA's dropout, other makes of model, and
the time that is not matrix products: utilisation stands for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, isfinite
from typing import Any, NamedTuple

from ultrachat.errors import Stop
from ultrachat.recipes import Recipe

GIB = 2**30  # GPU memory is sold and reported in powers of two: "80 GB" are 80 GiB
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # a layer's matrices

ADAMW_BYTES = 8  # per trained parameter: two running means in float32; fused AdamW needs no more
# NF4: 4 bits; one 8-bit scale for 64 weights; one float32 for 256 scales (Dettmers et al. 2023, §3)
NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8

# Dense bf16 tensor-core peaks with float32 accumulation, from NVIDIA's data sheets (A100, H100, H200:
# half of the figures "with sparsity") and white papers (GA102 for the 3090, Ada for the 4090).
PEAK_FLOPS = {
    "A100": 312e12, "A100 PCIe": 312e12,
    "H100": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12,
    "H200": 989e12, "H200 NVL": 835e12,
    "RTX 3090": 71e12, "RTX 4090": 165e12,
}  # fmt: skip
VARIANTS = {"pcie", "nvl", "ti", "super", "d", "laptop", "mig"}  # words that make a name another device


def _whole(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise Stop(f"{name}: expected a whole number above 0, got {value!r}")
    return value


def _above_zero(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0 or not isfinite(value):
        raise Stop(f"{name}: expected a number above 0, got {value!r}")
    return value


# ---- the shape of a model ---------------------------------------------------------------------


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
                _whole(name, value)
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
        * _whole("lora_rank", rank)
        * sum(sum(shape.linear[name]) for name in _targets(targets))
    )


def n_trained(shape: Shape, recipe: Recipe) -> int:
    """Return the number of parameters that are trained: all, or the adapters'.

    Ours: what gradients and optimizer are kept for.
    """
    if not recipe.lora_rank:
        return n_parameters(shape)
    return n_lora_parameters(shape, recipe.lora_rank, recipe.lora_targets)


def _targets(targets: str | tuple[str, ...]) -> tuple[str, ...]:
    chosen = LINEAR if targets == "all-linear" else targets
    if isinstance(chosen, str) or not chosen or set(chosen) - set(LINEAR):
        raise Stop(f"lora_targets: expected 'all-linear' or some of {', '.join(LINEAR)}, got {targets!r}")
    return tuple(chosen)


# ---- memory -----------------------------------------------------------------------------------


class Memory(NamedTuple):
    """Bytes on each device at the moment of the peak, while gradients of earlier micro-batches are kept.

    `weights`, `gradients`, `optimizer` are there all the time. `activations` are what the forward pass
    leaves for the backward pass: all of it, or with checkpointing the inputs of the layers. `copies` are
    weights and gradients in another form: autocast's bf16 copies, FSDP's gathered layers, DDP's buckets,
    a matrix dequantised. The peak comes at the loss (`logits`) or in a layer's backward pass (`backward`:
    what is recomputed, and the gradients under way), so one of the last two is 0.

    Ours: terms that add up to the total.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    copies: int
    logits: int
    backward: int

    @property
    def total(self) -> int:
        """The bytes in all."""
        return sum(self)

    def gib(self) -> dict[str, float]:
        """Return the terms and their total in GiB by name, for a table."""
        return {name: n_bytes / GIB for name, n_bytes in (self._asdict() | {"total": self.total}).items()}


def memory(shape: Shape, recipe: Recipe, row_tokens: int, n_devices: int = 1) -> Memory:
    """Return the bytes that each of `n_devices` needs: `recipe.micro_batch` rows of so many tokens at a time.

    With `recipe.fsdp` the states are divided among the devices, else each has them all. Raises Stop when
    a number is not a whole one above 0, LoRA's targets are unknown, or attention is not fused.

    Ours: on one device within a tenth of the tensors that the tests count; several are an estimate.
    """
    if recipe.attention == "eager":
        raise Stop("attention: expected a fused one, such as sdpa; eager attention keeps all its scores")
    tokens = _whole("micro_batch", recipe.micro_batch) * _whole("row_tokens", row_tokens)
    n_shards = _whole("n_devices", n_devices) if recipe.fsdp else 1
    trained, stream = n_trained(shape, recipe), _stream_bytes(recipe) * shape.hidden_size
    layer, passing = layer_bytes(shape, recipe), _passing(shape, recipe)
    everywhere, in_one = _copies(shape, recipe, _whole("n_devices", n_devices))
    if recipe.gradient_checkpointing:
        # where the norm keeps the stream as it is, the checkpoint is one of the layer's tensors
        passing += layer - (stream if recipe.liger or _stream_bytes(recipe) == 4 else 0)
        kept, after = shape.n_layers * stream, in_one  # the forward pass alone has all bf16 copies
    else:
        kept, after = shape.n_layers * layer, everywhere  # autograd holds on to them
    final, (at_loss, after_loss) = tokens * _final_bytes(shape, recipe), _logits(shape, recipe, tokens)
    moments = (
        (final, everywhere, at_loss, 0),
        (final, after, after_loss, 0),
        (0, after, 0, tokens * passing),
    )
    final, *rest = max(moments, key=sum)
    states = (_weight_bytes(shape, recipe), 4 * trained, ADAMW_BYTES * trained)
    return Memory(*(ceil(n_bytes / n_shards) for n_bytes in states), tokens * kept + final, *rest)


def layer_bytes(shape: Shape, recipe: Recipe) -> int:
    """Return the bytes per token that one layer's forward pass leaves for its backward pass.

    Korthikanti et al. (2022, §4.1) count 34 h + 5 heads x length for GPT's layer in 16 bits. LLaMA's has
    no dropout but a gated feed-forward layer, and the fused attention keeps no scores, so nothing grows
    with the length. With c bytes in products (2 in bf16), s in the residual stream (4 where embeddings are
    float32), h hidden, k key and w feed-forward sizes:

        2 norms     4 h input in float32, 4 its root mean square; full: s h normalised
        q, k, v     c h each for a bf16 copy of the input of its own, or c h once where none is needed
        attention   c (h + 2 k) rotated queries, keys, values; c h output; 4 heads
        o           LoRA's copy of the attention's output: c h
        gate, up    as q, k, v
        SwiGLU      3 c w (QLoRA: 3 s w): gate, its SiLU, up
        down        c w
        LoRA        c rank for each adapter

    A frozen matrix keeps no input; only adapters keep theirs. Liger's norm keeps s h and 4, its SwiGLU 2 c w.

    Ours: without Liger counted tensor by tensor in the tests.
    """
    c, stream, copied = _product_bytes(recipe), _stream_bytes(recipe), _copied(recipe)
    h, wide, lora = shape.hidden_size, shape.intermediate_size, recipe.lora_rank
    learnt = _targets(recipe.lora_targets) if lora else LINEAR
    inputs = 0
    for readers in ({"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"}):
        n_readers = len(readers & set(learnt))
        inputs += c * h * (n_readers if copied else min(n_readers, 1))
    if lora and copied and "o_proj" in learnt:
        inputs += c * h
    if "down_proj" in learnt:
        inputs += c * wide
    norm = stream * h + 4 if recipe.liger else 4 * h + 4 + (0 if lora else stream * h)
    attention = c * (2 * h + 2 * shape.kv_size) + 4 * shape.n_heads
    swiglu = (2 if recipe.liger else 3) * _swiglu_bytes(recipe) * wide
    return 2 * norm + inputs + attention + swiglu + c * lora * (len(learnt) if lora else 0)


def _product_bytes(recipe: Recipe) -> int:
    return 2 if recipe.bf16 else 4


def _copied(recipe: Recipe) -> bool:
    """Whether weights are float32 and products bf16, so that each makes bf16 copies of what it multiplies."""
    return recipe.bf16 and not recipe.fsdp  # FSDP gathers its weights in bf16 already


def _stream_bytes(recipe: Recipe) -> int:
    """Bytes of a number in the residual stream: what the embeddings give; a base for LoRA is kept in bf16."""
    float32 = not recipe.lora_rank or recipe.load_in_4bit  # peft prepares a 4-bit base so
    return 4 if float32 and _copied(recipe) else _product_bytes(recipe)


def _swiglu_bytes(recipe: Recipe) -> int:
    """Bytes of a number in the feed-forward layer; a 4-bit matrix answers in the type of its input."""
    return _stream_bytes(recipe) if recipe.load_in_4bit else _product_bytes(recipe)


def _final_bytes(shape: Shape, recipe: Recipe) -> int:
    """Bytes per token of the last norm, and of the input of the output embeddings where they learn."""
    learnt = 0 if recipe.lora_rank else _stream_bytes(recipe) + _product_bytes(recipe)
    return (4 + learnt) * shape.hidden_size + 4


def _passing(shape: Shape, recipe: Recipe) -> int:
    """Bytes per token of what comes and goes at the widest place of a layer's backward pass, its SwiGLU."""
    c, s, wide = _product_bytes(recipe), _swiglu_bytes(recipe), shape.intermediate_size
    down_learns = not recipe.lora_rank or "down_proj" in _targets(recipe.lora_targets)
    if recipe.lora_rank and down_learns and _copied(recipe):
        # recomputing `down`: its input as it was and in float32, on the way to the adapter's bf16 copy;
        # likewise the originals of what other adapters copied
        return (4 + s) * wide + 5 * _stream_bytes(recipe) * shape.hidden_size
    # gradients of SiLU x up, SiLU and up, while what was saved for `down` is gone already; and the stream's
    return (2 if down_learns else 3) * c * wide + _stream_bytes(recipe) * shape.hidden_size


def _weight_bytes(shape: Shape, recipe: Recipe) -> float:
    every = n_parameters(shape)
    if not recipe.lora_rank:
        return 4 * every  # bf16's 8 bits cannot take up a step of 1e-5
    adapters = 4 * n_trained(shape, recipe)
    if recipe.load_in_4bit:
        return NF4_BYTES * shape.matrices + 4 * (every - shape.matrices) + adapters
    return _product_bytes(recipe) * every + adapters


def _copies(shape: Shape, recipe: Recipe, n_devices: int) -> tuple[int, int]:
    """Bytes of copies: at the end of the forward pass without checkpoints, and in one layer's backward pass."""
    c, trained, full = _product_bytes(recipe), n_trained(shape, recipe), not recipe.lora_rank
    if recipe.fsdp:
        # this layer and the next one on its way, the embeddings, and gradients before they are scattered
        layer, root = c * (shape.matrices // shape.n_layers), c * (n_parameters(shape) - shape.matrices)
        gathered = 2 * layer + root + (layer + root if full else 0)
        return gathered, gathered
    buckets = 4 * trained if n_devices > 1 else 0  # DDP's, as long as gradients are no views of them
    if recipe.load_in_4bit:
        buckets += c * shape.hidden_size * shape.intermediate_size  # one matrix dequantised
    if not _copied(recipe):
        return buckets, buckets
    cast = shape.matrices if full else trained
    head = c * shape.head if full or recipe.load_in_4bit else 0
    return buckets + c * cast + head, buckets + c * (cast // shape.n_layers)


def _logits(shape: Shape, recipe: Recipe, tokens: int) -> tuple[int, int]:
    """Bytes at the loss: at the end of the forward pass, and at the start of the backward pass."""
    c, vocab = _product_bytes(recipe), shape.vocab_size
    if recipe.liger:
        # the rows in pieces whose logits take about as much as their input; gradients of the input and of
        # the output embeddings, if they learn, are made on the way
        rows = 2 ** (ceil(tokens / ceil(vocab / shape.hidden_size)) - 1).bit_length()
        learnt = 0 if recipe.lora_rank else 4 * shape.head
        pieces = c * rows * vocab + _stream_bytes(recipe) * tokens * shape.hidden_size + learnt
        return pieces, pieces
    # forward: logits, in float32 too where they are not, and their log-softmax, which is kept;
    # backward: that, its gradient and the logits' gradient, all in float32
    return (4 + 4 + (2 if c == 2 else 0)) * tokens * vocab, (4 + 4 + 4) * tokens * vocab


# ---- time -------------------------------------------------------------------------------------


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
    length, rank = _whole("row_tokens", row_tokens), recipe.lora_rank
    layers, adapters = 2 * shape.matrices, 2 * n_trained(shape, recipe) if rank else 0
    forward = layers + 2 * shape.head
    scores = 2 * length * shape.hidden_size * shape.n_layers  # and as much for weights x values
    recomputed = scores
    if recipe.gradient_checkpointing:
        # recomputing a layer ends with the last tensor that is needed: before the product with `down`, or
        # before the second half of its adapter, which comes after that product
        adapted = rank and "down_proj" in _targets(recipe.lora_targets)
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
