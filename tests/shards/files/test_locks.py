"""One process at a time: who holds a lock, and how it ends with its holder."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import shards.files.locks
from shards.errors import UserError
from shards.files.locks import FileLock, is_locked, locked, open_locked

HOLD = """
import sys, time
from pathlib import Path
from shards.files.locks import locked
with locked(Path(sys.argv[1]), "busy", keep=True):
    print("held", flush=True)
    time.sleep(300)
"""


def test_a_lock_names_its_holder_and_ends_with_it(tmp_path: Path) -> None:
    file = tmp_path / "new" / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(file)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with (
            pytest.raises(UserError) as caught,
            locked(file, "runs/x: another process trains there", patience=0.1),
        ):
            pass
        assert str(caught.value).startswith(
            f"runs/x: another process trains there (process {process.pid} on {socket.gethostname()} "
            "since 20"
        )
        assert str(caught.value).endswith(" UTC); wait until it has ended, or stop it")
        process.send_signal(signal.SIGKILL)
        process.wait()
        with locked(file, "busy", keep=True):
            assert file.read_text().startswith(f"process {os.getpid()} on ")
    assert file.read_text() == ""


def test_one_that_is_about_to_end_is_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    words = [sys.executable, "-c", HOLD.replace("300", "0.5"), str(file)]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with locked(file, "busy", patience=60):
            pass
    assert not file.exists()


def test_shared_locks(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with locked(file, "busy", shared=True):
        with locked(file, "busy", shared=True, patience=0):
            pass
        assert file.exists(), "the other still holds it"
        with pytest.raises(UserError, match="busy"), locked(file, "busy", patience=0):
            pass
    assert not file.exists()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_a_file_system_without_locks_is_not_busy(
    number: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def none(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", none)
    monkeypatch.setattr(shards.files.locks, "_warned", set())
    for _ in range(2):
        with locked(tmp_path / "lock", "busy"):
            pass
    (said,) = caplog.messages
    assert f"{tmp_path}: its file system has no locks" in said


@pytest.mark.parametrize("replaced", [False, True])
def test_a_lock_on_a_file_that_was_removed_is_none(tmp_path: Path, replaced: bool) -> None:
    path = tmp_path / "lock"
    file = os.open(path, os.O_RDWR | os.O_CREAT)
    path.unlink()
    if replaced:
        path.touch()
    assert shards.files.locks.flock_in_place(file, path, fcntl.LOCK_EX | fcntl.LOCK_NB) is None
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file)


def test_a_link_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("years of work")
    (tmp_path / "lock").symlink_to(tmp_path / "theirs")
    with pytest.raises(UserError, match="lock: cannot be written"), locked(tmp_path / "lock", ""):
        pass
    assert (tmp_path / "theirs").read_text() == "years of work"


def test_a_named_pipe_is_no_lock(tmp_path: Path) -> None:
    pipe = tmp_path / "journal"
    os.mkfifo(pipe)
    for use in (FileLock(pipe).acquire, lambda: open_locked(pipe), lambda: is_locked(pipe)):
        with pytest.raises(UserError, match="journal: is a pipe"):
            use()


def test_a_link_is_no_log(tmp_path: Path) -> None:
    (tmp_path / "hers").write_text("hers")
    link = tmp_path / "log"
    link.symlink_to("hers")
    for use in (FileLock(link).acquire, lambda: open_locked(link)):
        with pytest.raises(UserError, match=r"log: cannot be written .*it is a link"):
            use()
    assert (tmp_path / "hers").read_text() == "hers"


def test_a_log_is_locked_while_it_is_open(tmp_path: Path) -> None:
    path = tmp_path / "log"
    file = open_locked(path)
    assert file is not None
    file.write(b"a line\n")
    file.flush()
    assert is_locked(path)
    file.close()
    assert not is_locked(path)
    assert path.read_bytes() == b"a line\n"
    again = open_locked(path)
    assert again is not None
    with again:
        again.write(b"another\n")
    assert path.read_bytes() == b"a line\nanother\n"
