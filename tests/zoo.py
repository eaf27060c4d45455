"""Networks as people write them, each with something that tools for training or pruning stumble over.

All map images [B, 1, 28, 28] to logits [B, num_classes]; `zoo:NAME` is the factory. Those in `REFUSED`
cannot be trained; the others have to be.
"""

import random
import sys

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations


def networks_of(module: str) -> list[str]:
    """Return the names of the networks that a module defines, in their order."""
    return [
        name
        for name, kind in vars(sys.modules[module]).items()
        if isinstance(kind, type) and issubclass(kind, nn.Module) and kind.__module__ == module
    ]


class Zoo(nn.Module):
    """A stem and a classifier; what is particular to a network lies between them."""

    width = 12

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, self.width, 5, stride=3), nn.BatchNorm2d(self.width), nn.ReLU()
        )
        self.head = nn.Linear(self.width, num_classes)

    def middle(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.stem(x)).mean((2, 3)))


class Plain(Zoo):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.conv = nn.Conv2d(12, 12, 3, padding=1)

    def middle(self, x: Tensor) -> Tensor:
        return functional.relu(self.conv(x))


# --- randomness ---------------------------------------------------------------------------------------


class Dropout(Plain):
    def middle(self, x: Tensor) -> Tensor:
        return functional.dropout(super().middle(x), 0.4, self.training)


class StochasticDepth(Plain):
    """Draws from torch, and skips its block by Python's generator."""

    def middle(self, x: Tensor) -> Tensor:
        if self.training and random.random() < 0.3:
            return x + 0 * self.conv(x)
        keep = torch.rand(len(x), 1, 1, 1, device=x.device) < 0.7 if self.training else 1
        return x + super().middle(x) * keep


# --- gates and splits ---------------------------------------------------------------------------------


class SpatialGate(Plain):
    """One attention map for all channels: x · σ(conv → 1)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.gate = nn.Conv2d(12, 1, 3, padding=1)

    def middle(self, x: Tensor) -> Tensor:
        x = super().middle(x)
        return x * torch.sigmoid(self.gate(x))


class AttentionPooling(Plain):
    """Positions weighted by the softmax of one score each."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.score = nn.Linear(12, 1)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.middle(self.stem(x)).flatten(2).transpose(1, 2)
        weights = self.score(tokens).softmax(1)
        return self.head((tokens * weights).sum(1))


class SqueezeExcitation(Plain):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.reduce, self.expand = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)

    def middle(self, x: Tensor) -> Tensor:
        x = super().middle(x)
        squeezed = functional.relu(self.reduce(x.mean((2, 3), keepdim=True)))
        return x * torch.sigmoid(self.expand(squeezed))


class Gated(Plain):
    """A gated linear unit."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.both = nn.Conv2d(12, 24, 3, padding=1)

    def middle(self, x: Tensor) -> Tensor:
        return functional.glu(self.both(super().middle(x)), 1)


class Chunked(Plain):
    """C2f: half of the channels pass, half go through more."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.part = nn.Conv2d(6, 6, 3, padding=1)
        self.join = nn.Conv2d(18, 12, 1)

    def middle(self, x: Tensor) -> Tensor:
        one, other = super().middle(x).chunk(2, 1)
        return self.join(torch.cat([one, other, functional.relu(self.part(other))], 1))


class Shuffled(Plain):
    """Grouped convolutions with a channel shuffle between them."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.one = nn.Conv2d(12, 12, 3, padding=1, groups=2)
        self.two = nn.Conv2d(12, 12, 3, padding=1, groups=2)

    def middle(self, x: Tensor) -> Tensor:
        x = functional.relu(self.one(super().middle(x)))
        b, c, h, w = x.shape
        x = x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        return self.two(x)


class Multiplied(Plain):
    """A depthwise convolution with a multiplier."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.depthwise = nn.Conv2d(12, 24, 3, padding=1, groups=12)
        self.pointwise = nn.Conv2d(24, 12, 1)

    def middle(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(super().middle(x)))


# --- memory and names ---------------------------------------------------------------------------------


