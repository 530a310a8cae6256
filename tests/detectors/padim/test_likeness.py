from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from flawmap.detectors.padim import leave_one_out
from flawmap.detectors.padim.embedding import build_hierarchy, draw_channels
from flawmap.detectors.padim.gaussian.leave_one_out import Probe
from flawmap.detectors.padim.gaussian.moments import Moments, Regularization, update
from flawmap.detectors.padim.leave_one_out import FEWEST_CHANNELS, FEWEST_POSITIONS, Likeness
from flawmap.images.capture import capture_times

GRIDS, CHANNELS = [(8, 8), (4, 4)], [6, 9]
STANDARD = Regularization(ridge=0.1)


def compare(images, seen=None):
    """The likeness of images whose embeddings (N, 8, 8, 15) have a coarser level in channels 6 to 14."""
    maps = [images[..., :6].transpose(0, 3, 1, 2), images[:, ::2, ::2, 6:].transpose(0, 3, 1, 2)]
    hierarchy = build_hierarchy(GRIDS, CHANNELS, draw_channels(sum(CHANNELS), None, 0))
    columns = hierarchy.select([torch.from_numpy(part.astype(np.float32)) for part in maps])
    moments, probe = Moments.empty(hierarchy, masked=seen is not None), Probe(hierarchy)
    likeness = Likeness(probe.positions)
    update(moments, columns, seen)
    for start in range(0, len(images), 7):
        some = slice(start, start + 7)
        batch = probe.at_positions([column[:, some] for column in columns], None if seen is None else seen[:, some])
        likeness.take(batch, range(len(images))[some])
    likeness.learn(moments)
    return likeness


def independent(n_images, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n_images, 8, 8, 15)) @ (rng.normal(size=(15, 15)) / 4)


def copied(n_images, copies, noise=0.1):
    images = independent(n_images)
    return np.concatenate(
        [images, images[copies] + noise * np.random.default_rng(1).normal(size=(len(copies), 8, 8, 15))]
    )


def test_near_duplicates_are_told_from_independent_images():
    likeness = compare(copied(40, [5, 6, 7]))
    assert likeness.duplicates(range(43)) == [(5, 40), (6, 41), (7, 42)]
    assert likeness.duplicates([*range(40), 5, 6, 42]) == [(7, 42)]
    assert likeness.find(range(43), list, STANDARD) == [[5, 40], [6, 41], [7, 42]]
    assert likeness.find(range(42), list, STANDARD) == [[5, 40], [6, 41]]
    assert likeness.find([7], list, STANDARD) == likeness.find([], list, STANDARD) == []


def test_images_are_compared_by_what_they_show():
    """Of copies whose edges were not seen, what lies there is not compared."""
    images = copied(60, [5, 6, 7])
    seen = torch.ones(16, 63)
    seen[:4, 60:] = 0
    images[60:, :2] = 1000.0
    assert compare(images, seen).duplicates(range(63)) == [(5, 60), (6, 61), (7, 62)]


def burst(n_bursts, size, kept, seed=0):
    """Bursts of images that keep a share of what is the burst's own."""
    of_burst = np.repeat(independent(n_bursts, seed), size, axis=0)
    return kept * of_burst + np.sqrt(1 - kept**2) * independent(n_bursts * size, seed + 1)


def test_series_are_grouped_where_their_company_changes_scores():
    groups = compare(burst(20, 6, kept=0.9)).find(range(120), list, STANDARD)
    assert sum(map(len, groups)) > 100
    assert all(len({i // 6 for i in group}) == 1 for group in groups)


@pytest.mark.parametrize("seed", range(3))
def test_neighbours_that_are_a_little_alike_are_not_grouped(seed):
    likeness = compare(burst(20, 6, kept=0.3, seed=seed))
    assert likeness.find(range(120), list, STANDARD) == []


def test_the_order_is_that_of_capture():
    images, order = burst(20, 6, kept=0.9), np.random.default_rng(0).permutation(120)
    place = np.argsort(order)
    expected = compare(images).find(range(120), list, STANDARD)
    likeness = compare(images[order])
    got = likeness.find(range(120), lambda indices: sorted(indices, key=lambda index: order[index]), STANDARD)
    assert sorted(got) == sorted(sorted(int(place[i]) for i in group) for group in expected)


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(leave_one_out, "MOST_BYTES", 43 * 14 * 15 * 4)
    likeness = compare(copied(40, [5, 6, 7], noise=0.01))
    assert likeness.duplicates(range(43)) == [(5, 40), (6, 41), (7, 42)]
    assert sum(batch.nbytes for batch in likeness._kept) <= leave_one_out.MOST_BYTES
    monkeypatch.setattr(leave_one_out, "MOST_BYTES", 30 * 14 * 15 * 4)
    assert (FEWEST_POSITIONS, FEWEST_CHANNELS) > (14 / 2, 15 / 2)
    assert compare(independent(42)).indices == list(range(28))


def test_exif_times_are_the_order_of_capture_where_all_images_have_one(tmp_path, good_images):
    def write(path, image, time):
        exif = Image.Exif()
        if time is not None:
            exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = f"2026:11:27 20:00:{time:02}"
        Image.fromarray(image).save(path, exif=exif)
        return path

    rng = np.random.default_rng(0)
    times = rng.permutation(12).tolist()
    paths = [
        write(tmp_path / f"{i}.jpg", image, time)
        for i, (image, time) in enumerate(zip(good_images, times, strict=True))
    ]
    assert [int(time[-4:-2]) for time in capture_times(paths)] == times
    write(paths[3], good_images[3], None)
    assert capture_times(paths) is None
    assert capture_times([good_images[0]]) is None
    paths[3].write_bytes(b"")
    assert capture_times(paths) is None
