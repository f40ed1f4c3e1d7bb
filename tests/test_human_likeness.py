"""Human or machine: habits by hand, planted styles told apart, the shipped classifier's own accuracy repeated."""

from __future__ import annotations

import csv
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ultrachat import human_likeness
from ultrachat.errors import Stop
from ultrachat.habits import FEATURES, MAX_WORDS, features, form, matrix, n_words, usable
from ultrachat.launcher import between
from ultrachat.records import Dialogue, to_jsonl

REPO = Path(__file__).resolve().parent.parent
FOLDER = REPO / "data" / "reference"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(REPO / "benchmarks"))
    sys.modules.pop("human_likeness", None)
    import human_likeness as found

    yield found
    sys.path.remove(str(REPO / "benchmarks"))
    sys.modules.pop("human_likeness")


TOPICS = [
    f"{a} {b}" for a in ("green", "old", "tiny", "loud") for b in ("cars", "bees", "pots", "ships", "caves")
]
TYPED = [f"whats up with  {topic}, i dont know" for topic in TOPICS]  # of one length and form
POLISHED = [f"Can you provide additional information regarding {topic}." for topic in TOPICS]


def two_sources(texts):
    return {"even": texts[::2], "odd": texts[1::2]}


# ---- habits -------------------------------------------------------------------------------------


def test_features_by_hand():
    found = features("  whats  up with NASA, i dont get it: is 7 well-known \n")
    words = ["whats", "up", "with", "NASA", "i", "dont", "get", "it", "is", "7", "well", "known"]
    expected = {
        "word_length": sum(map(len, words)) / 12,
        "function_words": 4 / 12,  # with, i, it, is
        "names": 1 / 11,  # NASA, among the words after the first
        "capital_letters": 4 / (sum(map(len, words)) - 1),  # 7 is no letter
        "digits": 1 / 12,
        "commas": 1 / 12,
        "hyphens": 1 / 12,
        "first_person": 1 / 12,
        "starts_lower": 1, "ends_bare": 1, "lost_apostrophe": 1, "lower_i": 1, "slips": 1,
    }  # fmt: skip
    assert found == pytest.approx(dict.fromkeys(FEATURES, 0.0) | expected)


@pytest.mark.parametrize(
    ("name", "has", "has_not"),
    [
        ("can_you", "Could you sort this?", "You can sort."),
        ("please_or_thanks", "Sort, please", "Pleased to sort"),
        ("greets_or_reacts", "Wow, really?", "The cat said wow"),
        ("hedges", "I think so", "I thought so"),
        ("contractions", "It’s here", "Its here"),
        ("short_forms", "tea vs coffee", "Tea versus coffee"),
        ("slips", "why?? ", "Why? Because."),
        ("slips", "well ,yes", "well, yes"),
        ("exclaims", "Go!", "Go."),
        ("brackets", "a (b)", "a [b]"),
        ("quotes", 'say "a"', "say “a”"),
        ("curly", "say “a”", 'say "a"'),
        ("code", "x = {1: 2}", "x is 1"),
        ("code", "see https://a.example", "see a.example"),
        ("more", "any other news", "the old news"),
        ("second_person", "is it yours", "is it the youth"),
        ("subordinates", "go because it rains", "go, it rains"),
        ("foreign", "où", "ou"),
        ("repeated_words", "The the", "The cat"),
        ("long_words", "wonderful", "wonder"),
    ],
)
def test_a_habit_is_seen_and_not_seen(name, has, has_not):
    assert features(has)[name] > 0 and features(has_not)[name] == 0


@given(st.text(), st.text(alphabet=" \t\n\u3000\x1c"))
@settings(max_examples=200)
def test_any_text_has_finite_features_that_white_space_around_it_does_not_change(text, white):
    found = features(text)
    assert tuple(found) == tuple(FEATURES)
    assert all(0 <= value <= (15 if name == "word_length" else 1) for name, value in found.items())
    assert features(white + text + white) == found
    assert form(white + text + white) == form(text)


def test_usable_texts_are_distinct_short_enough_and_in_no_order_of_the_file():
    texts = ["b b", " b b ", "a", "…", "", "w " * MAX_WORDS, "w " * (MAX_WORDS + 1)]
    assert sorted(map(n_words, usable(texts))) == [1, 2, MAX_WORDS]
    assert usable(texts) == usable(texts[::-1])


def test_form_is_asking_and_length():
    assert form("Why?") == (True, 0) and form("w " * 8) == (False, 0) and form("w " * 9) == (False, 1)
    assert form("w " * 25) == (False, 2) and form("w " * 26 + "?") == (True, 3)


