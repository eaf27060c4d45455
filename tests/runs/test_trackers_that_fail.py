"""A tracker that fails, hangs or loses its network: the run ends as without it, and soon."""

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from marks import slow
from run_folder import metrics, weights_of

from cpprune.runs.log import RunLog
from cpprune.runs.tracking import Tracking, read_state

SETTINGS = [
    *("--model.widths", "[6, 8, 10]", "--data.train_fraction", 0.25, "--train.batch_size", 8),
    *("--train.epochs", 2, "--optim.schedule", "constant", "--optim.lr", 1e-2),
]

# What cpprune calls of wandb; one call fails.
FAKE = """
import json, os, time, types, _thread

def call(name, **about):
    with open(os.environ["FAKE_CALLS"], "a") as file:
        file.write(json.dumps({"name": name, **about}) + "\\n")
    what, how = os.environ["FAKE_FAULT"].split()
    if what == name:
        if how == "hangs":
            time.sleep(1000)
        if how == "dies":
            os._exit(9)
        if how == "stops":
            os.environ["FAKE_FAULT"] = "- -"
            _thread.interrupt_main()
            return
        raise RuntimeError(f"no {name} today")

call("import")
errors = types.SimpleNamespace(UsageError=ValueError)
Settings = dict

class Run:
    id, offline, url, summary = "abc", False, "http://fake/abc", {}
    settings = types.SimpleNamespace(sync_dir="there")
    config = types.SimpleNamespace(update=lambda values, **_: call("config"))
    def define_metric(self, *_, **__): call("define")
    def log(self, values, step=None): call("log", step=step, values=values)
    def log_artifact(self, model): call("model")
    def finish(self, exit_code): call("finish", exit_code=exit_code)

def table(**about): return about
Table, plot = table, types.SimpleNamespace(confusion_matrix=table)
Artifact = lambda *_, **__: types.SimpleNamespace(add_dir=lambda folder: None)

def login(verify): call("login"); return False
def init(**about): call("init", about=about); return Run()
"""


@pytest.fixture(scope="module")
def plain(call: Any, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody else is told of."""
    run = tmp_path_factory.mktemp("plain") / "run"
    assert call("train", *SETTINGS, "--data.path", scenes, "--run", run) == 0
    return run


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MODE", "SWEEP_ID", "RUN_ID", "API_KEY", "BASE_URL"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts another wandb before the real one, in which a call fails."""

    def put(fault: str) -> None:
        (tmp_path / "fake/wandb").mkdir(parents=True)
        (tmp_path / "fake/wandb/__init__.py").write_text(FAKE)
        monkeypatch.syspath_prepend(str(tmp_path / "fake"))
        monkeypatch.setenv("FAKE_FAULT", fault)
        monkeypatch.setenv("FAKE_CALLS", str(tmp_path / "calls"))

    return put


def calls_in(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "calls").read_text().splitlines()]


@pytest.fixture
def tracked(
    cli: Any, plain: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[float], str]:
    """Trains with wandb, which has to change nothing; returns the one line of warning."""

    def train(seconds: float) -> str:
        monkeypatch.setattr("cpprune.runs.tracking.SECONDS_AT_END", seconds)
        run = tmp_path / "run"
        command = ["train", *SETTINGS, "--data.path", scenes, "--track", "wandb", "--run", run]
        bounds: list[float | None] = []
        wait = subprocess.Popen.wait

        def recorded(process: Any, timeout: float | None = None) -> int:
            bounds.append(timeout)
            return wait(process, timeout)

        monkeypatch.setattr(subprocess.Popen, "wait", recorded)
        outcome = cli(*command)
        assert bounds[0] == seconds  # after which the tracker is killed: it hangs for 1,000
        assert len(bounds) == 1 + ("it was not done" in outcome.err)
        assert outcome.status == 0, outcome.err
        assert metrics(run) == metrics(plain)
        ours, theirs = weights_of(run), weights_of(plain)
        assert all((ours[name] == theirs[name]).all() for name in theirs)
        (line,) = [text for text in outcome.err.splitlines() if text.startswith("tracking: ")]
        assert line.endswith("; the run does not depend on it")
        return str(line)

    return train


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "seconds", "said"),
    [
        ("log fails", 100, "wandb failed (no log today)"),
        ("log hangs", 1, "it was not done 1 s after the end of the run"),
        slow("import fails", 100, "no import today"),
        slow("init fails", 100, "no init today"),
        slow("init hangs", 2, "it was not done 2 s"),
        slow("finish fails", 100, "no finish today"),
        slow("init dies", 100, "it ended with exit status 9"),
    ],
)
def test_a_call_that_fails(
    fake: Callable[[str], None], tracked: Any, fault: str, seconds: float, said: str
) -> None:
    fake(fault)
    assert said in tracked(seconds)


