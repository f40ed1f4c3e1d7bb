"""Topic diversity: by hand, against scipy and sklearn, exact sums in any division, a sample by content."""

from __future__ import annotations

import json
import math
import pickle
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ultrachat import topics as T
from ultrachat.errors import Stop
from ultrachat.topics import ContentSample, DotSums, UnitSum, topic_diversity

FINITE = st.floats(-1e3, 1e3, allow_nan=False).map(lambda x: round(x, 3))


def vectors_of(n: int, d: int, seed: int = 0, shift: float = 0.4) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)) + shift


def brute_force(vectors: np.ndarray) -> tuple[float, float]:
    from scipy.spatial.distance import cdist, pdist

    return 1 - pdist(vectors, "cosine").mean(), (1 - cdist(vectors, vectors, "cosine")).mean()


# ---- the closed form --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.float16])
def test_closed_form_equals_all_pairs(kind, monkeypatch):
    monkeypatch.setattr(T, "ROWS_AT_ONCE", 64)  # several blocks, the last one not full
    vectors = vectors_of(301, 40).astype(kind)
    topic = topic_diversity(vectors)
    without, with_diagonal = brute_force(vectors.astype(np.float64))
    assert abs(topic.similarity - without) < 1e-14
    assert abs(topic.similarity_with_diagonal - with_diagonal) < 1e-14
    assert topic.distance == 1 - topic.similarity and topic.n == 301


@settings(max_examples=60)
@given(hnp.arrays(np.float64, st.tuples(st.integers(2, 12), st.integers(1, 5)), elements=FINITE))
def test_closed_form_equals_sklearn_on_any_vectors(vectors):
    from sklearn.metrics.pairwise import cosine_similarity

    used = vectors[np.abs(vectors).sum(axis=1) > 0]
    topic = topic_diversity(vectors)
    assert topic.n == len(used)
    if len(used) < 2:
        assert math.isnan(topic.similarity)
        return
    table = cosine_similarity(used)
    off = table[~np.eye(len(used), dtype=bool)].mean()
    assert abs(topic.similarity - off) < 1e-12 and abs(topic.similarity_with_diagonal - table.mean()) < 1e-12


def test_jackknife_equals_leaving_each_out():
    vectors = vectors_of(25, 6, seed=3, shift=0.3)
    left_out = [brute_force(np.delete(vectors, i, axis=0))[0] for i in range(25)]
    expected = math.sqrt(24 / 25 * sum((v - np.mean(left_out)) ** 2 for v in left_out))
    assert topic_diversity(vectors).se == pytest.approx(expected, rel=1e-9)


def test_the_error_of_nearly_equal_vectors_is_not_lost_in_rounding():
    vectors = np.ones((40, 8)) + 1e-6 * vectors_of(40, 8, shift=0)
    left_out = [brute_force(np.delete(vectors, i, axis=0))[0] for i in range(40)]
    expected = math.sqrt(39 / 40 * sum((v - np.mean(left_out)) ** 2 for v in left_out))
    assert 0 < expected < 1e-11
    assert topic_diversity(vectors).se == pytest.approx(expected, rel=0.02)  # 1 - pdist itself is that rough


def test_a_sample_is_within_its_error_and_repeatable():
    vectors = vectors_of(3_000, 8, seed=5)
    whole, sample = topic_diversity(vectors), topic_diversity(vectors, n_sample=400)
    assert sample == topic_diversity(vectors, n_sample=400)
    assert sample.n == 400 and sample.similarity != whole.similarity
    assert abs(sample.similarity - whole.similarity) < 4 * sample.se
    assert 0 < whole.se < sample.se
    assert topic_diversity(vectors, n_sample=5_000) == whole


def test_by_hand_and_at_the_edges():
    right_angle = topic_diversity(np.array([[2, 0], [0, 3]]))
    assert right_angle[:3] == (0, 0.5, 1) and math.isnan(right_angle.se)
    with_zero = topic_diversity(np.array([[1.0, 0], [0, 0], [1, 0], [3, 0]]))
    assert with_zero == (1, 1, 0, 0, 3)
    for nothing in (np.zeros((0, 4)), np.zeros((3, 4)), np.zeros((2, 0))):
        topic = topic_diversity(nothing)
        assert topic.n == 0 and all(math.isnan(v) for v in topic[:4])