# ---- training -----------------------------------------------------------------------------------


def test_two_planted_styles_are_told_apart_also_on_a_source_not_seen():
    judge = human_likeness.train(two_sources(TYPED), two_sources(POLISHED))
    assert judge.rates() == (1.0, 1.0)
    assert {row.how for row in judge.accuracy} == {"source left out"}
    assert judge.probability(["hm whats wrong with my  bike"])[0] > 0.8
    assert judge.probability(["Can you provide additional information regarding bikes."])[0] < 0.2
    share = judge.share_human([*TYPED, *POLISHED])
    assert (share.share, share.n, share.note) == (0.5, 40, "") and share.low < share.corrected < share.high


def test_the_same_texts_on_both_sides_say_nothing():
    judge = human_likeness.train({"a": TYPED + POLISHED}, {"b": TYPED + POLISHED})
    assert judge.probability(TYPED + POLISHED) == pytest.approx(0.5, abs=1e-3)
    assert {row.how for row in judge.accuracy} == {"folds"}
    share = judge.share_human(TYPED)
    assert math.isnan(share.corrected) and share.note.startswith("uninformative")


def test_the_order_of_texts_does_not_matter_and_probabilities_are_scikit_learns():
    from sklearn.linear_model import LogisticRegression

    human = [*TYPED[:12], *(f"Now: {text}" for text in POLISHED[:3])]
    machine = [*(f"{text[:-1]}!" for text in POLISHED[4:]), *(f"well {text}" for text in TYPED[15:])]
    judge = human_likeness.train({"h": human}, {"m": machine})
    assert judge == human_likeness.train({"h": human[::-1]}, {"m": machine[::-1]})
    texts = human + machine
    x, y = matrix(texts), np.arange(len(texts)) < len(human)
    weights = human_likeness.matched_weights([form(text) for text in texts], y)
    means = np.average(x, axis=0, weights=weights)
    scales = np.sqrt(np.average((x - means) ** 2, axis=0, weights=weights))
    z = (x - means) / np.where(scales < 1e-5, 1, scales)
    theirs = LogisticRegression(C=human_likeness.STRENGTH, max_iter=1000).fit(z, y, sample_weight=weights)
    assert judge.probability(texts) == pytest.approx(theirs.predict_proba(z)[:, 1], abs=1e-4)


def test_weights_make_the_sides_alike_in_every_form():
    forms, human = list("aaaabbbbc"), np.array([1, 1, 1, 0, 1, 0, 0, 0, 1], bool)
    weights = human_likeness.matched_weights(forms, human)
    assert weights[-1] == 0 and weights.sum() == pytest.approx(9)
    for letter in "ab":
        at = np.array([each == letter for each in forms])
        assert weights[at & human].sum() == pytest.approx(weights[at & ~human].sum())
    with pytest.raises(Stop, match="share no length and form"):
        human_likeness.matched_weights("ab", np.array([True, False]))


def test_a_source_left_out_is_judged_by_the_others_only():
    """Of two human sources one is typed like the machine's: it is recognised only by whoever has seen it."""
    human = {"typed": TYPED[:10], "odd": [f"{text} ()" for text in POLISHED[:10]]}
    these = human_likeness.pool(human, {"a": POLISHED[10:15], "b": POLISHED[15:]})
    p, how = human_likeness.unseen(these)
    odd = these.sources == "odd"
    assert set(how) == {"source left out"} and (p[odd] < 0.5).all()
    assert these.fitted().probability(these.x[odd]).min() > p[odd].max()


def test_too_few_texts_are_one_line():
    with pytest.raises(Stop, match="train: 2 usable human texts, expected at least 10"):
        human_likeness.train({"h": ["a", "b", " a"]}, {"m": POLISHED})


# ---- what is said of a share --------------------------------------------------------------------


def with_accuracy(*rows) -> human_likeness.HumanLikeness:
    """The shipped weights with other rates: (side, n, n_called_human) of first turns."""
    accuracy = tuple(
        human_likeness.Tested(
            source=f"s{i}", side=side, turns="first", n=n, n_called_human=k, how="source left out"
        )
        for i, (side, n, k) in enumerate(rows)
    )
    return human_likeness.load().model_copy(update={"accuracy": accuracy})


