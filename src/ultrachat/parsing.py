"""Reading lists and whole dialogues out of what models really return.

A model asked for ten numbered lines may begin with "Here are 10 questions:", number with `1)`,
write **1.** in bold, wrap a line, return nine, or close with "Let me know if you need more".

Absent on purpose: repair. What is not clearly an item is left out and the count says so; the
judge's verdicts have their own parser in `judge`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

# "1." "1)" "(1)" "1:" "**1.**" "1 -" at the start of a line, then the item; not "1.5 litres" or "3-day"
_NUMBERED = re.compile(r"^\s*(?:[*_]{1,2})?\(?(\d{1,3})(?:[.)](?!\d)|\s?[:–-](?=\s))[*_]{0,2}\s*(\S.*)$")
_BULLET = re.compile(r"^\s*[-*•–]\s+(\S.*)$")
_CODE_FENCE = re.compile(r"^\s*```\w*\s*$")


class ParsedList(NamedTuple):
    """The items of a list, how many were asked for, and the lines that belong to no item.

    Ours: "asked 20, got 17" is a fact to show, not an error.
    """

    items: list[str]
    asked: int
    ignored: list[str]

    @property
    def complete(self) -> bool:
        """Whether exactly as many items came as were asked for."""
        return len(self.items) == self.asked


def parse_list(text: str, asked: int) -> ParsedList:
    """Return the items of a numbered list (or, if nothing is numbered, a bulleted one) in order.

    An indented line after an item continues it; a blank line ends it; other lines are ignored.
    Never raises; items beyond `asked` are kept, for they were paid for.

    Ours: the paper does not say how its lists were read.
    """
    lines = [line for line in text.splitlines() if not _CODE_FENCE.match(line)]
    pattern = _NUMBERED if any(_NUMBERED.match(line) for line in lines) else _BULLET
    items: list[str] = []
    ignored: list[str] = []
    within = False  # whether the line before belongs to an item
    for line in lines:
        match = pattern.match(line)
        if match:
            items.append(_tidy(match.groups()[-1]))
            within = True
        elif within and line[:1].isspace() and line.strip():
            items[-1] = f"{items[-1]} {line.strip()}"
        else:
            within = False
            if line.strip():
                ignored.append(line.strip())
    return ParsedList([item for item in items if item], asked, ignored)


def _tidy(item: str) -> str:
    """Strip what wraps a whole item: white space, one pair of quotes, one pair of bold marks."""
    item = item.strip()
    for mark in ("**", '"'):
        inner = item[len(mark) : -len(mark)]
        if len(item) > 2 * len(mark) and item.startswith(mark) and item.endswith(mark) and mark not in inner:
            item = inner.strip()
    # "**1. Title**": its opening mark stood before the number
    return item[:-2].rstrip() if item.endswith("**") and item.count("**") == 1 else item


_SPEAKER = re.compile(
    r"^\s*(?:\d{1,3}[.)]\s*)?[*_]{0,2}(user|human|assistant|ai)\s*:\s*[*_]{0,2}\s*", re.IGNORECASE
)


def parse_dialogue(text: str) -> list[tuple[str, str]]:
    """Return the (user, assistant) rounds of a dialogue written as `User:` and `Assistant:` paragraphs.

    Two messages of one speaker in a row are joined; an unanswered last message is left out. Never
    raises; text without such labels gives no rounds.

    Paper: §3, Table 20 (direct generation).
    """
    messages: list[tuple[str, str]] = []
    for line in text.splitlines():
        match = _SPEAKER.match(line)
        if match:
            role = "user" if match[1].lower() in ("user", "human") else "assistant"
            rest = line[match.end() :]
            if messages and messages[-1][0] == role:
                messages[-1] = (role, f"{messages[-1][1]}\n{rest}")
            else:
                messages.append((role, rest))
        elif messages:
            messages[-1] = (messages[-1][0], f"{messages[-1][1]}\n{line}")
    messages = [(role, content.strip()) for role, content in messages]
    if messages and messages[0][0] != "user":
        messages = messages[1:]
    pairs = zip(messages[::2], messages[1::2], strict=False)
    return [(user, assistant) for (_, user), (_, assistant) in pairs if user and assistant]
