"""What the ONNX target says of processors on which products of int8 saturate."""

import copy

import pytest
import torch
from export_jobs import job_of

from cpprune.export.onnx_session import EXACT
from cpprune.export.targets.onnx_file import _warn_of_saturation
from cpprune.models.quantized import quantize


class Gives:
    """A model with these logits for all clips."""

    def __init__(self, *logits):
        self.one = torch.tensor(logits)

    def logits(self, clips):
        return self.one.expand(len(clips), -1)


@pytest.mark.parametrize(("changed", "said"), [(4.9, False), (3.0, True)])
def test_logits_that_change(exported, caplog, changed, said):
    job = job_of(exported("small").model, None, "int8")
    _warn_of_saturation(job, Gives(5.0, 1.0), Gives(changed, 1.0))
    assert (EXACT[0] in caplog.text) is said
    assert ("up to 5.00 change by up to 2.00" in caplog.text) is said


@pytest.mark.parametrize(("kept", "said"), [(("first",), False), ((), True)])
def test_the_first_layer_is_named_unless_it_is_in_float32(exported, caplog, kept, said):
    job = job_of(exported("small").model, None, "int8", keep_float=kept)
    _warn_of_saturation(job, Gives(5.0, 1.0), Gives(3.0, 1.0))
    assert ("keep the first layer in float32" in caplog.text) is said


def test_a_trained_quantisation_says_which_layers_are_in_float32(exported, caplog):
    model = copy.deepcopy(exported("small").model)
    quantize(model.network, model.input_shape, [])
    job = job_of(model, None, "int8")
    _warn_of_saturation(job, Gives(5.0, 1.0), Gives(3.0, 1.0))
    assert "keep the first layer in float32" in caplog.text
