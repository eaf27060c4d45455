"""What a build says at its end of a folder as people have them."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from shards import UserError, open_dataset
from shards.build.dataset import build_dataset, build_part
from shards.build.plan import BuildOptions, make_plan
from shards.cli.main import main
from shards.log import printed_log
from shards.manifest import Manifest, read_manifest

Make = Callable[..., Path]
Hashes = Callable[[Path], dict[str, str]]
RATE = 8000


@pytest.fixture
def messy(tmp_path: Path, make_audio: Make) -> Path:
    """Two classes that can be used, among all that gathers in a folder over the years."""
    root = tmp_path / "in"
    bus, park = root / "bus", root / "park"
    for recording in range(6):
        for piece in range(3):
            make_audio(bus / f"rec{recording:02}_{piece}.wav")
    make_audio(bus / "whole morning.wav", seconds=40)
    shutil.copy(bus / "rec00_0.wav", bus / "Copy of rec00_0.wav")
    soundfile.write(bus / "forgot the microphone.wav", np.zeros(2 * RATE), RATE)
    loud = np.random.default_rng(0).uniform(-1.7, 1.7, 2 * RATE)
    soundfile.write(bus / "too loud.wav", loud, RATE, subtype="FLOAT")
    shutil.copyfile(bus / "rec01_0.wav", bus / "half a download.wav")
    os.truncate(bus / "half a download.wav", 9000)
    make_audio(tmp_path / "radio.mp3", seconds=3)
    (bus / "radio.mp3").write_bytes((tmp_path / "radio.mp3").read_bytes()[:9000])
    (bus / "notes.txt").write_text("Monday: rain")
    (bus / ".DS_Store").write_bytes(b"\0")
    (bus / "Thumbs.db").write_bytes(b"\0")

    for number in range(12):
        make_audio(park / f"day {number % 3}" / f"{number}.flac", seconds=1.3)
    make_audio(park / "x.wav").rename(park / os.fsdecode(b"caf\xe9.wav"))
    make_audio(park / "y.wav").rename(park / "new\nline.wav")
    make_audio(park / "click.wav", seconds=0.1)
    (park / "phone.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(100))
    (park / "empty.wav").write_bytes(b"")
    (park / "web page.wav").write_text("<html>404</html>")
    shutil.copy(bus / "rec00_1.wav", park / "bus outside.wav")
    for name in ("a", "b"):
        make_audio(tmp_path / "other disk" / f"{name}.wav")
    (park / "more").symlink_to(tmp_path / "other disk")
    (park / "round").symlink_to(park)
    (park / ".trash").mkdir()
    (root / "tram").mkdir()
    make_audio(root / "lost.wav")
    return root


def test_a_messy_folder(
    messy: Path, tmp_path: Path, hashes: Hashes, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "d"
    build = ["build", "folder", "--source", str(messy), "--out", str(out), "--workers", "1"]
    build += ["--sample-rate", str(RATE), "--on-error", "skip"]
    assert main([*build, "--dry-run", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)["audit"]
    assert main([*build, "--dry-run"]) == 0
    capsys.readouterr()
    with printed_log():
        assert main(build) == 0
    written = capsys.readouterr()
    assert written.out.startswith(f"{out} is complete: ")
    audit = read_manifest(out).source["audit"]
    files = {path for path in messy.rglob("*") if path.is_file()}
    assert audit["found"] == planned["found"] == len(files) + 2
    assert audit["found"] == audit["used"] + sum(audit["left_aside"].values())
    aside = audit["left_aside"]
    assert {kind: aside[kind] for kind in aside if not kind.startswith(("bad", "needs"))} == {
        "hidden": 1,
        "in no class folder": 1,
        "not audio (.db)": 1,
        "not audio (.txt)": 1,
    }
    assert aside["bad: the file is empty"] == aside["bad: cut short"] == 1
    assert audit["folders"] == {
        "empty classes": 1,
        "hidden, not looked into": 1,
        "links that lead back, not followed": 1,
        "links, followed": 1,
    }
    assert (audit["copies"], audit["clipped"], audit["silent"], audit["repeated"]) == (2, 1, 2, 2)
    for what in (
        *("files found", "left aside", "bad: cut short", "in no class folder", "links, followed"),
        *("copies of others", "(clipped)", "silent", "nothing else does"),
        "warning: left out, with no file that can be used: the class tram",
        "warning: 1 file with a copy in another class: bus/rec00_1.wav (bus)",
        r"use --keep-together '(.+)[-_. ]\d+\.\w+$'",
        "see",
    ):
        assert what in written.err
    assert "\\xe9" not in written.out
    assert main(["info", str(out)]) == 0
    info = capsys.readouterr().out
    table = written.err[written.err.index("clips ") : written.err.index("bad files: see")]
    assert all(line in info.splitlines() for line in table.splitlines()[:-1])
    assert table.splitlines()[-1] == "4 warnings above"
    assert main(["info", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["audit"] == audit
    assert main([*build, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["audit"] == audit

    options = BuildOptions(
        kind="folder", source=messy, sample_rate=RATE, on_error="skip", shard_size=30
    )
    build_dataset(options, tmp_path / "one", workers=1)
    build_dataset(options, tmp_path / "three", workers=3)
    for part in (2, 1):
        build_part(options, tmp_path / "parts", part, 2, workers=1)
    build_dataset(options, tmp_path / "parts", workers=1)
    assert hashes(tmp_path / "one") == hashes(tmp_path / "three") == hashes(tmp_path / "parts")


def folder(root: Path, make_audio: Make, **counts: int) -> BuildOptions:
    for name, count in counts.items():
        for number in range(count):
            make_audio(root / name / f"{number}.wav")
    return BuildOptions(kind="folder", source=root, sample_rate=RATE)


def test_a_class_that_loses_all_its_files(tmp_path: Path, make_audio: Make) -> None:
    options = folder(tmp_path / "s", make_audio, owl=10, wren=10)
    (tmp_path / "s" / "tram").mkdir()
    (tmp_path / "s" / "tram" / "list.txt").write_text("none")
    skipping = replace(options, on_error="skip")
    with pytest.raises(UserError, match=r"class folder .*tram has no audio files \(1 not audio"):
        make_plan(options, 1)
    assert make_plan(skipping, 1).source.classes == ("owl", "wren")
    make_audio(tmp_path / "s" / "tram" / "a.wav", seconds=0.2)
    dropping = replace(options, short="drop")
    with pytest.raises(UserError, match=r"nothing is left of the class tram: .* shorter"):
        make_plan(dropping, 1)
    (tmp_path / "s" / "tram" / "a.wav").write_text("no audio")
    made = make_plan(skipping, 1)
    assert made.source.classes == ("owl", "wren")
    assert any("the class tram" in line for line in made.remarks.warnings)
    labels = {clip.label for _, _, clips in made.shards for clip in clips if clip.name < "p"}
    assert labels == {0}


def test_audio_that_needs_ffmpeg_where_there_is_none(
    tmp_path: Path, make_audio: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = folder(tmp_path / "s", make_audio, owl=10, wren=10)
    for number in range(3):
        (tmp_path / "s" / "owl" / f"phone{number}.m4a").write_bytes(b"\0\0\0\x20ftypM4A ")
    monkeypatch.setenv("PATH", str(tmp_path))
    made = make_plan(options, 1)
    assert made.source.aside == {"needs ffmpeg, which is not installed (.m4a)": 3}
    (line,) = made.remarks.warnings
    assert line.startswith("3 audio files left aside, for ffmpeg is needed to read .m4a: install")


def test_of_many_reasons_the_rare_ones_are_one_line(
    tmp_path: Path, make_audio: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    folder(tmp_path / "s", make_audio, owl=10, wren=10)
    for number in range(30):
        for copy in range(1 + (number < 5)):
            (tmp_path / "s" / "owl" / f"{copy}.x{number:02}").write_text("?")
    build = ["build", "folder", "--source", str(tmp_path / "s"), "--out", str(tmp_path / "d")]
    assert main([*build, "--dry-run", "--json"]) == 0
    assert sum(json.loads(capsys.readouterr().out)["audit"]["left_aside"].values()) == 35
    assert main([*build, "--dry-run"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["11", "other", "reasons", "11"] in lines
    assert ["not", "audio", "(.x04)", "2"] in lines
    assert sum(line[:2] == ["not", "audio"] for line in lines) == 19


def test_links_that_lead_in_circles(tmp_path: Path, make_audio: Make) -> None:
    options = folder(tmp_path / "s", make_audio, owl=10, wren=10)
    owl = tmp_path / "s" / "owl"
    for name in ("a", "b", "c", "d"):
        make_audio(owl / name / "x.wav")
        for number, other in enumerate(("../a", "../b", "../c", "../d", "..", "../..", "/")):
            (owl / name / f"link {number}").symlink_to(other)
    made = make_plan(options, 1)
    assert sum(made.counts()["train"].values()) == 19
    assert len(made.source.items) == 24
    assert made.source.folders == {"links that lead back, not followed": 28}
    (owl / "self.wav").symlink_to("self.wav")
    with pytest.raises(UserError, match=r"owl/self\.wav in .* is bad"):
        make_plan(options, 1)


def test_a_folder_that_cannot_be_listed(
    tmp_path: Path, make_audio: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files would be missing without a word."""
    options = folder(tmp_path / "s", make_audio, owl=10, wren=10)
    (tmp_path / "s" / "owl" / "locked").mkdir()
    scandir = os.scandir

    def locked(path: Path) -> object:
        if path.name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(UserError, match=r"owl/locked cannot be listed: Permission denied"):
        make_plan(options, 1)


