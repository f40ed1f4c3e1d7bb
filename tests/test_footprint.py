"""The arithmetic of memory and FLOPs, held against real tensors: counted, not trusted."""

import json
import weakref
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from ultrachat import paper
from ultrachat.errors import Stop
from ultrachat.flops import PEAK_FLOPS, flops_per_token, gpu_hours, mfu, peak_of
from ultrachat.footprint import GIB, NF4_BYTES, layer_bytes, memory
from ultrachat.recipes import PAPER, Recipe
from ultrachat.shapes import LINEAR, SHAPES, Shape, n_lora_parameters, n_parameters, n_trained

TINY = Shape(64, 4, 4, 4, 160, 300)
GROUPED = replace(TINY, n_kv_heads=2)
SMALL = Shape(128, 2, 4, 4, 344, 1500)  # sizes in the proportions of LLaMA's, so that no term hides
FULL, LORA = Recipe(lr=1e-5, micro_batch=2), Recipe(lr=1e-5, micro_batch=2, lora_rank=8)
ROW = 120  # tokens; no size of a weight, by which the tests tell them apart
KINDS = {
    "full": FULL,
    "full-bf16": replace(FULL, bf16=True),
    "lora": LORA,
    "lora-bf16": replace(LORA, bf16=True),
    "q-v-bf16": replace(LORA, bf16=True, lora_targets=("q_proj", "v_proj")),
}
GATHERED = replace(FULL, bf16=True, fsdp=True)  # the computing of one device among FSDP's
each_kind = pytest.mark.parametrize("recipe", KINDS.values(), ids=KINDS)


def config(shape: Shape, attention: str = "sdpa") -> LlamaConfig:
    return LlamaConfig(
        hidden_size=shape.hidden_size, num_hidden_layers=shape.n_layers, num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_kv_heads, intermediate_size=shape.intermediate_size,
        vocab_size=shape.vocab_size, tie_word_embeddings=shape.tied, use_cache=False,
        attn_implementation=attention,
    )  # fmt: skip


def model_of(shape: Shape, recipe: Recipe, attention: str = "sdpa") -> torch.nn.Module:
    """As training makes it: float32 to be trained in full, a frozen base in bf16, adapters in float32."""
    model = LlamaForCausalLM(config(shape, attention))
    if recipe.bf16 and (recipe.lora_rank or recipe.fsdp):
        model.to(torch.bfloat16)
    if recipe.lora_rank:
        model.enable_input_require_grads()
        targets = recipe.lora_targets if isinstance(recipe.lora_targets, str) else list(recipe.lora_targets)
        model = get_peft_model(
            model, LoraConfig(r=recipe.lora_rank, target_modules=targets, task_type="CAUSAL_LM")
        )
    if recipe.gradient_checkpointing:
        model.base_model.gradient_checkpointing_enable()
    return model.train()


def loss_of(model: torch.nn.Module, recipe: Recipe, row_tokens: int = ROW) -> torch.Tensor:
    ids = torch.zeros((recipe.micro_batch, row_tokens), dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bf16 and not recipe.fsdp):
        return model(input_ids=ids, labels=ids).loss


# ---- parameters -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape",
    [TINY, GROUPED, replace(GROUPED, tied=True), *SHAPES.values()],
    ids=["tiny", "grouped", "tied", *SHAPES],
)
def test_parameters_are_those_of_the_real_model(shape):
    with torch.device("meta"):  # shapes without memory: even 65B is made in a second
        model = LlamaForCausalLM(config(shape))
    assert n_parameters(shape) == sum(p.numel() for p in model.parameters())


def test_parameters_are_the_published_ones():
    assert n_parameters(SHAPES["LLaMA-7B"]) == 6_738_415_616
    assert n_parameters(SHAPES["LLaMA-13B"]) == 13_015_864_320
    assert n_parameters(SHAPES["TinyLlama-1.1B"]) == 1_100_048_384


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "v_proj"), ("down_proj", "k_proj")])
def test_lora_parameters_are_peft_s(targets):
    recipe = replace(LORA, lora_rank=5, lora_targets=targets)
    trainable, _ = model_of(GROUPED, recipe).get_nb_trainable_parameters()
    assert n_lora_parameters(GROUPED, 5, targets) == n_trained(GROUPED, recipe) == trainable


