"""Figures against closed forms, PyTorch and torchmetrics."""

import json
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchmetrics.functional import classification as theirs

from cpprune.evaluation.metrics import (
    by_value,
    calibration,
    confusion_matrix,
    full_report,
    log_loss,
    log_softmax,
    macro_accuracy,
    summary,
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
CLASSES = ["bus", "metro", "park", "tram"]


def predictions(clips: int = 500, classes: int = 4, seed: int = 0) -> tuple[Floats, Ints]:
    rng = np.random.default_rng(seed)
    label = rng.integers(classes, size=clips)
    logits = rng.normal(size=(clips, classes)) + 1.2 * np.eye(classes)[label]
    return logits, label


def test_log_softmax_is_exact_and_does_not_overflow() -> None:
    logits, _ = predictions()
    expected = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    np.testing.assert_allclose(log_softmax(logits), expected, rtol=1e-12)
    large = log_softmax(np.array([[1e4, 0.0], [-1e4, -1e4]], np.float32))
    assert large.dtype == np.float64
    np.testing.assert_allclose(large, [[0, -1e4], [-math.log(2)] * 2])


def test_log_loss_is_the_mean_over_clips() -> None:
    by_hand = np.log([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]])
    label = np.array([0, 2, 2])
    expected = -(math.log(0.5) + math.log(0.1) + math.log(0.6)) / 3
    assert log_loss(by_hand, label) == pytest.approx(expected, rel=1e-12)

    logits, label = predictions(101)
    expected = float(torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(label)))
    assert log_loss(log_softmax(logits), label) == pytest.approx(expected, rel=1e-12)
    # Not the mean of the batches' means, the last of which is smaller.
    log_prob = log_softmax(logits)
    means = [log_loss(log_prob[i : i + 40], label[i : i + 40]) for i in range(0, 101, 40)]
    assert abs(np.mean(means) - expected) > 1e-3
    assert np.average(means, weights=[40, 40, 21]) == pytest.approx(expected, rel=1e-12)


def test_confusion_is_torchmetrics() -> None:
    logits, label = predictions()
    confusion = confusion_matrix(log_softmax(logits), label)
    expected = theirs.multiclass_confusion_matrix(
        torch.tensor(logits), torch.tensor(label), num_classes=4
    )
    assert confusion.tolist() == expected.tolist()
    assert (confusion != confusion.T).any()
    # Rows are the true classes, also when a class has no clips or is never predicted.
    one = np.log([[0.2, 0.5, 0.3]])
    assert confusion_matrix(one, np.array([2])).tolist() == [[0, 0, 0], [0, 0, 0], [0, 1, 0]]


def test_macro_accuracy_weighs_classes_alike() -> None:
    confusion = np.array([[90, 10, 0], [1, 1, 0], [0, 0, 5]])
    assert macro_accuracy(confusion) == pytest.approx((0.9 + 0.5 + 1.0) / 3)
    logits, label = predictions()
    expected = theirs.multiclass_accuracy(
        torch.tensor(logits), torch.tensor(label), num_classes=4, average="macro"
    )
    actual = macro_accuracy(confusion_matrix(log_softmax(logits), label))
    assert actual == pytest.approx(float(expected), abs=1e-6)


def test_classes_without_clips_do_not_count() -> None:
    assert macro_accuracy(np.array([[3, 1, 0], [0, 0, 0], [0, 0, 2]])) == (0.75 + 1) / 2


@pytest.mark.parametrize("bins", [15, 10, 1])
def test_calibration_is_torchmetrics(bins: int) -> None:
    logits, label = predictions(2000)
    log_prob = log_softmax(3 * logits)
    report = calibration(log_prob, label, bins)
    expected = theirs.multiclass_calibration_error(
        torch.tensor(np.exp(log_prob)), torch.tensor(label), num_classes=4, n_bins=bins, norm="l1"
    )
    assert float(expected) > 0.02
    assert report["expected_calibration_error"] == pytest.approx(float(expected), abs=1e-6)


def test_calibration_by_hand() -> None:
    confidence = np.array([0.55, 0.58, 0.95, 1.0])
    log_prob = np.log(np.stack((confidence, 1 - confidence + 1e-300), axis=1))
    report = calibration(log_prob, np.array([0, 1, 0, 0]), bins=10)
    assert report["clips"] == [0, 0, 0, 0, 0, 2, 0, 0, 0, 2]
    assert report["confidence"][5] == pytest.approx(0.565)
    assert report["accuracy"][5] == 0.5
    assert report["confidence"][9] == pytest.approx(0.975)
    assert report["accuracy"][9] == 1
    error = 0.5 * abs(0.5 - 0.565) + 0.5 * abs(1 - 0.975)
    assert report["expected_calibration_error"] == pytest.approx(error)


