"""The loss against a slow one; full, LoRA and 4-bit runs that learn, repeat and resume exactly, however batched."""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fruit import FRUIT
from transformers import MptConfig, MptForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from ultrachat import tiny, trainer, training
from ultrachat.batching import collate, collate_packed, pack
from ultrachat.chatmodels import generate, load
from ultrachat.errors import Stop
from ultrachat.heldout import held_out_loss, held_out_losses
from ultrachat.recipes import Recipe
from ultrachat.records import SECTORS, Dialogue
from ultrachat.sections import IGNORE_INDEX, Example
from ultrachat.sft import Encoder
from ultrachat.splitting import split_all
from ultrachat.tiny import pretrain
from ultrachat.training import finetune

RECIPE = Recipe(lr=5e-3, max_steps=8, batch=4, n_evaluations=2)
DIALOGUES = [
    Dialogue.from_rounds([(f"What is a {x}?", f"A {x} is a fruit."), ("Thanks", f"Enjoy the {x}!")])
    for x in FRUIT[:10]
]
TEXTS = [m.content for d in DIALOGUES for m in d.messages]
VARIED = [  # of one to three rounds, short and long
    Dialogue.from_rounds(
        [(f"What is a {x}?", "A fruit. " * (1 + i % 5)), *[("And?", f"{x}!")] * (i % 3)],
        sector=SECTORS[i % 2],
    )
    for i, x in enumerate(FRUIT[:10])
]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A tiny base model that has read the text, so that LoRA has something to adapt; nobody writes into it."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = tiny.train_tokenizer(TEXTS * 3, 320, folder / "tokenizer")
    model = tiny.tiny_llama(tokenizer, hidden_size=64, n_layers=2, n_heads=2, max_position=128)
    recipe = replace(RECIPE, max_steps=60, n_evaluations=1)
    pretrain(model, tokenizer, TEXTS, TEXTS[:4], folder / "model", recipe, block_tokens=32)
    return folder / "model"


@pytest.fixture(scope="module")
def data(base) -> tuple[list[Example], list[Example]]:
    tokenizer = load(base)[1]
    examples, _ = split_all(DIALOGUES, Encoder(tokenizer), 64)
    return examples[:-3], examples[-3:]


def losses(result: training.TrainingResult, name: str = "loss") -> list[float]:
    return [row[name] for row in result.log if row[name] is not None]


# ---- the loss ---------------------------------------------------------------------------------


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def by_hand(
    tokenizer: PreTrainedTokenizerBase, rounds: list[tuple[str, str]], n_context: int = 0
) -> tuple[list[int], list[bool]]:
    """UltraLLaMA's format, one message at a time: the ids, and which of them are learnt."""
    ids, learnt = [tokenizer.bos_token_id], [False]
    for number, (user, assistant) in enumerate(rounds):
        front = ids_of(tokenizer, ("\n" if number else "") + "User: " + user) + [tokenizer.eos_token_id]
        front += ids_of(tokenizer, "\nAssistant: ")
        answer = ids_of(tokenizer, assistant) + [tokenizer.eos_token_id]
        ids += front + answer
        learnt += [False] * len(front) + [number >= n_context] * len(answer)
    return ids, learnt


def rows_by_hand(tokenizer, dialogue: Dialogue, max_tokens: int) -> list[tuple[list[int], list[bool]]]:
    """As many new rounds as fit, then as many before them as fit; every try is tokenised as a whole."""
    rounds = dialogue.rounds

    def fits(begin: int, end: int) -> bool:
        return len(by_hand(tokenizer, rounds[begin:end])[0]) <= max_tokens

    rows, start = [], 0
    while start < len(rounds):
        end = start + 1
        while end < len(rounds) and fits(start, end + 1):
            end += 1
        begin = start
        while begin > 0 and fits(begin - 1, end):
            begin -= 1
        rows.append(by_hand(tokenizer, rounds[begin:end], start - begin))
        start = end
    return rows


