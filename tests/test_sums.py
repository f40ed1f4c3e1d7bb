"""Exact, mergeable sums: means and errors by hand, and the last digit however the data are divided."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ultrachat.sums import Mean, Sums, mean_with_error


def test_mean_of_single_values_has_the_usual_error():
    mean = mean_with_error([[1.0], [2.0], [6.0]])
    assert mean == pytest.approx((3.0, np.std([1, 2, 6], ddof=1) / math.sqrt(3), 3))


def test_mean_of_groups_by_hand():
    # values 1 3 | 8: mean 4; residuals of the group sums: 4 - 8 = -4, 8 - 4 = 4; 2/1 x 32, root, by 3
    assert mean_with_error([[1, 3], [8], []]) == pytest.approx((4.0, 8 / 3, 3))


def test_repeating_a_value_within_a_dialogue_does_not_shrink_the_error():
    values = [1.0, 2.0, 6.0, 7.0]
    once = mean_with_error([[v] for v in values])
    fivefold = mean_with_error([[v] * 5 for v in values])
    assert fivefold[:2] == pytest.approx(once[:2])
    assert fivefold.n == 5 * once.n


def test_error_over_dialogues_has_the_coverage_it_claims():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(400):
        effects = rng.normal(size=60)
        groups = [list(effect + 0.2 * rng.normal(size=rng.integers(1, 6))) for effect in effects]
        mean = mean_with_error(groups)
        hits += abs(mean.value) < 1.96 * mean.se
    assert 0.90 < hits / 400 < 0.98  # an error over messages would cover about 0.75


def test_mean_of_nothing_is_missing_and_of_one_group_has_no_error():
    nothing, one = mean_with_error([]), mean_with_error([[2.0, 4.0]])
    assert math.isnan(nothing.value) and math.isnan(nothing.se) and nothing.n == 0
    assert one.value == 3 and math.isnan(one.se) and one.n == 2


GROUPS = st.lists(st.lists(st.floats(1, 1e7), max_size=4), max_size=30)


@settings(max_examples=100, deadline=None)
@given(GROUPS, st.lists(st.integers(0, 30), max_size=4))
def test_parts_add_up_to_the_last_digit(groups, cuts):
    whole = Sums.of([math.fsum(g) for g in groups], [len(g) for g in groups])
    edges = [0, *sorted(min(cut, len(groups)) for cut in cuts), len(groups)]
    parts = [
        Sums.of([math.fsum(g) for g in groups[a:b]], [len(g) for g in groups[a:b]])
        for a, b in pairwise(edges)
    ]
    for order in (parts, parts[::-1]):
        added = Sums()
        for part in order:
            added += Sums(*json.loads(json.dumps(part)))
        assert added == whole
        assert repr(added.mean()) == repr(whole.mean())


@settings(max_examples=100, deadline=None)
@given(GROUPS)
def test_mean_and_error_are_those_of_the_textbook(groups):
    used = [g for g in groups if g]
    mean = mean_with_error(groups)
    if not used:
        assert mean.n == 0
        return
    totals, sizes = np.array([math.fsum(g) for g in used]), np.array([len(g) for g in used])
    value = math.fsum(v for g in used for v in g) / sizes.sum()
    assert mean.value == pytest.approx(value, rel=1e-15) and mean.n == sizes.sum()
    if len(used) > 1:
        se = math.sqrt(len(used) / (len(used) - 1) * math.fsum((totals - value * sizes) ** 2)) / sizes.sum()
        assert mean.se == pytest.approx(se, rel=1e-6, abs=1e-9 * value)


def test_values_far_apart_lose_nothing():
    # 1e16 + 1 - 1e16 is 0 in doubles
    assert Sums.of([1e16, 1.0, 1.0], [1, 1, 1]).mean().value == (1e16 + 2) / 3
    assert Sums.of([3, 3, 3], [1, 1, 1]).mean() == Mean(3.0, 0.0, 3)
