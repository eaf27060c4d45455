"""One bad input: made from (seed, number), run in a process forked for it, and judged."""

import contextlib
import ctypes
import os
import random
import re
import resource
import shlex
import shutil
import signal
import stat
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import fuzz_files
import fuzz_lines
import fuzz_values
from fuzz_lines import LINES, Line, Option
from fuzz_verdict import judge

NOBODY = 65534
BLOCKED_SECONDS = 120.0  # without any work; a server that refuses is asked again for half a minute
BUSY_SECONDS = 45.0  # of work
LONGEST_SECONDS = 240.0
GIB = 1 << 30
MOST_FILE_BYTES = 64 << 20
ENVIRONMENT = (
    "CPPRUNE_TIMEOUT_SECONDS",
    "CPPRUNE_CACHE",
    "COLUMNS",
    "SLURM_MEM_PER_NODE",
    "TMPDIR",
)
HALF_WRITTEN = re.compile(r"\.(new|old|tmp|part)\b|\.tmp|.~$")


@dataclass
class Input:
    """A command line and what was done to it and to the files that it reads."""

    line: Line
    words: list[str]
    what: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    files: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        given = "".join(f"{k}={shlex.quote(v)} " for k, v in self.environment.items())
        words = " ".join(
            shlex.quote(w if len(w) < 200 else f"{w[:100]}…({len(w)})") for w in self.words
        )
        return f"{given}cpprune {words}".encode("unicode_escape").decode()


@dataclass(frozen=True)
class Verdict:
    """How an input ended, and what is wrong with that: `fault` is empty if nothing is."""

    number: int
    command: str
    status: int
    fault: str
    text: str


