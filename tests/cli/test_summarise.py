"""`cpprune summarise` on figures that can be checked by hand."""

import json
import math

import pytest


@pytest.fixture
def reports(tmp_path):
    """Evaluations with the macro accuracies 0.5, 0.6 and 0.7."""
    paths = []
    for seed, accuracy in enumerate((0.5, 0.6, 0.7)):
        report = {
            "split": "test",
            "clips": 50,
            "macro_accuracy": accuracy,
            "per_class": {"bus": {"accuracy": 2 * accuracy - 0.4}},
            "confusion": [[1, 2], [3, 4]],
        }
        if seed:
            report["per_city"] = {"lyon": {"accuracy": 1.0}}
        paths.append(tmp_path / f"seed-{seed}.json")
        paths[-1].write_text(json.dumps(report))
    return paths


def test_mean_and_sample_deviation(cli, reports, tmp_path):
    outcome = cli("summarise", *reports, "--json", "--out", tmp_path / "new/all.json")
    figures = outcome.json["figures"]
    assert json.loads((tmp_path / "new/all.json").read_text()) == outcome.json
    assert set(figures) == {"clips", "macro_accuracy", "per_class.bus.accuracy"}
    assert figures["macro_accuracy"]["values"] == [0.5, 0.6, 0.7]
    assert figures["macro_accuracy"]["mean"] == pytest.approx(0.6)
    # (0.1² + 0 + 0.1²) / (3 − 1)
    assert figures["macro_accuracy"]["deviation"] == pytest.approx(math.sqrt(0.02 / 2))
    assert figures["per_class.bus.accuracy"]["mean"] == pytest.approx(0.8)
    assert figures["per_class.bus.accuracy"]["deviation"] == pytest.approx(0.2)
    assert figures["clips"]["deviation"] == 0
    text = cli("summarise", *reports).out
    assert "3 evaluations" in text
    assert "0.6 ± 0.1" in text


def test_a_single_evaluation_has_no_deviation(cli, reports):
    figures = cli("summarise", reports[0], "--json").json["figures"]
    assert figures["macro_accuracy"] == {"mean": 0.5, "deviation": None, "values": [0.5]}
    assert "±" not in cli("summarise", reports[0]).out.split("\n", 1)[1]


def test_what_is_no_evaluation(refused, reports, tmp_path):
    (tmp_path / "other.json").write_text('{"loss": 1}')
    refused("summarise", *reports, tmp_path / "other.json", names=["other.json", "evaluate --json"])
    (tmp_path / "other.json").write_text("no JSON")
    refused("summarise", tmp_path / "other.json", names=["other.json"])
    refused("summarise", tmp_path / "none.json", names=["none.json", "No such file"])
