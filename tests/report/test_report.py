"""The report of a run says what its journal and its model say, computed here once more."""

import base64
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
import torch
from pages import Page
from PIL import Image
from run_folder import weights_of

import cpprune
import shards

Pages = Callable[..., Page]


@pytest.fixture
def page(pruned_run: Path) -> Page:
    return Page(pruned_run / "report.html")


def journal(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def predictions(run: Path, scenes: Path, split: str) -> tuple[np.ndarray, np.ndarray, Any]:
    """Return probabilities in float64 and labels, without the code that reports use."""
    part = shards.open_dataset(scenes).split(split)
    model = cpprune.load(run / "model")
    with torch.no_grad():
        logits = model(torch.from_numpy(part.fetch(range(len(part))))).double().numpy()
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return odds / odds.sum(1, keepdims=True), part.labels, part


# --- from the journal ---------------------------------------------------------------------------------


def test_the_curves_are_the_journal(page: Page, pruned_run: Path) -> None:
    epochs = [line for line in journal(pruned_run) if "event" not in line]
    assert len(epochs) == 3
    for row, line in zip(page.records("Epochs"), epochs, strict=True):
        assert row["epoch"] == str(line["epoch"] + 1)
        assert float(row["learning rate"]) == pytest.approx(line["lr"], rel=1e-2)
        assert row["train loss"] == f"{line['train_loss']:.4f}"
        assert row["val log loss"] == f"{line['val_log_loss']:.4f}"
        assert row["val macro accuracy"] == f"{line['val_macro_accuracy']:.4f}"
        tip = f"epoch {line['epoch'] + 1}: training {line['train_loss']:.4g}, validation "
        assert f"{tip}{line['val_log_loss']:.4g}" in page.tips
    assert "pruned at the start of epoch 1" in page.tips
    assert "pruned at the start of epoch 2" in page.tips
    assert "Loss in nats over epochs; ✂: pruned." in page.text


def test_the_beginning_of_quantised_training(
    call: Callable[..., int], page_of: Pages, tiny_run: Path, scenes: Path, tmp_path: Path
) -> None:
    run = tmp_path / "quantised"
    settings = ["--init", tiny_run / "model", "--data.path", scenes, "--train.epochs", 2]
    assert call("train", *settings, "--quantize.start_epoch", 1, "--run", run) == 0
    page = page_of(run)
    assert "quantised at the start of epoch 2" in page.tips
    assert "Loss in nats over epochs; int8: quantised." in page.text
    assert "Quantised (int8) at the start of epoch 2: 15 layers; in float32: first." in page.text


def test_throughput_and_memory_are_the_journal(page: Page, pruned_run: Path) -> None:
    epochs = [line for line in journal(pruned_run) if "event" not in line]
    for line in epochs:
        number = line["epoch"] + 1
        assert f"epoch {number}: clips/s {line['clips_per_second']:.4g}" in page.tips
        assert f"epoch {number}: MiB {line['memory_bytes'] / 2**20:.4g}" in page.tips
        assert line["memory_bytes"] > 50 * 2**20
    memory = [line["memory_bytes"] for line in epochs]
    assert memory == sorted(memory)


def test_time_of_training_adds_up_over_starts(
    pruned_run: Path, copied: Any, page_of: Pages
) -> None:
    run = copied(pruned_run, "resumed")
    lines = [line for line in journal(run) if "event" not in line]
    for line, seconds in zip(lines, (100.0, 3600.0, 61.5), strict=True):  # begun anew after epoch 2
        line["seconds"] = seconds
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert "training time 1 h 1 min" in page_of(run).text


def test_widths_parameters_and_macs_of_each_layer(page: Page, pruned_run: Path) -> None:
    (label,) = (name for name in page.tables if name.startswith("Layers before and after"))
    first, last = (line for line in journal(pruned_run) if line.get("event") == "prune")
    original = json.loads((pruned_run / "model/model.json").read_text())["provenance"]["pruning"]
    weights = weights_of(pruned_run)
    parameters = macs = 0
    for row in page.tables[label][1:]:
        name, numbers = row[0], [int(cell.replace(",", "")) for cell in row[1:]]
        assert numbers[0] == original["original_widths"][name]
        assert numbers[1] == last["widths"][name] == len(weights[f"{name}.weight"])
        assert numbers[3] == weights[f"{name}.weight"].numel()
        assert numbers[2] > numbers[3]
        assert numbers[4] > numbers[5]
        assert numbers[5] % numbers[3] == 0, "a weight costs the same everywhere in its layer"
        parameters, macs = parameters + numbers[3], macs + numbers[5]
        widths = (original["original_widths"][name], first["widths"][name], last["widths"][name])
        assert any(
            tip.startswith(f"{name}: {widths[0]} before, {widths[1]} from epoch 1 on, ")
            and tip.endswith(f"{widths[2]} from epoch 2 on")
            for tip in page.tips
        )
    result = json.loads((pruned_run / "result.json").read_text())
    # What is left is normalisation and the classifier.
    assert 0 < result["parameters"] - parameters < 0.3 * result["parameters"]
    assert 0 < result["macs"] - macs < 0.1 * result["macs"]
    assert f"{first['parameters_before']:,} → {first['parameters']:,} parameters" in page.text


def test_limits(page: Page, pruned_run: Path, copied: Any, page_of: Pages) -> None:
    result = json.loads((pruned_run / "result.json").read_text())
    (label,) = (name for name in page.tables if name.startswith("DCASE's limits"))
    rows = {row["limit"]: row for row in page.records(label)}
    assert rows["DCASE: MACs"]["value"] == f"{result['macs']:,}"
    assert rows["DCASE: bytes as fp32"]["value"] == f"{4 * result['parameters']:,}"
    assert {row["met"] for row in rows.values()} == {"yes"}
    budget = f"params<={result['parameters'] - 1},macs<={result['macs']},latency<=3ms"
    other = page_of(copied(pruned_run, "budget", {"prune.budget": budget}))
    own = [row for row in other.records(label) if row["limit"].startswith("prune.budget")]
    assert [row["met"] for row in own] == ["no", "yes"]


# --- from the predictions -----------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["val", "test"])
def test_predictions(pruned_run: Path, scenes: Path, page_of: Pages, split: str) -> None:
    page = page_of(pruned_run, "--split", split)
    probability, label, part = predictions(pruned_run, scenes, split)
    guess = probability.argmax(1)
    classes = part.dataset.classes
    counts = [[sum((label == t) & (guess == p)) for p in range(10)] for t in range(10)]
    head, *rows = page.tables["Clips by true (rows) and predicted class (columns)"]
    assert head == ["true", *classes]
    assert [[int(cell) for cell in row[1:]] for row in rows] == counts
    recalls = [np.mean(guess[label == k] == k) for k in range(10) if (label == k).any()]
    loss = -np.log(probability[range(len(label)), label])
    assert (
        f"{len(label)} clips of the split {split}: macro accuracy {np.mean(recalls):.4f}, "
        in page.text
    )
    assert f"accuracy {np.mean(guess == label):.4f}, log loss {loss.mean():.4f}" in page.text
    assert ("--split test" in page.text) == (split == "val")
    columns = {"class": np.array(classes)[label]}
    columns |= {name: part.column(name) for name in ("device", "city")}
    for name, values in columns.items():
        shown = {row[name]: row for row in page.records(f"By {name}")}
        assert shown.keys() == set(values)
        for value, row in shown.items():
            own = values == value
            assert row["accuracy"] == f"{np.mean((guess == label)[own]):.4f}"
            assert row["log loss"] == f"{loss[own].mean():.4f}"
            assert row["clips"] == str(own.sum())
    real = np.isin(columns["device"], ("a", "b", "c"))
    groups = {row["device group"]: row["accuracy"] for row in page.records("By device group")}
    assert groups["real"] == f"{np.mean((guess == label)[real]):.4f}"
    assert ("unseen" in groups) == (split == "test")


def test_calibration(page: Page, pruned_run: Path, scenes: Path) -> None:
    probability, label, _ = predictions(pruned_run, scenes, "val")
    confidence, right = probability.max(1), probability.argmax(1) == label
    error, clips = 0.0, []
    for low in np.arange(15) / 15:
        own = (confidence > low) & (confidence <= low + 1 / 15)
        if own.any():
            error += own.mean() * abs(right[own].mean() - confidence[own].mean())
            clips.append(str(own.sum()))
    assert f"Reliability diagram; expected calibration error {error:.4f}" in page.labels
    assert page.column("Bins of confidence", "clips") == clips


def test_mistakes(pruned_run: Path, scenes: Path, page_of: Pages) -> None:
    page = page_of(pruned_run, "--mistakes", 4)
    probability, label, part = predictions(pruned_run, scenes, "val")
    wrong = np.flatnonzero(probability.argmax(1) != label)
    worst = wrong[np.argsort(-probability[wrong].max(1))][:4]
    assert page.of("audio", "aria-label") == [part.keys[n] for n in worst]
    for n, picture, sound in zip(
        worst, page.of("img", "src"), page.of("audio", "src"), strict=True
    ):
        true, guess = (part.dataset.classes[k] for k in (label[n], probability[n].argmax()))
        said = (
            f"{true}, predicted {guess} with probability {probability[n].max():.3f} {part.keys[n]}"
        )
        assert said in page.text
        clip = part.fetch([n])
        with torch.no_grad():
            seen = cpprune.load(pruned_run / "model").features(torch.from_numpy(clip))[0, 0].numpy()
        pixels = np.asarray(Image.open(io.BytesIO(decoded(picture, "image/png"))))
        assert pixels.shape == seen.shape == (256, 44)
        span = (seen - seen.min()) / np.ptp(seen)
        assert pixels == pytest.approx(255 * span[::-1], abs=0.51)  # low frequencies at the bottom
        heard, rate = soundfile.read(io.BytesIO(decoded(sound, "audio/wav")), dtype="int16")
        assert rate == 16_000
        assert heard == pytest.approx(soxr.resample(clip[0], 32_000, 16_000), abs=1)


def decoded(uri: str, kind: str) -> bytes:
    before, _, data = uri.partition(",")
    assert before == f"data:{kind};base64"
    return base64.b64decode(data, validate=True)


def test_no_clip_where_none_is_wanted(pruned_run: Path, page_of: Pages) -> None:
    page = page_of(pruned_run, "--mistakes", 0)
    assert "audio" not in page.tags
    assert "img" not in page.tags


# --- the page -----------------------------------------------------------------------------------------


def test_a_page_needs_nothing_else(page: Page) -> None:
    for _, attribute, value in page.attributes:
        if attribute in ("src", "href", "srcset", "data", "action"):
            assert value.startswith(("data:", "#")), value
    assert page.of("html", "lang") == ["en"]
    assert page.tags.count("script") == page.tags.count("style") == 1
    assert page.tags.count("h1") == page.tags.count("main") == 1
    assert set(page.of("th", "scope")) == {"col", "row"}
    assert "alt" in {a for t, a, _ in page.attributes if t == "img"}
    anchors = {value[1:] for value in page.of("a", "href")}
    assert anchors <= {value for _, attribute, value in page.attributes if attribute == "id"}


def test_how_to_run_it_again(page: Page, pruned_run: Path, cli: Any, tmp_path: Path) -> None:
    command = f"cpprune train --config {pruned_run / 'config.yaml'} --run "
    assert command in page.text
    arguments = ["train", "--config", pruned_run / "config.yaml", "--run", tmp_path / "again"]
    assert cli(*arguments).status == 0
    results = [
        json.loads((run / "result.json").read_text()) for run in (pruned_run, tmp_path / "again")
    ]
    assert results[0]["fingerprint"] == results[1]["fingerprint"]


def test_what_was_trained_on(page: Page, scenes: Path) -> None:
    dataset = shards.open_dataset(scenes)
    assert dataset.fingerprint in page.text
    assert "128 train, 22 val, 50 test" in page.text
    assert f"10: {', '.join(dataset.classes)}" in page.text


def test_several_runs_on_one_page(
    cli: Any, pruned_run: Path, tiny_run: Path, tmp_path: Path
) -> None:
    outcome = cli("report", pruned_run, tiny_run, "--out", tmp_path / "new/both.html", "--json")
    assert outcome.json == {"pages": [str(tmp_path / "new/both.html")]}
    both = Page(tmp_path / "new/both.html")
    assert both.tags.count("article") == both.tags.count("h1") == 2
    ids = [value for _, attribute, value in both.attributes if attribute == "id"]
    assert len(ids) == len(set(ids))


def test_the_same_run_gives_the_same_page(page_of: Pages, pruned_run: Path, tmp_path: Path) -> None:
    page_of(pruned_run)
    assert (tmp_path / "page.html").read_bytes() == (pruned_run / "report.html").read_bytes()


def test_images(cli: Any, write_mnist: Any, tiny: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(40, dtype=np.uint8) % 10
    images = rng.integers(0, 256, (40, 28, 28), dtype=np.uint8)
    (tmp_path / "source").mkdir()
    write_mnist(tmp_path / "source", "t10k", images, labels)
    write_mnist(tmp_path / "source", "train", images, labels)
    build = ["--source", tmp_path / "source", "--out", tmp_path / "digits"]
    assert cli("shards", "build", "mnist", *build).status == 0
    settings = ["--features.preset", "image", "--data.path", tmp_path / "digits"]
    run = tmp_path / "run"
    assert cli("train", *tiny, *settings, "--train.epochs", 1, "--run", run).status == 0
    page = Page(run / "report.html")
    assert "audio" not in page.tags
    pixels = np.asarray(Image.open(io.BytesIO(decoded(page.of("img", "src")[0], "image/png"))))
    match = [np.abs(pixels - im.astype(float)).max() for im in images]
    assert min(match) <= 2, "upright, as it is in the dataset"
    assert math.isfinite(float(page.column("By class", "log loss")[0]))
