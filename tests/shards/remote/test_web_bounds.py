"""Datasets and downloads from web servers that never end, say nothing, dawdle or flood."""

import gzip
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest

from shards import UserError, open_dataset
from shards.manifest import parse_manifest
from shards.remote.http import fetch
from shards.verify import verify

Answer = Callable[[BaseHTTPRequestHandler, bytes], None]


class Web(ThreadingHTTPServer):
    """Serves a folder, without parts of files. `answers` has its own ways for some names.

    Attributes:
        asked: the names that were asked for.
        sent: bytes of bodies.
        over: set when the test is.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.over = folder, Event()
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.sent = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may hang up."""


class _Handler(BaseHTTPRequestHandler):
    server: Web

    def do_GET(self) -> None:
        name = self.path.partition("?")[0].rpartition("/")[2]
        self.server.asked.append(name)
        self.server.headers.append(dict(self.headers.items()))
        path = self.server.folder / name
        if not path.is_file():
            return self.send_error(404)
        return self.server.answers.get(name, whole)(self, path.read_bytes())

    def head(self, **headers: object) -> None:
        self.send_response(200)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()

    def send(self, data: bytes) -> None:
        self.wfile.write(data)
        self.server.sent += len(data)

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


def whole(handler: Any, data: bytes) -> None:
    handler.head(Content_Length=len(data))
    handler.send(data)


def endless(handler: Any, data: bytes) -> None:
    handler.head()
    handler.send(data)
    while not handler.server.over.is_set():
        handler.send(bytes(1 << 16))


def silent(handler: Any, data: bytes) -> None:
    handler.server.over.wait(600)


def silent_in_the_middle(handler: Any, data: bytes) -> None:
    handler.head(Content_Length=len(data))
    handler.send(data[:1000])
    handler.server.over.wait(600)


def trickling(handler: Any, data: bytes) -> None:
    """A byte at a time, so that something always comes."""
    handler.head(Content_Length=len(data))
    for place in range(len(data)):
        if handler.server.over.wait(0.02):
            return
        handler.send(data[place : place + 1])


