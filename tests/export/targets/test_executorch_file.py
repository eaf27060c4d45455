"""What is true of ExecuTorch programs alone."""

import pytest
import torch
from export_jobs import clips_of, job_of
from export_models import make_model
from marks import has_wheels
from torch import nn

from cpprune.export.target import targets


@pytest.mark.slow
@has_wheels
def test_the_file_needs_nothing_of_cpprune(exported, product, tmp_path):
    model = exported("small").model
    clips = clips_of(model, 1, seed=3)
    path = tmp_path / "small.pte"
    path.write_bytes(product("executorch", "small").files[""])
    from executorch.runtime import Runtime  # warns when it is imported first

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


class InPlace(nn.Module):
    """A residual block as timm's ResNets have it: `x += shortcut`, and ReLU in place."""

    def __init__(self):
        super().__init__()
        self.stem, self.body = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Conv2d(4, 3, 1)

    def forward(self, x):
        x = nn.functional.relu(self.stem(x), inplace=True)
        y = nn.functional.relu(self.body(x), inplace=True)
        y += x
        return self.head(nn.functional.relu6(y, inplace=True)).mean((2, 3))


@pytest.mark.slow
@has_wheels
def test_what_is_in_place_is_exported_in_int8():
    torch.manual_seed(0)
    model = make_model(InPlace(), None)
    made = targets()["executorch"].make(job_of(model, None, "int8", run=True))
    clips = clips_of(model, 4)
    assert torch.allclose(made.exported.logits(clips), model.logits(clips), atol=0.05)
