from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.distributions import Normal, kl_divergence

from flawmap.detectors.trained import vae

CPU = torch.device("cpu")


def n_parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_at_256_pixels_the_whole_resnet18_gives_an_8_by_8_latent_variable():
    network = vae.VAENetwork((256, 256)).eval()
    assert n_parameters(network.encoder) == 11_689_512 - 513_000  # torchvision's ResNet-18 without its classifier
    mean, log_variance = network.encode(torch.rand(1, 3, 256, 256))
    assert mean.shape == log_variance.shape == (1, 64, 8, 8)
    assert network(torch.rand(1, 3, 256, 256)).shape == (1, 3, 256, 256)


@pytest.mark.parametrize(
    ("size", "stride"), [((64, 64), 8), ((128, 128), 16), ((512, 512), 32), ((61, 83), 8), ((20, 20), 4)]
)
def test_smaller_images_keep_the_latent_variable_near_8_by_8(size, stride):
    assert vae.latent_stride(size) == stride
    planes = torch.rand(2, 3, *size)
    assert vae.VAENetwork(size).eval()(planes).shape == planes.shape


def test_the_loss_is_the_evidence_bound_of_torch_distributions():
    generator = torch.Generator().manual_seed(0)
    planes, given = torch.rand(2, 2, 3, 5, 7, generator=generator, dtype=torch.float64)
    mean, log_variance = torch.randn(2, 2, 4, 2, 2, generator=generator, dtype=torch.float64)
    posterior = Normal(mean, (0.5 * log_variance).exp())
    decoder = Normal(given, vae.NOISE)
    constant = decoder.log_prob(given).sum()
    bound = kl_divergence(posterior, Normal(0.0, 1.0)).sum() - (decoder.log_prob(planes).sum() - constant)
    assert vae.evidence_bound(planes, given, mean, log_variance).item() == pytest.approx(
        bound.item() / planes.numel(), rel=1e-5
    )


def test_the_gradient_of_the_loss_is_that_of_finite_differences():
    generator = torch.Generator().manual_seed(1)
    values = [torch.rand(1, 2, 2, 2, generator=generator, dtype=torch.float64) for _ in range(4)]
    for position in range(1, 4):
        point = values[position].clone().requires_grad_()
        vae.evidence_bound(*values[:position], point, *values[position + 1 :]).backward()
        for index in np.ndindex(*point.shape):
            losses = []
            for step in (1e-2, -1e-2):
                moved = values[position].clone()
                moved[index] += step
                losses.append(vae.evidence_bound(*values[:position], moved, *values[position + 1 :]).item())
            assert point.grad[index].item() == pytest.approx((losses[0] - losses[1]) / 2e-2, rel=1e-3, abs=1e-4)


def test_augmentation_turns_and_moves_as_the_paper_says(good_images):
    assert vae.window_offsets((292, 292), (256, 256)) == (5, 5)  # a crop to 282 moves the centre by 5 of 292 pixels

    class Fixed:
        def __init__(self, *values):
            self.values = list(values)

        def uniform(self, low, high):
            value = self.values.pop(0)
            assert low <= value <= high
            return value

    image = np.kron(good_images[0], np.ones((2, 2, 1), np.uint8))[:73, :73]
    shift = vae.window_offsets((73, 73), (64, 64))[0]  # 1.25
    whole = vae.augment(image, (73, 73), Fixed(0, 0, 0))
    np.testing.assert_array_equal(whole, image)
    moved = vae.augment(image, (63, 63), Fixed(0, 1.0, -1.0))  # one pixel down, one to the left
    np.testing.assert_array_equal(moved, image[6:69, 4:67])
    assert shift == pytest.approx(1.25)
    turned = vae.augment(image, (73, 73), Fixed(2.0, 0, 0))
    assert np.abs(turned[36, 36].astype(int) - image[36, 36]).max() <= 1  # the centre stays
    assert np.abs(turned[0].astype(int) - image[0]).mean() > 1


def test_the_map_is_the_smoothed_squared_norm_of_the_error():
    network = vae.VAENetwork((40, 48)).eval()
    images = torch.randint(0, 256, (2, 40, 48, 3), dtype=torch.uint8)
    planes = images.permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        maps, scores = vae.VAEScorer(network)(images)
        error = (255 * (planes - network(planes))).square().sum(1).double().numpy()
    for anomaly_map, naive in zip(maps.numpy(), error, strict=True):
        np.testing.assert_allclose(anomaly_map, gaussian_filter(naive, 4, mode="reflect", truncate=4), rtol=1e-4)
    np.testing.assert_array_equal(scores, maps.amax(dim=(1, 2)))


def test_a_step_lowers_the_loss_and_follows_from_the_seed(few, plain):
    def trained(seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = vae.VAENetwork((32, 32), latent_channels=4)
        training = vae.VAETraining(network, few, learning_rate=1e-3, batch_size=8, seed=seed, device=CPU)
        return [training.step(number, plain).item() for number in range(4)]

    losses = trained(0)
    assert losses[-1] < losses[0]
    assert trained(0) == losses != trained(1)
