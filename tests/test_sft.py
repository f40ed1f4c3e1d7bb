"""Ids and labels: by hand, against the authors' algorithm, and as properties over four tokenizers."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from some_tokenizers import FORMAT, dialogues, learnt_runs, plain
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ultrachat import sft
from ultrachat.errors import Stop
from ultrachat.records import Dialogue
from ultrachat.sections import IGNORE_INDEX
from ultrachat.sft import Encoder

TWO = Dialogue.from_rounds([("Hi", "Hello!"), ("What is a pear?", "A fruit.")])
TWO_TEXT = "<s>User: Hi</s>\nAssistant: Hello!</s>\nUser: What is a pear?</s>\nAssistant: A fruit.</s>"


# ---- the format -------------------------------------------------------------------------------


def upstream(dialogue: Dialogue, tokenizer: PreTrainedTokenizerBase, bos: str, eos: str) -> tuple[list, list]:
    """The authors' algorithm in other words: strings with special tokens in them, assistant tag apart."""
    ids: list[int] = []
    labels: list[int] = []

    def add(text: str, learn: bool) -> None:
        new = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids.extend(new)
        labels.extend(new if learn else [IGNORE_INDEX] * len(new))

    for number, (user, assistant) in enumerate(dialogue.rounds):
        add((bos if number == 0 else "\n") + "User: " + user + eos, False)
        add("\nAssistant: ", False)
        add(assistant + eos, True)
    return ids, labels


def test_the_format_and_the_mask_by_hand(tokenizers):
    tokenizer = tokenizers["tiny"]
    example = Encoder(tokenizer).encode(TWO)
    assert tokenizer.decode(example.input_ids.tolist()) == TWO_TEXT
    assert [tokenizer.decode(run) for run in learnt_runs(example)] == ["Hello!</s>", "A fruit.</s>"]
    assert (example.input_ids == tokenizer.bos_token_id).sum() == 1
    assert example.n_learnt_tokens == (example.labels != IGNORE_INDEX).sum() < example.n_tokens


def test_the_user_can_be_learnt_instead(tokenizers):
    tokenizer = tokenizers["tiny"]
    example = Encoder(tokenizer, learn="user").encode(TWO)
    # the last answer is left out: nothing is learnt after it
    assert tokenizer.decode(example.input_ids.tolist()) == TWO_TEXT.removesuffix("\nAssistant: A fruit.</s>")
    assert [tokenizer.decode(run) for run in learnt_runs(example)] == ["Hi</s>", "What is a pear?</s>"]


def test_a_system_prompt_is_one_more_user_turn_and_never_learnt(tokenizers):
    tokenizer = tokenizers["tiny"]
    for learn, learnt in (
        ("assistant", ["Hello!</s>", "A fruit.</s>"]),
        ("user", ["Hi</s>", "What is a pear?</s>"]),
    ):
        example = Encoder(tokenizer, learn=learn, system="Be brief.").encode(TWO)
        text = TWO_TEXT if learn == "assistant" else TWO_TEXT.removesuffix("\nAssistant: A fruit.</s>")
        assert tokenizer.decode(example.input_ids.tolist()) == text.replace("<s>", "<s>User: Be brief.</s>\n")
        assert [tokenizer.decode(run) for run in learnt_runs(example)] == learnt


@settings(max_examples=40, deadline=None)
@given(dialogue=st.lists(st.tuples(plain, plain), min_size=1, max_size=4).map(Dialogue.from_rounds))
def test_equals_the_authors_algorithm(named, dialogue):
    name, tokenizer = named
    example = Encoder(tokenizer).encode(dialogue)
    ids, labels = upstream(dialogue, tokenizer, *FORMAT.get(name, ("<s>", "</s>")))
    assert example.input_ids.tolist() == ids
    assert example.labels.tolist() == labels


@settings(max_examples=60, deadline=None)
@given(dialogue=dialogues, learn=st.sampled_from(["assistant", "user"]))
def test_learnt_tokens_decode_to_the_messages_and_nothing_in_them_is_special(named, dialogue, learn):
    name, tokenizer = named
    example = Encoder(tokenizer, learn=learn).encode(dialogue)
    eos = tokenizer.eos_token_id
    messages = [m.content for m in dialogue.messages if m.role == learn]
    runs = learnt_runs(example)
    assert [run[-1] for run in runs] == [eos] * len(messages)
    assert [tokenizer.decode(run[:-1]) for run in runs] == messages
    # exactly one BOS in front and one EOS per message, whatever the messages say
    n_special = np.isin(example.input_ids, tokenizer.all_special_ids).sum()
    n_unknown = 0 if tokenizer.unk_token_id is None else (example.input_ids == tokenizer.unk_token_id).sum()
    assert n_special - n_unknown == 1 + len(dialogue.messages) - (learn == "user")
    assert example.input_ids[0] == tokenizer.bos_token_id


def test_a_prompt_is_what_training_saw_before_the_answer(named):
    _, tokenizer = named
    for system in (None, "Be brief."):
        whole = Encoder(tokenizer, system=system).encode(TWO)
        starts = np.flatnonzero((whole.labels != IGNORE_INDEX) & (np.roll(whole.labels, 1) == IGNORE_INDEX))
        assert Encoder(tokenizer, system=system).prompt("Hi") == whole.input_ids[: starts[0]].tolist()
        second = Encoder(tokenizer, system=system).prompt("What is a pear?", TWO.rounds[:1])
        assert second == whole.input_ids[: starts[1]].tolist()


def test_a_user_model_is_asked_as_it_was_trained(named):
    _, tokenizer = named
    for format in ("ultrallama", "platolm", "parrot"):
        encoder = Encoder(tokenizer, format, learn="user")
        whole = encoder.encode(Dialogue.from_rounds([("a b?", "a c."), ("a d?", "a e.")]))
        starts = np.flatnonzero((whole.labels != IGNORE_INDEX) & (np.roll(whole.labels, 1) == IGNORE_INDEX))
        assert encoder.prompt_after([]) == whole.input_ids[: starts[0]].tolist()
        assert (
            encoder.prompt_after([("user", "a b?"), ("assistant", "a c.")])
            == whole.input_ids[: starts[1]].tolist()
        )


def test_bad_input_is_one_line(tokenizers):
    with pytest.raises(Stop, match="learn: expected 'assistant' or 'user', got 'bot'"):
        Encoder(tokenizers["tiny"], learn="bot").encode(TWO)
    with pytest.raises(
        Stop, match="format: expected one of ultrallama, template, platolm, parrot, got 'alpaca'"
    ):
        Encoder(tokenizers["tiny"], format="alpaca")
    with pytest.raises(Stop, match="tokenizer: has no chat_template"):
        Encoder(tokenizers["tiny"], format="template")
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizers["tiny"]._tokenizer)
    with pytest.raises(Stop, match="no eos_token"):
        Encoder(bare).encode(TWO)


# ---- pictures ---------------------------------------------------------------------


def test_the_mask_can_be_seen_and_is_harmless(tokenizers):
    nasty = Dialogue.from_rounds([("<script>alert(1)</script>", "a < b & ünïcödé 你好")])
    shown = sft.show_mask(Encoder(tokenizers["tiny"]).encode(nasty), tokenizers["tiny"]).data
    assert "<script" not in shown
    marked = re.findall(r"<span style='[^']*underline[^']*'>(.*?)</span>", shown, re.DOTALL)
    assert marked == ["a &lt; b &amp; ünïcödé 你好&lt;/s&gt;"]


def test_importing_the_module_does_not_import_torch():
    import subprocess
    import sys

    code = "import sys, ultrachat.sft; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
