from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from flawmap.detectors.trained import itae
from flawmap.errors import ParameterError

CPU = torch.device("cpu")


def test_the_network_is_a_u_net_of_four_levels():
    network = itae.UNet(width=64)
    n = [1, 64, 128, 256, 512, 1024]
    down = sum(9 * a * b + 9 * b * b + 4 * b for a, b in pairwise(n))
    up = sum(4 * 2 * b * b + b + 9 * 2 * b * b + 9 * b * b + 4 * b for b in n[1:-1])
    assert sum(parameter.numel() for parameter in network.parameters()) == down + up + 64 * 3 + 3
    small = itae.UNet(width=4).eval()
    assert small(torch.rand(2, 1, 32, 48)).shape == (2, 3, 32, 48)


def test_colour_and_orientation_are_taken_away():
    planes = torch.rand(2, 3, 16, 16)
    for rotation in range(4):
        expected = np.rot90(planes.numpy().mean(axis=1), rotation, axes=(1, 2))
        np.testing.assert_allclose(itae.take_away(planes, rotation)[:, 0], expected, rtol=1e-5)


def test_the_score_is_the_mean_of_the_errors_in_units_of_the_usual_ones():
    network = itae.UNet(width=2).eval()
    scorer = itae.ITAEScorer(network)
    images = torch.randint(0, 256, (3, 16, 16, 3), dtype=torch.uint8)
    typical = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.3, 0.2, 0.1, 0.4]])
    scorer.set_typical(typical)
    with torch.inference_mode():
        (scores,) = scorer(images)
        for score, image in zip(scores, images, strict=True):
            planes = image.permute(2, 0, 1)[None] / 255
            restored = [network(torch.rot90(planes.mean(1, keepdim=True), turn, (2, 3))) for turn in range(4)]
            errors = [(planes - back).abs().mean().item() for back in restored]
            assert score.item() == pytest.approx(np.mean(np.array(errors) / [0.2, 0.2, 0.2, 0.4]), rel=1e-4)


@pytest.mark.parametrize("size", [(32, 64), (40, 40)])
def test_other_sizes_are_refused(size):
    with pytest.raises(ParameterError, match="square ones with sides in multiples of 16"):
        itae.check_size(size)
    itae.check_size((48, 48))


def test_a_step_lowers_the_loss_and_follows_from_the_seed(few, plain):
    def trained(seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = itae.UNet(width=4)
        training = itae.ITAETraining(
            network, few, learning_rate=1e-2, batch_size=4, epoch_steps=3, seed=seed, device=CPU
        )
        return [training.step(number, plain).item() for number in range(8)], training

    losses, training = trained(0)
    assert losses[-1] < losses[0]
    assert trained(0)[0] == losses != trained(1)[0]
    training.step(3 * 50, plain)
    assert training.optimizers[0].param_groups[0]["lr"] == 5e-3
