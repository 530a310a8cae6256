from __future__ import annotations

import numpy as np
import pytest

from flawmap.detectors.calibration import LONGEST, Grouping, HoldOut, find_groups, link_neighbours, near_duplicates
from flawmap.images.search import capture_order


@pytest.mark.parametrize("seed", range(5))
def test_one_of_every_four_is_held_out(seed):
    held_out = HoldOut(seed)
    held = [held_out(group) for group in range(40)]
    assert held[:4] == [False, False, True, False]  # the least that teaches something and gives a threshold
    assert all(sum(held[start : start + 4]) == 1 for start in range(0, 40, 4))
    assert [held_out(group) for group in range(40)] == held
    assert held != [HoldOut(seed + 100)(group) for group in [*range(4)] * 10]


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def drifting(n_images, kept, seed=0, n_values=400):
    """Unit vectors of a series in which each image keeps a share of the one before."""
    rng = np.random.default_rng(seed)
    steps = rng.normal(size=(n_images, n_values))
    for i in range(1, n_images):
        steps[i] = kept * steps[i - 1] + np.sqrt(1 - kept**2) * steps[i]
    return unit(steps)


@pytest.mark.parametrize("seed", range(5))
def test_independent_images_are_not_grouped(seed):
    vectors = drifting(200, 0.0, seed)
    assert link_neighbours(vectors)[0] == []
    assert find_groups(vectors) == []


@pytest.mark.parametrize("seed", range(5))
def test_images_that_look_alike_by_chance_are_not_grouped(seed):
    """Parts in one of ten poses, in any order: the next part is in one of them too."""
    rng = np.random.default_rng(seed)
    poses = rng.normal(size=(10, 400))[rng.integers(10, size=200)]
    assert find_groups(unit(poses + 1.5 * rng.normal(size=poses.shape))) == []


def test_bursts_are_grouped_whatever_takes_turns():
    """Three series of bursts of ten, photographed in turns."""
    rng = np.random.default_rng(0)
    bursts = np.repeat(rng.normal(size=(30, 400)), 10, axis=0)
    vectors = (
        unit(bursts + 1.5 * rng.normal(size=bursts.shape)).reshape(3, 100, 400).transpose(1, 0, 2).reshape(300, 400)
    )
    truth = np.repeat(np.arange(30), 10).reshape(3, 100).T.ravel()
    groups = find_groups(vectors)
    assert sum(map(len, groups)) > 270
    assert all(len(set(truth[group])) == 1 for group in groups)


def test_a_drift_without_end_is_cut_where_ends_are_no_longer_alike():
    vectors = drifting(400, 0.9)
    groups = find_groups(vectors)
    assert sum(map(len, groups)) > 390
    assert max(map(len, groups)) < 80
    assert all(np.ptp(group) == len(group) - 1 for group in groups)


def test_names_are_in_the_order_of_their_numbers():
    assert capture_order(["b2", "a10", "a9", "9"], [None] * 4) == [3, 2, 1, 0]


def test_series_whose_company_does_not_matter_are_not_grouped():
    """But near-duplicates are, also those within such a series."""
    vectors, strict, asked = drifting(120, 0.8), drifting(120, 0.0), []
    strict[[90, 5]] = strict[[3, 4]]
    assert find_groups(vectors, strict, lambda groups: asked.extend(groups) or []) == [[3, 90], [4, 5]]
    assert find_groups(vectors) == sorted(asked)


def test_near_duplicates_are_grouped_wherever_they_stand():
    vectors = drifting(10, 0.0)
    copied = np.concatenate([vectors, vectors[3:5], vectors[3:4]])
    pairs = near_duplicates(copied, range(13))
    assert pairs == [(3, 10), (4, 11), (3, 12)]
    assert find_groups(copied) == [[3, 10, 12], [4, 11]]
    assert near_duplicates(copied, [*range(10), 3, 4, 3]) == []


def test_a_group_has_no_more_images_than_it_may():
    groups = find_groups(np.ones((LONGEST + 10, 1), np.float32))
    assert [len(group) for group in groups] == [LONGEST, 10]


def test_a_grouping_by_itself():
    grouping = Grouping("auto", {"a": "clip 1", "b": "clip 1"})
    assert [grouping.add(name) for name in "ab"] == ["clip 1", "clip 1"]
    for name, copy_of in (("c", None), ("d", None), ("e", 2), ("f", 0), ("g", None)):
        grouping.add(name, copy_of)
    grouping.check()
    assert grouping.ungrouped == [2, 3, 4, 5, 6]
    assert grouping.found() == [[2, 4]]
    grouping.join([[4, 6]])
    assert grouping.found() == [[2, 4, 6]]
    assert sorted(map(tuple, grouping.members.values())) == [(0, 1, 5), (2, 4, 6), (3,)]
    assert grouping.groups[6] == grouping.groups[2]
    alone = Grouping(None, {"a": "clip 1"})
    alone.add("a")
    alone.add("b", 0)
    assert (alone.ungrouped, alone.found(), len(alone.members)) == ([], [], 2)
