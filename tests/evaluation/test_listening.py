"""Windows of continuous audio, and their moving average, against a reference in float64."""

import math

import numpy as np
import pytest
import torch

from cpprune.evaluation.listening import Listener

RATE = 1000
LENGTH = 400
K = 3


class Loudness:
    """A classifier whose logits follow from all samples of a clip, and which counts its clips."""

    classes = ("a", "b", "c")
    clip_shape = (LENGTH,)
    sample_rate = RATE

    def __init__(self):
        self.seen = 0

    def logits(self, clips):
        assert clips.dtype == torch.int16
        assert clips.shape[1:] == (LENGTH,)
        self.seen += len(clips)
        return torch.stack([of_clip(row) for row in clips.double()]).float()


def of_clip(clip):
    x = clip / 32768
    return torch.stack([10 * x.mean(), 5 * x.std(), 20 * (x[: LENGTH // 2].mean() - x[-1])])


@pytest.fixture
def wave():
    rng = np.random.default_rng(5)
    loudness = np.repeat(rng.uniform(10, 9000, 12), 200)
    return (rng.normal(size=len(loudness)) * loudness).clip(-32768, 32767).astype(np.int16)


def by_hand(wave, hop, smoothing):
    """Ends of the windows in seconds, and their smoothed probabilities."""
    ends, rows = [], []
    begin = 0
    while begin + LENGTH <= len(wave):
        logits = of_clip(torch.from_numpy(wave[begin : begin + LENGTH].astype(np.float64)))
        p = torch.softmax(logits, 0).numpy()
        if rows and smoothing:
            kept = math.exp(-(hop / RATE) / smoothing)
            p = kept * rows[-1] + (1 - kept) * p
        rows.append(p)
        ends.append((begin + LENGTH) / RATE)
        begin += hop
    return ends, np.stack(rows)


def pieces(wave, sizes):
    """The wave in blocks, whose lengths repeat those of `sizes`."""
    begin = number = 0
    while begin < len(wave):
        size = sizes[number % len(sizes)]
        yield wave[begin : begin + size]
        begin += size
        number += 1


@pytest.mark.parametrize("sizes", [[10_000], [1], [37, 0, 500], [LENGTH], [999, 1]], ids=str)
@pytest.mark.parametrize(("hop", "smoothing"), [(100, 0.3), (400, 1.0), (650, 2.0), (33, 0.0)])
def test_every_window_is_classified_and_smoothed(wave, hop, smoothing, sizes):
    listener = Listener(Loudness(), hop, smoothing)
    moments = list(listener.listen(pieces(wave, sizes)))
    ends, rows = by_hand(wave, hop, smoothing)
    assert [moment.seconds for moment in moments] == pytest.approx(ends)
    np.testing.assert_allclose([moment.probabilities for moment in moments], rows, atol=1e-6)
    assert listener.heard == len(wave)
    assert listener.classified == round(ends[-1] * RATE)
    assert listener.model.seen == len(ends)


def test_a_window_is_classified_as_soon_as_its_last_sample_is_there(wave):
    blocks = pieces(wave, [50])
    taken = 0

    def counted():
        nonlocal taken
        for block in blocks:
            taken += len(block)
            yield block

    for moment in Listener(Loudness(), 150, 1.0).listen(counted()):
        assert taken - 50 < round(moment.seconds * RATE) <= taken


def test_audio_shorter_than_a_window_is_padded(wave):
    short = wave[:130]
    (moment,) = Listener(Loudness(), 100, 1.0).listen([short[:100], short[100:]])
    _, rows = by_hand(np.pad(short, (0, LENGTH - 130)), 100, 1.0)
    np.testing.assert_allclose(moment.probabilities, rows[0], atol=1e-6)
    assert moment.seconds == 0.13
    assert list(Listener(Loudness(), 100, 1.0).listen([])) == []