def slow_loss(model: PreTrainedModel, rows: list[tuple[list[int], list[bool]]]) -> float:
    """The mean over all learnt tokens, one row and one position at a time."""
    total, n = 0.0, 0
    for ids, learnt in rows:
        with torch.no_grad():
            logs = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        for position in range(1, len(ids)):
            if learnt[position]:
                total -= logs[position - 1, ids[position]].item()
                n += 1
    return total / n


@pytest.mark.parametrize("max_tokens", [400, 120])
def test_the_loss_is_that_of_a_slow_and_obvious_implementation(named, max_tokens):
    name, tokenizer = named
    random = np.random.default_rng(1)
    words = ["pear", "plum ", "ünïcödé", "你好", "\n", "  two", "3.14", "🍐"]
    if name != "unigram":  # the model of this one finds them as pieces of its own, whatever it is told
        words += ["</s>", "<s>User: "]

    def text() -> str:
        return " ".join(random.choice(words, size=int(random.integers(1, 6)))) + "."

    dialogues = [Dialogue.from_rounds([(text(), text()) for _ in range(1 + i % 4)]) for i in range(7)]
    model = (
        tiny.tiny_llama(tokenizer, hidden_size=32, n_layers=1, n_heads=2, max_position=512).double().eval()
    )
    rows, report = split_all(dialogues, Encoder(tokenizer), max_tokens)
    assert report.n_cut_rounds == 0 and (report.n_context_tokens > 0) == (max_tokens == 120)
    slow = slow_loss(model, [row for d in dialogues for row in rows_by_hand(tokenizer, d, max_tokens)])
    packs = pack(rows, 400)
    assert 1 < len(packs) < len(rows)
    pad_id = tokenizer.eos_token_id if name == "gpt2" else 0
    for batch in (collate(rows, pad_id), collate_packed(packs, pad_id), collate_packed(packs, pad_id, True)):
        with torch.no_grad():
            assert model(**batch, use_cache=False).loss.item() == pytest.approx(slow, rel=1e-6)


@pytest.mark.parametrize("batching", ["padded", "grouped", "packed"])
def test_the_loss_of_a_step_is_that_of_the_slow_implementation(base, tmp_path, batching):
    """Through the whole Trainer: rows in micro batches whose learnt tokens differ in number."""
    model, tokenizer = load(base)
    rows, _ = split_all(VARIED, Encoder(tokenizer), 96)
    n = len(pack(rows, 200)) if batching == "packed" else len(rows)  # all of them are one step
    recipe = replace(
        RECIPE, max_steps=1, n_evaluations=1, batch=n, micro_batch=1, batching=batching, pack_tokens=200
    )
    slow = slow_loss(model, [row for d in VARIED for row in rows_by_hand(tokenizer, d, 96)])
    result = finetune(rows, rows[:4], base, tmp_path / "run", recipe, "none")
    assert losses(result) == pytest.approx([slow], rel=1e-6)


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
    answer = generate(model, tokenizer, [Encoder(tokenizer).prompt("What is a fig?")], 20, temperature=0)
    assert "fruit" in answer[0]
    files = {path.suffix for path in (tmp_path / "full").glob("*") if path.is_file()}
    assert files <= {".json", ".safetensors", ".jinja"}  # no pickles, no checkpoints left


def test_only_learnt_tokens_are_learnt(base, data, tmp_path):
    # rows whose answers are left out of the labels teach nothing about them
    def users_only(example: Example) -> Example:
        labels = np.where(example.labels == IGNORE_INDEX, example.input_ids, IGNORE_INDEX)
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
    mark = trainer.Milestones.on_save

    def killed_at_step_4(self, args, state, control, **kwargs):
        if state.global_step < 4:
            return mark(self, args, state, control, **kwargs)
        if not torn:
            mark(self, args, state, control, **kwargs)
        raise Killed  # torn: everything is written but the mark

    monkeypatch.setattr(trainer.Milestones, "on_save", killed_at_step_4)
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
    monkeypatch.setattr(training, "prepare_model", lambda *args: pytest.fail("trained again"))
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


# ---- batching, and what is written beside the model -------------------------------------------


@pytest.fixture(scope="module")
def varied(base) -> list[Example]:
    """Rows of different lengths, some of them parts of a dialogue."""
    return split_all(VARIED, Encoder(load(base)[1]), 96)[0]


