"""The moving average of the weights."""

import copy

import torch
from torch import nn

from cpprune.models.quantized import quantize
from cpprune.training.ema import Average


def test_it_follows_by_its_decay() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    average = Average(network, 0.9)
    expected = {k: v.double() for k, v in copy.deepcopy(network.state_dict()).items()}
    generator = torch.Generator().manual_seed(0)
    for step in range(200):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.normal_(generator=generator)
            network[1].running_mean.normal_(generator=generator)
            network[1].num_batches_tracked.fill_(step)
        average.follow(network, torch.tensor(float(step)))
        decay = min(0.9, (1 + step) / (10 + step))
        for name, tensor in network.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * tensor.double()
    found = average.network.state_dict()
    assert found["1.num_batches_tracked"] == 199
    for name in expected.keys() - {"1.num_batches_tracked"}:
        torch.testing.assert_close(found[name].double(), expected[name], rtol=1e-5, atol=1e-6)
    assert not average.network.training
    assert network.training


def test_it_takes_ranges_of_activations_over() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1))
    ranges = quantize(network, (1, 4, 4), []).ranges
    average = Average(network, 0.9)
    network.train()(torch.ones(1, 1, 4, 4))
    average.follow(network, torch.tensor(100.0))
    assert ranges.any()
    assert torch.equal(average.network.fake_quantize.ranges, ranges)
