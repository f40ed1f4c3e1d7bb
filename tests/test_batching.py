"""Packs: nothing lost, nothing read across a border, and the loss and gradients of rows trained alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torch.utils.data import DataLoader
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    BloomConfig,
    DataCollatorWithFlattening,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)
from transformers.trainer_pt_utils import LengthGroupedSampler

from ultrachat.batching import (
    ByLength,
    Pack,
    collate,
    collate_packed,
    fill_fraction,
    keeps_apart,
    pack,
    padding_fraction,
)
from ultrachat.errors import Stop
from ultrachat.sft import IGNORE_INDEX, Example

VOCABULARY, PAD = 61, 0
SMALL = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": PAD,
}  # fmt: skip
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SMALL),
    "gpt_neox": GPTNeoXConfig(**SMALL),
    "qwen2": Qwen2Config(**SMALL, num_key_value_heads=2),
    "mistral": MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=8),
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2
    ),
    "bloom": BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4),
}


def _model(name: str, attention: str | None = None, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    torch.manual_seed(0)
    config = deepcopy(CONFIGS[name])  # a model writes its attention into the config it is given
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype)


def _rows(*lengths: int, learn_all: bool = False) -> list[Example]:
    """Random rows; about half of each is learnt, at the end, or all of it."""
    rng = np.random.default_rng(len(lengths))
    rows = []
    for n in lengths:
        ids = rng.integers(3, VOCABULARY, size=n, dtype=np.int32)
        rows.append(Example(ids, np.where(np.arange(n) >= (0 if learn_all else n // 2), ids, IGNORE_INDEX)))
    return rows


def _numbered(lengths: Sequence[int]) -> list[Example]:
    """Rows that can be told apart by their first id."""
    return [
        Example(np.full(n, i, dtype=np.int32), np.full(n, i, dtype=np.int32)) for i, n in enumerate(lengths)
    ]


def _sum_alone(model: PreTrainedModel, rows: Sequence[Example]) -> torch.Tensor:
    """The obvious way: every row by itself, the loss of every learnt token added up."""
    total = torch.zeros(())
    for row in rows:
        ids, labels = (torch.from_numpy(a).long() for a in (row.input_ids, row.labels))
        logits = model(input_ids=ids[None], use_cache=False).logits[0]
        total = total + cross_entropy(logits[:-1], labels[1:], ignore_index=IGNORE_INDEX, reduction="sum")
    return total


def _sum_of(model: PreTrainedModel, batch: dict) -> torch.Tensor:
    return model(**batch, use_cache=False, num_items_in_batch=torch.tensor(1)).loss


def _gradients(model: PreTrainedModel, loss: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).clone()


# ---- tensors by hand --------------------------------------------------------------------------

A = Example(
    np.array([11, 12, 13], np.int32), np.array([11, IGNORE_INDEX, 13], np.int32)
)  # its first is learnt
B = Example(np.array([21, 22], np.int32), np.array([IGNORE_INDEX, 22], np.int32))
C = Example(np.array([31, 32], np.int32), np.array([IGNORE_INDEX, 32], np.int32))
X = IGNORE_INDEX


def test_padded_by_hand():
    batch = collate([A, B], pad_id=9)
    assert batch["input_ids"].tolist() == [[11, 12, 13], [21, 22, 9]]
    assert batch["labels"].tolist() == [[11, X, 13], [X, 22, X]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert {t.dtype for t in batch.values()} == {torch.int64}


def test_packed_by_hand():
    """The label of A's first token goes: in a pack, a row in front would predict it."""
    batch = collate_packed([Pack((A, B)), Pack((C,))], pad_id=9)
    assert batch.keys() == {"input_ids", "labels", "position_ids"}
    assert batch["input_ids"].tolist() == [[11, 12, 13, 21, 22], [31, 32, 9, 9, 9]]
    assert batch["labels"].tolist() == [[X, X, 13, X, 22], [X, 32, X, X, X]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 1, 2]]
    assert {t.dtype for t in batch.values()} == {torch.int64}
    assert A.labels.tolist() == [11, X, 13]  # the rows themselves stay as they are


def test_flat_by_hand_and_as_transformers_makes_it():
    batch = collate_packed([Pack((A, B)), Pack((C,))], pad_id=9, flat=True)
    assert batch["input_ids"].tolist() == [[11, 12, 13, 21, 22, 31, 32]]
    assert batch["labels"].tolist() == [[X, X, 13, X, 22, X, 32]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 1]]
    assert batch["cu_seq_lens_q"].tolist() == [0, 3, 5, 7]
    rows = [{"input_ids": row.input_ids.tolist(), "labels": row.labels.tolist()} for row in (A, B, C)]
    theirs = DataCollatorWithFlattening(return_flash_attn_kwargs=True)(rows)
    assert batch.keys() == theirs.keys()
    for name, value in theirs.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(batch[name], value) and batch[name].dtype == value.dtype, name
        else:
            assert batch[name] == value and type(batch[name]) is type(value), name


