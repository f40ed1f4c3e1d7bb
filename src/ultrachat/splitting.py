"""Dialogues longer than the limit are split between rounds: nothing that fits is lost, nothing is learnt twice.

    rounds of 900 tokens, limit 2,048:      ① ② ③ ④ ⑤   ->   [① ②]   [② ③*]   …

A row takes as many new rounds as fit; then the rounds before them, nearest first, go in front as context while
there is room: the paper wants every piece to have "access to the relevant information from earlier parts".
They are read and not learnt again. A round that is too long by itself is cut at the limit, counted and warned of.

The authors' `split_long.py` loses rounds: of three rounds of 900 tokens it makes one row of two.

Absent on purpose: the formats (`sft`), and cutting within a message that would fit into a row of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from operator import add, attrgetter

from ultrachat.errors import Stop
from ultrachat.records import Dialogue
from ultrachat.sections import Example, Remembered
from ultrachat.sft import Encoder, Rounds

MAX_TOKENS = 2048  # Paper: §4.6
_LOG = logging.getLogger(__name__)  # it prints warnings, unless told otherwise
AT_ONCE = 512  # dialogues tokenised in one call


@dataclass(frozen=True)
class SplitReport:
    """What splitting did, in counts; the reports of several dialogues are added with `+`.

    `n_context_tokens` are what context adds to the rows: read once more, and not learnt again. `n_cut_rounds` are rounds
    longer than the limit, `n_lost_tokens` the learnt tokens beyond it, and `n_lost_rounds` those cut
    rounds of which nothing to learn was left, so that they have no row. It always holds that
    n_learnt_tokens + n_lost_tokens = the learnt tokens of the whole dialogues.

    Ours: the authors' script drops rounds without a word.
    """

    n_dialogues: int = 0
    n_rounds: int = 0
    n_rows: int = 0
    n_tokens: int = 0
    n_learnt_tokens: int = 0
    n_context_tokens: int = 0
    n_cut_rounds: int = 0
    n_lost_tokens: int = 0
    n_lost_rounds: int = 0

    def __add__(self, other: SplitReport) -> SplitReport:
        return SplitReport(*map(add, _COUNTS(self), _COUNTS(other)))

    @property
    def cut(self) -> str:
        """What was cut, in words."""
        return (
            f"{self.n_cut_rounds:,} rounds were longer than the limit and cut, {self.n_lost_tokens:,} "
            f"tokens of theirs are not learnt, {self.n_lost_rounds:,} of these rounds not at all"
        )

    def __str__(self) -> str:
        line = (
            f"{self.n_dialogues:,} dialogues, {self.n_rounds:,} rounds -> {self.n_rows:,} rows of "
            f"{self.n_tokens:,} tokens: {self.n_learnt_tokens:,} learnt, {self.n_context_tokens:,} repeated as context"
        )
        return f"{line}; {self.cut if self.n_cut_rounds else 'no round was cut'}"


_COUNTS = attrgetter(*(field.name for field in fields(SplitReport)))


def split_all(
    dialogues: Iterable[Dialogue], encoder: Encoder, max_tokens: int = MAX_TOKENS
) -> tuple[list[Example], SplitReport]:
    """Return the rows of all dialogues in order, each of at most `max_tokens`, and what was done.

    A row knows the first round that it learns and the dialogue's sector. Warns of rounds that were cut.
    Raises Stop when the limit leaves no room for any round.

    Paper: §4.6.
    """
    examples: list[Example] = []
    report = SplitReport()
    for rows, counts in split_each(dialogues, encoder, max_tokens):
        examples += rows
        report += counts
    if report.n_cut_rounds:
        _LOG.warning("max_tokens %s: %s", max_tokens, report.cut)
    return examples, report


def split(
    dialogue: Dialogue, encoder: Encoder, max_tokens: int = MAX_TOKENS
) -> tuple[list[Example], SplitReport]:
    """Return one dialogue's rows and its report, as `split_all` does but without a warning.

    Paper: §4.6 names the limit of 2,048 tokens only; the authors' `split_long.py` loses rounds.
    """
    return next(split_each([dialogue], encoder, max_tokens))


def split_each(
    dialogues: Iterable[Dialogue], encoder: Encoder, max_tokens: int = MAX_TOKENS
) -> Iterator[tuple[list[Example], SplitReport]]:
    """Yield each dialogue's rows and its report; only some hundred dialogues are in memory at a time.

    Raises Stop as `split_all` does.

    Ours: a million dialogues do not fit into memory.
    """
    _check_room(encoder, max_tokens)
    dialogues = iter(dialogues)
    while chunk := list(islice(dialogues, AT_ONCE)):
        tokens = encoder.remembered()
        wholes = encoder.assemble([encoder.sections(dialogue.rounds) for dialogue in chunk], tokens)
        long = [d for d, whole in zip(chunk, wholes, strict=True) if whole.n_tokens > max_tokens]
        parts = _split(long, encoder, tokens, max_tokens)
        for dialogue, whole in zip(chunk, wholes, strict=True):
            if whole.n_tokens > max_tokens:
                yield next(parts)
            else:  # the usual case
                yield [Example(whole.input_ids, whole.labels, 0, dialogue.sector)], SplitReport(
                    n_dialogues=1, n_rounds=len(dialogue.messages) // 2, n_rows=1, n_tokens=whole.n_tokens,
                    n_learnt_tokens=whole.n_learnt_tokens,
                )  # fmt: skip


def _check_room(encoder: Encoder, max_tokens: int) -> None:
    """Raise Stop unless a row has room for more than the format's own tokens."""
    n_front = encoder.assemble([encoder.sections([("", "")])])[0].n_tokens
    if n_front >= max_tokens:
        raise Stop(f"max_tokens: {max_tokens} leaves no room after the {n_front} tokens of an empty round")


