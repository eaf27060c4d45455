"""What exported files have in common as models: clips and classes, which their metadata name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from cpprune.audio.frontend import build_features, check_size, spec_from_json
from cpprune.export.metadata import Metadata
from shards.errors import UserError
from shards.files.documents import read_bytes

MOST_BYTES = 1 << 30
REMEDY = "export the model folder again with cpprune export"
Loaded = TypeVar("Loaded", bound="FileModel")


class FileModel:
    """A file of `cpprune export`; with `logits` it is a `Classifier`.

    Attributes:
        metadata: what the file says of itself.
        size: bytes of the file.
        features: its front end, on the CPU.

    Raises:
        ValueError: the metadata describe no clip or front end that there can be.
    """

    def __init__(self, metadata: Metadata, size: int) -> None:
        self.metadata, self.size = metadata, size
        spec = spec_from_json(metadata.features)
        check_size(spec, metadata.clip_shape)
        self.features = build_features(spec)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the K classes, in the order of the logits."""
        return tuple(self.metadata.classes)

    @property
    def clip_shape(self) -> tuple[int, ...]:
        """Shape of one clip."""
        return tuple(self.metadata.clip_shape)

    @property
    def sample_rate(self) -> int | None:
        """Samples per second of its waveforms; None for images."""
        return self.metadata.sample_rate

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input of the network."""
        return self.features.output_shape(self.clip_shape)

    def about(self) -> dict[str, object]:
        """Return the metadata, JSON-ready."""
        return asdict(self.metadata)


def load_file(path: Path, make: Callable[[bytes], Loaded]) -> Loaded:
    """Return the model that `make` makes of a file's bytes.

    Raises:
        UserError: there is no such file, or `make` raised ValueError.
    """
    data = read_bytes(path, MOST_BYTES, REMEDY)
    try:
        return make(data)
    except ValueError as error:
        raise UserError(f"{path}: {error}; {REMEDY}") from error


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the name of its class."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
