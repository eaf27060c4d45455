"""Decoding an audio file to float samples, from its beginning to its end.

The length in the header is not trusted: it may be an estimate (MP3), unknown (a FLAC written to a
pipe), or wrong (a truncated file).
"""

import io
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain
from typing import TYPE_CHECKING

from shards.audio import mpeg, ogg
from shards.audio.containers import Piece, extent_of
from shards.audio.ffmpeg import opened_by_ffmpeg
from shards.audio.file_range import AudioFile, FileRange, open_alone
from shards.audio.formats import decoder_of
from shards.audio.sound import BadFile, Sound, Wave

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer
    from soundfile import SoundFile

BLOCK_SAMPLES = 1 << 18
# Length that libsndfile reports if it is unknown.
_UNKNOWN = 2**63 - 1
_one_at_a_time = threading.RLock()


@contextmanager
def opened(file: AudioFile) -> Iterator[Sound]:
    """Opens an audio file: with libsndfile by its content, or else with ffmpeg by its extension.

    A range of a file is opened by libsndfile only.

    Raises:
        BadFile: the file is not audio, or is truncated.
    """
    with ExitStack() as stack:
        handle = _open_regular(file)
        stack.callback(os.close, handle)
        try:
            sound = _open(handle, stack)
        except _errors() as error:
            if isinstance(file, FileRange) or decoder_of(os.fspath(file)) != "ffmpeg":
                raise BadFile(_reason(error)) from error
            sound = stack.enter_context(opened_by_ffmpeg(file))
        yield sound


def _open_regular(file: AudioFile) -> int:
    try:
        handle = open_alone(file)
    except FileNotFoundError as error:
        raise BadFile("no such file") from error
    except (OSError, ValueError) as error:
        raise BadFile(_reason(error)) from error
    status = os.fstat(handle)
    if stat.S_ISREG(status.st_mode) and status.st_size > 0:
        return handle
    os.close(handle)
    raise BadFile("the file is empty" if stat.S_ISREG(status.st_mode) else "not a regular file")


def _open(handle: int, stack: ExitStack) -> Sound:
    size = os.fstat(handle).st_size
    start = mpeg.after_tags(handle, 0, size)
    if os.pread(handle, 4, start) == b"OggS":
        return _open_ogg(ogg.links(handle, start, size), handle, stack)
    extent = extent_of(handle, start, size)
    if extent is None:
        if mpeg.is_frame(handle, start):
            return _open_mpeg(handle, start, size, stack)
        sound = _sequential(_View(handle, start, size) if start else handle, stack)
        if sound.format == "MP3":
            return _open_mpeg(handle, start, size, stack)
        if sound.format == "SDS":
            raise BadFile("libsndfile loses the end of SDS files; convert it to WAV or FLAC")
        if "seems to be truncated" in sound.extra_info:
            raise BadFile("cut short: its header states more samples than are there")
    else:
        extent.refuse_cut()
        end, piece = extent.mended()
        mended = start or end is not None or piece is not None
        source = _View(handle, start, end or size, piece) if mended else handle
        sound = _sequential(source, stack)
        if sound.subtype.startswith("MPEG"):
            return _open_mpeg(handle, extent.at, end or size, stack)
        if extent.frames is not None:
            frames = min(sound.frames, extent.frames)
            return Sound(sound.samplerate, frames, _first(frames, _read(sound)))
    return _sound(sound)


def _open_ogg(links: list[tuple[int, int]], handle: int, stack: ExitStack) -> Sound:
    sounds = [_sequential(_View(handle, begin, end), stack) for begin, end in links]
    first = sounds[0]
    if any(s.samplerate != first.samplerate or s.channels != first.channels for s in sounds):
        raise BadFile("its sample rate or channels change; convert it to WAV or FLAC")
    frames = sum(sound.frames for sound in sounds)
    return Sound(first.samplerate, frames, chain.from_iterable(map(_read, sounds)))


def _open_mpeg(handle: int, at: int, end: int, stack: ExitStack) -> Sound:
    stream = mpeg.scan(handle, at, end)
    if stream is None:
        raise BadFile("no MPEG frames can be found")
    # From a pipe, libsndfile does not estimate the length, and reads to the end.
    begin = stream.first if stream.header is None else stream.header
    sound = _sequential(_piped(handle, begin, end, stack), stack)
    if sound.frames != _UNKNOWN:
        return _sound(sound)
    # A decoder may omit a frame that depends on one before the first.
    least = (stream.frames - 2) * stream.samples
    return Sound(sound.samplerate, None, _at_least(least, _read(sound)))


