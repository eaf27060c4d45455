"""TAU Urban Acoustic Scenes 2022 Mobile, development set, in its own folder layout."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from shards.errors import UserError
from shards.sources.names import printable
from shards.sources.registry import source
from shards.sources.source import Item, Source, folder_of, read_table

if TYPE_CHECKING:
    from shards.build.options import BuildOptions

LABELS = (
    "airport",
    "bus",
    "metro",
    "metro_station",
    "park",
    "public_square",
    "shopping_mall",
    "street_pedestrian",
    "street_traffic",
    "tram",
)
META = "meta.csv"
TRAIN = "evaluation_setup/fold1_train.csv"
TEST = "evaluation_setup/fold1_evaluate.csv"

# audio/{scene}-{city}-{location}-{segment}-{0..9}-{device}.wav
_NAME = re.compile(r"(?:.*/)?[^/-]+-([^/-]+)-([^/-]+)-([^/-]+)-\d+-([^/-]+)\.wav")


def _one_second(options: "BuildOptions") -> None:
    if options.seconds != 1.0:
        raise UserError("--seconds: the clips of tau2022 last one second; leave it at 1.0")


@source("tau2022", help="a folder in TAU's layout", options=("split_csv",), check=_one_second)
def _from_options(options: "BuildOptions") -> Source:
    return read(folder_of(options), options.split_csv)


def read(root: Path, split_csv: Path | None) -> Source:
    """Reads the lists of a TAU folder; no audio is touched.

    Args:
        root: the folder with `meta.csv`, `evaluation_setup/` and `audio/`.
        split_csv: a training subset such as `split5.csv`, instead of all of `fold1_train.csv`.

    Raises:
        UserError: if a list is missing, or they contradict one another.
    """
    meta = read_table(
        root / META, ("filename", "scene_label", "identifier", "source_label"), delimiter="\t"
    )
    by_name = {row["filename"]: row for _, row in meta.rows}
    train_path = split_csv or root / TRAIN
    lists = {META: meta.sha256}
    items: dict[str, Item] = {}
    for path, split in ((train_path, "train"), (root / TEST, "test")):
        table = read_table(path, ("filename", "scene_label"), delimiter="\t")
        lists[printable(path.name)] = table.sha256
        for _, row in table.rows:
            name = row["filename"]
            if name not in by_name:
                raise UserError(f"{path}: {name} is not in {root / META}")
            if name in items:
                raise UserError(f"{path}: {name} is listed twice (it is in {items[name].split})")
            known = by_name[name]
            if row["scene_label"] != known["scene_label"]:
                raise UserError(
                    f"{path}: {name} is {row['scene_label']!r} here and "
                    f"{known['scene_label']!r} in {root / META}"
                )
            items[name] = _item(root, known, split)
    return Source(
        kind="audio",
        classes=LABELS,
        groups=("device", "city", "location"),
        unit="location",
        items=list(items.values()),
        one_clip=True,
        fixed_classes=True,
        lists=lists,
    )


def _item(root: Path, row: dict[str, str], split: str) -> Item:
    name, scene = row["filename"], row["scene_label"]
    match = _NAME.fullmatch(name)
    if match is None:
        raise UserError(
            f"{root / META}: {name!r} is not named as TAU names its files, "
            "{scene}-{city}-{location}-{segment}-{0..9}-{device}.wav"
        )
    if scene not in LABELS:
        raise UserError(
            f"{root / META}: {name} has the unknown scene_label {scene!r}; "
            "use the source kind `table` for other labels"
        )
    city, location, segment, _ = match.groups()
    return Item(
        name=printable(name),
        file=str(root / name),
        label=LABELS.index(scene),
        split=split,
        recording=f"{city}-{location}-{segment}",
        groups=(row["source_label"], city, row["identifier"]),
        together=row["identifier"],
    )
