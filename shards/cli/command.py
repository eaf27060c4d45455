"""How a command ends: its exit status, and the one line that says what went wrong."""

import errno
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from shards.credentials import without_credentials
from shards.errors import UserError
from shards.launcher import process_rank
from shards.log import printed_log

LONGEST_LINE = 4000

# What helps against an error of the operating system.
REMEDIES = {
    errno.ENOSPC: "make room, or choose another disk",
    errno.EDQUOT: "your quota is used up: make room, or choose another disk",
    errno.EROFS: "its disk can only be read: choose another folder",
    errno.EACCES: "check who may read and write it (ls -ld)",
    errno.EPERM: "check who may read and write it (ls -ld)",
    errno.ENOENT: "check its name",
    errno.EEXIST: "choose another name",
    errno.EISDIR: "give a file",
    errno.ENOTDIR: "a part of this path is a file: give a folder",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "its links lead in a circle: give the file itself",
    errno.EMFILE: "raise the limit on open files: ulimit -n 65536",
    errno.ENFILE: "the machine has too many open files: end other programs",
    errno.ESTALE: "the file server has replaced it: start again",
    errno.EIO: "its disk or network fails: look at dmesg, then start again",
    errno.ENXIO: "it is no ordinary file: give one",
    errno.ESPIPE: "it is no ordinary file: give one",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f), or choose another disk",
    errno.ENOMEM: "end other programs, or give smaller sizes",
    errno.ENOTEMPTY: "empty it, or choose another folder",
    errno.EXDEV: "it lies on another disk: give a folder on the same one",
    errno.ETXTBSY: "it is being run: choose another name",
    errno.EBUSY: "something else uses it: try again later",
}
NO_MEMORY = "out of memory: end other programs, or give smaller sizes, batches or fewer workers"
NO_GPU_MEMORY = (
    "out of GPU memory: set a smaller train.batch_size or train.micro_batch_size, data.in_memory=host, "
    "or end other programs on the GPU"
)
# How torch says that there is no memory, whichever of its allocators says it.
TORCH_NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "Cannot allocate memory",
    "ALLOC_FAILED",
)
CUDA_LIBRARIES = ("CUDA", "CUDNN", "CUBLAS", "CUFFT")

# How pathlib says that HOME is not set, and that the user is not in /etc/passwd.
NO_HOME = "Could not determine home directory."


def run_command(command: Callable[[], int], debug: bool) -> int:
    """Run a command and return its exit status.

    Everything that a user can mend is one line on standard error and status 2; what else goes wrong is
    a fault of this program: its traceback, then one line, and status 1.

    Args:
        command: returns its exit status.
        debug: let exceptions through.
    """
    for stream in (sys.stdout, sys.stderr):
        # Names of files need not be text, and terminals need not show all letters.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        with printed_log():
            status = command()
        sys.stdout.flush()  # here, where a full disk can still be told of
        return status
    except BrokenPipeError:
        sys.stderr.close()
        return 141
    except KeyboardInterrupt:
        print("cpprune: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if debug:
            raise
        # Other ranks than the first say which they are.
        number = process_rank()
        where = f" (rank {number})" if number else ""
        line = explain(error)
        _drop_output_that_cannot_be_written()
        # In one piece: launchers start Python unbuffered, and other ranks write to the same terminal.
        if line is not None:
            sys.stderr.write(f"cpprune: error{where}: {one_line(line)}\n")
            return 2
        kind = type(error).__name__
        sys.stderr.write(
            f"{without_credentials(traceback.format_exc())}cpprune: internal error{where}: "
            f"{one_line(f'{kind}: {error}')}; this is a fault of cpprune: please report it with the "
            "lines above\n"
        )
        return 1


def _drop_output_that_cannot_be_written() -> None:
    # Or Python tries once more when it ends, and says so in its own way.
    try:
        sys.stdout.flush()
    except OSError:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115


def one_line(text: str) -> str:
    """Return a text as one line of bounded length, with what cannot be printed escaped."""
    text = " ".join(without_credentials(text).split("\n"))
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    half = LONGEST_LINE // 2
    return text if len(text) <= LONGEST_LINE else f"{text[:half]} … {text[-half:]}"


def explain(error: BaseException) -> str | None:
    """Return what went wrong and what helps, or None for what no user can mend."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        return _explain_os_error(error)
    if isinstance(error, MemoryError):
        return f"{NO_MEMORY} ({error})" if str(error) else NO_MEMORY
    if isinstance(error, RuntimeError):
        text = str(error)
        if any(words in text for words in TORCH_NO_MEMORY):
            of_gpu = any(name in text for name in CUDA_LIBRARIES)
            return f"{NO_GPU_MEMORY if of_gpu else NO_MEMORY} ({text.splitlines()[0]})"
        if text == NO_HOME:
            return "your home folder is not known: set HOME, or name the cache (CPPRUNE_CACHE)"
        if text.startswith("DataLoader worker") and "exited unexpectedly" in text:
            return "a worker process was killed, perhaps for want of memory: set data.workers=0"
    if isinstance(error, RecursionError):
        return "something in the input is nested too deeply: give it with fewer levels"
    if isinstance(error, UnicodeError):
        return f"something in the input is not text in UTF-8 ({error})"
    if isinstance(error, OverflowError):
        return f"a number in the input is too large ({error})"
    if isinstance(error, ValueError) and "embedded null" in str(error):
        return "the name of a file holds a NUL character: give another name"
    return None


def _explain_os_error(error: OSError) -> str:
    names = [
        os.fsdecode(n) for n in (error.filename, error.filename2) if isinstance(n, str | bytes)
    ]
    what = error.strerror or str(error) or type(error).__name__
    said = f"{' → '.join(names)}: {what}" if names else what
    remedy = REMEDIES.get(error.errno or 0)
    return f"{said}; {remedy}" if remedy else said