def test_the_corrected_share_by_hand():
    judge = with_accuracy(("human", 1000, 800), ("human", 10, 6), ("machine", 1000, 100))
    assert judge.rates() == pytest.approx((0.7, 0.9))
    assert math.isnan(judge.rates("later")[0])
    corrected, low, high, note = judge._corrected(0.4, 0.35, 0.45, "first")
    assert corrected == pytest.approx((0.4 - 0.1) / (0.7 - 0.1)) and low < 0.45 and high > 0.55 and note == ""
    assert judge._corrected(0.05, 0.02, 0.09, "first")[:2] == (0.0, 0.0)
    assert "no tests on both sides of later turns" in judge._corrected(0.4, 0.35, 0.45, "later")[3]


def test_the_corrected_interval_covers_the_truth_when_sources_differ():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(100):
        rates = {"human": rng.normal(0.7, 0.08, 6).clip(0, 1), "machine": rng.normal(0.2, 0.06, 5).clip(0, 1)}
        rows = [(side, 200, int(rng.binomial(200, r))) for side, found in rates.items() for r in found[1:]]
        called = rng.binomial(400, 0.3 * rates["human"][1:].mean() + 0.7 * rates["machine"][1:].mean()) / 400
        half = 1.96 * math.sqrt(called * (1 - called) / 400)
        _, low, high, _ = with_accuracy(*rows)._corrected(called, called - half, called + half, "first")
        covered += low <= 0.3 <= high
    assert covered >= 92


def test_questions_of_one_dialogue_are_not_independent():
    judge, questions = human_likeness.load(), [*TYPED, *POLISHED]
    alone, together = judge.share_human(questions), judge.share_human(questions, ["a"] * 20 + ["b"] * 20)
    assert alone.share == together.share and together.high - together.low > alone.high - alone.low
    with pytest.raises(Stop, match="1 groups, expected one for each of 2"):
        judge.share_human(["a", "b"], ["x"])


def test_what_is_not_judged_is_counted():
    judge = human_likeness.load()
    assert judge.is_human(["…", "w " * 101]) == [None, None]
    share = judge.share_human(["…", "dont know what to do"])
    assert (share.n, share.n_left_out, share.share) == (1, 1, 1.0)
    nothing = judge.share_human([])
    assert nothing.n == 0 and math.isnan(nothing.share) and nothing.note.startswith("not corrected")


@given(st.lists(st.text(), max_size=5))
@settings(max_examples=100)
def test_any_texts_have_a_probability_or_none(texts):
    found = human_likeness.load().probability(texts)
    assert found.shape == (len(texts),)
    assert all(math.isnan(p) == (not 1 <= n_words(t) <= MAX_WORDS) for p, t in zip(found, texts, strict=True))
    assert ((found >= 0) & (found <= 1) | np.isnan(found)).all()


# ---- files --------------------------------------------------------------------------------------


def test_a_classifier_is_saved_and_loaded_as_it_was(tmp_path):
    judge = human_likeness.train(two_sources(TYPED), {"m": POLISHED}, turns="later")
    judge.save(tmp_path / "mine.json")
    assert human_likeness.load(tmp_path / "mine.json") == judge
    assert {row.turns for row in judge.accuracy} == {"later"}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda d: d["features"].pop("slips"), "'slips' is missing"),
        (lambda d: d["features"].update(mood=d["features"]["slips"]), "'mood' is none of this version"),
        (lambda d: d["features"]["slips"].update(weight="much"), "features.slips.weight"),
        (lambda d: d["features"]["slips"].update(scale=0), "features.slips.scale"),
        (lambda d: d.pop("intercept"), "'intercept' is missing"),
        (lambda d: d["accuracy"][0].update(n_called_human=10**6), "accuracy.0"),
        (lambda d: d["accuracy"][0].update(side="cat"), "accuracy.0.side"),
    ],
)
def test_a_broken_file_is_one_line_with_file_and_field(change, line, tmp_path):
    data = json.loads(human_likeness.SHIPPED.read_text(encoding="utf-8"))
    change(data)
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(data))
    with pytest.raises(Stop) as stopped:
        human_likeness.load(path)
    assert str(stopped.value).startswith(str(path)) and line in str(stopped.value)


def test_no_file_or_no_json_is_one_line(tmp_path):
    (tmp_path / "x.json").write_text("{")
    for name in ("x.json", "none.json"):
        with pytest.raises(Stop, match=f"{name}: not readable as JSON"):
            human_likeness.load(tmp_path / name)


# ---- the shipped classifier ---------------------------------------------------------------------