def _split(
    dialogues: Sequence[Dialogue], encoder: Encoder, tokens: Remembered, max_tokens: int
) -> Iterator[tuple[list[Example], SplitReport]]:
    """Yield the rows and the report of each dialogue, all of them longer than `max_tokens`."""
    # a round may read otherwise at the front of a row: all of these in one call
    tokens.ask(
        s.text
        for d in dialogues
        for i in range(len(d.rounds))
        for s in encoder.sections(d.rounds, i, i, i + 1)
    )
    lengths = [_Lengths(dialogue.rounds, encoder, tokens) for dialogue in dialogues]
    plans = [_plan(length, len(d.rounds), max_tokens) for d, length in zip(dialogues, lengths, strict=True)]
    sections = [
        encoder.sections(dialogue.rounds, begin, start, end)
        for dialogue, plan in zip(dialogues, plans, strict=True)
        for begin, start, end in plan
    ]
    rows = iter(encoder.assemble(sections, tokens))
    for dialogue, plan, length in zip(dialogues, plans, lengths, strict=True):
        examples, report = [], SplitReport(n_dialogues=1, n_rounds=len(dialogue.rounds))
        for row, (begin, start, end) in zip(islice(rows, len(plan)), plan, strict=True):
            kept = Example(row.input_ids[:max_tokens], row.labels[:max_tokens], start, dialogue.sector)
            report += _count(row, kept, row.n_tokens - length(start, end) if begin < start else 0)
            if kept.n_learnt_tokens:  # the loss of a row without labels is 0 / 0
                examples.append(kept)
        yield examples, report


class _Lengths:
    """How many tokens a row of the rounds begin..end of one dialogue has."""

    def __init__(self, rounds: Rounds, encoder: Encoder, tokens: Remembered) -> None:
        self._rounds, self._encoder, self._tokens = rounds, encoder, tokens

    def __call__(self, begin: int, end: int) -> int:
        sections = self._encoder.sections(self._rounds, begin, begin, end)
        self._tokens.ask(section.text for section in sections)
        return sum(self._tokens.n_tokens(section.text) + len(section.marks) for section in sections)


def _plan(length: _Lengths, n_rounds: int, max_tokens: int) -> list[tuple[int, int, int]]:
    """Return for each row (begin, start, end): rounds begin..start are its context, start..end are new.

    A round longer than `max_tokens` gets a row of its own.
    """
    rows, start = [], 0
    while start < n_rounds:
        end = start + 1
        while end < n_rounds and length(start, end + 1) <= max_tokens:
            end += 1
        begin = start
        while begin > 0 and length(begin - 1, end) <= max_tokens:
            begin -= 1
        rows.append((begin, start, end))
        start = end
    return rows


def _count(row: Example, kept: Example, n_context_tokens: int) -> SplitReport:
    """Count one row before and after it was cut at the limit."""
    return SplitReport(
        n_rows=int(kept.n_learnt_tokens > 0),
        n_tokens=kept.n_tokens if kept.n_learnt_tokens else 0,
        n_learnt_tokens=kept.n_learnt_tokens,
        n_context_tokens=n_context_tokens,
        n_cut_rounds=int(row.n_tokens > kept.n_tokens),
        n_lost_tokens=row.n_learnt_tokens - kept.n_learnt_tokens,
        n_lost_rounds=int(kept.n_learnt_tokens == 0),
    )
