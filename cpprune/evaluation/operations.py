"""Operations of a network: the multiply-accumulates of its operators, however they are called.

MACs (`cpprune.evaluation.complexity`) are those of DCASE, which torchinfo derives from layers and their
parameters. It finds no functional convolution, attention or parametrised weight, and takes a linear
layer over feature maps for one that is applied once. Here, operators are counted as they run.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cpprune.deps.torch import Operators

# MACs and operations that differ by less than this part of them are shown as one number: torchinfo also
# counts a product for each parameter of a norm and an output of each bias.
AGREEMENT = 0.01


@dataclass(frozen=True)
class Product:
    """The multiply-accumulates of an operator: the product of these sizes.

    Attributes:
        operator: its name in torch.ops.aten.
        sizes: of the result and of what is summed over.
    """

    operator: str
    sizes: tuple[int, ...]


def count_operations(network: nn.Module, input_shape: Sequence[int]) -> int:
    """Return the multiply-accumulates of the operators of one forward pass; see `products`."""
    return sum(math.prod(product.sizes) for product in products(network, input_shape))


def products(network: nn.Module, input_shape: Sequence[int]) -> list[Product]:
    """Return the products that a forward pass consists of, on one input, in the order of execution.

    They are those of convolutions, matrix products, attention and recurrent layers. Sums, elementwise
    products, norms, activations, pooling, Fourier transforms and operators of other libraries than
    torch are not counted.

    Args:
        network: any module; it is not changed.
        input_shape: shape of one input, without the batch.
    """
    twin = copy.deepcopy(network).float().cpu().eval()
    found: list[Product] = []

    def seen(operator: str, args: Sequence[Any], result: object) -> None:
        found.extend(Product(operator, sizes) for sizes in _sizes(operator, args, result))

    with torch.no_grad(), _attention_in_parts(), Operators(seen):
        twin(torch.zeros(1, *input_shape))
    return found


def operations_text(macs: int, operations: int | None) -> str:
    """Return " (123 operations)" to go behind the MACs, or "" if both agree or they are not known."""
    if operations is None or not differ(macs, operations):
        return ""
    return f" ({operations:,} operations)"


def differ(macs: int, operations: int) -> bool:
    """Whether MACs and operations are so different that both have to be shown."""
    return abs(macs - operations) > AGREEMENT * max(macs, operations)


@contextmanager
def _attention_in_parts() -> Iterator[None]:
    """Keep transformer layers from being computed as one operator."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


Sizes = tuple[int, ...]


def _sizes(operator: str, args: Sequence[Any], result: object) -> list[Sizes]:
    """Return the sizes of the products that an operator consists of; none if it is not counted."""
    if operator in FACTORS:
        return [_matrix_product(*(args[position] for position in FACTORS[operator]))]
    if operator in ("convolution", "_convolution"):
        x, weight, transposed = args[0], args[1], args[6]
        assert isinstance(result, Tensor)
        return [(*(x if transposed else result).shape, *weight.shape[1:])]
    if operator == "mkldnn_rnn_layer":  # of an LSTM: x [T, B, I], weights [4·H, I] and [4·H, H]
        x, *weights = args[:3]
        return [(*x.shape[:2], *weight.shape) for weight in weights]
    if operator.startswith("_scaled_dot_product"):
        # queries [B, H, L, E], keys and values [B, H, S, E]
        queries, keys, values = (tuple(tensor.shape) for tensor in args[:3])
        return [(*queries, keys[-2]), (*queries[:-1], *values[-2:])]
    return []


def _matrix_product(a: Tensor, b: Tensor) -> Sizes:
    return (*a.shape, *b.shape[max(1, a.ndim - 1) :])


# Positions of the factors among the arguments of an operator.
FACTORS: dict[str, tuple[int, int]] = {
    **dict.fromkeys(("mm", "bmm", "mv", "dot", "vdot"), (0, 1)),
    **dict.fromkeys(("addmm", "baddbmm", "addbmm", "addmv"), (1, 2)),
}