def test_shape_is_read_from_a_config_or_its_json():
    assert Shape.of(config(replace(GROUPED, tied=True))) == replace(GROUPED, tied=True)
    written = json.loads(config(GROUPED).to_json_string())
    assert Shape.of(written) == GROUPED
    del written["num_key_value_heads"]  # as in the first LLaMA's config.json
    assert Shape.of(written) == TINY


# ---- memory -----------------------------------------------------------------------------------


def saved_bytes(model: torch.nn.Module, recipe: Recipe) -> int:
    """The bytes that the forward pass leaves for the backward pass, weights and their bf16 copies left out."""
    storages = {p.untyped_storage().data_ptr() for p in model.parameters()}
    shapes = {tuple(p.shape) for p in model.parameters() if p.dim() == 2}
    shapes |= {shape[::-1] for shape in shapes}
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in storages and tuple(tensor.shape) not in shapes:
            kept[storage.data_ptr()] = (
                storage.nbytes(),
                tensor,
            )  # the tensor, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = loss_of(model, recipe)
    assert loss.isfinite()
    return sum(n_bytes for n_bytes, _ in kept.values())


@pytest.mark.parametrize("shape", [TINY, GROUPED], ids=["tiny", "grouped"])
@pytest.mark.parametrize("recipe", [*KINDS.values(), GATHERED], ids=[*KINDS, "gathered"])
def test_a_layer_leaves_what_is_listed_to_the_byte(recipe, shape):
    few, many = (saved_bytes(model_of(replace(shape, n_layers=n), recipe), recipe) for n in (2, 4))
    assert layer_bytes(shape, recipe) == (many - few) / 2 / (recipe.micro_batch * ROW)


@each_kind
def test_a_checkpointed_layer_leaves_its_input(recipe):
    recipe = replace(recipe, gradient_checkpointing=True)
    few, many = (saved_bytes(model_of(replace(TINY, n_layers=n), recipe), recipe) for n in (2, 4))
    stream = 2 if recipe.bf16 and recipe.lora_rank else 4
    assert (many - few) / 2 / (recipe.micro_batch * ROW) == stream * TINY.hidden_size


class Peak(TorchDispatchMode):
    """The most bytes of tensors alive at once, of those that operations under it make."""

    def __init__(self, known: list[torch.Tensor]) -> None:
        super().__init__()
        self.now = self.most = 0
        self.seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.seen:
                storage = tensor.untyped_storage()
                self.seen.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self.free, storage._cdata, storage.nbytes())
        self.most = max(self.most, self.now)
        return made

    def free(self, key: int, n_bytes: int) -> None:
        self.seen.discard(key)
        self.now -= n_bytes


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("vocab_size", [32, 1500], ids=["few words", "many words"])  # which peak it is
@each_kind
def test_the_peak_is_the_one_measured(recipe, vocab_size, checkpointing):
    recipe = replace(recipe, gradient_checkpointing=checkpointing)
    shape = replace(SMALL, vocab_size=vocab_size)
    model = model_of(shape, recipe)
    trained = [p for p in model.parameters() if p.requires_grad]
    for weight in trained:  # of an earlier micro-batch
        weight.grad = torch.zeros_like(weight)
    peak = Peak([*model.parameters(), *model.buffers(), *(p.grad for p in trained)])
    with peak:
        loss_of(model, recipe).backward()
    ours = memory(shape, recipe, ROW)
    assert ours.weights == sum(p.nbytes for p in model.parameters())
    assert ours.gradients == sum(p.grad.nbytes for p in trained)
    assert ours.total - sum(ours[:3]) == pytest.approx(peak.most, rel=0.1)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("kind", ["full-bf16", "lora-bf16"])
def test_the_total_is_that_under_the_trainer(kind, checkpointing, tmp_path):
    """Two steps of two micro-batches: the second step has states, its second micro-batch gradients."""
    recipe = replace(KINDS[kind], gradient_checkpointing=checkpointing)
    model = model_of(SMALL, replace(recipe, gradient_checkpointing=False))  # the Trainer sees to it
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=recipe.micro_batch,
        gradient_accumulation_steps=2, bf16=True, activation_checkpointing=checkpointing, use_cpu=True,
        report_to=[], save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    ids = torch.zeros(ROW, dtype=torch.long)
    trainer = Trainer(model=model, args=arguments, train_dataset=[{"input_ids": ids, "labels": ids}] * 8)
    peak = Peak([*model.parameters(), *model.buffers()])
    with peak:
        trainer.train()
    ours = memory(SMALL, recipe, ROW)
    assert ours.total - ours.weights == pytest.approx(peak.most, rel=0.05)


