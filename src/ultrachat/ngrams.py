"""Words in a row, found in one pass over a text: the n-grams by which overlap is measured.

    finder = NgramFinder([("to", "be", "or", "not"), ("not", "to", "be", "that")])
    finder.scan("well: to be, or not?")      # ([6], 5): the first of them begins at 6; the text has 5 words

The scan keeps a hash of the last n words and looks it up; it reads code points and never builds a
word, so a gigabyte takes seconds. Equal hashes only nominate: the caller compares the words at the
position. What a word is, is said once, in `words`.

Absent on purpose: what the n-grams are of (`contamination`), and stemming.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import cache
from itertools import islice

import numpy as np

_WORD = re.compile(r"\w+")
_PRIME = np.uint64(0x100000001B3)  # FNV's; it and the two below are odd and otherwise arbitrary
_BASE = np.uint64(0x9E3779B97F4A7C15)
_SPREAD = np.uint64(0xD6E8FEB86659FD93)
_MASK = 2**64 - 1


def words(text: str) -> list[str]:
    """Return the lower-case words of a text, punctuation left out. Ours: the unit of overlap and duplicates."""
    return _WORD.findall(text.lower())


def words_at(low: str, position: int, n: int) -> tuple[str, ...]:
    """Return the `n` words of a lower-case text from `position` on, fewer at its end.

    Ours: reads no further than it must.
    """
    return tuple(match.group() for match in islice(_WORD.finditer(low, position), n))


class NgramFinder:
    """Finds where any of some n-grams, all of the same number of words, begins in a text. It can be pickled.

    Ours: exact but for collisions of 64-bit hashes, which the caller's comparison of words takes out.
    """

    def __init__(self, ngrams: Collection[Sequence[str]], n: int) -> None:
        self.n = n
        self._table = _hash_table({_hash(ngram) for ngram in ngrams})

    def scan(self, low: str) -> tuple[list[int], int]:
        """Return the positions in a lower-case text at which an n-gram begins, and its number of words.

        Ours: linear in the text, whatever the number of n-grams.
        """
        if low.isascii():  # code points, in one byte each where that will do
            codes = np.frombuffer(low.encode("ascii"), np.uint8)
        else:
            codes = np.frombuffer(low.encode("utf-32-le", "surrogatepass"), np.uint32)
        found, n_words = _compiled()(codes, _word_characters(), self._table, self.n)
        return found.tolist(), n_words


def _hash(ngram: Sequence[str]) -> int:
    """The 64-bit hash of words in a row, as `_scan` computes it; never 0, which marks an empty slot."""
    total = 0
    for word in ngram:
        value = 1
        for character in word:
            value = (value ^ ord(character)) * int(_PRIME) & _MASK
        total = (total * int(_BASE) + value) & _MASK
    return total or 1


def _hash_table(hashes: Collection[int]) -> np.ndarray:
    """The hashes in an open-addressing table: a power of two long, at most a quarter full."""
    bits = max(4, (4 * len(hashes)).bit_length())
    table = np.zeros(2**bits, np.uint64)
    for value in sorted(hashes):
        slot = (value * int(_SPREAD) & _MASK) >> (64 - bits)
        while table[slot]:
            slot = (slot + 1) % table.size
        table[slot] = value
    return table


def _scan(codes, is_word, table, n):  # compiled by numba, see `_compiled`
    """Return (positions at which `n` words hashed in `table` begin, number of words in `codes`)."""
    zero, one, bits = np.uint64(0), np.uint64(1), 0
    while 1 << bits < table.size:
        bits += 1
    shift, last = np.uint64(64 - bits), np.uint64(table.size - 1)
    leaving = one  # base ** n: by what a word's hash has been multiplied when it leaves the n-gram
    for _ in range(n):
        leaving *= _BASE
    hashes, starts, slot = np.zeros(n, np.uint64), np.zeros(n, np.int64), 0  # of the last n words, in a ring
    found, n_found = np.empty(8, np.int64), 0
    gram, n_words, i = zero, 0, 0
    while True:
        while i < codes.size and not is_word[codes[i]]:
            i += 1
        if i >= codes.size:
            return found[:n_found], n_words
        begin, word = i, one
        while i < codes.size and is_word[codes[i]]:
            word = (word ^ np.uint64(codes[i])) * _PRIME
            i += 1
        gram = gram * _BASE + word - hashes[slot] * leaving
        hashes[slot], starts[slot] = word, begin
        slot = slot + 1 if slot + 1 < n else 0
        n_words += 1
        if n_words >= n:
            key = gram if gram != zero else one
            at = (key * _SPREAD) >> shift
            while table[at] != zero and table[at] != key:
                at = (at + one) & last
            if table[at] == key:
                if n_found == found.size:
                    found = np.append(found, np.empty(n_found, np.int64))
                found[n_found] = starts[slot]  # the oldest of the ring
                n_found += 1


@cache
def _compiled():
    """`_scan` in machine code. numba takes half a second to import: only who searches pays for it."""
    import numba

    return numba.njit(cache=True, nogil=True)(_scan)


@cache
def _word_characters() -> np.ndarray:
    r"""For every code point, whether `\w` matches it."""
    return np.array([chr(code).isalnum() or code == ord("_") for code in range(0x110000)])
