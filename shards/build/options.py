"""What a build is told: the options, checked before anything is read."""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shards.audio.clips import MIN_SOUND, count_clips
from shards.errors import InputError
from shards.manifest import MAX_VALUES, SPLITS

KINDS = ("tau2022", "folder", "table", "mnist")
LAYOUTS = ("auto", "classes", "splits")


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What is built from what. Everything here but the paths is part of the dataset's identity.

    Attributes:
        kind: one of `KINDS`.
        source: a folder, or the table.
        split_csv: for tau2022, a training subset such as split5.csv.
        fractions: of train, val and test where the source has no splits.
        val_fraction: of training, where the source has no validation split.
        seconds: length of a clip.
        sample_rate: Hz.
        encoding: "wav" or "flac".
        short: "pad" or "drop" what is shorter than a clip.
        min_sound: the part of its last clip that the rest of a longer recording has to fill.
        shard_size: clips a shard, about.
        seed: of the splits and of the shuffle.
        on_error: "stop" at the first bad file or "skip" bad files.
        keep_together: what never parts, beside the clips of one file: a column of a table, or a regular
            expression over the paths of a folder.
        layout: of a folder: "classes", "splits", or "auto" to tell them by their names.
        filename_column, label_column, split_column, group_columns, audio_root: for tables.
        folds: (split, value of the split column) for tables; other values are training.
    """

    kind: str
    source: Path
    split_csv: Path | None = None
    fractions: tuple[float, ...] = (0.8, 0.1, 0.1)
    val_fraction: float = 0.1
    seconds: float = 1.0
    sample_rate: int = 32000
    encoding: str = "wav"
    short: str = "pad"
    min_sound: float = MIN_SOUND
    shard_size: int = 4096
    seed: int = 0
    on_error: str = "stop"
    filename_column: str = "filename"
    label_column: str = "label"
    split_column: str | None = None
    group_columns: tuple[str, ...] = ()
    audio_root: Path | None = None
    keep_together: str | None = None
    layout: str = "auto"
    folds: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        checks = {
            "kind": (self.kind in KINDS, ", ".join(KINDS)),
            "fractions": (
                len(self.fractions) == 3
                and min(self.fractions) >= 0
                and self.fractions[0] > 0
                and abs(sum(self.fractions) - 1) < 1e-6,
                "three numbers for train, val and test with the sum 1, train above 0",
            ),
            "val_fraction": (0 <= self.val_fraction < 1, "a number from 0 to below 1"),
            "seconds": (0 < self.seconds <= 3600, "a number above 0, at most 3600"),
            "sample_rate": (1000 <= self.sample_rate <= 384000, "1000 to 384000 Hz"),
            "encoding": (self.encoding in ("wav", "flac"), "wav or flac"),
            "short": (self.short in ("pad", "drop"), "pad or drop"),
            "min_sound": (0 <= self.min_sound <= 1, "a number from 0 to 1"),
            "shard_size": (self.shard_size >= 1, "a whole number above 0"),
            "seed": (self.seed >= 0, "a whole number, 0 or more"),
            "layout": (self.layout in LAYOUTS, ", ".join(LAYOUTS)),
            "folds": (
                {split for split, _ in self.folds} <= set(SPLITS),
                "train, val or test and a value of the split column each, as in test=5,val=4",
            ),
            "on_error": (self.on_error in ("stop", "skip"), "stop or skip"),
        }
        for name, (good, allowed) in checks.items():
            if not good:
                option = f"--{name.replace('_', '-')}"
                raise InputError(f"{option} is {getattr(self, name)!r}; use {allowed}")
        if self.length > MAX_VALUES:
            raise InputError(
                f"--seconds {self.seconds:g} at --sample-rate {self.sample_rate}: a clip has at most "
                f"{MAX_VALUES:,} samples; use fewer of either"
            )
        self._refuse_idle()
        if self.kind == "tau2022" and self.seconds != 1.0:
            raise InputError("--seconds: the clips of tau2022 last one second; leave it at 1.0")

    def _refuse_idle(self) -> None:
        """Refuses what would do nothing, and what cannot be read."""
        if self.split_csv is not None and self.kind != "tau2022":
            raise InputError("--split-csv is for tau2022; a table names its splits in a column")
        if self.layout != "auto" and self.kind != "folder":
            raise InputError(f"--layout is for folders, not for {self.kind}")
        if self.folds and self.kind != "table":
            raise InputError(f"--folds is for tables, not for {self.kind}")
        if self.keep_together is None:
            return
        if self.kind not in ("folder", "table"):
            raise InputError(f"--keep-together is for folders and tables, not for {self.kind}")
        if self.kind == "folder":
            try:
                re.compile(self.keep_together)
                self.keep_together.encode()
            except (re.error, RecursionError, OverflowError, UnicodeEncodeError) as error:
                raise InputError(
                    f"--keep-together {self.keep_together!r} is no regular expression: {error}"
                ) from error

    @property
    def length(self) -> int:
        """Samples of one clip."""
        return max(1, round(self.seconds * self.sample_rate))

    def count_clips(self, samples: int) -> int:
        """Returns how many clips are cut from a recording of so many samples."""
        return count_clips(samples, self.length, self.short, self.min_sound)

    def arguments(self) -> dict[str, Any]:
        """Returns what decides the bytes of the dataset, beside its inputs."""
        document = asdict(self)
        for name in ("source", "split_csv", "audio_root"):
            del document[name]
        return json.loads(json.dumps(document))  # type: ignore[no-any-return]
