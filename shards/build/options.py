"""The options of a build, checked before anything is read."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shards.audio.clips import MIN_SOUND, count_clips
from shards.errors import UserError
from shards.manifest import MAX_VALUES, SPLITS
from shards.sources.registry import SourceKind, source_kinds

LAYOUTS = ("auto", "classes", "splits")


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """Source and settings of a build. All but the paths are part of the dataset's fingerprint.

    Attributes:
        kind: a name in `shards.sources.registry.source_kinds()`.
        source: a folder, a table, or a pattern of tars.
        split_csv: a list of clips that replaces the source's own training list.
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
        keep_together: what is never divided among splits, beside the clips of one file: a column, or a
            regular expression over the paths in a folder.
        layout: of a folder: "classes", "splits", or "auto" to tell them by their names.
        filename_column, label_column, split_column, group_columns, audio_root: of a table.
        folds: (split, value of the split column); other values are training.
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
        """Refuses options that the kind of source does not read."""
        mine, kinds = self.source_kind.options, source_kinds().values()
        for name in sorted(frozenset().union(*(kind.options for kind in kinds)) - mine):
            if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                those = ", ".join(kind.name for kind in kinds if name in kind.options)
                raise UserError(f"--{name.replace('_', '-')} is for {those}, not for {self.kind}")

    @property
    def source_kind(self) -> SourceKind:
        """What the registry has under `kind`."""
        return source_kinds()[self.kind]

    @property
    def length(self) -> int:
        """Samples of one clip."""
        return max(1, round(self.seconds * self.sample_rate))

    def count_clips(self, samples: int) -> int:
        """Returns how many clips are cut from a recording of so many samples."""
        return count_clips(samples, self.length, self.short, self.min_sound)

    def arguments(self) -> dict[str, Any]:
        """Returns the settings that decide the bytes of the dataset, beside its inputs."""
        document = asdict(self)
        for name in ("source", "split_csv", "audio_root"):
            del document[name]
        return json.loads(json.dumps(document))  # type: ignore[no-any-return]