@pytest.mark.slow
def test_what_a_tracker_missed_it_is_told_later(
    fake: Callable[[str], None],
    tracked: Any,
    cli: Any,
    scenes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake("init fails")
    tracked(100)
    monkeypatch.setenv("FAKE_FAULT", "- -")
    run = tmp_path / "run"
    outcome = cli("train", *SETTINGS, "--data.path", scenes, "--track", "wandb", "--run", run)
    assert "is complete already" in outcome.err
    assert "tracking: " not in outcome.err
    told = [one for one in calls_in(tmp_path) if one["name"] == "log"]
    assert [one["step"] for one in told] == [4, 8, None, None]
    assert [*told[2]["values"], *told[3]["values"]] == ["val_per_class", "val_confusion"]
    assert read_state(run).finished is True


@pytest.fixture
def mute() -> Iterator[str]:
    """The address of a server that takes connections and never says a word."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(50)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mute", "closed"])
def test_a_server_that_does_not_answer(
    tracked: Any, mute: str, free_port: Any, kind: str, tmp_path: Path, monkeypatch: Any
) -> None:
    url = mute if kind == "mute" else f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("WANDB_BASE_URL", url)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    assert f"{url} does not answer, so wandb is offline" in tracked(100)
    assert len(list((tmp_path / "run/wandb").glob("offline-run-*/run-*.wandb"))) == 1
    assert read_state(tmp_path / "run").told == 2


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a run's folder holds when its tracker begins."""
    run = tmp_path / "group/run"
    run.mkdir(parents=True)
    prune = "{ratio: null, budget: null, plan: null}"
    (run / "config.yaml").write_text(f"track: wandb\ninit: some/model\nprune: {prune}\n")
    (run / "metrics.jsonl").write_text("")
    return run


def wait_for(path: Path) -> None:
    until = time.monotonic() + 600
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert path.exists()


def test_a_run_that_is_stopped_on_the_page_of_a_sweep(
    fake: Callable[[str], None], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    # What makes a process one of several must not make the tracker wait for them.
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    fake("log stops")
    said: list[str] = []
    log = RunLog(folder, 0)
    log.tracker = Tracking(folder, said.append, 100)
    for step in (4, 8):
        log.write({"epoch": step // 4 - 1, "step": step, "lr": 0.1, "best": True, "x": [1]})
        wait_for(folder / "STOP")
    log.tracker.close(ok=True)
    assert said == []
    calls = calls_in(tmp_path)
    (about,) = [one["about"] for one in calls if one["name"] == "init"]
    assert about["id"] is None  # the sweep's agent says it
    assert (about["group"], about["job_type"], about["name"]) == ("group", "fine-tune", "run")
    told = [(one["step"], one["values"]) for one in calls if one["name"] == "log"]
    first = (4, {"epoch": 0, "step": 4, "lr": 0.1, "best": True})
    assert told == [first, (8, {"epoch": 1, "step": 8, "lr": 0.1, "best": True})]
    assert calls[-1] == {"name": "finish", "exit_code": 0}
    state = read_state(folder)
    assert (state.told, state.look, state.finished) == (2, "http://fake/abc", False)


def test_a_line_that_is_half_written_is_told_when_it_is_whole(tmp_path: Path) -> None:
    import threading

    from cpprune.runs.trackers.follow import follow

    path, over = tmp_path / "metrics.jsonl", threading.Event()
    path.write_text('{"a": 1}\n{"a"')
    lines = follow(path, over)
    assert next(lines) == {"a": 1}
    with path.open("a") as file:
        file.write(': 2}\n{"a": 3}\n')
    over.set()
    assert list(lines) == [{"a": 2}, {"a": 3}]


def test_a_tracker_ends_when_its_run_is_gone(fake: Callable[[str], None], folder: Path) -> None:
    fake("- -")
    tracking = Tracking(folder, lambda text: None, 100)
    assert tracking.process.stdin is not None
    tracking.process.stdin.close()  # as when the run is killed
    assert tracking.process.wait(600) == 0
    calls = calls_in(Path(os.environ["FAKE_CALLS"]).parent)
    assert calls[-1] == {"name": "finish", "exit_code": 1}
