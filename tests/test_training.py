"""Schedule, tokenizer and tiny base; full, LoRA and 4-bit runs that learn, repeat and resume exactly."""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ultrachat import sft, training
from ultrachat.chatmodels import generate, load
from ultrachat.errors import Stop
from ultrachat.records import Dialogue
from ultrachat.sft import Example
from ultrachat.training import PAPER, Recipe, finetune, held_out_loss, pretrain, schedule

RECIPE = Recipe(lr=5e-3, max_steps=8, batch=4, n_evaluations=2)
FRUIT = ["pear", "plum", "fig", "apple", "cherry", "quince", "peach", "lemon", "lime", "grape"]
DIALOGUES = [
    Dialogue.from_rounds([(f"What is a {x}?", f"A {x} is a fruit."), ("Thanks", f"Enjoy the {x}!")])
    for x in FRUIT
]
TEXTS = [m.content for d in DIALOGUES for m in d.messages]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A tiny base model that has read the text, so that LoRA has something to adapt; nobody writes into it."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = training.train_tokenizer(TEXTS * 3, 320, folder / "tokenizer")
    model = training.tiny_llama(tokenizer, hidden_size=64, n_layers=2, n_heads=2, max_position=128)
    recipe = replace(RECIPE, max_steps=60, n_evaluations=1)
    pretrain(model, tokenizer, TEXTS, TEXTS[:4], folder / "model", recipe, block_tokens=32)
    return folder / "model"


@pytest.fixture(scope="module")
def data(base) -> tuple[list[Example], list[Example]]:
    tokenizer = load(base)[1]
    examples, _ = sft.split_all(DIALOGUES, tokenizer, 64)
    return examples[:-3], examples[-3:]


def losses(result: training.TrainingResult, name: str = "loss") -> list[float]:
    return [row[name] for row in result.log if row[name] is not None]


# ---- recipe and schedule ----------------------------------------------------------------------


def test_the_papers_schedule_ends_within_the_run():
    n_steps, n_warmup = schedule(1_468_352, PAPER)
    assert n_steps == 3 * 2868  # 1,468,352 / 512 = 2,867.9
    assert n_warmup == 259  # 3 %
    assert PAPER.batch == 128 * PAPER.micro_batch
    # with the authors' constant of 2,000,000 steps warm-up alone would outlast the run
    assert n_steps < 0.03 * 2_000_000


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 5000), batch=st.integers(1, 600), epochs=st.integers(1, 4))
def test_every_row_is_seen_once_per_epoch(n, batch, epochs):
    n_steps, n_warmup = schedule(n, replace(PAPER, batch=batch, epochs=epochs))
    assert n_steps * batch >= n * epochs > (n_steps - epochs) * batch
    assert 0 < n_warmup <= n_steps


def test_impossible_recipes_are_one_line():
    with pytest.raises(Stop, match="load_in_4bit: .* expected lora_rank > 0"):
        replace(PAPER, load_in_4bit=True)
    with pytest.raises(Stop, match="batch: expected more than 0, got 0"):
        replace(PAPER, batch=0)
    with pytest.raises(Stop, match="max_steps: expected more than 0 or None, got 0"):
        replace(PAPER, max_steps=0)


# ---- tokenizer, tiny model, packing -----------------------------------------------------------


def test_the_tokenizer_is_repeatable_and_knows_every_text(tmp_path):
    first = training.train_tokenizer(TEXTS, 300, tmp_path / "a")
    training.train_tokenizer(iter(TEXTS), 300, tmp_path / "b")
    assert (tmp_path / "a/tokenizer.json").read_bytes() == (tmp_path / "b/tokenizer.json").read_bytes()
    assert len(first) == 300 and (first.bos_token, first.eos_token, first.pad_token) == (
        "<s>",
        "</s>",
        "<pad>",
    )
    for text in ("A pear", "ünïcödé 你好 🍐", "</s> <s>\n\t  "):
        ids = first(text, split_special_tokens=True)["input_ids"]
        assert ids[0] == first.bos_token_id and first.decode(ids[1:]) == text
    with pytest.raises(Stop, match="vocab_size: expected at least 259, got 100"):
        training.train_tokenizer(TEXTS, 100, tmp_path / "c")


