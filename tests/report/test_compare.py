"""`cpprune compare` on copies of a run, whose figures are set so that all can be checked by hand."""

import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pages import Page
from scipy import stats

import cpprune
from cpprune.evaluation.statistics import holm, paired_test

# Macro accuracies of three seeds.
WIDE = (0.61, 0.66, 0.62)
NARROW = (0.55, 0.62, 0.575)


@pytest.fixture
def seeds(tiny_run: Path, pruned_run: Path, copied: Callable[..., Path]) -> list[Path]:
    """Three seeds of a network, and of the narrower one that was cut out of each."""
    folders = []
    for seed, (one, other) in enumerate(zip(WIDE, NARROW, strict=True)):
        wide = copied(tiny_run, f"seed-{seed}/wide", {"seed": seed}, macro_accuracy=one)
        changes = {"seed": seed, "init": str(wide / "model")}
        narrow = copied(pruned_run, f"seed-{seed}/narrow", changes, macro_accuracy=other)
        folders += [wide, narrow]
    return folders


def test_groups_are_runs_that_differ_in_the_seed(
    cli: Any, seeds: list[Path], tiny_run: Path
) -> None:
    found = cli("compare", *reversed(seeds), "--json").json
    assert [group["name"] for group in found["groups"]] == ["wide", "narrow"]
    for group, values in zip(found["groups"], (WIDE, NARROW), strict=True):
        assert group["seeds"] == [0, 1, 2]
        assert group["macro_accuracy"]["values"] == list(values)
        mean = sum(values) / 3
        assert group["macro_accuracy"]["mean"] == pytest.approx(mean)
        deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / 2)
        assert group["macro_accuracy"]["deviation"] == pytest.approx(deviation)
        network = cpprune.load(Path(group["runs"][0]) / "model").network
        assert group["parameters"] == sum(p.numel() for p in network.parameters())
    result = json.loads((tiny_run / "result.json").read_text())
    assert found["groups"][0]["macs"] == result["macs"]
    assert found["groups"][0]["log_loss"]["mean"] == pytest.approx(result["val"]["log_loss"])
    assert found["split"] == "val"
    assert found["notes"] == []


def test_paired_tests(cli: Any, seeds: list[Path]) -> None:
    (test,) = cli("compare", *seeds, "--json").json["tests"]
    assert (test["one"], test["other"], test["seeds"]) == ("wide", "narrow", [0, 1, 2])
    shown = test["macro_accuracy"]
    assert shown["difference"] == pytest.approx(sum(WIDE) / 3 - sum(NARROW) / 3)
    assert shown["p"] == shown["p_holm"] == pytest.approx(stats.ttest_rel(WIDE, NARROW).pvalue)
    assert test["log_loss"]["p"] is None, "the same difference for every seed"
    # A seed that one of the groups lacks is not paired; with one seed there is nothing to test.
    (test,) = cli("compare", *seeds[:-1], "--json").json["tests"]
    assert test["macro_accuracy"]["p"] == pytest.approx(
        stats.ttest_rel(WIDE[:2], NARROW[:2]).pvalue
    )
    few = cli("compare", *seeds[:2], "--json").json
    assert few["tests"] == []
    assert few["notes"] == ["Each group has a single seed: differences may be noise."]


def test_a_difference_in_any_other_setting_makes_groups(
    cli: Any, seeds: list[Path], tiny_run: Path, copied: Any
) -> None:
    other = copied(tiny_run, "other", {"seed": 9, "optim.lr": 0.5}, macro_accuracy=0.1)
    moved = copied(tiny_run, "moved", {"seed": 9, "data.path": "else/where"}, macro_accuracy=0.7)
    groups = cli("compare", *seeds[::2], other, moved, "--json").json["groups"]
    assert [len(group["runs"]) for group in groups] == [4, 1]
    assert groups[0]["settings"] == {"optim.lr": 0.01}
    assert groups[1]["settings"] == {"optim.lr": 0.5}


def test_the_pareto_front(cli: Any, seeds: list[Path], pruned_run: Path, copied: Any) -> None:
    bad = copied(pruned_run, "bad", {"optim.lr": 0.5}, macro_accuracy=0.4)
    groups = {g["name"]: g for g in cli("compare", *seeds, bad, "--json").json["groups"]}
    assert groups.keys() == {"wide", "narrow", "bad"}
    both = {"parameters": True, "macs": True}
    assert groups["wide"]["pareto"] == groups["narrow"]["pareto"] == both
    assert groups["bad"]["pareto"] == {"parameters": False, "macs": False}
    good = copied(pruned_run, "good", {"optim.lr": 0.25}, macro_accuracy=0.9)
    groups = {g["name"]: g for g in cli("compare", *seeds, good, "--json").json["groups"]}
    assert [n for n, g in groups.items() if g["pareto"]["macs"]] == ["good"]


