"""`cpprune evaluate` and `predict`, against figures computed here from files that people read."""

import csv
import json
import math
from collections import defaultdict

import numpy as np
import pytest
import soundfile
import torch

import cpprune

GROUPS = {"real": "abc", "seen": ("s1", "s2", "s3"), "unseen": ("s4", "s5", "s6")}


def read_tsv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


@pytest.fixture(scope="module")
def truth(scenes_source):
    """File name → scene, device and city, from the list that came with the recordings."""
    return {
        row["filename"]: (
            row["scene_label"],
            row["source_label"],
            row["identifier"].split("-")[0],
        )
        for row in read_tsv(scenes_source / "meta.csv")
    }


@pytest.fixture
def evaluated(cli, tiny_run, scenes, tmp_path):
    """The report as JSON, and the rows of the predictions file."""
    file = tmp_path / "predictions.csv"
    outcome = cli("evaluate", tiny_run / "model", "--data", scenes, "--json", "--predictions", file)
    assert outcome.status == 0
    return outcome.json, read_tsv(file), file


def measure(rows, truth):
    """Accuracy and mean −ln p of rows of a predictions file."""
    right = [row["scene_label"] == truth[row["filename"]][0] for row in rows]
    losses = [-math.log(float(row[truth[row["filename"]][0]])) for row in rows]
    return sum(right) / len(rows), sum(losses) / len(rows)


def test_report_has_every_key(evaluated):
    report, _, _ = evaluated
    assert {
        "parameters",
        "macs",
        "bytes",
        "macro_accuracy",
        "accuracy",
        "log_loss",
        "per_class",
        "per_device",
        "per_group",
        "per_city",
        "confusion",
    } <= report.keys()
    assert report["split"] == "test"
    assert report["clips"] == 50
    assert report["parameters"] == 2_650
    assert report["bytes"] == {"fp32": 10_600, "fp16": 5_300, "int8": 2_650}


def test_predictions_have_the_form_of_dcase(evaluated, scenes_source, truth):
    _, rows, file = evaluated
    header = file.read_text().splitlines()[0].split("\t")
    assert header == ["filename", "scene_label", *sorted({scene for scene, *_ in truth.values()})]
    assert len(header) == 12
    listed = read_tsv(scenes_source / "evaluation_setup/fold1_test.csv")
    assert sorted(row["filename"] for row in rows) == sorted(row["filename"] for row in listed)
    for row in rows:
        probabilities = [float(row[name]) for name in header[2:]]
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)
        assert float(row[row["scene_label"]]) == max(probabilities)


def test_predictions_are_those_of_the_model_on_the_recordings(evaluated, tiny_run, scenes_source):
    _, rows, _ = evaluated
    from shards.audio.load import load

    model = cpprune.load(tiny_run / "model")
    names = [row["filename"] for row in rows[:6]]
    waves = np.stack([load(scenes_source / name, 32_000).samples for name in names])
    with torch.no_grad():
        expected = torch.softmax(model(torch.from_numpy(waves)).double(), 1).numpy()
    found = [[float(row[name]) for name in model.classes] for row in rows[:6]]
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_files_without_labels_give_the_same_predictions(
    evaluated, cli, tiny_run, scenes_source, tmp_path, monkeypatch
):
    """What a challenge hands out: a folder of clips, no lists."""
    _, rows, _ = evaluated
    (tmp_path / "audio").mkdir()
    for row in rows[:12]:
        (tmp_path / row["filename"]).symlink_to(scenes_source / row["filename"])
    (tmp_path / "audio/README.md").touch()
    monkeypatch.chdir(tmp_path)
    outcome = cli("predict", tiny_run / "model", "audio", "--predictions", "output.csv")
    assert outcome.status == 0
    assert len(outcome.out.splitlines()) == 12
    found = read_tsv(tmp_path / "output.csv")
    expected = sorted(rows[:12], key=lambda row: row["filename"])
    assert [list(row) for row in found] == [list(row) for row in expected]
    for mine, theirs in zip(found, expected, strict=True):
        for name, value in theirs.items():
            if name in ("filename", "scene_label"):
                assert mine[name] == value
            else:
                assert float(mine[name]) == pytest.approx(float(value), abs=2e-6)


