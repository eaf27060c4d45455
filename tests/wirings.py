"""Networks wired as those are that Torch-Pruning and torchvision are tested with.

All map images [B, 1, 28, 28] to logits [B, num_classes]; `wirings:NAME` is the factory. Those in
`REFUSED` cannot be trained.
"""

import torch
from blocks import conv
from torch import Tensor, nn
from torch.nn import functional
from zoo import Zoo, networks_of

# --- concatenated and split ---------------------------------------------------------------------------


class CascadedConcat(Zoo):
    """A concatenation of concatenations, of unequal widths."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.branches = nn.ModuleList(
            [nn.Sequential(conv(12, 12), conv(12, 6)), conv(12, 12), conv(12, 18), conv(12, 4)]
        )
        self.join = conv(40, 12)

    def middle(self, x: Tensor) -> Tensor:
        first, *others = (branch(x) for branch in self.branches)
        for other in others:
            first = torch.cat([first, other], 1)
        return self.join(first)


class SplitByLayers(Zoo):
    """Splits at numbers that the layers after it tell; one part joins another branch, one is added."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.wide, self.other = conv(12, 20), conv(12, 10)
        self.join = conv(20, 10)
        self.last = conv(10, 12)

    def middle(self, x: Tensor) -> Tensor:
        y = self.wide(x)
        first = self.join[0].in_channels - self.other[1].num_features
        left, right = torch.split(y, (first, self.wide[1].num_features - first), 1)
        return self.last(right + self.join(torch.cat([left, self.other(x)], 1)))


class SplitUnequally(Zoo):
    """Two parts go through one layer, a third of twice their width through another."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.wide = conv(12, 24)
        self.narrow, self.broad, self.last = conv(6, 8), conv(12, 8), conv(24, 12)

    def middle(self, x: Tensor) -> Tensor:
        one, two = self.narrow[0].in_channels, self.broad[0].in_channels
        a, b, c = torch.split(self.wide(x), [one, one, two], 1)
        return self.last(torch.cat([self.narrow(a), self.narrow(b), self.broad(c)], 1))


class AlongHeight(Zoo):
    """Concatenates along the height, convolves, and takes it apart again."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.left, self.right = conv(12, 14), conv(12, 14, 3)
        self.both, self.last = conv(14, 16), conv(16, 12)

    def middle(self, x: Tensor) -> Tensor:
        left, right = self.left(x), self.right(x)
        y = self.both(torch.cat([left, right], 2))
        left, right = torch.split(y, [left.shape[2], right.shape[2]], 2)
        return self.last(left + right)


class Unbound(Zoo):
    """Three projections in one, unbound after a view."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.three, self.out = nn.Linear(12, 30), nn.Linear(10, 12)

    def middle(self, x: Tensor) -> Tensor:
        y = x.flatten(2).transpose(1, 2)
        b, n, _ = y.shape
        a, gate, shift = self.three(y).view(b, n, 3, -1).unbind(2)
        return (y + self.out(a * gate.sigmoid() + shift)).transpose(1, 2).view_as(x)


class Shifted(Zoo):
    """A temporal shift: an eighth of the channels moves forwards, an eighth backwards."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.wide, self.last = conv(12, 16), conv(16, 12)

    def middle(self, x: Tensor) -> Tensor:
        x = self.wide(x)
        fold = x.shape[1] // 8
        forwards = functional.pad(x[:, :fold, :, 1:], (0, 1))
        backwards = functional.pad(x[:, fold : 2 * fold, :, :-1], (1, 0))
        return self.last(torch.cat([forwards, backwards, x[:, 2 * fold :]], 1))


