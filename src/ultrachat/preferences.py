"""Contextual preferences, as Parrot's CaPO: the dialogue's own answer is chosen, a bad use of the context rejected.

Models fail at a question that leans on what was said before in three ways, and each is brought about on purpose:

    round 4      "She got it. Her whole answer was a text …"         (an aunt, a letter: rounds 1 to 3)
    chosen       the answer that the dialogue has                     "… it was probably meant to be felt a bit"
    rejected     neglected       asked without the history            "I don't know who she is …"
                 hallucinated    told to invent a history             "Remember the row at her birthday …"
                 misunderstood   told to take the reference for       "Your mother took it badly …"
                                 something else that was mentioned

    found, failed = build(teacher, recorded_questions(dialogues), label="rejected answers")
    show_pair(found[0])

Nobody checks that a rejected answer is bad. Asked without its history a model may guess right, and told to
misunderstand it may not. Set aside are only those that (nearly) repeat the chosen one and those that
speak of their task. Read some before training, the *neglected* ones first: `show_pair`.

`without_history` and `hold_out` are for measuring. The three pairs of a question share their chosen answer,
so data are held out by dialogue, never by pair; and a model that prefers the chosen answers as much
without the history has learnt what they look like, not what they answer.

Absent on purpose: whether a question depends on the context (the caller's `depends` says), and training (`dpo`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal, get_args

from pydantic import Field, model_validator

from ultrachat import prompts
from ultrachat.calls import CallFailed
from ultrachat.duplicates import similarity
from ultrachat.errors import Stop
from ultrachat.recorded import METADATA, load_pack, name_request
from ultrachat.records import Dialogue, Message, NonEmpty, Record, content_id
from ultrachat.runs import DATA
from ultrachat.teacher import Ask, Failure, Request, Teacher, one_message

if TYPE_CHECKING:
    from IPython.display import HTML

Kind = Literal["neglected", "hallucinated", "misunderstood"]
KINDS: tuple[Kind, ...] = get_args(Kind)
TASK = "rejected_answer"
MAX_SIMILARITY = 0.8  # with the chosen answer; that of near duplicates
# a rejected answer that speaks of its task would teach that such words are bad, and nothing about context
_SPEAKS_OF_ITS_TASK = re.compile(
    r"\b(as (you )?(requested|instructed)\b[^.]{0,40}\b(invent|misunder|misread|misinterpret)|"
    r"(deliberately|intentionally|purposely) (misunder|misread|misinterpret|wrong|invent)|"
    r"(invented|made[- ]up|fictional|fabricated) (context|history|conversation)|"
    r"(i can(no|')t|i do(n't| not)) (see|have access to) (the|your) (earlier|previous) (conversation|messages?))",
    re.IGNORECASE,
)


class Preference(Record):
    """A question in its context with a better and a worse answer, which fails in the way `kind` names.

    `messages` is the history with the question, by the user and last; `round` is the question's, from 2;
    `parent` is the dialogue's id.

    Ours: the record; Parrot's CaPO has the three kinds (second-hand).
    """

    id: NonEmpty
    parent: NonEmpty
    round: int = Field(ge=2)
    kind: Kind
    messages: tuple[Message, ...] = Field(min_length=1)
    chosen: NonEmpty
    rejected: NonEmpty

    @model_validator(mode="after")
    def _alternates(self) -> Preference:
        for position, message in enumerate(self.messages):
            expected = ("user", "assistant")[position % 2]
            if message.role != expected:
                raise ValueError(f"message {position + 1} should be by the {expected}")
        if len(self.messages) % 2 == 0:
            raise ValueError("the last message should be by the user")
        return self

    @property
    def question(self) -> str:
        """The user's last message."""
        return self.messages[-1].content

    def dialogue(self, answer: str) -> Dialogue:
        """Return the messages with `answer` (one of the two, or any) as the last."""
        texts = [*(message.content for message in self.messages), answer]
        return Dialogue.from_rounds(list(zip(texts[::2], texts[1::2], strict=True)), parent=self.parent)


# ---- which questions --------------------------------------------------------------------------


def context_questions(
    dialogues: Iterable[Dialogue], depends: Callable[[str], object] | None = None
) -> list[tuple[Dialogue, int]]:
    """Return the (dialogue, round) pairs from round 2 on whose question `depends` is true of (or
    finds anything in), all without it.

    Ours: how Parrot finds such questions is not known to us.
    """
    return [
        (dialogue, number)
        for dialogue in dialogues
        for number, (question, _) in enumerate(dialogue.rounds, start=1)
        if number > 1 and (depends is None or depends(question))
    ]


def recorded_questions(dialogues: Iterable[Dialogue]) -> list[tuple[Dialogue, int]]:
    """Return the (dialogue, round) pairs that have a rejected answer of every kind in `data/recorded`.

    Ours: the recorded teacher refuses anything else.
    """
    pack = load_pack(DATA / "recorded")
    return [
        (dialogue, number)
        for dialogue, number in context_questions(dialogues)
        if all(name_request(TASK, _inputs(dialogue, number, kind))[METADATA] in pack for kind in KINDS)
    ]


