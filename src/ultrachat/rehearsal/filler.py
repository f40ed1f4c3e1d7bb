"""Generated texts of realistic length and form for every prompt of the pipeline, free of charge.

    filler("any-model", [{"role": "user", "content": "Why does bread rise?"}])
    # 'A wool surface cannot be wiped down, so … Early fares are cheaper.'   (about 250 words)

What is asked for is recognised by the wording of `prompts`; what is not recognised is answered like
an assistant. The sentences are the recorded pack's, put together by chance: every text reads like
English and says nothing. Equal requests get equal texts, whatever was asked before or elsewhere.

Lengths: answers have a mean of 1,410 bytes: 1467.4 tokens of a dialogue over 3.8 rounds (Table 5)
are 386 a round, less the 34 of a recorded user message, at 4 bytes a token. The recorded pack's own
assistant turns have 1,333. All others are about as long as the recorded answers to the same task.

Absent on purpose: any sense.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from random import Random
from typing import Any, NamedTuple

from ultrachat.parsing import parse_list
from ultrachat.prompts import END, NUMBERED
from ultrachat.recorded import load_pack
from ultrachat.runs import DATA

ANSWER_BYTES = 1410
REASON_BYTES = 160  # what a judge adds to its scores; recorded: 62 to 262
SPOKEN_BYTES = 260  # an answer within a dialogue written whole; recorded: 1,237 for three or four rounds
LENGTH_SPREAD = 0.5  # standard deviation of the logarithm: nine answers in ten have 100 to 520 words
END_FRACTION = 1 / 3  # offered the end, the user model takes it this often: near Table 5's 3.8 rounds

_SENTENCE = re.compile(r"(?<![^\s])[A-Z][a-z' ][^.!?*|#`\n\"\[\]]{30,150}\.(?=\s|$)")
_COUNT = re.compile(r"\b(List|Write) (\d{1,4}) ")


class Material(NamedTuple):
    """What texts are put together from, all of it found in the recorded pack. Ours: its words and lengths."""

    sentences: list[str]
    topics: list[str]
    questions: list[str]
    instructions: list[str]
    replies: list[str]  # a user's, each ending with a question


@cache
def material() -> Material:
    """Return the raw material, read once. Ours: recorded texts sound right and are ours to use."""
    found: dict[str, list[str]] = {}
    for name, response in load_pack(DATA / "recorded").items():
        found.setdefault(json.loads(name)["task"], []).append(response)

    def listed(*tasks: str) -> list[str]:
        items = (item for task in tasks for text in found[task] for item in parse_list(text, 0).items)
        return list(dict.fromkeys(items))

    sentences = [s for text in found["assistant_turn"] for s in _SENTENCE.findall(text)]
    replies = [t for t in found["user_turn"] if re.fullmatch(r"(?i)(?!.*thank).{1,160}\?", t)]
    return Material(
        sentences=list(dict.fromkeys(sentences)),
        topics=listed("subtopics"),
        questions=listed("questions", "related_questions", "entity_questions", "specific_questions"),
        instructions=listed("writing_instructions", "material_instructions"),
        replies=list(dict.fromkeys(replies)),
    )


def filler(
    model: str, messages: Sequence[Mapping[str, Any]], temperature: Any = None, seed: Any = None
) -> str:
    """Return a text of the form and length that the last message asks for, from nothing but the arguments.

    Ours: a run that was killed and repeated gets the same bytes again.
    """
    key = json.dumps([model, messages, temperature, seed], sort_keys=True)
    rng = Random(int(hashlib.sha256(key.encode()).hexdigest()[:16], 16))
    prompt = str(messages[-1].get("content") or "")
    head, tail = prompt[:40], prompt[-1500:]
    if prompt.endswith(NUMBERED):
        return _numbered_list(rng, tail)
    if head.startswith("The dialogue so far:") and "Suppose you are the user in this dialogue." in tail:
        return _user_turn(rng, may_end=tail.endswith(f"write {END} instead."))
    if "scores for Assistant 1 and 2" in tail:
        return f"{rng.randint(4, 9)} {rng.randint(4, 9)}\n{_prose(rng, REASON_BYTES)}"
    if 'Please output "Score: [' in tail:
        return f"Score: {rng.randint(5, 9)}\n{_prose(rng, REASON_BYTES)}"
    if head.startswith("Write a whole conversation of several"):
        return _dialogue(rng, prompt.partition("The user's first message is:\n")[2])
    if "Rewrite it as a more detailed instruction" in tail:
        return f"{_any(rng, material().instructions)} Bring in {_topic(rng)}. {_prose(rng, 80)}"
    return _prose(rng, ANSWER_BYTES)


def _any(rng: Random, texts: list[str]) -> str:
    return texts[int(rng.random() * len(texts))]  # three times as fast as rng.choice


def _topic(rng: Random) -> str:
    """Return a topic as it stands within a sentence: "password managers", but "GPS systems"."""
    topic = _any(rng, material().topics)
    return topic if topic[1:2].isupper() else topic[:1].lower() + topic[1:]


def _prose(rng: Random, mean_bytes: float) -> str:
    """Return whole sentences, in paragraphs of five, of a lognormal length: a quarter to four times the mean."""
    drawn = math.exp(rng.gauss(-(LENGTH_SPREAD**2) / 2, LENGTH_SPREAD))
    wanted = mean_bytes * min(4.0, max(0.25, drawn)) - 35  # it stops, on average, half a sentence later
    sentences, parts, length = material().sentences, [], 0
    while length < wanted or not parts:
        if parts:
            parts.append("\n\n" if len(parts) % 10 == 9 else " ")
        sentence = _any(rng, sentences)
        parts.append(sentence)
        length += len(sentence) + 1
    return "".join(parts)


def _numbered_list(rng: Random, tail: str) -> str:
    """Return as many items as were asked for: two topics in each keep the items of a whole run apart."""
    verb, count = (_COUNT.findall(tail) or [("Write", "10")])[-1]

    def item() -> str:
        if verb == "List":
            return f"{_any(rng, material().topics)} and {_topic(rng)}"
        if "instructions that a user could give" in tail:
            return f"{_any(rng, material().instructions)} Bring in {_topic(rng)} and {_topic(rng)}."
        return f"With {_topic(rng)} and {_topic(rng)} in mind: {_any(rng, material().questions)}"

    return "\n".join(f"{number}. {item()}" for number in range(1, int(count) + 1))


def _user_turn(rng: Random, may_end: bool) -> str:
    if may_end and rng.random() < END_FRACTION:
        return END
    return f"{_any(rng, material().replies)} And what about {_topic(rng)}?"


def _dialogue(rng: Random, opening: str) -> str:
    """Return three or four rounds from an opening, as `User:` and `Assistant:` paragraphs."""
    lines = []
    for number in range(rng.randint(3, 4)):
        lines.append(f"User: {_user_turn(rng, False) if number else opening}")
        lines.append(f"Assistant: {_prose(rng, SPOKEN_BYTES)}")
    return "\n".join(lines)
