"""Every format that libsndfile writes, cut off, with odd headers: the true audio or a named file.

`CPPRUNE_FUZZ=full` tries the whole product instead of a drawn part of it.
"""

import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from odd_headers import Case, Wave, id3, odd_headers

from shards.audio.load import BadFile, load, measure
from shards.build.dataset import build_dataset
from shards.build.plan import BuildOptions
from shards.reader import open_dataset

pytestmark = pytest.mark.slow

FULL = os.environ.get("CPPRUNE_FUZZ") == "full"
SECONDS = (0.3, 1.002, 1.0007, 2.5, 10.0)
CUTS = 20
# Their headers state no length (libsndfile writes none into XI), so that what is there is all there is.
SILENT_ON_LENGTH = {"PAF", "PVF", "IRCAM", "XI"}
# Largest error of the decoded samples; of the others it is 1e-3.
COARSE = {
    "PCM_S8": 0.01,
    "PCM_U8": 0.01,
    "DPCM_8": 0.02,
    "ULAW": 0.02,
    "ALAW": 0.02,
    "IMA_ADPCM": 0.1,
    "MS_ADPCM": 0.1,
    "GSM610": 0.4,
    "G721_32": 0.2,
    "G723_24": 0.3,
    "G723_40": 0.2,
    "NMS_ADPCM_16": 0.4,
    "NMS_ADPCM_24": 0.3,
    "NMS_ADPCM_32": 0.2,
    "MPEG_LAYER_III": 0.2,
    "VORBIS": 0.2,
    "OPUS": 0.3,
}


def sound(frames: int, rate: int) -> Wave:
    """A quiet chord, which every codec keeps, with a level that tells one second from another."""
    time = np.arange(frames) / rate
    level = 0.5 + 0.4 * np.sin(0.7 * time + 1)
    return 0.3 * level * sum(np.sin(2 * np.pi * f * time) for f in (220, 331, 550)) / 3


def written(path: Path, kind: str, subtype: str, seconds: float, channels: int = 1) -> Case | None:
    # Not all rates are possible in all formats.
    for rate in {"XI": (44100,), "WVE": (8000,)}.get(kind, (16000, 44100, 8000)):
        wave = sound(round(seconds * rate), rate)
        data = np.stack([wave] * channels, axis=1) if channels > 1 else wave
        try:
            soundfile.write(path, data, rate, format=kind, subtype=subtype)
        except soundfile.LibsndfileError:
            continue
        return Case(kind, subtype, rate, path.read_bytes(), wave)
    return None


def kinds() -> Iterator[tuple[str, str]]:
    for kind in soundfile.available_formats():
        # RAW and SD2 do not say what they are; of SDS libsndfile loses the end.
        if kind not in ("RAW", "SD2", "SDS"):
            for subtype in soundfile.available_subtypes(kind):
                if soundfile.check_format(kind, subtype):
                    yield kind, subtype


