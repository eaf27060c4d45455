"""The optimizer's state by name, in whatever order its tensors lie in memory."""

import copy

import pytest
import torch
from networks import SHAPE, plan_for, randomised

import cpprune
from cpprune.pruning.surgery import apply_plan, carry, kept_entries
from cpprune.training.config import OptimConfig
from cpprune.training.optim import build_optimizer
from cpprune.training.optimizer_state import read_moments, write_moments


def step(network, optimizer, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        gradient = torch.randn(parameter.shape, generator=generator)
        parameter.grad = torch.empty_like(parameter).copy_(gradient)
    optimizer.step()


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_state_that_was_written_back_steps_on_alike(name):
    """Fused optimizers go through memory, so this fails when the state lies otherwise."""
    config = OptimConfig(name=name, lr=1e-2)
    network = randomised(cpprune.build_model("cp_resnet", widths=[4, 5, 6]))
    plain = copy.deepcopy(network)
    network.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(config, network.parameters())
    reference = build_optimizer(config, plain.parameters(), fused=False)
    for seed in range(2):
        step(network, optimizer, seed)
        step(plain, reference, seed)
    for _ in range(2):  # written back, as when a run goes on; then cut, with what stays
        moments = read_moments(network, optimizer)
        plan = plan_for(network, SHAPE, ratio=0.4)
        kept = kept_entries(network, SHAPE, plan)
        for cut in (network, plain):
            apply_plan(cut, SHAPE, plan)
        network.to(memory_format=torch.channels_last)
        moments = carry(moments, kept)
        optimizer = build_optimizer(config, network.parameters())
        reference = build_optimizer(config, plain.parameters(), fused=False)
        write_moments(network, optimizer, moments)
        write_moments(plain, reference, moments)
        step(network, optimizer, 3)
        step(plain, reference, 3)
        for (_, one), other in zip(network.named_parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_state_of_two_groups_has_the_names_of_its_parameters():
    network = randomised(cpprune.build_model("cp_resnet", widths=[4, 5, 6]))
    named = dict(network.named_parameters())
    kept = [p for name, p in named.items() if not name.startswith("feed_forward")]
    config = OptimConfig(kept_lr_factor=0.5)
    optimizer = build_optimizer(config, named.values(), kept=kept)
    step(network, optimizer, 0)
    state = read_moments(network, optimizer)
    for name, parameter in named.items():
        torch.testing.assert_close(
            state[f"{name}/exp_avg"], 0.1 * parameter.grad, rtol=1e-3, atol=1e-2
        )
        assert state[f"{name}/exp_avg"].shape == parameter.shape
    again = build_optimizer(config, named.values(), kept=kept)
    write_moments(network, again, state)
    assert all(torch.equal(state[key], t) for key, t in read_moments(network, again).items())


def test_a_gradient_that_is_no_number_changes_nothing():
    network = cpprune.build_model("cp_resnet", widths=[4, 5, 6])
    optimizer = build_optimizer(OptimConfig(), network.parameters())
    step(network, optimizer, 0)
    before = copy.deepcopy(network.state_dict()), read_moments(network, optimizer)
    next(network.parameters()).grad.fill_(torch.nan)
    vars(optimizer).update(grad_scale=None, found_inf=torch.tensor(1.0))
    optimizer.step()
    after = network.state_dict(), read_moments(network, optimizer)
    for one, other in zip(before, after, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)
