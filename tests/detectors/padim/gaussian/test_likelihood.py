from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

import naive
from flawmap.detectors.padim.embedding import build_hierarchy, draw_channels
from flawmap.detectors.padim.gaussian.factor import factorise
from flawmap.detectors.padim.gaussian.leave_one_out import (
    Probe,
    Sketcher,
    choose_regularization,
    log_likelihoods,
    near_duplicates,
)
from flawmap.detectors.padim.gaussian.moments import PAPER, Moments, update

GRIDS, CHANNELS = [(8, 8), (4, 4)], [6, 9]


def learn(features, groups=None):
    """Moments, probe, columns and the twin's embeddings (P, N, d) of feature maps."""
    channels = draw_channels(sum(CHANNELS), None, 0)
    hierarchy = build_hierarchy(GRIDS, CHANNELS, channels)
    columns = hierarchy.select([torch.from_numpy(maps) for maps in features])
    moments, probe = Moments.empty(hierarchy), Probe(hierarchy)
    update(moments, columns)
    probe.take(columns, range(len(features[0])) if groups is None else groups)
    return moments, probe, columns, naive.embed(features, channels)


def features(n_images, spread=1.0, seed=0):
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(15, 15)) / 4
    hidden = spread * rng.normal(size=(n_images, 8, 8, 15)) @ mix
    return [
        hidden[..., :6].transpose(0, 3, 1, 2).astype(np.float32),
        hidden[:, ::2, ::2, 6:].transpose(0, 3, 1, 2).astype(np.float32),
    ]


@pytest.mark.parametrize(("sharing", "ridge"), [(0.0, 0.05), (0.1, 0.05), (0.3, 0.4)])
def test_the_likelihood_is_that_of_refitting_without_each_image(sharing, ridge):
    n_images = 60
    _, _, _, embeddings = learn(features(n_images))
    own = torch.stack([torch.from_numpy(np.cov(position, rowvar=False)) for position in embeddings])
    delta = torch.from_numpy(embeddings - embeddings.mean(axis=1, keepdims=True))
    got = log_likelihoods(delta, own, own.mean(dim=0), n_images, [sharing], [ridge])[0, 0]
    expected = []
    for i in range(n_images):
        mean, covariance = naive.fit(np.delete(embeddings, i, axis=1), ridge, sharing)
        expected += [
            multivariate_normal.logpdf(x, m, c) for x, m, c in zip(embeddings[:, i], mean, covariance, strict=True)
        ]
    constant = embeddings.shape[2] / 2 * np.log(2 * np.pi)
    assert got == pytest.approx(np.mean(expected) + constant, rel=5e-3)


@pytest.mark.parametrize("spread", [0.01, 1.0, 100.0])
def test_the_choice_follows_the_scale_of_the_features(spread):
    moments, probe, _, _ = learn(features(40, spread))
    chosen = choose_regularization(moments, probe)
    reference = choose_regularization(*learn(features(40))[:2])
    assert chosen.sharing == reference.sharing
    assert chosen.ridge == pytest.approx(reference.ridge * spread**2, rel=1e-4)


def test_few_images_lean_more_on_what_is_shared():
    def strength(n_images):
        chosen = choose_regularization(*learn(features(n_images))[:2])
        return chosen.sharing, chosen.ridge

    assert strength(8) > strength(400)


def test_copies_do_not_talk_the_choice_into_trusting_them():
    few = features(10)
    copied = [np.concatenate([maps] * 4) for maps in few]
    honest = choose_regularization(*learn(few)[:2])
    grouped = choose_regularization(*learn(copied, groups=list(range(10)) * 4)[:2])
    fooled = choose_regularization(*learn(copied)[:2])
    assert grouped.sharing == honest.sharing
    assert (fooled.sharing, fooled.ridge) < (honest.sharing, honest.ridge)


def test_near_duplicates_are_told_from_independent_images():
    some = features(40)
    rng = np.random.default_rng(1)
    noisy = [
        np.concatenate([maps, maps[5:8] + rng.normal(0, 0.1, maps[5:8].shape).astype(np.float32)]) for maps in some
    ]
    moments, _, columns, _ = learn(noisy)
    sketches = Sketcher(factorise(moments, regularization=PAPER))(columns)
    assert near_duplicates(sketches, list(range(43))) == [(5, 40), (6, 41), (7, 42)]
    assert near_duplicates(sketches, [*range(40), 5, 6, 42]) == [(7, 42)]
