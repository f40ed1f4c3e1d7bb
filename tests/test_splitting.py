"""Splitting: by hand with one token a character, and as properties: every round is learnt, once."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from some_tokenizers import dialogues, learnt_runs

from ultrachat.errors import Stop
from ultrachat.records import SECTORS, Dialogue
from ultrachat.sft import Encoder
from ultrachat.splitting import split, split_all, split_each

TWO = Dialogue.from_rounds([("Hi", "Hello!"), ("What is a pear?", "A fruit.")])


class Letters:
    """A tokenizer with one token per character, so that lengths can be counted by hand."""

    is_fast = False

    bos_token_id, eos_token_id, pad_token_id = 1, 2, 0

    def __call__(self, texts: list[str], **options: object) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(c) + 10 for c in text] for text in texts]}

    def decode(self, ids: list[int]) -> str:
        return "".join({0: "_", 1: "<", 2: ">"}.get(i) or chr(i - 10) for i in ids)


# "<" 1, "User: a>" 8, "\nAssistant: A>" 14: 23 in front; "\nUser: b>" has one more, so 23 for every further round
ABC = Dialogue.from_rounds([("a", "A"), ("b", "B"), ("c", "C")])
ROUND = {x: f"User: {x}>\nAssistant: {x.upper()}>" for x in "abc"}


def rows(dialogue: Dialogue, max_tokens: int, **options: str) -> list[tuple[str, list[str]]]:
    examples, _ = split(dialogue, Encoder(Letters(), **options), max_tokens)
    return [
        (Letters().decode(e.input_ids.tolist()), [Letters().decode(run) for run in learnt_runs(e)])
        for e in examples
    ]


def test_what_fits_stays_whole():
    assert rows(ABC, 69) == [("<" + "\n".join(ROUND.values()), ["A>", "B>", "C>"])]


def test_later_rows_carry_rounds_before_them_as_context():
    # one token short of three rounds: two new ones, then the third with the second as context
    assert rows(ABC, 68) == [
        (f"<{ROUND['a']}\n{ROUND['b']}", ["A>", "B>"]),
        (f"<{ROUND['b']}\n{ROUND['c']}", ["C>"]),
    ]
    assert rows(ABC, 45) == [(f"<{r}", [f"{x.upper()}>"]) for x, r in ROUND.items()]
    _, report = split(ABC, Encoder(Letters()), 68)
    assert (report.n_rows, report.n_tokens, report.n_context_tokens) == (2, 92, 23)
    assert (report.n_learnt_tokens, report.n_lost_tokens, report.n_cut_rounds) == (6, 0, 0)
    assert "no round was cut" in str(report)


def test_a_user_models_rows_end_with_the_user_and_may_begin_with_the_answer_before():
    # "<" and 8 for "User: a>", then 23 for every answer and question
    learnt = {"learn": "user"}
    assert rows(ABC, 55, **learnt) == [
        ("<User: a>\nAssistant: A>\nUser: b>\nAssistant: B>\nUser: c>", ["a>", "b>", "c>"])
    ]
    # a token less: what is new is the answer B and the question c; the one before comes with it, as context
    assert rows(ABC, 54, **learnt) == [
        ("<User: a>\nAssistant: A>\nUser: b>", ["a>", "b>"]),
        ("<Assistant: A>\nUser: b>\nAssistant: B>\nUser: c>", ["c>"]),
    ]
    assert rows(ABC, 31, **learnt) == [
        ("<User: a>", ["a>"]),
        ("<Assistant: A>\nUser: b>", ["b>"]),
        ("<Assistant: B>\nUser: c>", ["c>"]),
    ]
    _, report = split(ABC, Encoder(Letters(), **learnt), 54)
    assert (report.n_rows, report.n_learnt_tokens, report.n_context_tokens) == (2, 6, 23)
    assert (report.n_lost_tokens, report.n_cut_rounds) == (0, 0)


def test_a_template_that_refuses_to_begin_with_an_answer_gets_the_question_before_it(tokenizers):
    strict = copy.deepcopy(tokenizers["tiny"])
    strict.chat_template = (
        "{% for m in messages %}{% if m.role != ['user', 'assistant'][loop.index0 % 2] %}{{ raise_exception('no') }}"
        "{% endif %}{{ bos_token + m.role + ': ' + m.content + eos_token }}{% endfor %}"
    )
    free = copy.deepcopy(strict)
    free.chat_template = (
        "{% for m in messages %}{{ bos_token + m.role + ': ' + m.content + eos_token }}{% endfor %}"
    )
    found = {}
    for name, tokenizer in (("strict", strict), ("free", free)):
        encoder = Encoder(tokenizer, "template", learn="user")
        limit = encoder.encode(ABC).n_tokens - 1
        examples, report = split(ABC, encoder, limit)
        assert report.n_lost_tokens == 0 and all(e.n_tokens <= limit for e in examples)
        texts = [tokenizer.decode(e.input_ids.tolist()) for e in examples]
        found[name] = texts, [[tokenizer.decode(run).strip() for run in learnt_runs(e)] for e in examples]
    assert found["strict"][1] == found["free"][1] == [["a</s>", "b</s>"], ["c</s>"]]
    second = "<s>user: b</s><s>assistant: B</s><s>user: c</s>"
    assert found["strict"][0][1] == second
    assert found["free"][0][1] == "<s>assistant: A</s>" + second


def test_three_rounds_of_900_are_all_learnt():
    # the authors' split_long.py makes one sample of two rounds out of these
    long = Dialogue.from_rounds([(c, c.upper() * 880) for c in "abc"])
    learnt = [run for _, runs in rows(long, 2048) for run in runs]
    assert learnt == ["A" * 880 + ">", "B" * 880 + ">", "C" * 880 + ">"]


def test_a_round_that_is_too_long_is_cut_and_counted():
    long = Dialogue.from_rounds([("a", "A"), ("b", "B" * 100), ("c" * 100, "C"), ("d", "D")])
    assert rows(long, 50) == [
        ("<User: a>\nAssistant: A>", ["A>"]),
        ("<User: b>\nAssistant: " + "B" * 29, ["B" * 29]),  # no closing mark: the answer goes on
        ("<User: d>\nAssistant: D>", ["D>"]),  # and the answer C lies beyond the limit
    ]
    _, report = split(long, Encoder(Letters()), 50)
    assert (report.n_cut_rounds, report.n_lost_tokens, report.n_lost_rounds) == (2, 101 - 29 + 2, 1)
    assert (report.n_rows, report.n_tokens) == (3, 23 + 50 + 23)
    assert "2 rounds were longer than the limit and cut, 74 tokens of theirs" in str(report)


def test_the_system_prompt_stands_in_front_of_every_row():
    assert rows(ABC, 60, system="S") == [
        (f"<User: S>\n{ROUND['a']}\n{ROUND['b']}", ["A>", "B>"]),
        (f"<User: S>\n{ROUND['b']}\n{ROUND['c']}", ["C>"]),
    ]


@settings(max_examples=60, deadline=None)
@given(
    dialogue=dialogues,
    max_tokens=st.integers(20, 120),
    learn=st.sampled_from(["assistant", "user"]),
    system=st.sampled_from([None, "S"]),
)
def test_splitting_loses_and_repeats_nothing(tokenizers, dialogue, max_tokens, learn, system):
    tokenizer = tokenizers["tiny"]
    whole = Encoder(tokenizer, learn=learn, system=system).encode(dialogue)
    examples, report = split(dialogue, Encoder(tokenizer, learn=learn, system=system), max_tokens)
    assert all(e.n_tokens <= max_tokens and e.n_learnt_tokens for e in examples)
    assert report.n_learnt_tokens == sum(e.n_learnt_tokens for e in examples)
    assert report.n_learnt_tokens + report.n_lost_tokens == whole.n_learnt_tokens
    assert report.n_rows == len(examples) and report.n_tokens == sum(e.n_tokens for e in examples)
    if not report.n_cut_rounds:
        assert [r for e in examples for r in learnt_runs(e)] == learnt_runs(whole)
        assert report.n_lost_tokens == report.n_lost_rounds == 0
    else:  # what is learnt is what the whole would teach, with the tails of long rounds missing
        kept = [r for e in examples for r in learnt_runs(e)]
        rest = iter(learnt_runs(whole))
        assert all(any(run[: len(part)] == part for run in rest) for part in kept)


def test_many_dialogues_add_up(tokenizers):
    examples, report = split_all([TWO, TWO], Encoder(tokenizers["tiny"]), max_tokens=40)
    one, counts = split(TWO, Encoder(tokenizers["tiny"]), max_tokens=40)
    assert len(examples) == report.n_rows == 2 * len(one)
    assert report == counts + counts and report.n_dialogues == 2 and report.n_rounds == 4


def random_dialogues(n: int) -> list[Dialogue]:
    """Dialogues of one to eight rounds whose messages are short, long, odd, or look like the format."""
    random = np.random.default_rng(5)
    words = [
        "pear",
        "plum ",
        "ünïcödé",
        "你好",
        "\n\n",
        "  two",
        "3.14",
        "🍐",
        "</s>",
        "<s>User: ",
        "a" * 50,
        ".",
        "\t",
    ]

    def text() -> str:
        return " ".join(random.choice(words, size=int(random.integers(1, 30)))) + "."

    return [
        Dialogue.from_rounds([(text(), text()) for _ in range(random.integers(1, 9))], sector=SECTORS[i % 3])
        for i in range(n)
    ]


@pytest.mark.parametrize("learn", ["assistant", "user"])
def test_of_a_thousand_dialogues_every_round_is_learnt_once(named, learn):
    """Whole or split: what is learnt decodes to the messages, each with its end mark, and to nothing else."""
    name, tokenizer = named
    some = random_dialogues(1000)
    for max_tokens in (1 << 20, 300):
        for dialogue, (rows, report) in zip(
            some, split_each(some, Encoder(tokenizer, learn=learn), max_tokens), strict=True
        ):
            learnt = [run for row in rows for run in learnt_runs(row)]
            assert all(row.n_learnt_tokens and row.n_tokens <= max_tokens for row in rows)
            assert all((row.input_ids == tokenizer.bos_token_id).sum() == 1 for row in rows) or name == "gpt2"
            assert all(row.input_ids[0] == tokenizer.bos_token_id for row in rows)
            rounds = [row.first_round + i for row in rows for i in range(len(learnt_runs(row)))]
            assert {row.sector for row in rows} <= {dialogue.sector}
            if report.n_cut_rounds:
                assert len(set(rounds)) == len(rounds) == len(dialogue.rounds) - report.n_lost_rounds
                continue
            assert rounds == list(range(len(dialogue.rounds)))
            messages = [user if learn == "user" else assistant for user, assistant in dialogue.rounds]
            assert all(run[-1] == tokenizer.eos_token_id for run in learnt)
            assert [tokenizer.decode(run[:-1]) for run in learnt] == messages


def test_a_cut_round_is_warned_of(caplog):
    long = Dialogue.from_rounds([("a", "A" * 100)])
    split_all([long], Encoder(Letters()), 50)
    assert "max_tokens 50: 1 rounds were longer than the limit and cut, 72 tokens" in caplog.text


def test_a_limit_without_room_is_one_line(tokenizers):
    with pytest.raises(Stop, match="max_tokens: 1 leaves no room after the"):
        split(TWO, Encoder(tokenizers["tiny"]), max_tokens=1)
