"""wandb online: a server on this machine gets every figure, or disappears in the middle."""

import gzip
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from run_folder import epochs_of, metrics, weights_of

pytestmark = pytest.mark.slow

SETTINGS = [
    *("--model.widths", "[6, 8, 10]", "--data.train_fraction", 0.25, "--train.batch_size", 8),
    *("--train.epochs", 20, "--optim.schedule", "constant", "--optim.lr", 1e-2),
]


class Server(ThreadingHTTPServer):
    """As much of wandb's server as a run needs.

    Attributes:
        runs: variables of each request that makes or changes a run.
        history: lines of the history that were sent.
        artifacts: variables of each request that makes one.
        fault: what it does once the run has begun: nothing, hangs or closes.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.runs: list[dict[str, Any]] = []
        self.history: list[dict[str, Any]] = []
        self.artifacts: list[dict[str, Any]] = []
        self.fault = "nothing"
        self.over = threading.Event()

    def graphql(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        project = {"id": "p", "name": "cpprune", "entity": {"id": "e", "name": "me"}}
        if "query Viewer" in query:
            return {"viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}"}}
        if "query RunResumeStatus" in query:
            return {"model": {**project, "bucket": None}}
        if "mutation UpsertBucket" in query:
            self.runs.append(given)
            bucket = {"id": "b", "name": given["name"], "displayName": "", "project": project}
            more = {"config": "{}", "historyLineCount": 0}
            return {"upsertBucket": {"bucket": bucket | more, "inserted": True}}
        if "mutation CreateRunFiles" in query:
            files = [{"name": n, "uploadUrl": f"{self.url}/upload/{n}"} for n in given["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        if "mutation CreateArtifact " in query:
            self.artifacts.append(given)
            latest = {"latestArtifact": {"id": "a", "versionIndex": 0}}
            known = {"id": "a", "state": "COMMITTED", "artifactSequence": {"id": "s", **latest}}
            return {"createArtifact": {"artifact": known}}
        return {"project": None}


class Answer(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        server = self.server
        if server.runs and server.fault != "nothing":
            if server.fault == "hangs":
                server.over.wait(600)
            self.close_connection = True
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        said: dict[str, Any] = {}
        if self.path.endswith("/graphql"):
            request = json.loads(body)
            said = {"data": server.graphql(request["query"], request.get("variables") or {})}
        elif self.path.endswith("/file_stream"):
            lines = json.loads(body).get("files", {}).get("wandb-history.jsonl", {})
            server.history += [json.loads(line) for line in lines.get("content", [])]
        payload = json.dumps(said).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("MODE", "SWEEP_ID", "RUN_ID"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    with Server() as one:
        monkeypatch.setenv("WANDB_BASE_URL", one.url)
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
        thread = threading.Thread(target=one.serve_forever, args=(0.05,))
        thread.start()
        yield one
        one.over.set()
        one.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def plain(call: Any, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("plain") / "run"
    assert call("train", *SETTINGS, "--data.path", scenes, "--run", run) == 0
    return run


def test_a_server_gets_every_figure(
    server: Server, cli: Any, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cpprune.runs.tracking.SECONDS_AT_END", 200)
    run = tmp_path / "group/run"
    outcome = cli("train", *SETTINGS, "--data.path", scenes, "--track", "wandb", "--run", run)
    assert outcome.status == 0
    state = json.loads((run / "tracking.json").read_text())
    assert (state["problem"], state["finished"]) == (None, True), outcome.err
    assert state["look"] == f"{server.url}/me/cpprune/runs/{state['id']}"
    first = server.runs[0]
    assert (first["name"], first["groupName"], first["jobType"]) == (state["id"], "group", "train")
    told = [row for row in server.history if "train_loss" in row]
    kinds = [json.dumps(given).count('TypeName": "model"') for given in server.artifacts]
    assert sum(kinds) == 1, server.artifacts
    assert [(row["_step"], row["train_loss"], row["val_log_loss"]) for row in told] == [
        (line["step"], line["train_loss"], line["val_log_loss"]) for line in epochs_of(run)
    ]


@pytest.mark.parametrize("fault", ["hangs", "closes"])
def test_a_server_that_disappears(
    server: Server,
    cli: Any,
    plain: Path,
    scenes: Path,
    tmp_path: Path,
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cpprune.runs.tracking.SECONDS_AT_END", 12)
    server.fault = fault
    run = tmp_path / "run"
    outcome = cli("train", *SETTINGS, "--data.path", scenes, "--track", "wandb", "--run", run)
    assert time.time() - (run / "result.json").stat().st_mtime < 14
    assert outcome.status == 0
    assert metrics(run) == metrics(plain)
    ours, theirs = weights_of(run), weights_of(plain)
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    assert len(server.runs) == 1
    (line,) = [text for text in outcome.err.splitlines() if text.startswith("tracking: ")]
    # All is kept for later.
    (file,) = run.glob("wandb/run-*/run-*.wandb")
    assert f"12 s after the end of the run (for the rest: wandb sync {file.parent})" in line