class Mirrored(Zoo):
    """Adds to each channel the one at the same place from the other end."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.wide, self.last = conv(12, 16), conv(16, 12)

    def middle(self, x: Tensor) -> Tensor:
        x = self.wide(x)
        return self.last(x + x.flip(1))


class SelectiveKernel(Zoo):
    """SKNet: branches of two kernels are stacked, and weighed channel by channel."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.small, self.large = conv(12, 16, 3), conv(12, 16, 5)
        self.squeeze = nn.Linear(16, 6)
        self.excite = nn.ModuleList(nn.Linear(6, 16) for _ in range(2))
        self.last = conv(16, 12)

    def middle(self, x: Tensor) -> Tensor:
        branches = torch.stack([self.small(x), self.large(x)], 1)
        hidden = functional.relu(self.squeeze(branches.sum(1).mean((2, 3))))
        gates = torch.stack([layer(hidden) for layer in self.excite], 1).softmax(1)
        return self.last((branches * gates[..., None, None]).sum(1))


# --- flattened and reshaped ---------------------------------------------------------------------------


class LeNet(nn.Module):
    """Convolutions and pooling, flattened by a view, and three linear layers."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2 = nn.Linear(256, 24), nn.Linear(24, 14)
        self.fc3 = nn.Linear(14, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(self.conv1(x).relu(), 2)
        x = functional.max_pool2d(self.conv2(x).relu(), 2)
        return self.fc3(self.fc2(self.fc1(x.view(x.shape[0], -1)).relu()).relu())


class VGG(nn.Module):
    """Pooled to 2×2, flattened, and a classifier of two layers with dropout."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            conv(1, 8, 3), nn.MaxPool2d(2), conv(8, 16, 3), nn.MaxPool2d(2), conv(16, 16, 3)
        )
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.classifier = nn.Sequential(
            nn.Linear(64, 20), nn.ReLU(), nn.Dropout(), nn.Linear(20, num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.pool(self.features(x)), 1))


class LinearToMaps(Zoo):
    """A linear layer whose outputs become feature maps, which transposed convolutions enlarge."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.wide = nn.Linear(12, 128)
        self.up1, self.up2 = nn.ConvTranspose2d(8, 10, 4, 2, 1), nn.ConvTranspose2d(10, 6, 4, 2, 1)
        self.head = nn.Linear(6 * 256, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.wide(self.stem(x).mean((2, 3))).relu()
        x = self.up1(x.view(-1, self.up1.in_channels, 4, 4)).relu()
        return self.head(torch.flatten(self.up2(x).relu(), 1))


class MLP(nn.Module):
    """Linear layers only, with a residual connection."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(784, 16), nn.Linear(16, 16)
        self.last = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.flatten(1)).relu()
        return self.last(x + self.second(x).relu())


class WideAndDeep(nn.Module):
    """A linear model beside a deep one, concatenated; batch normalisation of vectors."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.deep = nn.Sequential(
            *(nn.Linear(784, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2)),
            *(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1)),
        )
        self.wide, self.both = nn.Linear(784, 4), nn.Linear(5, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(x.shape[0], -1)
        return self.both(torch.concat([self.wide(x), self.deep(x)], -1))


# --- layers and parameters ----------------------------------------------------------------------------


class Fire(Zoo):
    """SqueezeNet: squeezed, expanded twice, and a convolution for a classifier."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.squeeze = nn.Conv2d(12, 6, 1)
        self.one, self.three = nn.Conv2d(6, 10, 1), nn.Conv2d(6, 10, 3, padding=1)
        self.head = nn.Conv2d(20, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(self.stem(x)).relu()
        x = torch.cat([self.one(x).relu(), self.three(x).relu()], 1)
        return torch.flatten(functional.adaptive_avg_pool2d(self.head(x).relu(), 1), 1)


class ResNeXt(Zoo):
    """A bottleneck with a grouped convolution, and a projection beside it."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.first, self.grouped = conv(12, 16), conv(16, 16, 3, groups=4, stride=2)
        self.last = nn.Sequential(nn.Conv2d(16, 20, 1), nn.BatchNorm2d(20))
        self.down = nn.Sequential(nn.Conv2d(12, 20, 1, stride=2), nn.BatchNorm2d(20))
        self.head = nn.Linear(20, num_classes)

    def middle(self, x: Tensor) -> Tensor:
        return (self.last(self.grouped(self.first(x))) + self.down(x)).relu()


class OneChannel(Zoo):
    """Down to a single channel, normalised, and up again."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.wide, self.one, self.last = conv(12, 16, 3), conv(16, 1, 3), conv(1, 12, 3)

    def middle(self, x: Tensor) -> Tensor:
        return self.last(self.one(self.wide(x)))


class Transposed(Zoo):
    """A transposed convolution with batch normalisation before and after."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.wide, self.last = conv(12, 16, 3), conv(20, 12, 3)
        self.up = nn.Sequential(nn.ConvTranspose2d(16, 20, 2, stride=2), nn.BatchNorm2d(20))

    def middle(self, x: Tensor) -> Tensor:
        return self.last(self.up(self.wide(x)).relu())


class OwnLayer(nn.Module):
    """Each vector over its norm, scaled and shifted by parameters, through a linear layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.rand(width)), nn.Parameter(torch.rand(width))
        self.fc = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x / x.pow(2).sum(1, keepdim=True).sqrt()
        return self.fc(x * self.scale + self.shift)


