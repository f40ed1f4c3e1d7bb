"""Train the classifier of human-written questions, and measure what may be believed of it.

    python benchmarks/human_likeness.py                                   # repeats the shipped one, a quarter of a minute
    python benchmarks/human_likeness.py --human FILE … --machine FILE … --out FILE [--turns first|later|all]

Without --human and --machine it reads the public data (--data DIR, beside the checkout unless given; paths
in `data/reference/README.md`) and writes data/reference/human_likeness.json, .csv and the table in the README
there. With them it trains on your own files, of any format `ultrachat.corpora` reads; the user's messages are
used, one source a file, and each file is tested by a classifier that has not seen it. Two files a side or
more say how far it carries; with one a side you learn only how well it knows those two.

The parts of the CSV (value with a 95 % interval, over texts; `n` are texts or pairs):

  source left out    the shipped one's accuracy on each source it was made of, by a classifier without that source
  not trained on     its accuracy on other sources; both are in its file, and their means correct a share
  applied            what it says of the recorded teacher, one model that was asked to play people
  folds              how well two sources are told apart when both have been seen: flattering
  mixture            mean AUC over pairs of sources not seen in training, for each way of training: `n` is pairs.
                     `matched` weighs both sides alike in each length and form, `form too` has them as features
  pairs              of two texts alike in length and form, how often the person's is the likelier; sources left out
  calibration        Brier score (0.25: says nothing); of texts of which each tenth of probability is said, the share
                     that people wrote; sources left out
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import re
import sys
from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from common import markdown

from ultrachat import corpora, human_likeness
from ultrachat.errors import Stop
from ultrachat.habits import n_words, usable
from ultrachat.human_likeness import Pool, fitted, matched_weights, pool, unseen
from ultrachat.intervals import question_weights, rate_interval, resampled_interval
from ultrachat.launcher import between
from ultrachat.parsing import parse_list
from ultrachat.runs import DATA, REPO, write_text

FOLDER = DATA / "reference"
MARKS = ("<!-- human_likeness -->", "<!-- end of human_likeness -->")
N_A_SOURCE = 500  # the first in id order: Dolly has sixty times as many as the smallest
N_RESAMPLES = 1000
COLUMNS = ("part", "what", "measure", "side", "turns", "n", "value", "low", "high")
QUOTES = re.compile(r"according to:|piece of text|given the text|text material|passage|\n|: [A-Z]", re.I)
SIDES = {"sensitivity": "human", "specificity": "machine"}
ASKS = re.compile(
    r"(what|which|who|whom|whose|when|where|why|how|is|are|was|were|do|does|did|has|have)\b", re.I
)


class Source(NamedTuple):
    """Texts of one hand: a person's or a model's; first in a dialogue or later. Ours: what a row is about."""

    side: str
    turns: str
    texts: list[str]


# ---- the public data ----------------------------------------------------------------------------


def sources(data: Path) -> dict[str, Source]:
    """Return every source under `data` by name, and the recorded teacher's; Stop when one is not there.

    Of UltraChat's first messages those that quote a web text are left out: the text is a person's.

    Ours: whatever English was to be had.
    """
    alpaca_eval = json.loads(_text(data / "alpaca_eval" / "alpaca-7b.json"))
    of = {name: [row["instruction"] for row in alpaca_eval if row["dataset"] == name] for name in
          ("oasst", "koala", "helpful_base", "selfinstruct")}  # fmt: skip
    mt_bench = [
        json.loads(line)["turns"] for line in _text(data / "eval" / "mt_bench_question.jsonl").splitlines()
    ]
    vicuna = [
        json.loads(line)["text"] for line in _text(data / "vicuna_bench" / "question.jsonl").splitlines()
    ]
    ultra_eval = [row["data"] for row in json.loads(_text(data / "eval" / "ultra_eval.json"))]
    truthful = csv.DictReader(_text(data / "truthfulqa" / "v1" / "TruthfulQA.csv").splitlines())
    ultrachat = list(corpora.read(data / "ultrachat" / "ultrachat_200k_short_500.jsonl").texts())
    recorded = recorded_teacher()
    return {
        "Dolly": Source("human", "first", _openings(data / "dolly" / "databricks_dolly_15k_from_shards.jsonl")),
        "OpenAssistant": Source("human", "first", of["oasst"]),
        "Koala": Source("human", "first", of["koala"]),
        "Anthropic helpful": Source("human", "first", of["helpful_base"]),
        "Self-Instruct by users": Source("human", "first", of["selfinstruct"]),
        "Alpaca": Source("machine", "first", _openings(data / "alpaca" / "alpaca_5000.json")),
        "UltraChat": Source("machine", "first", [d[0] for d in ultrachat if not QUOTES.search(d[0])]),
        "evaluation questions by GPT-4": Source("machine", "first", list(dict.fromkeys(vicuna + ultra_eval))),
        "TruthfulQA": Source("human", "first", [row["Question"] for row in truthful]),
        "MT-bench": Source("human", "first", [turns[0] for turns in mt_bench]),
        "MT-bench, second turns": Source("human", "later", [turns[1] for turns in mt_bench]),
        "UltraChat, later turns": Source("machine", "later", [t for d in ultrachat for t in d[2::2]]),
        "recorded teacher": Source("machine", "first", recorded["first"]),
        "recorded teacher, later turns": Source("machine", "later", recorded["later"]),
    }  # fmt: skip


TRAINED = ("Dolly", "OpenAssistant", "Koala", "Anthropic helpful", "Self-Instruct by users", "Alpaca", "UltraChat",
           "evaluation questions by GPT-4")  # fmt: skip
TESTED = (
    "evaluation questions by GPT-4",
    "TruthfulQA",
    "MT-bench",
    "MT-bench, second turns",
    "UltraChat, later turns",
)
APPLIED = ("recorded teacher", "recorded teacher, later turns")
MIXTURES = {
    "Dolly against Alpaca": ("Dolly", "Alpaca"),
    "five human sources against Alpaca, UltraChat": TRAINED[:-1],
    "five human sources against Alpaca, UltraChat, GPT-4": TRAINED,
    "these and UltraChat's later turns": (*TRAINED, "UltraChat, later turns"),
}
CHOSEN = "five human sources against Alpaca, UltraChat"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise Stop(
            f"{path}: cannot be read ({error.strerror}); --data names the folder of the samples"
        ) from None


def _openings(path: Path) -> list[str]:
    """Return the first user messages, without those that a row's input or context follows (a new line)."""
    return [texts[0] for texts in corpora.read(path).texts() if "\n" not in texts[0].strip()]