def slow(handler: Any, data: bytes) -> None:
    """In 30 pieces, and longer than a try may be silent."""
    handler.head(Content_Length=len(data))
    step = -(-len(data) // 30)
    for place in range(0, len(data), step):
        time.sleep(0.05)
        handler.send(data[place : place + step])


def longer(handler: Any, data: bytes) -> None:
    handler.head(Content_Length=1 << 40)
    handler.send(data)
    while not handler.server.over.is_set():
        handler.send(bytes(1 << 16))


def bomb(handler: Any, data: bytes) -> None:
    """400 MB of zeros in 400 kB, as a body that clients are to unpack."""
    packed = gzip.compress(bytes(4_000_000)) * 100
    handler.head(Content_Length=len(packed), Content_Encoding="gzip")
    handler.send(packed)


@contextmanager
def serving(folder: Path) -> Iterator[Web]:
    with Web(folder) as web:
        thread = Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield web
        finally:
            web.over.set()
            web.shutdown()
            thread.join()


@pytest.fixture
def web(tau_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("CPPRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("shards.remote.transfer.RETRY_DELAYS", (0.0, 0.0), raising=False)
    monkeypatch.setattr("shards.remote.transfer.TIMEOUT", 1.0, raising=False)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_WRITTEN, limits[1]))
    with serving(tau_dataset) as started:
        yield started
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def used(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


SHARD = "train-000000.tar"
# Of one file: what would flood the disk fails earlier.
MAX_WRITTEN = 20_000_000
# More than all buffers between here and a server that is told nothing.
SLACK = 30_000_000


@pytest.mark.parametrize("fault", [endless, longer])
@pytest.mark.parametrize("name", ["dataset.json", "index.parquet", SHARD])
def test_no_more_is_taken_than_there_should_be(
    web: Web, name: str, fault: Answer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shards.remote.folder.MAX_MANIFEST", 1_000_000, raising=False)
    web.answers[name] = fault
    with pytest.raises(UserError, match=rf"{name} is damaged: the server (sends|has)") as caught:
        open_dataset(web.url).fetch([0])
    assert "\n" not in str(caught.value)
    assert web.asked.count(name) == 1
    assert web.sent < SLACK
    assert used(tmp_path / "cache") < 1_000_000
    assert not [
        path for path in (tmp_path / "cache").rglob("*") if path.suffix in (".part", ".tmp")
    ]
    if name != "dataset.json":
        (problem,) = verify(web.url)
        assert problem.file == name
        assert "is damaged: the server" in problem.what
        assert web.sent < 2 * SLACK


def test_an_index_of_a_manifest_that_does_not_tell_its_size(web: Web, tau_dataset: Path) -> None:
    """As they were written before the size was in it."""
    import shards.remote.folder

    manifest = parse_manifest((tau_dataset / "dataset.json").read_bytes())
    assert manifest.index.pop("bytes") == (tau_dataset / "index.parquet").stat().st_size
    shards.remote.folder.fetch_index(web.url, manifest, None)
    web.answers["index.parquet"] = endless
    with pytest.raises(UserError, match=r"index\.parquet is damaged: the server sends more"):
        shards.remote.folder.fetch_index(web.url, manifest, None)
    assert web.sent < SLACK


@pytest.mark.parametrize("fault", [silent, silent_in_the_middle, trickling])
def test_a_server_that_says_nothing_is_reported(
    web: Web, fault: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Long enough for a busy machine to connect.
    monkeypatch.setattr("shards.remote.transfer.TIMEOUT", 1.0, raising=False)
    web.answers[SHARD] = fault
    dataset = open_dataset(web.url)
    with pytest.raises(UserError, match=rf"{SHARD}: timed out: .*\(tried 3 times\)"):
        dataset.fetch([0])
    assert web.asked.count(SHARD) in (3, 4)  # what comes in the first try counts as something


def test_the_wait_of_the_socket_may_end_first(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shards.remote.transfer.TIMEOUT", 0.3)
    monkeypatch.setattr("shards.remote.http.with_timeout", lambda _, call, *values: call(*values))
    web.answers[SHARD] = silent
    with pytest.raises(UserError, match=rf"{SHARD}: timed out: .*\(tried 3 times\)"):
        open_dataset(web.url).fetch([0])


def test_what_failed_in_the_background_is_not_waited_for_again(web: Web) -> None:
    dataset = open_dataset(web.url)
    first, release = Event(), Event()

    def refused(handler: Any, data: bytes) -> None:
        first.set()
        release.wait(600)
        handler.send_error(404)

    web.answers[SHARD] = refused
    dataset.prefetch(np.arange(10))
    assert first.wait(600)
    reading: list[str] = []

    def read() -> None:
        with pytest.raises(UserError) as caught:
            dataset.fetch([0])
        reading.append(str(caught.value))

    thread = Thread(target=read)
    thread.start()
    time.sleep(0.2)  # for the reader to wait at the lock; it fails in the same way if it did not
    release.set()
    thread.join(600)
    assert "404" in reading[0]
    assert web.asked.count(SHARD) <= 2


def test_a_slow_server_without_ranges_delivers(
    web: Web, tau_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes several times as long as a silent one is waited for."""
    monkeypatch.setattr("shards.remote.transfer.TIMEOUT", 0.5, raising=False)
    web.answers[SHARD] = slow
    clips = open_dataset(web.url).fetch(np.arange(20))
    assert (clips == open_dataset(tau_dataset).fetch(np.arange(20))).all()
    assert web.asked.count(SHARD) == 1


def test_it_begins_anew_where_a_server_without_ranges_broke_off(
    web: Web, tau_dataset: Path
) -> None:
    cuts = [100_000, 50_000]

    def cut(handler: Any, data: bytes) -> None:
        handler.head(Content_Length=len(data))
        handler.send(data[: cuts.pop()] if cuts else data)

    web.answers[SHARD] = cut
    clips = open_dataset(web.url).fetch(np.arange(20))
    assert (clips == open_dataset(tau_dataset).fetch(np.arange(20))).all()
    assert web.asked.count(SHARD) == 3


@pytest.mark.parametrize("name", ["dataset.json", "index.parquet", SHARD])
def test_nothing_is_unpacked_on_the_way(web: Web, name: str, tmp_path: Path) -> None:
    web.answers[name] = bomb
    with pytest.raises(UserError, match=rf"{name}.*(damaged|cannot be)"):
        open_dataset(web.url).fetch([0])
    assert used(tmp_path / "cache") < 1_000_000


def test_downloads_are_bounded_too(web: Web, tmp_path: Path) -> None:
    for fault, what in ((endless, "sends more than the 100,000 bytes"), (longer, "has 1,099,5")):
        web.answers["dataset.json"] = fault
        with pytest.raises(UserError, match=what):
            fetch(f"{web.url}/dataset.json", tmp_path / "part", 100_000, lambda change: None)
        assert used(tmp_path) <= 100_000
        assert web.sent < SLACK
