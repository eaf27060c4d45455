"""BC-ResNet against an implementation of its own here: tensors of the state dict, and functions."""

from collections.abc import Mapping

import pytest
import torch
from networks import randomised
from torch import Tensor
from torch.nn import functional as F

import cpprune
from cpprune.evaluation.complexity import count_parameters
from cpprune.models.networks.bc_resnet import SubSpectralNorm


def normalised(state: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    mean, var = state[f"{name}.running_mean"].double(), state[f"{name}.running_var"].double()
    scale = state[f"{name}.weight"].double() / (var + 1e-5).sqrt()
    shift = state[f"{name}.bias"].double() - mean * scale
    return x * scale[:, None, None] + shift[:, None, None]


def conv(state: Mapping[str, Tensor], name: str, x: Tensor, **how: object) -> Tensor:
    weight = state[f"{name}.weight"].double()
    bias = state.get(f"{name}.bias")
    own = None if bias is None else bias.double()
    return F.conv2d(x, weight, own, groups=x.shape[1] // weight.shape[1], **how)  # type: ignore[arg-type]


def reference(state: Mapping[str, Tensor], x: Tensor, bands: int) -> Tensor:
    x = F.relu(
        normalised(state, "stem.1", conv(state, "stem.0", x.double(), stride=(2, 1), padding=2))
    )
    for stage, count in enumerate((2, 2, 4, 4)):
        for number in range(count):
            block = f"stages.{stage}.{number}"
            y = x
            if number == 0:  # all stages change the width
                y = conv(state, f"{block}.transition.conv", y)
                y = F.relu(normalised(state, f"{block}.transition.bn", y))
            stride = 2 if number == 0 and stage in (1, 2) else 1
            y = conv(state, f"{block}.frequency", y, stride=(stride, 1), padding=(1, 0))
            size = -(-y.shape[2] // bands)
            parts = torch.split(y, size, dim=2)
            parts = tuple(
                normalised(state, f"{block}.norm.norms.{i}", part) for i, part in enumerate(parts)
            )
            y = torch.cat(parts, 2)
            dilation = (1, 2**stage)
            z = y.mean(2, keepdim=True)
            z = conv(state, f"{block}.temporal.0", z, padding=(0, 2**stage), dilation=dilation)
            z = normalised(state, f"{block}.temporal.1", z)
            z = conv(state, f"{block}.temporal.3", z * z.sigmoid())
            x = F.relu(y + z if number == 0 else y + z + x)
    x = conv(state, "head.1", conv(state, "head.0", x, padding=(0, 2)))
    x = F.relu(normalised(state, "head.2", x)).mean((2, 3), keepdim=True)
    return conv(state, "classifier_conv", x).flatten(1)


@pytest.mark.parametrize(("bins", "bands"), [(80, 5), (64, 5), (40, 1)])
def test_logits_are_those_of_the_reference(bins: int, bands: int) -> None:
    network = randomised(cpprune.build_model("bc_resnet", num_classes=4, bands=bands)).eval()
    x = torch.randn(3, 1, bins, 21, generator=torch.Generator().manual_seed(1))
    expected = reference(network.state_dict(), x, bands)
    assert expected.std() > 0.1
    torch.testing.assert_close(network(x).double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("scale", "published"),
    [(1, "9.2"), (2, "27.3"), (3, "54.2"), (6, "188"), (8, "321")],
)
def test_it_has_the_parameters_of_the_paper(scale: float, published: str) -> None:
    """Table 1 of the paper, in thousands, for the 12 classes of Speech Commands."""
    network = cpprune.build_model("bc_resnet", num_classes=12, scale=scale)
    digits = len(published.partition(".")[2])
    assert f"{count_parameters(network) / 1000:.{digits}f}" == published


def test_every_band_has_its_own_statistics() -> None:
    norm = SubSpectralNorm(2, 3)
    x = torch.randn(8, 2, 12, 5, generator=torch.Generator().manual_seed(0))
    x = x * torch.arange(1, 13).view(1, 1, -1, 1)
    bands = norm(x).unflatten(2, (3, 4)).detach()
    torch.testing.assert_close(bands.mean((0, 3, 4)), torch.zeros(2, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        bands.var((0, 3, 4), correction=0), torch.ones(2, 3), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("wrong", [{"scale": 0.1}, {"bands": 0}, {"dropout": 1.0}], ids=str)
def test_a_wrong_number_is_named(wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=f"model.arguments.*{name}={wrong[name]}"):
        cpprune.build_model("bc_resnet", **wrong)
