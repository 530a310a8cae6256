"""PaDiM with covariances that blocks of positions share, from the fit to the export."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flawmap import Inspector, PaDiM, export_model, load
from flawmap.detectors.padim import leave_one_out, sharing
from flawmap.detectors.padim.embedding import build_hierarchy
from flawmap.detectors.padim.gaussian.blocks import left_out_distances
from flawmap.detectors.padim.gaussian.factor import factorise, squared_distances
from flawmap.detectors.padim.gaussian.leave_one_out import Probe
from flawmap.detectors.padim.gaussian.moments import Moments, Regularization, shared_covariance, update
from flawmap.detectors.padim.leave_one_out import Likeness
from flawmap.detectors.padim.part import Part
from flawmap.detectors.padim.pooling import in_blocks
from flawmap.errors import ModelFileError, ParameterError
from flawmap.images import stream
from model_files import assemble, contents
from spots import spotted_parts
from turned import photo

SMALL = {"backbone": "resnet10t", "pretrained": False, "resize": 64, "align": "none", "blocks": 2, "refit_below": 0}
LITE = {"resize": 64, "n_features": 24, "align": "none", "blocks": 2, "refit_below": 0}


@pytest.fixture(scope="module")
def photos():
    return spotted_parts(60)


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"blocks": 4, "n_features": 30},
        {"resize": (72, 96), "crop": (64, 96)},
        {"layers": ["layer3", "layer1", "act1"]},
        {"layers": ["layer2"]},
        {"reduction": "pca", "n_features": 12},
    ],
)
def test_the_network_computes_what_predict_and_the_gaussians_do(good_images, scratched, parameters):
    model = PaDiM(**SMALL | {"calibrate": None} | parameters).fit(good_images)
    images = [scratched, *good_images[:2]]
    ready = np.stack([loaded.pixels for loaded in stream(images, model.preprocessing)])
    columns = model.factor_.hierarchy.select(model.backbone_.features(ready))
    expected = squared_distances(model.factor_, columns).sqrt().numpy()
    np.testing.assert_allclose(model.distances(images), expected, rtol=1e-3, atol=1e-3)
    network = model.network(for_graph=True).eval()
    with torch.inference_mode():
        maps, scores = network(torch.from_numpy(ready))
    for prediction, anomaly_map, score in zip(model.predict(images), maps, scores, strict=True):
        np.testing.assert_allclose(anomaly_map, prediction.anomaly_map, rtol=1e-4, atol=1e-4)
        assert float(score) == pytest.approx(prediction.pred_score, rel=1e-4)


@pytest.mark.parametrize("kind", ["openvino", "onnx"])
def test_exports_score_as_the_model(good_images, scratched, tmp_path, kind):
    model = PaDiM(**SMALL).fit(good_images)
    inspector = Inspector(export_model(model, tmp_path / kind, format=kind))
    for image in (scratched, good_images[0]):
        expected, got = model.predict(image), inspector.predict(image)
        assert got.pred_score == pytest.approx(expected.pred_score, rel=1e-3)
        np.testing.assert_allclose(got.anomaly_map, expected.anomaly_map, rtol=1e-3, atol=1e-3)


def test_a_file_keeps_the_blocks_and_is_smaller(good_images, scratched, tmp_path):
    sizes = {}
    for blocks in (1, 2, 4):
        model = PaDiM(**SMALL | {"blocks": blocks}).fit(good_images)
        model.save(path := tmp_path / f"{blocks}.flawmap")
        again = load(path, runtime="torch")
        assert again.blocks == blocks
        assert again.describe().get("blocks", 1) == blocks
        assert again.predict(scratched).pred_score == pytest.approx(model.predict(scratched).pred_score, rel=1e-5)
        for mine, theirs in zip(model.gaussian(3, 5), again.gaussian(3, 5), strict=True):
            np.testing.assert_allclose(mine, theirs)
        sizes[blocks] = sum(part.nbytes for part in (*model.factor_.own, *model.factor_.cross))
        assert ("blocks" in contents(path)[0]["parameters"]) == (blocks > 1)  # one is what files were before
    assert sizes[1] == 4 * sizes[2] == 16 * sizes[4]


@pytest.mark.parametrize(("blocks", "message"), [(4, "has shape"), (3, "blocks"), (1, "has shape")])
def test_a_file_whose_blocks_are_others_is_damaged(good_images, tmp_path, blocks, message):
    PaDiM(**SMALL).fit(good_images).save(path := tmp_path / "m.flawmap")
    document, tensors = contents(path)
    document["parameters"]["blocks"] = blocks
    assemble(path, document, tensors)
    with pytest.raises(ModelFileError, match=message):
        load(path)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"blocks": 3}, "blocks must be 1, 2 or 4, got 3"),
        ({"resize": 48}, "whole blocks, got 3 x 3"),
        ({"resize": (61, 83), "layers": ["layer1", "layer2"]}, "grids nest"),
    ],
)
def test_what_cannot_share_is_refused(good_images, parameters, message):
    with pytest.raises(ParameterError, match=message):
        PaDiM(**SMALL | parameters).fit(good_images)


def test_scores_are_those_of_refits(photos):
    """The closed form against refits, of single images and of groups; only what regularises differs."""
    rule = {"regularization": (0.1, 0.3), "groups": None}
    closed = PaDiM(**LITE | rule).fit(photos).leave_one_out_scores_
    refitted = PaDiM(**LITE | rule | {"refit_below": 100}).fit(photos).leave_one_out_scores_
    np.testing.assert_allclose(closed, refitted, rtol=0.03)


def test_a_group_is_left_out_by_the_identity_as_by_a_refit(photos, monkeypatch):
    images = [*photos, *(np.clip(image.astype(int) + 2, 0, 255).astype(np.uint8) for image in photos[:3])]
    monkeypatch.setattr(leave_one_out, "LARGEST_SHARE", 0.1)
    model = PaDiM(**LITE, regularization=(0.1, 0.3)).fit(images)
    assert model.decision_.n_groups == 60
    monkeypatch.setattr(leave_one_out, "MOST_ROWS", 0)  # groups by refits
    refitted = PaDiM(**LITE, regularization=(0.1, 0.3)).fit(images)
    np.testing.assert_allclose(model.leave_one_out_scores_, refitted.leave_one_out_scores_, rtol=0.03)
    alone = PaDiM(**LITE, regularization=(0.1, 0.3), groups=None).fit(images)
    assert model.leave_one_out_scores_[60] > 1.05 * alone.leave_one_out_scores_[60]


@pytest.mark.parametrize("steps", [1, 2])
def test_copies_are_found_by_whole_blocks(monkeypatch, steps):
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(60, 8, 8, 15)) @ (rng.normal(size=(15, 15)) / 4)
    images = np.concatenate([hidden, hidden[[5, 6]] + 0.1 * rng.normal(size=(2, 8, 8, 15))]).astype(np.float32)
    maps = [images[..., :6].transpose(0, 3, 1, 2), images[:, ::2, ::2, 6:].transpose(0, 3, 1, 2)]
    hierarchy = in_blocks(build_hierarchy([(8, 8), (4, 4)], [6, 9], np.arange(15)), 2)
    columns = hierarchy.select([torch.from_numpy(part.copy()) for part in maps])
    moments, probe = Moments.empty(hierarchy), Probe(hierarchy)
    update(moments, columns)
    likeness = Likeness(probe.positions, probe.n_members)
    if steps == 2:
        monkeypatch.setattr(leave_one_out, "MOST_BYTES", probe.at_positions(columns).nbytes // 2)
    likeness.take(probe.at_positions(columns), range(62))
    likeness.learn(moments)
    assert likeness.find(range(62), list, Regularization(0.1)) == [[5, 60], [6, 61]]
    assert likeness.duplicates(range(62)) == [(5, 60), (6, 61)]


@pytest.mark.parametrize("masked", [False, True])
def test_a_part_of_the_blocks_has_the_distances_of_the_whole(masked):
    grids, channels = [(16, 16), (8, 8), (4, 4)], [3, 3, 3]
    hierarchy = in_blocks(build_hierarchy(grids, channels, np.arange(9)), 2)
    rng = torch.Generator().manual_seed(0)
    columns = list(hierarchy.select([torch.randn(20, 3, *grid, generator=rng) for grid in grids]))
    seen = (torch.rand(16, 20, generator=rng) < 0.8).float() if masked else None
    moments = Moments.empty(hierarchy, masked=masked)
    update(moments, columns, seen)
    chosen = torch.tensor([[1, 0], [0, 1]]).repeat_interleave(2, 0).repeat_interleave(2, 1).flatten() > 0
    part, rule = Part.of(hierarchy, chosen), Regularization(0.1, 0.3)
    some = part.moments(moments)
    factor = factorise(some, regularization=rule, shared=shared_covariance(moments))
    own = [column[rows] for column, rows in zip(columns, part.own, strict=True)]
    whole = factorise(moments, regularization=rule)
    count = 20 if seen is None else moments.seen
    expected = left_out_distances(whole, columns, count, shown=seen, sharing=0.3)
    count = 20 if seen is None else some.seen
    of_part = None if seen is None else seen[part.own[0]]
    got = left_out_distances(factor, own, count, shown=of_part, sharing=0.3)
    torch.testing.assert_close(got, expected[part.positions], rtol=1e-4, atol=1e-4)
    again = some.emptied()
    update(again, own, of_part)
    for mine, theirs in zip(again.own + again.cross + again.mean, some.own + some.cross + some.mean, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_pasted_defects_lie_in_whole_blocks(photos):
    hierarchy = in_blocks(build_hierarchy([(48, 48), (24, 24)], [3, 3], np.arange(6)), 4)
    chosen = sharing._blocks(hierarchy).reshape(6, 4, 6, 4)
    assert (chosen.any(axis=(1, 3)) == chosen.all(axis=(1, 3))).all()
    model = PaDiM(**LITE).fit(photos)
    likely = PaDiM(**LITE, regularization="likelihood").fit(photos)
    assert model.regularization_.ridge == likely.regularization_.ridge
    assert model.regularization_.sharing >= likely.regularization_.sharing


def test_parts_that_are_aligned_share_too(tmp_path):
    rng = np.random.default_rng(0)
    good = np.stack(
        [photo(angle=float(rng.uniform(0, 360)), shift=tuple(rng.uniform(-6, 6, 2)), seed=i) for i in range(36)]
    )
    bad = photo(angle=70, seed=2001, scratched=True)
    model = PaDiM(resize=64, n_features=12, align="rigid", blocks=2, regularization=(0.3, 0.3), refit_below=0).fit(good)
    assert model.aligner_ is not None
    assert model.predict(bad).pred_score > np.quantile(model.leave_one_out_scores_, 0.9)
    unseen = [model.predict(photo(angle=float(rng.uniform(0, 360)), seed=5000 + i)).pred_score for i in range(12)]
    assert np.median(model.leave_one_out_scores_) == pytest.approx(np.median(unseen), rel=0.15)
    refitted = PaDiM(resize=64, n_features=12, align="rigid", blocks=2, regularization=(0.3, 0.3), refit_below=100).fit(
        good
    )
    np.testing.assert_allclose(model.leave_one_out_scores_, refitted.leave_one_out_scores_, rtol=0.03)
    model.save(path := tmp_path / "m.flawmap")
    assert load(path).predict(bad).pred_score == pytest.approx(model.predict(bad).pred_score, rel=1e-4)
    got = Inspector(export_model(model, tmp_path / "export")).predict(bad)
    assert got.pred_score == pytest.approx(model.predict(bad).pred_score, rel=1e-3)


def test_a_region_of_interest_is_scored_alone(photos):
    region = np.zeros((64, 64), bool)
    region[8:40, 16:64] = True
    model = PaDiM(**LITE, roi=region).fit(photos)
    marked = photos[0].copy()
    marked[20:28, 30:38] = 0
    prediction = model.predict(marked)
    assert prediction.pred_label == 1
    assert (prediction.anomaly_map[~region] == 0).all()
