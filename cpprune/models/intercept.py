"""Contexts that stand between a network and torch's functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

Function: TypeAlias = Callable[..., object]


class Intercept(TorchFunctionMode):
    """Context in which `call` is called in place of every function of torch."""

    def __torch_function__(
        self,
        func: Function,
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        return self.call(func, args, kwargs or {})

    def call(self, func: Function, args: Sequence[object], kwargs: Mapping[str, object]) -> object:
        """Return what the function gives; subclasses override it."""
        return func(*args, **kwargs)


class AlwaysDouble(Intercept):
    """Context in which `x.float()`, `dtype=torch.float32` and new tensors are of float64.

    A copy of a network in float64 computes there, even if the network casts its input or makes its own
    first state.
    """

    def __enter__(self) -> AlwaysDouble:
        self._default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        torch.set_default_dtype(self._default)
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def call(self, func: Function, args: Sequence[object], kwargs: Mapping[str, object]) -> object:
        """Call the function with float64 in place of float32."""
        if func is Tensor.float:
            func = Tensor.double
        values = [_double(value) for value in args]
        return func(*values, **{key: _double(value) for key, value in kwargs.items()})


def _double(value: object) -> object:
    return torch.float64 if value is torch.float32 else value
