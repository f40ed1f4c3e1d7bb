"""Topic diversity of any number of dialogues: the mean cosine over all pairs, without forming a pair.

    topic_diversity(vectors)                                    # an (n, d) array or np.memmap
    UnitSum.of(a) + UnitSum.of(b) == UnitSum.of(a and b)        # to the last bit, however it is divided

The pairs of n unit vectors sum to (|s|² - n) / 2, where s is the sum of the vectors: one pass. Sums
are kept in whole multiples of 2**-52, where addition is exact: blocks, shards and their order change no
digit. The jackknife error needs s first and then every vector's dot with s: a second pass, as exact.

The paper measures a sample of 10,000. `ContentSample` draws one in a single pass over dialogues in any
order, in any division: the texts whose hashes are smallest.

Absent on purpose: where the vectors come from (`embeddings`).
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numba
import numpy as np

from ultrachat.errors import Stop

PAPER_SAMPLE = 10_000  # dialogues the paper draws for topic diversity and coherence
BITS = 52  # a unit vector's components are rounded to multiples of 2**-52, about their own precision
UNIT = 2.0**BITS
ROWS_AT_ONCE = 1_024  # of at most 2**52 each: their sums fit an int64
SQUARES = 1e-280, 1e280  # squared lengths outside may have lost digits: such rows are rescaled first


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

    The rows are read twice in blocks: an `np.memmap` of any size will do. `n_sample` takes that many
    rows at random (`PAPER_SAMPLE` for the paper's procedure; generator seed 0). Rows of zeros have no
    direction and are left out. Raises Stop for another shape or non-finite values.

    Paper: Table 5, "averaging the cosine distance between each pair of data"; the text of §4.5 says
    UltraChat (0.702) falls short of GPT4ALL (0.692), so what is printed is a similarity.
    """
    vectors = _checked(embeddings)
    if n_sample is not None:
        if n_sample < 1:
            raise Stop(f"n_sample {n_sample}: expected a positive whole number")
        if n_sample < len(vectors):
            rows = np.random.default_rng(0).choice(len(vectors), n_sample, replace=False)
            vectors = vectors[np.sort(rows)]
    total = UnitSum.of(vectors)
    return total.diversity(DotSums.of(vectors, total))


def _checked(embeddings: np.ndarray) -> np.ndarray:
    vectors = np.asarray(embeddings)
    if vectors.ndim != 2 or vectors.dtype.kind not in "fiu":
        raise Stop(f"embeddings: expected an (n, d) array of numbers, got {vectors.dtype} {vectors.shape}")
    return vectors


