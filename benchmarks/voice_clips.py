"""Spoken words of Debian's packages as a dataset: which voice speaks, heard through made-up devices.

A voice is a package's recordings in one language; some packages have had several speakers for one.
Words are told by their file names, and all recordings of a word are in the same split. Many files are
there twice, under two names: one of them is left out, and the names count as one word.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from shards.audio.load import BadFile, load
from shards.sources.scenes import DEVICES, RATE, device, record
from shards.sources.synthetic import MAIN_DEVICE_SHARE, TRAIN_DEVICES

Floats = NDArray[np.float32]

# Where the packages put recordings, below usr/share.
PACKAGES = {
    "tuxpaint-stamps-default": r"tuxpaint/stamps/.+/(?P<word>[^/]+)_desc(_(?P<language>[^/.]+))?",
    "ktuberling-data": r"ktuberling/sounds/(?P<language>[^/]+)/(?P<word>[^/]+)",
    "klettres-data": r"klettres/(?P<language>[^/]+)/.+/(?P<word>[^/]+)",
}
ENDINGS = (".ogg", ".wav")
FEWEST = 60  # recordings of a voice
SPLITS = {"train": 0.6, "val": 0.15, "test": 0.25}
SLOPE_DB = -4.0  # of the background noise, an octave
RESPONSE = 1024  # samples of an impulse response


@dataclass(frozen=True)
class Recording:
    """One spoken word: its voice (package-language), the word and its file."""

    voice: str
    word: str
    path: Path


@dataclass(frozen=True)
class Clip:
    """A recording as one device hears it: a row of the dataset's table."""

    recording: Recording
    split: str
    device: int


