"""Copies planted among texts are found, nothing else is, and the pairs agree with all pairs compared."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ultrachat import duplicates
from ultrachat.duplicates import Copy, near_duplicates, shingles, similarity, sketches
from ultrachat.errors import Stop
from ultrachat.ngrams import words

EGGS = ["How do I boil an egg?", "how do i boil an egg", "How do I boil an egg, please?"]


def test_the_example_of_the_docstring_by_hand():
    # "how do i boil an egg": 20 characters, 16 shingles; with " please" 23, all 16 among them
    assert len(shingles(EGGS[0])) == 16 and similarity(EGGS[0], EGGS[2]) == 16 / 23
    result = near_duplicates(EGGS, threshold=0.6)
    assert result == (3, 1, 1, [Copy(1, 0, 1.0, True), Copy(2, 0, 16 / 23, False)])
    assert result.clusters() == [[0, 1, 2]]
    assert near_duplicates(EGGS) == (3, 1, 0, [Copy(1, 0, 1.0, True)])  # 0.70 is below 0.8


def test_no_text_one_text_and_texts_without_words():
    assert near_duplicates([]) == (0, 0, 0, []) and near_duplicates([]).clusters() == []
    assert near_duplicates(["one"]) == (1, 0, 0, [])
    assert near_duplicates(["?!", "…", "", "\ud800"]).n_exact == 3


@pytest.mark.parametrize(("threshold", "num_perm"), [(0, 128), (1.01, 128), (float("nan"), 128), (0.8, 0)])
def test_parameters_out_of_range_are_named(threshold, num_perm):
    with pytest.raises(Stop, match=r"threshold=.*num_perm="):
        near_duplicates(["a"], threshold, num_perm)


VOCABULARY = [
    f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("ral", "tion", "mber", "ck", "sh")
]


def lines_with_copies(n: int, n_copies: int, seed: int) -> tuple[list[str], set[int]]:
    """Lines of random words, then copies of some with a word or two changed; and the rows of the copies."""
    rng = random.Random(seed)
    lines = [" ".join(rng.choices(VOCABULARY, k=rng.randint(6, 25))) for _ in range(n)]
    for text in rng.sample(lines, n_copies):
        parts = text.split()
        for _ in range(rng.randint(1, 3)):
            parts[rng.randrange(len(parts))] = rng.choice(VOCABULARY)
        lines.append(" ".join(parts))
    return lines, set(range(n, n + n_copies))


def test_against_all_pairs():
    """Every pair counted is one, and of those there are at most a few are missed, all near the threshold."""
    lines, copies = lines_with_copies(400, 200, seed=3)
    true = {}  # row -> its highest similarity to an earlier one
    sets = [shingles(line) for line in lines]
    for row, its in enumerate(sets):
        values = (len(its & other) / len(its | other) for other in sets[:row])
        true[row] = max(values, default=0.0)
    expected = {row for row, value in true.items() if value >= 0.8}
    assert 50 < len(expected) < 200 and expected <= copies
    result = near_duplicates(lines)
    found = {copy.row for copy in result.copies}
    assert found <= expected and all(true[row] < 0.85 for row in expected - found)
    assert len(expected - found) <= 0.05 * len(expected)
    for row, of, value, exact in result.copies:
        assert of < row and value == similarity(lines[row], lines[of]) >= 0.8
        assert exact == (words(lines[row]) == words(lines[of]))
    assert (result.n, result.n_exact + result.n_near) == (600, len(found))


def test_a_template_larger_than_the_window_stays_one_cluster(monkeypatch):
    monkeypatch.setattr(duplicates, "_WINDOW", 4)
    template = "write a long and detailed story about the old harbour in which the number {} is never spoken"
    result = near_duplicates(template.format(i) for i in range(100, 160))
    assert result.n_near == 59 and [len(rows) for rows in result.clusters()] == [60]


def test_clusters_are_disjoint_and_the_largest_comes_first():
    texts = ["a b c", "d e f", "A b c", "D e f", "d. e. f.", "g"]
    assert near_duplicates(texts).clusters() == [[1, 3, 4], [0, 2]]


def test_long_texts_are_compared_by_their_beginning():
    rng = random.Random(5)
    long = " ".join(rng.choices(VOCABULARY, k=1000))
    tail = " ".join(rng.choices(VOCABULARY, k=1000))
    assert len(long) > duplicates.MAX_CHARACTERS
    result = near_duplicates([long, f"{long} {tail}", f"{tail} {long}"])
    assert [(copy.row, copy.of, copy.exact) for copy in result.copies] == [(1, 0, False)]


def test_a_sketch_estimates_the_similarity():
    texts, _ = lines_with_copies(30, 20, seed=8)
    a, b = texts[0], f"{texts[0]} {texts[1]}"
    first, second = sketches([shingles(a), shingles(b)], num_perm=1024)
    assert first.jaccard(second) == pytest.approx(similarity(a, b), abs=0.06)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=30) | st.sampled_from(["a b", "A B!", "", "\ud800 x", *EGGS]), max_size=12))
def test_rows_add_up_whatever_the_texts(texts):
    result = near_duplicates(texts, threshold=0.6)
    assert result.n == len(texts) and result.n_exact + result.n_near == len(result.copies)
    assert result.n - result.n_exact == len({tuple(words(text)) for text in texts})
    assert len({copy.row for copy in result.copies}) == len(result.copies)
    assert all(copy.of < copy.row and copy.similarity >= 0.6 for copy in result.copies)
    rows = [row for rows in result.clusters() for row in rows]
    assert len(rows) == len(set(rows)) and {copy.row for copy in result.copies} <= set(rows)