def _blocks(vectors: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the rows in blocks of float32 or float64, without rows of zeros; Stop for a value that is not finite.

    Rows whose squared length would lose digits are rescaled first, which turns them in no direction.
    """
    kind = vectors.dtype if vectors.dtype in (np.float32, np.float64) else np.float64
    for start in range(0, len(vectors), ROWS_AT_ONCE):
        block = np.ascontiguousarray(vectors[start : start + ROWS_AT_ONCE], dtype=kind)
        squares = _squares(block)
        odd = ~((squares > SQUARES[0]) & (squares < SQUARES[1]))
        if odd.any():
            block = block.astype(np.float64)
            if not np.isfinite(block[odd]).all():
                raise Stop(f"embeddings: a value in rows {start} to {start + len(block) - 1} is not finite")
            largest = np.abs(block[odd]).max(axis=1, initial=0.0)
            block[odd] /= np.where(largest > 0, largest, 1.0)[:, None]
            block = block[_squares(block) > 0]
        if len(block):
            yield block


# Compiled: numpy would go over every block six times. A row's numbers depend on that row alone, whatever
# stands in the block beside it (hence no BLAS, whose sums vary with the size of a block).


@numba.njit(cache=True)
def _square(row: np.ndarray) -> float:
    """Return the squared length of a row, in eight sums, which a processor does at once."""
    sums = np.zeros(8)
    whole = len(row) - len(row) % 8
    for k in range(0, whole, 8):
        for lane in range(8):
            value = np.float64(row[k + lane])
            sums[lane] += value * value
    for k in range(whole, len(row)):
        value = np.float64(row[k])
        sums[0] += value * value
    return sums.sum()


@numba.njit(cache=True)
def _squares(block: np.ndarray) -> np.ndarray:
    out = np.empty(len(block))
    for i in range(len(block)):
        out[i] = _square(block[i])
    return out


@numba.njit(cache=True)
def _sum_of_units(block: np.ndarray) -> np.ndarray:
    """Return the sum of the rows as unit vectors in multiples of 2**-52, (d,) int64."""
    total = np.zeros(block.shape[1], np.int64)
    for i in range(len(block)):
        row = block[i]
        scale = UNIT / np.sqrt(_square(row))
        for k in range(len(row)):
            total[k] += np.int64(np.rint(np.float64(row[k]) * scale))
    return total


@numba.njit(cache=True)
def _dots(block: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Return the dot of each row, as a unit vector in multiples of 2**-52, with `mean`: (n,) float64."""
    out = np.empty(len(block))
    whole = block.shape[1] - block.shape[1] % 8
    for i in range(len(block)):
        row = block[i]
        scale = UNIT / np.sqrt(_square(row))
        sums = np.zeros(8)
        for k in range(0, whole, 8):
            for lane in range(8):
                sums[lane] += np.rint(np.float64(row[k + lane]) * scale) * mean[k + lane]
        for k in range(whole, len(row)):
            sums[0] += np.rint(np.float64(row[k]) * scale) * mean[k]
        out[i] = sums.sum()
    return out


# ---- exact sums -------------------------------------------------------------------------------


@dataclass(frozen=True)
class UnitSum:
    """The sum of `n` unit vectors: `total` has a whole number of 2**-52 for each dimension, () for none yet.

    Adding is exact, so the order and the division into blocks or shards change no digit.

    Ours: the paper compares 10,000 dialogues pair by pair.
    """

    n: int = 0
    total: tuple[int, ...] = ()

    @classmethod
    def of(cls, vectors: np.ndarray) -> UnitSum:
        """Return the sum over the rows of an (n, d) array, read once in blocks; raises Stop as `topic_diversity`."""
        vectors = _checked(vectors)
        total, n = np.zeros(vectors.shape[1], dtype=object), 0
        for block in _blocks(vectors):
            total += _sum_of_units(block)
            n += len(block)
        return cls(n, tuple(total.tolist())) if n else cls()

    def __add__(self, other: UnitSum) -> UnitSum:
        """Return the sum over the vectors of both; raises Stop when they are of different lengths."""
        if not self.n or not other.n:
            return self if self.n else other
        if len(self.total) != len(other.total):
            lengths = f"{len(self.total)} and {len(other.total)}"
            raise Stop(f"embeddings: vectors of {lengths} numbers are not of one model")
        return UnitSum(self.n + other.n, tuple(map(int.__add__, self.total, other.total)))

    def mean(self) -> np.ndarray:
        """Return the mean unit vector (d,), each of its numbers rounded once; (0,) for none."""
        return np.array([number / (self.n << BITS) for number in self.total], dtype=np.float64)

    def diversity(self, dots: DotSums | None = None) -> TopicDiversity:
        """Return the `TopicDiversity`, its `se` NaN without `dots`; Stop when they are of other vectors."""
        n, one = self.n, 1 << 2 * BITS
        if dots is not None and dots.n != n:
            raise Stop(f"dots: of {dots.n} vectors, expected those of all {n}")
        squared = sum(number * number for number in self.total)
        similarity = (squared - n * one) / (n * (n - 1) * one) if n > 1 else math.nan
        diagonal = squared / (n * n * one) if n else math.nan
        se = dots.se() if dots is not None else math.nan
        return TopicDiversity(similarity, diagonal, 1 - similarity, se, n)


@dataclass(frozen=True)
class DotSums:
    """Sums over `n` unit vectors of their dots with the mean of all: in 2**-52, and of their squares in 2**-104.

    Ours: the jackknife as a second pass that can be divided like the first.
    """

    n: int = 0
    dots: int = 0
    squares: int = 0

    @classmethod
    def of(cls, vectors: np.ndarray, total: UnitSum) -> DotSums:
        """Return the sums over the rows of an (n, d) array; `total` is that of all vectors, these and others."""
        vectors = _checked(vectors)
        mean, found = total.mean(), cls()
        for block in _blocks(vectors):
            if block.shape[1] != len(mean):
                raise Stop(f"total: of vectors of {len(mean)} numbers, expected {block.shape[1]}")
            numbers = np.rint(_dots(block, mean)).astype(np.int64).tolist()
            found += cls(len(numbers), sum(numbers), sum(number * number for number in numbers))
        return found

    def __add__(self, other: DotSums) -> DotSums:
        """Return the sums over the vectors of both."""
        return DotSums(self.n + other.n, self.dots + other.dots, self.squares + other.squares)

    def se(self) -> float:
        """Return the jackknife standard error of the similarity, NaN for fewer than three vectors.

        Without vector i the pairs sum to |s|² - 2 uᵢ·s + 1 - (n - 1): only the dots vary.
        """
        n = self.n
        if n < 3:
            return math.nan
        spread = n * self.squares - self.dots * self.dots
        return 2 * math.sqrt((n - 1) * spread) / ((n - 1) * (n - 2) << BITS)


# ---- a sample in one pass ---------------------------------------------------------------------


class ContentSample:
    """The `n` different texts with the smallest hashes of those added: a random sample that needs no random numbers.

    The order of the texts, and how they are divided before samples are added up, make no difference.
    A text that comes twice counts once, so it is a sample of what was said, not of how often. Only the
    first `max_characters` of a text are kept (its hash is of all of it), n × that in memory.

    Ours: the paper draws 10,000 and does not say how; a language model for sentences reads less than
    4,000 characters of a dialogue.
    """

    def __init__(self, n: int = PAPER_SAMPLE, max_characters: int = 4_000) -> None:
        for name, value in (("n", n), ("max_characters", max_characters)):
            if type(value) is not int or value < 1:
                raise Stop(f"{name}: expected a whole number of at least 1, got {value!r}")
        self.n, self.max_characters = n, max_characters
        self._kept: dict[int, str] = {}
        self._largest_first: list[int] = []  # a heap of negated hashes

    def add(self, text: str) -> bool:
        """Take a text into account; return whether it was not in the sample before and is now."""
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        return self._keep(int.from_bytes(digest), text[: self.max_characters])

    def _keep(self, key: int, text: str) -> bool:
        if key in self._kept:
            return False
        if len(self._kept) < self.n:
            heapq.heappush(self._largest_first, -key)
        elif key < -self._largest_first[0]:
            del self._kept[-heapq.heapreplace(self._largest_first, -key)]
        else:
            return False
        self._kept[key] = text
        return True

    def __add__(self, other: ContentSample) -> ContentSample:
        """Return the sample of the texts of both; raises Stop when their sizes differ."""
        if (self.n, self.max_characters) != (other.n, other.max_characters):
            raise Stop(
                f"n, max_characters: {self.n}, {self.max_characters} and {other.n}, {other.max_characters}"
            )
        both = ContentSample(self.n, self.max_characters)
        both._kept, both._largest_first = self._kept.copy(), self._largest_first.copy()
        for key, text in other._kept.items():
            both._keep(key, text)
        return both

    def __len__(self) -> int:
        return len(self._kept)

    def texts(self) -> list[str]:
        """Return the sample, at most `n` texts in the order of their hashes."""
        return [self._kept[key] for key in sorted(self._kept)]

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads: {"n", "max_characters", "texts": {hash in hexadecimal: text}}."""
        kept = {f"{key:032x}": self._kept[key] for key in sorted(self._kept)}
        return {"n": self.n, "max_characters": self.max_characters, "texts": kept}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ContentSample:
        """Return the sample that `to_json` gave; raises KeyError for another object."""
        sample = cls(value["n"], value["max_characters"])
        for key, text in value["texts"].items():
            sample._keep(int(key, 16), text)
        return sample
