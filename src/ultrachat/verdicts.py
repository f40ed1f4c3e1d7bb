"""Reading a judge's reply: one score, two scores, or honestly nothing.

    parse_score("The plan is realistic.\\nScore: 9/10")           # 9.0
    parse_comparison("Assistant 1: 8, Assistant 2: 7")            # (8.0, 7.0)
    parse_comparison("I cannot decide between the two answers.")  # None

The parsers see the judge's text and nothing else. They know the forms in which judges give verdicts.
A number in no such form is not a score ("10 points of interest"), and verdicts that contradict each
other are none: what a person would have to guess is left unread.

Absent on purpose: a default score for unreadable replies, numbers in words, decimal commas.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

# ---- reading one score ------------------------------------------------------------------------

_ONE_TO_TEN = r"10(?:\.0+)?|[1-9](?:\.[0-9]+)?"
_OF_TEN = r"(?:[^\S\n]*/[^\S\n]*10|[^\S\n]+out[^\S\n]+of[^\S\n]+10)(?![0-9])"
_OPEN, _CLOSE = r"[\[({\"']{0,3}", r"[\])}\"']{0,3}"


def _number(values: str, not_after: str = ",") -> str:
    """Return a pattern for a number, in brackets or not, that is no part of "-8", "1/8", "0.8" or "87"."""
    return rf"{_OPEN}(?<![\w./+^=~<>$−–{not_after}-])({values})(?![0-9]){_CLOSE}"


_SCORE = rf"{_number(_ONE_TO_TEN)}(?:{_OF_TEN}{_CLOSE})?"
# what may follow: not "8-9", "8 to 10", "8,5", "4/5", "8%", "10 points of interest", "10 units"
_TAIL = (
    r"(?![\w%/+*=^°$-]|[.,:][0-9])(?![^\S\n]*(?:(?:[-–—,/&|]|to|or|and)[^\S\n]*[0-9]|[/+*=%^]))"
    r"(?=[^\S\n]*(?:$|[\n.,;:!?()\[\]{}|\ue001\ue002–—-]|points?[^\S\n]*(?:$|[\n.,;:!?)])|"
    r"(?-i:[A-Z][a-z]|[AI] )|(?:because|since|for|as|due|given|with|but|while|whereas|and|overall|which)\b))"
)
_FILL = (
    r"(?:(?:so|thus|hence|therefore|overall|final|my|i|the|this|its|it|ai|is|are|be|would|will|for|of|to|as|"
    r"at|assistant(?:'s)?|answer(?:'s)?|response(?:'s)?|performance)\b,?\s*)"
)
_WORD = r"(?:scores?|ratings?|grades?|marks?)"
# "Score: 9" opening a line or a sentence; after a quotation mark it would be somebody else's words
_LABELLED = re.compile(
    rf"(?:^[\s#(\[{{•-]*|(?<=[.!?)\"])\s){_FILL}{{0,6}}(?:\"score\"|(?:score|rating|grade|mark)\b|"
    rf"(?:overall|verdict)(?=\s*:))[\s:=–—-]*(?:{_FILL}|[:=]\s*){{0,6}}{_SCORE}{_TAIL}",
    re.IGNORECASE | re.MULTILINE,
)
# "I would give it an 8", "it deserves a 7", "the answer receives a score of 6"
_GIVEN = re.compile(
    rf"(?:\b(?:i|we)(?:'d|'ll)?\s+(?:would\s+|will\s+)?(?:give|rate|score|grade|assign|award)|\bdeserves|"
    rf"\b(?:gets|receives|earns)(?=[^.\n]{{0,40}}(?:score|rating|/\s*10|out of 10)))"
    rf"\s+(?:{_FILL}|an?\s+|{_WORD}\s+){{0,8}}{_SCORE}{_TAIL}",
    re.IGNORECASE,
)
_IF = re.compile(r"\b(?:if|unless|otherwise|would have|could have|had (?:it|the))\b", re.IGNORECASE)
_NOT = re.compile(r"\b(?:not|cannot|never|hardly|could|might)\b|n't\b", re.IGNORECASE)
_ALONE = re.compile(rf"[\s#(•-]*{_SCORE}[\s.)]*", re.IGNORECASE)
_OPENS_OF_TEN = re.compile(rf"\s*{_number(_ONE_TO_TEN)}{_OF_TEN}{_TAIL}", re.IGNORECASE)
_MENTION = re.compile(rf"\b(?:{_WORD}|tuple|rated?|scored|evaluation\b.*:$)", re.IGNORECASE)
_FINAL = re.compile(r"\b(?:final|overall)\b", re.IGNORECASE)

_VARIANTS = str.maketrans("：／，’‘“”\u00a0\ue001\ue002", ":/,''\"\"   ")


def parse_score(text: str) -> float | None:
    """Return the score (1 to 10) a judge gave one answer, None where its reply holds no clear one.

    Read are "Score: 8" (also 9/10, 8.5, [8], bold, after the explanation), sentences such as "I
    would give it an 8", and a score alone on a line. Of different scores the one called final or
    overall counts; without one there is no verdict. Never raises.

    Paper: §5.3, Appendix A asks for "Score: [an integer number between 1 and 10]"; other forms are ours.
    """
    text = _plain(text)
    labelled = [(m[1], bool(_FINAL.search(m[0]))) for m in _LABELLED.finditer(text)]
    if labelled:
        return _only([score for score, final in labelled if final] or [score for score, _ in labelled])
    given = [m[1] for m in _GIVEN.finditer(text) if not _hedged(text, m.start())]
    lines = _lines(text)
    if given or not lines:
        return _only(given)
    first, last = _ALONE.fullmatch(lines[0]), _ALONE.fullmatch(lines[-1])
    if first and not any(_ALONE.fullmatch(line) for line in lines[1:2]):  # "8\n7" are two
        return float(first[1])
    opening = _OPENS_OF_TEN.match(lines[0])
    if opening:
        return float(opening[1])
    # a bare number that ends the reply may also be the result of a sum
    if last and len(lines) > 1 and (re.search(_OF_TEN, last[0]) or _MENTION.search(lines[-2])):
        return float(last[1])
    return None


def _plain(text: str) -> str:
    """Return the text without reasoning in <think> tags, markdown emphasis and typographic variants."""
    text = text.rpartition("</think>")[2]
    if text.lstrip().startswith("<think>"):  # cut off while thinking: scratch work is no verdict
        return ""
    text = text.translate(_VARIANTS)
    # "**8**" and "_8_", but not the product in "2 * 3" or the index in "x_1"
    return re.sub(r"(?<![^\W_])[*_]{1,3}(?=\S)|(?<=\S)[*_]{1,3}(?![^\W_])|`", "", text)


def _lines(text: str) -> list[str]:
    """Return the lines with anything to read on them."""
    return [line for line in text.splitlines() if re.search(r"[^\W_]|[\ue001\ue002]", line)]


def _only(scores: Iterable[str]) -> float | None:
    """Return the score if all are the same, else None."""
    distinct = {float(score) for score in scores}
    return distinct.pop() if len(distinct) == 1 else None


def _hedged(text: str, start: int) -> bool:
    """Return whether what leads up to `start` makes it a condition, a denial or a quotation."""
    sentence = re.split(r"[.!?]\s|\n", text[max(0, start - 300) : start])[-1]
    clause = re.split(r"[,;:(]", sentence)[-1]
    return bool(_IF.search(sentence) or _NOT.search(clause) or sentence.count('"') % 2)


# ---- reading two scores -----------------------------------------------------------------------

_A, _B = "\ue001", "\ue002"  # stand for "Assistant 1" and "Assistant 2", whose digits are no scores
_BOTH = re.compile(
    r"\bassistants?\s+1\s*(?:and|&|,|/)\s*(?:assistant\s+)?2\b|\bboth\s+assistants\b", re.IGNORECASE
)
_NAME = re.compile(r"(?:\bAI\s+)?\b(?:assistant|answer|response)\s*#?([12])\b(?!\.[0-9])", re.IGNORECASE)
# 0 is off the scale but unmistakable: GPT-4 gives it to empty answers; unparsed would hide that they lost
_ZERO_TO_TEN = rf"0(?![.,]?[0-9])|{_ONE_TO_TEN}"
_SCORE_0 = rf"{_number(_ZERO_TO_TEN)}(?:{_OF_TEN}{_CLOSE})?"
_SECOND = rf"{_number(_ZERO_TO_TEN, not_after='')}(?:{_OF_TEN}{_CLOSE})?"  # "8,7": of two values asked for
_PAIR = rf"[\[({{]{{0,2}}{_SCORE_0}(?:\s*[,;|&]\s*|\s+and\s+|\s+vs\.?\s+|\s+){_SECOND}[\])}}]{{0,2}}"
_PAIR_FIRST = re.compile(
    rf"[\s#•-]*(?:(?:the\s+)?(?:final\s+|overall\s+)?{_WORD}\s*(?:(?:for|of)\s+)?)?(?:{_A}[\s,]*{_B})?"
    rf"[\s:=-]*(?:(?:are|is)\b[\s:]*)?{_PAIR}{_TAIL}",
    re.IGNORECASE,
)
_PAIR_ALONE = re.compile(rf"[\s#•-]*{_PAIR}[\s.]*", re.IGNORECASE)
# "Scores: 8 9", "the tuple of scores is (1, 3)"
_PAIR_CALLED = re.compile(
    rf"\b(?:{_WORD}|tuple)\b[^.\n0-9]{{0,60}}?(?:\b(?:is|are|of)\b|[:=])\s*{_PAIR}{_TAIL}", re.IGNORECASE
)
# "Assistant 1: 8", "Assistant 2's answer receives a score of 7/10", "| Assistant 1 | 8 |"
_NAMED = re.compile(
    rf"({_A}{_B}|[{_A}{_B}])((?:'s(?:\s+[a-z]+){{1,3}}?)?(?:[\s:=|,(–—-]|(?:{_WORD}|gets?|receives?|"
    rf"earns?|deserves?|scored|is|was|with|at|an?|of|as|the|would|be|overall|final)\b)"
    rf"{{1,12}}){_SCORE_0}{_TAIL}",
    re.IGNORECASE,
)
# "a score of 5 to Assistant 1"
_GIVEN_TO = re.compile(rf"{_SCORE_0}\s+(?:points?\s+)?(?:to|for)\s+({_A}{_B}|[{_A}{_B}])", re.IGNORECASE)
# both by name side by side, where no word says that these are scores
_SIDE_BY_SIDE = re.compile(
    rf"^[\s#•|-]*([{_A}{_B}])[\s:=|(–—-]{{1,6}}{_SCORE_0}{_TAIL}[\s,;.|•-]*(?:and\s+|while\s+)?"
    rf"(?!\1)([{_A}{_B}])[\s:=|(–—-]{{1,6}}{_SCORE_0}{_TAIL}",
    re.IGNORECASE | re.MULTILINE,
)
_CALLS_IT_SCORE = re.compile(rf"\b(?:{_WORD}|deserves?|scored)\b", re.IGNORECASE)
_AWARDS = re.compile(rf"\b(?:{_WORD}|give|rate|assign|award)\b", re.IGNORECASE)
_STATES = re.compile(r"\b(?:is|was|be)\b", re.IGNORECASE)
_HEADING = re.compile(rf"[^\w{_A}{_B}]*([{_A}{_B}])(?!{_B})\W*?(?::|$)")


def parse_comparison(text: str) -> tuple[float, float] | None:
    """Return the scores (0 to 10) of Assistant 1 and Assistant 2, None where the reply holds no clear pair.

    The first line is believed, as asked for ("8 7", "9/10, 7/10", "Assistant 1: 8, Assistant 2: 7").
    Else every verdict in the text is collected ("Assistant 2: 7 … Assistant 1: 8" in any order, "the
    scores are (1, 3)", a line "2 10" after the explanation), and all must agree unless some are
    called final or overall. Never raises.

    Paper: §5.2, Appendix A asks for "a single line containing only two values"; other forms are ours.
    """
    text = _BOTH.sub(_A + _B, _plain(text))
    lines = _lines(_NAME.sub(lambda m: _A if m[1] == "1" else _B, text))
    opening = _opening_pair(lines)
    if opening:
        return opening
    last_final = max((i for i, line in enumerate(lines) if _FINAL.search(line)), default=0)
    for part in (lines[last_final:], lines):
        found = {*_pairs(part), *_named_scores(part)}
        if len(found) == 1:
            return found.pop()
    return None


def _opening_pair(lines: Sequence[str]) -> tuple[float, float] | None:
    """Return the pair with which the reply opens, on one line or on two."""
    first = _PAIR_FIRST.match(lines[0]) if lines else None
    if first:
        return float(first[1]), float(first[2])
    alone = [_ALONE.fullmatch(line) for line in lines[:3]]
    if len(alone) > 1 and alone[0] and alone[1] and not any(alone[2:]):
        return float(alone[0][1]), float(alone[1][1])
    named = _SIDE_BY_SIDE.match("\n".join(lines[:2]))
    return _in_order(named) if named else None


def _in_order(named: re.Match[str]) -> tuple[float, float]:
    """Return the scores of a _SIDE_BY_SIDE, Assistant 1's first."""
    first, second = float(named[2]), float(named[4])
    return (first, second) if named[1] == _A else (second, first)


def _pairs(lines: Sequence[str]) -> Iterator[tuple[float, float]]:
    """Yield the pairs that are called scores or stand on a line of their own after the explanation."""
    for before, line in zip(["", *lines], lines, strict=False):
        for m in _PAIR_CALLED.finditer(line):
            if not re.search(rf"{_B}.{{0,12}}{_A}", line[: m.start(1)]):  # "of 2 and 1 are …, respectively"
                yield float(m[1]), float(m[2])
        alone = _PAIR_ALONE.fullmatch(line)
        # after "the roots are" or "x =" two numbers are mathematics
        told = re.search(f"[{_A}{_B}]", before) and before.rstrip().endswith((".", "!", "?"))
        if alone and (_MENTION.search(before) or (told and "(" not in line)):
            yield float(alone[1]), float(alone[2])
    closing = "\n".join(lines[-2:])
    named = _SIDE_BY_SIDE.search(closing)
    if named and not re.search(r"[^\W_]", closing[named.end() :]):
        before = lines[-3:-2] if named.start() == 0 else lines[-2:-1]
        if before and before[0].rstrip().endswith((".", "!", "?")):
            yield _in_order(named)


def _named_scores(lines: Sequence[str]) -> Iterator[tuple[float, float]]:
    """Yield every combination of the scores given to each by name; more than one is a contradiction."""
    scores: dict[str, set[float]] = {_A: set(), _B: set()}
    above, section = "", ""  # the last line without such a score; whose heading came last
    for line in lines:
        heading, named = _HEADING.match(line), list(_NAMED.finditer(line))
        section = heading[1] if heading else section
        found = [(m[1], m[3]) for m in named if _is_award(line, m, above)]
        found += [(m[2], m[1]) for m in _GIVEN_TO.finditer(line) if _AWARDS.search(line[: m.start()])]
        own = None if named else _LABELLED.match(line)
        found += [(section, own[1])] if own else []
        for names, score in found:
            for name in names:  # two where both get the same
                scores[name].add(float(score))
        above = above if named else line
    yield from ((first, second) for first in scores[_A] for second in scores[_B])


def _is_award(line: str, named: re.Match[str], above: str) -> bool:
    """Return whether a name and a number on a line are a score; they may also report a result."""
    sentence = re.split(r"[.!?]\s", line[: named.start()])[-1]
    is_label = not re.search(r"[a-z]", named[2], re.IGNORECASE)  # "Assistant 1: 8", under "Scores:"
    awarded = (
        _CALLS_IT_SCORE.search(named[2])
        or (not _STATES.search(named[2]) and (_AWARDS.search(sentence) or re.search(_OF_TEN, named[0])))
        or (is_label and _MENTION.search(above))
    )
    return bool(awarded) and not _hedged(line, named.start())