def test_packed_steps_have_the_loss_of_padded_steps(base, varied, tmp_path):
    recipe = replace(RECIPE, max_steps=4, n_evaluations=4, batch=len(varied), micro_batch=5)
    while recipe.batch % recipe.micro_batch:
        recipe = replace(recipe, micro_batch=recipe.micro_batch - 1)
    padded = finetune(varied, varied[:4], base, tmp_path / "padded", recipe, "none")
    n_packs = len(pack(varied, 128))
    assert 1 < n_packs < len(varied)
    for micro_batch in (1, n_packs):
        packed = finetune(
            varied, varied[:4], base, tmp_path / f"packed{micro_batch}",
            replace(recipe, batching="packed", pack_tokens=128, batch=n_packs, micro_batch=micro_batch), "none",
        )  # fmt: skip
        assert losses(packed) == pytest.approx(losses(padded), abs=1e-5)
        assert losses(packed, "eval_loss") == pytest.approx(losses(padded, "eval_loss"), abs=1e-5)
        assert packed.n_tokens == padded.n_tokens
    assert losses(padded)[-1] < losses(padded)[0] - 0.1


def test_a_model_that_cannot_keep_packed_rows_apart_is_one_line(base, varied, tmp_path):
    _, tokenizer = load(base)
    torch.manual_seed(0)
    config = MptConfig(d_model=32, n_heads=2, n_layers=1, max_seq_len=128, vocab_size=len(tokenizer))
    MptForCausalLM(config).save_pretrained(str(tmp_path / "mpt"))
    tokenizer.save_pretrained(str(tmp_path / "mpt"))
    recipe = replace(
        RECIPE, max_steps=1, n_evaluations=1, attention="eager", batching="packed", pack_tokens=128
    )
    with pytest.raises(Stop, match="batching: packed rows would read one another in MptForCausalLM with "
                                   "attention 'eager', expected 'grouped' or 'padded'"):  # fmt: skip
        finetune(varied, varied[:4], tmp_path / "mpt", tmp_path / "run", recipe, "none")
    result = finetune(
        varied, varied[:4], tmp_path / "mpt", tmp_path / "run", replace(recipe, batching="grouped"), "none"
    )
    assert np.isfinite(losses(result)).all()


@pytest.mark.parametrize("batching", ["padded", "grouped", "packed"])
def test_every_row_once_an_epoch_and_every_token_counted(base, varied, tmp_path, monkeypatch, batching):
    name = "_packed" if batching == "packed" else "_padded"
    collator, seen = getattr(trainer, name), []

    def recorded(rows, **options):
        seen.append([part for row in rows for part in getattr(row, "examples", [row])])
        return collator(rows, **options)

    monkeypatch.setattr(trainer, name, recorded)
    recipe = replace(
        RECIPE,
        max_steps=None,
        epochs=2,
        batch=4,
        micro_batch=2,
        n_evaluations=1,
        batching=batching,
        pack_tokens=128,
    )
    result = finetune(varied, varied[:4], base, tmp_path / "run", recipe, "none")
    assert result.n_tokens == 2 * sum(row.n_tokens for row in varied)
    flat = [id(row) for rows in seen for row in rows]
    once = sorted(map(id, varied))
    assert sorted(flat[: len(varied)]) == sorted(flat[len(varied) :]) == once
    assert flat[: len(varied)] != flat[len(varied) :]  # shuffled anew
    if batching == "grouped":
        assert seen[0][0].n_tokens == max(row.n_tokens for row in varied)


