"""`predict` on folders with bad files: the others are predicted, and the bad ones named."""

import csv

import numpy as np
import pytest
import soundfile


@pytest.fixture
def folder(tmp_path):
    """Three whole recordings, and three that are not."""
    rng = np.random.default_rng(0)
    there = tmp_path / "recordings"
    (there / "deep").mkdir(parents=True)
    for name in ("a.wav", "deep/b.flac", "z.ogg"):
        soundfile.write(there / name, rng.normal(0, 0.1, 48_000), 32_000)
    for name in ("cut.wav", "deep/cut.mp3"):
        soundfile.write(there / name, rng.normal(0, 0.1, 96_000), 32_000)
        data = (there / name).read_bytes()
        (there / name).write_bytes(data[: len(data) // 2])
    (there / "words.wav").write_text("these are words")
    return there


def test_the_rest_is_predicted_and_the_bad_ones_are_listed(cli, tiny_run, folder, tmp_path):
    table = tmp_path / "predictions.csv"
    arguments = ["predict", tiny_run / "model", folder, "--on-error", "skip"]
    outcome = cli(*arguments, "--json", "--predictions", table)
    assert outcome.status == 1
    good = [str(folder / name) for name in ("a.wav", "deep/b.flac", "z.ogg")]
    assert [row["file"] for row in outcome.json["predictions"]] == good
    bad = {row["file"]: row["reason"] for row in outcome.json["bad"]}
    assert bad.keys() == {str(folder / n) for n in ("cut.wav", "deep/cut.mp3", "words.wav")}
    assert "cut short" in bad[str(folder / "cut.wav")]
    assert "cut short" in bad[str(folder / "deep/cut.mp3")]
    with table.open(newline="") as file:
        assert [row["filename"] for row in csv.DictReader(file, delimiter="\t")] == good
    said = cli(*arguments)
    assert said.status == 1
    assert len(said.out.splitlines()) == 3
    assert "3 of 6 files are bad" in said.err
    assert f"{folder / 'words.wav'}: skipped: not readable as audio" in said.err


def test_all_are_bad(cli, tiny_run, folder, tmp_path):
    table = tmp_path / "predictions.csv"
    table.write_text("of an earlier call")
    arguments = ["predict", tiny_run / "model", folder / "words.wav", "--predictions", table]
    outcome = cli(*arguments, "--on-error", "skip", "--json")
    assert outcome.status == 1
    assert outcome.json["predictions"] == []
    assert [row["file"] for row in outcome.json["bad"]] == [str(folder / "words.wav")]
    assert table.read_text().startswith("filename\tscene_label\t")
    assert len(table.read_text().splitlines()) == 1


def test_without_a_word_of_it_the_first_bad_file_ends_it(cli, tiny_run, folder):
    outcome = cli("predict", tiny_run / "model", folder, "--json")
    assert outcome.status == 2
    assert len(outcome.err.splitlines()) == 1
    assert str(folder / "cut.wav") in outcome.err
    assert "--on-error skip" in outcome.err
    assert outcome.out == ""


def test_all_are_good(cli, tiny_run, folder):
    outcome = cli("predict", tiny_run / "model", folder / "a.wav", "--on-error", "skip", "--json")
    assert outcome.status == 0
    assert outcome.json["bad"] == []


def test_a_rest_of_two_milliseconds_changes_nothing(cli, tiny_run, tmp_path):
    wave = np.random.default_rng(0).normal(0, 0.1, 32_064)
    for name, length in (("second", 32_000), ("more", 32_064)):
        soundfile.write(tmp_path / f"{name}.wav", wave[:length], 32_000, subtype="PCM_16")
    files = [tmp_path / "second.wav", tmp_path / "more.wav"]
    one, other = cli("predict", tiny_run / "model", *files, "--json").json["predictions"]
    assert one["clips"] == other["clips"] == 1
    assert one["probabilities"] == other["probabilities"]


def test_a_cut_mp3_is_never_named_and_a_whole_one_always_the_same(cli, tiny_run, tmp_path):
    """Whatever was decoded before, and lies about in memory."""
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "whole.mp3", 0.01 * rng.normal(size=160_000), 32_000)
    data = (tmp_path / "whole.mp3").read_bytes()
    (tmp_path / "cut.mp3").write_bytes(data[: len(data) * 2 // 5])
    soundfile.write(tmp_path / "loud.wav", np.sign(rng.normal(size=160_000)), 32_000)
    said = []
    for before in ([], ["loud.wav"], ["loud.wav", "loud.wav"]):
        files = [tmp_path / name for name in (*before, "cut.mp3", "whole.mp3")]
        outcome = cli("predict", tiny_run / "model", *files, "--on-error", "skip", "--json")
        assert outcome.status == 1
        said.append((outcome.json["predictions"][-1], outcome.json["bad"]))
    assert said[0] == said[1] == said[2]
    assert said[0][1][0]["file"] == str(tmp_path / "cut.mp3")