def test_learnt_tokens_are_counted_as_the_loss_sees_them():
    packs = pack(_rows(9, 5, 4, 3, learn_all=True), 12)
    for p in packs:
        assert p.n_learnt_tokens == int((collate_packed([p], PAD)["labels"][:, 1:] != X).sum())
        assert p.n_learnt_tokens == p.n_tokens - len(p.examples)
    assert Pack((A, B)).n_tokens == 5 and Pack((A, B)).n_learnt_tokens == 2


# ---- which rows share a pack ------------------------------------------------------------------


def test_pack_by_hand():
    rows = _numbered([2, 5, 3])
    packs = pack(rows, max_tokens=8)
    assert [[e.n_tokens for e in p.examples] for p in packs] == [[5, 3], [2]]
    assert fill_fraction(packs, 8) == 10 / 16
    # the best fit is the smallest room that is enough: 3 goes beside 7, not beside 6
    assert [[e.n_tokens for e in p.examples] for p in pack(_numbered([6, 7, 3]), 10)] == [[7, 3], [6]]
    # rows of one length stay in the order of the data
    assert [p.examples[0].input_ids[0] for p in pack(_numbered([7] * 300), 10)] == list(range(300))
    assert len(pack([], 8)) == 0 and not list(pack([], 8))


def test_a_row_too_long_for_any_pack_stops():
    with pytest.raises(Stop, match=r"row 1 has 9 tokens, expected at most max_tokens 8"):
        pack(_numbered([8, 9]), 8)


