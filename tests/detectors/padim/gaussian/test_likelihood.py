from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

import naive
from flawmap.detectors.padim.embedding import build_hierarchy, draw_channels
from flawmap.detectors.padim.gaussian import leave_one_out
from flawmap.detectors.padim.gaussian.leave_one_out import Probe, choose_regularization, log_likelihoods
from flawmap.detectors.padim.gaussian.moments import Moments, update
from flawmap.detectors.padim.pooling import in_blocks

GRIDS, CHANNELS = [(8, 8), (4, 4)], [6, 9]


def learn(features):
    """Moments, probe, columns and the twin's embeddings (P, N, d) of feature maps."""
    channels = draw_channels(sum(CHANNELS), None, 0)
    hierarchy = build_hierarchy(GRIDS, CHANNELS, channels)
    columns = hierarchy.select([torch.from_numpy(maps) for maps in features])
    moments, probe = Moments.empty(hierarchy), Probe(hierarchy)
    update(moments, columns)
    probe.take(probe.at_positions(columns), range(len(features[0])))
    return moments, probe, columns, naive.embed(features, channels)


def features(n_images, spread=1.0, seed=0):
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(15, 15)) / 4
    hidden = spread * rng.normal(size=(n_images, 8, 8, 15)) @ mix
    return [
        hidden[..., :6].transpose(0, 3, 1, 2).astype(np.float32),
        hidden[:, ::2, ::2, 6:].transpose(0, 3, 1, 2).astype(np.float32),
    ]


@pytest.mark.parametrize("size", [1, 4, 25])
@pytest.mark.parametrize(("sharing", "ridge"), [(0.0, 0.05), (0.1, 0.05), (0.3, 0.4)])
def test_the_likelihood_is_that_of_refitting_without_each_group(sharing, ridge, size):
    n_images = 100 if size > 1 else 60
    _, _, _, embeddings = learn(features(n_images))
    own = torch.stack([torch.from_numpy(np.cov(position, rowvar=False)) for position in embeddings])
    delta = torch.from_numpy(embeddings - embeddings.mean(axis=1, keepdims=True))
    groups = [list(range(start, start + size)) for start in range(0, n_images, size)]
    got = log_likelihoods(delta, own, own.mean(dim=0), n_images, [sharing], [ridge], groups)[0, 0]
    expected = []
    for group in groups:
        rest = np.delete(embeddings, group, axis=1)
        mean, covariance = naive.fit(rest, ridge, sharing)
        # the formula holds what regularises, and the divisor N - 1, as they are under all images
        left = (rest.shape[1] - 1) / (n_images - 1)
        eye = np.eye(covariance.shape[-1])
        scatter = (covariance - ridge * eye - sharing * np.mean((covariance - ridge * eye), axis=0)) * left
        covariance = scatter + sharing * own.mean(dim=0).numpy() + ridge * eye
        expected += [
            multivariate_normal.logpdf(embeddings[p, group], m, c).mean()
            for p, (m, c) in enumerate(zip(mean, covariance, strict=True))
        ]
    constant = embeddings.shape[2] / 2 * np.log(2 * np.pi)
    assert got == pytest.approx(np.mean(expected) + constant, rel=1e-4)


@pytest.mark.parametrize("size", [1, 4, 25])
@pytest.mark.parametrize(("sharing", "ridge"), [(0.0, 0.05), (0.3, 0.4)])
def test_the_likelihood_of_blocks_is_that_of_refitting_without_each_group(sharing, ridge, size):
    n_images = 100
    maps = features(n_images)
    hierarchy = in_blocks(build_hierarchy(GRIDS, CHANNELS, np.arange(15)), 2)
    columns = hierarchy.select([torch.from_numpy(part) for part in maps])
    moments, probe = Moments.empty(hierarchy), Probe(hierarchy)
    update(moments, columns)
    probe.take(probe.at_positions(columns), range(n_images))
    assert len(probe.indices) == n_images
    delta, own, count = leave_one_out._statistics(moments, probe, of_sample=False)
    assert len(delta) == len(probe.positions) == 4 * len(own)
    order = np.concatenate([level.columns.numpy() for level in hierarchy.levels])
    embeddings = naive.embed(maps, np.arange(15))[..., order]
    block = naive.block_of_positions((8, 8), (4, 4), 2)
    _, covariance, _ = naive.fit_blocks(embeddings, block, 0.0)
    shared = covariance.mean(axis=0)
    groups = [list(range(start, start + size)) for start in range(0, n_images, size)]
    got = log_likelihoods(delta, own, torch.from_numpy(shared), count, [sharing], [ridge], groups)[0, 0]
    expected, eye = [], np.eye(15)
    for group in groups:
        rest = np.delete(embeddings, group, axis=1)
        mean, left, _ = naive.fit_blocks(rest, block, 0.0)
        # the formula holds what regularises, and the degrees of freedom, as they are under all images
        left = (1 - sharing) * left * (rest.shape[1] - 1) / (n_images - 1) + sharing * shared + ridge * eye
        expected += [multivariate_normal.logpdf(embeddings[p, group], mean[p], left[p]).mean() for p in probe.positions]
    assert got == pytest.approx(np.mean(expected) + 15 / 2 * np.log(2 * np.pi), rel=1e-4)
    chosen = choose_regularization(moments, probe, [i // size for i in range(n_images)])
    assert chosen.ridge > 0


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
    grouped = choose_regularization(*learn(copied)[:2], list(range(10)) * 4)
    fooled = choose_regularization(*learn(copied)[:2])
    assert (fooled.sharing, fooled.ridge) < (honest.sharing, honest.ridge)
    assert (grouped.sharing, grouped.ridge) > (fooled.sharing, fooled.ridge)


def test_one_group_of_all_images_gives_the_papers_setting():
    assert choose_regularization(*learn(features(10))[:2], ["all"] * 10).ridge == 0.01


def test_a_sample_of_grouped_images_is_judged_by_itself(monkeypatch):
    """The covariance of all images would hold the rest of each group."""
    copied = [np.concatenate([maps] * 4) for maps in features(40)]
    monkeypatch.setattr(leave_one_out, "N_IMAGES", 60)
    moments, probe, _, _ = learn(copied)
    grouped = choose_regularization(moments, probe, list(range(40)) * 4)
    fooled = choose_regularization(moments, probe)
    assert len(probe.indices) == 60
    assert (grouped.sharing, grouped.ridge) > (fooled.sharing, fooled.ridge)


def test_the_likelihood_is_that_of_the_images_that_show_each_position():
    rng = np.random.default_rng(3)
    images = rng.normal(size=(1, 60, 4))
    hidden = rng.random(60) < 0.3
    groups = [list(range(start, start + 3)) for start in range(0, 60, 3)]
    shown = [[i for i in group if not hidden[i]] for group in groups]
    alone = np.cumsum(~hidden) - 1  # the rows that those images have among themselves

    def likelihood(embeddings, groups, count):
        own = torch.from_numpy(np.cov(images[0, ~hidden], rowvar=False))[None]
        delta = torch.from_numpy(embeddings - images[:, ~hidden].mean(axis=1, keepdims=True))
        return log_likelihoods(delta, own, own[0], count, [0.1], [0.2], groups)[0, 0]

    masked = np.where(hidden[:, None], np.nan, images)
    got = likelihood(masked, groups, torch.tensor([float((~hidden).sum())]))
    some = [[int(alone[i]) for i in group] for group in shown if group]
    assert got == pytest.approx(likelihood(images[:, ~hidden], some, int((~hidden).sum())), rel=1e-9)
