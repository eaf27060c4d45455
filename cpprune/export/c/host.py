"""C compilers of this machine: what a model in C takes on a microcontroller, and the model run here."""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor

from cpprune.evaluation.dcase import Complexity
from cpprune.export.inputs import model_input
from cpprune.export.metadata import Input
from cpprune.models.artifact import Model
from shards.errors import UserError

STANDARD = ("-std=c99",)
ARM = ("-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16")
SMALL = "-Os"
Command = tuple[str, ...]


class Sizes(TypedDict):
    """Bytes of a model's objects, without the C library, and what compiled them.

    `flash` is code and constants; `ram` is static memory.
    """

    compiler: str
    machine: str
    options: str
    flash: int
    ram: int


def host_compiler() -> Command | None:
    """Return the C compiler of this machine: $CC, maybe with options, or cc; None if there is none."""
    try:
        words = shlex.split(os.environ.get("CC", "")) or ["cc"]
    except ValueError:  # a quotation does not end
        return None
    return tuple(words) if shutil.which(words[0]) else None


def sizes(sources: Mapping[str, str]) -> Sizes | None:
    """Return the bytes of a model's objects; None if nothing compiles them.

    Args:
        sources: of the model, by name.
    """
    compilers: list[tuple[Command | None, str, Command]] = [
        (("arm-none-eabi-gcc",), "arm-none-eabi-size", ARM),
        (host_compiler(), "size", ()),
    ]
    for compiler, size, machine in compilers:
        if compiler is None or not (shutil.which(compiler[0]) and shutil.which(size)):
            continue
        options = [*STANDARD, SMALL, *machine]
        with _built(sources, compiler, [*options, "-c"]) as folder:
            if folder is None:
                continue
            objects = sorted(folder.glob("*.o"))
            lines = subprocess.run(
                [size, *objects], capture_output=True, text=True, check=True
            ).stdout.splitlines()[1:]
        text, data, bss = (sum(int(line.split()[k]) for line in lines) for k in range(3))
        version = subprocess.run(
            [*compiler, "-dumpfullversion"], capture_output=True, text=True, check=False
        ).stdout.strip()
        return {
            "compiler": " ".join([Path(compiler[0]).name, *compiler[1:], version]).strip(),
            "machine": f" {machine[0]}" if machine else "",
            "options": " ".join(options),
            "flash": text + data,
            "ram": data + bss,
        }
    return None


class CModel:
    """A model in C, compiled and run on this machine; a `Classifier`.

    Args:
        sources: of the model, by name.
        model: that it was made from.
        kind: what it takes.
        complexity: what it costs.

    Raises:
        UserError: there is no compiler, or it does not compile the model.
    """

    def __init__(
        self,
        sources: Mapping[str, str],
        model: Model,
        kind: Input,
        complexity: Complexity,
    ) -> None:
        self.classes, self.clip_shape = model.classes, model.clip_shape
        self.sample_rate = model.sample_rate
        self._features, self._kind, self._complexity = model.features, kind, complexity
        options = [*STANDARD, "-O3", "-shared", "-fPIC", "-o", "model.so"]
        with _built(sources, required_compiler("--check"), options, "-lm") as folder:
            if folder is None:
                raise UserError(
                    "--check: the C compiler of this machine does not compile the model"
                )
            self._run = ctypes.CDLL(str(folder / "model.so")).model_logits

    def logits(self, clips: Tensor) -> Tensor:
        """Return the logits [B, K] of int16 waveforms [B, T] or uint8 images [B, 1, H, W]."""
        given = np.ascontiguousarray(model_input(clips, self._kind, self._features))
        found = np.empty((len(clips), len(self.classes)), np.float32)
        for clip, logits in zip(given, found, strict=True):
            self._run(clip.ctypes.data_as(ctypes.c_void_p), logits.ctypes.data_as(ctypes.c_void_p))
        return torch.from_numpy(found)

    def complexity(self) -> Complexity:
        """Return parameters, macs, bytes and DCASE's limits of the model."""
        return self._complexity


def required_compiler(what: str) -> Command:
    """Return the C compiler of this machine; raise UserError if there is none.

    Args:
        what: needs it.
    """
    compiler = host_compiler()
    if compiler is None:
        raise UserError(
            f"{what} runs the C that it writes, and found no C compiler: install one, or set CC"
        )
    return compiler


@contextmanager
def _built(
    sources: Mapping[str, str], compiler: Command, options: Sequence[str], *libraries: str
) -> Iterator[Path | None]:
    """Compile sources in a folder for the time of the block; None if that fails."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, text in sources.items():
            (folder / file).write_text(text)
        files = [file for file in sources if file.endswith(".c")]
        done = subprocess.run(
            [*compiler, *options, *files, *libraries], cwd=folder, capture_output=True, check=False
        )
        yield None if done.returncode else folder