def _inputs(dialogue: Dialogue, number: int, kind: Kind) -> dict[str, str | int]:
    return {"opening": dialogue.parent or dialogue.id, "round": number, "kind": kind}


# ---- rejected answers -------------------------------------------------------------------------


async def reject(ask: Ask, dialogue: Dialogue, number: int, kind: Kind) -> Preference:
    """Return the pair of the dialogue's answer in round `number` and a rejected one of this kind.

    Raises Stop when there is no such round from 2 on or no such kind, and CallFailed when the rejected answer
    is the chosen one or nearly ("like_the_chosen"), or, told to fail, says so ("speaks_of_its_task").

    Ours: the prompts; Parrot's are not known to us.
    """
    if not 2 <= number <= len(dialogue.rounds):
        raise Stop(f"round: expected from 2 to {len(dialogue.rounds)}, got {number}")
    if kind not in KINDS:
        raise Stop(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    texts, chosen = dialogue.texts[: 2 * number - 1], dialogue.texts[2 * number - 1]
    prompt = {
        "neglected": lambda: texts[-1],  # nothing but the question: this is how a model neglects the rest
        "hallucinated": lambda: prompts.invented_context(texts[-1]),
        "misunderstood": lambda: prompts.misread_reference(texts),
    }[kind]()
    rejected = await ask(
        Request(task=TASK, inputs=_inputs(dialogue, number, kind), messages=one_message(prompt))
    )
    if (alike := similarity(chosen, rejected)) >= MAX_SIMILARITY:
        raise CallFailed("like_the_chosen", f"the rejected answer is {alike:.0%} similar to the chosen one")
    if kind != "neglected" and (found := _SPEAKS_OF_ITS_TASK.search(rejected)):
        raise CallFailed("speaks_of_its_task", f"the rejected answer says {found[0]!r}")
    return Preference(
        id=content_id(kind, *texts, chosen, rejected), parent=dialogue.id, round=number, kind=kind,
        messages=dialogue.messages[: 2 * number - 1], chosen=chosen, rejected=rejected,
    )  # fmt: skip


def build(
    teacher: Teacher,
    questions: Sequence[tuple[Dialogue, int]],
    kinds: Sequence[Kind] = KINDS,
    label: str | None = None,
) -> tuple[list[Preference], list[Failure]]:
    """Return a pair for every question and kind, in order, and what was set aside with its reason.

    Always questions x kinds = pairs + failures; a failure's `item` is (dialogue, round, kind). Asked are the
    seat "assistant" and the ledger, so that repeating it costs nothing. Raises Stop as `Teacher.map` does.

    Ours: Parrot's mixture of the three kinds is not known to us; here each question has all of them.
    """
    items = [(dialogue, number, kind) for dialogue, number in questions for kind in kinds]
    return teacher.map(_reject_item, items, label)


async def _reject_item(ask: Ask, item: tuple[Dialogue, int, Kind]) -> Preference:
    return await reject(ask, *item)


# ---- to measure with --------------------------------------------------------------------------


def without_history(preference: Preference) -> Preference:
    """Return the same pair as if the question had been the first thing said.

    Ours: what a model still prefers then, it does not prefer for the context's sake.
    """
    return preference.model_copy(update={"messages": preference.messages[-1:]})


def hold_out(
    preferences: Iterable[Preference], n_dialogues: int
) -> tuple[list[Preference], list[Preference]]:
    """Return (to train on, held out): held out are all pairs of the first `n_dialogues` dialogues in id order.

    Raises Stop when that leaves no dialogue to train on.

    Ours: pairs of one question share their chosen answer.
    """
    preferences = list(preferences)
    parents = sorted({preference.parent for preference in preferences})
    if not 0 <= n_dialogues < len(parents):
        raise Stop(f"n_dialogues: expected from 0 to {len(parents) - 1}, got {n_dialogues}")
    held_out = set(parents[:n_dialogues])
    return (
        [preference for preference in preferences if preference.parent not in held_out],
        [preference for preference in preferences if preference.parent in held_out],
    )


# ---- to look at -------------------------------------------------------------------------------


def show_pair(preference: Preference, max_characters: int = 700) -> HTML:
    """Return a pair to read: the round before, the question, and the two answers side by side.

    Ours: whether the rejected answer is really worse, and in the way it says, is for a reader to judge.
    """
    from IPython.display import HTML

    from ultrachat.figures import NO_MATH, fold

    folded = partial(fold, max_characters=max_characters)
    *before, question = preference.messages
    context = "".join(f"<div><b>{m.role}</b> {folded(m.content)}</div>" for m in before[-2:])
    cells = "".join(
        f"<td style='text-align:left;vertical-align:top;width:50%'><b>{name}</b><br>{folded(text)}</td>"
        for name, text in (
            ("chosen", preference.chosen),
            (f"rejected: {preference.kind}", preference.rejected),
        )
    )
    return HTML(
        f"<div {NO_MATH} style='max-width:70em;line-height:1.45;margin:8px 0'>"
        f"<div style='opacity:.75;font-size:90%'>{context}</div>"
        f"<div style='margin:6px 0'><b>round {preference.round}, user</b> {folded(question.content)}</div>"
        f"<table style='width:100%'><tr>{cells}</tr></table></div>"
    )
