"""One cache for several users and many processes: who may use what of whom, and who asks for what."""

import json
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from shards import UserError, open_dataset
from shards.remote.cache import Cache

ALL = np.arange(200)
NOBODY = 65534
two_users = pytest.mark.skipif(os.getuid() != 0, reason="only root can be two users")


@pytest.fixture(scope="module")
def clips(tau_dataset: Path) -> np.ndarray:
    return open_dataset(tau_dataset).fetch(ALL)


@pytest.fixture
def another_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """For this process, what is there is somebody else's."""
    user = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: user)


# --- what another user fetched ------------------------------------------------------------------------


def test_what_another_user_fetched_is_compared_and_used(
    flaky: Any, url: str, clips: np.ndarray, request: pytest.FixtureRequest
) -> None:
    open_dataset(url).fetch(ALL)
    before = flaky.opened("")
    request.getfixturevalue("another_user")
    dataset = open_dataset(url)
    assert (dataset.fetch(ALL) == clips).all()
    assert flaky.opened("") == [*before, "dataset.json"]


def test_what_another_user_changed_is_fetched_again(
    flaky: Any,
    url: str,
    clips: np.ndarray,
    cache: Path,
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The shard is whole for the index, but for one clip that nobody has read yet."""
    folder = cache / open_dataset(url).fingerprint
    open_dataset(url).fetch(ALL)
    shard = folder / "train-000001.tar"
    data = bytearray(shard.read_bytes())
    data[-20_000] ^= 1
    shard.write_bytes(data)
    manifest = json.loads((folder / "dataset.json").read_bytes())
    manifest["classes"].reverse()
    (folder / "dataset.json").write_text(json.dumps(manifest))
    before = flaky.opened()
    request.getfixturevalue("another_user")
    dataset = open_dataset(url)
    assert (dataset.fetch(ALL) == clips).all()
    assert flaky.opened() == [*before, "train-000001.tar"]
    (said,) = caplog.messages
    assert f"{shard}, which " in said
    assert "is damaged: it is fetched again" in said
    assert open_dataset(url).classes == dataset.classes


def test_without_a_network_nobody_says_for_others_what_an_address_holds(
    flaky: Any, url: str, request: pytest.FixtureRequest
) -> None:
    open_dataset(url)

    def offline(name: str, block: bytes) -> bytes:
        raise ConnectionError("the network is down")

    flaky.fault = offline
    open_dataset(url)
    request.getfixturevalue("another_user")
    with pytest.raises(UserError, match="the network is down"):
        open_dataset(url)


def test_nothing_is_written_through_links(url: str, cache: Path, tmp_path: Path) -> None:
    dataset = open_dataset(url)
    folder, victim = cache / dataset.fingerprint, tmp_path / "victim"
    victim.write_text("precious")
    for link in (folder / "train-000000.tar.part", cache / "locks" / f"{folder.name}-x.lock"):
        link.symlink_to(victim)
    dataset.fetch([0])
    with (
        pytest.raises(OSError, match="symbolic links"),
        dataset.folder.cache.exclusive(f"{folder.name}-x"),
    ):
        pass
    (folder / "train-000001.tar").symlink_to(victim)
    with pytest.raises(UserError, match="symbolic links"):
        dataset.fetch(ALL)
    shutil.rmtree(folder)
    folder.symlink_to(tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        open_dataset(url)
    assert victim.read_text() == "precious"


# --- two users on one machine -------------------------------------------------------------------------


@pytest.fixture
def open_to_all(tau_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path]]:
    """An address that needs no files, and a folder that everybody may write in."""
    memory = fsspec.filesystem("memory")
    for path in tau_dataset.iterdir():
        memory.pipe_file(f"/bucket/{path.name}", path.read_bytes())
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield "memory://bucket", folder
    memory.rm("/bucket", recursive=True)
    shutil.rmtree(folder)


def as_nobody(do: Callable[[], object]) -> None:
    """Does something as another user, in a process of its own."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        text = "it did not end"
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            do()
            text = ""
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        finally:
            os.write(writing, text.encode())
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as said:
        assert said.read() == ""


@contextmanager
def mask(bits: int) -> Iterator[None]:
    before = os.umask(bits)
    try:
        yield
    finally:
        os.umask(before)


@two_users
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_users_share_a_folder_that_all_may_write_in(
    open_to_all: tuple[str, Path], clips: np.ndarray
) -> None:
    url, folder = open_to_all
    cache = folder / "cache"
    with mask(0):
        cache.mkdir()
    open_dataset(url, cache)  # what it imports is imported

    def read(rows: np.ndarray, limit: int = 0) -> None:
        dataset = open_dataset(url, cache, limit)
        assert (dataset.fetch(rows) == clips[rows]).all()
        dataset.close()

    with mask(0o077):
        read(ALL[:50])
        as_nobody(lambda: read(ALL))
    shards = list(cache.glob("*/*.tar"))
    assert len({path.stat().st_uid for path in shards}) == 2
    assert not any(path.stat().st_mode & 0o022 for path in shards)
    read(ALL)
    # Each makes room by removing what the other one fetched.
    largest = max(path.stat().st_size for path in shards)
    next(cache.glob("*/val-*.tar")).unlink()
    as_nobody(lambda: read(ALL, 2 * largest))
    assert sum(path.stat().st_size for path in cache.glob("*/*.tar")) <= 2 * largest
    read(ALL, 2 * largest)


@two_users
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_folder_that_others_may_only_read_is_refused_with_what_to_do(
    open_to_all: tuple[str, Path],
) -> None:
    url, folder = open_to_all
    (folder / "cache").mkdir(mode=0o755)
    open_dataset(url, folder / "cache")

    def refused() -> None:
        with pytest.raises(UserError, match=r"cannot be written .* set data\.cache"):
            open_dataset(url, folder / "cache")

    as_nobody(refused)


def test_where_all_may_write_but_not_remove_each_user_has_a_folder(
    flaky: Any, url: str, clips: np.ndarray, tmp_path: Path
) -> None:
    sticky = tmp_path / "sticky"
    sticky.mkdir()
    sticky.chmod(0o1777)
    assert (open_dataset(url, sticky).fetch(ALL) == clips).all()
    (own,) = sticky.iterdir()
    assert own.name == f"user-{os.getuid()}"
    assert stat.S_IMODE(own.stat().st_mode) == 0o700
    shutil.rmtree(own)
    own.symlink_to(tmp_path)
    with pytest.raises(UserError, match=rf"{own.name} was made by another user; set data\.cache"):
        open_dataset(url, sticky)


# --- many processes -----------------------------------------------------------------------------------


def test_what_all_processes_need_is_asked_for_once(
    flaky: Any, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first to ask gets no answer before eight wait for it."""
    waiting, all_wait = [], threading.Event()
    exclusive = Cache.exclusive

    def noted(self: Cache, name: str) -> Any:
        waiting.append(name)
        if waiting.count(waiting[0]) == 8:
            all_wait.set()
        return exclusive(self, name)

    monkeypatch.setattr(Cache, "exclusive", noted)

    def withheld(name: str, block: bytes) -> bytes:
        assert all_wait.wait(600)
        return block

    flaky.fault = withheld
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.append(open_dataset(url).fingerprint))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
    assert len(found) == 8
    assert flaky.opened("") == ["dataset.json", "index.parquet"]
