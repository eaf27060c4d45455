"""Complexity of a network: parameters, MACs, operations, bytes, receptive field, latency."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from statistics import median

import torch
from torch import nn

from cpprune.evaluation import dcase
from cpprune.evaluation.dtypes import BYTES_PER_PARAMETER
from cpprune.evaluation.operations import count_operations
from cpprune.models.example import memory_format
from cpprune.models.resize import layer_widths

# Latency is measured in BLOCKS blocks of about BLOCK_SECONDS each.
WARM_UP_RUNS = 10
BLOCKS = 20
BLOCK_SECONDS = 0.02
BLOCK_RUNS = (5, 100)


def count_parameters(network: nn.Module) -> int:
    """Return the number of parameters; buffers are not counted."""
    return sum(p.numel() for p in network.parameters())


def count_macs(network: nn.Module, input_shape: Sequence[int]) -> int:
    """Return multiply-accumulates of one forward pass, as DCASE counts them (torchinfo, fp32).

    `cpprune.evaluation.operations` counts what this leaves out.

    Args:
        network: any module; it is not changed.
        input_shape: shape of one input, without the batch, e.g. (1, 256, 44).
    """
    import torchinfo

    twin = copy.deepcopy(network).float().cpu().eval()
    with torch.no_grad():
        summary = torchinfo.summary(twin, (1, *input_shape), device="cpu", verbose=0)
    return int(summary.total_mult_adds)


def macs_per_parameter(network: nn.Module, input_shape: Sequence[int]) -> dict[str, float]:
    """Return the MACs per entry of each parameter, as torchinfo counts them.

    Args:
        network: any module; it is not changed.
        input_shape: shape of one input, without the batch.
    """
    import torchinfo

    twin = copy.deepcopy(network).float().cpu().eval()
    names = {module: name for name, module in twin.named_modules()}
    with torch.no_grad():
        summary = torchinfo.summary(twin, (1, *input_shape), device="cpu", verbose=0)
    factors = {name: 0.0 for name, _ in twin.named_parameters()}
    for layer in summary.summary_list:
        own = dict(layer.module.named_parameters(recurse=False))
        entries = sum(p.numel() for p in own.values())
        if layer.is_leaf_layer and entries:
            prefix = names[layer.module]
            for name in own:
                factors[f"{prefix}.{name}" if prefix else name] += layer.macs / entries
    return factors


def layer_costs(network: nn.Module, input_shape: Sequence[int]) -> dict[str, tuple[int, int, int]]:
    """Return width, parameters and macs of every convolution and linear layer by its name.

    Args:
        network: any module; it is not changed.
        input_shape: shape of one input, without the batch.
    """
    factors = macs_per_parameter(network, input_shape)
    layers = {}
    for name, width in layer_widths(network).items():
        own = dict(network.get_submodule(name).named_parameters())
        macs = sum(p.numel() * factors[f"{name}.{key}"] for key, p in own.items())
        layers[name] = (width, sum(p.numel() for p in own.values()), round(macs))
    return layers


def receptive_field(network: nn.Module) -> tuple[int, int]:
    """Return the receptive field at the input, in rows (mel bins) and columns (frames).

    Follows convolutions and pooling in the order of definition: exact where parallel branches are
    1×1, as in CP-ResNet.
    """
    field, jump = [1, 1], [1, 1]
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
            kernel, stride = _pair(module.kernel_size), _pair(module.stride)
            for axis in range(2):
                field[axis] += (kernel[axis] - 1) * jump[axis]
                jump[axis] *= stride[axis]
    return field[0], field[1]


def latency(network: nn.Module, input_shape: Sequence[int], device: torch.device) -> float:
    """Measure how many milliseconds the network takes for one input.

    The network alone, without its front end: batch 1, float32, evaluation mode, no gradients, channels
    last if it computes in that, with PyTorch's number of threads. The smallest median of several blocks
    of runs is returned, since other processes can only slow a block down.

    Args:
        network: any module; it is not changed.
        input_shape: shape of one input, without the batch.
        device: to measure on.
    """
    twin = copy.deepcopy(network).float().eval()
    x = torch.randn(1, *input_shape, generator=torch.Generator().manual_seed(0)).to(device)
    twin.to(device)

    def run() -> float:
        _synchronise(device)
        begin = time.perf_counter()
        twin(x)
        _synchronise(device)
        return time.perf_counter() - begin

    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        layout = memory_format(twin, x)
        twin.to(memory_format=layout)
        x = x.to(memory_format=layout)
        pace = median(run() for _ in range(WARM_UP_RUNS))
        fewest, most = BLOCK_RUNS
        runs = min(max(round(BLOCK_SECONDS / pace), fewest), most)
        return 1000 * min(median(run() for _ in range(runs)) for _ in range(BLOCKS))


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def complexity(network: nn.Module, input_shape: Sequence[int]) -> dcase.Complexity:
    """Return parameters, macs, operations, bytes by dtype, receptive field and DCASE's limits."""
    parameters = count_parameters(network)
    macs = count_macs(network, input_shape)
    size = {dtype: parameters * width for dtype, width in BYTES_PER_PARAMETER.items()}
    rows, columns = receptive_field(network)
    return {
        "parameters": parameters,
        "macs": macs,
        "operations": count_operations(network, input_shape),
        "bytes": size,
        "receptive_field": {"mel_bins": rows, "frames": columns},
        "limits": dcase.limits(macs, size),
    }


def _pair(value: int | tuple[int, ...] | None) -> tuple[int, int]:
    if isinstance(value, tuple):
        return value[0], value[1]
    assert value is not None
    return value, value