def test_the_tiny_model_is_small_and_repeatable(tmp_path):
    tokenizer = training.train_tokenizer(TEXTS * 50, 400, tmp_path)
    model, again = (training.tiny_llama(tokenizer, seed=7) for _ in range(2))
    assert sum(p.numel() for p in model.parameters()) < 2_000_000
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    other = training.tiny_llama(tokenizer, seed=8)
    assert not torch.equal(model.model.embed_tokens.weight, other.model.embed_tokens.weight)


def test_packing_keeps_every_token_in_order(base):
    tokenizer = load(base)[1]
    blocks = training.pack(["A pear", "</s> fig"], tokenizer, 4)
    stream = np.concatenate([block.input_ids for block in blocks]).tolist()
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    expected = []
    for text in ("A pear", "</s> fig"):
        expected += [
            bos,
            *tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"],
            eos,
        ]
    assert stream == expected[: len(stream)] and len(expected) - len(stream) <= 1
    assert all(b.n_tokens == 4 for b in blocks[:-1]) and all((b.labels == b.input_ids).all() for b in blocks)
    with pytest.raises(Stop, match="texts: none"):
        training.pack([], tokenizer, 4)


# ---- the loss ---------------------------------------------------------------------------------


def test_held_out_loss_weighs_tokens_alike_and_ignores_padding(base, data):
    model, tokenizer = load(base)
    examples = data[0]
    total, n = 0.0, 0
    for example in examples:  # one by one, without padding, by hand
        with torch.no_grad():
            logs = model(input_ids=torch.tensor([example.input_ids.tolist()])).logits[0].log_softmax(-1)
        for position in range(1, example.n_tokens):
            if example.labels[position] != sft.IGNORE_INDEX:
                total -= logs[position - 1, example.labels[position]].item()
                n += 1
    assert n == sum(e.n_learnt_tokens for e in examples)
    for batch_size in (1, 3, 100):
        for pad_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
            assert held_out_loss(model, examples, pad_id, batch_size) == pytest.approx(total / n, abs=1e-4)
    assert np.isnan(held_out_loss(model, [], 0))


# ---- runs -------------------------------------------------------------------------------------


def test_full_fine_tuning_learns_and_can_be_loaded(base, data, tmp_path):
    recipe = replace(RECIPE, max_steps=20)
    result = finetune(*data, base, tmp_path / "full", recipe)
    held_out = losses(result, "eval_loss")
    assert held_out[-1] < 0.95 * held_out[0] and losses(result)[-1] < 0.5 * losses(result)[0]
    assert result.n_trainable == result.n_parameters and result.n_steps == 20
    assert [row["step"] for row in result.log if row["eval_loss"] is not None] == [0, 10, 20]
    assert [row["step"] for row in result.log if row["loss"] is not None] == list(range(1, 21))
    model, tokenizer = load(tmp_path / "full")
    assert held_out_loss(model, data[1], tokenizer.pad_token_id) == pytest.approx(held_out[-1], abs=1e-5)
    before, _ = load(base)
    assert held_out_loss(before, data[1], tokenizer.pad_token_id) == pytest.approx(held_out[0], abs=1e-5)
    answer = generate(model, tokenizer, [sft.encode_prompt("What is a fig?", tokenizer)], 20, temperature=0)
    assert "fruit" in answer[0]
    files = {path.suffix for path in (tmp_path / "full").rglob("*") if path.is_file()}
    assert files <= {".json", ".safetensors", ".jinja"}  # no pickles, no checkpoints left


def test_only_learnt_tokens_are_learnt(base, data, tmp_path):
    # rows whose answers are left out of the labels teach nothing about them
    def users_only(example: Example) -> Example:
        labels = np.where(example.labels == sft.IGNORE_INDEX, example.input_ids, sft.IGNORE_INDEX)
        return Example(example.input_ids, labels.astype(np.int32))

    recipe = replace(RECIPE, max_steps=30)
    answers = finetune(*data, base, tmp_path / "a", recipe)
    other = finetune([users_only(e) for e in data[0]], data[1], base, tmp_path / "b", recipe)
    assert losses(answers, "eval_loss")[-1] < losses(other, "eval_loss")[-1] - 0.5


