"""Gates and normalisations as people write them, between the stem and the head of `zoo`.

All map images [B, 1, 28, 28] to logits [B, num_classes]; `gates:NAME` is the factory.
"""

import torch
from blocks import conv
from torch import Tensor, nn
from torch.nn import functional
from zoo import Zoo, networks_of


class CBAM(Zoo):
    """Channel attention by a shared MLP, then spatial attention of mean and maximum."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.conv = conv(12, 16, 3)
        self.mlp = nn.Sequential(nn.Conv2d(16, 4, 1), nn.ReLU(), nn.Conv2d(4, 16, 1))
        self.place = nn.Conv2d(2, 1, 3, padding=1)
        self.last = conv(16, 12)

    def middle(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        mean, most = self.mlp(x.mean((2, 3), True)), self.mlp(x.amax((2, 3), True))
        x = x * torch.sigmoid(mean + most)
        maps = torch.cat([x.mean(1, True), x.amax(1, True)], 1)
        return self.last(x * torch.sigmoid(self.place(maps)))


class ECA(Zoo):
    """Efficient channel attention: a convolution along the channels."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.conv, self.last = conv(12, 16, 3), conv(16, 12)
        self.along = nn.Conv1d(1, 1, 3, padding=1)

    def middle(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        gate = self.along(x.mean((2, 3))[:, None]).sigmoid()
        return self.last(x * gate.transpose(1, 2)[..., None])


class GRN(Zoo):
    """ConvNeXt V2's global response normalisation: a channel over the mean of all."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.up, self.down = nn.Linear(12, 24), nn.Linear(24, 12)
        self.gamma, self.beta = (nn.Parameter(torch.rand(1, 1, 1, 24)) for _ in range(2))

    def middle(self, x: Tensor) -> Tensor:
        y = functional.gelu(self.up(x.permute(0, 2, 3, 1)))
        norm = y.norm(dim=(1, 2), keepdim=True)
        y = self.gamma * (y * norm / (norm.mean(-1, keepdim=True) + 1e-6)) + self.beta + y
        return x + self.down(y).permute(0, 3, 1, 2)


class HandNorm(Zoo):
    """Batch normalisation written out, with its own parameters [1, C, 1, 1]."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.wide, self.last = nn.Conv2d(12, 16, 3, padding=1), conv(16, 12)
        self.scale, self.shift = (nn.Parameter(torch.rand(1, 16, 1, 1)) for _ in range(2))

    def middle(self, x: Tensor) -> Tensor:
        x = self.wide(x)
        return self.last(x * self.scale + self.shift)


class HandLayerNorm(Zoo):
    """Layer normalisation over the channels, written out."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.wide, self.last = nn.Conv2d(12, 16, 3, padding=1), conv(16, 12)

    def middle(self, x: Tensor) -> Tensor:
        x = self.wide(x)
        x = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 1e-6).sqrt()
        return self.last(x)


class FixedBuffer(Zoo):
    """A blur: a depthwise convolution whose kernel is a buffer."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.wide, self.last = conv(12, 16, 3), conv(16, 12)
        self.register_buffer("kernel", torch.full((16, 1, 3, 3), 1 / 9))

    def middle(self, x: Tensor) -> Tensor:
        return self.last(functional.conv2d(self.wide(x), self.kernel, padding=1, groups=16))


class GroupNormed(Zoo):
    """Group, instance and layer normalisation in turn."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.one = nn.Sequential(nn.Conv2d(12, 16, 3), nn.GroupNorm(4, 16), nn.SiLU())
        self.two = nn.Sequential(
            nn.Conv2d(16, 16, 3), nn.InstanceNorm2d(16, affine=True), nn.PReLU(16)
        )
        self.three = nn.Sequential(nn.Conv2d(16, 12, 1), nn.GroupNorm(1, 12))

    def middle(self, x: Tensor) -> Tensor:
        return self.three(self.two(self.one(x)))


CUT = networks_of(__name__)