def test_lengths_whose_squares_overflow_or_vanish_do_not_matter():
    vectors = vectors_of(6, 3)
    scales = np.array([1, 1e-300, 1e300, 1e-160, 5e-324, 1e200])[:, None]
    scaled = vectors * scales
    scaled[4] = [5e-324, 0, 0]
    vectors[4] = [1, 0, 0]
    assert topic_diversity(scaled).similarity == pytest.approx(topic_diversity(vectors).similarity, abs=1e-15)


@pytest.mark.parametrize(
    "bad", [np.zeros(3), np.array([["a"]]), np.array([[1.0, np.nan]]), np.array([[np.inf, 1.0]]), [[True]]]
)
def test_what_is_no_embedding_matrix_stops(bad):
    with pytest.raises(Stop, match="embeddings"):
        topic_diversity(bad)
    with pytest.raises(Stop, match="embeddings"):
        UnitSum.of(bad)


def test_a_value_that_is_not_finite_is_placed(monkeypatch):
    monkeypatch.setattr(T, "ROWS_AT_ONCE", 10)
    vectors = vectors_of(25, 3)
    vectors[14, 2] = np.nan
    with pytest.raises(Stop, match="rows 10 to 19 is not finite"):
        topic_diversity(vectors)


def test_sample_of_nothing_stops():
    with pytest.raises(Stop, match="n_sample"):
        topic_diversity(np.ones((3, 2)), n_sample=0)


# ---- exact sums -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("d", [1, 7, 384])
def test_neither_blocks_nor_order_change_a_bit(kind, d, monkeypatch):
    vectors = vectors_of(203, d).astype(kind)
    whole = UnitSum.of(vectors)
    dots = DotSums.of(vectors, whole)
    for rows in (1, 2, 3, 8, 50, 1_024):
        monkeypatch.setattr(T, "ROWS_AT_ONCE", rows)
        assert UnitSum.of(vectors) == whole and DotSums.of(vectors, whole) == dots
    shuffled = np.random.default_rng(1).permutation(vectors)
    assert UnitSum.of(shuffled) == whole and DotSums.of(shuffled, whole) == dots
    assert UnitSum.of(np.asfortranarray(vectors)) == whole
    assert topic_diversity(shuffled) == topic_diversity(vectors) == whole.diversity(dots)


@settings(max_examples=40)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=6), st.randoms())
def test_shards_merged_in_any_order_equal_the_whole(sizes, rng):
    vectors = vectors_of(sum(sizes), 5)
    shards = np.split(vectors, np.cumsum(sizes)[:-1])
    rng.shuffle(shards)

    def merged(parts):  # pairs at random, not only one after the other
        parts = list(parts)
        while len(parts) > 1:
            rng.shuffle(parts)
            parts.append(parts.pop() + parts.pop())
        return parts[0]

    total = merged(UnitSum.of(s) for s in shards)
    dots = merged(DotSums.of(s, total) for s in shards)
    assert str(total.diversity(dots)) == str(topic_diversity(vectors))  # as text: NaN equals NaN there


def test_sums_of_more_rows_than_an_int64_could_hold():
    vectors = np.tile([[3.0, -4.0]], (5_000, 1))
    total = UnitSum.of(vectors)
    one = UnitSum.of(vectors[:1])
    assert total.total == tuple(5_000 * number for number in one.total)
    assert abs(total.total[1]) > 2**63
    assert one.total == (round(0.6 * 2**52), -round(0.8 * 2**52))
    assert topic_diversity(vectors) == pytest.approx((1, 1, 0, 0, 5_000), abs=1e-15)


