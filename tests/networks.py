"""Networks and plans for tests, as small and as random as they have to be."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cpprune.audio.frontend import ScaleImage
from cpprune.models import artifact
from cpprune.models.fingerprint import structure
from cpprune.models.resize import layer_widths
from cpprune.pruning.config import PruneConfig
from cpprune.pruning.plan import GroupPlan, Plan
from cpprune.pruning.planner import make_plan
from cpprune.pruning.surgery import apply_plan

# Of one input: small, so that nothing takes long.
SHAPE = (1, 64, 32)

TEACHER = {"rho": 8, "blocks": [2, 1, 1], "groups": [1, 2, 1], "widths": [32, 64, 92]}

# Every inner width of its own, as pruning leaves them; stages 5, 7 and 8 wide.
PRUNED = {
    "widths": [6, 8, 10],
    "cut": {
        "in_c.0": 5,
        "stage1.block1.conv1": 3,
        "stage1.block2.conv1": 1,
        "stage2.block1.conv1": 4,
        "stage2.block1.conv2": 7,
        "stage2.block2.conv1": 2,
        "stage3.block1.conv1": 6,
        "stage3.block1.conv2": 8,
        "stage3.block2.conv1": 9,
    },
}


def keep_first(network: nn.Module, widths: dict[str, int]) -> None:
    """Cut the network to the first channels of each of these layers."""
    now = layer_widths(network)
    groups = [GroupPlan(layer, now[layer], list(range(w))) for layer, w in widths.items()]
    apply_plan(network, SHAPE, Plan(structure=structure(network), weights="", groups=groups))


def randomised(network: nn.Module, seed: int = 0, gain: float = 1) -> nn.Module:
    """Give every weight and statistic a random value, variances positive ones.

    Args:
        network: changed in place and returned.
        seed: of the values.
        gain: standard deviation of a weight, times the square root of what an output sums over.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif tensor.is_floating_point():
            fan_in = tensor[0].numel() if tensor.ndim > 1 else 4
            tensor.normal_(0, gain / math.sqrt(fan_in), generator=generator)
        else:
            tensor.fill_(17)
    return network


def parameters(network: nn.Module) -> int:
    """Count a network's parameters."""
    return sum(p.numel() for p in network.parameters())


def plan_for(network: nn.Module, shape: tuple[int, ...] = SHAPE, **changes: Any) -> Plan:
    """Plan the cut of the recipe; `changes` are keys of PruneConfig or arguments of `make_plan`."""
    own = ("original_widths", "fraction", "seed", "saliency", "measure")
    arguments = {key: changes.pop(key) for key in own if key in changes}
    if not {"ratio", "budget"} & changes.keys():
        changes["ratio"] = 0.41
    config = PruneConfig(**changes)
    return make_plan(
        network, shape, config, **{"original_widths": layer_widths(network), **arguments}
    )


class Smooth(nn.Module):
    """A network without ReLU and max-pooling, where rounding never moves a gradient to another place."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 5, stride=4), nn.BatchNorm2d(8), nn.GELU())
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.wide = nn.Sequential(nn.Conv2d(8, 12, 1), nn.BatchNorm2d(12), nn.SiLU())
        self.narrow = nn.Sequential(nn.Conv2d(12, 8, 1), nn.BatchNorm2d(8))
        self.out = nn.Linear(8, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        x = self.depthwise(self.stem(x))
        x = x + self.narrow(self.wide(x))
        logits: torch.Tensor = self.out(x.mean((2, 3)))
        return logits


def smooth(num_classes: int) -> nn.Module:
    """Return the factory's network."""
    return Smooth(num_classes)


class Hidden(nn.Module):
    """Most of what it computes is none of torchinfo's MACs: a linear layer over feature maps."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, stride=2)
        self.expand = nn.Linear(16, 48)
        self.reduce = nn.Linear(48, 16)
        self.out = nn.Linear(16, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        x = self.stem(x).permute(0, 2, 3, 1)
        x = self.reduce(self.expand(x).relu())
        logits: torch.Tensor = self.out(x.mean((1, 2)))
        return logits


def hidden(num_classes: int) -> nn.Module:
    """Return the factory's network."""
    return Hidden(num_classes)


def conv_norm_reference(
    state: Mapping[str, Tensor], name: str, x: Tensor, stride: int | tuple[int, int] = 1
) -> Tensor:
    """Convolution and batch normalisation in float64, from the tensors of a state dict."""
    weight = state[f"{name}.0.weight"].double()
    padding = weight.shape[2] // 2, weight.shape[3] // 2
    groups = x.shape[1] // weight.shape[1]
    x = functional.conv2d(x, weight, stride=stride, padding=padding, groups=groups)
    mean, var, scale, shift = (
        state[f"{name}.1.{which}"].double().view(-1, 1, 1)
        for which in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * scale + shift


class Fickle(nn.Module):
    """What it computes and stores depends on its widths: more if its first layer is narrower."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 10, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        x = self.one(x)
        if x.shape[1] < 8:
            kernel = torch.ones(x.shape[1], 1, 1, 1, device=x.device)
            x = functional.conv2d(x, kernel, groups=x.shape[1])
        return self.two(x).mean((2, 3))


class AlikeNames(nn.Module):
    """Layers named a.b, a_b, A_b and a.b_weight: without dots, the names of some are the same."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, stride=2)
        self.a = nn.Sequential()
        for name in ("b", "b_weight"):
            self.a.add_module(name, nn.Conv2d(4, 4, 3))
        self.a_b = nn.Conv2d(4, 4, 3)
        self.A_b = nn.Conv2d(4, 4, 1)
        self.classifier = nn.Linear(4, 3)

    def forward(self, x_BCFT: Tensor) -> Tensor:
        x = torch.relu(self.a(torch.relu(self.stem(x_BCFT))))
        x = torch.relu(self.A_b(torch.relu(self.a_b(x))))
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits


def save_attentive(folder: Path) -> nn.Module:
    """Write a model whose heads have lost half of their positions; return its network."""
    from attentions import FixedHeads

    network, shape = FixedHeads(10), (1, 28, 28)
    apply_plan(network, shape, plan_for(network, shape, ratio=0.5))
    model = artifact.Model(
        network,
        ScaleImage(),
        family="attentions:FixedHeads",
        config={},
        classes=[str(number) for number in range(10)],
        clip_shape=shape,
    )
    artifact.save(model, folder)
    return network.eval()