class Customised(Zoo):
    """A layer of the network's own; a parameter that is not used."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.hidden, self.own = nn.Linear(12, 16), OwnLayer(16)
        self.head = nn.Linear(16, num_classes)
        self.unused = nn.Parameter(torch.rand(10))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.own(self.hidden(self.stem(x).mean((2, 3))).relu()))


class ScaledMaps(Zoo):
    """torchvision's ConvNeXt: a scale [C, 1, 1] for each branch, and one for the network."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.depth, self.norm = nn.Conv2d(12, 12, 7, padding=3, groups=12), nn.LayerNorm(12)
        self.up, self.down = nn.Linear(12, 24), nn.Linear(24, 12)
        self.scale = nn.Parameter(torch.full((12, 1, 1), 0.1))
        self.whole = nn.Parameter(torch.ones(1))

    def middle(self, x: Tensor) -> Tensor:
        y = self.norm(self.depth(x).permute(0, 2, 3, 1))
        y = self.down(functional.gelu(self.up(y))).permute(0, 3, 1, 2)
        return self.whole * (x + self.scale * y)


class Embedded(Zoo):
    """Positions from an embedding are added to the frames."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.wide, self.place = nn.Conv1d(12, 16, 3, padding=1), nn.Embedding(8, 16)
        self.last = nn.Conv1d(16, 12, 1)

    def middle(self, x: Tensor) -> Tensor:
        y = self.wide(x.mean(2))
        place = self.place(torch.arange(y.shape[2], device=x.device))
        return self.last((y + place.T).relu()).unsqueeze(2)


class Volumes(Zoo):
    """Convolutions in three dimensions, instance normalisation without parameters."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.stem = nn.Sequential(
            nn.Conv3d(1, 8, 3, stride=2),
            nn.InstanceNorm3d(8),
            nn.ReLU(),
            nn.Conv3d(8, 12, (1, 3, 3)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x.unflatten(2, (4, 7))).mean((2, 3, 4)))


class Segmenting(Zoo):
    """DeepLab's head: dilated branches and a pooled one that is enlarged again."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(12, 8, 3, padding=d, dilation=d), nn.ReLU()) for d in (1, 2, 3)
        )
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(12, 8, 1), nn.ReLU())
        self.join = conv(32, 12)

    def middle(self, x: Tensor) -> Tensor:
        pooled = functional.interpolate(self.pooled(x), x.shape[2:], mode="bilinear")
        return self.join(torch.cat([*(branch(x) for branch in self.branches), pooled], 1))


# --- refused ------------------------------------------------------------------------------------------


class TwoInputs(Zoo):
    """Takes two tensors."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(torch.cat([self.stem(x), self.stem(y)], 2).mean((2, 3)))


REFUSED = {"TwoInputs": "must map one tensor"}
CUT = [name for name in networks_of(__name__) if name not in (*REFUSED, "OwnLayer")]
