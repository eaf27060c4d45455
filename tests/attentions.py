"""Networks with attention: of torch's layers, of its functions, and written by hand.

All map images [B, 1, 28, 28] to logits [B, num_classes]; `attentions:NAME` is the factory.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from zoo import Zoo, networks_of


class MHABlock(nn.Module):
    """Pre-norm: nn.MultiheadAttention, then an MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class SDPABlock(MHABlock):
    """The same by F.scaled_dot_product_attention, from one projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        del self.attention

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(b, n, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(y.transpose(1, 2).reshape(b, n, c))
        return x + self.mlp(self.norm2(x))


class AST(nn.Module):
    """An audio spectrogram transformer of two blocks, with class token and positions."""

    block: type[MHABlock] = MHABlock

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 12, 7, stride=7)
        self.token = nn.Parameter(torch.randn(1, 1, 12) / 10)
        self.positions = nn.Parameter(torch.randn(1, 17, 12) / 10)
        self.blocks = nn.Sequential(*(self.block(12, 2) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


class ASTByHand(AST):
    """The same with attention from F.scaled_dot_product_attention."""

    block = SDPABlock


class NonLocal(Zoo):
    """Attention between places, of one head, by matrix products."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.q, self.k, self.v = (nn.Conv2d(12, 8, 1) for _ in range(3))
        self.out = nn.Conv2d(8, 12, 1)

    def middle(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).flatten(2) for layer in (self.q, self.k, self.v))
        weights = (q.transpose(1, 2) @ k).softmax(-1)
        y = (weights @ v.transpose(1, 2)).transpose(1, 2)
        return x + self.out(y.view(len(x), 8, *x.shape[2:]))


class Mixer(Zoo):
    """An MLP-Mixer: one MLP over the tokens, one over the channels."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.tokens = nn.Sequential(nn.Linear(64, 20), nn.GELU(), nn.Linear(20, 64))
        self.channels = nn.Sequential(nn.Linear(12, 24), nn.GELU(), nn.Linear(24, 12))

    def middle(self, x: Tensor) -> Tensor:
        y = x.flatten(2)
        y = y + self.tokens(y)
        y = y.transpose(1, 2)
        return (y + self.channels(y)).transpose(1, 2).view_as(x)


class Conformer(Zoo):
    """The convolution of a Conformer: pointwise, GLU, depthwise, pointwise; then a GRU."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.point, self.depth = nn.Conv1d(12, 24, 1), nn.Conv1d(12, 12, 3, padding=1, groups=12)
        self.norm, self.out = nn.BatchNorm1d(12), nn.Conv1d(12, 12, 1)
        self.rnn = nn.GRU(12, 12, batch_first=True)

    def middle(self, x: Tensor) -> Tensor:
        y = x.mean(2)
        y = y + self.out(functional.silu(self.norm(self.depth(functional.glu(self.point(y), 1)))))
        return self.rnn(y.transpose(1, 2))[0].transpose(1, 2).unsqueeze(2)


class VisionTransformer(nn.Module):
    """torchvision's: reshapes by a width that it remembers."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.hidden_dim = 12
        self.patches = nn.Conv2d(1, 12, 7, stride=7)
        self.token = nn.Parameter(torch.randn(1, 1, 12) / 10)
        self.positions = nn.Parameter(torch.randn(1, 17, 12) / 10)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(12) for _ in range(3))
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(12, 24), nn.GELU(), nn.Linear(24, 12))
        self.head = nn.Linear(12, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        x = self.patches(x).reshape(n, self.hidden_dim, 16).permute(0, 2, 1)
        x = torch.cat([self.token.expand(n, -1, -1), x], 1) + self.positions
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return self.head(self.norm3(x + self.mlp(self.norm2(x)))[:, 0])


class QueriesInGroups(Zoo):
    """Four heads of queries share two heads of keys and values, which are expanded."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.q, self.k, self.v = nn.Linear(12, 16), nn.Linear(12, 8), nn.Linear(12, 8)
        self.out = nn.Linear(16, 12)

    def middle(self, x: Tensor) -> Tensor:
        y = x.flatten(2).transpose(1, 2)
        b, n, _ = y.shape
        q = self.q(y).view(b, n, 4, -1).transpose(1, 2)
        k, v = (layer(y).view(b, n, 2, -1).transpose(1, 2) for layer in (self.k, self.v))
        k, v = (part.repeat_interleave(2, 1) for part in (k, v))
        y = y + self.out(
            functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, -1)
        )
        return y.transpose(1, 2).view_as(x)


class HeadsOfAnySize(Zoo):
    """vit-pytorch's attention: the number of heads is given, their size is what is left."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.qkv, self.out = nn.Linear(12, 48, bias=False), nn.Linear(16, 12)

    def middle(self, x: Tensor) -> Tensor:
        y = x.flatten(2).transpose(1, 2)
        q, k, v = (
            part.unflatten(2, (4, -1)).transpose(1, 2) for part in self.qkv(y).chunk(3, dim=-1)
        )
        weights = (q @ k.transpose(-1, -2) / 2).softmax(-1)
        y = y + self.out((weights @ v).transpose(1, 2).flatten(2))
        return y.transpose(1, 2).view_as(x)


class FixedHeadsBlock(nn.Module):
    """timm's: number and size of the heads, and the product of both, are integers of the module."""

    size_in_code = False

    def __init__(self, width: int, heads: int, size: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.attn_dim = heads, size, heads * size
        self.seed = 7  # no width, and equal to none
        self.qkv, self.proj = nn.Linear(width, 3 * heads * size), nn.Linear(heads * size, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        size = 4 if self.size_in_code else self.head_dim
        q, k, v = (
            self.qkv(x).reshape(b, n, 3, self.num_heads, size).permute(2, 0, 3, 1, 4).unbind(0)
        )
        y = functional.scaled_dot_product_attention(q, k, v)
        return x + self.proj(y.transpose(1, 2).reshape(b, n, self.attn_dim))


class HeadsByNumberBlock(FixedHeadsBlock):
    """The code knows the size of the heads."""

    size_in_code = True


class ThreeLayersBlock(nn.Module):
    """Transformers': queries, keys and values of a layer each, which share the size of the heads."""

    def __init__(self, width: int, heads: int, size: int) -> None:
        super().__init__()
        self.attention_head_size, self.all_head_size = size, heads * size
        self.query, self.key, self.value = (nn.Linear(width, heads * size) for _ in range(3))
        self.dense = nn.Linear(heads * size, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (
            layer(x).view(b, n, -1, self.attention_head_size).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        weights = (q @ k.transpose(-1, -2) / self.attention_head_size**0.5).softmax(-1)
        return x + self.dense((weights @ v).transpose(1, 2).reshape(b, n, self.all_head_size))


class FixedHeads(Zoo):
    """Three heads of timm's attention."""

    block: type[FixedHeadsBlock] | type[ThreeLayersBlock] = FixedHeadsBlock

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.attention = self.block(12, 3, 4)

    def middle(self, x: Tensor) -> Tensor:
        return self.attention(x.flatten(2).transpose(1, 2)).transpose(1, 2).view_as(x)


class HeadsByNumber(FixedHeads):
    """Three heads, of which only whole ones can go."""

    block = HeadsByNumberBlock


class ThreeLayers(FixedHeads):
    """Three heads of attention with three layers."""

    block = ThreeLayersBlock


CUT = [name for name in networks_of(__name__) if not name.endswith("Block")]