def test_an_array_on_disk_gives_what_one_in_memory_gives(tmp_path):
    vectors = vectors_of(3_000, 24).astype(np.float16)
    on_disk = np.memmap(tmp_path / "vectors", np.float16, "w+", shape=vectors.shape)
    on_disk[:] = vectors
    on_disk.flush()
    on_disk = np.memmap(tmp_path / "vectors", np.float16, "r", shape=vectors.shape)
    assert topic_diversity(on_disk) == topic_diversity(vectors)
    assert topic_diversity(on_disk, 100) == topic_diversity(vectors, 100)
    without, _ = brute_force(vectors.astype(np.float64))
    assert abs(topic_diversity(on_disk).similarity - without) < 1e-12


def test_memory_is_bounded_by_a_block_not_by_the_rows(tmp_path):
    import tracemalloc

    shape = (60_000, 64)
    np.memmap(tmp_path / "vectors", np.float32, "w+", shape=shape)[:] = 1
    on_disk = np.memmap(tmp_path / "vectors", np.float32, "r", shape=shape)
    topic_diversity(on_disk[:3])  # compiled now, or read from the cache: neither is the data's
    tracemalloc.start()
    topic_diversity(on_disk)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6 * T.ROWS_AT_ONCE * 64 * 8 < 0.2 * 60_000 * 64 * 8


def test_sums_that_do_not_belong_together_stop():
    a, b = UnitSum.of(np.ones((3, 2))), UnitSum.of(np.ones((3, 4)))
    with pytest.raises(Stop, match="2 and 4"):
        a + b
    with pytest.raises(Stop, match="dots: of 2 vectors"):
        a.diversity(DotSums.of(np.ones((2, 2)), a))
    with pytest.raises(Stop, match="total"):
        DotSums.of(np.ones((3, 4)), a)
    assert a + UnitSum() == a == UnitSum() + a
    assert math.isnan(a.diversity().se) and a.diversity().similarity == pytest.approx(1)


# ---- a sample in one pass ---------------------------------------------------------------------


def sample_of(texts, n=20, **settings) -> ContentSample:
    sample = ContentSample(n, **settings)
    for text in texts:
        sample.add(text)
    return sample


@settings(max_examples=40)
@given(st.lists(st.text(max_size=3), max_size=60), st.integers(1, 10), st.randoms())
def test_merged_samples_equal_the_sample_of_all(texts, n, rng):
    whole = sample_of(texts, n)
    assert len(whole) == min(n, len(set(texts)))
    shuffled = rng.sample(texts, len(texts))
    cut = rng.randint(0, len(texts))
    first, second = sample_of(shuffled[:cut], n), sample_of(shuffled[cut:], n)
    assert (first + second).texts() == (second + first).texts() == whole.texts()
    again = ContentSample.from_json(json.loads(json.dumps(whole.to_json())))
    assert again.texts() == pickle.loads(pickle.dumps(whole)).texts() == whole.texts()
    again.add("one more")
    whole.add("one more")
    assert again.texts() == whole.texts()


def test_the_sample_is_the_smallest_hashes():
    import hashlib

    texts = [f"dialogue {i}" for i in range(500)]
    by_hash = sorted(texts, key=lambda t: hashlib.blake2b(t.encode(), digest_size=16).digest())
    random.Random(0).shuffle(texts)
    assert sample_of(texts * 2).texts() == by_hash[:20]


def test_the_sample_does_not_favour_any_text():
    chosen = [sum(int(t) for t in sample_of((f"{i}" for i in range(k, k + 1_000)), 100).texts()) / 100 - k
              for k in range(0, 40_000, 1_000)]  # fmt: skip
    # the mean of 40 means of 100 of 0..999: 499.5, give or take 1000 / sqrt(12 * 4000) = 4.6
    assert abs(sum(chosen) / 40 - 499.5) < 3 * 4.6


def test_long_texts_are_kept_short_but_told_apart_by_their_ends():
    texts = ["x" * 50 + str(i) for i in range(5)]
    assert sample_of(texts, 20, max_characters=50).texts() == ["x" * 50] * 5
    assert sample_of(["\ud800", "\ud801"], 20).texts() != ["?", "?"]  # broken files have such text


def test_samples_of_other_sizes_do_not_add_up():
    with pytest.raises(Stop, match="max_characters"):
        ContentSample(3) + ContentSample(4)
    with pytest.raises(Stop, match="n: expected"):
        ContentSample(0)
