"""Lists and dialogues as models really write them; nothing ever raises."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ultrachat.parsing import parse_dialogue, parse_list
from ultrachat.runs import DATA

THREE = ["Why is the sky blue?", "How far is 1.5 miles?", "What's new in 2023: a list?"]


@pytest.mark.parametrize(
    "text",
    [
        "1. {}\n2. {}\n3. {}",
        "1) {}\n2) {}\n3) {}",
        "(1) {}\n(2) {}\n(3) {}",
        "1: {}\n2: {}\n3: {}",
        "1 - {}\n2 - {}\n3 - {}",
        "1 – {}\n2 – {}\n3 – {}",
        "**1.** {}\n**2.** {}\n**3.** {}",
        "**1. {}**\n**2. {}**\n**3. {}**",
        "1. **{}**\n2. **{}**\n3. **{}**",
        '1. "{}"\n2. "{}"\n3. "{}"',
        "  1. {}  \r\n  2. {}\r\n\r\n  3. {}\r\n",
        "1.{}\n2.{}\n3.{}",
        "- {}\n- {}\n- {}",
        "* {}\n• {}\n– {}",
        "```\n1. {}\n2. {}\n3. {}\n```",
        "```text\n1. {}\n2. {}\n3. {}\n```",
        "Sure! Here are 3 questions:\n\n1. {}\n2. {}\n3. {}\n\nLet me know if you need more!",
        "Here you go:\n- a bullet that is not asked for\n1. {}\n2. {}\n3. {}",
    ],
)
def test_three_items_however_they_are_marked(text):
    parsed = parse_list(text.format(*THREE), 3)
    assert parsed.items == THREE and parsed.complete


def test_a_wrong_count_is_a_fact_not_an_error():
    few = parse_list("1. a\n2. b", 3)
    assert (len(few.items), few.asked, few.complete) == (2, 3, False)
    many = parse_list("1. a\n2. b\n3. c", 2)
    assert many.items == ["a", "b", "c"] and not many.complete
    assert parse_list("", 3) == ([], 3, []) and parse_list("No.", 0).ignored == ["No."]


def test_what_is_no_item_is_ignored_and_shown():
    parsed = parse_list("Here are 2 questions:\n1. a\n2. b\n\nWould you like more?", 2)
    assert parsed.items == ["a", "b"]
    assert parsed.ignored == ["Here are 2 questions:", "Would you like more?"]


def test_an_indented_line_continues_an_item_and_a_blank_one_ends_it():
    text = "1. Write a letter\n   to your landlord\n2. Write a poem\n\n   (short)"
    assert parse_list(text, 2) == (["Write a letter to your landlord", "Write a poem"], 2, ["(short)"])


@pytest.mark.parametrize(
    "line", ["1.5 litres of what?", "3-day trips", "10:30 in the morning", "2023 in review", "1984"]
)
def test_a_number_that_begins_a_sentence_is_no_mark(line):
    assert parse_list(f"1. a\n{line}\n2. b", 2) == (["a", "b"], 2, [line])
    assert parse_list(f"1. {line}", 1).items == [line]


def test_marks_inside_an_item_stay():
    kept = [
        'He said "yes" and "no"',
        "**Bold** start",
        "a **bold** word",
        '"quoted" only in part',
        "2 * 3 * 4",
    ]
    assert parse_list("\n".join(f"{i}. {item}" for i, item in enumerate(kept, 1)), 5).items == kept


def test_every_recorded_list_has_its_items_and_nothing_else_lost():
    n_lists = 0
    for name in ("taxonomy", "openings"):
        for line in (DATA / "recorded" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if "n" not in row["inputs"]:
                continue
            n_lists += 1
            parsed = parse_list(row["response"], row["inputs"]["n"])
            assert parsed.complete, row["inputs"]
            assert all(len(line) < 120 for line in parsed.ignored) and len(parsed.ignored) <= 2
    assert n_lists > 150


anything = st.text(st.characters(exclude_categories=[]), max_size=200) | st.text(
    "12.)(*_-•\"' \n\tab:", max_size=80
)
# an item as a model could mean it: one line, no mark or wrapping that belongs to the list
items = st.lists(
    st.from_regex(r"\A[A-Za-z][A-Za-z0-9 ,.;:?!()'äßé日-]{0,60}[A-Za-z?.]\Z"), min_size=1, max_size=12
)


@settings(max_examples=400)
@given(anything, st.integers(-3, 50))
def test_no_text_raises(text, asked):
    parsed = parse_list(text, asked)
    assert all(item and item == item.strip() for item in parsed.items)
    rounds = parse_dialogue(text)
    assert all(user and assistant for user, assistant in rounds)


@settings(max_examples=200)
@given(items, st.sampled_from(["{}. {}", "{}) {}", "({}) {}", "{}: {}", "**{}.** {}", "{}. **{}**", "- {1}"]))
def test_a_well_formed_list_comes_back(listed, form):
    text = "\n".join(form.format(i, item) for i, item in enumerate(listed, start=1))
    assert parse_list(text, len(listed)) == (listed, len(listed), [])
    framed = f"Certainly! Here is the list you asked for.\n\n{text}\n\nI hope this helps!"
    assert parse_list(framed, len(listed)).items == listed


# ---- dialogues --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("user", "assistant"),
    [("User:", "Assistant:"), ("Human:", "AI:"), ("**User:**", "**Assistant:**"), ("USER :", "assistant :"),
     ("1. User:", "2. Assistant:"), ("*User*:", "*Assistant*:")],
)  # fmt: skip
def test_labelled_paragraphs_are_messages(user, assistant):
    text = f"{user} Hi\nthere\n\n{assistant} Hello!\n\n- one\n- two\n\n{user} A fruit?\n{assistant} A pear."
    if "*:" in user:
        text = text.replace("*:", ":*")
    assert parse_dialogue(text) == [("Hi\nthere", "Hello!\n\n- one\n- two"), ("A fruit?", "A pear.")]


def test_two_messages_of_one_speaker_are_joined_and_an_unanswered_one_is_left_out():
    text = "Here it is.\nAssistant: (waves)\nUser: Hi\nUser: again\nAssistant: Hello\nUser: bye"
    assert parse_dialogue(text) == [("Hi\nagain", "Hello")]


def test_no_labels_no_rounds():
    assert parse_dialogue("") == parse_dialogue("Once upon a time: a user asked.") == []
    assert parse_dialogue("User: only") == []


def test_every_recorded_direct_dialogue_is_read():
    text = (DATA / "recorded" / "dialogues_direct.jsonl").read_text(encoding="utf-8")
    for line in text.splitlines():
        response = json.loads(line)["response"]
        rounds = parse_dialogue(response)
        labels = len(re.findall(r"^(?:\d\. )?(?:User|Human|Assistant):", response, re.MULTILINE))
        assert rounds and labels == 2 * len(rounds)


@settings(max_examples=40)
@given(st.lists(st.tuples(items.map(" ".join), items.map("\n".join)), min_size=1, max_size=3))
def test_a_well_formed_dialogue_comes_back(rounds):
    text = "\n\n".join(f"User: {user}\nAssistant: {assistant}" for user, assistant in rounds)
    assert parse_dialogue(text) == rounds