class Trials:
    """Runs inputs in copies of a world.

    Args:
        world: made by `fuzz_world`; it is not changed.
        scratch: an empty folder.
        seed: with a number it decides an input.
    """

    def __init__(self, world: Path, scratch: Path, seed: int) -> None:
        self.world, self.scratch, self.seed = world, scratch, seed
        self.known: dict[int, tuple[Option, ...]] = {}
        self.unchanged = _state(world)
        self.drop = os.geteuid() == 0
        if self.drop:
            for path in (world, *world.rglob("*")):
                os.chown(path, NOBODY, NOBODY, follow_symlinks=False)

    def line(self, number: int) -> Line:
        """Return the valid command line of an input."""
        return LINES[self._begin(number)[1]]

    def _begin(self, number: int) -> tuple[random.Random, int]:
        rng = random.Random(f"{self.seed}/{number}")
        return rng, rng.choices(range(len(LINES)), [line.weight for line in LINES])[0]

    def make(self, number: int) -> Input:
        """Return the input of a number."""
        rng, place = self._begin(number)
        line = LINES[place]
        if place not in self.known:
            self.known[place] = fuzz_lines.options(line)
        made = Input(line, list(line.words))
        on_words = not line.reads or rng.random() < 0.5
        if on_words:
            for _ in range(rng.choice((1, 1, 1, 2, 3))):
                how, made.words = fuzz_lines.spoil_words(rng, made.words, self.known[place])
                made.what.append(how)
        if line.reads and (not on_words or rng.random() < 0.1):
            made.files = [rng.randrange(1 << 30) for _ in range(rng.choice((1, 1, 1, 2)))]
        if rng.random() < 0.02:
            made.environment[rng.choice(ENVIRONMENT)] = fuzz_values.word(rng).replace("\0", "")
        return made

    def run(self, numbers: Sequence[int]) -> Iterator[tuple[Verdict, Input]]:
        """Run inputs in one process, or in another from the next on where it ends; judge them."""
        made = {number: self.make(number) for number in numbers}
        for number in numbers:
            shutil.rmtree(self.scratch / f"{number}", ignore_errors=True)
            (self.scratch / f"{number}/place").mkdir(parents=True)
        left = list(numbers)
        while left:
            for number in left:
                if not (self.scratch / f"{number}/ready").exists():
                    shutil.rmtree(self.scratch / f"{number}/place")
                    (self.scratch / f"{number}/place").mkdir()
            ended, hung = self._fork({number: made[number] for number in left})
            while left and (found := self._status(left[0])) is not None:
                yield self._judge(left.pop(0), made, found, hung=False)
            if left:  # it ended in the middle of this one
                yield self._judge(left.pop(0), made, ended, hung)
        self.check_world(numbers[-1])

    def _status(self, number: int) -> int | None:
        text = (self.scratch / f"{number}/status").read_text()
        return int(text) if text else None

    def _judge(
        self, number: int, inputs: Mapping[int, Input], status: int, hung: bool
    ) -> tuple[Verdict, Input]:
        made, folder = inputs[number], self.scratch / f"{number}"
        out, err = ((folder / name).read_bytes() for name in ("out", "err"))
        made.what += (folder / "what").read_text(errors="replace").splitlines()
        fault, text = judge(made.line.words[0], made.words, status, hung, out, err)
        left = [
            path
            for path in (folder / "place").rglob("*")
            if (HALF_WRITTEN.search(path.name) and not path.is_symlink())
            or path.parent.name == "tmp"
        ]
        if not fault and left:
            fault, text = f"left {re.sub('[0-9]+', 'N', left[0].name)}", str(left)
        if not fault:
            for name in ("closed", "locked"):
                (folder / "place" / name).chmod(0o755)
            shutil.rmtree(folder, ignore_errors=True)
        command = " ".join(made.line.words[: 2 if made.line.words[0] == "shards" else 1])
        return Verdict(number, command, status, fault, text), made

    def check_world(self, number: int) -> None:
        """Raise SystemExit if an input up to this one has changed the world."""
        now = _state(self.world)
        if now != self.unchanged:
            changed = sorted(set(now.items()) ^ set(self.unchanged.items()))
            raise SystemExit(f"an input up to {number} changed the world: {changed[:3]}")
        if not stat.S_ISCHR(Path("/dev/null").stat().st_mode):
            raise SystemExit(f"an input up to {number} destroyed /dev/null")

    def _fork(self, inputs: Mapping[int, Input]) -> tuple[int, bool]:
        """Run inputs in a process of their own; return how it ended, and whether it had to be killed."""
        for number in inputs:
            for name in ("out", "err", "status", "what"):
                (self.scratch / f"{number}" / name).touch()
        child = os.fork()
        if child == 0:
            status = 99
            try:
                self._be_the_child(inputs)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                with contextlib.suppress(Exception):
                    sys.stdout.flush()
                    sys.stderr.flush()
                os._exit(status)
        return _wait(child, [self.scratch / f"{number}/status" for number in inputs])

    def _be_the_child(self, inputs: Mapping[int, Input]) -> None:
        os.setsid()
        nothing = os.open("/dev/null", os.O_RDONLY)
        os.dup2(nothing, 0)
        for number, made in inputs.items():
            folder = self.scratch / f"{number}"
            _print_to(folder)
            if not (folder / "ready").exists():
                self._set_up(made, folder / "place", folder / "what")
                (folder / "ready").touch()
            if self.drop:
                os.chown(folder / "status", NOBODY, NOBODY)
                for path in (folder / "place", *(folder / "place").rglob("*")):
                    if path.lstat().st_uid != NOBODY:
                        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
                os.chmod(folder / "out", 0o666)  # noqa: PTH101
                os.chmod(folder / "err", 0o666)  # noqa: PTH101
        if self.drop:
            _become_nobody()
        most = _virtual_bytes() + 4 * GIB
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_FSIZE, (MOST_FILE_BYTES, MOST_FILE_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        before = dict(os.environ)
        for number, made in inputs.items():
            folder = self.scratch / f"{number}"
            _print_to(folder)
            status = _call(made, folder / "place")
            sys.stdout.flush()
            sys.stderr.flush()
            (folder / "status").write_text(str(status))
            os.environ.clear()
            os.environ.update(before)

    def _set_up(self, made: Input, place: Path, note: Path) -> None:
        with note.open("w", errors="backslashreplace") as file:
            for name in made.line.reads:
                changes = any(name == c or name.startswith(f"{c}/") for c in made.line.changes)
                _copy(self.world / name, place / name, linked=not changes)
            files = sorted(p for p in place.rglob("*") if p.is_file())
            (place / "tmp").mkdir(exist_ok=True)
            for draw in made.files:
                own = random.Random(draw)
                names = sorted({p.suffix or p.name for p in files})
                kind = own.choice(names)  # every kind of file as often
                path = own.choice([p for p in files if (p.suffix or p.name) == kind])
                if path.is_file():
                    how = fuzz_files.spoil(own, path, [p for p in files if p.is_file()])
                    file.write(f"{path.relative_to(place)}: {how!r:.300}\n")
            fuzz_values.make_odd_places(place)


def _print_to(folder: Path) -> None:
    for number, name in ((1, "out"), (2, "err")):
        file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, number)
        os.close(file)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


