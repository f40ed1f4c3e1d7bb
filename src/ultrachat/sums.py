"""Means with standard errors, from sums that can be added up in any order without losing a digit.

    one = Sums.of([3.0, 8.5], [1, 2])        # two dialogues: totals of their values, and how many values
    two = Sums.of([4.0], [1])
    (one + two).mean()                       # Mean(value=3.875, se=…, n=4), as from all three at once

A million dialogues are measured in blocks, on several cores or machines, and may be interrupted: what
travels between blocks is a `Sums`. It holds integers, in units of 2**-60, so the mean and its error come
out the same to the last digit however the data were divided.

Absent on purpose: the values themselves. Quantiles need them; means and errors do not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

SHIFT = 60  # bits after the point: every double of 2**-8 or more is kept exactly


class Mean(NamedTuple):
    """A mean, its standard error (same unit) and the number of values; NaN where it does not exist.

    Ours: Table 5 prints bare means.
    """

    value: float
    se: float
    n: int


class Sums(NamedTuple):
    """What a mean over groups and its error need: exact sums over groups of totals t and sizes s.

    `n_groups` groups with n values in all; `t`, `ts` in units of 2**-60, `tt` of 2**-120, `ss` is a count.
    A group is what one dialogue contributes; groups without values are left out.

    Ours: exact, so that shards add up to the last digit.
    """

    n_groups: int = 0
    n: int = 0
    t: int = 0
    tt: int = 0
    ts: int = 0
    ss: int = 0

    @classmethod
    def of(cls, totals: Sequence[float] | np.ndarray, sizes: Sequence[int] | np.ndarray) -> Sums:
        """Return the sums of groups whose values add up to `totals` and are `sizes` many (both (n_groups,))."""
        sizes = np.asarray(sizes, np.int64)
        used = sizes > 0
        scaled = np.ldexp(np.asarray(totals, np.float64)[used], SHIFT)  # a power of two: exact
        t = [int(value) for value in scaled]
        s = sizes[used].tolist()
        return cls(
            len(t), sum(s), sum(t), sum(a * a for a in t),
            sum(a * b for a, b in zip(t, s, strict=True)), sum(b * b for b in s),
        )  # fmt: skip

    def __add__(self, other: Sums) -> Sums:  # type: ignore[override]  # of a tuple, which would join the two
        return Sums(*(a + b for a, b in zip(self, other, strict=True)))

    def mean(self) -> Mean:
        """Return the mean over all values and its standard error over groups.

        With one value a group the error is the usual deviation / sqrt(n); with more it is that of a ratio
        estimator, since dialogues were sampled and not messages. NaN without a value, NaN error with one group.
        """
        if not self.n:
            return Mean(math.nan, math.nan, 0)
        mean = Fraction(self.t, self.n)
        if self.n_groups == 1:
            return Mean(float(mean / 2**SHIFT), math.nan, self.n)
        squares = self.tt - 2 * mean * self.ts + mean**2 * self.ss  # sum of (t - mean s)**2
        variance = Fraction(self.n_groups, self.n_groups - 1) * squares / self.n**2 / 4**SHIFT
        return Mean(float(mean / 2**SHIFT), math.sqrt(variance), self.n)


def mean_with_error(groups: Iterable[Sequence[float]]) -> Mean:
    """Return the mean over all values of all groups, its standard error computed over groups.

    A group is what one dialogue contributes, as many values as it likes; see `Sums.mean`.

    Ours: the paper gives no errors.
    """
    groups = list(groups)
    return Sums.of([math.fsum(group) for group in groups], [len(group) for group in groups]).mean()