@pytest.mark.parametrize("batching", ["grouped", "packed"])
def test_a_killed_run_goes_on_within_its_epoch(base, varied, tmp_path, monkeypatch, batching):
    recipe = replace(
        RECIPE,
        max_steps=None,
        epochs=3,
        batch=2,
        micro_batch=1,
        lr=1e-3,
        batching=batching,
        pack_tokens=160,
        n_evaluations=4,
    )
    whole = finetune(varied, varied[:4], base, tmp_path / "whole", recipe, "none")
    stops = [row["step"] for row in whole.log if row["eval_loss"] is not None][1:]
    steps_an_epoch = whole.n_steps // 3
    assert stops[1] % steps_an_epoch and stops[1] > steps_an_epoch  # within the second
    mark = trainer.Milestones.on_save

    def killed(self, args, state, control, **kwargs):
        mark(self, args, state, control, **kwargs)
        if state.global_step == stops[1]:
            raise Killed

    monkeypatch.setattr(trainer.Milestones, "on_save", killed)
    with pytest.raises(Killed):
        finetune(varied, varied[:4], base, tmp_path / "run", recipe, "none")
    monkeypatch.undo()
    resumed = finetune(varied, varied[:4], base, tmp_path / "run", recipe, "none")
    assert resumed.resumed_from_step == stops[1]
    assert resumed.log == whole.log and resumed.n_tokens == whole.n_tokens
    weights = [(tmp_path / run / "model.safetensors").read_bytes() for run in ("run", "whole")]
    assert weights[0] == weights[1]


def test_padding_with_the_end_mark_changes_nothing(base, varied, tmp_path):
    recipe = replace(RECIPE, max_steps=3, n_evaluations=1)
    plain = finetune(varied, varied[:4], base, tmp_path / "plain", recipe, "none")
    shutil.copytree(base, tmp_path / "base")
    tokenizer = load(base)[1]
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(str(tmp_path / "base"))
    assert load(tmp_path / "base")[1].pad_token_id == tokenizer.eos_token_id
    same = finetune(varied, varied[:4], tmp_path / "base", tmp_path / "same", recipe, "none")
    assert same.log == plain.log


def test_the_log_has_the_held_out_loss_by_round_and_sector(base, varied, tmp_path):
    result = finetune(varied[:-4], varied[-4:], base, tmp_path / "run", replace(RECIPE, max_steps=2), "none")
    model, tokenizer = load(tmp_path / "run")
    found = held_out_losses(model, varied[-4:], tokenizer.pad_token_id)
    assert {"loss", "round_1", "round_2", *SECTORS[:2]} <= set(found)
    for row in result.log:
        if row["eval_loss"] is not None:
            assert set(row) == {"step", "loss", *(f"eval_{name}" for name in found)}
    last = {name: result.log[-1][f"eval_{name}"] for name in found}
    assert last == pytest.approx(found, abs=1e-5)


def test_tensorboard_has_the_losses_of_the_log(base, data, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    result = finetune(*data, base, tmp_path / "run", replace(RECIPE, max_steps=4))
    events = accumulator.EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
    for tag, name in (("train/loss", "loss"), ("eval/loss", "eval_loss"), ("eval/round_2", "eval_round_2")):
        expected = {row["step"]: row[name] for row in result.log if row.get(name) is not None}
        found = {event.step: event.value for event in events.Scalars(tag)}
        assert found == pytest.approx(expected, rel=1e-6) and len(found) > 2


def test_nothing_is_logged_if_not_asked(base, data, tmp_path):
    finetune(*data, base, tmp_path / "run", replace(RECIPE, max_steps=1), "none")
    assert not list((tmp_path / "run").rglob("*events*")) and not (tmp_path / "run/tensorboard").exists()


def test_loggers_that_are_not_there_are_one_line(base, data, tmp_path, monkeypatch):
    found = importlib.util.find_spec

    def without(name, *args):
        return None if name in ("wandb", "tensorboard", "liger_kernel") else found(name, *args)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    for name in ("wandb", "tensorboard"):
        with pytest.raises(Stop, match=f"report_to: needs the package {name}, which is not installed"):
            finetune(*data, base, tmp_path / "run", RECIPE, name)
    with pytest.raises(Stop, match="liger: needs the package liger-kernel, which is not installed"):
        finetune(*data, base, tmp_path / "run", replace(RECIPE, liger=True), "none")
    with pytest.raises(Stop, match="report_to: expected one of tensorboard, wandb, none, got 'paper'"):
        finetune(*data, base, tmp_path / "run", RECIPE, "paper")
    assert not (tmp_path / "run").exists()