def download(folder: Path) -> None:
    """Download the packages with apt and unpack them below a folder; nothing is installed."""
    folder.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        if (folder / f"{package}.unpacked").is_file():
            continue
        print(f"downloading {package}", file=sys.stderr, flush=True)
        try:
            subprocess.run(["apt-get", "download", "-q", package], cwd=folder, check=True, stdout=2)
            found = sorted(folder.glob(f"{package}_*.deb"))[-1]
            subprocess.run(["dpkg-deb", "-x", found, folder], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            sys.exit(f"{package}: {error}; this needs Debian's apt-get, after apt-get update")
        found.unlink()
        (folder / f"{package}.unpacked").touch()


def recordings(folder: Path) -> dict[str, list[Recording]]:
    """Return the recordings of every voice that has enough, sorted; the richest voices first.

    Of equal files, the first counts; the names of all of them are one word.
    """
    found: list[Recording] = []
    first: dict[bytes, Recording] = {}
    same: dict[str, str] = {}  # a word → another that is the same
    share = folder / "usr/share"
    for path in sorted(path for path in share.rglob("*") if path.suffix in ENDINGS):
        name = path.relative_to(share).with_suffix("").as_posix()
        for package, pattern in PACKAGES.items():
            if match := re.fullmatch(pattern, name):
                voice = f"{package.partition('-')[0]}-{match['language'] or 'en'}"
                one = Recording(voice, _word(match["word"]), path)
                digest = hashlib.sha256(path.read_bytes()).digest()
                if digest not in first:
                    first[digest] = one
                    found.append(one)
                    continue
                pair = sorted({_last(same, one.word), _last(same, first[digest].word)})
                same |= {pair[-1]: pair[0]} if len(pair) > 1 else {}
    voices: dict[str, list[Recording]] = {}
    for one in found:
        voices.setdefault(one.voice, []).append(replace(one, word=_last(same, one.word)))
    enough = {voice: own for voice, own in voices.items() if len(own) >= FEWEST}
    return dict(sorted(enough.items(), key=lambda item: (-len(item[1]), item[0])))


def _word(name: str) -> str:
    """Return the word that a file is named after: without numbers, unless it is a number."""
    letters = re.sub(r"[\W_]", "", name).casefold()
    return re.sub(r"\d", "", letters) or letters


def _last(same: Mapping[str, str], word: str) -> str:
    """Return the word at the end of a chain of words that are the same."""
    while word in same:
        word = same[word]
    return word


def choose(voices: Mapping[str, Sequence[Recording]], count: int, most: int) -> list[Recording]:
    """Return at most `most` recordings of each of the `count` richest voices, chosen by their words."""
    return [
        one
        for voice in list(voices)[:count]
        for one in sorted(voices[voice], key=lambda one: (_draw("choice", one.word), one.path))[
            :most
        ]
    ]


def split_of(word: str) -> str:
    """Return the split of a word, the same for all voices."""
    edges = np.cumsum(list(SPLITS.values()))
    return list(SPLITS)[int(np.searchsorted(edges[:-1], _draw("split", word), side="right"))]


def lay_out(chosen: Sequence[Recording], seed: int = 0) -> list[Clip]:
    """Return what is heard through which device.

    In training and validation a device is drawn as in TAU: mostly a, else b, c or s1 to s3. Every
    recording of the test split is heard twice, through one of these and through one of s4 to s6.
    """
    rng = np.random.default_rng([seed, 1])
    seen, clips, tested = len(TRAIN_DEVICES), [], Counter[str]()
    for one in chosen:
        split = split_of(one.word)
        main, other = rng.random() < MAIN_DEVICE_SHARE, int(rng.integers(1, seen))
        if split != "test":
            clips.append(Clip(one, split, 0 if main else other))
            continue
        turn = tested[one.voice]
        tested[one.voice] += 1
        clips.append(Clip(one, split, turn % seen))
        clips.append(Clip(one, split, seen + turn % (len(DEVICES) - seen)))
    return clips


def write_clips(clips: Sequence[Clip], folder: Path, snr_db: float, seed: int = 0) -> Path:
    """Write the clips as WAV files and return their table.

    What cannot be decoded or is silent is left out, and counted on standard error.
    """
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    lines = ["filename\tlabel\tsplit\tdevice\tword"]
    left_out = Counter[str]()
    for number, clip in enumerate(clips):
        try:
            wave_T = loudest_second(load(clip.recording.path, RATE).samples.astype(np.float32))
        except BadFile as error:
            left_out[str(error)] += 1
            continue
        if not wave_T.any():
            left_out["silent"] += 1
            continue
        rng = np.random.default_rng([seed, 2, number])
        heard_NT = record(add_noise(wave_T, snr_db, rng)[None], [clip.device], rng)
        name = f"clips/{number:06}.wav"
        soundfile.write(folder / name, np.clip(heard_NT[0], -1, 1), RATE, subtype="PCM_16")
        cells = (name, clip.recording.voice, clip.split, DEVICES[clip.device], clip.recording.word)
        lines.append("\t".join(cells))
    for reason, count in left_out.items():
        print(f"{count} clips left out: {reason}", file=sys.stderr)
    table = folder / "clips.tsv"
    table.write_text("\n".join(lines) + "\n")
    return table


def loudest_second(wave_T: Floats) -> Floats:
    """Return the second with the most energy; what is shorter is padded with zeros at its end."""
    if len(wave_T) <= RATE:
        return np.pad(wave_T, (0, RATE - len(wave_T)))
    energy = np.concatenate([[0.0], np.cumsum(wave_T.astype(np.float64) ** 2)])
    begin = int(np.argmax(energy[RATE:] - energy[:-RATE]))
    return wave_T[begin : begin + RATE]


def add_noise(wave_T: Floats, snr_db: float, rng: np.random.Generator) -> Floats:
    """Return a second of sound with Gaussian noise of a falling spectrum in its background.

    Args:
        wave_T: [RATE], not silent.
        snr_db: power of the sound against that of the noise.
        rng: draws the noise.
    """
    hertz_F = np.maximum(np.fft.rfftfreq(RATE, 1 / RATE), 50)
    slope_F = 10 ** (SLOPE_DB / 20 * np.log2(hertz_F / 50))
    noise_T = np.fft.irfft(np.fft.rfft(rng.standard_normal(RATE)) * slope_F, RATE)
    ratio = np.mean(wave_T.astype(np.float64) ** 2) / np.mean(noise_T**2) / 10 ** (snr_db / 10)
    return (wave_T + np.sqrt(ratio) * noise_T).astype(np.float32)


def write_responses(folder: Path) -> None:
    """Write the impulse responses of b, c and s1 to s3 relative to a, 1,024 samples each.

    Their peak comes half of that late, since they have no phase of their own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(TRAIN_DEVICES[1:], 1):
        ratio_F = device(number).response / device(0).response
        response_T = np.roll(np.fft.irfft(ratio_F, RATE), RESPONSE // 2)[:RESPONSE]
        wave_T = (response_T * np.hanning(RESPONSE)).astype(np.float32)
        soundfile.write(folder / f"{name}.wav", wave_T, RATE, subtype="FLOAT")


def _draw(purpose: str, word: str) -> float:
    """Return a number from 0 to 1 that follows from a word."""
    digest = hashlib.sha256(f"{purpose}/{word}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
