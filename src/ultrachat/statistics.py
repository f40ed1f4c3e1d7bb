"""The columns of the paper's Table 5, each with its readings by name.

The paper names neither the tokenizer nor what an utterance is, so a column that can be read in several
ways has them all here, the one that reproduces the paper first (`DEFINITIONS`). For Stanford Alpaca the
table says 91.1 tokens a dialogue, 64.5 an utterance, lexical diversity 42.8; what comes out near that:

    utterance_tokens    LLaMA's SentencePiece without a beginning mark, assistant messages only
    dialogue_tokens     the same over `User: …\\nAssistant: …`, plus one for the beginning mark
    lexical_diversity   MTLD of each assistant message, those without words left out, averaged
    rounds              a user and an assistant message (what the table calls a turn)

A dialogue is the list of its texts in alternation, the user first (`Dialogue.texts`). Functions of one
dialogue are the definitions to be read; a `Batch` measures many at once and gives the same numbers.
Messages of one dialogue resemble each other, so errors are computed over dialogues (`sums`).

Absent on purpose: files (`measure`), embeddings and topic diversity (`topics`), language models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from ultrachat import lexical
from ultrachat.errors import Stop
from ultrachat.sums import Sums, mean_with_error
from ultrachat.tokens import TokenCounter, token_counter, tokenizer_label
from ultrachat.topics import TopicDiversity, topic_diversity

Which = Literal["assistant", "user", "all"]
SIDES: tuple[Which, ...] = ("assistant", "user", "all")
DIALOGUES_AT_ONCE = 1_000  # bounds memory, nothing else


# ---- one dialogue: the definitions ------------------------------------------------------------


def rounds(texts: Sequence[str]) -> int:
    """Return the number of rounds, pairs of a user and an assistant message.

    Paper: Table 5, "Avg. #Turns" (UltraChat's 3.8 is its number of rounds, not of messages).
    """
    return len(texts) // 2


def texts_by(texts: Sequence[str], which: Which = "assistant") -> list[str]:
    """Return the texts of the assistant's messages, of the user's, or of all, in order.

    Raises Stop when `which` is another word.

    Paper: Table 5 speaks of utterances without saying whose.
    """
    if which not in SIDES:
        raise Stop(f"which '{which}': expected assistant, user or all")
    return list(texts if which == "all" else texts[which == "assistant" :: 2])


def utterance_lengths(texts: Sequence[str], count: TokenCounter, which: Which = "assistant") -> list[int]:
    """Return the length in tokens of each message by `which` side, in order.

    Paper: Table 5, "Avg. Utt. Length"; only assistant messages give Alpaca's 64.5 and can give
    UltraChat's 309.3, whose mean over all messages is below 1467.4 / (2 × 3.8) = 193.
    """
    return [count(text) for text in texts_by(texts, which)]


def labelled_text(texts: Sequence[str]) -> str:
    """Return the dialogue as one text, a line break before each label but the first.

        User: Name a fruit.
        Assistant: A pear.

    Ours: the labels of the authors' training script (thunlp/UltraChat, train/ultrachat_dataset.py).
    """
    return "\n".join(f"{('User', 'Assistant')[i % 2]}: {text}" for i, text in enumerate(texts))


def dialogue_length(texts: Sequence[str], count: TokenCounter, labels: bool = True) -> int:
    """Return the length of the whole dialogue in tokens.

    With `labels` it is that of `labelled_text` plus one for the mark a tokenizer puts at the
    beginning; with LLaMA's that is 7 tokens a round more than without, the bare sum of messages.

    Paper: Table 5, "Avg. Dialog Length"; with labels Alpaca gives 91 and UltraChat 1,468 (printed
    91.1 and 1467.4), bare text 84 and 1,441.
    """
    if labels:
        return 1 + count(labelled_text(texts))
    return sum(utterance_lengths(texts, count, "all"))


def lexical_diversities(texts: Sequence[str], which: Which = "assistant") -> list[float]:
    """Return the MTLD of each message by `which` side, those without words left out.

    Paper: Table 5, "averaging the MTLD score over each utterance"; assistant messages give Alpaca's
    42.8 within its error, all messages about 35.
    """
    values = (lexical.mtld(text) for text in texts_by(texts, which))
    return [value for value in values if value is not None]


# ---- many dialogues at once -------------------------------------------------------------------

Contribution = tuple[np.ndarray, np.ndarray]  # of each dialogue: total of its values, how many they are


class Batch:
    """Dialogues measured together; each figure is computed when first asked for, and once.

    `segment` puts spaces between the words of a language written without (`lexical.segmenter`).

    Ours: the tokenizer and the compiled MTLD are fast on many texts at a time.
    """

    def __init__(
        self,
        dialogues: Sequence[Sequence[str]],
        count: TokenCounter,
        segment: Callable[[str], str] | None = None,
    ) -> None:
        self.dialogues, self._count, self._segment = dialogues, count, segment
        self.n_messages = np.array([len(texts) for texts in dialogues], np.int64)
        self._starts = np.cumsum(self.n_messages) - self.n_messages
        self._texts = list(chain.from_iterable(dialogues))
        position = np.arange(len(self._texts)) - np.repeat(self._starts, self.n_messages)
        self._by = {"assistant": position % 2 == 1, "user": position % 2 == 0, "all": position >= 0}
        self._measured: dict[str, np.ndarray] = {}

    @cached_property
    def message_tokens(self) -> np.ndarray:
        """The tokens of each message, (n_messages,)."""
        return self._count.many(self._texts)

    @cached_property
    def labelled_tokens(self) -> np.ndarray:
        """The tokens of each dialogue with role labels and without a beginning mark, (n_dialogues,)."""
        suffixes = [
            "" if i == len(texts) - 1 else ("\nAssistant:", "\nUser:")[i % 2]
            for texts in self.dialogues
            for i in range(len(texts))
        ]
        parts = self._count.many_after_labels(self._texts, self.message_tokens, suffixes)
        if parts is None:
            return self._count.many([labelled_text(texts) for texts in self.dialogues])
        return self._count("User:") + self._summed(parts, self._by["all"])[0]

    def tokens_by(self, which: Which) -> Contribution:
        """The tokens of the messages of one side."""
        return self._summed(self.message_tokens, self._by[which])

    def diversity_by(self, which: Which) -> Contribution:
        """The MTLD of the messages of one side that have words."""
        values = np.full(len(self._texts), np.nan)
        for side in ("assistant", "user"):
            if which in (side, "all"):
                values[self._by[side]] = self._mtlds_by(side)
        return self._summed(values, ~np.isnan(values))

    def diversity_of_dialogues(self) -> Contribution:
        """The MTLD of whole dialogues that have words."""
        values = self._mtlds(["\n".join(texts) for texts in self.dialogues])
        return np.nan_to_num(values), ~np.isnan(values)

    def _mtlds_by(self, side: str) -> np.ndarray:
        """The MTLD of each message of one side, measured once, and only when asked for."""
        if side not in self._measured:
            self._measured[side] = self._mtlds([self._texts[i] for i in np.flatnonzero(self._by[side])])
        return self._measured[side]

    def _mtlds(self, texts: list[str]) -> np.ndarray:
        return lexical.mtlds([self._segment(text) for text in texts] if self._segment else texts)

    def _summed(self, values: np.ndarray, used: np.ndarray) -> Contribution:
        if not len(self._starts):
            return np.zeros(0), np.zeros(0, np.int64)
        kept = np.where(used, values, 0)
        sizes = np.add.reduceat(used.astype(np.int64), self._starts)
        if kept.dtype.kind == "i":
            return np.add.reduceat(kept, self._starts), sizes
        ends = self._starts + self.n_messages  # fsum: rounded once, whatever the order
        return np.array([math.fsum(kept[a:b]) for a, b in zip(self._starts, ends, strict=True)]), sizes


def one_each(values: np.ndarray) -> Contribution:
    """Return a Contribution of one value a dialogue.

    Ours: what a mean over dialogues is made of.
    """
    return values, np.ones(len(values), np.int64)


class Definition(NamedTuple):
    """One reading of a column of Table 5; the first of a column is the one that reproduces the paper.

    Ours: the paper's wording allows several.
    """

    column: str
    reading: str
    measure: Callable[[Batch], Contribution]

    @property
    def key(self) -> str:
        """Its name in files and rows: "utterance_tokens/all"."""
        return f"{self.column}/{self.reading}"


_D, _U, _L = "dialogue_tokens", "utterance_tokens", "lexical_diversity"
DEFINITIONS: tuple[Definition, ...] = (
    Definition("rounds", "rounds", lambda b: one_each(b.n_messages // 2)),
    Definition("rounds", "messages", lambda b: one_each(b.n_messages)),
    Definition(_D, "labels", lambda b: one_each(b.labelled_tokens + 1)),
    Definition(_D, "labels, no beginning mark", lambda b: one_each(b.labelled_tokens)),
    Definition(_D, "labels, end marks", lambda b: one_each(b.labelled_tokens + 1 + b.n_messages)),
    Definition(_D, "bare", lambda b: one_each(b.tokens_by("all")[0])),
    Definition(_U, "assistant", lambda b: b.tokens_by("assistant")),
    Definition(_U, "user", lambda b: b.tokens_by("user")),
    Definition(_U, "all", lambda b: b.tokens_by("all")),
    Definition(_L, "assistant", lambda b: b.diversity_by("assistant")),
    Definition(_L, "user", lambda b: b.diversity_by("user")),
    Definition(_L, "all", lambda b: b.diversity_by("all")),
    Definition(_L, "whole dialogue", lambda b: b.diversity_of_dialogues()),
)
SIMILARITIES = {"pairs": "similarity", "with diagonal": "similarity_with_diagonal", "distance": "distance"}


def definition(column: str, reading: str | None = None) -> Definition:
    """Return a column's definition of that reading, the paper's when None; raises Stop for another name.

    Ours: definitions are parameters with names.
    """
    readings = {d.reading: d for d in DEFINITIONS if d.column == column}
    if not readings:
        raise Stop(f"column '{column}': expected one of {', '.join({d.column: 0 for d in DEFINITIONS})}")
    if reading is not None and reading not in readings:
        raise Stop(f"{column} '{reading}': expected one of {', '.join(readings)}")
    return readings[reading] if reading else next(iter(readings.values()))


# of Table 5's columns both readings where it is ambiguous; the first four are the paper's
PRINTED = (
    definition("rounds"), definition(_D), definition(_U), definition(_L), definition(_D, "bare"), definition(_U, "all"),
)  # fmt: skip


def sums_of(batch: Batch, definitions: Iterable[Definition]) -> dict[str, Sums]:
    """Return each definition's `Sums` over a batch, by its key.

    Ours: what blocks of a large file hand back.
    """
    return {d.key: Sums.of(*d.measure(batch)) for d in definitions}


def sums_over(
    dialogues: Iterable[Sequence[str]],
    count: TokenCounter,
    definitions: Sequence[Definition],
    segment: Callable[[str], str] | None = None,
) -> dict[str, Sums]:
    """Return each definition's `Sums` over dialogues, which are read once and few at a time.

    Ours: one way of averaging for every column.
    """
    totals = {d.key: Sums() for d in definitions}
    dialogues = iter(dialogues)
    while some := list(islice(dialogues, DIALOGUES_AT_ONCE)):
        for key, sums in sums_of(Batch(some, count, segment), definitions).items():
            totals[key] += sums
    return totals


# ---- coherence --------------------------------------------------------------------------------


class Coherence(NamedTuple):
    """Mean score (1 to 10) of the parsed verdicts, its 95 % interval, their number, and the unparsed share.

    Ours: the paper prints the mean alone and does not say what became of unreadable replies.
    """

    mean: float
    low: float
    high: float
    n: int
    unparsed_fraction: float


def coherence(scores: Iterable[float | None]) -> Coherence:
    """Return the `Coherence` of a judge's scores; None stands for a reply no score could be read from.

    The interval is Student's. Raises Stop for a score outside 1 to 10.

    Paper: Table 5, "scored by ChatGPT on a scale of 1-10".
    """
    from scipy.special import stdtrit

    scores = list(scores)
    for position, score in enumerate(scores):
        if score is not None and not 1 <= score <= 10:
            raise Stop(f"coherence score {position + 1}: {score}, expected 1 to 10, or None where unparsed")
    mean = mean_with_error([score] for score in scores if score is not None)
    half = float(stdtrit(mean.n - 1, 0.975)) * mean.se if mean.n > 1 else math.nan
    unparsed = 1 - mean.n / len(scores) if scores else math.nan
    return Coherence(mean.value, mean.value - half, mean.value + half, mean.n, unparsed)


# ---- the table --------------------------------------------------------------------------------


def compare_definitions(
    sums: Mapping[str, Sums],
    definitions: Iterable[Definition] = DEFINITIONS,
    topic: TopicDiversity | None = None,
) -> pd.DataFrame:
    """Return every reading of every column for one corpus: columns column, reading, used, value, se, n.

    `used` marks the reading we take for the paper's. Beside the paper's row for a corpus that can
    be had, the table shows why.

    Ours: how we know what Table 5 means.
    """
    rows = [(d.column, d.reading, d == definition(d.column), *sums[d.key].mean()) for d in definitions]
    if topic is not None:
        rows += [
            ("topic_diversity", reading, field == "similarity", getattr(topic, field),
             math.nan if field == "similarity_with_diagonal" else topic.se, topic.n)
            for reading, field in SIMILARITIES.items()
        ]  # fmt: skip
    return pd.DataFrame(rows, columns=["column", "reading", "used", "value", "se", "n"])


def row_of(
    sums: Mapping[str, Sums],
    *,
    name: str,
    tokenizer: str | Path,
    topic: TopicDiversity | None = None,
    coherence_scores: Iterable[float | None] = (),
) -> dict[str, Any]:
    """Return one row of Table 5 as a dict from the sums of the `PRINTED` definitions.

    Keys: dataset, tokenizer, n_dialogues; rounds, dialogue_tokens, utterance_tokens (assistant),
    lexical_diversity, dialogue_tokens_bare, utterance_tokens_all, each with its `…_se` and `…_n`;
    topic_ and the fields of `TopicDiversity`; coherence, and coherence_ with the fields of
    `Coherence`. A column without data is NaN with n 0.

    Paper: Table 5; both readings where it is ambiguous.
    """
    row: dict[str, Any] = {"dataset": name, "tokenizer": tokenizer_label(tokenizer)}
    row["n_dialogues"] = sums["rounds/rounds"].n
    for d in PRINTED:
        key = d.column if d == definition(d.column) else f"{d.column}_{d.reading}"
        mean = sums[d.key].mean()
        row |= {key: mean.value, f"{key}_se": mean.se, f"{key}_n": mean.n}
    topic = topic_diversity(np.zeros((0, 1))) if topic is None else topic
    row |= {f"topic_{field}": value for field, value in topic._asdict().items()}
    scores = coherence(coherence_scores)._asdict()
    row["coherence"] = scores.pop("mean")
    return row | {f"coherence_{field}": value for field, value in scores.items()}


def table5_row(
    dialogues: Iterable[Sequence[str]],
    *,
    tokenizer: str | Path = "words",
    embeddings: np.ndarray | None = None,
    coherence_scores: Iterable[float | None] = (),
    name: str = "ours",
) -> dict[str, Any]:
    """Return one row of Table 5 for dialogues in memory; `pd.DataFrame([row, …])` makes the table.

    `embeddings` (n, d) and `coherence_scores` may cover a sample of the dialogues. See `row_of`.

    Paper: Table 5; both readings where it is ambiguous.
    """
    sums = sums_over(dialogues, token_counter(tokenizer), PRINTED)
    topic = None if embeddings is None else topic_diversity(embeddings)
    return row_of(sums, name=name, tokenizer=tokenizer, topic=topic, coherence_scores=coherence_scores)
