"""Runs with pieces missing or damaged, names that would do harm, and reports that fail."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pages import Page

Pages = Callable[..., Page]

EVIL = ("<img src=x onerror=hacked()>", "\"'><svg onload=hacked()>", "&lt;b&gt; {{ 7 * 7 }}")


@pytest.fixture
def run(tiny_run: Path, copied: Callable[..., Path]) -> Path:
    """A finished run that may be damaged."""
    return copied(tiny_run, "damaged")


def test_an_interrupted_run(stopped_run: Path, page_of: Pages) -> None:
    page = page_of(stopped_run)
    assert "The run is not finished: 2 of 4 epochs are complete" in page.text
    assert "An unfinished run" in page.text
    assert page.column("Epochs", "epoch") == ["1", "2"]
    assert not (stopped_run / "report.html").exists(), "made when a run is over"


def test_a_run_stopped_before_its_first_epoch_was_over(run: Path, page_of: Pages) -> None:
    for name in ("metrics.jsonl", "result.json"):
        (run / name).unlink()
    shutil.rmtree(run / "model")
    page = page_of(run)
    for said in (
        "There is no metrics.jsonl: no epoch is complete.",
        "The run is not finished: 0 of 4 epochs are complete",
        "There is no model to show: ",
        "there are no curves",
        "There is no model to evaluate.",
        "There is no model yet.",
    ):
        assert said in page.text


@pytest.mark.parametrize(
    "line",
    ['{"epoch": 1, "lr', "null", '{"epoch": 1}', "\udcff".encode("utf-8", "surrogateescape")],
)
def test_a_damaged_line_of_the_journal(run: Path, page_of: Pages, line: Any) -> None:
    lines = (run / "metrics.jsonl").read_bytes().splitlines()
    lines[1] = line if isinstance(line, bytes) else line.encode()
    (run / "metrics.jsonl").write_bytes(b"\n".join(lines))
    page = page_of(run)
    assert "metrics.jsonl: line 2 is damaged and left out." in page.text
    assert page.column("Epochs", "epoch") == ["1", "3", "4"]


def test_figures_that_are_not_finite(run: Path, page_of: Pages) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines[1]["train_loss"], lines[2]["val_log_loss"] = float("nan"), float("inf")
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    page = page_of(run)
    assert page.column("Epochs", "train loss")[1] == "–"
    points = "".join(page.of("polyline", "points"))
    assert "nan" not in points
    assert "inf" not in points


@pytest.mark.parametrize("name", ["environment.json", "result.json", "config.yaml"])
def test_a_damaged_file(run: Path, page_of: Pages, name: str) -> None:
    (run / name).write_text("{[")
    assert f"{name} is damaged and left out." in page_of(run).text


def test_a_model_that_no_run_wrote(run: Path, page_of: Pages) -> None:
    path = run / "model/model.json"
    description = json.loads(path.read_text())
    del description["provenance"]
    path.write_text(json.dumps(description))
    assert "There is no model to show: " in page_of(run).text


def test_without_the_data(run: Path, tiny_run: Path, copied: Any, page_of: Pages) -> None:
    lost = copied(tiny_run, "lost", {"data.path": "no/such/data"})
    page = page_of(lost)
    assert (
        "The model was not evaluated, since the data cannot be reached: no dataset at " in page.text
    )
    assert page.column("Epochs", "epoch") == ["1", "2", "3", "4"]
    assert "macro accuracy, val" in page.text
    assert "img" not in page.tags


def test_other_data_than_that_of_the_run(
    tiny_run: Path, cli: Any, noise_folder: Any, page_of: Pages, scenes: Path, tmp_path: Path
) -> None:
    noise_folder(tmp_path / "noise")
    build = ["--source", tmp_path / "noise", "--out", tmp_path / "other"]
    assert cli("shards", "build", "folder", *build).status == 0
    page = page_of(tiny_run, "--data", tmp_path / "other")
    assert "has other classes than the model" in page.text
    assert (
        "is not the one that the run was trained on" not in page_of(tiny_run, "--data", scenes).text
    )


def test_a_run_that_is_named_twice_is_reported_once(cli: Any, tiny_run: Path) -> None:
    outcome = cli("report", tiny_run, tiny_run)
    assert outcome.status == 0, outcome.err


def test_names_that_would_do_harm(cli: Any, tiny: Any, noise_folder: Any, tmp_path: Path) -> None:
    noise_folder(tmp_path / "noise", EVIL, files=12)
    build = ["--source", tmp_path / "noise", "--out", tmp_path / "data"]
    assert cli("shards", "build", "folder", *build).status == 0
    run = tmp_path / "<script>hacked()<" / "script>"
    settings = ["--data.path", tmp_path / "data", "--train.epochs", 1, "--run", run]
    assert cli("train", *tiny, *settings).status == 0
    outcome = cli("report", run)
    assert outcome.status == 0, outcome.err
    page = Page(run / "report.html")
    assert page.tags.count("script") == 1
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    assert set(page.column("By class", "class")) <= set(EVIL)
    assert any(EVIL[0] in tip for tip in page.tips)
    assert "7 * 7" in page.text


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["no-such-run"], ["no-such-run: is not a run folder"]),
        (["."], ["is not a run folder", "config.yaml"]),
        ([], ["RUN"]),
    ],
)
def test_no_run(refused: Any, elsewhere: None, arguments: list[str], names: list[str]) -> None:
    refused("report", *arguments, names=names)
    refused("compare", *arguments, names=names)


def test_other_mistakes(refused: Any, run: Path, tmp_path: Path) -> None:
    refused("report", run, "--mistakes", -1, names=["--mistakes -1"])
    (tmp_path / "file").touch()
    refused("report", run, "--out", tmp_path / "file/page.html", names=["page.html", "--out"])


@pytest.mark.slow
def test_a_report_that_fails_is_a_warning(
    cli: Any, tiny: Any, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> str:
        raise RuntimeError("two\nlines")

    settings = [*tiny, "--data.path", scenes, "--train.epochs", 1, "--data.train_fraction", 0.25]
    command = ["train", *settings, "--run", tmp_path / "run"]
    with monkeypatch.context() as patch:
        patch.setattr("cpprune.report.run_report.render", broken)
        outcome = cli(*command, "--json")
    assert outcome.status == 0
    assert outcome.json["parameters"] == 2650
    assert outcome.err.splitlines()[-1] == (
        f"cpprune: warning: {tmp_path}/run: no report was made (two lines); try: cpprune report "
        f"{tmp_path}/run"
    )
    assert not (tmp_path / "run/report.html").exists()
    again = cli(*command)
    assert again.err.splitlines()[-1] == f"report: {tmp_path}/run/report.html"
    # A finished run that is called again keeps its report, unless that is older than its last epoch.
    page = tmp_path / "run/report.html"
    page.write_text("mine")
    assert cli(*command).status == 0
    assert page.read_text() == "mine"
    os.utime(page, (1, 1))
    assert cli(*command).status == 0
    assert page.read_text() != "mine"
    # A run that begins anew has nothing to report yet.
    from cpprune.config import RunConfig
    from cpprune.runs.folder import write_start

    write_start(tmp_path / "run", RunConfig(run=str(tmp_path / "run")), fresh=True)
    assert not (tmp_path / "run/report.html").exists()
