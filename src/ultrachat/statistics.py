"""The columns of the paper's Table 5, each as a function with a named definition.

The paper names neither the tokenizer nor what an utterance is, so every column that can be read in
two ways has both here, and `compare_definitions` prints them side by side. For Stanford Alpaca the
table says 91.1 tokens a dialogue, 64.5 an utterance, lexical diversity 42.8; what comes out near that:

    utterance_tokens    LLaMA's SentencePiece without a beginning mark, assistant messages only
    dialogue_tokens     the same over `User: …\\nAssistant: …`, plus one for the beginning mark
    lexical_diversity   MTLD of each assistant message, those without words left out, averaged
    rounds              a user and an assistant message (what the table calls a turn)

A mean carries its standard error and n, and the mean of nothing is NaN. Messages of one dialogue
resemble each other, so errors are computed over dialogues, not over messages.

Absent on purpose: language models (coherence scores and embeddings come in as numbers) and speed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from ultrachat.errors import Stop
from ultrachat.records import Dialogue
from ultrachat.tokens import TokenCounter, token_counter, tokenizer_label

Measure = Callable[[Dialogue], Sequence[float]]
Which = Literal["assistant", "user", "all"]

THRESHOLD = 0.72  # LexicalRichness's default, which the paper does not override
PAPER_SAMPLE = 10_000  # dialogues the paper draws for topic diversity and coherence
TOPIC_ROWS_AT_ONCE = 8_192  # bounds the float64 copies of an embedding matrix


# ---- means and their errors -------------------------------------------------------------------


class Mean(NamedTuple):
    """A mean, its standard error (same unit) and the number of values; NaN where it does not exist.

    Ours: Table 5 prints bare means.
    """

    value: float
    se: float
    n: int


def mean_with_error(groups: Iterable[Sequence[float]]) -> Mean:
    """Return the mean over all values of all groups, its standard error computed over groups.

    A group is what one dialogue contributes. With one value a group the error is the usual
    deviation / sqrt(n); with more it is that of a ratio estimator, since dialogues were sampled
    and not messages. Empty groups are left out. NaN without a value, NaN error with one group.

    Ours: the paper gives no errors.
    """
    return _ratio([(math.fsum(group), len(group)) for group in groups])


def averages(dialogues: Iterable[Dialogue], measures: Mapping[str, Measure]) -> dict[str, Mean]:
    """Return for each named measure its `Mean` over `dialogues`, which are read once.

    A measure takes a dialogue and returns its values, as many as it likes.

    Ours: one way of averaging for every column.
    """
    totals: dict[str, list[tuple[float, int]]] = {name: [] for name in measures}
    for dialogue in dialogues:
        for name, measure in measures.items():
            values = measure(dialogue)
            totals[name].append((math.fsum(values), len(values)))
    return {name: _ratio(pairs) for name, pairs in totals.items()}


def _ratio(pairs: list[tuple[float, int]]) -> Mean:
    pairs = [pair for pair in pairs if pair[1]]
    if not pairs:
        return Mean(math.nan, math.nan, 0)
    n_groups, n = len(pairs), sum(size for _, size in pairs)
    mean = math.fsum(total for total, _ in pairs) / n
    if n_groups == 1:
        return Mean(mean, math.nan, n)
    squares = math.fsum((total - mean * size) ** 2 for total, size in pairs)
    return Mean(mean, math.sqrt(n_groups / (n_groups - 1) * squares) / n, n)


# ---- rounds and lengths -----------------------------------------------------------------------


def rounds(dialogue: Dialogue) -> int:
    """Return the number of rounds, pairs of a user and an assistant message.

    Paper: Table 5, "Avg. #Turns" (UltraChat's 3.8 is its number of rounds, not of messages).
    """
    return len(dialogue.messages) // 2


def texts_of(dialogue: Dialogue, which: Which = "assistant") -> list[str]:
    """Return the texts of the assistant's messages, of the user's, or of all, in order.

    Raises Stop when `which` is another word.

    Paper: Table 5 speaks of utterances without saying whose.
    """
    if which not in ("assistant", "user", "all"):
        raise Stop(f"which '{which}': expected assistant, user or all")
    return [m.content for m in dialogue.messages if which in ("all", m.role)]


def utterance_lengths(dialogue: Dialogue, count: TokenCounter, which: Which = "assistant") -> list[int]:
    """Return the length in tokens of each message by `which` side, in order.

    Paper: Table 5, "Avg. Utt. Length"; only assistant messages give Alpaca's 64.5 and can give
    UltraChat's 309.3, whose mean over all messages is below 1467.4 / (2 × 3.8) = 193.
    """
    return [count(text) for text in texts_of(dialogue, which)]


def labelled_text(dialogue: Dialogue) -> str:
    """Return the dialogue as one text, a line break before each label but the first.

        User: Name a fruit.
        Assistant: A pear.

    Ours: the labels of the authors' training script (thunlp/UltraChat, train/ultrachat_dataset.py).
    """
    labels = {"user": "User", "assistant": "Assistant"}
    return "\n".join(f"{labels[m.role]}: {m.content}" for m in dialogue.messages)


def dialogue_length(dialogue: Dialogue, count: TokenCounter, labels: bool = True) -> int:
    """Return the length of the whole dialogue in tokens.

    With `labels` it is that of `labelled_text` plus one for the mark a tokenizer puts at the
    beginning; with LLaMA's that is 7 tokens a round more than without, the bare sum of messages.

    Paper: Table 5, "Avg. Dialog Length"; with labels Alpaca gives 91 and UltraChat 1,468 (printed
    91.1 and 1467.4), bare text 84 and 1,441.
    """
    if labels:
        return 1 + count(labelled_text(dialogue))
    return sum(utterance_lengths(dialogue, count, "all"))


# ---- lexical diversity ------------------------------------------------------------------------


def mtld(text: str, threshold: float = THRESHOLD) -> float | None:
    """Return the MTLD of `text` by LexicalRichness, in words; None where it finds no words.

    Its preprocessing is part of the definition: lower case, digits, hyphens and dashes deleted,
    ASCII punctuation turned into spaces, words split at white space (so in Chinese a word is about
    a clause). Raises Stop unless 0 < threshold < 1.

    Paper: §4.5, Table 5 (McCarthy and Jarvis, 2010, "with LexicalRichness").
    """
    from lexicalrichness import LexicalRichness  # here because importing it takes seconds

    if not 0 < threshold < 1:
        raise Stop(f"threshold {threshold}: expected a number between 0 and 1")
    text_richness = LexicalRichness(text)
    return float(text_richness.mtld(threshold)) if text_richness.words else None


def lexical_diversities(dialogue: Dialogue, which: Which = "assistant") -> list[float]:
    """Return the MTLD of each message by `which` side, those without words left out.

    Paper: Table 5, "averaging the MTLD score over each utterance"; assistant messages give Alpaca's
    42.8 within its error, all messages about 35.
    """
    values = (mtld(text) for text in texts_of(dialogue, which))
    return [value for value in values if value is not None]


# ---- topic diversity --------------------------------------------------------------------------


class TopicDiversity(NamedTuple):
    """Mean cosine over pairs of dialogues, read in both ways; `n` is the number of vectors used.

    `similarity` leaves out the pairs of a dialogue with itself, `similarity_with_diagonal` counts
    them, `distance` is 1 - similarity; `se` is the jackknife standard error of `similarity` and of
    `distance`. NaN where it does not exist.

    Paper: Table 5; ours is that 0.692 to 0.797 there are similarities, lower being more diverse.
    """

    similarity: float
    similarity_with_diagonal: float
    distance: float
    se: float
    n: int


def topic_diversity(embeddings: np.ndarray, n_sample: int | None = None) -> TopicDiversity:
    """Return the `TopicDiversity` of an (n, d) array, one embedding a row, over all pairs.

    The sum over all pairs of unit vectors is the squared length of their sum, so no pair is ever
    formed; leaving one vector out is as cheap, which gives the jackknife error. `n_sample` takes
    that many rows at random (`PAPER_SAMPLE` for the paper's procedure; generator seed 0). Rows
    of zeros have no direction and are left out. Raises Stop for another shape or non-finite values.

    Paper: Table 5, "averaging the cosine distance between each pair of data"; the text of §4.5 says
    UltraChat (0.702) falls short of GPT4ALL (0.692), so what is printed is a similarity.
    """
    vectors = np.asarray(embeddings)
    if vectors.ndim != 2 or vectors.dtype.kind not in "fiu":
        raise Stop(f"embeddings: expected an (n, d) array of numbers, got {vectors.dtype} {vectors.shape}")
    if n_sample is not None:
        if n_sample < 1:
            raise Stop(f"n_sample {n_sample}: expected a positive whole number")
        if n_sample < len(vectors):
            rows = np.random.default_rng(0).choice(len(vectors), n_sample, replace=False)
            vectors = vectors[np.sort(rows)]
    total, n = np.zeros(vectors.shape[1]), 0
    for units in _unit_rows(vectors):
        total += units.sum(axis=0)
        n += len(units)
    squared = float(total @ total)
    similarity = (squared - n) / (n * (n - 1)) if n > 1 else math.nan
    se = math.nan
    if n > 2:
        # without vector i the pairs sum to |total|² - 2 units·total + 1 - (n - 1): only the dots vary
        dots = np.concatenate([units @ total for units in _unit_rows(vectors)])
        spread = float(((dots - dots.mean()) ** 2).sum())
        se = 2 / ((n - 1) * (n - 2)) * math.sqrt((n - 1) / n * spread)
    diagonal = squared / n**2 if n else math.nan
    return TopicDiversity(similarity, diagonal, 1 - similarity, se, n)


def _unit_rows(vectors: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(vectors), TOPIC_ROWS_AT_ONCE):
        block = vectors[start : start + TOPIC_ROWS_AT_ONCE].astype(np.float64)
        if not np.isfinite(block).all():
            raise Stop(f"embeddings: a value in rows {start} to {start + len(block) - 1} is not finite")
        lengths = np.linalg.norm(block, axis=1)
        yield block[lengths > 0] / lengths[lengths > 0, None]


def embed_offline(texts: Sequence[str], n_dimensions: int = 256) -> np.ndarray:
    """Return an (n, at most `n_dimensions`) array: TF-IDF reduced by a truncated SVD, one row a text.

    Works offline and is repeatable (seed 0), but its cosines live on another scale than a neural
    embedding's: not comparable with the paper's. A text without known words is a row of zeros.

    Ours: the paper uses an OpenAI embedding and does not name the model.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    try:
        weights = TfidfVectorizer(sublinear_tf=True, max_features=50_000).fit_transform(texts)
    except ValueError:  # not one word in all the texts
        return np.zeros((len(texts), 1))
    if min(weights.shape) < 2:  # one text or one word: nothing to reduce, and the SVD refuses
        return weights.toarray()[:, :n_dimensions]
    return TruncatedSVD(min(n_dimensions, *weights.shape), random_state=0).fit_transform(weights)


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


class Definition(NamedTuple):
    """One way to read a column of Table 5; `key` is its name in `table5_row`, None where not printed there.

    The reading we take for the paper's is the one whose key is the column's name.

    Ours: the paper's wording allows several.
    """

    column: str
    reading: str
    key: str | None
    measure: Callable[[Dialogue, TokenCounter], Sequence[float]]


def _whole_diversity(dialogue: Dialogue) -> list[float]:
    value = mtld("\n".join(texts_of(dialogue, "all")))
    return [] if value is None else [value]


_D, _U, _L = "dialogue_tokens", "utterance_tokens", "lexical_diversity"
DEFINITIONS: tuple[Definition, ...] = (
    Definition("rounds", "rounds", "rounds", lambda d, c: [rounds(d)]),
    Definition("rounds", "messages", None, lambda d, c: [len(d.messages)]),
    Definition(_D, "labels and BOS", _D, lambda d, c: [dialogue_length(d, c)]),
    Definition(_D, "labels", None, lambda d, c: [dialogue_length(d, c) - 1]),
    Definition(
        _D, "labels, BOS, an end mark a message", None, lambda d, c: [dialogue_length(d, c) + len(d.messages)]
    ),
    Definition(_D, "bare", f"{_D}_bare", lambda d, c: [dialogue_length(d, c, labels=False)]),
    Definition(_U, "assistant", _U, utterance_lengths),
    Definition(_U, "user", None, lambda d, c: utterance_lengths(d, c, "user")),
    Definition(_U, "all", f"{_U}_all", lambda d, c: utterance_lengths(d, c, "all")),
    Definition(_L, "assistant", _L, lambda d, c: lexical_diversities(d)),
    Definition(_L, "all", None, lambda d, c: lexical_diversities(d, "all")),
    Definition(_L, "whole dialogue", None, lambda d, c: _whole_diversity(d)),
)


def _averages_of(
    definitions: Sequence[Definition], dialogues: Iterable[Dialogue], tokenizer: str | Path
) -> list[Mean]:
    count = token_counter(tokenizer)
    measures = {
        f"{d.column}/{d.reading}": lambda dialogue, measure=d.measure: measure(dialogue, count)
        for d in definitions
    }
    return list(averages(dialogues, measures).values())


def compare_definitions(
    dialogues: Iterable[Dialogue], *, tokenizer: str | Path = "words", embeddings: np.ndarray | None = None
) -> pd.DataFrame:
    """Return every reading of every column for one corpus: columns column, reading, used, value, se, n.

    `used` marks the reading we take for the paper's. Beside the paper's row for a corpus that can
    be had, the table shows why.

    Ours: how we know what Table 5 means.
    """
    means = _averages_of(DEFINITIONS, dialogues, tokenizer)
    rows = [
        (d.column, d.reading, d.key == d.column, *mean) for d, mean in zip(DEFINITIONS, means, strict=True)
    ]
    if embeddings is not None:
        t = topic_diversity(embeddings)
        rows += [
            ("topic_diversity", "similarity", True, t.similarity, t.se, t.n),
            ("topic_diversity", "similarity with diagonal", False, t.similarity_with_diagonal, math.nan, t.n),
            ("topic_diversity", "distance", False, t.distance, t.se, t.n),
        ]
    return pd.DataFrame(rows, columns=["column", "reading", "used", "value", "se", "n"])


def table5_row(
    dialogues: Iterable[Dialogue],
    *,
    tokenizer: str | Path = "words",
    embeddings: np.ndarray | None = None,
    coherence_scores: Iterable[float | None] | None = None,
    name: str = "ours",
) -> dict[str, Any]:
    """Return one row of Table 5 as a dict; `pd.DataFrame([row, …])` makes the table.

    Keys: dataset, tokenizer, n_dialogues; rounds, dialogue_tokens, dialogue_tokens_bare,
    utterance_tokens (assistant), utterance_tokens_all and lexical_diversity, each with its `…_se`
    and `…_n`; topic_ and the fields of `TopicDiversity`; coherence, and coherence_ with the fields
    of `Coherence`. A column without data is NaN with n 0. `embeddings` (n, d) and
    `coherence_scores` may cover a sample of the dialogues. Raises Stop as the functions above.

    Paper: Table 5; both readings where it is ambiguous.
    """
    printed = [definition for definition in DEFINITIONS if definition.key]
    means = _averages_of(printed, dialogues, tokenizer)
    row: dict[str, Any] = {"dataset": name, "tokenizer": tokenizer_label(tokenizer)}
    row["n_dialogues"] = means[0].n  # rounds come first and are one value a dialogue
    for definition, mean in zip(printed, means, strict=True):
        key = definition.key
        row |= {key: mean.value, f"{key}_se": mean.se, f"{key}_n": mean.n}
    topic = topic_diversity(np.zeros((0, 1)) if embeddings is None else embeddings)
    row |= {f"topic_{field}": value for field, value in topic._asdict().items()}
    scores = coherence(() if coherence_scores is None else coherence_scores)._asdict()
    row["coherence"] = scores.pop("mean")
    return row | {f"coherence_{field}": value for field, value in scores.items()}
