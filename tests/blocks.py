"""Networks of the blocks that papers describe, a block each between the stem and the head of `zoo`.

All map images [B, 1, 28, 28] to logits [B, num_classes]; `blocks:NAME` is the factory. Those in
`REFUSED` return something else than logits.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from zoo import Plain, Zoo, networks_of


def conv(a: int, b: int, kernel: int = 1, **settings: int) -> nn.Sequential:
    """Convolution, batch normalisation, ReLU."""
    layer = nn.Conv2d(a, b, kernel, padding=kernel // 2, bias=False, **settings)
    return nn.Sequential(layer, nn.BatchNorm2d(b), nn.ReLU())


# --- chunk, split and shuffle -------------------------------------------------------------------------


class C2f(Zoo):
    """YOLOv8: half passes, half goes through bottlenecks, whose every output is concatenated."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.first, self.last = conv(12, 16), conv(32, 12)
        self.blocks = nn.ModuleList(nn.Sequential(conv(8, 8, 3), conv(8, 8, 3)) for _ in range(2))

    def middle(self, x: Tensor) -> Tensor:
        parts = list(self.first(x).chunk(2, 1))
        for block in self.blocks:
            parts.append(parts[-1] + block(parts[-1]))
        return self.last(torch.cat(parts, 1))


class CSP(Zoo):
    """CSPNet: two convolutions halve the channels, one of them before the blocks."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.left, self.right, self.join = conv(12, 6), conv(12, 6), conv(12, 12)
        self.block = nn.Sequential(conv(6, 6), conv(6, 6, 3))

    def middle(self, x: Tensor) -> Tensor:
        right = self.right(x)
        return self.join(torch.cat([self.left(x), right + self.block(right)], 1))


class CSPSplit(Zoo):
    """CSPNet as first drawn: the channels are divided, one part goes through a block."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.first, self.block, self.join = conv(12, 16), conv(8, 8, 3), conv(16, 12)

    def middle(self, x: Tensor) -> Tensor:
        x = self.first(x)
        left, right = x.split(x.shape[1] // 2, 1)
        return self.join(torch.cat([left, self.block(right)], 1))


class FixedSplit(Zoo):
    """Splits into a number of channels that the code knows."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.first, self.block, self.join = conv(12, 16), conv(8, 8, 3), conv(16, 12)

    def middle(self, x: Tensor) -> Tensor:
        left, right = torch.split(self.first(x), 8, 1)
        return self.join(torch.cat([left, self.block(right)], 1))


class Res2(Zoo):
    """Res2Net: each of four parts goes through a convolution with the result of the part before."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.first, self.last = conv(12, 16), conv(16, 12)
        self.parts = nn.ModuleList(conv(4, 4, 3) for _ in range(3))

    def middle(self, x: Tensor) -> Tensor:
        first, *others = self.first(x).chunk(4, 1)
        made = [first]
        for part, layer in zip(others, self.parts, strict=True):
            made.append(layer(part if len(made) == 1 else part + made[-1]))
        return x + self.last(torch.cat(made, 1))


class ShuffleNet(Zoo):
    """ShuffleNetV2: half of the channels passes, then all are shuffled."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.wide = conv(12, 16)
        self.branch = nn.Sequential(
            conv(8, 8), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), conv(8, 8)
        )
        self.last = conv(16, 12)

    def middle(self, x: Tensor) -> Tensor:
        left, right = self.wide(x).chunk(2, 1)
        x = torch.cat([left, self.branch(right)], 1)
        b, c, h, w = x.shape
        return self.last(x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w))


class GLU(Zoo):
    """A gated linear unit written as a chunk, x · σ(y), in the feed-forward part of a token mixer."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.norm, self.both, self.out = nn.LayerNorm(12), nn.Linear(12, 32), nn.Linear(16, 12)

    def middle(self, x: Tensor) -> Tensor:
        y = self.norm(x.permute(0, 2, 3, 1))
        value, gate = self.both(y).chunk(2, -1)
        return x + self.out(value * torch.sigmoid(gate)).permute(0, 3, 1, 2)


class SwiGLU(Zoo):
    """The same gate, by two linear layers."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.value, self.gate, self.out = nn.Linear(12, 16), nn.Linear(12, 16), nn.Linear(16, 12)

    def middle(self, x: Tensor) -> Tensor:
        y = x.flatten(2).transpose(1, 2)
        y = self.out(functional.silu(self.gate(y)) * self.value(y))
        return x + y.transpose(1, 2).view_as(x)


class Sliced(Zoo):
    """Halves taken by indexing, at a place that follows from the width."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.first, self.last = conv(12, 16), conv(8, 12)

    def middle(self, x: Tensor) -> Tensor:
        x = self.first(x)
        half = x.shape[1] // 2
        return self.last(torch.maximum(x[:, :half], x[:, half:]))


class Maxout(Zoo):
    """Maxout: the largest of three channels."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.first, self.last = conv(12, 18), conv(6, 12)

    def middle(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).unflatten(1, (3, -1)).amax(1))


class Conv1dSplit(Zoo):
    """A WaveNet block over the frames: tanh of one half, gated by the other."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.dilated = nn.Conv1d(12, 24, 3, padding=2, dilation=2)
        self.skip = nn.Conv1d(12, 12, 1)

    def middle(self, x: Tensor) -> Tensor:
        y = x.mean(2)
        value, gate = self.dilated(y).chunk(2, 1)
        return (y + self.skip(value.tanh() * gate.sigmoid())).unsqueeze(2)


# --- other wirings ------------------------------------------------------------------------------------


class Dense(Zoo):
    """DenseNet: every layer reads all before it."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.layers = nn.ModuleList(conv(12 + 6 * n, 6, 3) for n in range(3))
        self.transition = conv(30, 12)

    def middle(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.transition(x)


class Inception(Zoo):
    """Branches of several kernels and a pooled one, concatenated."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.branches = nn.ModuleList([conv(12, 4), conv(12, 6, 3), conv(12, 4, 5)])
        self.pooled, self.join = conv(12, 4), conv(18, 12)

    def middle(self, x: Tensor) -> Tensor:
        pooled = self.pooled(functional.avg_pool2d(x, 3, 1, 1))
        return self.join(torch.cat([*(branch(x) for branch in self.branches), pooled], 1))


class Ghost(Zoo):
    """GhostNet: half of the channels are depthwise convolutions of the other half."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.primary, self.cheap, self.last = conv(12, 8), conv(8, 8, 3, groups=8), conv(16, 12)

    def middle(self, x: Tensor) -> Tensor:
        x = self.primary(x)
        return self.last(torch.cat([x, self.cheap(x)], 1))


class InvertedBottleneck(Zoo):
    """MobileNetV3: expansion, depthwise convolution, squeeze-excitation, projection."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.expand, self.depth = conv(12, 24), conv(24, 24, 3, groups=24)
        self.squeeze, self.excite = nn.Conv2d(24, 6, 1), nn.Conv2d(6, 24, 1)
        self.project = nn.Sequential(nn.Conv2d(24, 12, 1, bias=False), nn.BatchNorm2d(12))

    def middle(self, x: Tensor) -> Tensor:
        y = self.depth(self.expand(x))
        gate = self.excite(functional.relu(self.squeeze(y.mean((2, 3), keepdim=True))))
        return x + self.project(y * functional.hardsigmoid(gate))


class UNet(Zoo):
    """A transposed convolution, and a concatenation with what went down."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.down, self.last = conv(12, 16, 3, stride=2), conv(20, 12)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)

    def middle(self, x: Tensor) -> Tensor:
        return self.last(torch.cat([x, self.up(self.down(x))], 1))


class PixelShuffled(Zoo):
    """Channels become places."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.wide, self.last = conv(12, 16), conv(4, 12)

    def middle(self, x: Tensor) -> Tensor:
        return self.last(functional.pixel_shuffle(self.wide(x), 2))


class Repeated(Zoo):
    """One block, applied three times."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.block = nn.Sequential(conv(12, 16), conv(16, 12, 3))

    def middle(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = x + self.block(x)
        return x


class Functional(Zoo):
    """A convolution whose weight is a parameter of the network itself."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.first, self.last = conv(12, 16), conv(8, 12)
        self.weight = nn.Parameter(torch.randn(8, 16, 3, 3) / 12)

    def middle(self, x: Tensor) -> Tensor:
        return self.last(functional.conv2d(self.first(x), self.weight, padding=1))


class LayerScale(Zoo):
    """ConvNeXt: a depthwise convolution, an MLP over the channels, and a scale a channel."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.depth, self.norm = nn.Conv2d(12, 12, 7, padding=3, groups=12), nn.LayerNorm(12)
        self.up, self.down = nn.Linear(12, 24), nn.Linear(24, 12)
        self.gamma = nn.Parameter(torch.full((12,), 0.1))

    def middle(self, x: Tensor) -> Tensor:
        y = self.norm(self.depth(x).permute(0, 2, 3, 1))
        y = self.gamma * self.down(functional.gelu(self.up(y)))
        return x + y.permute(0, 3, 1, 2)


class SpectralNormed(Zoo):
    """A weight over its largest singular value."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.first, self.last = conv(12, 16), conv(8, 12)
        self.odd = parametrizations.spectral_norm(nn.Conv2d(16, 8, 1))

    def middle(self, x: Tensor) -> Tensor:
        return self.last(self.odd(self.first(x)))


class Branching(Plain):
    """Takes keyword arguments, and does something else with them."""

    def forward(self, x: Tensor, *, twice: bool = False, mask: Tensor | None = None) -> Tensor:
        for _ in range(1 + twice):
            x = super().forward(x) if mask is None else super().forward(x * mask)
        return x


class MultiScale(Zoo):
    """Features of two stages, pooled and concatenated before the classifier."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.one, self.two = conv(12, 10, 3), conv(10, 14, 3, stride=2)
        self.head = nn.Linear(24, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        one = self.one(self.stem(x))
        return self.head(torch.cat([one.mean((2, 3)), self.two(one).amax((2, 3))], 1))


# --- refused ------------------------------------------------------------------------------------------


class TwoHeads(Plain):
    """Two results: logits, and an embedding."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.middle(self.stem(x)).mean((2, 3))
        return self.head(features), features


class Named(Plain):
    """Results by name."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": super().forward(x)}


REFUSED = {"TwoHeads": "not tuple", "Named": "not dict"}
CUT = [name for name in networks_of(__name__) if name not in REFUSED]
