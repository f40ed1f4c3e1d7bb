"""Two models talk: a user model and an assistant model in alternation, from an opening line.

    dialogue = await simulate(ask, opening)        # round 1: the opening and its answer
                                                   # round k: the user model, then the assistant model

The assistant model gets the dialogue as ordinary chat messages. The user model gets it as text with
the instruction after it, all under the role `user`, and plays one of several kinds of user chosen
by the opening's id. Left with the history alone it slides into the assistant's role: that is
detected (`role_exchange`), measured, and optionally answered by stating the role once more.

Absent on purpose: what happens to a finished dialogue (`refinement`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ultrachat import prompts
from ultrachat.errors import Stop
from ultrachat.parsing import parse_dialogue
from ultrachat.records import Dialogue, Opening, content_id
from ultrachat.teacher import Ask, CallFailed, Request, one_message

# thunlp/UltraChat's README: 3–7 rounds in sector 1, 2–4 in sectors 2 and 3. The paper gives only the mean.
ROUNDS: dict[str, tuple[int, int]] = {
    "questions_about_the_world": (3, 7),
    "creation_and_generation": (2, 4),
    "assistance_on_existing_materials": (2, 4),
}

_LABEL = re.compile(r"^\W{0,4}(user|human|assistant|ai|chatgpt)\W{0,2}\s*:", re.IGNORECASE)
_AI = r"an? (ai\b|artificial intelligence|(large )?language model)"
# "as an AI you probably can't taste" and "I'm an AI researcher" are users
_AS_AN_AI = re.compile(
    rf"\bas {_AI}\b[^.?!]{{0,30}}\b(i|my)\b|"
    rf"\bi(?:'m| am)(?: just| only)? {_AI}(?=\W*$|[.,;:!]| (?:and|so|but|that|assistant|model|language|created|trained))",
    re.IGNORECASE,
)
_OFFERS_HELP = re.compile(
    r"\blet me know if (you(?:'d| would)? (need|have|want|like)|(there is|there's) anything)|\bfeel free to (ask|reach)|"
    r"\bis there anything else (i can|you(?:'d| would) like)|\bhow (can|may) i (help|assist) you|"
    r"\bi hope (this|that) (helps|helped)(?=\W*$|[.!])|\bif you have any (other|more|further) questions|"
    r"\bi(?:'d| would) be (more than )?(happy|glad) to (help|assist|explain|provide|clarify)|\bi could help\b[.!]|"
    r"\b(would|do) you (like|want) me to\b|\bso (that )?i can (help|assist|give|provide|tailor|offer)\b",
    re.IGNORECASE,
)
_SERVES = re.compile(
    r"^(i apologi[sz]e|my apologies|(i'm )?sorry,? (but )?(for the|i can(no|')t)|i'm sorry, but i can|"
    r"thank you for (your (feedback|patience|question)|pointing|bringing|sharing|clarifying))\b",
    re.IGNORECASE,
)
_WELCOMES = re.compile(
    r"^(you'?re|you are) (very |most )?welcome(?:[!.,]|$)|^my pleasure\b|^happy to help\b|^glad to help\b",
    re.I,
)
# a pause must follow: "Of course I tried that" and "absolutely love it" are users
_OPENS_LIKE_AN_ASSISTANT = re.compile(
    r"^(?:certainly|absolutely|of course|sure(?: thing)?|no problem|"
    r"(?:that's an? )?(?:great|good|excellent) question)(?:[!.:](?=\s)|,(?! (?:but|and|so|now|then)\b)|(?= here\b))(.*)",
    re.IGNORECASE | re.DOTALL,
)
_PRESENTS = re.compile(
    r"^here(?: is|'s| are) (?!the (?:thing|deal|problem|catch)\b|hoping|what\b|where\b)(?:an?|the|some|your|\w+)\b",
    re.IGNORECASE,
)
_LIST_ITEM = re.compile(r"^\s*(?:\d{1,2}[.)]|[-*•])\s", re.MULTILINE)
_OWN_WORK = re.compile(
    r"\bi(?:'ve| have) (updated|revised|rewritten|corrected|added|included|changed)\b", re.IGNORECASE
)
_FIRST_PERSON = re.compile(r"\b(i|i'm|i've|my|mine|me|we|our)\b", re.IGNORECASE)
# what follows tells "Sure, but why does it rise?" (a user) from "Sure! Here are three reasons" (an assistant)
_ASKS = re.compile(
    r"\?|\b(can|could|would|will) you\b|\b(please|pls)\b|\b(give|make|write|show|tell) me\b|\byou said\b",
    re.IGNORECASE,
)


def role_exchange(text: str) -> str | None:
    """Return why a user message reads like an assistant's ("label", "as an AI", …), or None if it does not.

    Paper: §4.4 names the failure; the signs are ours, measured in notebook 05 against planted cases.
    """
    text = text.strip().replace("\u2019", "'")
    if _LABEL.match(text):
        return "speaker label"
    if _AS_AN_AI.search(text):
        return "speaks as an AI"
    if _OFFERS_HELP.search(text) or _WELCOMES.match(text) or _SERVES.match(text):
        return "offers help"
    if _OWN_WORK.search(text) and _OPENS_LIKE_AN_ASSISTANT.match(text):
        return "opens like an assistant"
    # a user asks, or speaks of themselves; an assistant that answers does neither
    if _ASKS.search(text) or _FIRST_PERSON.search(text):
        return None
    opening = _OPENS_LIKE_AN_ASSISTANT.match(text)
    if opening and len(opening[1].split()) > 3:
        return "opens like an assistant"
    if _PRESENTS.match(text):
        return "presents an answer"
    if len(text.split()) >= 40 or len(_LIST_ITEM.findall(text)) >= 3:
        return "answers at length"
    return None


_END_MARK = re.compile(rf"[\s\"'*`]*{re.escape(prompts.END)}[\s\"'*`.]*$")


def choose_persona(opening_id: str) -> str:
    """Return the kind of user that plays this dialogue, chosen by the opening's id.

    Paper: §4.4 ("various user personalities"); the kinds and the choice are ours.
    """
    names = list(prompts.PERSONAS)
    return names[int(content_id("persona", opening_id), 16) % len(names)]


def round_limits(opening: Opening, stop: str) -> tuple[int, int]:
    """Return the fewest and most rounds of the dialogue that grows from `opening`.

    With stop="user" the user model may end from the fewest on; with stop="drawn" both are one number
    drawn evenly by the opening's id. Raises Stop for another value.

    Paper: mean 3.8 (Table 5); the ranges are the repository's README, how to stop is ours.
    """
    fewest, most = ROUNDS[opening.sector]
    if stop == "drawn":
        drawn = fewest + int(content_id("rounds", opening.id), 16) % (most - fewest + 1)
        return drawn, drawn
    if stop != "user":
        raise Stop(f"stop: expected 'user' or 'drawn', got {stop!r}")
    return fewest, most


async def simulate(ask: Ask, opening: Opening, stop: str = "user", restate_role: bool = False) -> Dialogue:
    """Return the dialogue two models hold from an opening line, role exchanges noted and kept.

    With `restate_role` a user message that reads like an assistant's is asked for once more with the
    role stated again. Raises CallFailed("ended_early") when the user model ends before the fewest rounds.

    Paper: §4.4.
    """
    fewest, most = round_limits(opening, stop)
    persona = choose_persona(opening.id)
    texts = [opening.text]
    exchanges: list[int] = []
    reason = "round limit"
    for number in range(1, most + 1):
        if number > 1:
            # an end before the fewest rounds is never offered; a model that takes it all the same is set aside
            may_end = stop == "user" and number > fewest
            said = await _user_turn(ask, opening, texts, persona, number, may_end, restate_role)
            user = _END_MARK.sub("", said)
            if user != said:
                reason = "user ended"
                if number <= fewest:
                    raise CallFailed("ended_early", f"the user model ended before round {fewest}")
            if not user:
                break
            if role_exchange(user):
                exchanges.append(number)
            texts.append(user)
        texts.append(await ask_assistant(ask, texts, opening.id, number))
        if reason == "user ended":  # the mark came behind a last message, which deserves its answer
            break
    rounds = list(zip(texts[::2], texts[1::2], strict=True))
    return Dialogue.from_rounds(
        rounds, sector=opening.sector, parent=opening.id, persona=persona, stop=reason,
        role_exchanges=tuple(exchanges),
    )  # fmt: skip


async def _user_turn(
    ask: Ask, opening: Opening, texts: list[str], persona: str, number: int, may_end: bool, restate_role: bool
) -> str:
    """Ask the user model for its message that opens round `number`."""
    prompt = prompts.user_turn(texts, opening.sector, persona, may_end)
    inputs: dict[str, str | int] = {"opening": opening.id, "round": number}
    text = await ask(Request(task="user_turn", inputs=inputs, messages=one_message(prompt), seat="user"))
    if restate_role and role_exchange(text):
        prompt = prompts.user_turn(texts, opening.sector, persona, may_end, restate=True)
        inputs = {**inputs, "attempt": 2}
        text = await ask(Request(task="user_turn", inputs=inputs, messages=one_message(prompt), seat="user"))
    return text


async def ask_assistant(ask: Ask, texts: Sequence[str], opening_id: str, number: int) -> str:
    """Return the assistant model's answer to the last of the alternating `texts`, in round `number`.

    Paper: §4.4.
    """
    messages = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(texts)]
    inputs = {"opening": opening_id, "round": number}
    return await ask(Request(task="assistant_turn", inputs=inputs, messages=messages))


async def generate_directly(ask: Ask, opening: Opening) -> Dialogue:
    """Return the dialogue written whole in a single call: the baseline that Table 20 warns against.

    Raises CallFailed("unreadable_dialogue") when no labelled round can be read from the answer.

    Paper: §3, Table 20.
    """
    prompt = prompts.direct_dialogue(opening.text)
    inputs = {"opening": opening.id}
    text = await ask(Request(task="direct_dialogue", inputs=inputs, messages=one_message(prompt)))
    rounds = parse_dialogue(text)
    if not rounds:
        raise CallFailed("unreadable_dialogue", "no 'User:' and 'Assistant:' paragraphs in the answer")
    return Dialogue.from_rounds(rounds, sector=opening.sector, parent=opening.id, stop="single call")
