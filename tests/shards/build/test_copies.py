"""The same bytes twice: kept in one split where splits are drawn, told where they are given."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from shards import open_dataset
from shards.build.copies import PEEK, same_files
from shards.build.dataset import build_dataset
from shards.build.plan import BuildOptions, Plan, make_plan
from shards.cli.main import main

Make = Callable[..., Path]


def plan(source: Path, **options: object) -> Plan:
    return make_plan(BuildOptions(source=source, sample_rate=8000, **options), 1)  # type: ignore[arg-type]


@pytest.fixture
def twice(tmp_path: Path, make_audio: Make) -> Path:
    """Forty files of two classes; ten of each class have a copy under another name."""
    for name in ("owl", "wren"):
        for number in range(20):
            file = make_audio(tmp_path / "s" / name / f"n{number}.wav")
            if number < 10:
                shutil.copy(file, file.with_name(f"copy of n{number}.wav"))
    return tmp_path / "s"


@pytest.mark.parametrize("seed", range(3))
def test_copies_are_drawn_together(seed: int, twice: Path) -> None:
    made = plan(twice, kind="folder", seed=seed, fractions=(0.5, 0.2, 0.3))
    split_of = {clip.name: split for _, split, clips in made.shards for clip in clips}
    pairs = [(f"{c}/n{i}.wav", f"{c}/copy of n{i}.wav") for c in ("owl", "wren") for i in range(10)]
    assert all(split_of[one] == split_of[other] for one, other in pairs)
    assert {tuple(sorted(names)) for names in made.copies} == {tuple(sorted(p)) for p in pairs}
    assert sum(len(of) > 0 for of in made.counts().values()) == 3


def test_copies_keep_their_recordings_together(tmp_path: Path, make_audio: Make) -> None:
    rows = []
    for number in range(24):
        make_audio(tmp_path / f"{number}.wav")
        rows.append(f"{number}.wav,owl,tape{number // 2}")
    shutil.copy(tmp_path / "0.wav", tmp_path / "22.wav")
    (tmp_path / "t.csv").write_text("\n".join(["filename,label,recording", *rows]) + "\n")
    for seed in range(5):
        made = plan(tmp_path / "t.csv", kind="table", group_columns=("recording",), seed=seed)
        split_of = {clip.name: split for _, split, clips in made.shards for clip in clips}
        assert len({split_of[f"{number}.wav"] for number in (0, 1, 22, 23)}) == 1


def test_copies_in_given_splits_are_told(
    tmp_path: Path, make_audio: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    """Eighteen of twenty test clips are those of training, which looks like a perfect network."""
    for name in ("owl", "wren"):
        for number in range(12):
            file = make_audio(tmp_path / "s" / "train" / name / f"{number}.wav")
            test = tmp_path / "s" / "test" / name / f"t{number}.wav"
            test.parent.mkdir(parents=True, exist_ok=True)
            if number < 9:
                shutil.copy(file, test)
        make_audio(test)
    out = tmp_path / "d"
    build = ["build", "folder", "--source", str(tmp_path / "s"), "--out", str(out)]
    build += ["--val-fraction", "0", "--workers", "1"]
    assert main([*build, "--dry-run"]) == 0
    assert "18 files with copies in several splits" in capsys.readouterr().out
    assert main(build) == 0
    said = capsys.readouterr().err
    assert "18 files with copies in several splits" in said
    assert "18 of the 20 clips of test are in train or val too" in said
    audit = json.loads((out / "dataset.json").read_text())["source"]["audit"]
    assert audit["copies"] == audit["repeated"] == audit["seen_before"]["test"] == 18
    assert main(["info", str(out)]) == 0
    assert "18 of the 20 clips of test are in train or val too" in capsys.readouterr().out


def test_one_sound_under_two_labels(tmp_path: Path, make_audio: Make) -> None:
    for name in ("owl", "wren"):
        for number in range(10):
            make_audio(tmp_path / name / f"{number}.wav")
    shutil.copy(tmp_path / "owl" / "3.wav", tmp_path / "wren" / "x.wav")
    made = plan(tmp_path, kind="folder")
    (line,) = made.remarks.warnings
    assert line.startswith(
        "1 file with a copy in another class: owl/3.wav (owl) and wren/x.wav (wren)"
    )


def test_the_same_sound_in_another_format(tmp_path: Path) -> None:
    """What no two files share, their clips may: found by what is in the shards."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("owl", "wren"):
            (tmp_path / "s" / split / name).mkdir(parents=True)
    for number in range(6):
        wave = rng.integers(-9000, 9000, 8000).astype(np.int16)
        for split, form in (("train", "wav"), ("test", "flac")):
            name = "owl" if number % 2 else "wren"
            soundfile.write(tmp_path / "s" / split / name / f"{number}.{form}", wave, 8000)
    options = BuildOptions(
        kind="folder", source=tmp_path / "s", sample_rate=8000, val_fraction=0, encoding="flac"
    )
    manifest = build_dataset(options, tmp_path / "d", workers=1)
    audit = manifest.source["audit"]
    assert (audit["copies"], audit["repeated"]) == (0, 6)
    assert audit["seen_before"] == {"test": 6}
    assert len(open_dataset(tmp_path / "d")) == 12


def test_files_that_differ_in_one_byte_anywhere(tmp_path: Path) -> None:
    data = bytearray(np.random.default_rng(0).bytes(4 * PEEK))
    files = []
    for number, place in enumerate((None, None, 0, 2 * PEEK, 4 * PEEK - 1)):
        other = bytearray(data)
        if place is not None:
            other[place] ^= 1
        files.append(str(tmp_path / str(number)))
        Path(files[-1]).write_bytes(other)
    assert same_files(files, [len(data)] * 5, 1) == [[0, 1]]
    assert same_files([*files, str(tmp_path / "gone")], [len(data)] * 6, 2) == [[0, 1]]
