"""What a network costs at other widths: parameters, MACs, operations and bytes of its export.

Shapes: G channel groups, R products, D sizes of a product that depend on widths, N candidates.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from cpprune.evaluation.complexity import macs_per_parameter
from cpprune.evaluation.operations import products
from cpprune.export.sizes import exported_bytes, resized, stored_sizes
from cpprune.models.changes import change_attributes
from cpprune.models.example import example_input
from cpprune.pruning.groups import ChannelGroup, dependency_graph, remove_channels
from shards.errors import UserError

if TYPE_CHECKING:
    from cpprune.export.metadata import Precision

Widths = NDArray[np.int64]
Floats = NDArray[np.float64]
Sizes = list[tuple[int, ...]]


@dataclass(frozen=True)
class Products:
    """Products of sizes that are linear in the widths: the entries of tensors, the cost of operators.

    Attributes:
        fixed: product of the sizes that no width changes, [R].
        sizes: the others, at the widths that the model was made from, [R, D] (1 where there are fewer).
        slopes: how each of these grows with each width, [R, D, G].
    """

    fixed: Floats
    sizes: Floats
    slopes: Floats

    def at(self, change_NG: Floats) -> Floats:
        """Return the products where the widths are changed by so much, [N, R]."""
        sizes = self.sizes + np.einsum("rdg,ng->nrd", self.slopes, change_NG)
        values: Floats = self.fixed * sizes.prod(2)
        return values

    def merged(self) -> Products:
        """Return fewer products with the same sum: those that grow alike become one."""
        alike = np.concatenate((self.sizes[:, :, None], self.slopes), 2).reshape(
            len(self.fixed), -1
        )
        _, first, which = np.unique(alike, axis=0, return_index=True, return_inverse=True)
        fixed: Floats = np.bincount(which.reshape(-1), self.fixed).astype(np.float64)
        return Products(fixed, self.sizes[first], self.slopes[first])


@dataclass(frozen=True)
class CostModel:
    """Parameters, MACs, operations and bytes of a network as a function of the widths of its groups.

    Attributes:
        widths: of the network it was made from, [G].
        parameters: entries of every parameter.
        factors: MACs for each entry of a parameter, [R].
        operations: of every operator that is counted; None if they were not looked at.
        exported: bytes of every tensor of an export, by its precision.
    """

    widths: Widths
    parameters: Products
    factors: Floats
    operations: Products | None
    exported: dict[Precision, Products]

    def cost(self, widths_NG: Widths) -> dict[str, Floats]:
        """Return `params`, `macs` and what else it knows (see `Limit.quantity`), [N] each."""
        change = (widths_NG - self.widths).astype(np.float64)
        entries = self.parameters.at(change)
        costs = {"params": entries.sum(1), "macs": entries @ self.factors}
        if self.operations is not None:
            costs["operations"] = self.operations.at(change).sum(1)
        for precision, stored in self.exported.items():
            costs[f"exported@{precision}"] = stored.at(change).sum(1)
        return costs


def cost_model(
    network: nn.Module,
    input_shape: Sequence[int],
    groups: Sequence[ChannelGroup],
    operations: bool = False,
    exported: Sequence[Precision] = (),
) -> CostModel:
    """Fit the cost model by removing one pruning unit of each group from a copy.

    It is exact for any architecture whose dimensions are linear in the widths.

    Args:
        network: unwrapped module; it is not changed.
        input_shape: shape of one input, without the batch.
        groups: of the network.
        operations: count them too, which runs every copy.
        exported: precisions of exports whose bytes are counted too, which exports the network twice for
            each.

    Raises:
        UserError: a network computes other operators when it is narrower, or an export stores other
            tensors, so that they cannot be foreseen; or packages to export are not installed.
    """
    shapes = _parameter_shapes(network)
    computed = _operator_sizes(network, input_shape) if operations else {}
    narrower: list[dict[str, tuple[int, ...]]] = []
    narrower_computed: list[dict[str, tuple[int, ...]]] = []
    states: list[dict[str, tuple[int, ...]]] = []
    for group in groups:
        if group.units == 1:  # it cannot get narrower
            narrower.append(shapes)
            narrower_computed.append(computed)
            states.append(_shapes(network.state_dict()))
            continue
        twin = _narrower(network, input_shape, [group])
        states.append(_shapes(twin.state_dict()))
        narrower.append(_parameter_shapes(twin))
        if operations:
            found = _operator_sizes(twin, input_shape)
            if found.keys() != computed.keys():
                raise UserError(
                    f"prune.budget: operations cannot be foreseen, since the network computes others "
                    f"when {group.layer} is narrower; set a limit on params or macs"
                )
            narrower_computed.append(found)
    blocks = [group.blocks for group in groups]
    per_parameter = macs_per_parameter(network, input_shape)
    return CostModel(
        np.array([group.width for group in groups], np.int64),
        _linear(shapes, narrower, blocks),
        np.array([per_parameter[name] for name in shapes]),
        _linear(computed, narrower_computed, blocks) if operations else None,
        {p: _stored(network, input_shape, groups, states, p) for p in exported},
    )


def _stored(
    network: nn.Module,
    input_shape: Sequence[int],
    groups: Sequence[ChannelGroup],
    narrower: Sequence[dict[str, tuple[int, ...]]],
    precision: Precision,
) -> Products:
    """Return the bytes of every tensor of an export, checked against that of a narrower network.

    Args:
        network: the network.
        input_shape: of it.
        groups: of its channels, G.
        narrower: shapes in G state dicts; the group of that number has lost a pruning unit, if it has
            more than one.
        precision: of the export.

    Raises:
        UserError: they are not what the export of a narrower network stores.
    """
    stored = stored_sizes(network, input_shape, precision)
    after = [resized(stored, _shapes(network.state_dict()), shapes) for shapes in narrower]
    found = _linear(stored, after, [group.blocks for group in groups]).merged()
    lost = [group for group in groups if group.units > 1]
    least = _narrower(network, input_shape, lost)
    change = np.array([[-group.blocks * (group.units > 1) for group in groups]], np.float64)
    if found.at(change).sum() != exported_bytes(least, input_shape, precision):
        raise UserError(
            f"prune.budget: exported bytes in {precision} cannot be foreseen, since the ONNX file of "
            "a narrower network holds other tensors; set a limit on params or bytes"
        )
    return found


def _narrower(
    network: nn.Module, input_shape: Sequence[int], groups: Sequence[ChannelGroup]
) -> nn.Module:
    """Return a copy of a network that has lost the first pruning unit of each group."""
    twin = copy.deepcopy(network)
    with dependency_graph(twin, example_input(twin, input_shape)) as graph:
        remove_channels(graph, twin, {group.layer: group.channels([0]) for group in groups})
    for group in groups:
        change_attributes(twin, group.attributes_of(group.units - 1))
    return twin


def _parameter_shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return _shapes(dict(network.named_parameters()))


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _operator_sizes(network: nn.Module, input_shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
    found = products(network, input_shape)
    return {
        f"{number} {product.operator} {len(product.sizes)}": product.sizes
        for number, product in enumerate(found)
    }


def _linear(
    before: dict[str, tuple[int, ...]],
    after: Sequence[dict[str, tuple[int, ...]]],
    blocks: Sequence[int],
) -> Products:
    """Return the products of sizes before and, for each group, after it has lost `blocks` channels."""
    rows = []
    for name, sizes in before.items():
        slopes = np.array([list(own[name]) for own in after], np.float64)
        slopes = (np.array(sizes, np.float64) - slopes).T / np.array(blocks)  # [sizes, G]
        varies = slopes.any(1)
        fixed = math.prod(size for size, own in zip(sizes, varies, strict=True) if not own)
        rows.append((fixed, np.array(sizes, np.float64)[varies], slopes[varies]))
    most = max((len(sizes) for _, sizes, _ in rows), default=0)
    found = Products(
        np.array([fixed for fixed, _, _ in rows], np.float64),
        np.ones((len(rows), most)),
        np.zeros((len(rows), most, len(blocks))),
    )
    for row, (_, sizes, slopes) in enumerate(rows):
        found.sizes[row, : len(sizes)] = sizes
        found.slopes[row, : len(sizes)] = slopes
    return found
