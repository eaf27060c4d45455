"""Decoding with the program ffmpeg of formats that libsndfile lacks (AAC, WMA, …)."""

import os
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from shards.audio.formats import INSTALL, has_ffmpeg
from shards.audio.sound import BadFile, Sound, Wave

# Containers of one recording; not playlists, which refer to other files and URLs.
_DEMUXERS = (
    "aac,ac3,alac,amr,ape,asf,dts,dtshd,eac3,flac,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,mp3,mpc,mpc8,"
    "ogg,tta,wav,wv"
)
BLOCK_BYTES = 1 << 20


@contextmanager
def opened_by_ffmpeg(file: str | Path) -> Iterator[Sound]:
    """Opens the first audio track of a file.

    Raises:
        BadFile: ffmpeg is not installed, or reports an error.
    """
    if not has_ffmpeg():
        raise BadFile(f"ffmpeg is needed to decode it: {INSTALL}")
    # "file:", because a file name may look like an option or a URL.
    command = ["ffmpeg", "-nostdin", "-v", "error", "-protocol_whitelist", "file,pipe"]
    command += ["-err_detect", "crccheck"]
    command += ["-format_whitelist", _DEMUXERS, "-i", f"file:{os.fspath(file)}"]
    # Sun AU has the shortest header that contains rate and channels.
    command += ["-map", "0:a:0", "-f", "au", "-c:a", "pcm_f32be", "pipe:1"]
    with tempfile.TemporaryFile() as faults:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=faults
        )
        assert process.stdout is not None
        try:
            head = process.stdout.read(24)
            if len(head) < 24:
                _check(process, faults)
                raise BadFile("ffmpeg decodes nothing of it")
            _, offset, _, _, rate, channels = struct.unpack(">4s5I", head)
            process.stdout.read(offset - 24)
            yield Sound(rate, None, _blocks(process, channels, faults))
        finally:
            process.kill()
            process.stdout.close()
            process.wait()


def _blocks(process: "subprocess.Popen[bytes]", channels: int, faults: IO[bytes]) -> Iterator[Wave]:
    assert process.stdout is not None
    frame = 4 * channels
    size = max(1, BLOCK_BYTES // frame) * frame
    while data := process.stdout.read(size):
        samples = np.frombuffer(data[: len(data) // frame * frame], dtype=">f4")
        yield samples.astype(np.float32).reshape(-1, channels)
    _check(process, faults)


def _check(process: "subprocess.Popen[bytes]", faults: IO[bytes]) -> None:
    status = process.wait()
    faults.seek(0)
    lines = faults.read(10_000).decode(errors="replace").strip().splitlines()
    if status or lines:
        why = lines[0].rpartition("] ")[2] if lines else f"exit status {status}"
        raise BadFile(f"cut short or damaged: ffmpeg says: {why}")