def recorded_teacher() -> dict[str, list[str]]:
    """Return the recorded questions and the later user turns: written by one model asked to play people.

    Ours: the sample run's.
    """
    found: dict[str, list[str]] = {"first": [], "later": []}
    for line in _text(DATA / "recorded" / "openings.jsonl").splitlines():
        row = json.loads(line)
        one = row["task"] == "detailed_instruction"
        found["first"] += [row["response"]] if one else parse_list(row["response"], 0).items
    for line in _text(DATA / "recorded" / "dialogues.jsonl").splitlines():
        row = json.loads(line)
        if row["task"] == "user_turn" and row["response"].strip() != "[END]":
            found["later"].append(row["response"])
    return found


# ---- measuring ----------------------------------------------------------------------------------


def pool_of(found: Mapping[str, Source], names: Iterable[str]) -> Pool:
    """Return the pool of these sources, the first `N_A_SOURCE` usable texts of each.

    Ours: see `human_likeness.pool`.
    """
    sides: dict[str, dict[str, list[str]]] = {"human": {}, "machine": {}}
    for name in names:
        sides[found[name].side][name] = usable(found[name].texts)[:N_A_SOURCE]
    return pool(**sides)


class Judged(NamedTuple):
    """Probabilities of the texts of a human and a machine source. Ours: a pair of sources."""

    names: tuple[str, str]
    human: np.ndarray
    machine: np.ndarray


