from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import leaky_relu

from flawmap.detectors.trained import patch_svdd
from flawmap.errors import ParameterError

CPU = torch.device("cpu")


def n_parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_networks_have_the_sizes_of_the_authors():
    small = [(3, 32), (32, 64), (64, 128), (128, 128), (128, 64), (64, 32), (32, 32), (32, 64)]
    expected = sum(9 * a * b + b for a, b in small)
    assert n_parameters(patch_svdd.SmallEncoder()) == expected
    assert n_parameters(patch_svdd.LargeEncoder()) == expected + 64 * 128 * 4 + 128 + 128 * 64 + 64
    assert n_parameters(patch_svdd.PositionClassifier()) == 64 * 128 + 128 + 128 * 128 + 128 + 128 * 8 + 8
    assert patch_svdd.SmallEncoder()(torch.rand(2, 3, 32, 32)).shape == (2, 64, 1, 1)
    assert patch_svdd.LargeEncoder()(torch.rand(2, 3, 64, 64)).shape == (2, 64, 1, 1)


def test_the_large_encoder_joins_its_quarters_where_they_lie():
    encoder = patch_svdd.LargeEncoder(8)
    patch = torch.rand(1, 3, 64, 64)
    quarters = [[encoder.small(patch[..., i : i + 32, j : j + 32]) for j in (0, 32)] for i in (0, 32)]
    joined = torch.cat([torch.cat(row, dim=3) for row in quarters], dim=2)
    expected = torch.tanh(encoder.mix(leaky_relu(encoder.join(joined), 0.1)))
    torch.testing.assert_close(encoder(patch), expected)


