"""Sections: the stretches a dialogue is tokenised in, and the rows of ids and labels they become.

A tokenizer merges characters into tokens wherever it may, so where text is cut decides what the ids are, and
where the loss can begin. A Section is tokenised in one piece; special tokens come only from its `marks`:

    Section("\\nAssistant: ")                              read, not learnt
    Section("Hello!", learnt_from=0, marks=(2,), n_marks_learnt=1)     learnt, and the `</s>` after it too

A special token typed in a message stays the characters it is made of. What a chat format is made of is for
`sft` (UltraLLaMA's) and `chat_templates` (any other) to say; here it makes no difference.

Absent on purpose: torch (`batching` makes tensors).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np

IGNORE_INDEX = -100  # torch's cross-entropy leaves these positions out
_NEVER = np.iinfo(np.int64).max

Tokens = Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]
"""Texts to their ids, one after another (int32), and where each text's begin and the last ends (n + 1, int64)."""
Borders = Callable[[Sequence[str], Sequence[int]], Sequence[int]]
"""Texts and a character in each to the first token whose last character is that one or a later one."""
_BEYOND = 48  # characters of a learnt part that are looked at first; few tokens are longer


class Section(NamedTuple):
    """Text tokenised in one piece, then special tokens by their ids (`marks`).

    Learnt are its tokens from character `learnt_from` on (None: none of them), and the first
    `n_marks_learnt` marks. A token that reaches across that character is learnt: the model writes it whole.

    Ours: what the paper's format and every chat template have in common.
    """

    text: str
    learnt_from: int | None = None
    marks: tuple[int, ...] = ()
    n_marks_learnt: int = 0

    def only_read(self) -> Section:
        """Return the same section with nothing in it learnt."""
        return self._replace(learnt_from=None, n_marks_learnt=0)


@dataclass(frozen=True, eq=False)
class Example:
    """One row to train on: `input_ids` and `labels`, int32 arrays of the same length (tokens).

    A label is the id itself where the token is learnt and IGNORE_INDEX elsewhere. The shift by one
    (position i predicts token i + 1) is left to the model, as everywhere in transformers. Each learnt
    message is one run of labels; the first belongs to round `first_round` of its dialogue (from 0),
    which is of `sector`, where it has one.

    Paper: §4.6 ("we only calculate the loss for the model's responses").
    """

    input_ids: np.ndarray
    labels: np.ndarray
    first_round: int = 0
    sector: str | None = None

    @property
    def n_tokens(self) -> int:
        """The length of the row."""
        return len(self.input_ids)

    @property
    def n_learnt_tokens(self) -> int:
        """How many of its tokens enter the loss."""
        return int((self.labels != IGNORE_INDEX).sum())


class Remembered:
    """Tokens that asks for each text once and keeps its ids; make one for some hundred dialogues, then another.

    Ours: a dialogue that is split is put together three times from the same texts.
    """

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._ids: dict[str, np.ndarray] = {}

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        self.ask(texts)
        found = [self._ids[text] for text in texts]
        starts = np.zeros(len(found) + 1, np.int64)
        np.cumsum([len(ids) for ids in found], out=starts[1:])
        return np.concatenate([np.zeros(0, np.int32), *found]), starts

    def ask(self, texts: Iterable[str]) -> None:
        """Tokenise those of the texts that are new, in one call.

        Ours: many at once are several times as fast as one by one.
        """
        new = [text for text in dict.fromkeys(texts) if text not in self._ids]
        if new:
            ids, starts = self._tokens(new)
            ends = starts.tolist()
            self._ids |= {text: ids[a:b] for text, a, b in zip(new, ends[:-1], ends[1:], strict=True)}

    def n_tokens(self, text: str) -> int:
        """Return how many tokens a text has; raises KeyError for one that was not asked for.

        Ours: splitting tries lengths before it makes a row.
        """
        return len(self._ids[text])


def assemble(rows: Sequence[Sequence[Section]], tokens: Tokens, borders: Borders) -> list[Example]:
    """Return one Example for each list of sections, all of their texts tokenised in one call of `tokens`.

    `borders` is asked where a learnt part begins inside a token, or where that cannot be seen from the ids.

    Ours: one pass over whole arrays; a loop over tokens would take most of the time.
    """
    sections = list(chain.from_iterable(rows))
    ids, starts = tokens([section.text for section in sections])
    sizes = np.diff(starts)
    n_marks = np.fromiter((len(section.marks) for section in sections), np.int64, len(sections))
    begins = np.concatenate([[0], np.cumsum(sizes + n_marks)])  # of each section, in the joined rows
    joined = np.empty(int(begins[-1]), np.int32)
    learnt = np.zeros(len(joined), bool)
    within = np.arange(len(ids)) - np.repeat(starts[:-1], sizes)  # which token of its section
    at = within + np.repeat(begins[:-1], sizes)
    joined[at] = ids
    learnt[at] = within >= np.repeat(_first_learnt(sections, ids, starts, tokens, borders), sizes)
    nth = np.arange(n_marks.sum()) - np.repeat(np.cumsum(n_marks) - n_marks, n_marks)
    at = nth + np.repeat(begins[:-1] + sizes, n_marks)
    joined[at] = np.fromiter(chain.from_iterable(section.marks for section in sections), np.int32, len(nth))
    n_marks_learnt = np.fromiter((section.n_marks_learnt for section in sections), np.int64, len(sections))
    learnt[at] = nth < np.repeat(n_marks_learnt, n_marks)
    labels = np.where(learnt, joined, np.int32(IGNORE_INDEX))
    ends = begins[np.cumsum([len(row) for row in rows])] if rows else begins[:0]
    return [
        Example(joined[begin:end], labels[begin:end])
        for begin, end in zip([0, *ends[:-1]], ends, strict=False)
    ]


def _first_learnt(
    sections: Sequence[Section], ids: np.ndarray, starts: np.ndarray, tokens: Tokens, borders: Borders
) -> np.ndarray:
    """Return for each section which of its tokens is the first that is learnt (n,) int64."""
    first = np.full(len(sections), _NEVER)
    inside = []
    for position, section in enumerate(sections):
        if section.learnt_from == 0:
            first[position] = 0
        elif section.learnt_from is not None:
            inside.append(position)
    if not inside:
        return first
    # where the ids of what stands before are the first ids of the whole, a token ends at the border
    left = []
    heads, head_starts = tokens([sections[i].text[: sections[i].learnt_from] for i in inside])
    for position, begin, end in zip(inside, head_starts[:-1].tolist(), head_starts[1:].tolist(), strict=True):
        at = int(starts[position])
        if np.array_equal(heads[begin:end], ids[at : at + end - begin]):
            first[position] = end - begin
        else:
            left.append(position)
    # a token reaches across: the same ids up to it spell the same text, so the front of a message will do
    ats = [sections[i].learnt_from for i in left]
    fronts = [sections[i].text[: at + _BEYOND] for i, at in zip(left, ats, strict=True)]
    found = borders(fronts, ats) if left else []
    front_ids, front_starts = tokens(fronts)
    unsure = []
    for position, begin, end, token in zip(
        left, front_starts[:-1].tolist(), front_starts[1:].tolist(), found, strict=True
    ):
        at, n = int(starts[position]), token + 1
        if begin + n <= end and np.array_equal(front_ids[begin : begin + n], ids[at : at + n]):
            first[position] = token
        else:
            unsure.append(position)
    if unsure:
        whole = [(sections[i].text, sections[i].learnt_from) for i in unsure]
        first[unsure] = borders(*zip(*whole, strict=True))
    return first
