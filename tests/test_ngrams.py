"""The scan finds what slices of a list of words find, in any text."""

from __future__ import annotations

import pickle
import re

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ultrachat.ngrams import NgramFinder, _hash, _hash_table, _word_characters, words, words_at

# few words, so that they repeat; some whose lower case is longer, another letter, or in another byte width
SOME_WORDS = [
    "a",
    "b",
    "to",
    "be",
    "Ünder",
    "İ",
    "ΟΔΟΣ",
    "x_1",
    "9",
    "水",
    "\U0001d7d8",
    "Kelvin",
    "ß",
    "\ud800",
]
SEPARATORS = [" ", ", ", "\n", "…", "'", "\ud801", "-", "\x00", "\u0307", "\U0001f600"]


@st.composite
def texts(draw) -> str:
    pieces = draw(st.lists(st.tuples(st.sampled_from(SEPARATORS), st.sampled_from(SOME_WORDS)), max_size=25))
    return "".join(separator + word for separator, word in pieces) + draw(st.sampled_from(["", "?", " "]))


def naive(text: str, ngrams: set[tuple[str, ...]], n: int) -> list[int]:
    found = list(re.finditer(r"\w+", text.lower()))
    starts = range(len(found) - n + 1)
    return [found[i].start() for i in starts if tuple(m.group() for m in found[i : i + n]) in ngrams]


def test_the_example_of_the_docstring():
    finder = NgramFinder([("to", "be", "or", "not"), ("not", "to", "be", "that")], 4)
    text = "well: to be, or not?"
    assert finder.scan(text) == ([6], 5) and words_at(text, 6, 3) == ("to", "be", "or")
    assert words_at(text, 12, 9) == ("or", "not") and words("Well: TO be!") == ["well", "to", "be"]


@settings(max_examples=300, deadline=None)
@given(texts() | st.text(max_size=40), st.lists(texts(), max_size=3), st.integers(1, 4))
@example("a b " * 40, ["a b a"], 2)  # more positions than are first made room for
@example("", [], 1)
def test_a_scan_finds_what_slices_find(text, others, n):
    ngrams = {
        tuple(its[i : i + n])
        for its in map(words, [text[: len(text) // 2], *others])
        for i in range(len(its) - n + 1)
    }
    positions, n_words = NgramFinder(ngrams, n).scan(text.lower())
    assert positions == naive(text, ngrams, n) and n_words == len(words(text))


def test_word_characters_are_those_of_the_regular_expression():
    matched = [bool(re.match(r"\w", chr(code))) for code in range(0x110000)]
    assert _word_characters().tolist() == matched


@pytest.mark.parametrize("n_hashes", [0, 1, 1000])
def test_every_hash_is_in_the_table_and_the_table_is_never_full(n_hashes):
    hashes = {_hash([str(i), "w"]) for i in range(n_hashes)}
    table = _hash_table(hashes)
    assert set(table[table > 0].tolist()) == hashes and 4 * len(hashes) <= table.size
    assert table.dtype == np.uint64 and table.size == 1 << (table.size.bit_length() - 1)


def test_an_empty_finder_finds_nothing_and_a_pickled_one_the_same():
    assert NgramFinder([], 2).scan("a b c") == ([], 3)
    finder = pickle.loads(pickle.dumps(NgramFinder([("b", "c")], 2)))
    assert finder.scan("a b c") == ([2], 3)
