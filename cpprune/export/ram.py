"""Memory of a network in C, from its structure alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from cpprune.export.sizes import Shape, as_loaded, in_precision, resized, traced
from cpprune.export.target import targets
from cpprune.models.quantized import is_quantized

if TYPE_CHECKING:
    import onnx

    from cpprune.export.metadata import Precision


def ram_bytes(network: nn.Module, input_shape: Sequence[int], precision: Precision) -> int:
    """Return `bytes.ram` of a network in C that takes features: of all its buffers at once.

    Layers are in float32 as for `exported_bytes`. The features themselves and the front end are not
    counted, since no cut changes them.

    Args:
        network: any module, fake-quantised or not; it is not changed.
        input_shape: shape of one input, without the batch.
        precision: fp32 or int8.

    Raises:
        UserError: the network cannot be exported, or packages for it are not installed.
    """
    targets()["c"].require(f"the memory of an export in {precision}")

    from cpprune.export.integer_operators import with_integer_operators
    from cpprune.export.qdq import export_quantized

    if is_quantized(network) and precision == "int8":
        return _ram(with_integer_operators(export_quantized(as_loaded(network), input_shape)))
    return _ram(in_precision(traced(network, input_shape), input_shape, precision, integer=True))


class Memory:
    """`ram_bytes` of networks that are cut from one: quicker, because that one alone is traced.

    The tensors of its graph are given the sizes that they have in a narrower network. Whether that is
    what the narrower one's own graph needs is tried once.

    Args:
        network: as for `ram_bytes`.
        input_shape: as for `ram_bytes`.
        precision: as for `ram_bytes`.
    """

    def __init__(
        self, network: nn.Module, input_shape: Sequence[int], precision: Precision
    ) -> None:
        targets()["c"].require(f"the memory of an export in {precision}")
        self.input_shape, self.precision = input_shape, precision
        self.shapes = _shapes(network)
        self.right: bool | None = False if is_quantized(network) else None
        self.graph = None if is_quantized(network) else traced(network, input_shape)

    def of(self, narrower: nn.Module) -> int:
        """Return the RAM of the network, or of one that is cut from it, in bytes."""
        found = self._foreseen(_shapes(narrower)) if self.right is not False else None
        if found is not None and self.right:
            return found
        own = ram_bytes(narrower, self.input_shape, self.precision)
        if self.right is None and _shapes(narrower) != self.shapes:
            self.right = own == found
        return own

    def _foreseen(self, shapes: Mapping[str, Shape]) -> int | None:
        assert self.graph is not None
        try:
            graph = _with_sizes(self.graph, self.shapes, shapes)
            return _ram(in_precision(graph, self.input_shape, self.precision, integer=True))
        except Exception:  # onnxruntime has many: the graph is none with these sizes
            return None


def _ram(graph: onnx.ModelProto) -> int:
    from cpprune.export.c.source import generate, simplify

    return generate(simplify(graph), "network").ram


def _with_sizes(
    graph: onnx.ModelProto, before: Mapping[str, Shape], after: Mapping[str, Shape]
) -> onnx.ModelProto:
    """Return a graph whose tensors are as large as those of a network of other widths."""
    import onnx

    made = onnx.ModelProto()
    made.CopyFrom(graph)
    constants = {c.name: onnx.numpy_helper.to_array(c) for c in graph.graph.initializer}
    stored = {name: (array.itemsize, *array.shape) for name, array in constants.items()}
    sizes = resized(stored, before, after)
    del made.graph.initializer[:]
    for name, array in constants.items():
        if sizes[name] != stored[name]:
            array = np.resize(array, sizes[name][1:])
        made.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    for node in made.graph.node:  # depthwise convolutions have as many groups as channels
        for attribute in node.attribute:
            if attribute.name == "group" and attribute.i == constants[node.input[1]].shape[0] > 1:
                attribute.i = sizes[node.input[1]][1]
    return made


def _shapes(network: nn.Module) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