@settings(max_examples=100)
@given(lengths=st.lists(st.integers(1, 20), max_size=60), spare=st.integers(0, 20))
def test_every_row_is_in_one_pack_and_fits(lengths: list[int], spare: int):
    rows, max_tokens = _numbered(lengths), max(lengths, default=1) + spare
    packs = pack(rows, max_tokens)
    assert Counter(id(e) for p in packs for e in p.examples) == Counter(id(e) for e in rows)
    assert all(p.n_tokens <= max_tokens for p in packs)
    assert -(-sum(lengths) // max_tokens) <= len(packs) <= len(rows)
    # no two packs could have been one
    assert sum(p.n_tokens <= max_tokens / 2 for p in packs) <= 1
    again = pack(rows, max_tokens)
    assert [[id(e) for e in p.examples] for p in again] == [[id(e) for e in p.examples] for p in packs]


@settings(max_examples=100)
@given(lengths=st.lists(st.integers(1, 20), max_size=40), spare=st.integers(0, 20))
def test_pack_is_the_slow_best_fit(lengths: list[int], spare: int):
    max_tokens = max(lengths, default=1) + spare
    slow: list[list[int]] = []
    for n in sorted(lengths, reverse=True):
        fitting = [p for p in slow if sum(p) + n <= max_tokens]
        if fitting:
            max(fitting, key=sum).append(n)
        else:
            slow.append([n])
    fast = [p.n_tokens for p in pack(_numbered(lengths), max_tokens)]
    assert sorted(fast) == sorted(map(sum, slow))  # among equally full packs either may be taken


def test_lengths_like_those_of_dialogues_leave_hardly_a_gap():
    lengths = np.clip(np.random.default_rng(0).lognormal(6.9, 0.5, size=5000), 50, 2048).astype(int)
    packs = pack(_numbered(lengths.tolist()), 2048)
    assert (
        padding_fraction([2048] + lengths.tolist(), len(lengths) + 1) > 0.4
    )  # padded, nearly half is nothing
    assert fill_fraction(packs, 2048) > 0.97


# ---- the loss and the gradients of rows alone -------------------------------------------------


@pytest.mark.parametrize("training", [False, True], ids=["evaluating", "training with checkpointing"])
@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_packed_equals_alone(name: str, training: bool):
    model = _model(name).train(training)
    if training:
        model.activation_checkpointing_enable({"use_reentrant": False})
        assert model.is_activation_checkpointing
    rows = [*_rows(13, 9, 8, 7, 5, 4, 1), *_rows(6, 5, learn_all=True)]
    packs = pack(rows, 24)
    assert len(packs) > 1 and len({p.n_tokens for p in packs}) > 1 and max(len(p.examples) for p in packs) > 2
    loss = _sum_alone(model, rows)
    gradients = _gradients(model, loss)
    batches = {
        "padded": collate(rows, PAD),
        "packed": collate_packed(packs, PAD),
        "flat": collate_packed(packs, PAD, flat=True),
    }
    for form, batch in batches.items():
        found = _sum_of(model, batch)
        assert found.item() == pytest.approx(loss.item(), rel=1e-6), form
        assert (_gradients(model, found) - gradients).norm() < 1e-5 * gradients.norm(), form


def _changed(rows: Sequence[Example], position: int) -> list[Example]:
    ids = 3 + (rows[position].input_ids - 2) % (VOCABULARY - 3)  # every token another, none special
    return [*rows[:position], Example(ids, ids), *rows[position + 1 :]]


@pytest.mark.parametrize("flat", [False, True])
def test_a_changed_row_changes_no_other(flat: bool):
    model, rows = _model("llama"), _rows(9, 6, 5, 4)
    logits = []
    for version in (rows, _changed(rows, 0)):
        batch = collate_packed([Pack(tuple(version[:3])), Pack((version[3],))], PAD, flat)
        logits.append(model(**batch, use_cache=False).logits.flatten(0, 1))
    assert torch.equal(logits[0][9:], logits[1][9:])
    assert (logits[0][:9] - logits[1][:9]).abs().max() > 0.01


@pytest.mark.parametrize("how", ["attention_mask", "use_cache"])
def test_what_would_let_rows_read_one_another(how: str):
    """Why there is no mask and no cache. Should transformers change this, the module's text must follow."""
    model, rows = _model("llama"), _rows(9, 6)
    logits = []
    for version in (rows, _changed(rows, 0)):
        batch = collate_packed([Pack(tuple(version))], PAD)
        extra = {"use_cache": True}
        if how == "attention_mask":
            extra = {"use_cache": False, "attention_mask": torch.ones_like(batch["input_ids"])}
        logits.append(model(**batch, **extra).logits[0, 9:])
    assert (logits[0] - logits[1]).abs().max() > 1e-4


# ---- tried, not believed ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llama", "gpt_neox", "qwen2", "mistral", "gpt2"])
def test_models_that_keep_rows_apart(name: str, attention: str, dtype: torch.dtype):
    model = _model(name, attention, dtype)
    assert keeps_apart(model) and keeps_apart(model, flat=True)


class _Leaking(LlamaForCausalLM):
    """Reads across rows, as a model does that never looks at positions."""

    def forward(self, *args, position_ids=None, **kwargs):
        return super().forward(*args, **kwargs)


class _Nameless(LlamaForCausalLM):
    """Knows no positions at all."""

    def forward(self, input_ids, attention_mask=None, labels=None, use_cache=None):
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)


class _Miscounting(GPT2LMHeadModel):
    """Keeps rows apart, but counts positions through the pack, so that later rows stand elsewhere."""

    def forward(self, input_ids, position_ids=None, attention_mask=None, **kwargs):
        if position_ids is not None:
            document = (position_ids == 0).cumsum(-1)
            same = document[:, None, :, None] == document[:, None, None, :]
            causal = torch.ones(same.shape[-2:], dtype=torch.bool).tril()
            attention_mask = torch.zeros(same.shape).masked_fill(~(same & causal), torch.finfo().min)
        return super().forward(input_ids, attention_mask=attention_mask, **kwargs)


@pytest.mark.parametrize("kind", [_Leaking, _Nameless, _Miscounting])
def test_models_that_do_not(kind: type[PreTrainedModel]):
    torch.manual_seed(0)
    config = deepcopy(CONFIGS["gpt2" if issubclass(kind, GPT2LMHeadModel) else "llama"])
    assert not keeps_apart(kind(config))
    assert keeps_apart(kind.__base__(config))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_leak_smaller_than_rounding_is_found(dtype: torch.dtype):
    """Bloom attends to everything behind it, very weakly at random weights: 0.4 % of the logits."""
    assert not keeps_apart(_model("bloom", dtype=dtype))


def test_trying_leaves_no_trace():
    model = _model("gpt2").train()  # it has dropout, so a forward in training mode would draw numbers
    model.transformer.h[0].eval()
    modes, state = [m.training for m in model.modules()], torch.get_rng_state()
    assert keeps_apart(model)
    assert [m.training for m in model.modules()] == modes and torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())


