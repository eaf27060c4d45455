"""What is not ours outlives every command: folders, files, links, devices, and a user's own notes."""

import json
import os
import select
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from snapshot import fill, snapshot

import cpprune
from cpprune.models import artifact
from cpprune.runs.contents import hold_run

Refused = Callable[..., str]
HERS = ("checkpoints/a.bin", "model/house.png", "plans/house.dwg", "ids/me.pdf", "tensorboard/x")
RUN = (*HERS, "config.yaml", "metrics.jsonl", "report.html", "notes.txt")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state dict that can be imported."""
    file = tmp_path_factory.mktemp("weights") / "small.pth"
    torch.save(cpprune.build_model("cp_resnet", widths=[2, 2, 2]).state_dict(), file)
    return file


@pytest.fixture
def own_run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, with things of the user's in it."""
    folder = tmp_path / "run"
    for path in tiny_run.rglob("*"):
        if path.is_file():
            target = folder / path.relative_to(tiny_run)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize("kind", ["folder", "file", "link to a folder", "dangling link"])
def test_importing_onto_what_is_no_model(
    kind: str, weights: Path, refused: Refused, tmp_path: Path
) -> None:
    photos = fill(tmp_path / "photos", "one.jpg", "model.json", "model.safetensors")
    out = tmp_path / "out"
    if kind == "folder":
        out = photos
    elif kind == "file":
        out.write_text("years of work")
    else:
        out.symlink_to(photos if kind == "link to a folder" else tmp_path / "nowhere")
    before = snapshot(tmp_path)
    refused("import", weights, "--out", out, names=[f"--out {out}"])
    assert snapshot(tmp_path) == before


def test_importing_onto_a_model_keeps_what_else_is_there(
    weights: Path, cli: Any, tmp_path: Path
) -> None:
    out = tmp_path / "model"
    out.mkdir()
    for _ in range(2):
        assert cli("import", weights, "--out", out, "--rho", 4).status == 0
        fill(out, "notes/mine.txt")
    assert (out / "notes/mine.txt").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"model"}
    assert cpprune.load(out).classes


@pytest.mark.parametrize("resume", ["auto", "never"])
@pytest.mark.parametrize("names", [RUN, HERS, ("config.yaml",), ("environment.json", "notes.txt")])
def test_training_in_a_folder_that_is_no_run(
    names: tuple[str, ...], resume: str, refused: Refused, tiny: Any, scenes: Path, tmp_path: Path
) -> None:
    theirs = fill(tmp_path / "theirs", *names)
    before = snapshot(theirs)
    settings = [*tiny, "--data.path", scenes, "--train.epochs", 1, "--resume", resume]
    refused("train", *settings, "--run", theirs, names=[f"--run {theirs} is not a run"])
    assert snapshot(theirs) == before