def test_a_folder_without_recordings(refused, tiny_run, tmp_path):
    (tmp_path / "notes.txt").touch()
    refused("predict", tiny_run / "model", tmp_path, names=[tmp_path, "no audio files"])


def test_figures_follow_from_the_predictions(evaluated, truth):
    report, rows, _ = evaluated
    accuracy, log_loss = measure(rows, truth)
    assert report["accuracy"] == pytest.approx(accuracy, abs=1e-12)
    assert report["log_loss"] == pytest.approx(log_loss, abs=1e-5)
    assert len({row["scene_label"] for row in rows}) > 1, "one class for all would prove little"

    by_class, by_device, by_city = defaultdict(list), defaultdict(list), defaultdict(list)
    for row in rows:
        scene, device, city = truth[row["filename"]]
        by_class[scene].append(row)
        by_device[device].append(row)
        by_city[city].append(row)
    by_group = {
        group: [row for device in devices for row in by_device[device]]
        for group, devices in GROUPS.items()
    }
    for key, parts in (
        ("per_class", by_class),
        ("per_device", by_device),
        ("per_group", by_group),
        ("per_city", by_city),
    ):
        assert report[key].keys() == parts.keys()
        for name, part in parts.items():
            accuracy, log_loss = measure(part, truth)
            assert report[key][name]["clips"] == len(part)
            assert report[key][name]["accuracy"] == pytest.approx(accuracy, abs=1e-12)
            assert report[key][name]["log_loss"] == pytest.approx(log_loss, abs=1e-5)
    assert report["macro_accuracy"] == pytest.approx(
        sum(measure(part, truth)[0] for part in by_class.values()) / 10, abs=1e-12
    )


def test_confusion_counts_true_classes_in_rows(evaluated, truth):
    report, rows, _ = evaluated
    names = sorted({scene for scene, *_ in truth.values()})
    expected = [[0] * 10 for _ in names]
    for row in rows:
        true, predicted = truth[row["filename"]][0], row["scene_label"]
        expected[names.index(true)][names.index(predicted)] += 1
    assert report["confusion"] == expected


def test_figures_of_the_validation_split_are_those_that_training_wrote(cli, tiny_run, scenes):
    report = cli("evaluate", tiny_run / "model", "--data", scenes, "--split", "val", "--json").json
    noted = json.loads((tiny_run / "result.json").read_text())["val"]
    for name in ("macro_accuracy", "accuracy", "log_loss", "clips"):
        assert report[name] == pytest.approx(noted[name], abs=1e-6)
    assert report["split"] == "val"


def test_report_as_text(cli, tiny_run, scenes, evaluated):
    outcome = cli("evaluate", tiny_run / "model", "--data", scenes)
    assert outcome.status == 0
    assert f"macro accuracy {evaluated[0]['macro_accuracy']:.4f}" in outcome.out
    for name in ("street_pedestrian", "s6", "unseen", "2,650 parameters"):
        assert name in outcome.out


def test_a_dataset_without_devices_has_no_figures_for_them(cli, tiny, noise_folder, tmp_path):
    audio = noise_folder(tmp_path / "audio")
    dataset = tmp_path / "dataset"
    source = ["--source", audio, "--out", dataset, "--workers", 1]
    assert cli("shards", "build", "folder", *source).status == 0
    run = tmp_path / "run"
    settings = [*tiny, "--data.path", dataset, "--train.epochs", 1, "--run", run]
    assert cli("train", *settings).status == 0
    report = cli("evaluate", run / "model", "--data", dataset, "--json").json
    assert (report["per_device"], report["per_group"], report["per_city"]) == ({}, {}, {})
    assert report["per_class"].keys() == {"hum", "hiss"}
    assert [sum(row) for row in report["confusion"]] == [1, 1]


# --- predict ------------------------------------------------------------------------------------------