@pytest.mark.parametrize("recipe", [FULL, LORA], ids=["full", "lora"])
def test_the_optimizer_keeps_two_float32_numbers_for_each_trained_one(recipe):
    model = model_of(TINY, recipe)
    loss_of(model, recipe).backward()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    optimizer.step()
    states = [value for state in optimizer.state.values() for name, value in state.items() if name != "step"]
    assert memory(TINY, recipe, ROW).optimizer == sum(value.nbytes for value in states)


@pytest.fixture(scope="module")
def in_4_bits(tmp_path_factory):
    """A function from a number of layers to a base in NF4 with adapters, as QLoRA trains it."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    from peft import prepare_model_for_kbit_training
    from transformers import BitsAndBytesConfig

    quantisation = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip

    def make(n_layers: int) -> torch.nn.Module:
        folder = tmp_path_factory.mktemp("base")
        LlamaForCausalLM(config(replace(SMALL, n_layers=n_layers))).save_pretrained(folder)
        base = LlamaForCausalLM.from_pretrained(
            folder, dtype=torch.bfloat16, quantization_config=quantisation, device_map="cpu"
        )
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
        base.enable_input_require_grads()
        assert any(isinstance(module, bitsandbytes.nn.Linear4bit) for module in base.modules())
        return get_peft_model(
            base, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
        ).train()

    return make


def test_qlora_weights_and_layers_are_those_of_bitsandbytes(in_4_bits):
    recipe = replace(LORA, bf16=True, load_in_4bit=True)
    model = in_4_bits(SMALL.n_layers)
    n_bytes = sum(p.nbytes for p in model.parameters())
    for weight in model.parameters():
        if (state := getattr(weight, "quant_state", None)) is not None:
            n_bytes += state.absmax.nbytes + state.state2.absmax.nbytes
    assert memory(SMALL, recipe, ROW).weights == pytest.approx(n_bytes, rel=1e-3)  # blocks that are not full
    few, many = (saved_bytes(in_4_bits(n), recipe) for n in (2, 4))
    assert layer_bytes(SMALL, recipe) == (many - few) / 2 / (recipe.micro_batch * ROW)
    peak = Peak([*model.parameters(), *model.buffers()])
    with peak:
        loss_of(model, recipe).backward()
    assert sum(memory(SMALL, recipe, ROW)[3:]) == pytest.approx(peak.most, rel=0.1)


def test_nf4_is_half_a_byte_and_its_scales():
    assert NF4_BYTES * 8 == 4 + 0.125 + 0.001953125  # 4.127 bits, as QLoRA's paper has it


def test_terms_by_hand():
    """7B in full on one GPU: 16 bytes a parameter, and bf16 copies of what is multiplied."""
    shape = SHAPES["LLaMA-7B"]
    ours = memory(shape, replace(PAPER, micro_batch=1), 2048)
    assert ours.weights + ours.gradients + ours.optimizer == 16 * 6_738_415_616
    assert ours.copies == 2 * (
        6_738_415_616 - 32_000 * 4096 - 65 * 4096
    )  # without input embeddings and norms
    assert ours.logits == 10 * 2048 * 32_000
    assert ours.backward == 0
    assert ours.gib()["total"] == pytest.approx(ours.total / GIB) == pytest.approx(sum(ours) / GIB)


def test_sharding_divides_the_states_and_ddp_does_not():
    shape, sharded = SHAPES["LLaMA-13B"], replace(PAPER, fsdp=True)
    alone, among = (memory(shape, sharded, 2048, n_devices=n) for n in (1, 8))
    for whole, part in zip(alone[:3], among[:3], strict=True):
        assert part == -(-whole // 8)
    copied = memory(shape, PAPER, 2048, n_devices=8)
    assert copied[:3] == alone[:3]
    assert copied.copies - memory(shape, PAPER, 2048).copies == copied.gradients  # DDP's buckets


def test_liger_spares_most_of_the_logits():
    recipe = replace(PAPER, lora_rank=16, gradient_checkpointing=False)
    plain, fused = (memory(SHAPES["LLaMA-7B"], replace(recipe, liger=on), 2048) for on in (False, True))
    assert plain.logits and fused.total < plain.total - plain.logits / 2


@given(
    shape=st.sampled_from([TINY, GROUPED, SMALL, *SHAPES.values()]),
    row_tokens=st.integers(1, 4096),
    fsdp=st.booleans(),
    liger=st.booleans(),
    bf16=st.booleans(),
)
@settings(max_examples=50, deadline=None)
def test_what_saves_memory_does(shape, row_tokens, fsdp, liger, bf16):
    full = Recipe(lr=1e-5, micro_batch=1, bf16=bf16, fsdp=fsdp, liger=liger)

    def total(recipe: Recipe, tokens: int = row_tokens, n: int = 2) -> int:
        bytes_ = memory(shape, recipe, tokens, n)
        assert all(type(term) is int and term >= 0 for term in bytes_)
        return bytes_.total

    lora = replace(full, lora_rank=1)
    assert (
        total(lora)
        < total(full)
        < total(full, row_tokens + 1)
        < total(replace(full, micro_batch=3), row_tokens)
    )
    assert n_trained(shape, lora) < n_trained(shape, full)
    if fsdp:
        assert total(full, n=4) < total(full, n=2)
    elif not bf16 or shape.matrices > 4 * shape.head:  # what is not in 4 bits is in float32, not in bf16
        assert (
            memory(shape, replace(lora, load_in_4bit=True), row_tokens).weights
            < memory(shape, lora, row_tokens).weights
        )


# ---- FLOPs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize(
    "recipe",
    [FULL, LORA, replace(LORA, lora_targets=("q_proj", "v_proj")), replace(LORA, lora_targets=LINEAR[4:])],
    ids=["full", "lora", "q-v", "mlp"],
)
def test_flops_are_those_of_the_counter(recipe, checkpointing):
    recipe = replace(recipe, gradient_checkpointing=checkpointing)
    model = model_of(GROUPED, recipe, attention="eager")  # the counter has no formula for the CPU's fused one
    with FlopCounterMode(display=False) as counter:
        loss_of(model, recipe).backward()
    ours = flops_per_token(GROUPED, recipe, ROW)
    again = 2 * ROW * GROUPED.hidden_size * GROUPED.n_layers  # the scores, which eager attention keeps
    n_tokens = recipe.micro_batch * ROW
    assert counter.get_total_flops() == (ours.hardware - again) * n_tokens
    if not checkpointing:
        assert counter.get_total_flops() == ours.model * n_tokens
        by_kind = counter.get_flop_counts()["Global"]
        assert by_kind[torch.ops.aten.bmm] == ours.attention * n_tokens


def test_fused_attention_computes_its_scores_twice():
    sizes = (1, GROUPED.n_heads, ROW, GROUPED.hidden_size // GROUPED.n_heads)
    both = sdpa_flop_count(sizes, sizes, sizes) + sdpa_backward_flop_count(sizes, sizes, sizes, sizes)
    ours = flops_per_token(GROUPED, FULL, ROW)
    assert both * GROUPED.n_layers == (ours.attention + ours.recomputed) * ROW


def test_lora_needs_about_two_thirds():
    shape = SHAPES["LLaMA-7B"]
    full, lora = (flops_per_token(shape, replace(PAPER, lora_rank=rank), 2048) for rank in (0, 16))
    assert full.matmul == 6 * (6_738_415_616 - 32_000 * 4096 - 65 * 4096)  # 6 N, the usual rule
    assert lora.matmul == 4 * full.matmul // 6 + 6 * n_lora_parameters(shape, 16)
    assert lora.attention == full.attention


def test_hours_and_utilisation_are_each_other_s_inverse():
    """The paper's run: its dialogues, three epochs, LLaMA-13B on A100."""
    n_dialogues, n_each = (
        float(paper.printed("table5_statistics", "UltraChat", column).replace(",", ""))
        for column in ("n_dialogues", "dialogue_tokens")
    )
    n_tokens = 3 * n_dialogues * n_each
    flops = flops_per_token(SHAPES["LLaMA-13B"], PAPER, 2048)
    hours = gpu_hours(n_tokens, flops, PEAK_FLOPS["A100"], 0.4)
    assert mfu(n_tokens / hours / 3600, flops, PEAK_FLOPS["A100"]) == pytest.approx(0.4)
    assert gpu_hours(n_tokens, flops, PEAK_FLOPS["H100"], 0.4) < hours
    assert hours == pytest.approx(n_tokens * 6 * 13e9 / 0.4 / 312e12 / 3600, rel=0.1)  # 6 N D


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100"), ("NVIDIA A100-PCIE-40GB", "A100"), ("NVIDIA A100 80GB PCIe", "A100"),
        ("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA H100 PCIe", "H100 PCIe"), ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA H200", "H200"), ("NVIDIA GeForce RTX 4090", "RTX 4090"), ("H200 NVL", "H200 NVL"),
    ],
)  # fmt: skip
def test_a_device_is_known_by_its_driver_s_name(name, key):
    assert peak_of(name) == PEAK_FLOPS[key]


