"""What users ask, compared: the questions of several user models, a row a system, intervals over dialogues.

    vectors = text_vectors(systems)                       # {"prompted": dialogues, "UserGPT": dialogues, …}
    compare(systems, vectors)                             # rounds, question_tokens, mtld, topic_shifts, …
    differences(systems, "prompted", vectors)             # paired by opening

A *question* is any user message. In the seeded mode the first one was given, so only follow-ups are measured
(`follow_ups_only`); where the user model opens the dialogue itself, its first question counts too. What a
question is to the dialogue before it (shifts, context, relatedness, role exchange) concerns follow-ups in both.

A *topic shift* is a follow-up that is no nearer to the dialogue so far (the previous question or answer,
whichever is nearer) than 95 % of the questions asked in dialogues from other openings: the threshold is
calibrated on all compared systems at once. A question that leans on the dialogue ("Why?", "and in winter?")
has no topic of its own and never shifts, so a new topic begun with a pronoun or an "ok" that leans back is not
seen. On dialogues without any shift some follow-ups are still taken for one (the more the weaker the embedding):
counts serve to compare systems, not to be read alone.

*Relatedness* is the same nearness less what it is to other openings' dialogues on average, so that "Can you tell
me more?" scores 0. It is no coherence; a judge's scores may be handed in.

Absent on purpose: human-likeness (hand in a function as one of `flags`), tests of significance, Parrot's own
definition of a topic shift, which is not in what we read.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ultrachat import embeddings, intervals, lexical
from ultrachat.errors import Stop
from ultrachat.question_context import is_context_dependent
from ultrachat.records import Dialogue, content_id
from ultrachat.simulation import role_exchange
from ultrachat.tokens import token_counter

if TYPE_CHECKING:
    import pandas as pd

Systems = Mapping[str, Sequence[Dialogue]]
Vectors = Mapping[str, np.ndarray]
Flags = Mapping[str, Callable[[list[str]], Sequence[float]]]
SHIFT_QUANTILE = 0.95
MAX_CONTEXTS = 2_000  # previous rounds that a question is held against; a sample by id beyond that
ROWS_AT_ONCE = 256  # bounds memory
SHARES = ("distinct", "topic_shifts_per_follow_up", "context_dependent", "role_exchange")


def questions(dialogue: Dialogue, follow_ups_only: bool = True) -> list[str]:
    """Return the user's messages in order, without the first, which was given, unless `follow_ups_only` is off.

    Ours: PlatoLM collects both free and seeded; a given question says nothing of the model.
    """
    return dialogue.texts[2 if follow_ups_only else 0 :: 2]


def text_vectors(
    systems: Systems, model: embeddings.Model | None = None, cache: Path | None = None
) -> dict[str, np.ndarray]:
    """Return {text: unit vector (d,)} of every message of every system; a text without direction is all zeros.

    `model` None is `embeddings.best_offline()`. All systems are embedded together, since TF-IDF depends on
    all texts, and in sorted order. Raises Stop as `embeddings.embed`.

    Ours: one model for all systems, named in no paper.
    """
    texts = sorted({text for dialogues in systems.values() for d in dialogues for text in d.texts})
    matrix = embeddings.embed(texts, model or embeddings.best_offline(), cache=cache).astype(np.float64)
    lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
    matrix = np.divide(matrix, lengths, out=np.zeros_like(matrix), where=lengths > 1e-9)
    return dict(zip(texts, matrix, strict=True))


# ---- a question and the round before it -------------------------------------------------------


class FollowUps(NamedTuple):
    """The follow-ups of some dialogues as vectors (n, d), with the question and the answer before each, and
    for each the opening (a dialogue's parent, else its id) that its dialogue comes from.

    Ours: what shifts and relatedness are computed from.
    """

    asked: np.ndarray
    before_question: np.ndarray
    before_answer: np.ndarray
    opening: np.ndarray

    @classmethod
    def of(cls, dialogues: Sequence[Dialogue], vectors: Vectors) -> FollowUps:
        """Return those of the dialogues, in order; raises Stop when a text has no vector."""
        rows, opening = [], []
        for dialogue in dialogues:
            for (question, answer), (asked, _) in pairwise(dialogue.rounds):
                rows.append([_vector(vectors, text) for text in (asked, question, answer)])
                opening.append(opening_of(dialogue))
        d = len(rows[0][0]) if rows else 1
        stacked = np.array(rows, dtype=np.float64).reshape(len(rows), 3, d)
        return cls(stacked[:, 0], stacked[:, 1], stacked[:, 2], np.array(opening, dtype=object))

    def nearness(self) -> np.ndarray:
        """Return the cosine of each follow-up with the question or the answer before it, the larger; (n,)."""
        return np.maximum(
            np.einsum("ij,ij->i", self.asked, self.before_question),
            np.einsum("ij,ij->i", self.asked, self.before_answer),
        )

    def nearness_elsewhere(self) -> Iterator[np.ndarray]:
        """Yield for each follow-up its nearness to the rounds of dialogues from other openings; (k,), k may be 0."""
        some = self._sample()
        code = {opening: number for number, opening in enumerate(dict.fromkeys(self.opening))}
        here, there = (np.array([code[o] for o in part.opening], int) for part in (self, some))
        for start in range(0, len(here), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            near = self.asked[rows] @ some.before_question.T
            np.maximum(near, self.asked[rows] @ some.before_answer.T, out=near)
            for values, opening in zip(near, here[rows], strict=True):
                yield values[there != opening]

    def _sample(self) -> FollowUps:
        """Return at most `MAX_CONTEXTS` of them, chosen by a hash of opening and vector, in any order the same."""
        if len(self.opening) <= MAX_CONTEXTS:
            return self
        keys = [content_id(o, repr(v[:8].tolist())) for o, v in zip(self.opening, self.asked, strict=True)]
        rows = np.argsort(np.array(keys))[:MAX_CONTEXTS]
        return FollowUps(*(part[rows] for part in self))


def opening_of(dialogue: Dialogue) -> str:
    """Return what a dialogue grew from: the id of its opening, its own where that is not known.

    Ours: the same opening in two systems is one topic.
    """
    return dialogue.parent or dialogue.id


def _vector(vectors: Vectors, text: str) -> np.ndarray:
    if text not in vectors:
        raise Stop(f"vectors: none for the text {text[:60]!r}; expected those of text_vectors(systems)")
    return vectors[text]


def shift_threshold(systems: Systems, vectors: Vectors, quantile: float = SHIFT_QUANTILE) -> float:
    """Return the nearness at or below which a follow-up counts as a shift; NaN with fewer than two openings.

    It is the `quantile` of the nearness of follow-ups of all systems to rounds of dialogues from *other*
    openings, so that as much of what is certainly off topic would be found. Raises Stop unless it is
    between 0 and 1.

    Ours: no typed cosine fits every embedding, and all systems must share one.
    """
    if not 0 < quantile < 1:
        raise Stop(f"quantile {quantile}: expected a number between 0 and 1")
    together = [dialogue for dialogues in systems.values() for dialogue in dialogues]
    follow_ups = FollowUps.of(together, vectors)
    if len(follow_ups.opening) > MAX_CONTEXTS:
        follow_ups = follow_ups._sample()
    near = [values for values in follow_ups.nearness_elsewhere() if len(values)]
    return float(np.quantile(np.concatenate(near), quantile)) if near else math.nan


def topic_shifts(dialogue: Dialogue, vectors: Vectors, threshold: float) -> tuple[int, ...]:
    """Return the rounds (from 2) in which the user leaves the topic; never where a question needs its context.

    A follow-up without a vector's direction (all zeros) has no topic either. None for a threshold of NaN.

    Ours: Parrot counts shifts per session, and how is not in what we read.
    """
    follow_ups = FollowUps.of([dialogue], vectors)
    return tuple(
        number
        for number, (text, near, vector) in enumerate(
            zip(questions(dialogue), follow_ups.nearness(), follow_ups.asked, strict=True), start=2
        )
        if near <= threshold and vector.any() and not is_context_dependent(text)
    )


def relatedness(dialogues: Sequence[Dialogue], vectors: Vectors) -> list[list[float]]:
    """Return for each dialogue the relatedness of each of its follow-ups, NaN where no other opening is there.

    A follow-up's nearness to the round before it less its mean nearness to rounds of the other openings'
    dialogues; at most `MAX_CONTEXTS` of these. A text without direction has none (NaN).

    Ours: a cosine alone rewards generic questions, which are near to everything.
    """
    follow_ups = FollowUps.of(dialogues, vectors)
    elsewhere = (values.mean() if len(values) else math.nan for values in follow_ups.nearness_elsewhere())
    own = np.where(follow_ups.asked.any(axis=1), follow_ups.nearness(), math.nan)
    # an embedding's last digits depend on how many threads made it, and what is drawn in a bootstrap on all digits
    values = iter((own - np.fromiter(elsewhere, float, len(own))).round(6).tolist())
    return [[next(values) for _ in questions(dialogue)] for dialogue in dialogues]


# ---- sums of dialogues ------------------------------------------------------------------------


def measure(
    dialogues: Sequence[Dialogue],
    vectors: Vectors,
    threshold: float,
    *,
    follow_ups_only: bool = True,
    tokenizer: str | Path = "words",
    flags: Flags | None = None,
    coherence: Mapping[str, float | None] | None = None,
) -> dict[str, np.ndarray]:
    """Return {measure: (n_dialogues, 2) of its total in a dialogue and what it is divided by}.

    `distinct` gives a question that is asked k times 1/k each time. `flags` are further measures: a name and a
    function from questions to a number each. `coherence` is {dialogue id: a judge's score, or None}. Role
    exchanges are found anew by `simulation.role_exchange` on the final text, not read from the record.

    A dialogue without follow-ups has 0 shifts, and nothing to divide where follow-ups are counted.

    Ours: questions of one dialogue resemble each other, so the dialogue is the unit.
    """
    count = token_counter(tokenizer)
    asked = [questions(d, follow_ups_only) for d in dialogues]
    later = [questions(d) for d in dialogues]
    times = Counter(_folded(text) for texts in asked for text in texts)
    known = not math.isnan(threshold)
    shifts = [float(len(topic_shifts(d, vectors, threshold))) if known else math.nan for d in dialogues]
    scores = [(coherence or {}).get(d.id) for d in dialogues]
    return {
        "rounds": _column([[float(len(d.rounds))] for d in dialogues]),
        "question_tokens": _column([[float(count(text)) for text in texts] for texts in asked]),
        "mtld": _column([lexical.mtlds(texts).tolist() for texts in asked]),
        "distinct": _column([[1 / times[_folded(text)] for text in texts] for texts in asked]),
        "topic_shifts": _column([[n] for n in shifts]),
        "topic_shifts_per_follow_up": _pairs(shifts, [float(len(texts)) for texts in later]),
        "context_dependent": _share(later, is_context_dependent),
        "role_exchange": _share(later, role_exchange),
        "relatedness": _column(relatedness(dialogues, vectors)),
        "coherence": _column([[math.nan if score is None else float(score)] for score in scores]),
    } | {
        name: _column([[float(value) for value in of(texts)] if texts else [] for texts in asked])
        for name, of in (flags or {}).items()
    }


def _share(asked: Sequence[Sequence[str]], sign: Callable[[str], object]) -> np.ndarray:
    return _column([[float(bool(sign(text))) for text in texts] for texts in asked])


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def _column(values: Sequence[Sequence[float]]) -> np.ndarray:
    """Return (n, 2): the sum of the known values of each dialogue, and how many they are."""
    known = [[value for value in row if not math.isnan(value)] for row in values]
    return _pairs([math.fsum(row) for row in known], [float(len(row)) for row in known])


def _pairs(totals: Sequence[float], sizes: Sequence[float]) -> np.ndarray:
    pairs = np.array([totals, sizes], dtype=np.float64).T.reshape(-1, 2)
    return np.where(np.isnan(pairs).any(axis=1, keepdims=True), 0.0, pairs)


def topic_similarity(dialogues: Sequence[Dialogue], vectors: Vectors, follow_ups_only: bool = True) -> dict:
    """Return {topic_similarity, …_low, …_high}: the mean cosine of questions of *different* dialogues; NaN for none.

    Lower is more diverse. Pairs within a dialogue are left out: they resemble each other because they
    should, and longer dialogues have more of them. Dialogues are what the interval draws anew.

    Ours: PlatoLM averages all pairs with the diagonal of ones (`topics.topic_diversity` has that reading).
    """
    asked = [[_vector(vectors, text) for text in questions(d, follow_ups_only)] for d in dialogues]
    kept = [vectors_ for some in asked if (vectors_ := [v for v in some if v.any()])]
    none = dict.fromkeys(("topic_similarity", "topic_similarity_low", "topic_similarity_high"), math.nan)
    if len(kept) < 2:
        return none
    order = np.lexsort(np.array([np.sum(some, axis=0) for some in kept]).T[::-1])
    sums = np.array([np.sum(kept[i], axis=0) for i in order])
    sizes = np.array([len(kept[i]) for i in order], dtype=np.float64)

    def of(weights: np.ndarray) -> np.ndarray:
        own, squares = (sums * sums).sum(axis=1), weights**2
        pairs = ((weights @ sums) ** 2).sum(axis=-1) - squares @ own
        return pairs / ((weights @ sizes) ** 2 - squares @ sizes**2)

    value = float(of(np.ones(len(sizes))))
    weights = intervals.question_weights(len(sizes), 2_000, "topics", repr(sums[:, :8].round(6).tolist()))
    low, high = intervals.resampled_interval(of(weights), len(sizes))
    return dict(zip(none, (value, float(low), float(high)), strict=True))


# ---- tables -----------------------------------------------------------------------------------


def compare(
    systems: Systems,
    vectors: Vectors,
    *,
    follow_ups_only: bool = True,
    tokenizer: str | Path = "words",
    flags: Flags | None = None,
    coherence: Mapping[str, float | None] | None = None,
    quantile: float = SHIFT_QUANTILE,
) -> pd.DataFrame:
    """Return a row a system: system, n_dialogues, n_questions, then each measure of `measure` with _low and _high.

    Also `topic_similarity` and `mtld_joined` (all questions as one text, in the order of the dialogues' ids; no
    interval). 95 % intervals over dialogues; what cannot be known is NaN. MTLD says little of a text as short
    as a question (of one without a repeated word it is the length): `mtld` is what is published, `mtld_joined`
    is better compared.

    Ours: PlatoLM and Parrot print some of these without intervals.
    """
    import pandas as pd

    threshold, rows = shift_threshold(systems, vectors, quantile), []
    for name, dialogues in systems.items():
        ordered = sorted(dialogues, key=lambda d: (d.id, d.texts))
        asked = [text for d in ordered for text in questions(d, follow_ups_only)]
        row: dict[str, object] = {"system": name, "n_dialogues": len(ordered), "n_questions": len(asked)}
        measures = measure(
            ordered, vectors, threshold, follow_ups_only=follow_ups_only, tokenizer=tokenizer, flags=flags,
            coherence=coherence,
        )  # fmt: skip
        for column, pairs in measures.items():
            row |= _row(column, pairs)
            if column == "mtld":
                row["mtld_joined"] = float(lexical.mtlds([" ".join(asked)])[0])
            if column == "distinct":
                row |= topic_similarity(ordered, vectors, follow_ups_only)
        rows.append(row)
    return pd.DataFrame(rows)


def _row(name: str, pairs: np.ndarray) -> dict[str, float]:
    """Return {name, name_low, name_high} of total over size; a share's interval knows that 0 of 9 is not never."""
    pairs = pairs[pairs[:, 1] > 0] if len(pairs) else np.zeros((0, 2))
    if not len(pairs):
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"), math.nan)
    total, size = pairs.sum(axis=0)
    if name in SHARES:
        low, high = intervals.ratio_interval(pairs[:, 0], pairs[:, 1])
    elif name == "coherence":
        low, high = intervals.score_interval(pairs[:, 0])
    else:
        low, high = intervals.sums_interval(pairs, lambda sums: intervals.ratio(sums[..., 0], sums[..., 1]))
    return {name: float(total / size), f"{name}_low": low, f"{name}_high": high}


def differences(systems: Systems, baseline: str, vectors: Vectors, **options) -> pd.DataFrame:
    """Return a row a system and measure: system, measure, difference (it less the baseline), low, high, n_openings.

    Paired by opening: a measure of an opening is that of its dialogue in a system, averaged where there are
    several, and openings that either lacks are left out; a mean over openings is therefore not the
    difference of `compare`'s ratios, which weigh long dialogues more. Options are those of `compare`. Raises
    Stop when the baseline is no system.

    Ours: the same openings make pairs, and pairs make differences visible in small runs.
    """
    import pandas as pd

    if baseline not in systems:
        raise Stop(f"baseline '{baseline}': expected one of {', '.join(systems) or 'no systems at all'}")
    threshold = shift_threshold(systems, vectors, options.pop("quantile", SHIFT_QUANTILE))
    values = {name: _by_opening(list(some), vectors, threshold, options) for name, some in systems.items()}
    rows = []
    for name in systems:
        for column in values[name] if name != baseline else ():
            here, there = values[name][column], values[baseline][column]
            gaps = [here[opening] - there[opening] for opening in sorted(here.keys() & there.keys())]
            low, high = intervals.mean_interval(gaps)
            mean = float(np.mean(gaps)) if gaps else math.nan
            rows.append((name, column, mean, low, high, len(gaps)))
    return pd.DataFrame(rows, columns=["system", "measure", "difference", "low", "high", "n_openings"])


def _by_opening(
    dialogues: list[Dialogue], vectors: Vectors, threshold: float, options: dict
) -> dict[str, dict[str, float]]:
    """Return {measure: {opening: its mean over that opening's dialogues}}, without what is not known."""
    found: dict[str, dict[str, float]] = {}
    for column, pairs in measure(dialogues, vectors, threshold, **options).items():
        by_opening: dict[str, list[float]] = {}
        for dialogue, (total, size) in zip(dialogues, pairs, strict=True):
            if size:
                by_opening.setdefault(opening_of(dialogue), []).append(total / size)
        found[column] = {opening: float(np.mean(some)) for opening, some in by_opening.items()}
    return found
