from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from flawmap.errors import ParameterError
from flawmap.evaluation.metrics.score_counts import ScoreCounts, keys_of, ranked, scores_of

floats = st.floats(width=32, allow_nan=False)


SMALL = {"buffer": 100, "crowded": 40}
"""A small buffer and pages that open at once, so that a few thousand scores take every path."""


def counted(*arrays, **options):
    counts = ScoreCounts(**options)
    for scores in arrays:
        counts.add(scores)
    return counts


def assert_same(one, other):
    for mine, theirs in zip(one.items(), other.items(), strict=True):
        assert np.array_equal(mine, theirs)


def mixed_scores(seed, n=60):
    """Some scores all over the range of float32, some crowded around 1, some around -3."""
    rng = np.random.default_rng(seed)
    for _ in range(n):
        wide = np.exp(rng.normal(size=rng.integers(0, 30)) * 20) * rng.choice([-1, 1])
        near = 1 + rng.integers(0, 300, rng.integers(0, 90)) * 2.0**-20
        also = -3 + rng.integers(0, 200, rng.integers(0, 50)) * 2.0**-20
        yield rng.permutation(np.concatenate([wide, near, also, [0.0, -0.0, np.inf]])).astype(np.float32)


@given(npst.arrays(np.float32, st.integers(0, 40), elements=floats))
def test_keys_keep_order_and_come_back(scores):
    keys = keys_of(scores)
    assert np.array_equal(scores_of(keys), scores)
    assert np.array_equal(keys[:, None] < keys, scores[:, None] < scores)
    assert np.array_equal(keys[:, None] == keys, scores[:, None] == scores)


@settings(deadline=None)
@given(st.lists(npst.arrays(np.float32, st.integers(0, 20), elements=floats), max_size=5))
def test_equals_a_counter(arrays):
    scores, counts = counted(*arrays).items()
    assert dict(zip(scores.tolist(), counts.tolist(), strict=True)) == Counter(
        score for one in arrays for score in one.tolist()
    )
    assert np.all(np.diff(scores.astype(np.float64)) > 0) or len(scores) < 2 or np.isinf(scores).any()
    assert (scores.dtype, counts.dtype) == (np.float32, np.int64)


@pytest.mark.parametrize("seed", range(4))
def test_runs_and_pages_equal_counting_at_once(seed):
    arrays = list(mixed_scores(seed))
    counts = counted(*arrays, **SMALL)
    assert (counts._pages._rows >= 0).any()  # pages were opened
    assert counts._runs  # and other scores stayed in runs
    everything = np.concatenate(arrays)
    distinct, n = np.unique(everything + np.float32(0), return_counts=True)
    ordered = np.sort(everything)
    asked = np.union1d(distinct[::3], np.float32([-np.inf, -2.9, 0.5, 1.00001, 2, 1e30]))
    parts = [counted(*arrays[:20], **SMALL), counted(*arrays[20:], **SMALL)]
    once, below, equal = (np.concatenate(rows) for rows in zip(*ranked([counted(asked, **SMALL)], parts), strict=True))
    assert np.array_equal(once, np.ones(len(asked)))
    assert np.array_equal(below, np.searchsorted(ordered, asked))
    assert np.array_equal(below + equal, np.searchsorted(ordered, asked, side="right"))
    scores, totals = counts.items()
    assert np.array_equal(scores, distinct)
    assert np.array_equal(totals, n)


def test_parts_merge_exactly_in_any_order():
    arrays = list(mixed_scores(7))
    weights = [np.random.default_rng(i).integers(1, 2**42, len(one)) for i, one in enumerate(arrays)]
    whole = ScoreCounts(**SMALL)
    for one, weight in zip(arrays, weights, strict=True):
        whole.add(one, weight)
    for order in itertools.permutations(range(3)):
        parts = [ScoreCounts(**SMALL) for _ in range(3)]
        for i, (one, weight) in enumerate(zip(arrays, weights, strict=True)):
            parts[i % 3].add(one, weight)
        total = ScoreCounts(**SMALL)
        for i in order:
            total.merge(parts[i])
        assert_same(total, whole)


def test_merging_leaves_the_other_as_it_was_and_works_with_itself():
    arrays = list(mixed_scores(3))
    one, other = counted(*arrays[:30], **SMALL), counted(*arrays[30:], **SMALL)
    one.merge(other)
    one.add(arrays[0])
    assert_same(other, counted(*arrays[30:]))
    other.merge(other)
    assert_same(other, counted(*arrays[30:], *arrays[30:]))


def test_no_scores():
    scores, counts = counted(np.empty(0, np.float32)).items()
    assert len(scores) == len(counts) == 0
    assert [[n.tolist() for n in part] for part in ranked([counted([1, 1])], [ScoreCounts()])] == [[[2], [0], [0]]]


def test_what_the_caller_does_later_to_its_arrays_does_not_matter():
    scores, weights = np.float32([1, 2]), np.array([3, 4])
    counts = ScoreCounts()
    counts.add(scores, weights)
    scores[:], weights[:] = 9, 9
    assert [part.tolist() for part in counts.items()] == [[1, 2], [3, 4]]


def test_unit_counts_and_weights_mix():
    counts, other = ScoreCounts(), ScoreCounts()
    counts.add(np.float32([1, 2, 1]), np.array([5, 20, 2]))
    counts.add(np.float32([1, 4]))
    other.add(np.float32([2, 3]), np.array([10, 10]))
    counts.merge(other)
    assert [part.tolist() for part in counts.items()] == [[1, 2, 3, 4], [8, 30, 10, 1]]


def test_pages_widen_before_a_count_overflows():
    small = SMALL | {"widest": 250}
    scores = (1 + np.arange(90) * 2.0**-20).astype(np.float32)
    counts, other, narrow = (counted(*times, **small) for times in ([scores] * 5, [scores] * 3, [scores[:50]] * 2))
    assert counts._pages._counts.dtype == np.uint32
    counts.add(scores, np.full(90, 2**40))
    counts.merge(other)
    other.merge(counts)
    counts.merge(narrow)
    assert counts._pages._counts.dtype == np.int64
    assert narrow._pages._counts.dtype == np.uint32
    assert counts.items()[1].tolist() == [2**40 + 10] * 50 + [2**40 + 8] * 40
    assert other.items()[1].tolist() == [2**40 + 11] * 90


def test_sums_of_large_weights_are_exact():
    counts = ScoreCounts()
    counts.add(np.float32([1, 1]), [2**60, 1])
    assert counts.items()[1].tolist() == [2**60 + 1]


@pytest.mark.parametrize(
    ("scores", "weights"), [([[1.0]], None), ([1.0, 2.0], [1]), ([1.0], [0]), ([1.0, 2.0], [1, -1])]
)
def test_bad_shapes_and_weights_are_refused(scores, weights):
    with pytest.raises(ParameterError, match="expected"):
        ScoreCounts().add(scores, weights)


def test_memory_follows_the_distinct_scores():
    counts = ScoreCounts(**SMALL)
    for _ in range(300):
        counts.add(np.arange(1000, 1090, dtype=np.float32))
    assert counts._n_raw + sum(len(keys) for keys, _ in counts._runs) < 3 * 100
