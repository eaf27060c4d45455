"""Batch normalisation over processes on simulated GPUs, one a rank, beside torch's own in float64.

    torchrun --nproc_per_node 2 tests/simulated_gpu/normalise_on_ranks.py

Ends with an error if they differ, and prints what a layer asks of the device, as one JSON object.
"""

import json

import simulated_gpu
import torch
import torch.distributed as dist
from torch import nn

from cpprune.training.batch_norm import use_global_batch_norm

CHANNELS = 3
ROWS = [[3, 3], [4, 3], [5, 0], [0, 5], [0, 1], [1, 0]]


def layers():
    """The same layer twice: over the ranks in float32, and alone in float64."""
    found = [nn.BatchNorm2d(CHANNELS, eps=1e-3, momentum=0.2) for _ in range(2)]
    for layer in found:
        with torch.no_grad():
            layer.weight.copy_(torch.tensor([0.5, -2.0, 1.5]))
            layer.bias.copy_(torch.tensor([1.0, 0.0, -3.0]))
    own = nn.Sequential(found[0].cuda())
    use_global_batch_norm(own)
    return own, found[1].double()


def whole_batch(rows, number, dtype):
    """The rows of all ranks, and the gradient that comes from above, in float64."""
    generator = torch.Generator().manual_seed(number)
    x, d_y = (torch.randn(rows, CHANNELS, 4, 5, generator=generator) for _ in range(2))
    d_y = d_y + 5 if dtype == torch.bfloat16 else d_y  # a common part, which bfloat16 cannot sum
    return (x * 3 + 7).to(dtype).double(), d_y.to(dtype).double()


def captured(function):
    """Capture a function without arguments; return what replays it."""
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function()
        graph.capture_begin()
        function()
        graph.capture_end()
    torch.cuda.current_stream().wait_stream(stream)
    return graph.replay


def check(parts, dtype, order, in_graph):
    """Normalise two batches one after the other; compare all that comes of them."""
    own, exact = layers()
    start = sum(parts[: dist.get_rank()])
    rows = slice(start, start + parts[dist.get_rank()])
    x = torch.empty(len(range(*rows.indices(sum(parts)))), CHANNELS, 4, 5, device="cuda")
    x = x.to(dtype, memory_format=order).requires_grad_()
    d_y, y = torch.empty_like(x), torch.empty_like(x)

    def step():
        own.zero_grad()
        x.grad = None
        found = own(x)
        found.backward(d_y)
        with torch.no_grad():
            y.copy_(found)
            d_x.copy_(x.grad)

    d_x = torch.empty_like(x)
    kept = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    run = captured(step) if in_graph else step
    own.load_state_dict(kept)
    gradients = torch.zeros(2, CHANNELS, device="cuda")
    for number in range(2):
        whole_x, whole_d_y = whole_batch(sum(parts), number, dtype)
        with torch.no_grad():
            x.copy_(whole_x[rows])
        d_y.copy_(whole_d_y[rows])
        whole_x.requires_grad_()
        expected = exact(whole_x)
        expected.backward(whole_d_y)
        run()
        gradients += torch.stack((own[0].weight.grad, own[0].bias.grad))
        tolerance = 2e-5 if dtype == torch.float32 else 2**-7
        for found, of_all in ((y, expected.detach()), (d_x, whole_x.grad)):
            assert found.dtype == dtype
            difference = (found.cpu().double() - of_all[rows]).abs()
            most = difference.max() if len(difference) else 0
            assert most < tolerance * max(1, of_all.abs().max()), (parts, dtype, order, most)
    dist.all_reduce(gradients)
    for found, of_all in (
        *zip(gradients, (exact.weight.grad, exact.bias.grad), strict=True),
        (own[0].running_mean, exact.running_mean),
        (own[0].running_var, exact.running_var),
    ):
        tolerance = 2e-5 if dtype == torch.float32 else 2e-4
        difference = (found.cpu().double() - of_all).abs()
        assert (difference < tolerance * (1 + of_all.abs())).all(), (parts, dtype, order, found)


def asked():
    """Kernels and collectives of a layer, forward and backward."""
    own, _ = layers()
    x = torch.randn(4, CHANNELS, 4, 5, device="cuda").requires_grad_()
    parts = {}
    with simulated_gpu.watch() as forward:
        y = own(x)
    d_y = torch.ones_like(y)
    with simulated_gpu.watch() as backward:
        torch.autograd.grad(y, [x, *own.parameters()], d_y)
    for name, watched in (("forward", forward), ("backward", backward)):
        collectives = sum(operator.name.startswith("c10d.") for operator in watched.operators)
        kernels = watched.kernels - collectives
        parts[name] = {"kernels": kernels, "collectives": collectives, "waits": watched.waits}
    return parts


if __name__ == "__main__":
    dist.init_process_group("nccl")
    torch.cuda.set_device(dist.get_rank())
    for rows_of_ranks in ROWS:
        for precision in (torch.float32, torch.bfloat16):
            for layout in (torch.channels_last, torch.contiguous_format):
                check(rows_of_ranks, precision, layout, in_graph=False)
    check([4, 3], torch.bfloat16, torch.channels_last, in_graph=True)
    check([0, 5], torch.bfloat16, torch.channels_last, in_graph=True)
    if dist.get_rank() == 0:
        print(json.dumps(asked()), flush=True)
    else:
        asked()
    dist.destroy_process_group()