def test_tokens_are_counted_without_padding(base, data, tmp_path):
    recipe = replace(RECIPE, max_steps=None, epochs=2, batch=4, micro_batch=2)
    result = finetune(*data, base, tmp_path / "run", recipe)
    assert result.n_steps == 2 * -(-len(data[0]) // 4)
    assert result.n_tokens == 2 * sum(e.n_tokens for e in data[0])


def test_accumulating_micro_batches_changes_nothing(base, data, tmp_path):
    whole = finetune(*data, base, tmp_path / "a", replace(RECIPE, max_steps=3, micro_batch=4))
    parts = finetune(*data, base, tmp_path / "b", replace(RECIPE, max_steps=3, micro_batch=1))
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-4)
    assert losses(parts, "eval_loss")[-1] == pytest.approx(losses(whole, "eval_loss")[-1], rel=1e-4)


def test_lora_trains_little_and_learns(base, data, tmp_path):
    recipe = replace(RECIPE, max_steps=40, lr=2e-2, lora_rank=4, lora_alpha=8)
    result = finetune(*data, base, tmp_path / "lora", recipe)
    held_out = losses(result, "eval_loss")
    assert held_out[-1] < 0.8 * held_out[0]
    assert 0 < result.n_trainable < 0.15 * result.n_parameters
    assert (tmp_path / "lora/adapter_model.safetensors").exists()
    assert not (tmp_path / "lora/model.safetensors").exists()
    model, tokenizer = load(tmp_path / "lora")  # merged with its base
    assert held_out_loss(model, data[1], tokenizer.pad_token_id) == pytest.approx(held_out[-1], abs=1e-4)
    moved = tmp_path / "elsewhere"
    shutil.copytree(base, moved)
    again, _ = load(tmp_path / "lora", base_model=moved)
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_4bit_trains_on_cpu_and_evaluating_in_between_changes_nothing(base, data, tmp_path):
    recipe = replace(RECIPE, max_steps=12, lr=2e-2, lora_rank=4, lora_alpha=8, load_in_4bit=True)
    often = finetune(*data, base, tmp_path / "a", replace(recipe, n_evaluations=12))
    held_out = losses(often, "eval_loss")
    assert held_out[-1] < 0.95 * held_out[0]
    once = finetune(*data, base, tmp_path / "b", replace(recipe, n_evaluations=1))
    assert losses(once) == losses(often)
    # and the gradients are those of a model that was never in eval mode
    plain = finetune(*data, base, tmp_path / "c", replace(recipe, load_in_4bit=False))
    assert losses(often)[-1] == pytest.approx(losses(plain)[-1], rel=0.1)


def test_bf16_and_checkpointing_run(base, data, tmp_path):
    recipe = replace(RECIPE, max_steps=2, bf16=True, gradient_checkpointing=True)
    for name, rank in (("full", 0), ("lora", 4)):
        result = finetune(*data, base, tmp_path / name, replace(recipe, lora_rank=rank))
        assert np.isfinite(losses(result)).all()


@pytest.mark.parametrize("load_in_4bit", [False, True])
def test_checkpointing_changes_no_loss(base, data, tmp_path, load_in_4bit):
    if load_in_4bit:
        pytest.importorskip("bitsandbytes")
    recipe = replace(RECIPE, max_steps=3, lr=2e-2, lora_rank=4, load_in_4bit=load_in_4bit)
    plain = finetune(*data, base, tmp_path / "a", recipe)
    saving = finetune(*data, base, tmp_path / "b", replace(recipe, gradient_checkpointing=True))
    assert losses(saving) == pytest.approx(losses(plain), abs=1e-5)
    held_out = losses(plain, "eval_loss")
    assert abs(held_out[-1] - held_out[0]) > 1e-3  # something was learnt at all


def test_a_run_is_repeatable_given_its_seed(base, data, tmp_path):
    recipe = replace(RECIPE, lora_rank=4)
    first = finetune(*data, base, tmp_path / "a", recipe)
    assert finetune(*data, base, tmp_path / "b", recipe).log == first.log
    assert finetune(*data, base, tmp_path / "c", replace(recipe, seed=1)).log != first.log


# ---- being killed and going on ----------------------------------------------------------------


