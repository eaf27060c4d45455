"""What is true of ExecuTorch programs alone."""

import copy

import pytest
import torch
from export_jobs import clips_of, job_of
from export_models import make_model
from marks import has_wheels
from torch import nn

from cpprune.export.target import targets
from cpprune.models.quantized import calibrate, quantize


@pytest.mark.slow
@has_wheels
def test_a_model_trained_to_be_quantised(exported):
    """The program rounds to the same numbers as the network that was trained: no data is needed."""
    model = exported("small").model
    network = copy.deepcopy(model.network)
    quantize(network, model.input_shape)
    calibrate(network, [model.features(clips_of(model, 64, seed=1))])
    fake = make_model(network)
    program = targets()["executorch"].make(job_of(fake, None, "int8", calibration=None)).exported
    clips = clips_of(model, 1000, seed=7)
    expected = fake.logits(clips)
    found = program.logits(clips)
    assert (found.argmax(1) == expected.argmax(1)).float().mean() >= 0.999
    assert (found - model.logits(clips)).abs().max() > (found - expected).abs().max()


@pytest.mark.slow
@has_wheels
def test_the_file_needs_nothing_of_cpprune(exported, product, tmp_path):
    from executorch.runtime import Runtime

    model = exported("small").model
    clips = clips_of(model, 1, seed=3)
    path = tmp_path / "small.pte"
    path.write_bytes(product("executorch", "small").files[""])
    method = Runtime.get().load_program(path).load_method("forward")
    (logits,) = method.execute([clips.float() / 32768])
    torch.testing.assert_close(logits, model.logits(clips), atol=1e-4, rtol=0)


@has_wheels
def test_a_layer_that_is_not_there(refused, tiny_run, scenes, tmp_path):
    command = ("export", tiny_run / "model", "--to", "executorch", "--out", tmp_path / "a.pte")
    options = ("--precision", "int8", "--data", scenes, "--keep-float", "fristt")
    refused(*command, *options, names=["--keep-float fristt", "did you mean first"])


def test_sensitivity_is_not_measured(refused, tiny_run, scenes, tmp_path):
    command = ("export", tiny_run / "model", "--to", "executorch", "--out", tmp_path / "a.pte")
    options = ("--precision", "int8", "--data", scenes, "--sensitivity")
    refused(*command, *options, names=["--sensitivity", "executorch"])
    assert not any(tmp_path.iterdir())


class SumInPlace(nn.Module):
    """A residual block as timm's ResNets have it: `x += shortcut`."""

    def __init__(self):
        super().__init__()
        self.stem, self.body = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Conv2d(4, 3, 1)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        y = self.body(x)
        y += x
        return self.head(torch.relu(y)).mean((2, 3))


@pytest.mark.slow
@has_wheels
def test_a_sum_in_place_is_exported_in_int8():
    torch.manual_seed(0)
    model = make_model(SumInPlace(), None)
    made = targets()["executorch"].make(job_of(model, None, "int8", run=True))
    clips = clips_of(model, 4)
    assert torch.allclose(made.exported.logits(clips), model.logits(clips), atol=0.05)


class TwoLinear(nn.Module):
    """Linear layers whose outputs are not quantised: one before an activation, one at the end."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3)
        self.hidden, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = torch.relu(self.stem(x)).mean((2, 3))
        return self.head(nn.functional.gelu(self.hidden(x)))


@pytest.mark.slow
@has_wheels
def test_linear_layers_whose_outputs_are_not_quantised():
    torch.manual_seed(0)
    model = make_model(TwoLinear(), None)
    quantize(model.network, model.input_shape)
    calibrate(model.network, [model.features(clips_of(model, 32))])
    made = targets()["executorch"].make(job_of(model, None, "int8", run=True))
    clips = clips_of(model, 64, seed=1)
    assert torch.allclose(made.exported.logits(clips), model.logits(clips), atol=1e-3)