def test_summary() -> None:
    log_prob = np.log([[0.7, 0.3], [0.6, 0.4], [0.9, 0.1], [0.2, 0.8]])
    label = np.array([0, 0, 1, 1])
    loss = -np.log([0.7, 0.6, 0.1, 0.8]).mean()
    expected = {"macro_accuracy": 0.75, "accuracy": 0.75, "log_loss": loss, "clips": 4}
    assert summary(log_prob, label) == pytest.approx(expected)
    # Accuracy is over clips, macro accuracy over classes.
    figures = summary(log_prob[:3], label[:3])
    assert figures["accuracy"] == pytest.approx(2 / 3)
    assert figures["macro_accuracy"] == pytest.approx(1 / 2)


def test_by_value_takes_each_ones_clips() -> None:
    logits, label = predictions(60)
    log_prob = log_softmax(logits)
    city = np.array(["lyon", "paris", "wien"])[np.random.default_rng(1).integers(3, size=60)]
    report = by_value(log_prob, label, city)
    assert sorted(report) == ["lyon", "paris", "wien"]
    for name, figures in report.items():
        own = [i for i in range(60) if city[i] == name]
        assert figures["clips"] == len(own)
        right = sum(int(logits[i].argmax()) == label[i] for i in own)
        assert figures["accuracy"] == pytest.approx(right / len(own))
        loss = -sum(log_prob[i, label[i]] for i in own) / len(own)
        assert figures["log_loss"] == pytest.approx(loss)


def test_the_groups_of_devices_are_dcases() -> None:
    devices = ["a", "b", "c", "s1", "s2", "s3", "s4", "s5", "s6"]
    logits, label = predictions(90)
    log_prob = log_softmax(logits)
    device = np.array(devices * 10)
    report = full_report(log_prob, label, CLASSES, {"device": device})
    assert sorted(report["per_device"]) == devices
    assert list(report["per_group"]) == ["real", "seen", "unseen"]
    for number, group in enumerate(("real", "seen", "unseen")):
        own = np.arange(90) % 9 // 3 == number
        right = logits[own].argmax(1) == label[own]
        assert report["per_group"][group]["clips"] == 30
        assert report["per_group"][group]["accuracy"] == pytest.approx(right.mean())
    assert report["per_city"] == {}

    some = device != "s4"
    some &= device != "s5"
    some &= device != "s6"
    report = full_report(log_prob[some], label[some], CLASSES, {"device": device[some]})
    assert list(report["per_group"]) == ["real", "seen"]


def test_unknown_devices_form_no_groups() -> None:
    logits, label = predictions(4)
    device = np.array(["a", "b", "phone", "phone"])
    report = full_report(log_softmax(logits), label, CLASSES, {"device": device})
    assert sorted(report["per_device"]) == ["a", "b", "phone"]
    assert report["per_group"] == {}


def test_a_full_report() -> None:
    logits, label = predictions(80)
    label[label == 2] = 1  # a class without clips
    log_prob = log_softmax(logits)
    city = np.array(["lyon", "wien"] * 40)
    report = full_report(log_prob, label, CLASSES, {"city": city})
    assert json.loads(json.dumps(report)) == report
    assert sorted(report["per_city"]) == ["lyon", "wien"]
    assert report["per_device"] == report["per_group"] == {}
    assert list(report["per_class"]) == ["bus", "metro", "tram"]
    predicted = logits.argmax(1)
    recalls = []
    for number, name in enumerate(CLASSES):
        own = label == number
        row = report["confusion"][number]
        assert row == [int((own & (predicted == other)).sum()) for other in range(4)]
        if name == "park":
            continue
        figures = report["per_class"][name]
        recalls.append((predicted[own] == number).mean())
        assert figures["clips"] == own.sum()
        assert figures["accuracy"] == pytest.approx(recalls[-1])
        assert figures["log_loss"] == pytest.approx(-log_prob[own, number].mean())
    assert report["macro_accuracy"] == pytest.approx(np.mean(recalls))
    assert report["accuracy"] == pytest.approx((predicted == label).mean())
    assert report["clips"] == 80
    assert sum(report["calibration"]["clips"]) == 80
