"""RAM and flash of a network in C, from its structure alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from cpprune.export.sizes import Shape, as_loaded, in_precision, resized, traced
from cpprune.export.target import targets
from cpprune.models.quantized import is_quantized
from shards.errors import UserError

if TYPE_CHECKING:
    import onnx

    from cpprune.export.c.source import Source
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
    return _source(network, input_shape, precision).ram


def flash_bytes(network: nn.Module, input_shape: Sequence[int], precision: Precision) -> int:
    """Return what `network.c` takes of `bytes.flash` of a network in C: its code and constants.

    As `ram_bytes`; `model.c`, which holds the names of the classes, is not counted either. In int8 the
    code of an export may be a few bytes shorter, by the zero points that it is calibrated to.

    Raises:
        UserError: as `ram_bytes`; or no C compiler compiles it.
    """
    return _flash(_source(network, input_shape, precision), precision)


class InC:
    """`ram_bytes` and `flash_bytes` of networks that are cut from one: quicker, as that alone is traced.

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
        _require(precision)
        self.input_shape, self.precision = input_shape, precision
        self.shapes = _shapes(network)
        self.right: bool | None = False if is_quantized(network) else None
        self.graph = None if is_quantized(network) else traced(network, input_shape)

    def ram(self, narrower: nn.Module) -> int:
        """Return the RAM of the network, or of one that is cut from it, in bytes."""
        return self._source(narrower).ram

    def flash(self, narrower: nn.Module) -> int:
        """Return the flash of the network, or of one that is cut from it, in bytes."""
        return _flash(self._source(narrower), self.precision)

    def _source(self, narrower: nn.Module) -> Source:
        found = self._foreseen(_shapes(narrower)) if self.right is not False else None
        if found is not None and self.right:
            return found
        own = _source(narrower, self.input_shape, self.precision)
        if self.right is None and _shapes(narrower) != self.shapes:
            self.right = found is not None and _alike(own, found)
        return own

    def _foreseen(self, shapes: Mapping[str, Shape]) -> Source | None:
        assert self.graph is not None
        try:
            graph = _with_sizes(self.graph, self.shapes, shapes)
            return _generated(in_precision(graph, self.input_shape, self.precision, integer=True))
        except Exception:  # onnxruntime has many: the graph is none with these sizes
            return None


def _require(precision: Precision) -> None:
    targets()["c"].require(f"the memory of an export in {precision}")


def _source(network: nn.Module, input_shape: Sequence[int], precision: Precision) -> Source:
    _require(precision)

    from cpprune.export.integer_operators import with_integer_operators
    from cpprune.export.qdq import export_quantized

    if is_quantized(network) and precision == "int8":
        graph = with_integer_operators(export_quantized(as_loaded(network), input_shape))
    else:
        graph = in_precision(traced(network, input_shape), input_shape, precision, integer=True)
    return _generated(graph)


def _generated(graph: onnx.ModelProto) -> Source:
    from cpprune.export.c.source import generate, simplify

    simple = simplify(graph)
    _settle_zero_points(simple)
    return generate(simple, "network")


def _settle_zero_points(graph: onnx.ModelProto) -> None:
    """Give the zero points of activations other values, which depend on nothing but their place.

    The compiler writes them into the code, which is shorter for some numbers.
    """
    import onnx

    number = 0
    for constant in graph.graph.initializer:
        if constant.data_type == onnx.TensorProto.INT8 and not constant.dims:
            value = np.array(1 + 37 * number % 120, np.int8)
            constant.CopyFrom(onnx.numpy_helper.from_array(value, constant.name))
            number += 1


def _alike(one: Source, other: Source) -> bool:
    """Return whether two sources need the same memory, and constants of the same size."""
    return (one.ram, one.constants) == (other.ram, other.constants)


def _flash(source: Source, precision: Precision) -> int:
    from cpprune.export.c.host import sizes

    compiled = sizes({"network.c": source.text})
    if compiled is None:
        raise UserError(
            f"the flash of an export in {precision} is known once it is compiled, and no C compiler "
            "was found that does: install arm-none-eabi-gcc, or another one and set CC"
        )
    return compiled["flash"]


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
