"""A compiled network whose batch statistics are those of all ranks."""

import pytest
import torch
import torch.distributed as dist

import cpprune
from cpprune.training.batch_norm import use_global_batch_norm
from cpprune.training.engine import Forward

pytestmark = pytest.mark.slow  # a minute of a C++ compiler


def differences():
    """Return how far the compiled network is from the plain one, in logits, gradients and buffers."""
    torch.manual_seed(0)
    network = cpprune.build_model("cp_resnet", widths=[4, 4, 4]).train()
    use_global_batch_norm(network)
    buffers = {name: b.clone() for name, b in network.named_buffers()}
    torch.manual_seed(dist.get_rank())
    x = torch.randn(2 + dist.get_rank(), 1, 32, 24).contiguous(memory_format=torch.channels_last)
    answers = []
    for compiled in (False, True):
        network.load_state_dict(buffers, strict=False)
        network.zero_grad()
        logits = Forward(network, "no", compiled)(x)
        logits.square().sum().backward()
        found = {name: p.grad.clone() for name, p in network.named_parameters()}
        found |= {name: b.clone().float() for name, b in network.named_buffers()}
        answers.append({**found, "logits": logits.detach()})
    plain, compiled = answers
    return {
        name: float((plain[name] - compiled[name]).abs().max() / (1 + plain[name].abs().max()))
        for name in plain
    }


def test_compiled_it_computes_the_same(two):
    for answer in two.call(differences):
        assert max(answer.values()) < 1e-4, answer
        assert len(answer) > 50