def test_a_users_files_in_a_run_outlive_it(
    own_run: Path, cli: Any, tiny: Any, scenes: Path
) -> None:
    mine = ("notes.txt", "model/README", "checkpoints/best/copy", "plans/mine.json", "ids/a.txt")
    fill(own_run, *mine)
    begin = ["train", *tiny, "--data.path", scenes, "--run", own_run, "--train.epochs"]
    before = {name: (own_run / name).read_bytes() for name in mine}
    outcome = cli(*begin, 1, "--resume", "never")
    assert outcome.status == 0, outcome.err
    assert {name: (own_run / name).read_bytes() for name in mine} == before
    assert len(list((own_run / "checkpoints").glob("step-*"))) == 1, "the older ones are gone"
    assert len((own_run / "metrics.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("name", ["checkpoints", "model", "plans", "metrics.jsonl", "report.html"])
@pytest.mark.parametrize("resume", ["auto", "never"])
def test_links_are_not_followed_out_of_a_run(
    name: str, resume: str, own_run: Path, refused: Refused, tiny: Any, scenes: Path, tmp_path: Path
) -> None:
    theirs = tmp_path / "theirs"
    if (own_run / name).exists():
        (own_run / name).rename(theirs)
    else:
        fill(theirs, "epoch-0001.json")
    (own_run / name).symlink_to(theirs)
    before = snapshot(tmp_path)
    settings = [*tiny, "--data.path", scenes, "--run", own_run, "--train.epochs", 4]
    refused("train", *settings, "--resume", resume, names=[f"{own_run}: {name} in it is a link"])
    assert snapshot(tmp_path) == before


def test_a_run_folder_belongs_to_one_process(
    own_run: Path, refused: Refused, tiny: Any, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shards.files.locks.PATIENCE", 0.2)
    settings = [*tiny, "--data.path", scenes, "--run", own_run, "--train.epochs", 4]
    with hold_run(own_run):
        before = snapshot(own_run)
        said = refused("train", *settings, "--resume", "never", names=[own_run, os.getpid()])
        assert "another process trains in this run folder (process" in said
        assert snapshot(own_run) == before


def test_a_run_that_cannot_begin_leaves_nothing(
    refused: Refused, tiny: Any, scenes: Path, tmp_path: Path
) -> None:
    settings = [*tiny, "--data.path", scenes, "--resume", "must", "--run", tmp_path / "new"]
    refused("train", *settings, names=["no checkpoint to resume"])
    assert not (tmp_path / "new").exists()


def read_pipe(pipe: int) -> bytes:
    """Reads what one process writes, from when it begins."""
    select.select([pipe], [], [])
    with os.fdopen(pipe, "rb") as file:
        return file.read()


@pytest.mark.parametrize("kind", ["fifo", "device", "link"])
@pytest.mark.parametrize("command", ["report", "compare", "summarise", "predictions", "plan"])
def test_outputs_that_are_no_files_are_written_to(
    command: str, kind: str, cli: Any, tiny_run: Path, scenes: Path, tmp_path: Path
) -> None:
    """A device and a file are reached through links, so that no mistake could replace the device."""
    report = tmp_path / "test.json"
    report.write_text('{"macro_accuracy": 0.5}')
    words: list[Any] = {
        "report": ["report", tiny_run, "--mistakes", 0, "--out"],
        "compare": ["compare", tiny_run, "--out"],
        "summarise": ["summarise", report, "--out"],
        "predictions": ["evaluate", tiny_run / "model", "--data", scenes, "--predictions"],
        "plan": ["prune", "--dry-run", "--prune.ratio", 0.3, "--prune.save_plan"],
    }[command]
    out, target = tmp_path / "out", tmp_path / "target"
    got: list[bytes] = []
    if kind == "fifo":
        os.mkfifo(out)
        pipe = os.open(out, os.O_RDONLY | os.O_NONBLOCK)  # without waiting for who writes
        os.set_blocking(pipe, True)
        reader = threading.Thread(target=lambda: got.append(read_pipe(pipe)), daemon=True)
        reader.start()
    elif kind == "device":
        out.symlink_to(os.devnull)
    else:
        target.write_text("older")
        out.symlink_to(target)
    outcome = cli(*words, out)
    assert outcome.status == 0, outcome.err
    if kind == "fifo":
        reader.join(600)
        assert stat.S_ISFIFO(out.lstat().st_mode)
        assert got
        assert got[0]
    else:
        assert out.is_symlink()
        assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)
    if kind == "link":
        assert target.read_text() != "older"


@pytest.mark.parametrize("what", ["folder", "below a file", "long name", "full", "unread fifo"])
@pytest.mark.parametrize("command", ["report", "compare", "summarise", "evaluate", "predict"])
def test_outputs_that_cannot_be_written(
    command: str,
    what: str,
    refused: Refused,
    tiny_run: Path,
    scenes: Path,
    scenes_source: Path,
    tmp_path: Path,
) -> None:
    report, sound = tmp_path / "test.json", next((scenes_source / "audio").iterdir())
    report.write_text('{"macro_accuracy": 0.5}')
    out = {
        "folder": tmp_path,
        "below a file": report / "out",
        "long name": tmp_path / ("x" * 300),
        "full": tmp_path / "full",
        "unread fifo": tmp_path / "fifo",
    }[what]
    (tmp_path / "full").symlink_to("/dev/full")
    os.mkfifo(tmp_path / "fifo")
    words, option = {
        "report": (["report", tiny_run, "--mistakes", 0], "--out"),
        "compare": (["compare", tiny_run], "--out"),
        "summarise": (["summarise", report], "--out"),
        "evaluate": (["evaluate", tiny_run / "model", "--data", scenes], "--predictions"),
        "predict": (["predict", tiny_run / "model", sound, "--json"], "--predictions"),
    }[command]
    before = snapshot(tmp_path)
    refused(*words, option, out, names=[f"{option} {out}"])
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_outputs_are_looked_at_before_the_work(
    command: str, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object) -> None:
        pytest.fail("the work began")

    monkeypatch.setattr(artifact, "load", load)
    words = ["--data", "d"] if command == "evaluate" else ["f.wav"]
    refused(command, "m", *words, "--predictions", tmp_path, names=["--predictions", tmp_path])


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_what_may_not_be_written(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "report").write_text('{"macro_accuracy": 0.5}')
    for name, mode in (("closed", 0o555), ("kept", 0o755)):
        (tmp_path / name).mkdir()
        fill(tmp_path / name, "out")
        (tmp_path / name / "out").chmod(0o444)
        (tmp_path / name).chmod(mode)
    for out in ("closed/new", "closed/out", "kept/out", "closed/deep/new"):
        command = ["summarise", tmp_path / "report", "--out", tmp_path / out]
        refused(*command, names=[tmp_path / out, "you may write to"])
    assert (tmp_path / "kept/out").read_text() == "years of work: out"


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["demo"], ["audio/meta.csv", "results.json"]),
        (["sensitivity"], ["sensitivity.json", "sensitivity.png"]),
        (["sweep"], ["sweep.json", "locks/a", "results.csv"]),
        (["sweep"], ["journal.log", "notes.txt"]),
    ],
)
def test_folders_of_other_commands(
    words: list[Any],
    names: list[str],
    refused: Refused,
    tiny_run: Path,
    scenes: Path,
    tmp_path: Path,
) -> None:
    repository = Path(__file__).parents[1]
    more = {
        "demo": [],
        "sensitivity": [tiny_run / "model", "--data", scenes],
        "sweep": [repository / "configs/sweeps/criterion.yaml", "--trials", 1],
    }[words[0]]
    theirs = fill(tmp_path / "theirs", *names)
    before = snapshot(theirs)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(repository)
        refused(*words, *more, "--out", theirs, names=[f"--out {theirs} is not a"])
    assert snapshot(theirs) == before


