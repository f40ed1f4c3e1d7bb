"""What is taken out of openings and dialogues, one pure function per rule, and counts that add up.

    openings   exact and near duplicates
    dialogues  1. trim rounds that only thank, with the "You're welcome" that follows
               2. drop what a rule names a reason for, in order; before = dropped + after at every step

"Thanks! And how long does it keep?" goes on with the dialogue and is kept.

Absent on purpose: rewriting. A message is kept as it is or not at all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from datasketch import MinHashLSH

from ultrachat.contamination import ContaminationIndex
from ultrachat.duplicates import shingles, similarity, sketches
from ultrachat.ngrams import words
from ultrachat.records import Dialogue, Dropped, Opening, Question

# ---- politeness -------------------------------------------------------------------------------

_THANKS = re.compile(
    r"\b(thank(s| you)|thx|cheers|much appreciated|appreciate (it|that|this))\b", re.IGNORECASE
)
_ONLY_THANKS = re.compile(
    r"^(?:(?:ok(?:ay)?|great|perfect|wonderful|awesome|nice|oh|got it|that'?s (?:great|perfect|helpful))\W+)?"
    r"(?:many )?(?:thank(?:s| you)|thx|cheers)"
    r"(?: (?:so|very) much| a lot| again| for (?:the|your|all your|this|that)(?: \w+){1,3})?"
    r"(?:\W+(?:this|that|it)(?:'s| is| was| really)* (?:really |very |so )?\w+(?: a lot)?)?(?:\W+(?:good)?bye)?\W*$",
    re.IGNORECASE,
)
_WELCOME = re.compile(
    r"^\W*(you'?re (?:very |most )?welcome|you are (?:very |most )?welcome|my pleasure|no problem|any ?time|"
    r"glad (?:i could|to|that|it)|happy to (?:help|have)|don'?t mention it|enjoy\b)",
    re.IGNORECASE,
)
_REQUEST = re.compile(
    r"\?|\b(can|could|would|will) you\b|\b(please|pls)\b|"
    r"(?:^|[.!,;]\s*)(?:but|and|also|now|one more)\b|"
    r"(?:^|[.!,;]\s*)(give|make|write|show|tell|explain|list|add|change|shorten|translate)\b",
    re.IGNORECASE,
)


def is_pure_thanks(user: str, reply: str) -> bool:
    """Return whether a round only thanks: nothing is asked, and the reply is a "You're welcome" or needs none.

    Paper: §4.4 (excluded: "Thank you", "Thanks" and the "You're welcome" that follows).
    """
    user, reply = user.replace("\u2019", "'").strip(), reply.replace("\u2019", "'").strip()
    if not _THANKS.search(user) or _REQUEST.search(user):
        return False
    # "My pleasure! En français : …" goes on: what was asked for is in the reply
    return bool(_ONLY_THANKS.match(user) or (_WELCOME.match(reply) and len(words(reply)) <= 40))


def trim_thanks(dialogue: Dialogue) -> tuple[Dialogue, int]:
    """Return the dialogue without the rounds that only thank, and how many rounds that were.

    The first round is never one of them. The id and `parent` stay; numbers in `role_exchanges` are
    those of the dialogue as generated.

    Paper: §4.4.
    """
    first, *later = dialogue.rounds
    kept = [first] + [pair for pair in later if not is_pure_thanks(*pair)]
    removed = len(later) + 1 - len(kept)
    if not removed:
        return dialogue, 0
    fields = dialogue.model_dump(exclude={"messages"})
    return Dialogue.from_rounds(kept, **fields), removed


# ---- reasons to drop a dialogue ---------------------------------------------------------------

Rule = Callable[[Dialogue], bool]

_DISCLAIMER = re.compile(
    r"\bas an? (ai|artificial intelligence|language model)[^.]{0,60}\b(do not|don't|cannot|can't) "
    r"(have|feel|experience|form|express)\b",
    re.IGNORECASE,
)


def has_role_exchange(dialogue: Dialogue) -> bool:
    """Whether the user model spoke like an assistant in any round. Paper: §4.4."""
    return bool(dialogue.role_exchanges)


def has_disclaimer(dialogue: Dialogue) -> bool:
    """Whether an assistant message says that it has no opinions or feelings.

    Ours: the filter of the derived set HuggingFaceH4/ultrachat_200k; the paper has none.
    """
    return any(_DISCLAIMER.search(reply.replace("\u2019", "'")) for _, reply in dialogue.rounds)


def has_too_few_rounds(fewest: int) -> Rule:
    """Return the rule that a dialogue has fewer than `fewest` rounds. Ours: one round is no dialogue."""
    return lambda dialogue: len(dialogue.rounds) < fewest


def overlaps(questions: Iterable[str], n: int = 13) -> Rule:
    """Return the rule that an opening repeats an evaluation question, as `contamination` defines it.

    Ours: no decontamination is described, and Vicuna-80 questions were found in the release
    (thunlp/UltraChat#18).
    """
    given = [Question(id=str(i), segment="all", question=q) for i, q in enumerate(questions) if q]
    index = ContaminationIndex({"evaluation": given}, n)
    return lambda dialogue: bool(index.search([dialogue.messages[0].content]))


def repeats_an_opening() -> Rule:
    """Return the rule that a dialogue's opening has the words of an earlier one; it remembers what it saw.

    Ours: no deduplication is described.
    """
    seen: set[tuple[str, ...]] = set()

    def rule(dialogue: Dialogue) -> bool:
        tokens = tuple(words(dialogue.messages[0].content))
        repeated = tokens in seen
        seen.add(tokens)
        return repeated

    return rule


class Step(NamedTuple):
    """One line of the cascade: before = dropped + after. Ours: counts that add up."""

    rule: str
    before: int
    dropped: int
    after: int


class Refined(NamedTuple):
    """What refinement returns; kept + dropped = dialogues given. Ours: nothing vanishes without a reason."""

    kept: list[Dialogue]
    dropped: list[Dropped]
    steps: list[Step]
    n_rounds_trimmed: int


def refine(dialogues: Sequence[Dialogue], rules: dict[str, Rule]) -> Refined:
    """Trim thanks everywhere, then apply the rules in order; the first that matches is the drop reason.

    Paper: §4.4; the rules besides thanks and role exchange are ours.
    """
    trimmed = [trim_thanks(dialogue) for dialogue in dialogues]
    remaining = [dialogue for dialogue, _ in trimmed]
    dropped: list[Dropped] = []
    steps = []
    for name, rule in rules.items():
        matches = [rule(dialogue) for dialogue in remaining]
        gone = [
            Dropped(drop_reason=name, dialogue=d)
            for d, match in zip(remaining, matches, strict=True)
            if match
        ]
        kept = [d for d, match in zip(remaining, matches, strict=True) if not match]
        steps.append(Step(name, len(remaining), len(gone), len(kept)))
        dropped += gone
        remaining = kept
    return Refined(remaining, dropped, steps, sum(n for _, n in trimmed))


# ---- duplicate openings -----------------------------------------------------------------------


class Deduplicated(NamedTuple):
    """Openings kept, exact duplicates, and near duplicates as (dropped, the kept one it resembles).

    Ours: kept + exact + near = openings given.
    """

    kept: list[Opening]
    exact: list[Opening]
    near: list[tuple[Opening, Opening]]


def _compared(opening: Opening) -> tuple[str, str]:
    """The text by which an opening is compared, and the group within which it is."""
    return (opening.subject, opening.parent) if opening.route == "material" else (opening.text, "")


def drop_duplicates(openings: Iterable[Opening], threshold: float = 0.8) -> Deduplicated:
    """Keep the first of openings with equal words, and of those at least `threshold` similar, in order.

    Openings on web texts are compared by their instructions, and only with others on the same text:
    they share most of their words by construction. MinHash finds candidates, the exact similarity
    decides, so nothing is dropped by an estimate.

    Ours: the paper says only "filter" (§4.1).
    """
    # well below the threshold: of pairs right at 0.8 one in 20,000 is missed (at 0.7 it would be one in 15)
    index = MinHashLSH(threshold=max(0.1, threshold - 0.3), num_perm=128)
    kept: list[Opening] = []
    exact: list[Opening] = []
    near: list[tuple[Opening, Opening]] = []
    seen: set[tuple[str, ...]] = set()
    for opening in openings:
        text, group = _compared(opening)
        tokens = (group, *words(text))
        if tokens in seen:
            exact.append(opening)
            continue
        seen.add(tokens)
        # the group in every shingle: "Summarise this text" on 10,000 texts are not 10,000 candidates
        [sketch] = sketches([[f"{group}\n{shingle}" for shingle in shingles(text)]])
        resembled = None
        for candidate in (kept[i] for i in sorted(index.query(sketch))):
            other, its_group = _compared(candidate)
            if its_group == group and similarity(other, text) >= threshold:
                resembled = candidate
                break
        if resembled is not None:
            near.append((opening, resembled))
            continue
        index.insert(len(kept), sketch)
        kept.append(opening)
    return Deduplicated(kept, exact, near)