def test_a_class_that_is_a_link(tmp_path: Path, make_audio: Make) -> None:
    options = folder(tmp_path / "s", make_audio, owl=10, wren=10)
    (tmp_path / "s" / "heron").symlink_to("owl")
    made = make_plan(options, 1)
    assert made.source.folders == {"links, followed": 1}
    (line,) = made.remarks.warnings
    assert line.startswith(
        "10 files with a copy in another class: heron/0.wav (heron) and owl/0.wav"
    )


@pytest.mark.parametrize(
    ("change", "counts", "said"),
    [
        ({}, {"owl": 10}, "owl is the only class: a network has nothing to tell apart"),
        ({}, {"owl": 2, "wren": 2}, "there is no val split: training cannot tell"),
        ({"fractions": (0.9, 0.1, 0.0)}, {"owl": 9, "wren": 9}, "there is no test split"),
        ({"fractions": (0.9, 0.0, 0.1)}, {"owl": 9, "wren": 9}, "val a share in --fractions"),
        ({}, {"owl": 20, "wren": 2}, "val has no clips of the class wren"),
    ],
)
def test_what_a_dataset_lacks(
    change: dict[str, object],
    counts: dict[str, int],
    said: str,
    tmp_path: Path,
    make_audio: Make,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = replace(folder(tmp_path / "s", make_audio, **counts), **change)  # type: ignore[arg-type]
    with printed_log():
        build_dataset(options, tmp_path / "d", workers=1)
    assert said in capsys.readouterr().err
    assert main(["info", str(tmp_path / "d")]) == 0
    assert said in capsys.readouterr().out


def test_given_splits_without_validation(tmp_path: Path, make_audio: Make) -> None:
    for split in ("train", "test"):
        options = folder(tmp_path / "s" / split, make_audio, owl=10, wren=10)
    options = replace(options, source=tmp_path / "s")
    (line,) = make_plan(options, 1).remarks.notes
    assert line.endswith("val was carved out of train by file, seed 0")
    (line,) = make_plan(replace(options, val_fraction=0), 1).remarks.warnings
    assert line.startswith("there is no val split")
    assert "--val-fraction" in line


def test_clips_that_are_silent_and_files_that_are_clipped(tmp_path: Path, make_audio: Make) -> None:
    """Five seconds, of which the second is silent and the fourth stands still."""
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, 5 * RATE)
    wave[RATE : 2 * RATE] = 0
    wave[3 * RATE : 4 * RATE] = 0.25
    options = folder(tmp_path / "s", make_audio, owl=4, wren=4)
    soundfile.write(tmp_path / "s" / "owl" / "five.wav", wave, RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "s" / "wren" / "five.wav", wave * 2.5, RATE, subtype="FLOAT")
    for encoding in ("wav", "flac"):
        made = build_dataset(replace(options, encoding=encoding), tmp_path / encoding, workers=1)
        audit = made.source["audit"]
        assert (audit["silent"], audit["clipped"]) == (4, 1)
        assert audit["repeated"] == 0


