"""`cpprune listen`: what it prints of files, pipes and microphones."""

import io
import json
import sys
import types

import numpy as np
import pytest
import soundfile
import torch

import cpprune

RATE = 32_000


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """Two seconds and a quarter: noise that grows louder."""
    rng = np.random.default_rng(1)
    wave = rng.normal(0, np.linspace(0.01, 0.2, 72_000))
    path = tmp_path_factory.mktemp("recording") / "noise.wav"
    soundfile.write(path, wave, RATE, subtype="PCM_16")
    return path


def rows(outcome):
    assert outcome.status == 0, outcome.err
    return [json.loads(line) for line in outcome.out.splitlines()]


def pipe(monkeypatch, data):
    stdin = types.SimpleNamespace(buffer=io.BytesIO(data), isatty=lambda: False)
    monkeypatch.setattr(sys, "stdin", stdin)


def test_windows_are_those_of_the_model(cli, tiny_run, recording):
    outcome = cli("listen", tiny_run / "model", "--file", recording, "--json", "--smoothing", 0)
    found = rows(outcome)
    assert [row["seconds"] for row in found] == [1.0, 1.5, 2.0]
    samples, _ = soundfile.read(recording, dtype="int16")
    model = cpprune.load(tiny_run / "model")
    for row in found:
        end = round(row["seconds"] * RATE)
        clip = torch.from_numpy(samples[end - RATE : end].astype(np.float32) / 32768)[None]
        with torch.no_grad():
            probabilities = model(clip).double().softmax(1)[0]
        for name, p in zip(model.classes, probabilities.tolist(), strict=True):
            assert row["probabilities"][name] == pytest.approx(p, abs=1e-5)
        assert row["prediction"] == model.classes[int(probabilities.argmax())]
    assert "0.25 s after the last window not classified" in outcome.err


def test_a_pipe_is_heard_as_the_file(cli, tiny_run, recording, monkeypatch):
    words = ["listen", tiny_run / "model", "--hop", 0.3]
    of_file = cli(*words, "--file", recording).out
    assert len(of_file.splitlines()) == 5
    samples, _ = soundfile.read(recording, dtype="int16")
    pipe(monkeypatch, samples.astype("<i2").tobytes())
    assert cli(*words, "--raw").out == of_file


