"""AAC and the like: decoded where ffmpeg is installed, and named with the remedy where it is not."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from shards.audio.load import BadFile, load, measure
from shards.build.dataset import build_dataset
from shards.build.plan import BuildOptions


@pytest.fixture
def m4a(tmp_path: Path) -> Path:
    """Two seconds of a tone, as AAC."""
    if shutil.which("ffmpeg") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("ffmpeg is not installed")
    wave = 0.3 * np.sin(2 * np.pi * 440 * np.arange(88_200) / 44_100)
    soundfile.write(tmp_path / "tone.wav", np.stack([wave, wave], axis=1), 44_100)
    file = tmp_path / "tone.m4a"
    encode(tmp_path / "tone.wav", file)
    return file


def encode(wav: Path, file: Path, *options: str) -> None:
    command = ["ffmpeg", "-nostdin", "-v", "error", "-y", "-i", str(wav), *options, f"file:{file}"]
    subprocess.run(command, check=True)


def test_it_is_decoded(m4a: Path) -> None:
    samples = load(m4a, 32_000).samples
    assert len(samples) == measure(m4a, 32_000)
    assert 64_000 <= len(samples) < 66_000
    spectrum = np.abs(np.fft.rfft(samples[16_000:48_000]))
    assert int(spectrum.argmax()) == 440
    assert 2 * spectrum.max() / 32_000 / 32_768 == pytest.approx(0.3, abs=0.01)


def test_names_that_look_like_something_else(m4a: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load(m4a, 32_000).samples
    monkeypatch.chdir(m4a.parent)
    for name in ("-y.m4a", "http:x.m4a", "concat:a|b.m4a", "caf\udce9.m4a", "%03d.m4a"):
        shutil.copy(m4a, name)
        assert (load(name, 32_000).samples == whole).all()


def test_playlists_are_not_followed(m4a: Path) -> None:
    for text in (f"ffconcat version 1.0\nfile {m4a.name}\n", f"#EXTM3U\n#EXTINF:2,\n{m4a.name}\n"):
        (m4a.parent / "list.m4a").write_text(text)
        with pytest.raises(BadFile):
            load(m4a.parent / "list.m4a", 32_000)


@pytest.mark.parametrize("ending", ["m4a", "aac", "mka"])
def test_it_is_cut_off(ending: str, m4a: Path) -> None:
    file = m4a.parent / f"whole.{ending}"
    encode(m4a.parent / "tone.wav", file, *(["-movflags", "+faststart"] if ending == "m4a" else []))
    data = file.read_bytes()
    for place in np.linspace(200, len(data) - 200, 8).astype(int):
        file.write_bytes(data[:place])
        with pytest.raises(BadFile) as caught:
            load(file, 32_000)
        assert "\n" not in str(caught.value)


def test_without_ffmpeg_the_remedy_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.m4a").write_bytes(b"\0\0\0\x18ftypM4A " + bytes(100))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadFile, match="ffmpeg is needed to decode it: install ffmpeg"):
        measure(tmp_path / "a.m4a", 32_000)


def test_a_folder_of_it_is_built(m4a: Path) -> None:
    for name in ("a", "b"):
        (m4a.parent / "source" / name).mkdir(parents=True)
        for number in range(5):
            shutil.copy(m4a, m4a.parent / "source" / name / f"{number}.m4a")
            with (m4a.parent / "source" / name / f"{number}.m4a").open("ab") as file:
                # A box of its own for each: copies of one file are kept together.
                file.write(b"\0\0\0\x0cfree" + bytes((0, 0, number, ord(name))))
    options = BuildOptions(kind="folder", source=m4a.parent / "source")
    manifest = build_dataset(options, m4a.parent / "out", workers=1)
    assert sum(split["count"] for split in manifest.splits.values()) == 20
