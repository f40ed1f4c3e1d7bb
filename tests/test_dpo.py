"""DPO: our ids are what TRL trains on, its loss is the one computed by hand, and a run repeats and resumes."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
import socket
from dataclasses import replace

import numpy as np
import pytest
import torch
from fruit import FRUIT
from transformers import TrainerCallback

from ultrachat import checkpoints, dpo, trainer
from ultrachat.chatmodels import load, load_tokenizer
from ultrachat.dpo import BETA, CAPO, Pair, encode_pairs, preference_accuracy, train_preferences
from ultrachat.errors import Stop
from ultrachat.intervals import rate_interval
from ultrachat.preferences import KINDS, Preference
from ultrachat.recipes import Recipe
from ultrachat.records import Message
from ultrachat.sft import Encoder

pytest.importorskip("trl", reason="trl is not installed (the extra 'preference')")

RECIPE = Recipe(lr=2e-3, max_steps=4, batch=4, micro_batch=2, n_evaluations=2, warmup_fraction=0)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def preference(texts: list[str], chosen: str, rejected: str, kind: str = "neglected") -> Preference:
    messages = [Message(role=("user", "assistant")[i % 2], content=text) for i, text in enumerate(texts)]
    return Preference(
        id=f"{texts[0]} {kind}", parent=texts[0], round=2, kind=kind, messages=messages, chosen=chosen,
        rejected=rejected,
    )  # fmt: skip


PREFERENCES = [
    preference(
        [f"What is a {x}?", f"A {x} is a fruit.", "And is it good?"], f"The {x} is good, enjoy it!",
        f"What do you mean, {FRUIT[i - 1]}?", KINDS[i % 3],
    )
    for i, x in enumerate(FRUIT)
]  # fmt: skip


@pytest.fixture(scope="module")
def pairs(small_base) -> list[Pair]:
    return encode_pairs(PREFERENCES, Encoder(load_tokenizer(small_base)), 256)[0]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Nobody is called, and TRL's count of its users is not sent."""

    def refused(*args, **kwargs):
        raise AssertionError("a network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", refused)