class Viewed(Plain):
    """Takes its feature maps for contiguous."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.head = nn.Linear(12 * 8 * 8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self.stem(x))
        return self.head(x.view(x.size(0), -1))


class HiddenClassifier(Plain):
    """A hidden layer called `classifier`, whose width is not the number of classes."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.classifier = nn.Linear(12, 16)
        self.out = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(functional.relu(self.classifier(self.middle(self.stem(x)).mean((2, 3)))))


class Unused(Plain):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.forgotten = nn.Linear(12, 5)


class Tied(Plain):
    """Two names for one module, and one parameter in two modules."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.again = self.conv
        self.other = nn.Conv2d(12, 12, 3, padding=1)
        self.other.weight = self.conv.weight

    def middle(self, x: Tensor) -> Tensor:
        return self.other(self.again(super().middle(x)))


class Normed(Plain):
    """A parametrised weight."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.conv = parametrizations.weight_norm(self.conv)


class Lazy(Plain):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.conv = nn.LazyConv2d(12, 3, padding=1)
        self.head = nn.LazyLinear(num_classes)


class Unnormalised(Plain):
    """Without batch normalisation."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.stem[1] = nn.Identity()


class Casts(Plain):
    """Computes in float32, whatever comes in."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())


class OneRow(Plain):
    """Normalises a vector a clip, so that a batch of one clip has no statistics."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.norm = nn.BatchNorm1d(12)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.middle(self.stem(x)).mean((2, 3))))


# --- sequences ----------------------------------------------------------------------------------------


class Recurrent(Plain):
    """Convolutions, then a GRU over the frames."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.rnn = nn.GRU(12 * 8, 10, batch_first=True, bidirectional=True)
        self.head = nn.Linear(20, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self.stem(x)).flatten(1, 2).transpose(1, 2)
        return self.head(self.rnn(x)[0].mean(1))


class Initialised(Plain):
    """An LSTM whose first state the network makes itself."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.rnn = nn.LSTM(12, 9, batch_first=True)
        self.head = nn.Linear(9, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self.stem(x)).mean(2).transpose(1, 2)
        zeros = torch.zeros(1, len(x), 9, device=x.device)
        return self.head(self.rnn(x, (zeros, zeros))[0][:, -1])


class CRNN(Plain):
    """Convolutions, the mean over frequency, and a GRU over the frames."""

    rnn: nn.GRU | nn.LSTM

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.rnn = nn.GRU(12, 10, batch_first=True)
        self.head = nn.Linear(10, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        frames = self.middle(self.stem(x)).mean(2).permute(0, 2, 1)
        return self.head(self.rnn(frames)[0].mean(1))


class ConvLSTM(CRNN):
    """The same with an LSTM."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.rnn = nn.LSTM(12, 10, batch_first=True)


class Transformer(Plain):
    """An AST of one block."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.block = nn.TransformerEncoderLayer(12, 2, 20, dropout=0.1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.middle(self.stem(x)).flatten(2).transpose(1, 2)
        return self.head(self.block(tokens).mean(1))


# --- what a CUDA graph would not replay ---------------------------------------------------------------


class Waiting(Plain):
    """Asks for a value, which a GPU has to send first."""

    def middle(self, x: Tensor) -> Tensor:
        return super().middle(x) / max(1, x.detach().abs().max().item())


class Counting(Plain):
    """Counts its own steps, and anneals something by that."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.steps = 0

    def middle(self, x: Tensor) -> Tensor:
        self.steps += self.training
        return super().middle(x) * (1 + 1 / self.steps if self.training else 1)


class ShortcutInTraining(Plain):
    """Adds a branch only while it is trained, so that channels are coupled only then."""

    def middle(self, x: Tensor) -> Tensor:
        y = super().middle(x)
        return y + x if self.training else y


# --- refused ------------------------------------------------------------------------------------------


class Auxiliary(Plain):
    """Returns a second result while it is trained."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.aux = nn.Linear(12, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self.stem(x)).mean((2, 3))
        return (self.head(x), self.aux(x)) if self.training else self.head(x)


UNCUT = "ShortcutInTraining"
REFUSED = {"Auxiliary": "in training"}
TRAINED = [name for name in networks_of(__name__) if name not in (*REFUSED, UNCUT, "Zoo")]
