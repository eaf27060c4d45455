"""The optimizer's state by parameter name, for checkpoints and pruning, sharded or not."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cpprune.deps.deepspeed import is_zero_optimizer
from cpprune.distributed import deepspeed


def read_moments(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state as {"parameter/key": tensor}, whole and on the host.

    Under ZeRO every rank has to call it.

    Args:
        network: unwrapped.
        optimizer: over the network's trainable parameters.
    """
    if is_zero_optimizer(optimizer):
        return deepspeed.get_full_optimizer_state(network, optimizer)
    names = _names(network, optimizer)
    state = optimizer.state_dict()["state"]
    return {
        f"{names[number]}/{key}": torch.as_tensor(value).detach().cpu().contiguous()
        for number, values in state.items()
        for key, value in values.items()
        if value is not None  # SGD has a momentum only after its first step
    }


def write_moments(
    network: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Give the optimizer the state that `read_moments` returned, of any number of ranks.

    Raises:
        KeyError: the state is of another network's parameters.
    """
    if not tensors:
        return
    if is_zero_optimizer(optimizer):
        deepspeed.set_full_optimizer_state(network, optimizer, tensors)
        return
    trained = dict(network.named_parameters())
    numbers = {name: number for number, name in enumerate(_names(network, optimizer))}
    state: dict[int, dict[str, Tensor]] = {}
    for full, value in tensors.items():
        name, key = full.rsplit("/", 1)
        # Fused optimizers go through memory: the state has to lie there as its parameter does.
        own = torch.empty_like(trained[name]).copy_(value) if value.ndim else value.clone()
        state.setdefault(numbers[name], {})[key] = own
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )


def _names(network: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Return the names of an optimizer's parameters, in the order in which it numbers them."""
    names = {parameter: name for name, parameter in network.named_parameters()}
    return [names[p] for group in optimizer.param_groups for p in group["params"]]
