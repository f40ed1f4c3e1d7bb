"""Texts that repeat an earlier one: the same words, or nearly the same.

    How do I boil an egg?            0
    how do i boil an egg             1    exact: the words of 0
    How do I boil an egg, please?    2    near: shingles 0.8 similar to those of 0

Two texts are as similar as their sets of five-character shingles (Jaccard). MinHash (datasketch)
finds the pairs worth comparing among millions, the exact similarity decides.

Absent on purpose: taking anything out (`refinement` does, among the openings of one web text), and
meaning: a paraphrase is another text.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from datasketch import MinHash

from ultrachat.errors import Stop
from ultrachat.ngrams import words


def shingles(text: str, size: int = 5) -> set[str]:
    """Return the runs of `size` characters in a text's words, joined by single spaces.

    Ours: five characters, the usual size for short texts.
    """
    normal = " ".join(words(text))
    return {normal[i : i + size] for i in range(max(1, len(normal) - size + 1))}


def similarity(first: str, second: str) -> float:
    """Return the Jaccard similarity (0 to 1) of two texts' sets of five-character shingles.

    Ours: what "near duplicate" means here.
    """
    a, b = shingles(first), shingles(second)
    return len(a & b) / len(a | b)


def sketches(sets: Iterable[Iterable[str]], num_perm: int = 128) -> Iterator[MinHash]:
    """Yield the MinHash of each set of strings: of two, the fraction of equal values estimates their similarity.

    Ours: CRC-32 of the shingles, which datasketch mixes further; its default SHA-1 takes twice as long.
    """
    encoded = ([one.encode("utf-8", "surrogatepass") for one in some] for some in sets)
    return MinHash.generator(encoded, num_perm=num_perm, hashfunc=zlib.crc32)


class Copy(NamedTuple):
    """A text (its position from 0), an earlier one it repeats, and their similarity; 1 for equal words.

    Ours: pairs can be read and judged.
    """

    row: int
    of: int
    similarity: float
    exact: bool


class Duplicates(NamedTuple):
    """Of `n` texts, `n_exact` have the words of an earlier one, `n_near` others are similar to an earlier one.

    `copies` holds one pair for each, in order of rows. Ours: n - n_exact - n_near have not been seen before.
    """

    n: int
    n_exact: int
    n_near: int
    copies: list[Copy]

    def clusters(self) -> list[list[int]]:
        """Return the groups of rows linked by copies, largest first; in a chain the ends may differ more.

        Ours: for reading; the counts do not depend on it.
        """
        group: dict[int, list[int]] = {}
        for row, of, *_ in self.copies:  # `of` is earlier, so its group is known
            group[row] = group.setdefault(of, [of])
            group[row].append(row)
        return sorted(
            {id(rows): rows for rows in group.values()}.values(), key=lambda rows: (-len(rows), rows)
        )


MAX_CHARACTERS = 2_000  # of a text's words; more of a long web text says no more about its copies
_WINDOW = 64  # earlier members of a band compared with; larger bands are templates, linked member by member
_MAX_TRIES = 8  # candidates by falling estimate; when eight fail, so do those less similar
_MAX_MISSED_FRACTION = 0.02  # of pairs right at the threshold; hardly any well above it


def near_duplicates(texts: Iterable[str], threshold: float = 0.8, num_perm: int = 128) -> Duplicates:
    """Return which texts repeat an earlier one: the same words, or shingles at least `threshold` similar.

    Near duplicates are judged by the first `MAX_CHARACTERS` of their words. MinHash finds candidates,
    the exact similarity decides: none is counted by an estimate, and of pairs right at the threshold
    one in fifty may be missed. About a kilobyte is held for each text, more for long ones.
    Raises Stop when `threshold` is not above 0 and at most 1, or `num_perm` below 1.

    Ours: the paper describes no deduplication.
    """
    if not 0 < threshold <= 1 or num_perm < 1:
        raise Stop(f"threshold={threshold}, num_perm={num_perm}: expected above 0 and at most 1, 1 or more")
    seen: dict[bytes, int] = {}
    rows, heads, copies = [], [], []  # rows, heads: the texts with different words
    n = 0
    for row, text in enumerate(texts):
        n, normal = row + 1, " ".join(words(text))
        digest = blake2b(normal.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        first = seen.setdefault(digest, row)
        if first == row:
            rows.append(row)
            heads.append(normal[:MAX_CHARACTERS])
        else:
            copies.append(Copy(row, first, 1.0, True))
    n_exact = len(copies)
    signatures = np.empty((len(heads), num_perm), np.uint32)
    for i, sketch in enumerate(sketches(map(shingles, heads), num_perm)):
        signatures[i] = sketch.hashvalues
    for later, candidates in _candidates(signatures, threshold).items():
        for earlier in candidates[:_MAX_TRIES]:
            if (exactly := similarity(heads[earlier], heads[later])) >= threshold:
                copies.append(Copy(rows[later], rows[earlier], exactly, False))
                break
    return Duplicates(n, n_exact, len(copies) - n_exact, sorted(copies))


def _candidates(signatures: np.ndarray, threshold: float) -> dict[int, list[int]]:
    """For each text the earlier ones that share a band of its signature, likeliest first.

    As MinHashLSH, but bands are sorted rather than kept in dictionaries, which take ten times the memory.
    """
    num_perm = signatures.shape[1]
    widths = range(num_perm, 0, -1)  # the widest band that misses few enough leaves the fewest candidates
    missed = ((1 - threshold**width) ** (num_perm // width) for width in widths)
    width = next((w for w, m in zip(widths, missed, strict=True) if m <= _MAX_MISSED_FRACTION), 1)
    estimates: dict[int, dict[int, float]] = {}
    for start in range(0, num_perm - width + 1, width):
        for earlier, later in _pairs(signatures[:, start : start + width]):
            estimate = (signatures[earlier] == signatures[later]).mean(axis=1)
            near = estimate >= threshold - 0.15  # four standard errors of an estimate from 128 values
            for a, b, e in zip(earlier[near].tolist(), later[near].tolist(), estimate[near], strict=True):
                estimates.setdefault(b, {})[a] = e
    return {b: sorted(its, key=lambda a: (-its[a], a)) for b, its in estimates.items()}


def _pairs(band: np.ndarray, at_once: int = 100_000) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (earlier rows, later rows) with equal values in a band, at most `_WINDOW` equal ones apart."""
    odd = np.random.default_rng(0).integers(0, 2**63, band.shape[1], dtype=np.uint64) * np.uint64(2) + 1
    keys = (band.astype(np.uint64) * odd).sum(axis=1, dtype=np.uint64)
    order = np.argsort(keys, kind="stable")  # stable: of equal keys the earlier row comes first
    keys = keys[order]
    for distance in range(1, min(_WINDOW, len(keys) - 1) + 1):
        same = np.flatnonzero(keys[distance:] == keys[:-distance])
        if not same.size:
            break  # no band has more members
        for start in range(0, same.size, at_once):
            some = same[start : start + at_once]
            yield order[some], order[some + distance]