def _call(made: Input, place: Path) -> int:
    """Run an input in its folder; return its exit status."""
    from cpprune.cli.main import main

    os.chdir(place)
    tmp, cache = str(place / "tmp"), str(place / "cache")
    own = {"HOME": str(place), "TMPDIR": tmp, "XDG_CACHE_HOME": cache, "CPPRUNE_CACHE": cache}
    given = {k: v.encode("utf-8", "replace").decode() for k, v in made.environment.items()}
    os.environ.update(own | {"WANDB_MODE": "offline"} | given)
    tempfile.tempdir = None
    sys.argv = ["cpprune", *made.words]
    try:
        return main(made.words) & 255
    except SystemExit as end:
        if end.code is None:
            return 0
        if isinstance(end.code, int):
            return end.code & 255
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1


def _become_nobody() -> None:
    """Give up root, so that no device or file of the machine can be harmed, but for reading.

    Python itself may lie where only root can read it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    read_all, keep, ambient, raise_it = 2, 8, 47, 2
    libc.prctl(keep, 1, 0, 0, 0)
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    # Of version 3: effective, permitted and inheritable, of capabilities below 32 and above.
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    libc.capset(header, (ctypes.c_uint32 * 6)(*(3 * [1 << read_all]), 0, 0, 0))
    libc.prctl(ambient, raise_it, read_all, 0, 0)


def _copy(source: Path, target: Path, *, linked: bool) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    copy = os.link if linked else shutil.copy2
    if source.is_dir():
        shutil.copytree(source, target, copy_function=copy, dirs_exist_ok=True)
    elif not target.exists():
        copy(source, target)


def _state(folder: Path) -> dict[str, tuple[int, int, int]]:
    return {
        str(p): (s.st_size, s.st_mtime_ns, s.st_ino)
        for p in sorted(folder.rglob("*"))
        if stat.S_ISREG((s := p.lstat()).st_mode)
    }


def _virtual_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def _wait(child: int, done: Sequence[Path]) -> tuple[int, bool]:
    """Return the exit status of a child, negative for a signal, and whether it had to be killed.

    Args:
        child: its number.
        done: files that it writes, one after the other; each gives it time anew.
    """
    begin = moved = time.monotonic()
    pause, worked, before, place = 0.002, 0.0, 0.0, 0
    hung = False
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        now = time.monotonic()
        if pid:
            break
        if now - begin > 2:
            seconds = _work_of_session(child)
            if seconds > worked + 0.05:
                worked, moved = seconds, now
            while place < len(done) and done[place].stat().st_size:
                place, begin, before, moved = place + 1, now, worked, now
            if (
                now - moved > BLOCKED_SECONDS
                or worked - before > BUSY_SECONDS
                or now - begin > LONGEST_SECONDS
            ):
                hung = True
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child, signal.SIGKILL)
                _, status = os.waitpid(child, 0)
                break
        time.sleep(pause)
        pause = min(pause * 1.3, 0.2)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what it left running
    return os.waitstatus_to_exitcode(status), hung


def _work_of_session(session: int) -> float:
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")