class Killed(BaseException):
    """Stands in for kill -9 at a chosen moment."""


@pytest.mark.parametrize(("torn", "lora_rank"), [(False, 0), (True, 0), (False, 4), (True, 4)])
def test_a_killed_run_goes_on_from_the_newest_complete_checkpoint(
    base, data, tmp_path, monkeypatch, torn, lora_rank
):
    recipe = replace(RECIPE, max_steps=8, n_evaluations=4, lora_rank=lora_rank)
    whole = finetune(*data, base, tmp_path / "whole", recipe)
    mark = training._Milestones.on_save

    def killed_at_step_4(self, args, state, control, **kwargs):
        if state.global_step < 4:
            return mark(self, args, state, control, **kwargs)
        if not torn:
            mark(self, args, state, control, **kwargs)
        raise Killed  # torn: everything is written but the mark

    monkeypatch.setattr(training._Milestones, "on_save", killed_at_step_4)
    with pytest.raises(Killed):
        finetune(*data, base, tmp_path / "run", recipe)
    monkeypatch.undo()
    if torn:  # what a kill in the middle of writing leaves behind
        newest = next((tmp_path / "run/checkpoints/checkpoint-4").glob("*.safetensors"))
        newest.write_bytes(newest.read_bytes()[:100])
    resumed = finetune(*data, base, tmp_path / "run", recipe)
    assert resumed.resumed_from_step == (2 if torn else 4)
    assert resumed.log == whole.log and resumed.n_tokens == whole.n_tokens
    name = "adapter_model.safetensors" if lora_rank else "model.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_an_unfinished_run_is_not_mixed_with_another(base, data, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_log", lambda history: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        finetune(*data, base, tmp_path / "run", RECIPE)
    monkeypatch.undo()
    with pytest.raises(Stop, match=r"unfinished run with lr 0\.005, now 0\.001; call it as before"):
        finetune(*data, base, tmp_path / "run", replace(RECIPE, lr=1e-3))
    with pytest.raises(Stop, match="unfinished run with examples"):
        finetune(data[0][1:], data[1], base, tmp_path / "run", RECIPE)
    assert finetune(*data, base, tmp_path / "run", RECIPE).resumed_from_step == 8


def test_a_finished_run_is_read_back_unless_something_changed(base, data, tmp_path, monkeypatch):
    first = finetune(*data, base, tmp_path / "run", RECIPE)
    monkeypatch.setattr(training, "_prepare", lambda *args: pytest.fail("trained again"))
    assert finetune(*data, base, tmp_path / "run", RECIPE) == first
    monkeypatch.undo()
    changed = finetune(*data, base, tmp_path / "run", replace(RECIPE, max_steps=2))
    assert changed.n_steps == 2
    assert json.loads((tmp_path / "run/result.json").read_text())["n_steps"] == 2


def test_a_folder_with_other_files_is_left_alone(base, data, tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(Stop, match="out_dir: .* holds other files"):
        finetune(*data, base, tmp_path, RECIPE)
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_an_older_runs_adapter_does_not_stay_beside_new_weights(base, data, tmp_path):
    finetune(*data, base, tmp_path / "run", replace(RECIPE, max_steps=1, lora_rank=4))
    finetune(*data, base, tmp_path / "run", replace(RECIPE, max_steps=1))
    assert not list((tmp_path / "run").glob("adapter*"))


def test_bad_input_is_one_line(base, data, tmp_path):
    with pytest.raises(Stop, match="examples: no token to learn"):
        finetune([], data[1], base, tmp_path / "a", RECIPE)
    alien = Example(np.array([1, 9999], np.int32), np.array([-100, 9999], np.int32))
    with pytest.raises(Stop, match="token id 9999 is outside the base's vocabulary"):
        finetune([alien], data[1], base, tmp_path / "a", RECIPE)
    with pytest.raises(Stop, match="batch: 6 is not a multiple of micro_batch 4 x 1 devices"):
        finetune(*data, base, tmp_path / "a", replace(RECIPE, batch=6))
    with pytest.raises(Stop, match="is neither a folder nor a hub id"):
        finetune(*data, tmp_path / "nothing", tmp_path / "a", RECIPE)