@pytest.mark.parametrize("size", [(64, 64), (96, 83)])
def test_patches_embedded_at_once_are_embedded_as_if_alone(size):
    encoder = patch_svdd.LargeEncoder(8)
    planes = torch.rand(2, 3, *size)
    with torch.inference_mode():
        found = patch_svdd.embed_patches(encoder, planes)
        for side, stride, alone in ((32, 4, encoder.small), (64, 16, encoder)):
            rows, columns = ((length - side) // stride + 1 for length in size)
            assert found[side].shape == (2, 8, rows, columns)
            for i in range(rows):
                for j in range(columns):
                    patch = planes[..., i * stride : i * stride + side, j * stride : j * stride + side]
                    torch.testing.assert_close(found[side][..., i, j], alone(patch)[..., 0, 0], atol=1e-5, rtol=1e-4)


def test_the_last_weights_of_the_classifier_are_normalised_and_not_trained():
    classifier = patch_svdd.PositionClassifier(4)
    one, other = torch.rand(2, 5, 4, 1, 1)
    logits = classifier(one, other)
    hidden = leaky_relu(classifier.second(leaky_relu(classifier.first((one - other)[..., 0, 0]), 0.1)), 0.1)
    weights = classifier.last.weight / classifier.last.weight.norm(dim=0)
    torch.testing.assert_close(logits, hidden @ weights.T + classifier.last.bias)
    logits.sum().backward()
    assert classifier.last.weight.grad is None
    assert classifier.first.weight.grad.abs().sum() > 0


def test_the_svdd_loss_is_the_mean_distance():
    one, other = torch.rand(2, 6, 4, 1, 1)
    naive = np.mean([np.linalg.norm(a - b) for a, b in zip(one.numpy(), other.numpy(), strict=True)])
    assert patch_svdd.svdd_loss(one, other).item() == pytest.approx(naive, rel=1e-5)


@pytest.mark.parametrize("side", [32, 64])
def test_corners_stay_inside_and_lie_in_the_direction_of_their_label(side):
    rng, size, seen = np.random.default_rng(0), (400, 300), set()
    for _ in range(400):
        (top, left), (below, right), label = patch_svdd.neighbour_corners(size, side, rng)
        down, across = patch_svdd.DIRECTIONS[label]
        for before, after, sign, length in ((top, below, down, 400), (left, right, across, 300)):
            assert 0 <= before <= length - side
            assert 0 <= after <= length - side
            inside = 0 < after < length - side
            assert not inside or (sign == 0 and after == before) or 3 * side // 4 <= sign * (after - before) < side
        seen.add(label)
        (top, left), (below, right) = patch_svdd.nearby_corners(size, side, rng)
        assert max(abs(top - below), abs(left - right)) <= side // 32
    assert seen == set(range(8))
    assert len(set(patch_svdd.DIRECTIONS)) == 8


def test_a_pixel_takes_the_mean_of_the_patches_that_cover_it():
    for side, n_pixels in ((32, 64), (32, 71), (64, 128)):
        operator = patch_svdd.spread_operator(n_pixels, side)
        values = torch.rand(operator.shape[1])
        for pixel in range(n_pixels):
            covering = [
                value
                for number, value in enumerate(values)
                if number * patch_svdd.STRIDES[side] <= pixel < number * patch_svdd.STRIDES[side] + side
            ]
            if covering:
                assert (operator @ values)[pixel].item() == pytest.approx(np.mean(covering), rel=1e-5)
            else:
                assert (operator @ values)[pixel] == (operator @ values)[pixel - 1]


def test_images_smaller_than_a_patch_are_refused():
    with pytest.raises(ParameterError, match="patches of 64 x 64"):
        patch_svdd.check_size((64, 63))


def test_steps_learn_and_follow_from_the_seed(few, plain, good_images):
    def trained(seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = patch_svdd.PatchSVDDNetwork(8)
        training = patch_svdd.PatchSVDDTraining(
            network,
            few,
            good_images.mean(0, dtype=np.float32),
            learning_rate=1e-3,
            svdd_weight=1e-3,
            batch_size=4,
            seed=seed,
            device=CPU,
        )
        before = [parameter.clone() for parameter in network.parameters()]
        losses = [training.step(number, plain).item() for number in range(3)]
        still = [torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True)]
        assert sum(still) == 2  # the last weights of the two classifiers
        return losses

    assert trained(0) == trained(0) != trained(1)


def test_the_loss_of_a_step_is_that_of_the_paper(few, good_images, plain, monkeypatch):
    network = patch_svdd.PatchSVDDNetwork(8)
    seen = {}
    real = patch_svdd.PatchSVDDNetwork.encode

    def spy(self, side, patches):
        seen[side] = real(self, side, patches)
        return seen[side]

    monkeypatch.setattr(patch_svdd.PatchSVDDNetwork, "encode", spy)
    labels = {}
    real_neighbours = patch_svdd.PatchSVDDTraining._neighbours

    def spy_neighbours(self, images, side, rng):
        patches, labels[side] = real_neighbours(self, images, side, rng)
        return patches, labels[side]

    monkeypatch.setattr(patch_svdd.PatchSVDDTraining, "_neighbours", spy_neighbours)
    mean = good_images.mean(0, dtype=np.float32)
    training = patch_svdd.PatchSVDDTraining(
        network, few, mean, learning_rate=0.0, svdd_weight=0.5, batch_size=3, seed=0, device=CPU
    )
    loss = training.step(0, plain).item()
    expected = 0.0
    for side, embedded in seen.items():
        one, other, first, second = embedded.detach().double().view(4, 3, 8)
        classifier = network.classifiers[str(side)].double()
        expected += nn.CrossEntropyLoss()(classifier(one, other), labels[side]).item()
        expected += 0.5 * (first - second).square().sum(1).sqrt().mean().item()
    assert loss == pytest.approx(expected, rel=1e-5)


def test_the_score_follows_the_paper_patch_by_patch():
    encoder, side = patch_svdd.LargeEncoder(8), 80
    scorer = patch_svdd.PatchSVDDScorer(encoder, (side, side), 3)
    generator = torch.Generator().manual_seed(0)
    good, images = torch.randint(0, 256, (2, 3, side, side, 3), generator=generator, dtype=torch.uint8)
    with torch.inference_mode():
        scorer.mean.copy_(good.float().mean(0))
        for number in range(3):
            scorer.keep(number, scorer.embed(good[number : number + 1]))
        scorer.set_units()
        maps, scores = scorer(images)

        def patches(image, size, stride):
            planes = ((image.float() - scorer.mean) / 255).permute(2, 0, 1)[None]
            network = encoder if size == 64 else encoder.small
            starts = range(0, side - size + 1, stride)
            return {(i, j): network(planes[..., i : i + size, j : j + size]).flatten() for i in starts for j in starts}

        for image, anomaly_map, score in zip(images, maps, scores, strict=True):
            product = np.ones((side, side))
            for size, stride in ((64, 16), (32, 4)):
                gallery = torch.stack([value for one in good for value in patches(one, size, stride).values()])
                unit = (gallery - gallery.mean(0)).square().sum(1).mean().sqrt().item()
                total, count = np.zeros((side, side)), np.zeros((side, side))
                for (i, j), value in patches(image, size, stride).items():
                    distance = (gallery - value).norm(dim=1).min().item() / unit
                    total[i : i + size, j : j + size] += distance
                    count[i : i + size, j : j + size] += 1
                product *= total / count
            np.testing.assert_allclose(anomaly_map, product, rtol=1e-3)
            assert score == anomaly_map.max()
