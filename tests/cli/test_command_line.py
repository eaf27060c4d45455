"""What ends a command: one line and status 2 for what a user can mend, a traceback and 1 for a fault."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from shards.cli.command import LONGEST_LINE, run_command
from shards.errors import UserError

REPOSITORY = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("elsewhere")


def raising(error):
    def command():
        raise error

    return command


def os_error(number, *names):
    return OSError(number, os.strerror(number), *names)


@pytest.mark.parametrize(
    ("error", "names"),
    [
        (UserError("model.json: is missing"), ["model.json: is missing"]),
        (os_error(errno.ENOSPC, "out/a.tar"), ["out/a.tar", "No space left", "make room"]),
        (os_error(errno.EROFS, "out/a.tar"), ["out/a.tar", "Read-only", "another folder"]),
        (os_error(errno.EACCES, "a.csv"), ["a.csv", "Permission denied", "ls -ld"]),
        (os_error(errno.EMFILE, "a.tar"), ["a.tar", "Too many open files", "ulimit -n"]),
        (os_error(errno.ENAMETOOLONG, "a" * 300), ["aaa", "too long", "shorter"]),
        (os_error(errno.ELOOP, "a"), ["a: ", "links", "circle"]),
        (os_error(errno.EISDIR, "a"), ["a: ", "Is a directory", "give a file"]),
        (os_error(errno.ENOTDIR, "a/b"), ["a/b: ", "Not a directory", "give a folder"]),
        (os_error(errno.ESTALE, "a"), ["a: ", "Stale", "start again"]),
        (os_error(errno.EIO, "a"), ["a: ", "error", "dmesg"]),
        (os_error(errno.EXDEV, "a", None, "b"), ["a → b: ", "disk"]),
        (os_error(errno.ENOENT, b"caf\xe9.wav"), [r"caf\udce9.wav: No such file", "name"]),
        (OSError("the server said no"), ["the server said no"]),
        (MemoryError(), ["out of memory", "fewer workers"]),
        (MemoryError("Unable to allocate 8 EiB"), ["out of memory", "8 EiB"]),
        (
            RuntimeError("CUDA out of memory. Tried\nto …"),
            ["out of GPU memory", "micro_batch_size"],
        ),
        (RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"), ["out of GPU memory", "data.in_memory"]),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), ["out of memory"]),
        (RuntimeError("DataLoader worker (pid 7) exited unexpectedly"), ["data.workers=0"]),
        (RecursionError("maximum recursion depth"), ["nested too deeply"]),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"), ["UTF-8", "0xff"]),
        (OverflowError("int too big to convert"), ["too large", "int too big"]),
        (ValueError("embedded null byte"), ["NUL"]),
        (UserError("two\nlines\r\x1b[2J"), [r"two lines\r\x1b[2J"]),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_a_user_can_mend_is_one_line(capfd, error, names):
    assert run_command(raising(error), debug=False) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith("cpprune: error: ")
    assert err.endswith("\n")
    for name in names:
        assert name in err
    with pytest.raises(type(error)):
        run_command(raising(error), debug=True)


def test_a_line_is_not_endless(capfd):
    assert run_command(raising(UserError(f"begin {'x' * 100_000} end")), debug=False) == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert len(err) < LONGEST_LINE + 100
    assert "begin" in err
    assert err.endswith("end\n")


@pytest.mark.parametrize("error", [TypeError("no\nnumber"), RuntimeError("odd"), ValueError("x")])
def test_a_fault_of_the_program_shows_where(capfd, monkeypatch, error):
    launched = {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "3", "MASTER_ADDR": "h"}
    for name, value in (launched | {"MASTER_PORT": "29500"}).items():
        monkeypatch.setenv(name, value)
    assert run_command(raising(error), debug=False) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("Traceback")
    assert __file__ in err
    last = err.splitlines()[-1]
    name = type(error).__name__
    assert last.startswith(f"cpprune: internal error (rank 3): {name}: ")
    assert last.endswith("please report it with the lines above")


def test_every_entry_ends_the_same_way(tmp_path):
    (tmp_path / "file").touch()
    below = str(tmp_path / "file" / "folder")
    for entry in (["cpprune", "shards"], ["shards"]):
        command = [sys.executable, "-m", *entry, "synth", "--clips", "200", "--out", below]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2, done.stderr
        assert re.fullmatch(rf"cpprune: error: .*{re.escape(below)}.*\n", done.stderr)
        done = subprocess.run([*command, "--debug"], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert done.stderr.startswith("Traceback")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_cannot_be_written_is_one_line():
    command = [sys.executable, "-m", "cpprune", "info", "--json"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(r"cpprune: error: No space left.*\n", done.stderr)


def test_names_that_are_no_text_are_printed(tmp_path):
    script = tmp_path / "print.py"
    script.write_text(
        "import os\nfrom shards.cli.command import run_command\n"
        "run_command(lambda: print(os.fsdecode(b'caf\\xe9'), '\\u2026') or 0, debug=False)\n"
    )
    for locale in ("C", "C.UTF-8"):
        environment = {
            **os.environ,
            "LC_ALL": locale,
            "PYTHONUTF8": "0",
            "PYTHONCOERCECLOCALE": "0",
            "PYTHONPATH": str(REPOSITORY),  # which the environment may not know in this locale
        }
        command = [sys.executable, script]
        done = subprocess.run(command, capture_output=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(b"caf")
        assert done.stderr == b""
