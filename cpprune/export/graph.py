"""Graphs of ONNX operators, written down operator by operator."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper


class GraphBuilder:
    """Operators and constants of a graph, in the order in which they are added.

    Args:
        prefix: begins the name of every operator and constant.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, TensorProto] = {}

    def constant(self, name: str, value: NDArray[np.generic]) -> str:
        """Add a constant and return its name; floats are stored as float32."""
        value = np.asarray(value, order="C")
        if value.dtype.kind == "f":
            value = value.astype(np.float32)
        full = f"{self.prefix}{name}"
        self.constants[full] = numpy_helper.from_array(value, full)
        return full

    def add(self, operator: str, name: str, *inputs: str, **attributes: Any) -> str:
        """Add an operator and return the name of its output."""
        return self.add_several(operator, name, 1, *inputs, **attributes)[0]

    def add_several(
        self, operator: str, name: str, outputs: int, *inputs: str, **attributes: Any
    ) -> list[str]:
        """Add an operator of several outputs and return their names."""
        full = f"{self.prefix}{name}"
        names = [full, *(f"{full}_{number}" for number in range(1, outputs))]
        self.nodes.append(helper.make_node(operator, inputs, names, name=full, **attributes))
        return names