def test_other_rates_and_channels_are_converted(cli, tiny_run, recording, tmp_path):
    wave, _ = soundfile.read(recording)
    other = tmp_path / "stereo.flac"
    soundfile.write(other, np.stack([wave, wave], 1)[::2], RATE // 2)
    found = rows(cli("listen", tiny_run / "model", "--file", other, "--json"))
    assert [row["seconds"] for row in found] == [1.0, 1.5, 2.0]


def test_a_short_file_is_padded_and_it_is_said(cli, tiny_run, tmp_path):
    soundfile.write(tmp_path / "short.wav", np.full(8000, 0.1), RATE)
    outcome = cli("listen", tiny_run / "model", "--file", tmp_path / "short.wav")
    assert outcome.status == 0
    assert len(outcome.out.splitlines()) == 1
    assert "shorter than a window: padded with silence" in outcome.err


class FakeMicrophone:
    """A sounddevice that hears a wave, and is then interrupted by Ctrl-C."""

    class PortAudioError(Exception):
        pass

    class CallbackFlags:
        input_overflow = False

    def __init__(self, wave):
        self.wave = wave
        self.asked = None

    def InputStream(self, *, callback, blocksize, **asked):
        self.asked = asked
        if asked["device"] == "attic":
            raise ValueError("No input device matching 'attic'")
        return FakeStream(self.wave, callback, blocksize)


class FakeStream:
    def __init__(self, wave, callback, blocksize):
        self.wave, self.callback, self.blocksize = wave, callback, blocksize

    def __enter__(self):
        for begin in range(0, len(self.wave), self.blocksize):
            block = self.wave[begin : begin + self.blocksize, None]
            self.callback(block, len(block), None, FakeMicrophone.CallbackFlags())

    def __exit__(self, *_):
        pass


def test_a_microphone_is_heard_until_ctrl_c(cli, tiny_run, recording, monkeypatch):
    from cpprune.evaluation import live_audio

    samples, _ = soundfile.read(recording, dtype="int16")
    fake = FakeMicrophone(samples)
    monkeypatch.setitem(sys.modules, "sounddevice", fake)

    class UntilCtrlC(live_audio.queue.Queue):
        def get(self, block=True, timeout=None):
            if block and self.empty():
                raise KeyboardInterrupt
            return super().get(block, timeout)

    monkeypatch.setattr(live_audio.queue, "Queue", UntilCtrlC)
    words = ["listen", tiny_run / "model"]
    of_file = cli(*words, "--file", recording).out
    assert cli(*words, "--microphone", "2").out == of_file
    assert fake.asked == {"samplerate": RATE, "device": 2, "channels": 1, "dtype": "int16"}


def test_a_terminal_shows_bars_and_every_change(tiny_run, recording, monkeypatch):
    from cpprune.cli.listen import _live
    from cpprune.evaluation.listening import Moment

    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "dumb")
    with _live(("park", "bus")) as show:
        for seconds, p in ((1.0, 0.9), (1.5, 0.8), (2.0, 0.3)):
            show(Moment(seconds, np.array([p, 1 - p])))
    text = terminal.getvalue()
    assert text.count("1.00 s  park") == 1
    assert "1.50 s  park" not in text
    assert "2.00 s  bus" in text
    assert "70.0%" in text


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["--file", "nowhere.wav"], ["nowhere.wav"]),
        (["--file", "words.wav"], ["words.wav", "not readable as audio"]),
        (["--file", "noise.wav", "--hop", "0"], ["--hop 0"]),
        (["--file", "noise.wav", "--hop", "nan"], ["--hop nan"]),
        (["--file", "noise.wav", "--smoothing", "-1"], ["--smoothing -1"]),
        (["--file", "noise.wav", "--value", "a"], ["--value a"]),
        (["--file", "noise.wav", "--raw"], ["--raw", "--file"]),
        ([], ["--file", "--microphone", "--raw"]),
    ],
)
def test_mistakes_are_one_line(refused, tiny_run, recording, tmp_path, monkeypatch, words, names):
    (tmp_path / "noise.wav").write_bytes(recording.read_bytes())
    (tmp_path / "words.wav").write_text("these are words")
    monkeypatch.chdir(tmp_path)
    refused("listen", tiny_run / "model", *words, names=names)


def test_standard_input_that_is_closed(refused, tiny_run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    refused("listen", tiny_run / "model", "--raw", names=["--raw", "standard input is closed"])


def test_ctrl_c_before_the_first_window(cli, tiny_run, monkeypatch):
    class Interrupted(io.BytesIO):
        def read1(self, size=-1):
            if not (data := super().read1(size)):
                raise KeyboardInterrupt
            return data

    stdin = types.SimpleNamespace(buffer=Interrupted(bytes(2000)), isatty=lambda: False)
    monkeypatch.setattr(sys, "stdin", stdin)
    outcome = cli("listen", tiny_run / "model", "--raw")
    assert (outcome.status, outcome.out) == (0, "")
    assert "nothing classified" in outcome.err
    assert "padded" not in outcome.err


@pytest.mark.parametrize(
    ("data", "said"), [(b"", "no samples"), (bytes(64_001), "within a sample")]
)
def test_what_is_piped_must_be_samples(cli, tiny_run, monkeypatch, data, said):
    pipe(monkeypatch, data)
    outcome = cli("listen", tiny_run / "model", "--raw")
    assert outcome.status == 2
    assert said in outcome.err
    assert outcome.err.count("\n") == 1


def test_microphones_that_are_not_there(refused, tiny_run, monkeypatch):
    words = ["listen", tiny_run / "model", "--microphone"]
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    refused(*words, names=["sounddevice", "cpprune[microphone]"])
    monkeypatch.setitem(sys.modules, "sounddevice", FakeMicrophone(None))
    refused(*words, "attic", names=["'attic'", "No input device", "python -m sounddevice"])
