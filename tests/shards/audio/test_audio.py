from pathlib import Path

import numpy as np
import pytest
import soundfile

from shards.audio import load as audio
from shards.audio.clips import count_clips, cut, encode, wav_header
from shards.audio.load import BadFile, Clips, measure, output_length, quantise


def load(file: Path, sample_rate: int) -> Clips:
    return audio.load(file, sample_rate).samples


def test_quantising_is_rounding_and_clipping() -> None:
    wave = np.array([0, 1, -1, 2, -2, 0.5, 1.4 / 32768, 1.6 / 32768], dtype=np.float32)
    assert quantise(wave).tolist() == [0, 32767, -32768, 32767, -32768, 16384, 1, 2]


def test_sixteen_bit_files_keep_their_samples(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(-32768, 32768, 5000, dtype=np.int16)
    soundfile.write(tmp_path / "a.wav", samples, 32000, subtype="PCM_16")
    assert (load(tmp_path / "a.wav", 32000) == samples).all()


@pytest.mark.parametrize(("rate", "name"), [(48000, "a.flac"), (44100, "a.wav"), (8000, "a.aiff")])
def test_stereo_is_mixed_and_resampled(rate: int, name: str, tmp_path: Path) -> None:
    hertz, seconds = 997.0, 2.0
    time = np.arange(round(rate * seconds)) / rate
    left = 0.6 * np.sin(2 * np.pi * hertz * time)
    soundfile.write(tmp_path / name, np.stack([left, left / 3], axis=1), rate, subtype="PCM_24")
    heard = load(tmp_path / name, 32000)
    assert len(heard) == 64000
    assert heard.dtype == np.int16
    middle = heard[16000:48000] / 32768
    # An independent reference: the sine itself, at the new rate, with the mean of both levels.
    expected = 0.4 * np.sin(2 * np.pi * hertz * np.arange(16000, 48000) / 32000)
    assert np.abs(middle - expected).max() < 2e-4
    spectrum = np.abs(np.fft.rfft(middle))
    assert int(spectrum.argmax()) == 997
    assert 2 * spectrum.max() / len(middle) == pytest.approx(0.4, abs=1e-4)


@pytest.mark.parametrize("form", ["FLOAT", "DOUBLE", "PCM_U8", "ULAW"])
def test_any_sample_format(form: str, tmp_path: Path) -> None:
    wave = 0.5 * np.sin(np.arange(16000) / 20)
    soundfile.write(tmp_path / "a.wav", wave, 16000, subtype=form)
    assert measure(tmp_path / "a.wav", 16000) == 16000
    assert np.abs(load(tmp_path / "a.wav", 16000) / 32768 - wave).max() < 0.02


@pytest.mark.parametrize(
    ("rate", "frames"), [(44100, 44100), (11025, 7), (48000, 100001), (22050, 1)]
)
def test_the_planned_length_is_the_real_one(rate: int, frames: int, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(frames), rate)
    expected = round(frames * 32000 / rate)
    assert measure(tmp_path / "a.wav", 32000) == len(load(tmp_path / "a.wav", 32000)) == expected
    assert output_length(frames, rate, 32000) == expected


def test_cutting() -> None:
    samples = np.arange(1, 26, dtype=np.int16)
    assert count_clips(25, 10, "pad", 0.5) == 3
    assert count_clips(25, 10, "drop", 0.5) == 2
    assert cut(samples, 1, 10).tolist() == list(range(11, 21))
    assert cut(samples, 2, 10).tolist() == [21, 22, 23, 24, 25, 0, 0, 0, 0, 0]


def test_the_wav_header_is_the_canonical_one(tmp_path: Path) -> None:
    samples = np.arange(100, dtype=np.int16)
    soundfile.write(tmp_path / "a.wav", samples, 32000, subtype="PCM_16")
    assert encode(samples, 32000, "wav") == (tmp_path / "a.wav").read_bytes()
    assert len(wav_header(100, 32000)) == 44


def test_bad_files(tmp_path: Path) -> None:
    wave = np.zeros(1000, dtype=np.float32)
    wave[500] = np.inf
    soundfile.write(tmp_path / "infinite.wav", wave, 8000, subtype="FLOAT")
    soundfile.write(tmp_path / "nothing.wav", np.zeros(0), 8000)
    soundfile.write(tmp_path / "whole.wav", np.zeros(1000), 8000)
    (tmp_path / "cut.wav").write_bytes((tmp_path / "whole.wav").read_bytes()[:1000])
    soundfile.write(tmp_path / "whole.flac", np.random.default_rng(0).uniform(-1, 1, 20000), 8000)
    (tmp_path / "cut.flac").write_bytes((tmp_path / "whole.flac").read_bytes()[:20000])
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("no audio")
    reasons = {
        "infinite.wav": "not finite",
        "nothing.wav": "no samples",
        "cut.wav": "cut short: 956 of 2000 bytes",
        "cut.flac": "can be decoded|not readable",
        "empty.wav": "the file is empty",
        "text.wav": "not readable as audio",
        "missing.wav": "no such file",
    }
    for name, reason in reasons.items():
        with pytest.raises(BadFile, match=reason) as caught:
            load(tmp_path / name, 8000)
        assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("name", ["a.mp3", "a.ogg", "a.flac", "a.aiff", "a.au", "a.caf"])
def test_any_file_format(name: str, tmp_path: Path) -> None:
    wave = 0.5 * np.sin(2 * np.pi * 440 * np.arange(3 * 44100) / 44100)
    soundfile.write(tmp_path / name, wave, 44100)
    samples = load(tmp_path / name, 32000)
    assert len(samples) == measure(tmp_path / name, 32000) == pytest.approx(96000, abs=3000)
    spectrum = np.abs(np.fft.rfft(samples[32000:64000]))
    assert int(spectrum.argmax()) == 440
