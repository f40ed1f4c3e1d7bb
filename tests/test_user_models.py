"""The published user models' formats: to the letter, as chat templates, and as labels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from some_tokenizers import FORMAT, dialogues, learnt_runs
from transformers import AutoTokenizer

from ultrachat.errors import Stop
from ultrachat.records import Dialogue
from ultrachat.sft import Encoder
from ultrachat.user_models import USER_MODELS, chat_template, with_template

TWO = Dialogue.from_rounds([("Hi", "Hello!"), ("What is a pear?", "A fruit.")])
TO_THE_LETTER = {
    (
        "platolm",
        "user",
    ): "<s>A chat between a curious human and an artificial intelligence assistant.\nThe human can ask further "
    "questions based on previous conversations, or he can directly ask brand new questions without any conversations as "
    "context.\n\nHuman: <s>Hi</s>Assistant: <s>Hello!</s>Human: <s>What is a pear?</s>",
    (
        "platolm",
        "assistant",
    ): "<s>A chat between a curious human and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the human's questions.\n\nHuman: <s>Hi</s>Assistant: <s>Hello!</s>Human: "
    "<s>What is a pear?</s>Assistant: <s>A fruit.</s>",
    ("parrot", "user"): "<s>USER: Hi</s>ASSISTANT: Hello!</s>USER: What is a pear?</s>",
    (
        "parrot",
        "assistant",
    ): "<s>USER: Hi</s>ASSISTANT: Hello!</s>USER: What is a pear?</s>ASSISTANT: A fruit.</s>",
}
CASES = list(TO_THE_LETTER)


@pytest.mark.parametrize(("format", "learn"), CASES)
def test_the_format_to_the_letter(tokenizers, format, learn):
    tokenizer = tokenizers["tiny"]
    example = Encoder(tokenizer, format, learn).encode(TWO)
    assert tokenizer.decode(example.input_ids.tolist()) == TO_THE_LETTER[format, learn]
    learnt = {"user": ["Hi</s>", "What is a pear?</s>"], "assistant": ["Hello!</s>", "A fruit.</s>"]}[learn]
    space = " " if format == "parrot" else ""  # it belongs to the message's first token
    assert [tokenizer.decode(run) for run in learnt_runs(example)] == [space + text for text in learnt]


@pytest.mark.parametrize(("format", "learn"), CASES)
def test_ids_and_prompts_are_those_of_the_saved_template(named, format, learn):
    """So any server that applies a tokenizer's template asks the model as it was trained."""
    name, tokenizer = named
    if (name, format) == ("unigram", "parrot"):
        pytest.skip("this tokenizer's space is a token by itself, which a server would have to write first")
    encoder = Encoder(tokenizer, format, learn)
    # each begins with "a": which tokens a message's first letters share with the space before it, no prompt can know
    said = [("user", "a b?"), ("assistant", "a c."), ("user", "a plum? 🍐"), ("assistant", "a fruit too.")]
    front = ("system", USER_MODELS[format].system[learn])  # a server wants one message at least
    for messages in ([front], *(said[:n] for n in range(1, len(said) + 1))):
        messages = [{"role": role, "content": text} for role, text in messages]
        own = encoder.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert encoder.prompt_after([(m["role"], m["content"]) for m in messages]) == own
    assert encoder.prompt_after([]) == encoder.prompt_after([front])
    end = 3 if learn == "user" else 4
    messages = [{"role": role, "content": text} for role, text in said[:end]]
    whole = encoder.encode(Dialogue.from_rounds([(said[0][1], said[1][1]), (said[2][1], said[3][1])]))
    assert whole.input_ids.tolist() == encoder.tokenizer.apply_chat_template(messages, return_dict=False)


@settings(max_examples=40, deadline=None)
@given(dialogue=dialogues, case=st.sampled_from(CASES))
def test_exactly_the_messages_are_learnt_whatever_they_say(named, dialogue, case):
    name, tokenizer = named
    format, learn = case
    example = Encoder(tokenizer, format, learn).encode(dialogue)
    runs = learnt_runs(example)
    messages = [m.content for m in dialogue.messages if m.role == learn]
    end = FORMAT.get(name, ("<s>", "</s>"))[1]
    decoded = [tokenizer.decode(run) for run in runs]
    # before a message without `<s>` a token may hold the space of "USER: " too, and is learnt with it
    assert [d.lstrip(" ") for d in decoded] == [f"{m}{end}".lstrip(" ") for m in messages]
    marks = (example.input_ids == tokenizer.eos_token_id).sum()
    n_said = len(dialogue.messages) - (learn == "user")
    n_begins = 1 + n_said * (format == "platolm")
    same = tokenizer.bos_token_id == tokenizer.eos_token_id
    assert marks == n_said + (n_begins if same else 0)
    if not same:
        assert (example.input_ids == tokenizer.bos_token_id).sum() == n_begins


def test_a_system_message_takes_the_place_of_the_text(tokenizers):
    tokenizer = tokenizers["tiny"]
    for format in USER_MODELS:
        found = Encoder(tokenizer, format, "user", system="Be a pirate.\n").encode(TWO)
        text = tokenizer.decode(found.input_ids.tolist())
        assert text.startswith("<s>Be a pirate.\n") and "curious" not in text
    one = USER_MODELS["platolm"].system["user"]
    plain, told = (Encoder(tokenizer, "platolm", "user", system).prompt_after([]) for system in (None, one))
    assert plain == told


def test_the_template_travels_with_the_tokenizer(tokenizers, tmp_path):
    encoder = Encoder(tokenizers["tiny"], "platolm", "user")
    encoder.tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    told = again.apply_chat_template(
        [{"role": "assistant", "content": "Hi"}], add_generation_prompt=True, return_dict=False
    )
    assert told == encoder.prompt_after([("assistant", "Hi")])
    assert tokenizers["tiny"].chat_template is None  # the base's own stays as it was


def test_bad_names_and_tokenizers_are_one_line(tokenizers):
    with pytest.raises(Stop, match="template: expected one of platolm, parrot, got 'vicuna'"):
        chat_template("vicuna", "user")
    bare = Encoder(tokenizers["tiny"], "parrot").tokenizer
    bare.eos_token = None
    with pytest.raises(Stop, match="tokenizer: has no eos_token, expected one for format 'parrot'"):
        with_template(bare, "parrot", "user")
    assert np.all([one.temperature == 0.7 and one.max_new_tokens == 512 for one in USER_MODELS.values()])
