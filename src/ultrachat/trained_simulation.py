"""A dialogue whose user was trained: the user model is sent the dialogue itself and answers with the next question.

    dialogue = await simulate_seeded(ask, opening, simulator, Ending(max_rounds=8))       # Parrot's way
    dialogue = await simulate_free(ask, 17, simulator, Ending(max_tokens=2048, count=n))  # PlatoLM's: the user opens

No instruction, no history as text, no persona: what a prompted user model is told, this one has learnt. The
assistant model is asked as in `simulation`. Each question has a seed of its own, from the dialogue and the round, so
a server that samples by seed gives the same dialogue again.

A simulator that slides into the assistant's role is asked again with another seed, and noted if it does not help; a
server may hold it back as well (`voices`). One that has nothing more to say ends the dialogue.

Absent on purpose: where the model is (any endpoint in the seat "user"), and taking out bad questions (`question_filters`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ultrachat.calls import CallFailed
from ultrachat.errors import Stop
from ultrachat.records import Dialogue, Opening, Sector, content_id
from ultrachat.simulation import ask_assistant, role_exchange
from ultrachat.teacher import Ask, Request
from ultrachat.user_models import USER_MODELS

# no question came, and none would come again: the simulator's way of ending
_NO_QUESTION = {
    "empty_answer": "user ended",
    "empty": "user ended",
    "context_length_exceeded": "context full",
}


@dataclass(frozen=True)
class Simulator:
    """How a trained user model is asked: `system` in front of the dialogue where there is one, sampling, and how
    often one question is asked for while it reads like an assistant's.

    Paper: PlatoLM's temperature of 0.7 and 512 new tokens; asking again is ours.
    """

    name: str
    system: str = ""
    temperature: float = 0.7
    max_tokens: int = 512
    max_attempts: int = 3

    def __post_init__(self) -> None:
        if type(self.max_attempts) is not int or self.max_attempts < 1:
            raise Stop(f"max_attempts: expected a whole number of at least 1, got {self.max_attempts!r}")

    @classmethod
    def of(cls, format: str, max_tokens: int | None = None) -> Simulator:
        """Return the simulator of "platolm" or "parrot" as published; `max_tokens` for a smaller model."""
        if format not in USER_MODELS:
            raise Stop(f"simulator: expected one of {', '.join(USER_MODELS)}, got {format!r}")
        one = USER_MODELS[format]
        return cls(one.name, one.system["user"], one.temperature, max_tokens or one.max_new_tokens)


@dataclass(frozen=True)
class Ending:
    """When a dialogue stops: after `max_rounds`, and before it has more than `max_tokens` by `count`.

    `count` takes the texts so far, the user's first. A simulator that ends before `fewest_rounds` has failed.
    Raises Stop when nothing would end the dialogue.

    Paper: PlatoLM stops at 2,048 tokens only, Parrot at a target number of rounds.
    """

    max_rounds: int | None = None
    max_tokens: int | None = None
    count: Callable[[Sequence[str]], int] | None = None
    fewest_rounds: int = 1

    def __post_init__(self) -> None:
        if self.fewest_rounds < 1:
            raise Stop(f"fewest_rounds: expected at least 1, got {self.fewest_rounds}")
        if self.max_rounds is None and self.max_tokens is None:
            raise Stop("ending: expected max_rounds, max_tokens or both, or the dialogue never stops")
        if self.max_tokens is not None and self.count is None:
            raise Stop("count: expected what counts the tokens that max_tokens is about")
        if self.max_rounds is not None and self.max_rounds < self.fewest_rounds:
            raise Stop(
                f"max_rounds: expected at least fewest_rounds {self.fewest_rounds}, got {self.max_rounds}"
            )

    def too_long(self, texts: Sequence[str]) -> bool:
        """Whether these texts have more tokens than a dialogue may have."""
        return self.max_tokens is not None and self.count(texts) > self.max_tokens


def question_request(
    simulator: Simulator, texts: Sequence[str], start: str, number: int, attempt: int = 1
) -> Request:
    """Return the request for the user's message that opens round `number` of the dialogue begun by `start`.

    `texts` alternate, the user's first. Each attempt has another seed, and so another answer.

    Paper: PlatoLM takes questions that were cut at 512 tokens; seeds are ours.
    """
    front = [{"role": "system", "content": simulator.system}] if simulator.system else []
    said = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return Request(
        task="trained_user_turn", inputs={"start": start, "round": number, "attempt": attempt}, messages=front + said,
        seat="user", temperature=simulator.temperature, max_tokens=simulator.max_tokens,
        seed=int(content_id(start, str(number), str(attempt)), 16) % 2**31, accept_cut=True,
    )  # fmt: skip


async def simulate_seeded(ask: Ask, opening: Opening, simulator: Simulator, ending: Ending) -> Dialogue:
    """Return the dialogue that grows from a given first question; `parent` is the opening's id.

    Raises CallFailed("ended_early") when the simulator ends before `fewest_rounds`.

    Paper: PlatoLM's *seeded* conversations, and Parrot's, whose first questions are ShareGPT's and UltraChat's.
    """
    return await _converse(ask, [opening.text], opening.id, opening.sector, simulator, ending)


async def simulate_free(ask: Ask, number: int, simulator: Simulator, ending: Ending) -> Dialogue:
    """Return a dialogue that the simulator itself opens; `parent` is "free" and its number.

    Raises CallFailed as `simulate_seeded` does. A simulator without a `system` text is sent no message at all, which
    `serving` takes for its turn; other servers want one message at least.

    Paper: PlatoLM's *free* conversations.
    """
    return await _converse(ask, [], f"free {number}", None, simulator, ending)


async def _converse(
    ask: Ask, texts: list[str], start: str, sector: Sector | None, simulator: Simulator, ending: Ending
) -> Dialogue:
    exchanges: list[int] = []
    reason = "round limit"
    number = 0
    while ending.max_rounds is None or number < ending.max_rounds:
        number += 1
        if number > 1 or not texts:
            question, reason = await _question(ask, texts, start, number, simulator, ending)
            if question is None:
                break
            if role_exchange(question):
                exchanges.append(number)
            texts.append(question)
        try:
            texts.append(await ask_assistant(ask, texts, start, number))
        except CallFailed as failed:
            if failed.kind != "context_length_exceeded":
                raise
            texts.pop()  # a question without an answer; the rounds before it are whole
            exchanges = [n for n in exchanges if n < number]
            reason = "context full"
            break
        reason = "round limit"
    rounds = list(zip(texts[::2], texts[1::2], strict=True))
    if len(rounds) < ending.fewest_rounds:
        raise CallFailed(
            "ended_early", f"{simulator.name} ended before round {ending.fewest_rounds} ({reason})"
        )
    return Dialogue.from_rounds(
        rounds,
        sector=sector,
        parent=start,
        persona=simulator.name,
        stop=reason,
        role_exchanges=tuple(exchanges),
    )


async def _question(
    ask: Ask, texts: list[str], start: str, number: int, simulator: Simulator, ending: Ending
) -> tuple[str | None, str]:
    """Return the user's next message and "", or None and why there is none."""
    if ending.too_long(texts):
        return None, "context full"
    question = None
    for attempt in range(1, simulator.max_attempts + 1):
        try:
            question = (await ask(question_request(simulator, texts, start, number, attempt))).strip()
        except CallFailed as failed:
            if failed.kind not in _NO_QUESTION:
                raise
            if question is None:
                return None, _NO_QUESTION[failed.kind]
            break  # what was said before it stands
        if not role_exchange(question):
            break
    # PlatoLM's rule: the question that overflows the context is not asked any more
    return (None, "context full") if ending.too_long([*texts, question]) else (question, "")
