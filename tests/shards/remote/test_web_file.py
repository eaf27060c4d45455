"""One file over HTTP, from a server that breaks off, ignores ranges and refuses."""

import time
from pathlib import Path

import pytest
from web_server import Server

from shards import UserError
from shards.remote.http import fetch, remote_size

DATA = bytes(range(256)) * 4000


def fetched(server: Server, part: Path) -> int:
    """Fetches a.bin and returns the sum of what was told of its length."""
    server.files["a.bin"] = DATA
    told: list[int] = []
    fetch(f"{server.url}/a.bin", part, 10_000_000, told.append)
    return sum(told)


def test_a_file_goes_on_where_it_broke_off(server: Server, tmp_path: Path) -> None:
    server.cuts["a.bin"] = [100_000, 50_000, 1]
    assert fetched(server, tmp_path / "part") == len(DATA)
    assert (tmp_path / "part").read_bytes() == DATA
    assert [start for _, start in server.asked] == [0, 100_000, 150_000, 150_001]


def test_what_is_there_from_before_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    part = tmp_path / "part"
    part.write_bytes(DATA[:700_000])
    assert fetched(server, part) == len(DATA) - 700_000
    assert part.read_bytes() == DATA
    assert fetched(server, part) == 0
    assert server.asked == [("a.bin", 700_000), ("a.bin", len(DATA))]


def test_a_server_that_ignores_ranges_sends_all_of_it(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.cuts["a.bin"] = [300_000, 400_000]
    assert fetched(server, tmp_path / "part") == len(DATA)
    assert (tmp_path / "part").read_bytes() == DATA


def test_a_server_that_always_breaks_off_at_the_same_place(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.cuts["a.bin"] = [300_000] * 9
    with pytest.raises(
        UserError, match=r"a\.bin: broke off after 300,000 of 1,024,000 bytes \(tried 3"
    ):
        fetched(server, tmp_path / "part")
    # The first try brought something, so it is not counted.
    assert len(server.asked) == 3
    assert (tmp_path / "part").stat().st_size == 300_000


def test_more_than_there_is(server: Server, tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes(b"x" * 2_000_000)
    assert fetched(server, tmp_path / "part") == len(DATA) - 2_000_000
    assert (tmp_path / "part").read_bytes() == DATA


def test_a_busy_server(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    server.codes["a.bin"] = [(503, {}), (429, {"Retry-After": "7"})]
    fetched(server, tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == DATA
    assert waited == [0, 7]


def test_what_no_further_try_mends(server: Server, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"b\.bin: the server says 404 Not Found; check the address"
    ):
        fetch(f"{server.url}/b.bin", tmp_path / "part", 1, lambda change: None)
    assert len(server.asked) == 1
    url = server.url
    server.server_close()
    server.shutdown()
    with pytest.raises(
        UserError, match=r"cannot be reached .* \(tried 3 times\); check the network"
    ):
        remote_size(f"{url}/a.bin")


def test_a_silent_server(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shards.remote.transfer.TIMEOUT", 0.05)
    monkeypatch.setattr(server, "silent", 0.3)
    with pytest.raises(UserError, match="timed out"):
        fetched(server, tmp_path / "part")


def test_the_size_is_asked_for_without_the_file(server: Server) -> None:
    server.files["a.bin"] = DATA
    assert remote_size(f"{server.url}/a.bin") == len(DATA)
    server.ranges = False
    assert remote_size(f"{server.url}/a.bin") == len(DATA)
