"""Batches on their way to a GPU: what waits for what, on one that only takes notes and on a real one."""

import threading
from contextlib import contextmanager

import numpy as np
import pytest
import torch

import shards
from cpprune.data.config import DataConfig
from cpprune.data.loader import TrainingLoader
from cpprune.data.prefetch import Prefetcher

CPU = torch.device("cpu")


class Notes:
    """What was asked of CUDA, in order; `now` is the current stream."""

    def __init__(self, monkeypatch):
        self.lines, self.now = [], "step"
        notes = self

        class Stream:
            def __init__(self, device):
                self.name = "side" if notes.now == "step" else notes.now

            def wait_stream(self, other):
                notes.lines.append(("side waits for", other.name))

            def wait_event(self, event):
                notes.lines.append((f"{self.name} waits for batch", event.recorded))

        class Event:
            recorded = None

            def record(self, stream):
                assert stream.name == "side"
                self.recorded = notes.sent
                notes.sent += 1
                notes.lines.append(("sent", self.recorded))

            def synchronize(self):
                assert threading.current_thread() is threading.main_thread()
                notes.lines.append(("host waits for batch", self.recorded))

        @contextmanager
        def stream(chosen):
            notes.now = chosen.name
            yield
            notes.now = "step"

        def record_stream(tensor, chosen):
            notes.lines.append(("memory is used on", chosen.name))

        def current_stream(device):
            assert notes.now == "step"
            found = Stream(device)
            found.name = "step"
            return found

        self.sent = 0
        empty = torch.empty
        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "stream", stream)
        monkeypatch.setattr(torch.cuda, "current_stream", current_stream)
        monkeypatch.setattr(torch.Tensor, "record_stream", record_stream)
        monkeypatch.setattr(
            torch, "empty", lambda *a, pin_memory=False, **k: empty(*a, **k).fill_(-1)
        )


@pytest.fixture
def notes(monkeypatch):
    return Notes(monkeypatch)


TABLE = torch.arange(40, dtype=torch.int16).view(20, 2)


def read(positions, out):
    assert threading.current_thread() is not threading.main_thread()
    torch.index_select(TABLE, 0, torch.from_numpy(positions), out=out)


def wanted(*lengths):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 20, n) for n in lengths]


def test_each_batch_is_sent_ahead_and_waited_for(notes):
    prefetcher = Prefetcher(CPU, (2,), torch.int16, 5, read, lambda rows: rows.clone())
    parts = wanted(5, 5, 3, 5)
    for number, batch in enumerate(prefetcher.batches(parts)):
        notes.lines.append(("step", number))
        assert torch.equal(batch, TABLE[torch.from_numpy(parts[number])])
    lines = notes.lines
    assert lines[0] == ("side waits for", "step")  # the table was written there
    for number in range(4):
        at = lines.index(("step", number))
        assert lines[at - 2 : at] == [
            ("step waits for batch", number),
            ("memory is used on", "step"),
        ]
        if number < 3:
            assert lines.index(("sent", number + 1)) < at, "the next one is on its way"
        if number >= 2:  # no buffer is filled anew before its rows have left
            assert lines.index(("host waits for batch", number - 2)) < lines.index(("sent", number))
    assert [line for line in lines if line[0] == "sent"] == [("sent", n) for n in range(4)]


def test_an_epoch_that_is_left_leaves_nothing_behind(notes):
    prefetcher = Prefetcher(CPU, (2,), torch.int16, 5, read, lambda rows: rows.clone())
    threads = threading.active_count()
    left = prefetcher.batches(wanted(5, 5, 5, 5))
    next(left)
    left.close()
    assert threading.active_count() == threads
    parts = wanted(4, 1)
    found = list(prefetcher.batches(parts))
    assert [len(batch) for batch in found] == [4, 1]
    assert torch.equal(found[1], TABLE[torch.from_numpy(parts[1])])
    assert list(prefetcher.batches([])) == []


def test_what_cannot_be_read_ends_the_epoch(notes):
    def fails(positions, out):
        raise shards.UserError("damaged")

    prefetcher = Prefetcher(CPU, (2,), torch.int16, 5, fails)
    with pytest.raises(shards.UserError, match="damaged"):
        list(prefetcher.batches(wanted(5, 5)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("where", ["off", "host", "device", "auto"])
def test_a_gpu_gets_the_same_batches(scenes, where):
    dataset, device = shards.open_dataset(scenes), torch.device("cuda")
    found = TrainingLoader(
        dataset, DataConfig(in_memory=where), 9, 3, rank=1, world=2, device=device
    )
    for epoch in (0, 1):
        for batch in found.epoch(epoch, 1):
            assert batch.clips.is_cuda
            torch.cuda._sleep(1_000_000)  # the step is slow, and its clips are read after it
            own = batch.ids[batch.start : batch.stop]
            assert (batch.clips.cpu().numpy() == dataset.fetch(own)).all()
    dataset.close()
