"""Options of a build, checked before anything is read."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from shards.audio.clips import MIN_SOUND, count_clips
from shards.errors import UserError
from shards.manifest import MAX_VALUES, SPLITS
from shards.sources.registry import SourceKind, source_kinds

LAYOUTS = ("auto", "classes", "splits")


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """Source and settings of a build; all but the paths are part of the dataset's fingerprint.

    Attributes:
        kind: kind of source; a name in `shards.sources.registry.source_kinds()`.
        source: folder, table, or pattern of tars.
        split_csv: list of clips that replaces the source's own training list.
        fractions: fractions of train, val and test, if the source has no splits.
        val_fraction: fraction of the training clips for validation, if the source has no such split.
        seconds: length of a clip.
        sample_rate: in Hz.
        encoding: "wav" or "flac".
        short: "pad" or "drop" remainders shorter than a clip.
        min_sound: fraction of its last clip that the remainder of a longer recording must fill.
        shard_size: approximate number of clips per shard.
        seed: random seed of splits and shuffling.
        on_error: "stop" at the first bad file or "skip" bad files.
        keep_together: unit that is never divided among splits, besides a file: a column, or a regular
            expression that matches the paths in a folder.
        layout: layout of a folder: "classes", "splits", or "auto" to recognise it by the names.
        filename_column, label_column, split_column, group_columns, audio_root: columns and base folder
            of a table.
        folds: (split, value of the split column) pairs; other values are training.
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
        kinds = source_kinds()
        checks = {
            "kind": (self.kind in kinds, ", ".join(kinds)),
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
                raise UserError(f"{option} is {getattr(self, name)!r}; use {allowed}")
        if self.length > MAX_VALUES:
            raise UserError(
                f"--seconds {self.seconds:g} at --sample-rate {self.sample_rate}: a clip has at most "
                f"{MAX_VALUES:,} samples; use fewer of either"
            )
        self._refuse_unused()
        if self.source_kind.check is not None:
            self.source_kind.check(self)

    def _refuse_unused(self) -> None:
        """Raises UserError if an option is set that the kind of source does not use."""
        mine, kinds = self.source_kind.options, source_kinds().values()
        for name in sorted(frozenset().union(*(kind.options for kind in kinds)) - mine):
            if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                those = ", ".join(kind.name for kind in kinds if name in kind.options)
                raise UserError(f"--{name.replace('_', '-')} is for {those}, not for {self.kind}")

    @property
    def source_kind(self) -> SourceKind:
        """Registered kind of source."""
        return source_kinds()[self.kind]

    @property
    def length(self) -> int:
        """Number of samples of a clip."""
        return max(1, round(self.seconds * self.sample_rate))

    def count_clips(self, samples: int) -> int:
        """Returns the number of clips that are cut from a recording of `samples` samples."""
        return count_clips(samples, self.length, self.short, self.min_sound)

    def arguments(self) -> dict[str, object]:
        """Returns the settings that determine the bytes of the dataset, besides its inputs."""
        paths = ("source", "split_csv", "audio_root")
        settings = {name: value for name, value in asdict(self).items() if name not in paths}
        document: dict[str, object] = json.loads(json.dumps(settings))  # tuples become lists
        return document