def auc(pairs: list[Judged]) -> tuple[float, float, float]:
    """Return the mean of the AUC over pairs of sources, and its interval.

    Texts are drawn anew within each source, sources are not: of other sources it says nothing.

    Ours: the AUC is how often a person's text is the likelier of two, ties counting half.
    """
    values, draws = [], []
    for names, human, machine in pairs:
        wins = (human[:, None] > machine).astype(np.float32) + 0.5 * (human[:, None] == machine)
        u, v = (
            question_weights(n, N_RESAMPLES, "auc", name).astype(np.float32) / n
            for n, name in zip(wins.shape, names, strict=True)
        )
        values.append(float(wins.mean()))
        draws.append(((u @ wins) * v).sum(axis=1))
    smallest = min(min(len(pair.human), len(pair.machine)) for pair in pairs)
    low, high = resampled_interval(np.mean(draws, axis=0), smallest)
    return float(np.mean(values)), float(low), float(high)


def form_features(texts: list[str]) -> np.ndarray:
    """Return what is no feature on purpose: signs of a request, a question, a long text. Ours: to show what it does.

    Line breaks are not among them: rows with an input were left out by them.
    """
    rows = [
        [
            math.log1p(n_words(text)),
            math.log1p(len(re.findall(r"[.!?]\s+\S", text))),
            text.endswith("?"),
            text.endswith("."),
            text.count("?") > 1,
            ASKS.match(text) is not None,
            ":" in text,
            re.search(r"\b(given|following|these|this)\b", text, re.I) is not None,
        ]
        for text in texts
    ]
    return np.array(rows, float).reshape(len(texts), -1)


def mixture_rows(found: Mapping[str, Source]) -> list[dict]:
    """Return rows for each way of training: AUC over pairs of sources, openings and later turns apart.

    A pair is judged by a classifier that has seen neither. Dolly and Alpaca are in no pair, as the way
    that has only these could not be judged on them; so all ways are judged on the same.

    Ours: what is chosen must be chosen on what has not been seen.
    """
    narrow = pool_of(found, [*TRAINED, *TESTED])
    wide = narrow._replace(x=np.hstack([narrow.x, form_features(narrow.texts)]))
    names = [name for name in (*TRAINED, *TESTED) if name not in ("Dolly", "Alpaca")]
    rows = []
    for mixture, members in MIXTURES.items():
        for matched, with_form in ((True, False), (True, True), (False, False), (False, True)):
            what = f"{mixture}; {'matched' if matched else 'not matched'}{', form too' if with_form else ''}"
            chosen = (mixture, matched, with_form) == (CHOSEN, True, False)
            for turns in ("first", "later"):
                sides = [
                    [n for n in dict.fromkeys(names) if found[n].side == side and found[n].turns == turns]
                    for side in ("human", "machine")
                ]
                pairs = [
                    judged(wide if with_form else narrow, members, pair, matched) for pair in product(*sides)
                ]
                measure = f"AUC{', chosen' if chosen else ''}"
                rows.append(row("mixture", what, measure, len(pairs), auc(pairs), "", turns))
    return rows


def judged(these: Pool, members: Iterable[str], pair: tuple[str, str], matched: bool) -> Judged:
    """Return what a classifier of the other members says of a pair's texts. Ours: both unseen."""
    at = np.flatnonzero(np.isin(these.sources, [name for name in members if name not in pair]))
    human = these.human[at]
    if matched:
        weights = matched_weights([these.forms[i] for i in at], human)
    else:
        weights = np.where(human, 1 / human.sum(), 1 / (~human).sum()) * (len(at) / 2)
    model = fitted(these.x[at], human, weights)
    return Judged(pair, *(model.probability(these.x[these.sources == name]) for name in pair))