def ids_of(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


# ---- ids --------------------------------------------------------------------------------------


def test_the_ids_of_a_pair_by_hand(small_base):
    tokenizer = load_tokenizer(small_base)
    one = preference(["Hi</s>", "Hello!", "And?"], "Fine.", "No </s> idea")
    (pair,), report = encode_pairs([one], Encoder(tokenizer), 256)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    prompt = [bos, *ids_of(tokenizer, "User: Hi</s>"), eos, *ids_of(tokenizer, "\nAssistant: ")]
    prompt += [*ids_of(tokenizer, "Hello!"), eos, *ids_of(tokenizer, "\nUser: And?"), eos]
    prompt += ids_of(tokenizer, "\nAssistant: ")
    assert pair.prompt.tolist() == prompt
    assert pair.chosen.tolist() == [*ids_of(tokenizer, "Fine."), eos]
    assert pair.rejected.tolist() == [*ids_of(tokenizer, "No </s> idea"), eos]
    assert pair.rejected.tolist().count(eos) == 1 and pair.kind == "neglected"
    assert pair.n_tokens == len(prompt) + len(pair.rejected) and report == dpo.PairReport(1, 0, 0)


def test_a_templates_ids_end_with_the_end_mark_and_nothing_after_it(small_base):
    tokenizer = load_tokenizer(small_base)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    encoder = Encoder(tokenizer, format="template")
    (pair, *_), _ = encode_pairs(PREFERENCES, encoder, 400)
    messages = [message.model_dump() for message in PREFERENCES[0].messages]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert pair.prompt.tolist() == prompt
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for ids, text in ((pair.chosen, PREFERENCES[0].chosen), (pair.rejected, PREFERENCES[0].rejected)):
        assert ids.tolist() == [*ids_of(tokenizer, text), end]


def test_the_prompt_is_what_an_answer_is_asked_for_with(named):
    _, tokenizer = named
    if tokenizer.eos_token is None:
        pytest.skip("no end mark")
    encoder = Encoder(tokenizer)
    for one, pair in zip(PREFERENCES, encode_pairs(PREFERENCES, encoder, 999)[0], strict=True):
        assert pair.prompt.tolist() == encoder.prompt_after([(m.role, m.content) for m in one.messages])
        for answer, ids in ((one.chosen, pair.chosen), (one.rejected, pair.rejected)):
            whole = encoder.encode(one.dialogue(answer)).input_ids
            assert np.array_equal(np.concatenate([pair.prompt, ids]), whole)


def test_too_long_a_pair_loses_its_oldest_rounds_or_is_left_out(small_base):
    encoder = Encoder(load_tokenizer(small_base))
    texts = ["pear " * 9, "plum " * 9, "fig " * 9, "lime " * 9, "And?"]
    one, short = preference(texts, "Good.", "Bad."), preference(texts[2:], "Good.", "Bad.")
    (whole,), report = encode_pairs([one], encoder, 999)
    (rest,), _ = encode_pairs([short], encoder, 999)
    assert report.n_shortened == 0 and whole.n_tokens > rest.n_tokens
    for limit in (whole.n_tokens - 1, rest.n_tokens):
        (shortened,), report = encode_pairs([one], encoder, limit)
        assert report == dpo.PairReport(1, 1, 0)
        assert np.array_equal(shortened.prompt, rest.prompt) and np.array_equal(shortened.chosen, rest.chosen)
    assert encode_pairs([one], encoder, rest.n_tokens - 1) == ([], dpo.PairReport(1, 0, 1))


def test_pairs_of_the_users_side_are_refused(small_base):
    with pytest.raises(Stop, match="encoder: learns the user's side, expected the assistant's"):
        encode_pairs(PREFERENCES, Encoder(load_tokenizer(small_base), learn="user"), 256)


# ---- what TRL trains on, and its loss ---------------------------------------------------------


def test_trl_trains_on_our_ids_and_on_nothing_but_the_answers(small_base, pairs, tmp_path):
    recipe = replace(RECIPE, max_steps=1, batch=len(pairs), micro_batch=len(pairs))
    made = dpo._make_trainer(str(small_base), pairs, [], tmp_path, recipe, BETA)
    assert made.data_collator.max_length is None  # TRL's default cuts rows at 1,024
    seen = []
    for model in (made.model, made.ref_model):
        forward = model.forward

        def recorded(*args, forward=forward, **inputs):
            seen.append(inputs)
            return forward(*args, **inputs)

        model.forward = recorded
    made.train()
    assert len(seen) == 2  # the model and its reference
    expected = sorted(
        ([*p.prompt.tolist(), *ids.tolist()], [-100] * len(p.prompt) + ids.tolist())
        for p in pairs
        for ids in (p.chosen, p.rejected)
    )
    for inputs in seen:
        lengths = inputs["attention_mask"].sum(1).tolist()
        rows = zip(inputs["input_ids"].tolist(), inputs["labels"].tolist(), lengths, strict=True)
        assert sorted((ids[:n], labels[:n]) for ids, labels, n in rows) == expected
        for labels, mask, n in zip(inputs["labels"], inputs["attention_mask"], lengths, strict=True):
            assert (labels[n:] == -100).all() and mask[:n].all()
        # a pair's chosen answer stands in the first half, its rejected one in the same place of the second
        n = len(pairs)
        for chosen, rejected in zip(inputs["labels"][:n], inputs["labels"][n:], strict=True):
            found = [ids[ids != -100].tolist() for ids in (chosen, rejected)]
            assert found in [[p.chosen.tolist(), p.rejected.tolist()] for p in pairs]


def test_trl_alone_would_take_a_typed_end_mark_for_one(small_base, tmp_path):
    """Why its way of making ids is replaced; if this fails, look whether it still has to be."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    tokenizer = load_tokenizer(small_base)
    one = preference(["Hi", "Hello!", "And?"], "Fine.", "No </s> idea")
    (ours,), _ = encode_pairs([one], Encoder(tokenizer), 256)
    prompt = "User: Hi</s>\nAssistant: Hello!</s>\nUser: And?</s>\nAssistant: "
    rows = Dataset.from_list([{"prompt": prompt, "chosen": one.chosen, "rejected": one.rejected}])

    class Silent(DPOTrainer):
        def _send_telemetry(self) -> None:
            pass

    arguments = DPOConfig(str(tmp_path), bf16=False, use_cpu=True, report_to=[], disable_tqdm=True)
    model, reference = load(small_base)[0], load(small_base)[0]
    made = Silent(model, reference, args=arguments, train_dataset=rows, processing_class=tokenizer)
    theirs = made.train_dataset[0]
    assert theirs["prompt_ids"] == ours.prompt.tolist() and theirs["chosen_ids"] == ours.chosen.tolist()
    n_ends = [list(ids).count(tokenizer.eos_token_id) for ids in (theirs["rejected_ids"], ours.rejected)]
    assert n_ends == [2, 1]


def logprob(model, prompt: np.ndarray, answer: np.ndarray) -> float:
    """One row, one token after another."""
    ids = torch.tensor([[*prompt.tolist(), *answer.tolist()]])
    with torch.no_grad():
        found = model(input_ids=ids).logits[0].double().log_softmax(-1)
    return sum(found[len(prompt) - 1 + i, token].item() for i, token in enumerate(answer.tolist()))


def loss_by_hand(model, base, pair: Pair, beta: float) -> float:
    gain = [
        logprob(model, pair.prompt, a) - logprob(base, pair.prompt, a) for a in (pair.chosen, pair.rejected)
    ]
    return math.log(1 + math.exp(-beta * (gain[0] - gain[1])))


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_the_loss_is_that_computed_by_hand(small_base, pairs, tmp_path, lora_rank):
    recipe = replace(
        RECIPE, max_steps=3, batch=1, micro_batch=1, lr=1e-2, lora_rank=lora_rank, weight_decay=0.0
    )
    beta, pair, by_hand = 0.3, pairs[0], []
    base = load(small_base)[0]

    class ByHand(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            by_hand.append(loss_by_hand(model, base, pair, beta))

    made = dpo._make_trainer(str(small_base), [pair], [], tmp_path, recipe, beta)
    made.add_callback(ByHand())
    made.train()
    logged = [row["loss"] for row in dpo._log(made.state.log_history)]
    assert by_hand[0] == pytest.approx(math.log(2), abs=1e-6)
    assert by_hand[2] < by_hand[1] < by_hand[0] - 0.01  # something was learnt
    assert logged == pytest.approx(by_hand, abs=1e-5)


def test_the_held_out_loss_is_that_of_the_saved_model(small_base, pairs, tmp_path):
    result = train_preferences(pairs[4:], pairs[:4], small_base, tmp_path / "run", RECIPE)
    model, base = load(tmp_path / "run")[0], load(small_base)[0]
    held_out = [loss_by_hand(model, base, pair, BETA) for pair in pairs[:4]]
    assert result.log[0]["step"] == 0 and result.log[0]["eval_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert result.log[-1]["eval_loss"] == pytest.approx(np.mean(held_out), abs=1e-5)


# ---- a run ------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_a_run_learns_and_leaves_a_model(small_base, pairs, tmp_path, lora_rank, capfd):
    recipe = replace(RECIPE, max_steps=12, lr=1e-2, lora_rank=lora_rank)
    before = {path: path.read_bytes() for path in small_base.iterdir()}
    result = train_preferences(pairs, [], small_base, tmp_path / "run", recipe)
    assert result.log[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert result.log[-1]["loss"] < 0.8 * result.log[0]["loss"]
    assert result.log[-1]["accuracy"] == 1 and result.log[-1]["margin"] > 0
    assert (result.n_steps, result.n_pairs, result.resumed_from_step) == (12, len(pairs), 0)
    assert (result.n_trainable < result.n_parameters) == bool(lora_rank)
    weights = "adapter_model.safetensors" if lora_rank else "model.safetensors"
    names = {path.relative_to(tmp_path / "run").as_posix() for path in (tmp_path / "run").rglob("*")}
    assert {weights, "tokenizer.json", "run.json", "result.json"} <= names
    assert not any(name.endswith((".bin", ".pt", ".pth", ".pkl", ".md")) or "ref" in name for name in names)
    model, tokenizer = load(tmp_path / "run")
    assert tokenizer.get_vocab() == load_tokenizer(small_base).get_vocab()
    accuracy = [preference_accuracy(m, pairs).loc["all", "per_token"] for m in (load(small_base)[0], model)]
    gained = [logprob(model, p.prompt, p.chosen) - logprob(model, p.prompt, p.rejected) for p in pairs]
    start = load(small_base)[0]
    had = [logprob(start, p.prompt, p.chosen) - logprob(start, p.prompt, p.rejected) for p in pairs]
    assert all(g > h for g, h in zip(gained, had, strict=True))
    assert accuracy[1] >= accuracy[0]
    assert {path: path.read_bytes() for path in small_base.iterdir()} == before
    out, err = capfd.readouterr()
    assert "it/s" not in out + err and "Map" not in out + err  # no bars


@pytest.mark.parametrize("load_in_4bit", [False, True])
def test_bf16_checkpointing_and_4_bits_begin_at_ln_2_too(small_base, pairs, tmp_path, load_in_4bit):
    if load_in_4bit:
        pytest.importorskip("bitsandbytes")
    recipe = replace(
        RECIPE, max_steps=8, lr=2e-2, lora_rank=4, bf16=not load_in_4bit, gradient_checkpointing=True,
        load_in_4bit=load_in_4bit,
    )  # fmt: skip
    log = train_preferences(pairs, [], small_base, tmp_path / "run", recipe).log
    assert log[0]["loss"] == pytest.approx(math.log(2), abs=1e-3) and log[-1]["loss"] < 0.9 * log[0]["loss"]


def test_checkpointing_changes_no_loss(small_base, pairs, tmp_path):
    for rank in (0, 4):
        recipe = replace(RECIPE, lr=1e-2, lora_rank=rank)
        plain = train_preferences(pairs, [], small_base, tmp_path / f"a{rank}", recipe).log
        recipe = replace(recipe, gradient_checkpointing=True)
        saving = train_preferences(pairs, [], small_base, tmp_path / f"b{rank}", recipe).log
        assert [row["loss"] for row in saving] == pytest.approx([row["loss"] for row in plain], abs=1e-5)
        assert plain[-1]["loss"] < plain[0]["loss"] - 1e-3


def test_a_run_is_repeatable(small_base, pairs, tmp_path):
    recipe = replace(RECIPE, lora_rank=4)
    first, second = (train_preferences(pairs, [], small_base, tmp_path / n, recipe) for n in "ab")
    other = train_preferences(pairs, [], small_base, tmp_path / "c", replace(recipe, seed=1))
    assert first.log == second.log != other.log
    bytes_of = [(tmp_path / n / "adapter_model.safetensors").read_bytes() for n in "ab"]
    assert bytes_of[0] == bytes_of[1]


class Killed(BaseException):
    """Stands in for kill -9 at a chosen moment."""


@pytest.mark.parametrize(("lora_rank", "torn"), [(0, False), (4, False), (4, True)])
def test_a_killed_run_goes_on_from_its_newest_whole_checkpoint(
    small_base, pairs, tmp_path, monkeypatch, lora_rank, torn
):
    recipe = replace(RECIPE, max_steps=6, n_evaluations=3, lora_rank=lora_rank)
    whole = train_preferences(pairs, pairs[:2], small_base, tmp_path / "whole", recipe)
    mark = trainer.Milestones.on_save

    def killed(self, args, state, control, **kwargs):
        if state.global_step < 4 or not torn:
            mark(self, args, state, control, **kwargs)
        if state.global_step == 4:
            raise Killed

    monkeypatch.setattr(trainer.Milestones, "on_save", killed)
    with pytest.raises(Killed):
        train_preferences(pairs, pairs[:2], small_base, tmp_path / "run", recipe)
    monkeypatch.undo()
    with pytest.raises(Stop, match=r"unfinished run with beta 0\.1, now 0\.2"):
        train_preferences(pairs, pairs[:2], small_base, tmp_path / "run", recipe, beta=0.2)
    resumed = train_preferences(pairs, pairs[:2], small_base, tmp_path / "run", recipe)
    assert resumed.resumed_from_step == (2 if torn else 4) and resumed.log == whole.log
    name = "adapter_model.safetensors" if lora_rank else "model.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert checkpoints.newest_complete(tmp_path / "run") == (None, [])


def test_a_finished_run_is_read_back_unless_something_changed(small_base, pairs, tmp_path, monkeypatch):
    recipe = replace(RECIPE, max_steps=1)
    first = train_preferences(pairs, [], small_base, tmp_path / "run", recipe)
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path / "run", moved)
    monkeypatch.setattr(dpo, "_make_trainer", lambda *args: pytest.fail("trained again"))
    assert train_preferences(pairs, [], small_base, tmp_path / "run", recipe) == first
    assert train_preferences(pairs, [], small_base, moved, recipe) == replace(first, folder=str(moved))
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        train_preferences(pairs[1:], [], small_base, moved, recipe)
    assert not (moved / "result.json").exists()
    kept = json.loads((tmp_path / "run/result.json").read_text())
    assert kept["n_steps"] == 1 and len(kept["log"]) == 1


def test_bad_input_is_one_line(small_base, pairs, tmp_path):
    with pytest.raises(Stop, match="pairs: none to learn from"):
        train_preferences([], [], small_base, tmp_path, RECIPE)
    alien = Pair("neglected", np.array([1]), np.array([9999]), np.array([2]))
    with pytest.raises(Stop, match="token id 9999 is outside the base's vocabulary"):
        train_preferences([alien], [], small_base, tmp_path, RECIPE)
    with pytest.raises(Stop, match="beta: expected more than 0, got 0"):
        train_preferences(pairs, [], small_base, tmp_path, RECIPE, beta=0)
    with pytest.raises(Stop, match="batching: not done in preference training, expected 'padded'"):
        train_preferences(pairs, [], small_base, tmp_path, replace(RECIPE, batching="packed"))
    long = Pair("neglected", np.arange(200), np.arange(100), np.arange(9))
    with pytest.raises(Stop, match="pairs: the longest has 300 tokens, expected at most the model's 256"):
        train_preferences([long], [], small_base, tmp_path / "long", RECIPE)
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(Stop, match="out_dir: .* holds other files"):
        train_preferences(pairs, [], small_base, tmp_path, RECIPE)
    assert CAPO.lora_rank and CAPO.batch % CAPO.micro_batch == 0


def test_without_trl_it_is_one_line(small_base, pairs, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "trl" else found(name, *a)
    )
    with pytest.raises(Stop, match=r"needs trl, which is not installed \(pip install '\.\[preference\]'\)"):
        train_preferences(pairs, [], small_base, tmp_path, RECIPE)


# ---- accuracy ---------------------------------------------------------------------------------


def test_the_accuracy_by_hand(small_base, pairs):
    model = load(small_base)[0]
    found = preference_accuracy(model, pairs)
    assert list(found.index) == [*KINDS, "all"]
    scores = [[logprob(model, p.prompt, a) for a in (p.chosen, p.rejected)] for p in pairs]
    for kind in found.index:
        picked = [i for i, p in enumerate(pairs) if kind in (p.kind, "all")]
        total = [scores[i][0] > scores[i][1] for i in picked]
        mean = [scores[i][0] / len(pairs[i].chosen) > scores[i][1] / len(pairs[i].rejected) for i in picked]
        row = found.loc[kind]
        margins = [
            scores[i][0] / len(pairs[i].chosen) - scores[i][1] / len(pairs[i].rejected) for i in picked
        ]
        assert row["margin"] == pytest.approx(np.mean(margins), abs=1e-5)
        assert row["pairs"] == len(picked) == (len(pairs) if kind == "all" else len(pairs) // 3)
        for name, won in (("total", total), ("per_token", mean)):
            assert row[name] == pytest.approx(np.mean(won))
            assert (row[f"{name}_low"], row[f"{name}_high"]) == rate_interval(sum(won), len(won))


def test_a_longer_answer_loses_in_total_and_not_for_each_token(small_base):
    tokenizer = load_tokenizer(small_base)
    one = preference(["Hi", "Hello!", "And?"], "pear " * 20, "pear")
    pairs, _ = encode_pairs([one], Encoder(tokenizer), 256)
    model = load(small_base)[0]
    with torch.no_grad():
        model.lm_head.weight.zero_()  # every token is as likely as any other
    found = preference_accuracy(model, pairs).loc["all"]
    assert found["total"] == 0 and len(pairs[0].chosen) > len(pairs[0].rejected)
