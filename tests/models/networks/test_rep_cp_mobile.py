"""Re-parametrised CP-Mobile: its kernels in float64, and one function before and after fusing."""

import json

import pytest
import torch
from networks import SHAPE, randomised
from torch import nn
from torch.nn import functional as F

import cpprune
from cpprune.evaluation.complexity import count_macs, count_parameters
from cpprune.models.networks.rep_cp_mobile import KernelSum


@pytest.mark.parametrize(
    ("groups", "size", "stride"), [(4, 3, (1, 1)), (4, 3, (1, 2)), (1, 1, (1, 1))]
)
def test_a_sum_of_kernels_is_a_sum_of_convolutions(groups, size, stride):
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(4, 4, size, stride, size // 2, groups=groups, bias=False).double()
    total = KernelSum(conv).double()
    for tensor in (conv.weight, *total.parameters()):
        tensor.data.normal_(generator=generator)
    x = torch.randn(2, 4, 7, 9, generator=generator, dtype=torch.float64)
    expected = torch.zeros(())
    for kernel, scale in zip([conv.weight, *total.kernels], total.scales, strict=False):
        padding = kernel.shape[2] // 2, kernel.shape[3] // 2
        y = F.conv2d(x, kernel, None, stride, padding, groups=groups)
        expected = expected + scale.view(1, -1, 1, 1) * y
    if groups == 4 and stride == (1, 1):
        assert len(total.scales) == 5
        expected = expected + total.scales[-1].view(1, -1, 1, 1) * x
    else:
        assert len(total.scales) == 1 + len(total.kernels)
    actual = F.conv2d(x, total(conv.weight), None, stride, size // 2, groups=groups)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("training", [True, False])
def test_fused_it_is_cp_mobile_with_the_same_outputs(training):
    network = randomised(cpprune.build_model("rep_cp_mobile", base_channels=8)).train(training)
    plain = cpprune.build_model("cp_mobile", base_channels=8).train(training)
    assert count_parameters(network) > 1.5 * count_parameters(plain)
    x = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(1))
    expected = network(x).detach()
    assert network.family_when_fused() == "cp_mobile"
    plain.load_state_dict(network.fused(network.state_dict()))
    if training:  # the statistics have moved on, and do not count
        torch.testing.assert_close(plain(x), expected, rtol=1e-4, atol=1e-5)
    else:
        torch.testing.assert_close(plain(x), expected, rtol=1e-5, atol=1e-6)


def test_every_kernel_is_trained():
    network = cpprune.build_model("rep_cp_mobile", base_channels=8)
    F.cross_entropy(network(torch.randn(4, *SHAPE)), torch.arange(4)).backward()
    assert all(p.grad.abs().max() > 0 for p in network.parameters())


@pytest.mark.slow
def test_it_is_counted_saved_and_pruned_as_what_it_is_fused_to(cli, refused, scenes, tmp_path):
    model = ["--model.name", "rep_cp_mobile", "--model.base_channels", 8]
    settings = ["--data.path", scenes, "--data.train_fraction", 0.25, "--train.batch_size", 16]
    settings += ["--train.epochs", 1, "--run", tmp_path / "run"]
    plain = cpprune.build_model("cp_mobile", base_channels=8)
    shown = cli("info", *model, "--features.preset", "dcase24", "--json").json
    assert shown["parameters"] == count_parameters(plain)
    assert shown["macs"] == count_macs(plain, (1, 256, 65))
    refused("prune", *model, *settings, "--prune.ratio", 0.5, names=["rep_cp_mobile", "--init"])
    assert cli("train", *model, *settings).status == 0
    description = json.loads((tmp_path / "run/model/model.json").read_text())
    assert description["architecture"] == "cp_mobile"
    assert description["weights"]["parameters"] == count_parameters(plain)
    last = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert last["parameters"] == count_parameters(plain)
    # What was measured in training is what the fused network does.
    model_last = tmp_path / "run/model_last"
    alone = cli("evaluate", model_last, "--data", scenes, "--split", "val", "--json").json
    assert alone["log_loss"] == pytest.approx(last["val_log_loss"], abs=1e-6)
