"""CP-Mobile whose block convolutions are sums of several kernels, which are fused when it is saved.

Sources: Ding et al., "ACNet: Strengthening the Kernel Skeletons for Powerful CNN via Asymmetric
Convolution Blocks", ICCV 2019, for the kernels; Hu et al., "Online Convolutional Re-parameterization",
CVPR 2022, for their sum before one batch normalisation: training goes on with the fused network as is.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.utils import parametrize

from cpprune.models.networks.cp_mobile import CPMobile, InvertedBottleneck
from cpprune.models.registry import register

# Kernels beside the whole one, by its size; a second one of 1×1 for 1×1.
BRANCHES: dict[int, tuple[tuple[int, int], ...]] = {
    3: ((3, 1), (1, 3), (1, 1)),
    1: ((1, 1),),
}


class KernelSum(nn.Module):
    """Parametrization of a kernel: its sum with smaller ones, each scaled per output channel.

    Args:
        convolution: whose kernel it is, of odd size. A depthwise one of stride 1 also gets the identity.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        out, inner, size, _ = convolution.weight.shape
        self.kernels = nn.ParameterList(
            nn.init.kaiming_normal_(torch.empty(out, inner, *own), mode="fan_out")
            for own in BRANCHES[size]
        )
        self.has_identity = inner == 1 and convolution.stride == (1, 1)
        scales = 1 + len(self.kernels) + self.has_identity
        self.scales = nn.Parameter(torch.ones(scales, out))

    def forward(self, kernel: Tensor) -> Tensor:
        """[out, in, k, k] → the same shape."""
        size = kernel.shape[2]
        parts = [kernel]
        for own in self.kernels:
            high, wide = ((size - n) // 2 for n in own.shape[2:])
            parts.append(functional.pad(own, (wide, wide, high, high)))
        if self.has_identity:
            centre = functional.pad(kernel.new_ones(1, 1, 1, 1), [size // 2] * 4)
            parts.append(centre.expand_as(kernel))
        scales = self.scales[:, :, None, None, None].unbind()
        return torch.stack([part * s for part, s in zip(parts, scales, strict=True)]).sum(0)


@register("rep_cp_mobile")
class RepCPMobile(CPMobile):
    """CP-Mobile with several kernels for each convolution of its blocks; settings as `CPMobile`.

    It is counted, saved and exported as the CP-Mobile that `fused` makes of it, and pruned from there.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        base_channels: int = 32,
        channels_multiplier: float = 1.8,
        expansion: float = 2.1,
        variant: str = "dcase24",
    ) -> None:
        super().__init__(
            num_classes,
            base_channels=base_channels,
            channels_multiplier=channels_multiplier,
            expansion=expansion,
            variant=variant,
        )
        for convolution in self._convolutions():
            parametrize.register_parametrization(convolution, "weight", KernelSum(convolution))

    def _convolutions(self) -> list[nn.Conv2d]:
        blocks = [module for module in self.modules() if isinstance(module, InvertedBottleneck)]
        return [
            module
            for block in blocks
            for module in block.block.modules()
            if isinstance(module, nn.Conv2d)
        ]

    @staticmethod
    def family_when_fused() -> str:
        """Return the family of the network that `fused` is about; it has the same settings."""
        return "cp_mobile"

    @torch.no_grad()
    def fused(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the state dict of the CP-Mobile that does what this network does with these tensors."""
        plain = {name: t for name, t in tensors.items() if ".parametrizations." not in name}
        for name, module in self.named_modules():
            if parametrize.is_parametrized(module, "weight"):
                kernels = module.get_submodule("parametrizations.weight")
                prefix = f"{name}.parametrizations.weight"
                own = {key: tensors[f"{prefix}.{key}"] for key in kernels.state_dict()}
                plain[f"{name}.weight"] = functional_call(kernels, own)
        return plain