def test_ids_are_not_written_through_a_link(
    tiny: Any, scenes: Path, cli: Any, tmp_path: Path
) -> None:
    ids = tmp_path / "run/ids/rank-0.jsonl"
    ids.parent.mkdir(parents=True)
    (tmp_path / "run/environment.json").write_text('{"packages": {"cpprune": "0"}}')
    ids.symlink_to(tmp_path / "hers")
    (tmp_path / "hers").write_text("hers")
    settings = [*tiny, "--data.path", scenes, "--run", tmp_path / "run", "--train.epochs", 1]
    outcome = cli("train", *settings, "--data.record_ids", "true")
    assert outcome.status == 2
    assert f"{ids}: cannot be written" in outcome.err
    assert (tmp_path / "hers").read_text() == "hers"


def test_a_report_of_a_folder_that_no_run_wrote(refused: Refused, tmp_path: Path) -> None:
    fill(tmp_path, "report.html")
    (tmp_path / "config.yaml").write_text("a: 1\n")
    before = snapshot(tmp_path)
    refused("report", tmp_path, names=[f"{tmp_path} is not a run"])
    assert snapshot(tmp_path) == before


@pytest.mark.slow
def test_two_trainings_in_one_folder(tiny: Any, scenes: Path, tmp_path: Path) -> None:
    """The second is refused, the first unharmed; killed, it leaves the folder to the next."""
    run = tmp_path / "run"
    words = [sys.executable, "-m", "cpprune", "train", *tiny, "--data.path", scenes]
    command = [*map(str, words), "--run", str(run), "--train.epochs", "20"]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as first:
        assert first.stderr is not None
        while b"epoch 1/20" not in first.stderr.readline():
            assert first.poll() is None
        second = subprocess.run(command, capture_output=True, text=True, timeout=600)
        if first.poll() is None:  # else it was too slow to meet the first
            assert second.returncode == 2, second.stderr
            assert "another process trains in this run folder (process" in second.stderr
            assert second.stderr.count("\n") == 1
        first.stderr.read()
        assert first.wait() == 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(20))
    begun = (run / "checkpoints").stat().st_mtime_ns
    with subprocess.Popen([*command, "--resume", "never"]) as third:
        while (
            not (run / "checkpoints").exists() or (run / "checkpoints").stat().st_mtime_ns == begun
        ):
            assert third.poll() is None
            time.sleep(0.05)
        third.kill()
    again = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert again.returncode == 0, again.stderr