def fold_rows(found: Mapping[str, Source]) -> list[dict]:
    """Return accuracy and AUC of two sources told apart when both have been seen. Ours: how not to be believed."""
    rows = []
    for names in (("Dolly", "Alpaca"), ("Dolly", "UltraChat"), ("OpenAssistant", "UltraChat")):
        these = pool_of(found, names)
        p, _ = unseen(these)
        what = " against ".join(names)
        right = [((p > 0.5) == these.human)[these.human == side] for side in (True, False)]
        rows += [
            row("folds", what, "balanced accuracy", len(p), balanced(*right)),
            row("folds", what, "AUC", len(p), auc([Judged(names, p[these.human], p[~these.human])])),
        ]
    return rows


def balanced(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """Return the mean of two rates and its interval, from each one's Wilson interval (Newcombe's way). Ours: small n."""
    value = (a.mean() + b.mean()) / 2
    ends = [rate_interval(int(x.sum()), len(x)) for x in (a, b)]
    down = math.hypot(*(x.mean() - low for x, (low, _) in zip((a, b), ends, strict=True))) / 2
    up = math.hypot(*(high - x.mean() for x, (_, high) in zip((a, b), ends, strict=True))) / 2
    return value, value - down, value + up


def accuracy_rows(judge: human_likeness.HumanLikeness) -> list[dict]:
    """Return the classifier's own accuracy, a row a source, and the means over sources. Ours: its file's."""
    rows = [
        row(t.how, t.source, "called human", t.n, rate(t.n_called_human, t.n), t.side, t.turns)
        for t in judge.accuracy
    ]
    for turns in ("first", "later"):
        for name, side, value in zip(SIDES, SIDES.values(), judge.rates(turns), strict=True):
            n = sum((t.side, t.turns) == (side, turns) for t in judge.accuracy)
            if n:
                rows.append(row("mean over sources", "", name, n, (value, math.nan, math.nan), side, turns))
    return rows


def applied_rows(judge: human_likeness.HumanLikeness, found: Mapping[str, Source]) -> list[dict]:
    """Return what the classifier says of a simulated user that is in none of its tests. Ours: the sample run's."""
    rows = []
    for name in APPLIED:
        _, turns, texts = found[name]
        share = judge.share_human(usable(texts), turns=turns)
        rows.append(row("applied", name, "called human", share.n, share[:3], "machine", turns))
        corrected = (share.corrected, share.corrected_low, share.corrected_high)
        rows.append(row("applied", name, "corrected", share.n, corrected, "machine", turns))
    return rows


def pair_rows(these: Pool, p: np.ndarray) -> list[dict]:
    """Return the share of pairs, alike in length and form, in which the human text is the likelier human.

    Each text is in one pair at most; within a length and form they pair off in id order.

    Ours: length alone must not decide.
    """
    members: dict[tuple, tuple[list[int], list[int]]] = {}
    for i, text in enumerate(these.texts):
        key = (n_words(text), *these.forms[i])
        members.setdefault(key, ([], []))[0 if these.human[i] else 1].append(i)
    pairs = [pair for a, b in members.values() for pair in zip(a, b, strict=False)]
    won = sum(p[i] > p[j] for i, j in pairs)
    return [
        row(
            "pairs",
            "as many words, both ask or neither",
            "human likelier",
            len(pairs),
            rate(int(won), len(pairs)),
        )
    ]


def calibration_rows(these: Pool, p: np.ndarray) -> list[dict]:
    """Return the Brier score and the reliability per decile, both sides as heavy. Ours: see the docstring above."""
    weights = np.where(these.human, 0.5 / these.human.sum(), 0.5 / (~these.human).sum())
    brier = float(np.sum(weights * (p - these.human) ** 2))
    rows = [row("calibration", "sources left out", "Brier score", len(p), (brier, math.nan, math.nan))]
    for decile in range(10):
        at = np.minimum((p * 10).astype(int), 9) == decile
        if at.any():
            share = float(weights[at & these.human].sum() / weights[at].sum())
            low, high = rate_interval(round(share * at.sum()), int(at.sum()))
            what = f"{decile / 10:.1f} to {(decile + 1) / 10:.1f}"
            rows.append(row("calibration", what, "written by people", int(at.sum()), (share, low, high)))
    return rows


def rate(k: int, n: int) -> tuple[float, float, float]:
    """Return k / n and its interval. Ours: Wilson's."""
    return (k / n if n else math.nan, *rate_interval(k, n))


def row(
    part: str, what: str, measure: str, n: int, value: Iterable[float], side: str = "", turns: str = ""
) -> dict:
    """Return one row of the CSV; three decimals, nothing for nan. Ours: one form for every part."""
    shown = ["" if math.isnan(v) else f"{v:.3f}" for v in value]
    return dict(zip(COLUMNS, (part, what, measure, side, turns, str(n), *shown), strict=True))


# ---- the commands -------------------------------------------------------------------------------


def shipped(found: Mapping[str, Source]) -> human_likeness.HumanLikeness:
    """Return the classifier that is shipped, with its accuracy on the sources it was not trained on too.

    Ours: the chosen mixture.
    """
    sides: dict[str, dict[str, list[str]]] = {"human": {}, "machine": {}}
    for name in MIXTURES[CHOSEN]:
        sides[found[name].side][name] = usable(found[name].texts)[:N_A_SOURCE]
    judge = human_likeness.train(**sides)
    more = [judge.test(name, *found[name]) for name in TESTED]
    return judge.model_copy(update={"accuracy": (*judge.accuracy, *more)})


def repeat(data: Path) -> tuple[human_likeness.HumanLikeness, list[dict]]:
    """Return the shipped classifier and every row of its CSV, from the public data. Ours: see above."""
    found = sources(data)
    judge = shipped(found)
    these = pool_of(found, MIXTURES[CHOSEN])
    p, _ = unseen(these)
    rows = [
        *accuracy_rows(judge), *applied_rows(judge, found), *fold_rows(found), *mixture_rows(found),
        *pair_rows(these, p), *calibration_rows(these, p),
    ]  # fmt: skip
    return judge, rows


def user_turns(path: str, turns: str) -> list[str]:
    """Return the user's messages of a file: the first of each dialogue, the later ones, or all. Ours: see `--turns`."""
    chosen = {"first": slice(0, 1), "later": slice(2, None, 2), "all": slice(0, None, 2)}[turns]
    return [text for texts in corpora.read(path).texts() for text in texts[chosen]]


def show(rows: list[dict]) -> str:
    """Write the CSV and show it in the README beside it; return the Markdown. Ours: no figure there is typed."""
    cells = [list(each.values()) for each in rows]
    text = "\n".join(",".join(f'"{c}"' if "," in c else c for c in line) for line in [COLUMNS, *cells])
    write_text(FOLDER / "human_likeness.csv", text + "\n")
    table = markdown(COLUMNS, cells)
    before, _, after = between((FOLDER / "README.md").read_text(encoding="utf-8"), MARKS)
    write_text(FOLDER / "README.md", f"{before}\n{table}\n{after}")
    return table


def main() -> None:
    """Ours: see above."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, default=REPO.parent / "shared" / "data", help="of the public samples"
    )
    parser.add_argument("--human", nargs="+", metavar="FILE", help="dialogues whose users are people")
    parser.add_argument("--machine", nargs="+", metavar="FILE", help="dialogues whose users are a model")
    parser.add_argument("--turns", choices=("first", "later", "all"), default="all", help="of your own files")
    parser.add_argument("--out", type=Path, help="where your own classifier is written")
    options = parser.parse_args()
    own = (options.human, options.machine, options.out)
    if any(own) and not all(own):
        parser.error("--human, --machine and --out go together")
    if all(own):
        sides = [{Path(f).name: user_turns(f, options.turns) for f in files} for files in own[:2]]
        judge = human_likeness.train(*sides, turns="first" if options.turns == "first" else "later")
        judge.save(options.out)
        rows = accuracy_rows(judge)
        print(markdown(COLUMNS, [list(each.values()) for each in rows]))
        return
    judge, rows = repeat(options.data)
    judge.save(human_likeness.SHIPPED)
    print(show(rows))


if __name__ == "__main__":
    try:
        main()
    except Stop as stop:
        sys.exit(f"{stop}")
