"""Whether to stop, asked on GPUs: the answer comes one question later, and at once between epochs."""

import pytest
import torch

from cpprune.distributed import preemption

CUDA = torch.device("cuda")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """A rank of two, whose maximum over the ranks is its own value."""
    monkeypatch.setattr(preemption, "world_size", lambda: 2)
    monkeypatch.setattr(preemption, "all_reduce_max", lambda values: values)
    return preemption.Preemption(tmp_path, 0, signals=False)


def test_the_answer_comes_one_question_later(asked):
    assert asked.stop_reason(4, CUDA) == ""
    asked.reason = "SIGTERM"
    assert [asked.stop_reason(step, CUDA) for step in (5, 8, 9, 12)] == ["", "", "", "SIGTERM"]


def test_between_epochs_it_comes_at_once(asked):
    asked.reason = "SIGTERM"
    assert asked.stop_reason(0, CUDA) == "SIGTERM"
