"""Live audio as blocks of samples: a microphone, or a pipe."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from shards.audio.load import Clips
from shards.errors import UserError
from shards.log import LOG

PIPE_BYTES = 1 << 16
BLOCK_SECONDS = 0.1
# Audio that waits for a model that is slower than the microphone; beyond it, blocks are lost.
MOST_WAITING = 600


def piped(stream: BinaryIO) -> Iterator[Clips]:
    """Yield what a pipe brings: int16, little-endian, mono, as `arecord -f S16_LE` writes it.

    Raises:
        UserError: it ends within a sample, or brings none.
    """
    odd = b""
    heard = False
    while data := odd + stream.read1(PIPE_BYTES):  # type: ignore[attr-defined]
        whole = len(data) // 2 * 2
        if data == odd:
            raise UserError("standard input ends within a sample: --raw takes int16 samples")
        odd = data[whole:]
        heard = True
        yield np.frombuffer(data[:whole], "<i2").astype(np.int16)
    if not heard:
        raise UserError("standard input has no samples: pipe int16 samples into --raw")


def microphone(device: str, sample_rate: int) -> Iterator[Clips]:
    """Yield what a microphone hears, until the caller stops.

    Args:
        device: its name or a part of it, or its number; "" for the system's default.
        sample_rate: at which it is asked to record, in Hz.

    Raises:
        UserError: sounddevice is not installed, or there is no such microphone.
    """
    try:
        import sounddevice
    except ImportError as error:
        raise UserError(
            "--microphone needs the package sounddevice: pip install 'cpprune[microphone]'"
        ) from error
    except OSError as error:  # its wheels for Linux have no PortAudio
        raise UserError(
            f"--microphone: {error}: install it, such as by apt install libportaudio2"
        ) from error
    waiting: queue.Queue[Clips] = queue.Queue(MOST_WAITING)
    lost = 0

    def record(
        block: Clips, _frames: int, _time: object, status: sounddevice.CallbackFlags
    ) -> None:
        nonlocal lost
        lost += bool(status.input_overflow)
        try:
            waiting.put_nowait(block[:, 0].copy())
        except queue.Full:
            lost += 1

    try:
        stream = sounddevice.InputStream(
            samplerate=sample_rate,
            device=int(device) if device.isdecimal() else device or None,
            channels=1,
            dtype="int16",
            blocksize=round(BLOCK_SECONDS * sample_rate),
            callback=record,
        )
        with stream:
            while True:
                blocks = [waiting.get()]
                while not waiting.empty():
                    blocks.append(waiting.get_nowait())
                yield np.concatenate(blocks)
    except (sounddevice.PortAudioError, ValueError) as error:
        name = f"microphone {device!r}" if device else "the default microphone"
        raise UserError(
            f"{name} at {sample_rate} Hz: {error}; `python -m sounddevice` lists what there is"
        ) from error
    finally:
        if lost:
            LOG.warning("%s blocks of %s s were lost: the model is too slow", lost, BLOCK_SECONDS)
