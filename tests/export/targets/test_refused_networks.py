"""Networks of other types than float32, or without layers for int8: exported, or refused in a line."""

import pytest
import torch
from export_jobs import clips_of, job_of
from export_models import make_model
from torch import nn

from cpprune.export.target import targets
from shards.errors import UserError


class Computes(nn.Module):
    """A network that computes something between its layers."""

    def __init__(self, between):
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 4, 3), nn.Linear(4, 3)
        self.between = between

    def forward(self, x):
        return self.last(self.between(self.first(x)).mean((2, 3)))


def selected(x):
    return torch.where(x > 0, x, 0.1 * x)


def exported(between, target, precision="fp32"):
    torch.manual_seed(0)
    model = make_model(Computes(between), None)
    return model, targets()[target].make(job_of(model, "features", precision, run=True)).exported


def test_c_selects():
    model, made = exported(selected, "c")
    clips = clips_of(model, 3, seed=7)
    torch.testing.assert_close(made.logits(clips), model.logits(clips), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("between", "precision", "reason"),
    [
        (lambda x: (x.double() * 2).float(), "fp32", r"computes .* as tensor\(double\); .*float32"),
        (lambda x: (x.half() * 2).float(), "int8", r"to C: .*float16"),
        (selected, "int8", "cannot be quantised: .*; export it in fp32"),
    ],
)
def test_what_c_cannot_hold(between, precision, reason):
    with pytest.raises(UserError, match=reason):
        exported(between, "c", precision)


class Recurrent(nn.Module):
    """No convolution and no linear layer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.GRU(28, 3, batch_first=True)

    def forward(self, x):
        return self.layer(x[:, 0])[0][:, -1]


@pytest.mark.parametrize("target", ["c", "onnx"])
def test_nothing_that_int8_takes(target):
    model = make_model(Recurrent(), None)
    with pytest.raises(UserError, match=r"no convolution.* which int8 is for: export it in fp32"):
        targets()[target].make(job_of(model, "features", "int8"))
