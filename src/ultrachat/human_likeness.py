"""Whether a person or a model wrote a question, told by thirty countable habits and nothing else.

    judge = load()                                        # the classifier shipped in data/reference
    judge.probability(["how do i fix this"])              # array([0.9…]): a person's, rather than a model's
    judge.share_human(questions, groups=dialogue_ids)     # Share(share=0.41, low=0.35, high=0.47, n=250, …)
    mine = train({"my chats": human}, {"my simulator": machine})   # one's own, with its own accuracy inside

PlatoLM and Parrot print the share of simulated questions "judged human" by judges that nobody else has. This
one is a logistic regression over `FEATURES`, small enough to be read, and its file says what it was made of
and how often it is right about *sources it has not seen*. Only that figure counts: a classifier learns what a
source is like (Dolly asks, Alpaca commands), and looks far better on texts of the sources it learned from.
Two things are done about it. What tells a request from a question, or a long text from a short one, is no
feature; and the two sides are weighed so that each length has as many questions and requests on either.

What it says is "more like what these people typed than what these models wrote", not who wrote it. Read
`accuracy` first; compare shares by one classifier with each other and never with published ones.

Absent on purpose: pasted material (a message of more than `MAX_WORDS` words is not judged), languages other
than English (they do not fail, and mean nothing), larger models, which learn the topic rather than the habit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field, ValidationError, model_validator

from ultrachat.errors import Stop
from ultrachat.habits import FEATURES, MAX_WORDS, features, form, matrix, n_words, usable
from ultrachat.intervals import question_weights, rate_interval, ratio_interval
from ultrachat.records import NonEmpty, Record, content_id, first_problem
from ultrachat.runs import DATA, write_text

SHIPPED = DATA / "reference" / "human_likeness.json"
N_FOLDS = 10
N_DRAWS = 10_000
STRENGTH = (
    0.03  # scikit-learn's C: of 1 to 0.001 the best Brier score on sources left out; the ranking hardly moves
)
Turns = Literal["first", "later"]
Finite = Annotated[float, Field(allow_inf_nan=False)]
__all__ = ["FEATURES", "HumanLikeness", "features", "load", "train"]

# ---- the classifier -----------------------------------------------------------------------------


class Fitted(NamedTuple):
    """A logistic regression: log-odds = intercept + weights · (x - means) / scales.

    Ours: all that scikit-learn's object holds.
    """

    weights: np.ndarray
    intercept: float
    means: np.ndarray
    scales: np.ndarray

    def probability(self, x: np.ndarray) -> np.ndarray:
        """Return the probability of `human` for each row of features."""
        odds = self.intercept + (x - self.means) / self.scales @ self.weights
        return 0.5 * (1 + np.tanh(odds / 2))  # the logistic function, without overflow


class Tested(Record):
    """Of `n` texts by `side` that the classifier did not learn from, how many it called human.

    `how` is "source left out" (by a classifier that learned nothing of the source), "not trained on", or "folds"
    (other texts of the source were learned from, as its side has no other: flattering). `turns` says where in a
    dialogue the texts stood.

    Ours: a classifier travels with its own accuracy.
    """

    source: NonEmpty
    side: Literal["human", "machine"]
    turns: Turns
    n: Annotated[int, Field(ge=0)]
    n_called_human: Annotated[int, Field(ge=0)]
    how: Literal["source left out", "not trained on", "folds"]

    @model_validator(mode="after")
    def _counts(self) -> Tested:
        if self.n_called_human > self.n:
            raise ValueError(f"n_called_human: {self.n_called_human} of {self.n} texts")
        return self


class Share(NamedTuple):
    """The share of `n` questions called human, its 95 % interval, and what that says of who wrote them.

    `n_left_out` were not judged. `corrected` is the share written by people if the classifier errs as often
    as in its `accuracy` (see `HumanLikeness.share_human`), nan where `note` says why there is none.

    Ours: PlatoLM and Parrot print a share without an error and without the judge's own.
    """

    share: float
    low: float
    high: float
    n: int
    n_left_out: int
    corrected: float
    corrected_low: float
    corrected_high: float
    note: str


class Weight(Record):
    """What a feature adds to the log-odds: weight * (value - mean) / scale.

    Ours: a file of numbers that can be read, not a pickle.
    """

    weight: Finite
    mean: Finite
    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)]


class HumanLikeness(Record):
    """A trained classifier, what it was made of, and how it did on texts it had not learned from.

    `features` has an entry for each of `FEATURES`; `made_of` a line for each source.

    Ours: see the module.
    """

    made_of: tuple[str, ...]
    accuracy: tuple[Tested, ...]
    intercept: Finite
    features: dict[str, Weight]

    @model_validator(mode="after")
    def _every_feature(self) -> HumanLikeness:
        for name in [*FEATURES, *self.features]:
            if name not in self.features:
                raise ValueError(f"features: '{name}' is missing; train again")
            if name not in FEATURES:
                raise ValueError(f"features: '{name}' is none of this version; train again")
        return self

    @property
    def fitted(self) -> Fitted:
        """The same as arrays, in the order of `FEATURES`."""
        each = [self.features[name] for name in FEATURES]
        columns = (np.array([getattr(w, key) for w in each]) for key in ("weight", "mean", "scale"))
        weights, means, scales = columns
        return Fitted(weights, self.intercept, means, scales)

    def probability(self, texts: Sequence[str]) -> np.ndarray:
        """Return for each text the probability that a person wrote it, were either side as likely; nan if not judged.

        Not judged are texts without a word and those of more than `MAX_WORDS`.
        """
        judged = np.array([1 <= n_words(text) <= MAX_WORDS for text in texts], bool)
        return np.where(judged, self.fitted.probability(matrix(texts)), math.nan)

    def is_human(self, texts: Sequence[str]) -> list[bool | None]:
        """Return for each text whether it is called human (probability above 0.5), None if not judged."""
        return [None if math.isnan(p) else bool(p > 0.5) for p in self.probability(texts)]

    def test(self, source: str, side: str, turns: Turns, texts: Iterable[str]) -> Tested:
        """Return how many of the `usable` texts of a source that it was not trained on are called human."""
        kept = usable(texts)
        called = sum(map(bool, self.is_human(kept)))
        return Tested(
            source=source, side=side, turns=turns, n=len(kept), n_called_human=called, how="not trained on"
        )

    def rates(self, turns: Turns = "first") -> tuple[float, float]:
        """Return (sensitivity, specificity): the shares called right of people's and of models' texts.

        Means over sources in `accuracy`, each as heavy as another; nan where there is none.
        """
        shares = {"human": [], "machine": []}
        for row in self.accuracy:
            if row.turns == turns and row.n:
                shares[row.side].append(row.n_called_human / row.n)
        sensitivity, called = (float(np.mean(found)) if found else math.nan for found in shares.values())
        return sensitivity, 1 - called

    def share_human(
        self, questions: Sequence[str], groups: Sequence[str] | None = None, turns: Turns = "first"
    ) -> Share:
        """Return the share of questions called human, with its interval, and the share corrected for errors.

        `groups` names each question's dialogue, as what stands in one dialogue is not independent; without
        it each question stands alone. The correction is Rogan and Gladen's (1978), (share + specificity - 1) /
        (sensitivity + specificity - 1), cut at 0 and 1, with the rates of `turns`. Its interval draws
        anew the questions and the *sources* behind the rates, for the next source differs from the last by more
        than its questions do. Where sensitivity + specificity may as well be 1, a share says nothing:
        `corrected` is nan and `note` says so. Raises Stop for groups of another number than questions.
        """
        if groups is not None and len(groups) != len(questions):
            raise Stop(
                f"share_human: {len(groups)} groups, expected one for each of {len(questions)} questions"
            )
        counts: dict[str, list[int]] = {}
        names = groups if groups is not None else [str(i) for i in range(len(questions))]
        for name, called in zip(names, self.is_human(questions), strict=True):
            if called is not None:
                count = counts.setdefault(name, [0, 0])
                count[0] += called
                count[1] += 1
        k, n = (sum(count[i] for count in counts.values()) for i in (0, 1))
        alone = n == len(counts)
        low, high = rate_interval(k, n) if alone else ratio_interval(*zip(*counts.values(), strict=True))
        share = k / n if n else math.nan
        return Share(share, low, high, n, len(questions) - n, *self._corrected(share, low, high, turns))

    def _corrected(
        self, share: float, low: float, high: float, turns: Turns
    ) -> tuple[float, float, float, str]:
        """Return the corrected share, its interval and the note; see `share_human`."""
        nothing = (math.nan, math.nan, math.nan)
        sensitivity, specificity = self.rates(turns)
        if math.isnan(low) or math.isnan(sensitivity + specificity):
            return *nothing, f"not corrected: too few questions, or no tests on both sides of {turns} turns"
        drawn = {side: self._drawn_rates(side, turns) for side in ("human", "machine")}
        informed = drawn["human"] - drawn["machine"]  # sensitivity + specificity - 1
        if np.quantile(informed, 0.025) <= 0:
            called = f"{sensitivity:.0%} of people's {turns} turns are called human, {1 - specificity:.0%} of models'"
            return *nothing, f"uninformative: {called}"
        generator = np.random.default_rng(int(content_id("share", f"{share!r} {low!r} {high!r}"), 16))
        shares = (low + high) / 2 + (high - low) / 3.92 * generator.standard_normal(N_DRAWS)
        ends = np.quantile((shares - drawn["machine"]) / informed, [0.025, 0.975])
        point = (share + specificity - 1) / (sensitivity + specificity - 1)
        corrected, first, last = (min(1.0, max(0.0, float(value))) for value in (point, *ends))
        return corrected, first, last, ""

    def _drawn_rates(self, side: str, turns: Turns) -> np.ndarray:
        """Return draws of the mean share called human over the sources of a side, (N_DRAWS,)."""
        rows = [row for row in self.accuracy if (row.side, row.turns) == (side, turns) and row.n]
        weights = question_weights(len(rows), N_DRAWS, *map(repr, rows)) / len(rows)
        generator = np.random.default_rng(int(content_id(*map(repr, rows)), 16))
        called = np.array([row.n_called_human for row in rows]) + 0.5
        missed = np.array([row.n - row.n_called_human for row in rows]) + 0.5
        return (weights * generator.beta(called, missed, (N_DRAWS, len(rows)))).sum(axis=1)

    def save(self, path: Path | str) -> None:
        """Write the classifier as JSON, all of it or nothing."""
        write_text(Path(path), json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n")


def load(path: Path | str = SHIPPED) -> HumanLikeness:
    """Return the classifier saved at `path`, the shipped one unless given.

    Raises Stop naming the file and the field that is missing, of another kind, or not a feature of this version.

    Ours: `benchmarks/human_likeness.py` made the shipped one and repeats it.
    """
    try:
        return HumanLikeness.model_validate(json.loads(Path(path).read_text(encoding="utf-8")))
    except ValidationError as error:
        raise Stop(f"{path}: {first_problem(error)}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise Stop(f"{path}: not readable as JSON ({str(error)[:120]})") from None


# ---- training -----------------------------------------------------------------------------------


def matched_weights(forms: Sequence[Any], human: np.ndarray) -> np.ndarray:
    """Return a weight for each text, so that in every form both sides weigh the same; mean 1.

    A form that only one side has weighs 0. Raises Stop when they share none.

    Ours: else the classifier learns that models instruct and people ask.
    """
    weights = np.zeros(len(human))
    members: dict[Any, list[int]] = {}
    for i, each in enumerate(forms):
        members.setdefault(each, []).append(i)
    for found in members.values():
        ours = human[found]
        a, b = ours.sum(), (~ours).sum()
        if a and b:
            weights[found] = np.where(ours, math.sqrt(b / a), math.sqrt(a / b))
    if not weights.any():
        raise Stop("train: the two sides share no length and form, expected texts of the same kind on both")
    return weights * (len(human) / weights.sum())


def fitted(x: np.ndarray, human: np.ndarray, weights: np.ndarray) -> Fitted:
    """Return the logistic regression (scikit-learn's, `STRENGTH`) of standardised features, each row of its weight.

    Ours: without a penalty it is too sure of sources it has not seen.
    """
    from sklearn.linear_model import LogisticRegression

    means = np.average(x, axis=0, weights=weights)
    scales = np.sqrt(np.average((x - means) ** 2, axis=0, weights=weights))
    scales[scales < 1e-5] = 1.0  # the same in every text: says nothing
    model = LogisticRegression(C=STRENGTH, max_iter=1000).fit(
        (x - means) / scales, human, sample_weight=weights
    )
    return Fitted(model.coef_[0], float(model.intercept_[0]), means, scales)


class Pool(NamedTuple):
    """Texts of both sides with their features, one entry a text: what a classifier is trained on.

    `sources` are names of at least one text; a name used on both sides is two sources.

    Ours: features are counted once, however many classifiers are trained.
    """

    texts: list[str]
    human: np.ndarray  # bool
    sources: np.ndarray  # names
    forms: list[tuple[bool, int]]
    x: np.ndarray  # (texts, features)

    def fitted(self, chosen: np.ndarray | None = None) -> Fitted:
        """Return the classifier of the chosen texts (a boolean for each; all of them unless given)."""
        at = np.arange(len(self.texts)) if chosen is None else np.flatnonzero(chosen)
        weights = matched_weights([self.forms[i] for i in at], self.human[at])
        return fitted(self.x[at], self.human[at], weights)

    def parts(self) -> list[tuple[bool, str, np.ndarray]]:
        """Return (is it human, source, a boolean for each text) for every source, in order."""
        names = dict.fromkeys(zip(self.human.tolist(), self.sources.tolist(), strict=True))
        return [(side, name, (self.human == side) & (self.sources == name)) for side, name in names]


def pool(human: Mapping[str, Iterable[str]], machine: Mapping[str, Iterable[str]]) -> Pool:
    """Return the pool of the `usable` texts of both sides, given by source name.

    Raises Stop for a side with fewer than `N_FOLDS` of them.

    Ours: see `Pool`.
    """
    entries: list[tuple[str, bool, str]] = []
    for name, side in (("human", human), ("machine", machine)):
        found = [(text, name == "human", source) for source, texts in side.items() for text in usable(texts)]
        if len(found) < N_FOLDS:
            raise Stop(f"train: {len(found)} usable {name} texts, expected at least {N_FOLDS}")
        entries += found
    texts, sides, sources = (list(column) for column in zip(*entries, strict=True))
    return Pool(texts, np.array(sides), np.array(sources), [form(t) for t in texts], matrix(texts))


def unseen(these: Pool) -> tuple[np.ndarray, list[str]]:
    """Return for each text the probability of `human` by a classifier without its source, and how that was.

    "source left out", or "folds" where its side has no other source: then every tenth text of it is left out.

    Ours: see `Tested`.
    """
    probability, how = np.full(len(these.texts), math.nan), [""] * len(these.texts)
    for side, _, members in these.parts():
        alone = bool((members == (these.human == side)).all())
        fold = np.cumsum(members) % N_FOLDS if alone else np.zeros(len(members))
        for number in np.unique(fold[members]):
            left_out = members & (fold == number)
            probability[left_out] = these.fitted(~left_out).probability(these.x[left_out])
        for i in np.flatnonzero(members):
            how[i] = "folds" if alone else "source left out"
    return probability, how


def train(
    human: Mapping[str, Iterable[str]], machine: Mapping[str, Iterable[str]], turns: Turns = "first"
) -> HumanLikeness:
    """Return a classifier trained on `usable` texts by source name, tested on each source without it.

    A source alone on its side is tested by folds, which flatters: two sources a side are worth more than one
    that is longer. `turns` is noted with the accuracy. The same texts give the same classifier in any order.
    Raises Stop for a side with fewer than `N_FOLDS` usable texts, or sides that share no length and form.

    Ours: PlatoLM's detector is used without an accuracy.
    """
    these = pool(human, machine)
    model, (probability, how) = these.fitted(), unseen(these)
    made_of, tested = [], []
    for side, source, members in these.parts():
        name, n = ("human" if side else "machine"), int(members.sum())
        made_of.append(f"{name}: {source}, {n:,} texts")
        called, kind = int((probability[members] > 0.5).sum()), how[int(np.argmax(members))]
        tested.append(Tested(source=source, side=name, turns=turns, n=n, n_called_human=called, how=kind))
    columns = zip(
        FEATURES, *(part.tolist() for part in (model.weights, model.means, model.scales)), strict=True
    )
    weights = {
        name: Weight(weight=round(w, 6), mean=round(m, 6), scale=round(s, 6)) for name, w, m, s in columns
    }
    return HumanLikeness(
        made_of=made_of, accuracy=tested, intercept=round(model.intercept, 6), features=weights
    )