def _at_least(least: int, blocks: Iterator[Wave]) -> Iterator[Wave]:
    heard = 0
    for block in blocks:
        heard += len(block)
        yield block
    if heard < least:
        raise BadFile(f"only {heard} of {least} samples can be decoded")


def _first(frames: int, blocks: Iterator[Wave]) -> Iterator[Wave]:
    for block in blocks:
        yield block[:frames]
        frames -= len(block[:frames])
        if frames == 0:
            return


def _sound(sound: "SoundFile") -> Sound:
    frames = None if sound.frames == _UNKNOWN else sound.frames
    return Sound(sound.samplerate, frames, _read(sound))


def _sequential(source: "_View | int", stack: ExitStack) -> "SoundFile":
    """Opens a file with libsndfile, by its content alone."""
    import soundfile

    class Sequential(soundfile.SoundFile):  # type: ignore[misc]
        # Otherwise soundfile would seek after every read, which some formats do not support, and stop at
        # `frames`.
        def seekable(self) -> bool:
            return False

    with _without_notes():
        return stack.enter_context(Sequential(source, closefd=False))


def _read(sound: "SoundFile") -> Iterator[Wave]:
    frames = max(1, BLOCK_SAMPLES // sound.channels)
    try:
        # A new array for each block, since a short read returns only part of it.
        while True:
            with _without_notes():
                block = sound.read(frames, dtype="float32", always_2d=True)
            if not len(block):
                return
            yield block
    except _errors() as error:
        reason = _reason(error)
        if sound.frames != _UNKNOWN:
            reason = f"cut short or damaged, its {sound.frames} samples cannot be decoded: {reason}"
        raise BadFile(reason) from error


@contextmanager
def _without_notes() -> Iterator[None]:
    """Suppresses what libmpg123 writes to standard error about a damaged file."""
    with _one_at_a_time, ExitStack() as stack:
        with suppress(OSError):  # there may be no standard error
            kept = os.dup(2)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, 2)
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 2)
            os.close(nowhere)
        yield


class _View(io.RawIOBase):
    """Part of a file as a file of its own, with some bytes replaced."""

    def __init__(self, handle: int, begin: int, end: int, piece: Piece | None = None) -> None:
        self.handle, self.begin, self.end, self.piece = handle, begin, end, piece
        self.place = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves to an offset; see `io.IOBase.seek`."""
        self.place = max(0, offset + (0, self.place, self.end - self.begin)[whence])
        return self.place

    def tell(self) -> int:
        """Returns the current offset."""
        return self.place

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """Reads bytes into a buffer and returns their number."""
        room = memoryview(buffer).cast("B")
        at = self.begin + self.place
        try:
            count = os.preadv(self.handle, [room[: max(0, self.end - at)]], at)
        except OSError:  # no exception passes through libsndfile, which notices the missing bytes
            return 0
        self.place += count
        if self.piece:
            for place, byte in enumerate(self.piece.data, self.piece.at - at):
                if 0 <= place < count:
                    room[place] = byte
        return count


def _piped(handle: int, begin: int, end: int, stack: ExitStack) -> int:
    """Returns the reading end of a pipe that delivers part of a file."""
    out, into = os.pipe()

    def feed() -> None:
        at = begin
        try:
            while chunk := os.pread(handle, min(1 << 16, end - at), at):
                at += len(chunk)
                left = memoryview(chunk)
                while left:
                    left = left[os.write(into, left) :]
        except OSError:
            pass  # the reader has closed the pipe, or will notice the missing bytes
        finally:
            os.close(into)

    thread = threading.Thread(target=feed, daemon=True)
    thread.start()
    stack.callback(thread.join)
    stack.callback(os.close, out)
    return out


def _errors() -> tuple[type[Exception], ...]:
    import soundfile

    return (soundfile.SoundFileError, OSError, EOFError, MemoryError, RuntimeError, ValueError)


def _reason(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "too little memory to decode it"
    if isinstance(error, OSError):
        return f"not readable: {error.strerror or error}"
    text = str(getattr(error, "error_string", error)).strip().rstrip(".")
    if text.startswith("Unspecified internal error"):  # libsndfile's words, about its own decoder
        text = "the decoder failed on damaged data"
    return f"not readable as audio: {text}"
