"""The held-out loss by round and sector: what loops over single tokens give, and nothing left behind."""

from __future__ import annotations

from collections import defaultdict
from math import isnan

import numpy as np
import pytest
import torch
from fruit import DIALOGUES
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ultrachat.chatmodels import load
from ultrachat.heldout import ROUNDS_APART, held_out_loss, held_out_losses
from ultrachat.records import SECTORS, Dialogue
from ultrachat.sections import IGNORE_INDEX, Example
from ultrachat.sft import Encoder
from ultrachat.splitting import split_all

LONG = Dialogue.from_rounds(
    [(f"No. {i}?", f"The answer {i} is {i * i}.") for i in range(13)], sector=SECTORS[0]
)


@pytest.fixture(scope="module")
def small(small_base) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return load(small_base)


@pytest.fixture(scope="module")
def rows(small) -> list[Example]:
    """Rows of whole dialogues and of parts of dialogues, with a sector and without."""
    return split_all([*DIALOGUES, LONG], Encoder(small[1]), 96)[0]


def slowly(model: PreTrainedModel, examples: list[Example]) -> dict[str, float]:
    """The obvious way: row by row, token by token, without padding; rounds are counted as they begin."""
    sums: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for example in examples:
        ids, labels = example.input_ids.tolist(), example.labels.tolist()
        with torch.no_grad():
            logs = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        n_rounds = example.first_round  # begun so far in the dialogue
        was_learnt = False
        for position in range(1, len(ids)):
            is_learnt = labels[position] != IGNORE_INDEX
            if is_learnt and not was_learnt:
                n_rounds += 1
            was_learnt = is_learnt
            if not is_learnt:
                continue
            for name in ("loss", f"round_{min(n_rounds, 10)}", example.sector):
                if name is not None:
                    sums[name] -= logs[position - 1, labels[position]].item()
                    counts[name] += 1
    return {name: sums[name] / counts[name] for name in sums}


def test_equals_a_loop_over_tokens(small, rows):
    model, tokenizer = small
    expected = slowly(model, rows)
    assert any(row.first_round for row in rows) and {row.sector for row in rows} == {None, *SECTORS}
    assert set(expected) == {"loss", *(f"round_{i}" for i in range(1, 11)), *SECTORS}
    for batch_size in (1, 3, 100):
        for pad_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
            found = held_out_losses(model, rows, pad_id, batch_size)
            assert found == pytest.approx(expected, abs=1e-6)
            assert held_out_loss(model, rows, pad_id, batch_size) == found["loss"]
    assert list(found) == ["loss", *(f"round_{i}" for i in range(1, ROUNDS_APART + 1)), *sorted(SECTORS)]


def test_the_user_and_rows_that_are_learnt_from_their_first_token_on(small):
    model, tokenizer = small
    users, _ = split_all(DIALOGUES, Encoder(tokenizer, learn="user"), 96)
    whole = [Example(row.input_ids, row.input_ids) for row in users[:3]]  # as in pre-training: one long round
    for examples in (users, whole, [*whole, *users]):
        assert held_out_losses(model, examples, 0) == pytest.approx(slowly(model, examples), abs=1e-6)
    assert list(held_out_losses(model, whole, 0)) == ["loss", "round_1"]


def test_rounds_from_the_tenth_on_are_one(small):
    model, tokenizer = small
    rows, _ = split_all([LONG], Encoder(tokenizer), 64)
    late = [row for row in rows if row.first_round >= 9]
    found = held_out_losses(model, late, 0)
    assert len(late) > 1 and found["round_10"] == found["loss"] == found[SECTORS[0]]
    assert all(isnan(found[f"round_{i}"]) for i in range(1, 10))  # and none of these was there


def test_where_nothing_is_learnt_there_is_no_number(small):
    model, _ = small
    assert list(held_out_losses(model, [], 0)) == ["loss"] and isnan(held_out_loss(model, [], 0))
    ids = np.arange(5, dtype=np.int32)
    nothing = Example(ids, np.full(5, IGNORE_INDEX, np.int32), sector=SECTORS[1])
    only_the_first = Example(ids, np.where(ids == 0, ids, IGNORE_INDEX))  # which nothing predicts
    for example in (nothing, only_the_first):
        found = held_out_losses(model, [example], 0)
        assert all(isnan(value) for value in found.values())


def test_tokens_weigh_alike_and_not_rows(small):
    model, _ = small
    rng = np.random.default_rng(0)
    short, long = (
        Example(ids, ids) for ids in (rng.integers(3, 300, size=n, dtype=np.int32) for n in (3, 60))
    )
    alone = [held_out_loss(model, [row], 0) for row in (short, long)]
    together = held_out_loss(model, [short, long], 0, batch_size=1)
    assert together == pytest.approx((2 * alone[0] + 59 * alone[1]) / 61, abs=1e-6)
    assert abs(together - np.mean(alone)) > 1e-3


@pytest.mark.parametrize("fails", [False, True])
def test_every_part_of_the_model_is_left_in_the_mode_it_was_in(small_base, rows, fails):
    model = load(small_base)[0].train()
    model.model.layers[0].mlp.eval()  # a frozen part
    modes = [module.training for module in model.modules()]
    seen = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(model.training))
    if fails:
        with pytest.raises(IndexError):  # out of memory, say
            held_out_loss(model, [Example(np.array([0, 10**6]), np.array([0, 10**6]))], 0)
    else:
        held_out_loss(model, rows[:2], 0)
        assert seen == [False]
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())


def test_dropout_does_not_disturb_it(small_base, rows):
    model = load(small_base)[0]
    model.config.attention_dropout = model.model.layers[0].self_attn.attention_dropout = 0.5
    model.train()
    with torch.no_grad():
        ids = torch.tensor([rows[0].input_ids.tolist()])
        assert not torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
    assert held_out_loss(model, rows, 0) == held_out_loss(model, rows, 0)
