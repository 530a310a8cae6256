from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import LedoitWolf

from flawmap import MahalanobisAD
from flawmap.backbones import feature_levels, load_backbone
from flawmap.errors import ParameterError, TrainingSetError

SMALL = {"backbone": "resnet10t", "pretrained": False, "resize": 64}


def test_scores_are_those_of_a_float64_twin(good_images, scratched):
    model = MahalanobisAD(**SMALL).fit(good_images)
    backbone = load_backbone("resnet10t", layers=feature_levels("resnet10t"), pretrained=False)
    score = 0.0
    for level in backbone.features(np.stack([*good_images, scratched])):
        vectors = level.double().mean(dim=(2, 3)).numpy()
        twin = LedoitWolf().fit(vectors[:12])
        score += mahalanobis(vectors[12], twin.location_, np.linalg.inv(twin.covariance_))
    assert model.predict(scratched).pred_score == pytest.approx(score, rel=1e-4)
    assert model.distances(scratched).sum() == pytest.approx(score, rel=1e-4)


def test_a_leave_one_out_score_is_close_to_that_of_a_model_without_the_image(good_images):
    model = MahalanobisAD(**SMALL).fit(good_images)
    for i in (0, 7):
        without = MahalanobisAD(**SMALL, calibrate=None).fit(np.delete(good_images, i, axis=0))
        wanted = without.predict(good_images[i]).pred_score
        assert model.leave_one_out_scores_[i] == pytest.approx(wanted, rel=0.1)  # the shrinkage differs a little


def test_the_preset_reads_stem_stages_and_head(good_images):
    model = MahalanobisAD.from_preset("mahalanobis-ad-effnet-b4", pretrained=False, resize=64).fit(good_images[:3])
    document = model.describe()
    assert document["n_channels"] == [48, 24, 32, 56, 112, 160, 272, 448, 1792]
    assert MahalanobisAD.from_preset("mahalanobis-ad-effnet-b4").preprocessing.resize == (380, 380)
    assert model.distances(good_images[:2]).shape == (2, 9)
    with pytest.raises(ParameterError, match="unknown preset 'b4'; there are mahalanobis-ad-effnet-b4"):
        MahalanobisAD.from_preset("b4")


def test_images_that_are_all_alike_are_refused(good_images):
    with pytest.raises(TrainingSetError, match="all alike"):
        MahalanobisAD(**SMALL).fit([good_images[0]] * 4)
