"""Two models in alternation: who is asked what, when it ends, and who forgets the role."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from labelled_turns import EXCHANGES, HONEST

from ultrachat import prompts, simulation
from ultrachat.errors import Stop
from ultrachat.records import SECTORS, Dialogue, Opening, content_id
from ultrachat.runs import DATA
from ultrachat.simulation import (
    choose_persona,
    generate_directly,
    role_exchange,
    round_limits,
    simulate,
)
from ultrachat.teacher import CallFailed


def opening(number: int = 0, sector: str = SECTORS[1]) -> Opening:
    return Opening(
        id=content_id(str(number)), sector=sector, route="writing", task="t", subject="s", parent="p",
        text=f"Write poem {number}.",
    )  # fmt: skip


class Models:
    """A user and an assistant that say what they are told to; `asked` keeps the requests."""

    def __init__(self, user=lambda request: f"what about {request.inputs['round']}?") -> None:
        self.asked, self.user = [], user

    async def __call__(self, request) -> str:
        self.asked.append(request)
        if request.task == "user_turn":
            return self.user(request)
        return f"answer {request.inputs['round']}"


def talk(models: Models, opened: Opening, **options) -> Dialogue:
    return asyncio.run(simulate(models, opened, **options))


# ---- alternation ------------------------------------------------------------------------------


def test_round_one_is_the_opening_and_its_answer_then_the_two_alternate():
    models, opened = Models(), opening()
    dialogue = talk(models, opened)
    assert dialogue.rounds == [
        ("Write poem 0.", "answer 1"), ("what about 2?", "answer 2"), ("what about 3?", "answer 3"),
        ("what about 4?", "answer 4"),
    ]  # fmt: skip
    tasks = [(r.task, r.inputs["round"], r.seat) for r in models.asked]
    assert tasks == [
        ("assistant_turn", 1, "assistant"),
        *((task, n, seat) for n in (2, 3, 4) for task, seat in (("user_turn", "user"), ("assistant_turn", "assistant"))),
    ]  # fmt: skip
    assert {r.inputs["opening"] for r in models.asked} == {opened.id}
    assert (dialogue.sector, dialogue.parent, dialogue.stop) == (opened.sector, opened.id, "round limit")
    assert dialogue.persona == choose_persona(opened.id) and dialogue.role_exchanges == ()


def test_the_assistant_gets_chat_messages_and_the_user_model_one_text_ending_in_its_instruction():
    models, opened = Models(), opening()
    talk(models, opened)
    assistant, user = models.asked[2], models.asked[3]
    assert assistant.messages == [
        {"role": "user", "content": "Write poem 0."}, {"role": "assistant", "content": "answer 1"},
        {"role": "user", "content": "what about 2?"},
    ]  # fmt: skip
    texts = ["Write poem 0.", "answer 1", "what about 2?", "answer 2"]
    expected = prompts.user_turn(texts, opened.sector, choose_persona(opened.id), may_end=True)
    assert user.messages == [{"role": "user", "content": expected}]


def test_the_same_dialogue_has_the_same_id_and_another_another():
    assert talk(Models(), opening()).id == talk(Models(), opening()).id != talk(Models(), opening(1)).id


# ---- when it ends -----------------------------------------------------------------------------


def test_rounds_per_sector_are_those_of_the_readme():
    assert dict(zip(SECTORS, [(3, 7), (2, 4), (2, 4)], strict=True)) == simulation.ROUNDS


@pytest.mark.parametrize("sector", SECTORS)
def test_drawn_numbers_of_rounds_cover_the_range_evenly_and_depend_on_content_only(sector):
    fewest, most = simulation.ROUNDS[sector]
    drawn = Counter(round_limits(opening(i, sector), "drawn") for i in range(1000))
    assert set(drawn) == {(n, n) for n in range(fewest, most + 1)}
    assert min(drawn.values()) > 0.8 * 1000 / (most - fewest + 1)
    assert round_limits(opening(0, sector), "user") == (fewest, most)
    for number in range(6):
        opened = opening(number, sector)
        models = Models()
        assert len(talk(models, opened, stop="drawn").rounds) == round_limits(opened, "drawn")[0]
        assert not any(prompts.END in r.messages[0]["content"] for r in models.asked if r.task == "user_turn")


def test_another_way_to_stop_is_refused():
    with pytest.raises(Stop, match="stop: expected 'user' or 'drawn', got 'never'"):
        talk(Models(), opening(), stop="never")


@pytest.mark.parametrize("sector", SECTORS)
@pytest.mark.parametrize("end", ["[END]", ' "[END]". ', "**[END]**", "[END]\n"])
def test_the_user_model_may_end_from_the_fewest_rounds_on_and_is_told_so_only_then(sector, end):
    fewest, most = simulation.ROUNDS[sector]
    for last in range(fewest, most):
        models = Models(lambda request, last=last: end if request.inputs["round"] > last else "more?")
        dialogue = talk(models, opening(0, sector))
        assert len(dialogue.rounds) == last and dialogue.stop == "user ended"
        for request in models.asked:
            if request.task == "user_turn":
                offered = prompts.END in request.messages[0]["content"]
                assert offered == (request.inputs["round"] > fewest)


def test_an_end_too_early_sets_the_dialogue_aside():
    with pytest.raises(CallFailed) as failed:
        talk(Models(lambda request: "[END]"), opening())
    assert failed.value.kind == "ended_early"


def test_a_mark_behind_a_last_message_ends_the_dialogue_after_its_answer():
    def user(request):
        return "one last thing: how long?  [END]" if request.inputs["round"] == 4 else "and then?"

    dialogue = talk(Models(user), opening())
    assert [said for said, _ in dialogue.rounds[1:]] == [
        "and then?",
        "and then?",
        "one last thing: how long?",
    ]
    assert dialogue.stop == "user ended"


def test_a_message_that_only_mentions_the_end_is_a_message():
    dialogue = talk(Models(lambda request: "what does [END] mean?"), opening())
    assert len(dialogue.rounds) == 4 and dialogue.rounds[1][0] == "what does [END] mean?"


# ---- personas ---------------------------------------------------------------------------------


def test_every_kind_of_user_plays_about_as_often():
    counts = Counter(choose_persona(content_id(str(i))) for i in range(3000))
    assert set(counts) == set(prompts.PERSONAS)
    assert min(counts.values()) > 0.85 * 3000 / len(prompts.PERSONAS)


# ---- role exchange ----------------------------------------------------------------------------


def rates(positives: list[str], negatives: list[str]) -> tuple[float, float]:
    """Recall and precision of `role_exchange` on labelled texts."""
    found = sum(role_exchange(text) is not None for text in positives)
    false = sum(role_exchange(text) is not None for text in negatives)
    return found / len(positives), found / (found + false)


def recorded_turns() -> dict[tuple[str, int], dict[str, str]]:
    """{(opening, round): {"user": …, "assistant": …}} of the recording, from round 2 on."""
    turns: dict[tuple[str, int], dict[str, str]] = {}
    for line in (DATA / "recorded" / "dialogues.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        place = (row["inputs"]["opening"], row["inputs"]["round"])
        turns.setdefault(place, {})[row["task"].removesuffix("_turn")] = row["response"]
    return {place: turn for place, turn in turns.items() if place[1] > 1}


def planted(what: str) -> set[tuple[str, int]]:
    rows = map(json.loads, (DATA / "seed" / "planted.jsonl").read_text(encoding="utf-8").splitlines())
    return {(row["opening"], row["round"]) for row in rows if row["planted"] == what}


def test_labelled_turns_are_told_apart():
    assert len(EXCHANGES) >= 30 and len(HONEST) >= 30 and not set(EXCHANGES) & set(HONEST)
    recall, precision = rates(EXCHANGES, HONEST)
    assert recall >= 0.9 and precision >= 0.95


def test_labelled_turns_written_after_the_signs_were_settled_are_told_apart():
    recall, precision = rates(EXCHANGES[-20:], HONEST[-20:])
    assert recall >= 0.9 and precision >= 0.95


def test_planted_exchanges_are_told_from_all_other_recorded_turns():
    turns, truth = recorded_turns(), planted("role_exchange")
    assert truth <= set(turns) and len(truth) == 9 and len(turns) > 250
    recall, precision = rates(
        [turns[place]["user"] for place in truth],
        [turn["user"] for place, turn in turns.items() if place not in truth],
    )
    assert recall >= 0.9 and precision >= 0.95


@settings(max_examples=200)
@given(st.text(max_size=300) | st.text("Sure, ofcrse!.?'\n 1-*:", max_size=200))
def test_no_text_raises(text):
    assert role_exchange(text) in (
        None, "speaker label", "speaks as an AI", "offers help", "opens like an assistant", "presents an answer",
        "answers at length",
    )  # fmt: skip


def test_a_long_text_is_looked_at_at_once():
    for text in ("as an AI " * 20_000, "Certainly, " * 20_000, "- a\n" * 50_000, "is it that " * 20_000):
        role_exchange(text)


def test_exchanges_are_noted_by_round_and_kept():
    models = Models(
        lambda request: (
            "Certainly! Here are three reasons for it." if request.inputs["round"] == 3 else "why?"
        )
    )
    dialogue = talk(models, opening())
    assert dialogue.role_exchanges == (3,) and dialogue.rounds[2][0].startswith("Certainly!")


def test_a_restated_role_is_one_more_request_with_a_name_of_its_own():
    def user(request):
        return (
            "and shorter?"
            if request.inputs.get("attempt") == 2
            else "Certainly! Here are three reasons for it."
        )

    models = Models(user)
    dialogue = talk(models, opening(), restate_role=True)
    assert dialogue.role_exchanges == () and dialogue.rounds[1][0] == "and shorter?"
    turns = [r for r in models.asked if r.task == "user_turn"]
    assert [r.inputs.get("attempt") for r in turns] == [None, 2] * 3
    assert all(
        ("You are not the assistant" in r.messages[0]["content"]) == ("attempt" in r.inputs) for r in turns
    )
    stubborn = talk(
        Models(lambda request: "Certainly! Here are three reasons for it."), opening(), restate_role=True
    )
    assert stubborn.role_exchanges == (2, 3, 4)


# ---- in a single call -------------------------------------------------------------------------


def test_a_dialogue_in_one_call_is_read_or_set_aside():
    async def ask(request):
        assert request.task == "direct_dialogue" and "Write poem 0." in request.messages[0]["content"]
        return "User: Write poem 0.\nAssistant: Roses.\n\nUser: More\nAssistant: Violets."

    dialogue = asyncio.run(generate_directly(ask, opening()))
    assert dialogue.rounds == [("Write poem 0.", "Roses."), ("More", "Violets.")]
    assert (dialogue.stop, dialogue.parent, dialogue.persona) == ("single call", opening().id, None)

    async def prose(request):
        return "Once there were two who talked."

    with pytest.raises(CallFailed) as failed:
        asyncio.run(generate_directly(prose, opening()))
    assert failed.value.kind == "unreadable_dialogue"


def test_a_recorded_dialogue_is_simulated_as_it_was_written(recorded_teacher):
    turns = recorded_turns()
    first = min(place[0] for place in turns)
    opened = Opening(
        id=first, sector=SECTORS[0], route="topic", task="t", subject="s", parent="p", text="Its opening?"
    )
    (dialogue,), failed = recorded_teacher.map(simulate, [opened])
    assert not failed and len(dialogue.rounds) >= 3
    for number, pair in enumerate(dialogue.rounds[1:], start=2):
        assert pair == (turns[first, number]["user"], turns[first, number]["assistant"])
