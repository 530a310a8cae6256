from __future__ import annotations

import pytest
import torch

from flawmap.detectors.trained import ganomaly
from flawmap.errors import ParameterError

CPU = torch.device("cpu")


def n_parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def dcgan_parameters(side, n_latent, width):
    """Weights of an encoder as DCGAN's paper lays it out: 4 x 4 kernels, two per normalised channel."""
    total, here = 3 * width * 16, width
    while side > 8:
        total += here * 2 * here * 16 + 2 * 2 * here
        side, here = side // 2, 2 * here
    return total + here * n_latent * 16


@pytest.mark.parametrize(("side", "width"), [(32, 64), (64, 16), (128, 8)])
def test_the_networks_have_the_shapes_and_sizes_of_the_authors(side, width):
    generator = ganomaly.Generator((side, side), width=width)
    images = torch.rand(2, 3, side, side) * 2 - 1
    generated, latent, second_latent = generator(images)
    assert generated.shape == images.shape
    assert latent.shape == second_latent.shape == (2, 100, 1, 1)
    assert generated.abs().max() <= 1
    assert n_parameters(generator.encoder) == dcgan_parameters(side, 100, width)
    top = width * side // 8
    normalised = sum(2 * (top >> level) for level in range((side // 8).bit_length()))
    assert n_parameters(generator.decoder) == dcgan_parameters(side, 100, width) + normalised - sum(
        2 * (top >> level) for level in range((side // 8).bit_length() - 1)
    )
    discriminator = ganomaly.Discriminator((side, side), width=width)
    logits, features = discriminator(images)
    assert (logits.shape, features.shape) == ((2,), (2, top, 4, 4))
    assert n_parameters(discriminator) == dcgan_parameters(side, 1, width)


def test_at_32_pixels_the_generator_has_the_authors_number_of_weights():
    assert n_parameters(ganomaly.Generator((32, 32))) == 3 * (
        3 * 64 * 16 + 64 * 128 * 16 + 128 * 256 * 16 + 256 * 100 * 16
    ) + (2 * 2 * (128 + 256) + 2 * (256 + 128 + 64))


def test_weights_are_drawn_as_for_dcgan():
    generator = ganomaly.Generator((32, 32))
    assert generator.encoder[2].weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert generator.encoder[3].weight.mean().item() == pytest.approx(1, abs=0.01)


def test_the_losses_are_those_of_the_paper():
    g = torch.Generator().manual_seed(0)
    x, made, z, again, f, through = (torch.rand(2, 3, 4, 4, generator=g, dtype=torch.float64) for _ in range(6))
    naive = ((f - through) ** 2).mean() + 50 * (x - made).abs().mean() + ((z - again) ** 2).mean()
    assert ganomaly.generator_loss(x, made, z, again, f, through).item() == pytest.approx(naive.item(), rel=1e-12)
    real, fake = torch.randn(2, 5, generator=g, dtype=torch.float64)
    bce = -(torch.sigmoid(real).log().mean() + (1 - torch.sigmoid(fake)).log().mean()) / 2
    assert ganomaly.discriminator_loss(real, fake).item() == pytest.approx(bce.item(), rel=1e-9)


def test_the_score_is_the_distance_of_the_latent_vectors():
    generator = ganomaly.Generator((16, 16), n_latent=7, width=4).eval()
    images = torch.randint(0, 256, (3, 16, 16, 3), dtype=torch.uint8)
    (scores,) = ganomaly.GANomalyScorer(generator)(images)
    _, latent, second_latent = generator(images.permute(0, 3, 1, 2) / 127.5 - 1)
    for score, z, other in zip(scores, latent, second_latent, strict=True):
        assert score.item() == pytest.approx(((z - other) ** 2).sum().item() / 7, rel=1e-4)


@pytest.mark.parametrize("size", [(32, 64), (48, 48), (8, 8)])
def test_other_sizes_are_refused(size):
    with pytest.raises(ParameterError, match="square images of 16, 32"):
        ganomaly.Generator(size)


def test_steps_train_both_networks_and_follow_from_the_seed(few, plain):
    def trained(seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            pair = ganomaly.Generator((64, 64), width=4), ganomaly.Discriminator((64, 64), width=4)
        before = [parameter.clone() for network in pair for parameter in network.parameters()]
        training = ganomaly.GANomalyTraining(*pair, few, learning_rate=2e-3, batch_size=8, seed=seed, device=CPU)
        losses = [training.step(number, plain).item() for number in range(10)]
        after = [parameter for network in pair for parameter in network.parameters()]
        assert not any(torch.equal(old, new) for old, new in zip(before, after, strict=True))
        return losses

    losses = trained(0)
    assert losses[-1] < losses[0]
    assert trained(0) == losses != trained(1)


def test_a_discriminator_that_has_won_is_drawn_anew(few, plain, monkeypatch):
    pair = ganomaly.Generator((64, 64), width=4), ganomaly.Discriminator((64, 64), width=4)
    training = ganomaly.GANomalyTraining(*pair, few, learning_rate=1e-9, batch_size=4, seed=0, device=CPU)
    before = pair[1].classifier.weight.clone()
    training.step(0, plain)
    torch.testing.assert_close(pair[1].classifier.weight, before, atol=1e-6, rtol=0)
    monkeypatch.setattr(ganomaly, "LEAST_LOSS", 100.0)
    training.step(1, plain)
    assert not torch.allclose(pair[1].classifier.weight, before, atol=1e-3)