def committed() -> list[dict[str, str]]:
    with (FOLDER / "human_likeness.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_shipped_classifier_and_its_figures_are_what_the_public_data_give(script, public):
    data = public("dolly").parent
    for name in ("alpaca_eval", "eval", "vicuna_bench", "truthfulqa/v1", "ultrachat", "alpaca"):
        public(name)
    found = script.sources(data)
    judge, kept = script.shipped(found), human_likeness.load()
    assert (judge.made_of, judge.accuracy) == (kept.made_of, kept.accuracy)
    for name, weight in kept.features.items():
        assert judge.features[name].model_dump() == pytest.approx(weight.model_dump(), abs=1e-4), name
    these = script.pool_of(found, script.MIXTURES[script.CHOSEN])
    p, _ = script.unseen(these)
    rows = [*script.accuracy_rows(judge), *script.applied_rows(judge, found), *script.fold_rows(found)]
    rows += [*script.pair_rows(these, p), *script.calibration_rows(these, p)]
    assert rows == [row for row in committed() if row["part"] != "mixture"]


def test_the_table_of_the_readme_is_the_csv(script):
    _, shown, _ = between((FOLDER / "README.md").read_text(encoding="utf-8"), script.MARKS)
    cells = [list(row.values()) for row in committed()]
    assert shown.strip() == script.markdown(script.COLUMNS, cells)


def test_what_the_readme_says_of_the_figures_is_so(script):
    rows = {(row["part"], row["what"], row["measure"], row["turns"]): row for row in committed()}
    value = {key: float(row["value"]) for key, row in rows.items() if row["value"]}
    called = {key[1]: v for key, v in value.items() if key[2] == "called human"}
    assert called["MT-bench, second turns"] < called["UltraChat, later turns"]
    assert called["recorded teacher, later turns"] > 0.8
    assert rows["applied", "recorded teacher, later turns", "corrected", "later"]["value"] == ""
    first = {key[1]: row for key, row in rows.items() if key[0] == "mixture" and key[3] == "first"}
    (chosen,) = [what for what, row in first.items() if row["measure"] == "AUC, chosen"]
    assert chosen == f"{script.CHOSEN}; matched"
    for what, row in first.items():  # best, or within noise of the best
        assert float(row["value"]) <= float(first[chosen]["value"]) or float(row["low"]) < float(
            first[chosen]["value"]
        )
        if what.endswith("; matched"):
            assert float(row["value"]) > float(first[what.replace("matched", "not matched")]["value"])
    assert called.keys() == {*script.TRAINED, *script.TESTED, *script.APPLIED}


def test_the_shipped_file_holds_no_text_of_anybody():
    text = human_likeness.SHIPPED.read_text(encoding="utf-8")
    assert len(text) < 20_000 and max(map(len, text.splitlines())) < 120


# ---- the command --------------------------------------------------------------------------------


def test_ones_own_files_are_read_by_turn(script, tmp_path, monkeypatch, capsys):
    paths = {}
    for name, texts in {"chats": TYPED, "more": TYPED[::-1], "sim": POLISHED}.items():
        dialogues = [Dialogue.from_rounds([("Hello there", "a"), (text, "b")]) for text in texts]
        paths[name] = tmp_path / f"{name}.jsonl"
        paths[name].write_text(to_jsonl(dialogues))
    assert script.user_turns(paths["sim"], "first") == ["Hello there"] * 20
    assert script.user_turns(paths["sim"], "all")[:2] == ["Hello there", POLISHED[0]]
    out = tmp_path / "mine.json"
    command = ["--human", paths["chats"], paths["more"], "--machine", paths["sim"]]
    command += ["--out", out, "--turns", "later"]
    monkeypatch.setattr(sys, "argv", ["human_likeness.py", *map(str, command)])
    script.main()
    judge = human_likeness.load(out)
    assert judge.made_of == (
        "human: chats.jsonl, 20 texts",
        "human: more.jsonl, 20 texts",
        "machine: sim.jsonl, 20 texts",
    )
    assert judge.rates("later") == (1.0, 1.0) and "| sensitivity |" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["human_likeness.py", "--out", str(out)])
    with pytest.raises(SystemExit):
        script.main()


def test_auc_by_hand_and_pairs_alike_in_length(script):
    a, b = np.array([0.9, 0.5, 0.2]), np.array([0.5, 0.1])
    value, low, high = script.auc([script.Judged(("h", "m"), a, b)])
    assert value == pytest.approx((2 + 1.5 + 1) / 6) and low < value < high
    these = human_likeness.pool({"h": TYPED}, {"m": [*POLISHED[:5], *(f"So {text}" for text in POLISHED)]})
    (row,) = script.pair_rows(these, np.where(these.human, 0.9, 0.1))
    assert (row["n"], row["value"]) == ("5", "1.000")  # the others are a word longer