def tone(rate, seconds=1.0, channels=1):
    """A chord far below all Nyquist frequencies, the same at every rate."""
    time = np.arange(round(rate * seconds)) / rate
    wave = sum(np.sin(2 * np.pi * f * time + f) for f in (220, 440, 1100)) / 5
    return wave if channels == 1 else np.stack([wave] * channels, 1)


def predicted(cli, model, *files):
    outcome = cli("predict", model, *files, "--json")
    assert outcome.status == 0
    return outcome.json["predictions"]


def test_predict_is_what_the_loaded_model_says(cli, tiny_run, tmp_path):
    samples = (tone(32_000) * 32_767).astype(np.int16)
    soundfile.write(tmp_path / "tone.wav", samples, 32_000, subtype="PCM_16")
    (found,) = predicted(cli, tiny_run / "model", tmp_path / "tone.wav")
    model = cpprune.load(tiny_run / "model")
    with torch.no_grad():
        logits = model(torch.from_numpy(samples)[None].float() / 32_768)
    expected = torch.softmax(logits.double(), 1)[0]
    assert found["file"] == str(tmp_path / "tone.wav")
    assert found["clips"] == 1
    assert found["prediction"] == model.classes[int(expected.argmax())]
    assert next(iter(found["probabilities"])) == found["prediction"]
    assert sum(found["probabilities"].values()) == pytest.approx(1)
    for name, probability in zip(model.classes, expected.tolist(), strict=True):
        assert found["probabilities"][name] == pytest.approx(probability, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "rate", "channels", "subtype"),
    [
        ("tone.wav", 44_100, 2, "PCM_24"),
        ("tone.flac", 48_000, 1, "PCM_16"),
        ("tone.flac", 22_050, 2, "PCM_16"),
    ],
)
def test_predict_takes_any_rate_format_and_number_of_channels(
    cli, tiny_run, tmp_path, name, rate, channels, subtype
):
    soundfile.write(tmp_path / "plain.wav", tone(32_000), 32_000, subtype="PCM_16")
    soundfile.write(tmp_path / name, tone(rate, channels=channels), rate, subtype=subtype)
    plain, other = predicted(cli, tiny_run / "model", tmp_path / "plain.wav", tmp_path / name)
    assert other["clips"] == 1
    silence = tmp_path / "silence.wav"
    soundfile.write(silence, np.zeros(32_000), 32_000, subtype="PCM_16")
    (nothing,) = predicted(cli, tiny_run / "model", silence)
    apart = distance(plain, nothing)
    assert apart > 0
    assert distance(plain, other) < 0.1 * apart, "resampled, it is still the same sound"


def distance(one, other):
    names = one["probabilities"]
    return sum(abs(one["probabilities"][name] - other["probabilities"][name]) for name in names)


def test_predict_averages_the_clips_of_a_longer_file(cli, tiny_run, tmp_path):
    rng = np.random.default_rng(1)
    wave = np.concatenate([tone(32_000), rng.normal(0, 0.1, 32_000), tone(32_000, 0.5)])
    samples = (np.clip(wave, -1, 1) * 32_767).astype(np.int16)
    parts = [samples[:32_000], samples[32_000:64_000], np.pad(samples[64_000:], (0, 16_000))]
    files = []
    for number, part in enumerate([samples, *parts]):
        files.append(tmp_path / f"{number}.wav")
        soundfile.write(files[-1], part, 32_000, subtype="PCM_16")
    whole, *single = predicted(cli, tiny_run / "model", *files)
    assert whole["clips"] == 3
    for name, probability in whole["probabilities"].items():
        first, second, half = (one["probabilities"][name] for one in single)
        mean = (first + second + half / 2) / 2.5
        assert probability == pytest.approx(mean, rel=1e-5)


def test_predict_as_text(cli, tiny_run, tmp_path):
    soundfile.write(tmp_path / "tone.wav", tone(32_000), 32_000)
    outcome = cli("predict", tiny_run / "model", tmp_path / "tone.wav")
    assert outcome.out.startswith(f"{tmp_path / 'tone.wav'}: ")
    assert outcome.out.count("%") == 3
