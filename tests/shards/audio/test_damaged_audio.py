"""Audio that is not what its header says: all of it, or a file with a reason; never anything else."""

import csv
import os
import shutil
import struct
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from shards.audio.load import BadFile, load, measure
from shards.build.dataset import build_dataset
from shards.build.plan import BuildOptions
from shards.reader import open_dataset

Wave = NDArray[np.float64]


def chord(seconds: float, rate: int, level: float = 0.3) -> Wave:
    time = np.arange(round(seconds * rate)) / rate
    return level * (np.sin(2 * np.pi * 220 * time) + np.sin(2 * np.pi * 550 * time)) / 2


def write(path: Path, wave: Wave, rate: int, **how: object) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, rate, **how)
    return path.read_bytes()


def clips_of(dataset: Path) -> dict[str, NDArray[np.int16]]:
    """Key to samples of all clips."""
    opened = open_dataset(dataset)
    found = {}
    for name in opened.manifest.splits:
        split = opened.split(name)
        found.update(zip(split.keys, split.fetch(range(len(split))), strict=True))
    return found


# --- cut off ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_half_a_download_holds_no_other_sound(tmp_path: Path, workers: int) -> None:
    """Six quiet MP3s that were cut off, beside whole and loud ones."""
    quiet = tmp_path / "source" / "quiet"
    noise = np.random.default_rng(0)
    for number in range(6):
        data = write(quiet / f"cut{number}.mp3", 0.002 * noise.normal(size=80_000), 16_000)
        (quiet / f"cut{number}.mp3").write_bytes(data[: len(data) * (4 + number) // 12])
        write(quiet / f"whole{number}.mp3", 0.002 * noise.normal(size=80_000), 16_000)
        loud = np.sign(np.sin(np.arange(80_000) / 30))
        write(tmp_path / "source" / "loud" / f"{number}.mp3", 0.8 * loud, 16_000)
    options = BuildOptions(
        kind="folder", source=tmp_path / "source", on_error="skip", sample_rate=16_000
    )
    manifest = build_dataset(options, tmp_path / "out", workers=workers)
    clips = clips_of(tmp_path / "out")
    levels = {key: np.abs(clip).max() for key, clip in clips.items() if key.startswith("quiet")}
    assert max(levels.values()) < 1000, "the sound of another file"
    assert len(levels) == 30
    assert manifest.rejected is not None
    assert manifest.rejected["count"] == 6
    with (tmp_path / "out" / "rejected.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert all("cut short" in row["reason"] for row in rows)


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [
        ("WAV", "PCM_16"),
        ("WAV", "IMA_ADPCM"),
        ("RF64", "PCM_16"),
        ("W64", "PCM_24"),
        ("AIFF", "PCM_16"),
        ("AU", "PCM_16"),
        ("CAF", "FLOAT"),
        ("NIST", "PCM_16"),
        ("SVX", "PCM_16"),
        ("MAT5", "FLOAT"),
        ("MAT4", "FLOAT"),
        ("FLAC", "PCM_16"),
        ("OGG", "VORBIS"),
        ("OGG", "OPUS"),
        ("MP3", "MPEG_LAYER_III"),
    ],
)
def test_every_cut_is_noticed(kind: str, subtype: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    data = write(file, chord(2.3, 16_000), 16_000, format=kind, subtype=subtype)
    whole = len(load(file, 16_000).samples)
    assert whole == measure(file, 16_000)
    assert 36_800 <= whole <= 36_800 + 1017
    for place in np.linspace(len(data) // 20, len(data) - 1, 20).astype(int):
        file.write_bytes(data[:place])
        with pytest.raises(BadFile) as caught:
            load(file, 16_000)
        assert "\n" not in str(caught.value)


def test_where_the_header_says_so_the_reason_is_that_it_is_cut_short(tmp_path: Path) -> None:
    for kind in ("WAV", "RF64", "W64", "AIFF", "AU", "OGG", "MP3"):
        data = write(tmp_path / "file", chord(2.3, 16_000), 16_000, format=kind)
        (tmp_path / "file").write_bytes(data[: len(data) * 3 // 4])
        with pytest.raises(BadFile, match=r"^cut short: "):
            measure(tmp_path / "file", 16_000)


# --- lengths that are unknown or wrong -----------------------------------------------------------


def without_its_header(mp3: bytes) -> bytes:
    """Returns an MP3 without its first frame, which states how many there are."""
    assert b"Xing" in mp3[:200] or b"Info" in mp3[:200]
    return mp3[mp3.index(mp3[:2], 4) :]


def test_all_of_a_variable_mp3_without_a_header_is_read(tmp_path: Path) -> None:
    rate = 44_100
    # Frames of silence are the smallest there are: where they come first, a length that is guessed from
    # the first frames is far too long; where they come last, most of the file would not be read.
    silence, sound = np.zeros(3 * rate), np.random.default_rng(0).uniform(-0.4, 0.4, 7 * rate)
    for wave in (np.concatenate([silence, sound]), np.concatenate([sound, silence])):
        data = write(tmp_path / "a.mp3", wave, rate, bitrate_mode="VARIABLE", compression_level=0.3)
        (tmp_path / "a.mp3").write_bytes(without_its_header(data))
        samples = load(tmp_path / "a.mp3", rate).samples
        assert len(samples) == measure(tmp_path / "a.mp3", rate)
        assert 10 * rate <= len(samples) <= 10 * rate + 3 * 1152
        level = [np.abs(samples[s * rate + 3000 : (s + 1) * rate - 3000]).max() for s in range(10)]
        assert [bool(peak > 3000) for peak in level] == [
            bool(wave[s * rate] != 0) for s in range(10)
        ]


def test_two_mp3s_in_a_row_are_both_read(tmp_path: Path) -> None:
    data = write(tmp_path / "a.mp3", chord(2, 32_000), 32_000)
    (tmp_path / "a.mp3").write_bytes(data + data)
    samples = load(tmp_path / "a.mp3", 32_000).samples
    assert 4 * 32_000 <= len(samples) <= 4 * 32_000 + 6 * 1152
    assert np.abs(samples[-40_000:-8_000]).max() > 5000


def test_the_decoder_of_mp3_prints_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = bytearray(write(tmp_path / "file.mp3", chord(2.3, 16_000), 16_000))
    data[1395 : 1395 + 800] = bytes(800)
    (tmp_path / "file.mp3").write_bytes(data)
    with pytest.raises(BadFile, match="can be decoded"):
        load(tmp_path / "file.mp3", 16_000)
    os.write(2, b"still heard")
    assert capfd.readouterr().err == "still heard"


def test_alac_whose_length_is_not_stated_is_refused(tmp_path: Path) -> None:
    """libsndfile takes what follows the last packet for sound; PCM ends with the file."""
    for subtype, refused in (("ALAC_16", True), ("PCM_16", False)):
        file = tmp_path / "file.caf"
        data = write(file, chord(2.3, 16_000), 16_000, format="CAF", subtype=subtype)
        size = data.index(b"data") + 4
        file.write_bytes(data[:size] + b"\xff" * 8 + data[size + 8 :])
        with pytest.raises(BadFile, match="states no length") if refused else nullcontext():
            assert len(load(file, 16_000).samples) == 36_800


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_an_ogg_need_not_say_which_page_is_its_last(subtype: str, tmp_path: Path) -> None:
    """Of recordings that Debian ships, a third do not; what ends within a page is cut short."""
    file = tmp_path / "file.ogg"
    data = write(file, chord(9.3, 48_000), 48_000, format="OGG", subtype=subtype)
    whole = load(file, 48_000).samples
    last = data.rindex(b"OggS")
    file.write_bytes(data[:last])
    found = load(file, 48_000).samples
    assert 48_000 < len(found) < len(whole)
    assert np.abs(found[:-960].astype(int) - whole[: len(found) - 960]).max() <= 1
    for end in (last - 1, last + 2):
        file.write_bytes(data[:end])
        with pytest.raises(BadFile, match="cut short"):
            load(file, 48_000)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_all_links_of_a_chained_ogg_are_read(subtype: str, tmp_path: Path) -> None:
    file = tmp_path / "a.ogg"
    parts = [
        write(file, chord(seconds, 48_000), 48_000, format="OGG", subtype=subtype)
        for seconds in (1, 2)
    ]
    alone = []
    for part in parts:
        file.write_bytes(part)
        alone.append(load(file, 48_000).samples)
    file.write_bytes(b"".join(parts))
    assert (load(file, 48_000).samples == np.concatenate(alone)).all()
    assert measure(file, 48_000) == 3 * 48_000
    file.write_bytes(parts[0][:-30] + parts[1])
    with pytest.raises(BadFile):
        load(file, 48_000)


def unknown_length(flac: bytes) -> bytes:
    return flac[:21] + bytes((flac[21] & 0xF0,)) + bytes(4 + 16) + flac[42:]


def test_a_flac_of_unknown_length(tmp_path: Path) -> None:
    file = tmp_path / "source" / "a" / "a.flac"
    samples = np.random.default_rng(0).integers(-3000, 3000, 40_000, dtype=np.int16)
    data = write(file, samples, 16_000)  # type: ignore[arg-type]
    file.write_bytes(unknown_length(data))
    assert measure(file, 16_000) == 40_000
    assert (load(file, 16_000).samples == samples).all()
    for number in range(9):
        shutil.copy(file, file.with_name(f"{number}.flac"))
    options = BuildOptions(kind="folder", source=tmp_path / "source", sample_rate=16_000)
    build_dataset(options, tmp_path / "out", workers=1)
    assert len(clips_of(tmp_path / "out")) == 30


@pytest.mark.parametrize("value", [0, 0xFFFFFFFF, 0x7FFFF000, 0x80000000])
def test_a_wav_that_was_written_to_a_pipe(value: int, tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(-3000, 3000, 40_000, dtype=np.int16)
    data = write(tmp_path / "a.wav", samples, 16_000)  # type: ignore[arg-type]
    (tmp_path / "a.wav").write_bytes(data[:40] + struct.pack("<I", value) + data[44:])
    assert measure(tmp_path / "a.wav", 16_000) == 40_000
    assert (load(tmp_path / "a.wav", 16_000).samples == samples).all()


def test_a_wav_without_samples_is_empty_whatever_follows(tmp_path: Path) -> None:
    data = write(tmp_path / "a.wav", np.zeros(0), 16_000)
    (tmp_path / "a.wav").write_bytes(data + b"LIST" + struct.pack("<I", 4) + b"INFO")
    with pytest.raises(BadFile, match="no samples"):
        measure(tmp_path / "a.wav", 16_000)


@pytest.mark.parametrize("kind", ["WAV", "W64", "AIFF"])
def test_gsm_has_the_samples_that_were_written(kind: str, tmp_path: Path) -> None:
    wave = chord(1.01, 8_000)
    write(tmp_path / "file", wave, 8_000, format=kind, subtype="GSM610")
    samples = load(tmp_path / "file", 8_000).samples
    assert len(samples) == measure(tmp_path / "file", 8_000)
    # Blocks of 160 samples or two of them, and none that is made of a filling byte.
    assert len(wave) <= len(samples) < len(wave) + 320
    assert np.abs(samples[400:8_000] / 32768 - wave[400:8_000]).max() < 0.2


@pytest.mark.parametrize("kind", ["W64", "NIST", "SVX", "AVR", "VOC"])
def test_what_lies_behind_the_samples_is_no_sound(kind: str, tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(-3000, 3000, 20_000, dtype=np.int16)
    data = write(tmp_path / "file", samples, 16_000, format=kind, subtype="PCM_16")  # type: ignore[arg-type]
    (tmp_path / "file").write_bytes(data + b"\x55" * 4000)
    assert (load(tmp_path / "file", 16_000).samples == samples).all()


# --- rests -----------------------------------------------------------------------------------------


def build(source: Path, out: Path, **options: object) -> dict[str, NDArray[np.int16]]:
    build_dataset(BuildOptions(kind="folder", source=source, **options), out, workers=1)  # type: ignore[arg-type]
    return clips_of(out)


def test_a_rest_is_a_clip_if_it_fills_half_of_one(tmp_path: Path) -> None:
    seconds = {"a": 1.002, "b": 1.499, "c": 1.5, "d": 0.1, "e": 10.0007, "f": 1.0}
    clips = {"a": 1, "b": 1, "c": 2, "d": 1, "e": 10, "f": 1}
    for name, length in seconds.items():
        write(tmp_path / "s" / "class" / f"{name}.wav", chord(length, 32_000), 32_000)
    found = build(tmp_path / "s", tmp_path / "half")
    counts = {
        name: sum(key.startswith((f"class/{name}", f"class_{name}")) for key in found)
        for name in clips
    }
    assert counts == clips
    audit = open_dataset(tmp_path / "half").manifest.source["audit"]
    assert audit["rests"] == 3
    assert len(build(tmp_path / "s", tmp_path / "any", min_sound=0.0)) == sum(clips.values()) + 3
    assert len(build(tmp_path / "s", tmp_path / "all", min_sound=1.0)) == sum(clips.values()) - 1
    assert len(build(tmp_path / "s", tmp_path / "drop", short="drop")) == sum(clips.values()) - 2


def test_codecs_that_fill_up_their_last_block_give_no_clip_of_it(tmp_path: Path) -> None:
    for number in range(10):
        how = {"subtype": "IMA_ADPCM"} if number % 2 else {"format": "MP3"}
        write(tmp_path / "s" / "class" / f"{number}.wav", chord(1, 32_000), 32_000, **how)
    assert len(build(tmp_path / "s", tmp_path / "out")) == 10


# --- what else can go wrong ------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Five minutes in stereo at 48 kHz, measured and decoded block by block in a process of its own."""
    frames = 5 * 60 * 48_000
    with soundfile.SoundFile(tmp_path / "a.flac", "w", 48_000, 2, "PCM_16") as file:
        for _ in range(20):
            file.write(np.zeros((frames // 20, 2), dtype=np.int16))
    script = (
        "import resource, sys; from shards.audio.load import blocks, measure; import soxr, soundfile\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak(); measure(sys.argv[1], 32000)\n"
        "samples = sum(len(block.samples) for block in blocks(sys.argv[1], 32000))\n"
        "print(samples, peak() - before)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "a.flac")]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    samples, kilobytes = map(int, told.stdout.split())
    assert samples == 5 * 60 * 32_000
    assert kilobytes < 40_000


def test_blocks_are_resampled_as_one(tmp_path: Path) -> None:
    import soxr

    wave = np.random.default_rng(0).uniform(-0.9, 0.9, 1_000_000).astype(np.float32)
    write(tmp_path / "a.wav", wave, 44_100, subtype="FLOAT")  # type: ignore[arg-type]
    whole = soxr.resample(wave, 44_100, 32_000, quality="HQ")
    samples = load(tmp_path / "a.wav", 32_000).samples
    assert (samples == np.rint(whole * 32768).clip(-32768, 32767)).all()


def test_samples_louder_than_full_scale_are_counted(tmp_path: Path) -> None:
    wave = np.zeros(100)
    wave[[3, 7, 9]] = (1.5, -1.2, 1.0)
    write(tmp_path / "a.wav", wave, 16_000, subtype="FLOAT")
    recording = load(tmp_path / "a.wav", 16_000)
    assert recording.clipped == 2
    assert recording.samples[[3, 7]].tolist() == [32767, -32768]
    assert not recording.silent


def test_names_that_are_no_text_and_files_that_are_none(tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path) + b"/caf\xe9.wav"
    write(tmp_path / "a.wav", chord(1, 16_000), 16_000)
    (tmp_path / "a.wav").rename(os.fsdecode(odd))
    assert measure(os.fsdecode(odd), 16_000) == 16_000
    assert len(load(Path(os.fsdecode(odd)), 16_000).samples) == 16_000
    os.mkfifo(tmp_path / "pipe.wav")
    for name, reason in {
        "pipe.wav": "not a regular file",
        ".": "not a regular file",
        "nothing.wav": "no such file",
        "nul\0.wav": "null byte",
    }.items():
        with pytest.raises(BadFile, match=reason):
            measure(tmp_path / name, 16_000)


@pytest.mark.parametrize("rate", [1, 999, 2_000_000_000])
def test_a_sample_rate_that_cannot_be(rate: int, tmp_path: Path) -> None:
    data = write(tmp_path / "a.wav", chord(1, 16_000), 16_000)
    (tmp_path / "a.wav").write_bytes(data[:24] + struct.pack("<I", rate) + data[28:])
    for read in (measure, load):
        with pytest.raises(BadFile, match=f"a sample rate of {rate} Hz"):
            read(tmp_path / "a.wav", 32_000)


def test_samples_beyond_all_measure(tmp_path: Path) -> None:
    write(tmp_path / "a.wav", np.full(16_000, 3e38), 16_000, subtype="FLOAT")
    assert (load(tmp_path / "a.wav", 16_000).samples == 32767).all()
    with pytest.raises(BadFile):
        load(tmp_path / "a.wav", 8_000)


def test_a_raw_file_says_nothing_of_itself(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(bytes(1000))
    with pytest.raises(BadFile):
        load(tmp_path / "a.raw", 16_000)
