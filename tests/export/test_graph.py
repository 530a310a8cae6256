from __future__ import annotations

import numpy as np
import pytest
import torch

from flawmap.decision import Decision
from flawmap.export.graph import GraphNetwork


def test_the_model_itself_is_left_alone(small_model, good_images):
    before = small_model.distances(good_images[:1])
    for tensor in small_model.network(for_graph=True).features.state_dict().values():
        tensor.zero_()
    assert np.array_equal(small_model.distances(good_images[:1]), before)


@pytest.mark.parametrize("group_sizes", [None, np.repeat(np.float32([3, 1]), 6)])
def test_labels_and_p_values_of_the_graph_are_those_of_the_decision(group_sizes):
    rng = np.random.default_rng(0)
    scores = rng.gamma(4, size=12).astype(np.float32)
    decision = Decision(scores, np.zeros(0, np.float32), group_sizes=group_sizes).at_rate(0.3)
    queries = np.concatenate([scores, rng.gamma(4, 2, size=20).astype(np.float32), np.float32([0, 1e6])])
    network = GraphNetwork(Echo(), (slice(None), slice(None)), decision)
    _, found, p_values, labels = network(torch.from_numpy(queries)[:, None, None])
    assert found.tolist() == queries.tolist()
    np.testing.assert_allclose(p_values, [decision.p_value(score) for score in queries], rtol=1e-6)
    assert labels.tolist() == [decision.label(score) for score in queries]
    assert 0 < sum(labels.tolist()) < len(queries)


class Echo(torch.nn.Module):
    """A network whose images are their scores."""

    def forward(self, images):
        return images, images[:, 0, 0]
