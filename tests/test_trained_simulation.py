"""Dialogues with a trained user: who is sent what, when they stop, what the guard does, and the same again by seed."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ultrachat.calls import CallFailed
from ultrachat.errors import Stop
from ultrachat.records import Opening
from ultrachat.simulation import role_exchange
from ultrachat.trained_simulation import Ending, Simulator, simulate_free, simulate_seeded
from ultrachat.user_models import USER_MODELS

OPENING = Opening(
    id="00ab",
    sector="creation_and_generation",
    route="writing",
    task="t",
    subject="s",
    parent="p",
    text="Write a poem.",
)
PLAIN = Simulator("test")


def words(texts):
    return sum(len(text.split()) for text in texts)


class Scripted:
    """Two models that say what the test wants: `user` is called with (round, attempt) and may raise."""

    def __init__(self, user=lambda number, attempt: f"And in month {number}?"):
        self.user, self.requests = user, []

    async def __call__(self, request):
        self.requests.append(request)
        if request.seat == "user":
            return self.user(request.inputs["round"], request.inputs["attempt"])
        return f"Answer {request.inputs['round']}."

    def by(self, seat):
        return [request for request in self.requests if request.seat == seat]


def seeded(ask, ending, simulator=PLAIN):
    return asyncio.run(simulate_seeded(ask, OPENING, simulator, ending))


def test_both_models_are_sent_the_dialogue_as_it_stands():
    ask = Scripted()
    dialogue = seeded(ask, Ending(max_rounds=3))
    assert dialogue.texts == [
        "Write a poem.", "Answer 1.", "And in month 2?", "Answer 2.", "And in month 3?", "Answer 3."
    ]  # fmt: skip
    assert (dialogue.parent, dialogue.sector, dialogue.persona) == ("00ab", OPENING.sector, "test")
    assert dialogue.stop == "round limit"
    said = [{"role": "user", "content": "Write a poem."}, {"role": "assistant", "content": "Answer 1."}]
    first, second = ask.by("user")
    assert first.messages == said and second.messages[:2] == said and len(second.messages) == 4
    assert [r.messages[-1]["role"] for r in ask.requests] == [
        "user",
        "assistant",
        "user",
        "assistant",
        "user",
    ]
    assert (first.temperature, first.max_tokens, first.accept_cut) == (0.7, 512, True)
    assert first.seed != second.seed


def test_a_free_user_opens_the_conversation():
    ask = Scripted()
    simulator = Simulator.of("platolm")
    dialogue = asyncio.run(simulate_free(ask, 7, simulator, Ending(max_rounds=2)))
    assert dialogue.texts[0] == "And in month 1?" and len(dialogue.rounds) == 2
    assert (dialogue.parent, dialogue.sector) == ("free 7", None)
    assert ask.requests[0].messages == [{"role": "system", "content": USER_MODELS["platolm"].system["user"]}]
    other = Scripted()
    asyncio.run(simulate_free(other, 8, simulator, Ending(max_rounds=2)))
    assert other.requests[0].seed != ask.requests[0].seed  # or every free dialogue would begin alike


def test_the_question_that_overflows_the_context_is_not_asked():
    # "Write a poem." 3, every answer 2, every question 4 words: 3 + 2, + 4 + 2 = 11, + 4 = 15
    for limit, n_rounds in ((14, 2), (15, 3), (16, 3), (10, 2), (8, 1), (4, 1)):
        ask = Scripted()
        dialogue = seeded(ask, Ending(max_tokens=limit, count=words))
        assert (len(dialogue.rounds), dialogue.stop) == (n_rounds, "context full"), limit
        # the last answer may overflow, as with PlatoLM; then nobody is asked any more
        assert words(dialogue.texts[:-1]) <= limit or n_rounds == 1


def test_nothing_more_to_say_ends_the_dialogue_and_a_real_failure_does_not_pass_for_it():
    def silent(number, attempt):
        if number == 3:
            raise CallFailed("empty_answer", "nothing")
        return "Why?"

    dialogue = seeded(Scripted(silent), Ending(max_rounds=9))
    assert (len(dialogue.rounds), dialogue.stop) == (2, "user ended")
    with pytest.raises(CallFailed, match="ended before round 3") as failed:
        seeded(Scripted(silent), Ending(max_rounds=9, fewest_rounds=3))
    assert failed.value.kind == "ended_early"

    def broken(number, attempt):
        raise CallFailed("refusal", "the model refused")

    with pytest.raises(CallFailed, match="the model refused"):
        seeded(Scripted(broken), Ending(max_rounds=2))


def test_a_question_like_an_assistants_is_asked_for_again_and_noted_if_it_stays():
    like = "I hope this helps! Let me know if you have any other questions."
    assert role_exchange(like)
    ask = Scripted(lambda number, attempt: like if attempt < 3 else "Why is that?")
    dialogue = seeded(ask, Ending(max_rounds=2))
    assert dialogue.rounds[1][0] == "Why is that?" and dialogue.role_exchanges == ()
    assert [r.inputs["attempt"] for r in ask.by("user")] == [1, 2, 3]
    assert len({r.seed for r in ask.by("user")}) == 3
    stubborn = seeded(Scripted(lambda number, attempt: like), Ending(max_rounds=3))
    assert stubborn.role_exchanges == (2, 3)
    once = Scripted(lambda number, attempt: like)
    assert seeded(once, Ending(max_rounds=2), Simulator("test", max_attempts=1)).role_exchanges == (2,)
    assert len(once.by("user")) == 1


def test_an_exchange_that_nothing_better_follows_is_kept_and_noted():
    like = "I hope this helps! Let me know if you have any other questions."

    def user(number, attempt):
        if attempt > 1:
            raise CallFailed("empty_answer", "nothing")
        return like

    dialogue = seeded(Scripted(user), Ending(max_rounds=2))
    assert dialogue.rounds[1][0] == like and dialogue.role_exchanges == (2,)


def test_an_answer_that_does_not_fit_ends_the_dialogue_after_its_last_whole_round():
    class Full(Scripted):
        async def __call__(self, request):
            if request.seat == "assistant" and request.inputs["round"] == self.last:
                raise CallFailed("context_length_exceeded", "full")
            return await super().__call__(request)

    ask = Full(lambda number, attempt: "I hope this helps! Let me know if you have any other questions.")
    ask.last = 3
    dialogue = seeded(ask, Ending(max_rounds=9))
    assert (len(dialogue.rounds), dialogue.stop) == (2, "context full")
    assert dialogue.role_exchanges == (2,)  # and not the one that was taken back
    ask = Full()
    ask.last = 1
    with pytest.raises(CallFailed, match="ended before round 1"):
        seeded(ask, Ending(max_rounds=9))


@settings(max_examples=40, deadline=None)
@given(
    max_rounds=st.none() | st.integers(1, 6),
    max_tokens=st.none() | st.integers(1, 40),
    lengths=st.lists(st.integers(1, 12), min_size=12, max_size=12),
)
def test_every_dialogue_stops_and_keeps_its_limits(max_rounds, max_tokens, lengths):
    if max_rounds is None and max_tokens is None:
        return
    ask = Scripted(lambda number, attempt: " ".join(["why"] * lengths[number % 12]))
    ending = Ending(max_rounds=max_rounds, max_tokens=max_tokens, count=words)
    dialogue = seeded(ask, ending)
    assert 1 <= len(dialogue.rounds) <= (max_rounds or 1000)
    if max_tokens:
        assert words(dialogue.texts[:-1]) <= max(max_tokens, 3)
    assert dialogue.stop == ("round limit" if len(dialogue.rounds) == max_rounds else "context full")


def test_bad_parameters_are_one_line():
    for make, problem in (
        (lambda: Ending(), "expected max_rounds, max_tokens or both"),
        (lambda: Ending(max_tokens=10), "count: expected what counts the tokens"),
        (
            lambda: Ending(max_rounds=1, fewest_rounds=2),
            "max_rounds: expected at least fewest_rounds 2, got 1",
        ),
        (lambda: Ending(max_rounds=0, fewest_rounds=0), "fewest_rounds: expected at least 1, got 0"),
        (lambda: Simulator("x", max_attempts=0), "max_attempts: expected a whole number of at least 1"),
        (lambda: Simulator.of("vicuna"), "simulator: expected one of platolm, parrot, got 'vicuna'"),
    ):
        with pytest.raises(Stop, match=problem):
            make()