class Bench:
    """Decodes files among the remains of loud ones, and judges what comes of them."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "file"
        self.loud = folder / "loud.wav"
        wave = 0.9 * np.sign(np.sin(np.arange(600_000)))
        soundfile.write(self.loud, wave, 16000, subtype="FLOAT")
        self.counts = Counter[str]()
        self.faults: list[str] = []

    def decode(self, data: bytes, rate: int) -> Wave | str:
        self.file.write_bytes(data)
        load(self.loud, rate)
        try:
            length = measure(self.file, rate)
        except BadFile as reason:
            with pytest.raises(BadFile):
                load(self.file, rate)
            return str(reason)
        try:
            samples = load(self.file, rate).samples
        except BadFile as reason:
            return str(reason)
        if length != len(samples):
            return f"FAULT: planned {length}, decoded {len(samples)}"
        return samples / 32768

    def judge(self, case: Case, what: str, data: bytes, truth: Wave, whole: bool | None) -> None:
        """Decodes a variant of a case and compares.

        `whole` True: it has to be `truth`; False: it has to be refused; None: it may be a beginning of
        `truth`, or be refused.
        """
        heard = self.decode(data, case.rate)
        name = f"{case.name}, {what}"
        if case.format in SILENT_ON_LENGTH and not isinstance(heard, str):
            # Nothing tells bytes behind the samples from samples.
            heard = heard[: len(truth)] if len(data) > len(case.data) else heard
        if isinstance(heard, str):
            self.counts["refused"] += 1
            if heard.startswith("FAULT") or whole is True or "\n" in heard:
                self.faults.append(f"{name}: {heard}")
            return
        self.counts["accepted"] += 1
        if whole is False:
            self.faults.append(f"{name}: accepted with {len(heard)} of {len(truth)} samples")
        elif len(heard) > len(truth) + ("length" in what) or (whole and len(heard) < len(truth)):
            self.faults.append(f"{name}: {len(heard)} samples, there are {len(truth)}")
        elif len(heard):
            heard = heard[: len(truth)]  # a filling byte behind an odd number of bytes
            error = np.abs(heard - truth[: len(heard)])
            if error.max() > 1e-3:
                first = int(np.argmax(error > 1e-3))
                self.faults.append(
                    f"{name}: sample {first} of {len(heard)} is wrong by {error.max():.3f}"
                )

    def whole(self, case: Case) -> Wave | None:
        """Returns the decoded file as it was written; compared with what went into it."""
        heard = self.decode(case.data, case.rate)
        if isinstance(heard, str):
            if case.format not in ("HTK", "VOC"):
                self.faults.append(f"{case.name}: {heard}")
            return None
        # Block codecs fill up the last block, of up to 1017 samples.
        filling = 1017 if case.subtype in COARSE else 16
        if not 0 <= len(heard) - len(case.wave) < filling:
            self.faults.append(f"{case.name}: {len(heard)} of {len(case.wave)} samples")
        common = min(len(heard), len(case.wave))
        # Adaptive codecs need a moment to follow, and some fade at the end.
        edge = 400 if case.subtype in COARSE else 0
        inside = slice(edge, common - edge)
        error = np.abs(heard[inside] - case.wave[inside]).max()
        if error > COARSE.get(case.subtype, 1e-3):
            self.faults.append(f"{case.name}: differs by {error:.4f} from what was written")
        return heard


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def report(bench: Bench) -> None:
    print(dict(bench.counts))
    assert not bench.faults, "\n".join([str(len(bench.faults)), *bench.faults[:60]])


def test_files_that_are_cut_off(bench: Bench, tmp_path: Path) -> None:
    draw = random.Random(0)
    for kind, subtype in kinds():
        for seconds in SECONDS if FULL else draw.sample(SECONDS, 2):
            case = written(tmp_path / "source", kind, subtype, seconds)
            if case is None:
                continue
            truth = bench.whole(case)
            if truth is None:
                continue
            size = len(case.data)
            places = [draw.randrange(1, size) for _ in range(CUTS - 5)]
            places += [size - 1, size - 2, size - 7, size // 2, min(size - 1, 700)]
            for place in places if FULL else draw.sample(places, 5):
                check_cut(bench, case, case.data[:place], truth)
    report(bench)


def check_cut(bench: Bench, case: Case, data: bytes, truth: Wave) -> None:
    what = f"cut to {len(data)} of {len(case.data)} bytes"
    if case.format in SILENT_ON_LENGTH:
        bench.judge(case, what, data, truth, None)
        return
    if case.data[len(data) :].startswith(b"OggS"):
        return  # whole pages may be all that was written
    heard = bench.decode(data, case.rate)
    # Only what comes behind the samples may be lacking, such as a filling byte.
    kept = isinstance(heard, str) or len(data) > len(case.data) - 8
    bench.judge(case, what, data, truth, None if kept else False)
    if not isinstance(heard, str) and len(heard) != len(truth):
        bench.faults.append(f"{case.name}, {what}: {len(heard)} of {len(truth)} samples accepted")


def test_odd_headers(bench: Bench, tmp_path: Path) -> None:
    draw = random.Random(1)
    for kind, subtype in kinds():
        for seconds in SECONDS if FULL else draw.sample(SECONDS, 1):
            case = written(tmp_path / "source", kind, subtype, seconds)
            truth = case and bench.whole(case)
            if case is None or truth is None:
                continue
            for what, (mutate, whole) in odd_headers().items():
                data = mutate(case)
                if data is None:
                    continue
                if what == "twice":
                    if kind == "MP3" or kind in SILENT_ON_LENGTH:
                        continue
                    truth = np.concatenate([truth, truth]) if kind == "OGG" else truth
                bench.judge(case, what, data, truth, whole)
                for place in [draw.randrange(1, len(data)) for _ in range(4 if FULL else 1)]:
                    bench.judge(case, f"{what}, cut to {place} bytes", data[:place], truth, None)
    report(bench)


def test_flipped_bytes(bench: Bench, tmp_path: Path) -> None:
    """Nothing but a reason, and never another length than was planned."""
    draw = random.Random(4)
    written_ = (written(tmp_path / "source", kind, subtype, 0.3) for kind, subtype in kinds())
    cases = [case for case in written_ if case is not None]
    for number in range(10_000 if FULL else 500):
        case = draw.choice(cases)
        data = bytearray(case.data)
        for _ in range(draw.choice((1, 1, 2, 4, 20))):
            place = draw.randrange(min(len(data), draw.choice((60, 300, len(data)))))
            data[place] = draw.choice((0, 127, 128, 255, draw.randrange(256)))
        heard = bench.decode(bytes(data), case.rate)
        bench.counts["refused" if isinstance(heard, str) else "accepted"] += 1
        if isinstance(heard, str) and (heard.startswith("FAULT") or "\n" in heard):
            bench.faults.append(f"{case.name}, flip {number}: {heard}")
    report(bench)


def test_many_channels_low_rates_and_other_streams(bench: Bench, tmp_path: Path) -> None:
    """Other rates, more channels, and MP3 and Ogg in their odder forms."""
    draw = random.Random(2)
    file = tmp_path / "source"
    for kind, subtype in (
        ("WAV", "PCM_16"),
        ("AIFF", "PCM_24"),
        ("FLAC", "PCM_16"),
        ("CAF", "FLOAT"),
    ):
        for channels in (2, 6, 8):
            case = written(file, kind, subtype, draw.choice(SECONDS), channels)
            truth = case and bench.whole(case)
            if case is None or truth is None:
                bench.faults.append(f"{kind} with {channels} channels")
                continue
            for place in [draw.randrange(1, len(case.data)) for _ in range(5)]:
                bench.judge(case, f"cut to {place}", case.data[:place], truth, False)
    for rate in (8000, 11025, 16000, 22050, 44100, 48000):
        for mode in ("CONSTANT", "VARIABLE"):
            wave = sound(round(draw.choice(SECONDS) * rate), rate)
            if rate == 11025 and mode == "CONSTANT":
                continue  # not every bit rate is there
            soundfile.write(
                file, wave, rate, format="MP3", bitrate_mode=mode, compression_level=0.5
            )
            data = file.read_bytes()
            bare = Case("MP3", "MPEG_LAYER_III", rate, data[data.index(data[:2], 4) :], wave)
            truth_ = bench.decode(bare.data, rate)
            if isinstance(truth_, str) or not 0 <= len(truth_) - len(wave) < 4 * 1152:
                bench.faults.append(f"{bare.name} without its header: {truth_!r:.200}")
                continue
            for place in [draw.randrange(400, len(bare.data)) for _ in range(10)]:
                bench.judge(bare, f"no header, cut to {place}", bare.data[:place], truth_, None)
            bench.judge(bare, "junk behind", bare.data + bytes(3000), truth_, None)
            bench.judge(bare, "tag behind", bare.data + b"TAG" + b"a" * 125, truth_, True)
            bench.judge(bare, "tag before", id3(3000) + bare.data, truth_, True)
    for subtype in ("VORBIS", "OPUS"):
        links = [written(file, "OGG", subtype, seconds) for seconds in (1.002, 0.3, 2.5)]
        parts = [(link, bench.whole(link)) for link in links if link is not None]
        truth = np.concatenate([heard for _, heard in parts if heard is not None])
        chained = b"".join(link.data for link, _ in parts)
        bench.judge(parts[0][0], "chained", chained, truth, True)
        for place in [draw.randrange(1, len(chained)) for _ in range(20)]:
            bench.judge(parts[0][0], f"chained, cut to {place}", chained[:place], truth, None)
    report(bench)


def test_built_and_predicted(bench: Bench, tmp_path: Path, tiny_run: Path, cli: Any) -> None:
    """Files of all kinds, whole, cut off and odd, beside loud ones."""
    draw = random.Random(3)
    source = tmp_path / "source"
    (source / "quiet").mkdir(parents=True)
    (source / "loud").mkdir()
    for number in range(10):
        shutil.copy(bench.loud, source / "loud" / f"{number}.wav")
    truths: dict[str, Wave] = {}
    bad: set[str] = set()
    mutations = list(odd_headers().items())
    for number, (kind, subtype) in enumerate(kinds()):
        case = written(tmp_path / "file", kind, subtype, draw.choice(SECONDS))
        truth = case and bench.whole(case)
        if case is None or truth is None or case.rate != 16000:
            continue
        variants = [case.data, case.data[: draw.randrange(1, len(case.data))]]
        mutated = draw.choice(mutations)[1][0](case)
        variants += [mutated] if mutated else []
        for place, data in enumerate(variants):
            heard = bench.decode(data, 16000)
            name = f"{number}x{place}"
            (source / "quiet" / f"{name}.wav").write_bytes(data)
            if isinstance(heard, str):
                bad.add(name)
            else:
                truths[name] = heard
                common = min(len(heard), len(truth))
                assert np.abs(heard[:common] - truth[:common]).max(initial=0) < 1e-3
    assert len(bad) > 20
    options = BuildOptions(kind="folder", source=source, sample_rate=16000, on_error="skip")
    build_dataset(options, tmp_path / "out", workers=2)
    dataset = open_dataset(tmp_path / "out")
    clips = 0
    for name in dataset.manifest.splits:
        split = dataset.split(name)
        for key, clip in zip(split.keys, split.fetch(range(len(split))), strict=True):
            stem, _, place = key.removeprefix("quiet_").removeprefix("quiet/").partition("-")
            if not key.startswith("quiet"):
                continue
            truth = truths[stem]
            expected = truth[int(place or 0) * 16000 :][:16000]
            assert np.abs(clip[: len(expected)] / 32768 - expected).max() < 1e-3
            assert not clip[len(expected) :].any()
            assert len(expected) >= 8000 or len(truth) < 16000
            clips += 1
    assert clips > 50
    arguments = ["predict", tiny_run / "model", source / "quiet", "--on-error", "skip", "--json"]
    first, second = cli(*arguments), cli(*arguments)
    assert first.status == 1
    assert first.out == second.out
    assert {Path(row["file"]).stem for row in first.json["bad"]} == bad
    assert {Path(row["file"]).stem for row in first.json["predictions"]} == truths.keys()
