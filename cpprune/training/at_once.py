"""What a network does to many small tensors, done to all of them at once, for GPUs.

Autocast casts every weight by itself, and every batch normalisation counts its batches: on a GPU that is
a kernel each, and launching it takes longer than running it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from cpprune.deps.torch import AnyBatchNorm, add_one_to_each_, copy_each_

# Layers that do nothing with their weights but give them to operators that autocast casts them for.
# Their subclasses may do more, such as standardise them.
CAST = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


class AtOnce:
    """Calls a network in training with its weights cast; results and gradients have the same bits.

    The first call is an ordinary one, and shows which layers take part, and whether under autocast.

    Args:
        network: it does not change any more.
        dtype: of autocast, or None.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype | None) -> None:
        self.network, self.dtype = network, dtype
        self._seen = False
        self._weights: dict[str, nn.Parameter] = {}
        self._counters: dict[str, Tensor] = {}

    def __call__(self, x_BCFT: Tensor) -> Tensor:
        """x_BCFT → logits [B, K]."""
        if not self._seen:
            self._seen = True
            return self._watched(x_BCFT)
        cast = _Cast.apply(self.dtype, *self._weights.values()) if self._weights else ()
        replaced: dict[str, Tensor | None] = dict(zip(self._weights, cast, strict=True))
        replaced |= dict.fromkeys(self._counters)
        logits: Tensor = functional_call(self.network, replaced, (x_BCFT,))  # type: ignore[arg-type]
        if self._counters:
            add_one_to_each_([*self._counters.values()])
        return logits

    def _watched(self, x_BCFT: Tensor) -> Tensor:
        """Call the network as it is; note its layers."""
        calls: Counter[nn.Module] = Counter()
        not_cast: set[nn.Module] = set()

        def note(module: nn.Module, _: object) -> None:
            calls[module] += 1
            if not torch.is_autocast_enabled(x_BCFT.device.type):
                not_cast.add(module)

        kinds = (*CAST, AnyBatchNorm)
        watched = {name: m for name, m in self.network.named_modules() if isinstance(m, kinds)}
        hooks = [module.register_forward_pre_hook(note) for module in watched.values()]
        logits: Tensor = self.network(x_BCFT)
        for hook in hooks:
            hook.remove()
        parts = self.network.named_parameters, self.network.named_buffers
        names = Counter(id(t) for part in parts for _, t in part(remove_duplicate=False))
        for name, module in watched.items():
            if type(module) in CAST and calls[module] and module not in not_cast:
                parameters = module.named_parameters(name, recurse=False)
                own = {name: p for name, p in parameters if p.requires_grad and names[id(p)] == 1}
                self._weights |= own
            if isinstance(module, AnyBatchNorm) and module.training and calls[module] == 1:
                counter = module.num_batches_tracked
                # One without momentum divides by the number of its batches.
                if counter is not None and names[id(counter)] == 1 and module.momentum is not None:
                    self._counters[f"{name}.num_batches_tracked"] = counter
        return logits


class _Cast(torch.autograd.Function):
    @staticmethod
    def forward(ctx, dtype, *weights):  # type: ignore[no-untyped-def]
        ctx.set_materialize_grads(False)
        return _cast(weights, dtype)

    @staticmethod
    def backward(ctx, *gradients):  # type: ignore[no-untyped-def]
        cast = iter(_cast([d for d in gradients if d is not None], torch.float32))
        return None, *(None if d is None else next(cast) for d in gradients)


def _cast(tensors: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    found = tuple(torch.empty_like(tensor, dtype=dtype) for tensor in tensors)
    copy_each_(found, tensors)
    return found