def test_runs_that_are_left_out(
    cli: Any, refused: Any, seeds: list[Path], tiny_run: Path, stopped_run: Path, copied: Any
) -> None:
    twin = copied(tiny_run, "twin", {"seed": 0})
    found = cli("compare", *seeds, twin, stopped_run, "--json").json
    assert [len(group["runs"]) for group in found["groups"]] == [3, 3]
    unfinished, same = found["notes"]
    assert "left out: it is not a finished run with settings and a model" in unfinished
    assert "left out: it has the same settings and seed as" in same
    refused("compare", stopped_run, names=["finished run", "left out"])
    (twin / "config.yaml").write_text("{[")
    refused("compare", twin, names=["no finished run", "settings"])


def test_seeds_of_a_run_whose_settings_are_lost(cli: Any, seeds: list[Path]) -> None:
    (seeds[0] / "config.yaml").write_text("{[")
    groups = cli("compare", *seeds[1::2], "--json").json["groups"]
    assert [group["seeds"] for group in groups] == [[1, 2], [0]]


def test_figures_of_another_split(
    cli: Any, tiny_run: Path, pruned_run: Path, scenes: Path, copied: Any
) -> None:
    found = cli("compare", tiny_run, pruned_run, "--split", "test", "--json").json
    for group in found["groups"]:
        model = Path(group["runs"][0]) / "model"
        measured = cli("evaluate", model, "--data", scenes, "--json").json
        for key in ("macro_accuracy", "log_loss"):
            assert group[key]["mean"] == pytest.approx(measured[key], abs=1e-9)
    lost = copied(tiny_run, "lost", {"data.path": "no/such/data", "seed": 3})
    found = cli("compare", tiny_run, lost, "--split", "test", "--json").json
    assert len(found["groups"]) == 1
    assert any("the data cannot be reached" in note for note in found["notes"])


def test_what_the_seed_project_reports(cli: Any, tiny_run: Path, tmp_path: Path) -> None:
    outcome = cli("compare", tiny_run, "--reference", "--json", "--out", tmp_path / "page.html")
    rows = outcome.json["reference"]["rows"]
    figures = [(r["parameters"], r["macro_accuracy"], r["log_loss"]) for r in rows]
    assert figures == [
        (47_028, 0.50553, 1.38185),
        (131_316, 0.50623, 1.38185),
        (44_784, 0.5083, 1.383),
    ]
    page = Page(tmp_path / "page.html")
    assert "README of github.com/cwilldoner/practicalwork" in page.text
    assert "0.50553" in cli("compare", tiny_run, "--reference").out
    assert "reference" not in cli("compare", tiny_run, "--json").json


def test_the_page_and_the_table(cli: Any, seeds: list[Path], tmp_path: Path) -> None:
    outcome = cli("compare", *seeds, "--out", tmp_path / "page.html")
    assert outcome.err == f"comparison: {tmp_path / 'page.html'}\n"
    page = Page(tmp_path / "page.html")
    (label,) = (name for name in page.tables if name.startswith("Groups: mean"))
    wide, narrow = page.records(label)
    assert wide["macro accuracy"] == "0.6300 ± 0.0265"
    assert wide["macro accuracy"] in outcome.out
    assert narrow["Pareto front of"] == "parameters, macs"
    p = stats.ttest_rel(WIDE, NARROW).pvalue
    assert page.column("Paired differences", "p") == [f"{p:.4f}"]
    assert "wide: 0.6300 at 2,650, ± 0.0265" in page.tips
    assert f"(p {p:.4f}, Holm {p:.4f}, 3 seeds)" in outcome.out
    # The front is a staircase from the cheapest to the best, which lies higher.
    for points in page.of("polyline", "points"):
        corners = [tuple(map(float, point.split(","))) for point in points.split()]
        assert len(corners) == 4
        for (x, y), (next_x, next_y) in pairwise(corners):
            assert (next_x > x) != (next_y < y)


def test_holms_correction() -> None:
    # Holm by hand: 0.01 · 4, 0.02 · 3, then 0.03 · 2 = 0.06 and 0.9.
    assert holm([0.03, 0.01, None, 0.02, 0.9]) == pytest.approx([0.06, 0.04, None, 0.06, 0.9])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    from shards.errors import UserError

    monkeypatch.setattr("cpprune.evaluation.statistics.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"need scipy: pip install 'cpprune\[report\]'"):
        paired_test([1, 2], [2, 4])