@pytest.mark.parametrize(
    "name", ["NVIDIA GeForce RTX 3090 Ti", "NVIDIA GeForce RTX 4090 Laptop GPU", "Tesla T4", ""]
)
def test_another_device_is_not_guessed(name):
    with pytest.raises(Stop, match="device: no peak known"):
        peak_of(name)


# ---- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: replace(TINY, n_heads=5), "n_heads: 5 does not divide hidden_size 64"),
        (lambda: replace(TINY, n_kv_heads=3), "n_kv_heads: 3 does not divide n_heads 4"),
        (lambda: replace(TINY, n_layers=-1), "n_layers: expected a whole number above 0, got -1"),
        (lambda: replace(TINY, vocab_size=3.5), "vocab_size: expected a whole number above 0, got 3.5"),
        (lambda: Shape.of({"hidden_size": 64}), "config: no num_hidden_layers"),
        (lambda: Shape.of(config(TINY).to_dict() | {"head_dim": 32}), "head_dim: expected 16"),
        (lambda: Shape.of(config(TINY).to_dict() | {"attention_bias": True}), "attention_bias: expected a model without"),
        (lambda: Shape.of({"model_type": "gpt2"}), "model_type: expected llama or mistral, got 'gpt2'"),
        (lambda: n_lora_parameters(TINY, 0), "lora_rank: expected a whole number above 0, got 0"),
        (lambda: n_lora_parameters(TINY, 8, ("c_attn",)), "lora_targets: expected 'all-linear' or some of"),
        (lambda: n_lora_parameters(TINY, 8, "q_proj"), "lora_targets: expected 'all-linear' or some of"),
        (lambda: n_lora_parameters(TINY, 8, ()), "lora_targets: expected 'all-linear' or some of"),
        (lambda: memory(TINY, replace(FULL, attention="eager"), 128), "attention: expected a fused one"),
        (lambda: memory(TINY, FULL, 0), "row_tokens: expected a whole number above 0, got 0"),
        (lambda: memory(TINY, replace(FULL, fsdp=True), 128, n_devices=0), "n_devices: expected a whole number"),
        (lambda: memory(TINY, FULL, 128, n_devices=-2), "n_devices: expected a whole number"),
        (lambda: flops_per_token(TINY, FULL, -5), "row_tokens: expected a whole number above 0, got -5"),
        (lambda: gpu_hours(0, flops_per_token(TINY, FULL, 8), 1e12, 0.4), "n_tokens: expected a number above 0, got 0"),
        (lambda: gpu_hours(1, flops_per_token(TINY, FULL, 8), 1e12, 40), "utilisation_fraction: expected at most 1, got 40"),
        (lambda: gpu_hours(1, flops_per_token(TINY, FULL, 8), float("nan"), 0.4), "peak_flops: expected a number above 0, got nan"),
        (lambda: mfu(-1.0, flops_per_token(TINY, FULL, 8), 1e12), "tokens_per_second: expected a number above 0, got -1.0"),
    ],
)  # fmt: skip
def test_bad_input_stops_with_a_line(call, line):
    with pytest.raises(Stop) as stopped:
        call()
    assert str(stopped.value).startswith(line)
