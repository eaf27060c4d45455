"""What the ONNX target says of processors on which products of int8 saturate."""

import pytest
import torch
from export_jobs import job_of

from cpprune.export.onnx_session import EXACT
from cpprune.export.targets.onnx_file import _warn_of_saturation


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