def _by_borders(module, query, key, value, attention_mask, scaling=None, cu_seq_lens_q=None, **kwargs):
    """Variable-length attention in the open: sees no mask and no positions, only where rows begin."""
    if cu_seq_lens_q is None:
        found = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
    else:
        spans = [slice(a, b) for a, b in zip(cu_seq_lens_q[:-1], cu_seq_lens_q[1:], strict=True)]
        parts = [[tensor[:, :, span] for tensor in (query, key, value)] for span in spans]
        found = torch.cat(
            [scaled_dot_product_attention(*p, is_causal=True, scale=scaling) for p in parts], dim=2
        )
    return found.transpose(1, 2), None


def test_a_variable_length_kernel_needs_the_flat_form():
    AttentionInterface.register("by_borders", _by_borders)
    model, rows = _model("llama", "by_borders"), _rows(13, 9, 8, 7, 5)
    packs = pack(rows, 24)
    expected = _sum_alone(_model("llama"), rows).item()
    assert _sum_of(model, collate_packed(packs, PAD, flat=True)).item() == pytest.approx(expected, rel=1e-6)
    assert keeps_apart(model, flat=True) and not keeps_apart(model)


def test_four_bit_weights_are_left_in_the_form_for_training():
    """On a CPU a Linear4bit in evaluation mode packs its weights for inference, without a way back."""
    model, seen = _model("llama"), []

    class Linear4bit(torch.nn.Linear):
        def forward(self, x):
            seen.append(self.training)
            return super().forward(x)

    projection = model.model.layers[0].self_attn.q_proj
    stand_in = Linear4bit(projection.in_features, projection.out_features, bias=False)
    model.model.layers[0].self_attn.q_proj = stand_in
    assert keeps_apart(model.train()) and set(seen) == {True}


# ---- sorted by length -------------------------------------------------------------------------


def test_padding_by_hand():
    assert padding_fraction([4, 2, 3], 2) == 1 - 9 / 11
    assert padding_fraction([4, 4, 4], 2) == 0


@settings(max_examples=30)
@given(lengths=st.lists(st.integers(1, 2048), min_size=1, max_size=200), batch=st.integers(1, 16))
def test_by_length_is_every_row_once(lengths: list[int], batch: int):
    order = ByLength(lengths, batch, seed=3)
    assert sorted(order) == list(range(len(lengths))) and len(order) == len(lengths)
    assert lengths[next(iter(order))] == max(lengths)
    generator = torch.Generator().manual_seed(3)
    assert list(order) == list(LengthGroupedSampler(batch, lengths=lengths, generator=generator))


def test_by_length_pads_little():
    lengths = np.random.default_rng(0).integers(50, 2048, size=3200).tolist()
    as_they_come = padding_fraction(lengths, 8)
    grouped = padding_fraction([lengths[i] for i in ByLength(lengths, 8, seed=0)], 8)
    assert as_they_come > 0.3 and grouped < 0.03


def test_by_length_depends_on_seed_and_epoch_alone():
    lengths = np.random.default_rng(0).integers(1, 99, size=64).tolist()
    order = ByLength(lengths, 4, seed=0)
    first = list(order)
    torch.rand(5)  # whatever else is drawn in between
    assert list(order) == first
    order.set_epoch(1)
    assert list(order) != first and list(ByLength(lengths, 4, seed=2)) != first
    order.set_epoch(0)
    assert list(order) == first


@pytest.mark.parametrize("n_processes", [1, 2])
def test_the_epoch_reaches_the_order_through_accelerate(n_processes: int):
    """As Trainer has it: a loader that accelerate prepared, told the epoch; devices share a batch's rows."""
    lengths = np.random.default_rng(0).integers(1, 99, size=64).tolist()
    order = ByLength(lengths, 4 * n_processes, seed=0)
    loader = DataLoader(range(64), batch_size=4, sampler=order)
    shards = [
        prepare_data_loader(loader, num_processes=n_processes, process_index=i) for i in range(n_processes)
    ]
    for epoch in (0, 1):
        for shard in shards:
            shard.set_epoch(epoch)
        seen = [[row for batch in shard for row in batch.tolist()] for shard in shards]
        expected = ByLength(lengths, 4 * n_processes, seed=0)
        expected.set_epoch(epoch)
        chunks = np.array(list(expected)).reshape(-1, n_processes, 4)
        assert seen == [chunks[:, i].flatten().tolist() for i in range(n_processes)]


@pytest.mark.parametrize(
    "wrong", [SimpleNamespace(lengths=[], batch=1), SimpleNamespace(lengths=[1], batch=0)]
)
def test_an_order_of_nothing_stops(wrong: SimpleNamespace):
    with pytest.raises(Stop, match="lengths: no rows|batch: expected at least 1"):
        ByLength(wrong.lengths, wrong.batch, seed=0)
