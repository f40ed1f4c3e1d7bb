"""What fine-tuning takes in memory, from the model's shape and the recipe alone: bytes on a GPU.

    shape, recipe = SHAPES["LLaMA-13B"], replace(PAPER, lora_rank=16)
    memory(shape, recipe, row_tokens=2048).gib()      # {"weights": 24.5, "gradients": 0.2, …, "total": 31.4}

Full fine-tuning keeps 16 bytes for each parameter (weight, gradient and AdamW's two means in float32)
and, under bf16 autocast, 2 more. LoRA keeps 2 bytes of each frozen one, QLoRA about half a byte. To
these come the tensors that the forward pass leaves for the backward pass, and the logits. The terms are
those of transformers' Llama with PyTorch's fused attention, as the tests count them on a CPU, under the
Trainer too; what only GPUs can show (FSDP's gathered layers, DDP's buckets, Liger's kernels) is an
estimate from how they work, measured nowhere yet.

Absent on purpose: the CUDA context (about half a GiB), the allocator's fragmentation, attention that
keeps its scores, masks (padded rows have one), `compile`, LoRA's dropout, and time (`flops`).
"""

from __future__ import annotations

from math import ceil
from typing import NamedTuple

from ultrachat.errors import Stop
from ultrachat.recipes import Recipe
from ultrachat.shapes import LINEAR, Shape, lora_targets, n_parameters, n_trained, whole

GIB = 2**30  # GPU memory is sold and reported in powers of two: "80 GB" are 80 GiB
ADAMW_BYTES = 8  # per trained parameter: two running means in float32; fused AdamW needs no more
# NF4: 4 bits; one 8-bit scale for 64 weights; one float32 for 256 scales (Dettmers et al. 2023, §3)
NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8


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
    tokens = whole("micro_batch", recipe.micro_batch) * whole("row_tokens", row_tokens)
    n_shards = whole("n_devices", n_devices) if recipe.fsdp else 1
    trained, stream = n_trained(shape, recipe), _stream_bytes(recipe) * shape.hidden_size
    layer, passing = layer_bytes(shape, recipe), _passing(shape, recipe)
    everywhere, in_one = _copies(shape, recipe, whole("n_devices", n_devices))
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
    learnt = lora_targets(recipe.lora_targets) if lora else LINEAR
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
    down_learns = not recipe.lora_rank or "down_proj" in lora_targets(recipe.lora_targets)
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