def test_a_dataset_that_does_not_say_it(
    tmp_path: Path, make_audio: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    """Older datasets have no such counts; those of others may hold anything there."""
    out = tmp_path / "d"
    build_dataset(folder(tmp_path / "s", make_audio, owl=10, wren=10), out, workers=1)
    manifest = read_manifest(out)
    audit = manifest.source["audit"]
    for strange in (None, [], "x", 3, {}, {**audit, "found": "many"}, {**audit, "folders": [1]}):
        source = {**manifest.source, "audit": strange}
        if strange is None:
            del source["audit"]
        forged: Manifest = replace(manifest, source=source).sealed()
        (out / "dataset.json").write_bytes(forged.to_bytes())
        assert len(open_dataset(out)) == 20
        assert main(["info", str(out)]) == 0
        assert "files found" not in capsys.readouterr().out
        assert main(["info", str(out), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["audit"] is None


def test_nothing_is_decoded_before_a_mixture_is_refused(
    tmp_path: Path, make_audio: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder(tmp_path / "s", make_audio, train=2, bus=2)

    def fail(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("shards.build.scan.measure", fail)
    arguments = ["--source", str(tmp_path / "s"), "--out", str(tmp_path / "d"), "--workers", "1"]
    for more in ([], ["--dry-run"]):
        with pytest.raises(UserError, match="which may be splits"):
            main(["build", "folder", *arguments, *more])
    assert not (tmp_path / "d").exists()
