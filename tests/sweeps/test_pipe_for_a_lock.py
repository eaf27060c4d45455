"""A named pipe in place of a sweep's lock or log is named; nobody waits for its other end."""

import os

import pytest

from cpprune.sweeps.locks import FileLock, held, is_held
from shards.errors import InputError


def test_a_named_pipe_is_no_lock(tmp_path):
    pipe = tmp_path / "journal"
    os.mkfifo(pipe)
    for use in (FileLock(pipe).acquire, lambda: held(pipe), lambda: is_held(pipe)):
        with pytest.raises(InputError, match="journal: is a pipe"):
            use()


def test_a_link_is_no_lock(tmp_path):
    (tmp_path / "hers").write_text("hers")
    link = tmp_path / "log"
    link.symlink_to("hers")
    for use in (FileLock(link).acquire, lambda: held(link)):
        with pytest.raises(InputError, match=r"log: cannot be written .*it is a link"):
            use()
    assert (tmp_path / "hers").read_text() == "hers"


def test_a_file_is_one(tmp_path):
    path = tmp_path / "log"
    file = held(path)
    assert file is not None
    file.write(b"a line\n")
    file.flush()
    assert is_held(path)
    file.close()
    assert not is_held(path)
    assert path.read_bytes() == b"a line\n"
    again = held(path)
    assert again is not None
    with again:
        again.write(b"another\n")
    assert path.read_bytes() == b"a line\nanother\n"
