"""An audio file to float samples, read from its beginning until nothing more comes.

What is read is believed, never the length in the header: it may be an estimate (MP3), unknown (a
FLAC written to a pipe), or that of a file which was cut off since.
"""

import os
import re
import stat
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from shards.ffmpeg import opened_by_ffmpeg
from shards.formats import decoder_of
from shards.sound import BadFile, Sound, Wave

BLOCK_SAMPLES = 1 << 18
# libsndfile notes a data chunk that is longer than the file: "data : 132300 (should be 66106)".
_CUT_SHORT = re.compile(r"^\s*data\s*:\s*(\d+)\s*\(should be (\d+)\)", re.MULTILINE)
# Programs that write to a pipe cannot know the length and leave one of these.
_UNKNOWN_LENGTHS = range(0x7FFFF000, 0x100000000)
# libsndfile's length of what it cannot measure.
_UNKNOWN_FRAMES = 2**63 - 1


@contextmanager
def opened(file: str | Path) -> Iterator[Sound]:
    """Opens a file of any format that libsndfile knows by its content, or ffmpeg by its ending.

    Raises:
        BadFile: if it is no audio, or is cut short.
    """
    with ExitStack() as stack:
        try:
            sound = _open(file, stack)
        except _errors() as error:
            if decoder_of(Path(file).name) != "ffmpeg":
                raise BadFile(_reason(error)) from error
            sound = stack.enter_context(opened_by_ffmpeg(file))
        yield sound


def _open(file: str | Path, stack: ExitStack) -> Sound:
    import soundfile

    class Sequential(soundfile.SoundFile):  # type: ignore[misc]
        # soundfile would seek after every read, which some formats cannot, and stop at `frames`.
        def seekable(self) -> bool:
            return False

    handle = _open_regular(file)
    stack.callback(os.close, handle)
    # By its descriptor, so that the name need not be text and nothing is guessed from its ending.
    sound = stack.enter_context(Sequential(handle, closefd=False))
    frames = sound.frames
    _refuse_damage(frames, sound.extra_info)
    if sound.format == "MP3":
        # Through a pipe, libsndfile does not estimate the length and reads to the end.
        os.lseek(handle, 0, os.SEEK_SET)
        sound = stack.enter_context(Sequential(_piped(handle, stack), closefd=False))
        frames = _UNKNOWN_FRAMES
    return Sound(sound.samplerate, None if frames == _UNKNOWN_FRAMES else frames, _read(sound))


def _open_regular(file: str | Path) -> int:
    # Not blocking: a named pipe would be waited for.
    try:
        handle = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise BadFile("no such file") from error
    status = os.fstat(handle)
    if stat.S_ISREG(status.st_mode) and status.st_size > 0:
        return handle
    os.close(handle)
    raise BadFile("the file is empty" if stat.S_ISREG(status.st_mode) else "not a regular file")


def _piped(handle: int, stack: ExitStack) -> int:
    """Returns the end of a pipe from which the rest of a file can be read."""
    out, into = os.pipe2(os.O_CLOEXEC)

    def feed() -> None:
        try:
            while chunk := os.read(handle, 1 << 16):
                left = memoryview(chunk)
                while left:
                    left = left[os.write(into, left) :]
        except OSError:
            pass  # the reader has seen enough, or will see that the rest does not come
        finally:
            os.close(into)

    thread = threading.Thread(target=feed, daemon=True)
    thread.start()
    stack.callback(thread.join)
    stack.callback(os.close, out)
    return out


def _read(sound: Any) -> Iterator[Wave]:
    frames = max(1, BLOCK_SAMPLES // sound.channels)
    try:
        # A new array for each block: what a short read leaves of it is not handed out.
        while len(block := sound.read(frames, dtype="float32", always_2d=True)):
            yield block
    except _errors() as error:
        raise BadFile(_reason(error)) from error


def _errors() -> tuple[type[Exception], ...]:
    import soundfile

    return (soundfile.SoundFileError, OSError, EOFError, MemoryError, RuntimeError, ValueError)


def _reason(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "too little memory to decode it"
    if isinstance(error, OSError):
        return f"not readable: {error.strerror or error}"
    text = str(getattr(error, "error_string", error)).strip().rstrip(".")
    return f"not readable as audio: {text}"


def _refuse_damage(frames: int, log: str) -> None:
    cut_short = _CUT_SHORT.search(log)
    if cut_short and int(cut_short[1]) not in _UNKNOWN_LENGTHS:
        promised, there = int(cut_short[1]), int(cut_short[2])
        if promised > there > 0:
            raise BadFile(f"cut short: {there} of {promised} bytes of samples are there")
    if frames <= 0:
        raise BadFile("no samples")
