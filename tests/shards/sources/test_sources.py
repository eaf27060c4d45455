import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from shards import UserError, open_dataset
from shards.build.dataset import build_dataset
from shards.build.plan import BuildOptions, make_plan
from shards.build.splits import carve_validation, draw_splits
from shards.manifest import Manifest

Make = Callable[..., Path]


def build(out: Path, **options: object) -> Manifest:
    return build_dataset(BuildOptions(sample_rate=8000, **options), out, workers=1)  # type: ignore[arg-type]


# TAU


def test_tau_splits_and_columns(scenes_source: Path, tau_dataset: Path) -> None:
    dataset = open_dataset(tau_dataset)
    rows = [line.split("\t") for line in (scenes_source / "meta.csv").read_text().splitlines()[1:]]
    lists = {
        name: {line.split("\t")[0] for line in path.read_text().splitlines()[1:]}
        for name, path in (
            ("train", scenes_source / "evaluation_setup/fold1_train.csv"),
            ("test", scenes_source / "evaluation_setup/fold1_evaluate.csv"),
        )
    }
    known = {Path(row[0]).stem: row for row in rows}
    places: dict[str, set[str]] = {}
    for name in dataset.splits:
        split = dataset.split(name)
        places[name] = set(split.column("location").tolist())
        assert set(split.labels.tolist()) == set(range(10))
        for i, key in enumerate(split.keys):
            file, scene, identifier, device = known[key]
            assert file in lists["test" if name == "test" else "train"]
            assert dataset.classes[split.labels[i]] == scene
            assert split.column("location")[i] == identifier
            assert split.column("device")[i] == device
            assert split.column("recording")[i] == "-".join(key.split("-")[1:4])
    assert not places["train"] & places["val"]
    assert not (places["train"] | places["val"]) & places["test"]


def _edited(scenes_source: Path, tmp_path: Path, name: str, edit: Callable[[str], str]) -> Path:
    folder = tmp_path / "source"
    shutil.copytree(scenes_source, folder, copy_function=lambda a, b: Path(b).hardlink_to(a))
    text = (folder / name).read_text()
    (folder / name).unlink()
    (folder / name).write_text(edit(text))
    return folder


def test_a_training_subset(scenes_source: Path, tmp_path: Path) -> None:
    lines = (scenes_source / "evaluation_setup/fold1_train.csv").read_text().splitlines()
    subset = tmp_path / "split.csv"
    subset.write_text("\n".join(lines[:61]) + "\n")
    options = BuildOptions(kind="tau2022", source=scenes_source, split_csv=subset, val_fraction=0)
    counts = make_plan(options, 1).counts()
    assert {name: sum(of.values()) for name, of in counts.items()} == {"train": 60, "test": 50}
    subset.write_text("\n".join([*lines[:61], "audio/bus-lyon-1-2-0-a.wav\tbus"]) + "\n")
    with pytest.raises(UserError, match=r"bus-lyon-1-2-0-a\.wav is not in .*meta\.csv"):
        make_plan(options, 1)


def test_tau_lists_that_contradict(scenes_source: Path, tmp_path: Path) -> None:
    test = scenes_source / "evaluation_setup/fold1_evaluate.csv"
    line = test.read_text().splitlines()[1]
    folder = _edited(
        scenes_source, tmp_path, "evaluation_setup/fold1_train.csv", lambda text: text + line + "\n"
    )
    with pytest.raises(UserError, match="is listed twice"):
        make_plan(BuildOptions(kind="tau2022", source=folder), 1)


def test_a_tau_location_in_two_splits(scenes_source: Path, tmp_path: Path) -> None:
    test = (scenes_source / "evaluation_setup/fold1_evaluate.csv").read_text().splitlines()[1]
    place = "-".join(test.split("\t")[0].split("-")[1:3])

    def move(text: str) -> str:
        lines = text.splitlines()
        cells = lines[1].split("\t")
        return "\n".join([lines[0], "\t".join([*cells[:2], place, cells[3]]), *lines[2:]]) + "\n"

    folder = _edited(scenes_source, tmp_path, "meta.csv", move)
    with pytest.raises(UserError, match=f"location '{place}' is in two splits"):
        make_plan(BuildOptions(kind="tau2022", source=folder), 1)


@pytest.mark.parametrize("name", ["meta.csv", "evaluation_setup/fold1_evaluate.csv"])
def test_a_tau_list_is_missing(name: str, scenes_source: Path, tmp_path: Path) -> None:
    folder = _edited(scenes_source, tmp_path, name, lambda text: text)
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"{name} does not exist"):
        make_plan(BuildOptions(kind="tau2022", source=folder), 1)


def test_a_tau_clip_of_ten_seconds(scenes_source: Path, tmp_path: Path, make_audio: Make) -> None:
    folder = _edited(scenes_source, tmp_path, "meta.csv", lambda text: text)
    name = (folder / "evaluation_setup/fold1_evaluate.csv").read_text().splitlines()[1]
    file = folder / name.split("\t")[0]
    file.unlink()
    make_audio(file, seconds=10)
    with pytest.raises(UserError, match=rf"{file.name} .*lasts 10\.00 s"):
        build_dataset(BuildOptions(kind="tau2022", source=folder), tmp_path / "d", workers=1)


# Folders


@pytest.fixture
def folders(tmp_path: Path, make_audio: Make) -> Path:
    root = tmp_path / "birds"
    for name in ("owl", "wren"):
        for i in range(10):
            make_audio(root / name / f"day{i % 2}" / f"n.{i}.wav", seconds=1.5 + i % 3, seed=i)
    (root / "owl" / "notes.txt").write_text("not audio")
    (root / "readme.md").write_text("not audio")
    return root


def test_a_folder_is_drawn_by_file(folders: Path, tmp_path: Path) -> None:
    manifest = build(tmp_path / "d", kind="folder", source=folders)
    assert manifest.classes == ("owl", "wren")
    assert manifest.source["files"] == 20
    assert manifest.source["ignored_files"] == 2
    dataset = open_dataset(tmp_path / "d")
    recordings = [set(dataset.split(name).column("recording").tolist()) for name in dataset.splits]
    assert sum(map(len, recordings)) == len(set.union(*recordings)) == 20
    for name in dataset.splits:
        assert set(dataset.split(name).labels.tolist()) == {0, 1}
    # 1.5, 2.5 and 3.5 seconds: 2, 3 and 4 clips.
    assert len(dataset) == 2 * (4 * 2 + 3 * 3 + 3 * 4)
    assert dataset.splits == {"train": 46, "val": 8, "test": 4}
    shorter = build(tmp_path / "e", kind="folder", source=folders, short="drop")
    assert shorter.index["rows"] == 2 * (4 * 1 + 3 * 2 + 3 * 3)


def test_a_clip_is_the_right_part_of_its_file(folders: Path, tmp_path: Path) -> None:
    import soundfile

    build(tmp_path / "d", kind="folder", source=folders, shard_size=7)
    dataset = open_dataset(tmp_path / "d")
    split = dataset.split("train")
    waves = split.fetch(np.arange(len(split)))
    for key, recording, wave in zip(split.keys, split.column("recording"), waves, strict=True):
        start = 8000 * int(key[-5:])
        whole = soundfile.read(folders / recording, dtype="int16")[0]
        part = whole[start : start + 8000]
        assert (wave[: len(part)] == part).all()
        assert not wave[len(part) :].any()


def test_given_splits_are_kept(tmp_path: Path, make_audio: Make) -> None:
    for split, count in (("train", 10), ("test", 3)):
        for name in ("owl", "wren"):
            for i in range(count):
                make_audio(tmp_path / "s" / split / name / f"{i}.wav")
    counts = make_plan(BuildOptions(kind="folder", source=tmp_path / "s"), 1).counts()
    assert {name: sum(of.values()) for name, of in counts.items()} == {
        "train": 18,
        "val": 2,
        "test": 6,
    }


def test_folders_that_cannot_be_used(tmp_path: Path, make_audio: Make) -> None:
    with pytest.raises(UserError, match="does not exist"):
        make_plan(BuildOptions(kind="folder", source=tmp_path / "no"), 1)
    with pytest.raises(UserError, match="has no sub-folders"):
        make_plan(BuildOptions(kind="folder", source=tmp_path), 1)
    make_audio(tmp_path / "owl" / "a.wav")
    (tmp_path / "wren").mkdir()
    with pytest.raises(UserError, match=r"class folder .*wren has no audio"):
        make_plan(BuildOptions(kind="folder", source=tmp_path), 1)


def test_names_that_are_no_keys(tmp_path: Path, make_audio: Make) -> None:
    names = ["a.b.wav", "a_b.wav", "a b.wav", "é.wav", "x" * 120 + ".wav", "x" * 121 + ".wav"]
    for name in names:
        make_audio(tmp_path / "s" / "owl" / name)
    build(tmp_path / "d", kind="folder", source=tmp_path / "s")
    dataset = open_dataset(tmp_path / "d")
    keys = [key for name in dataset.splits for key in dataset.split(name).keys]
    assert len(set(keys)) == len(names)
    assert all(len(key) <= 95 and key.isascii() and not set("./ ") & set(key) for key in keys)


def test_bad_files_stop_or_are_skipped(folders: Path, tmp_path: Path) -> None:
    import soundfile

    (folders / "owl" / "broken.wav").write_text("no audio")
    wave = np.full(8000, np.nan, dtype=np.float32)
    soundfile.write(folders / "wren" / "nan.wav", wave, 8000, subtype="FLOAT")
    with pytest.raises(UserError, match=r"owl/broken\.wav in .* is bad: not readable as audio"):
        build(tmp_path / "d", kind="folder", source=folders)
    (folders / "owl" / "broken.wav").unlink()
    with pytest.raises(UserError, match=r"wren/nan\.wav in .*: samples that are not finite"):
        build(tmp_path / "e", kind="folder", source=folders)
    (folders / "owl" / "broken.wav").write_text("no audio")
    manifest = build(tmp_path / "f", kind="folder", source=folders, on_error="skip")
    assert manifest.rejected is not None
    assert manifest.rejected["count"] == 2
    lines = (tmp_path / "f" / "rejected.csv").read_text().splitlines()
    assert lines[0] == "filename,reason"
    assert [line.split(",")[0] for line in lines[1:]] == ["owl/broken.wav", "wren/nan.wav"]
    assert manifest.index["rows"] == 58


# Tables


def _table(path: Path, make_audio: Make, rows: list[str], delimiter: str = ",") -> Path:
    for row in rows[1:]:
        make_audio(path.parent / row.split(",")[0])
    path.write_text("\n".join(row.replace(",", delimiter) for row in rows) + "\n")
    return path


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
def test_a_table(delimiter: str, tmp_path: Path, make_audio: Make) -> None:
    rows = ["filename,label,split,device,location"]
    rows += [
        f"w/{split}{i}.wav,{'owl' if i % 2 else 'wren'},{split},{'ab'[i % 2]},{split}-{i // 4}"
        for split in ("train", "test")
        for i in range(16)
    ]
    table = _table(tmp_path / "t.csv", make_audio, rows, delimiter)
    build(tmp_path / "d", kind="table", source=table, group_columns=("device", "location"))
    dataset = open_dataset(tmp_path / "d")
    assert dataset.groups == ("device", "location")
    assert dataset.splits == {"train": 12, "val": 4, "test": 16}
    assert len(set(dataset.split("val").column("location").tolist())) == 1
    for name in dataset.splits:
        split = dataset.split(name)
        assert [dataset.classes[label] for label in split.labels] == [
            "owl" if device == "b" else "wren" for device in split.column("device")
        ]


def test_other_columns_and_another_root(tmp_path: Path, make_audio: Make) -> None:
    for i in range(20):
        make_audio(tmp_path / "far" / f"{i}.wav")
    rows = ["path,species,recording", *(f"{i}.wav,owl,tape{i // 4}" for i in range(20))]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    build(
        tmp_path / "d",
        kind="table",
        source=tmp_path / "t.csv",
        filename_column="path",
        label_column="species",
        group_columns=("recording",),
        audio_root=tmp_path / "far",
    )
    dataset = open_dataset(tmp_path / "d")
    assert dataset.splits == {"train": 12, "val": 4, "test": 4}
    tapes = [set(dataset.split(name).column("recording").tolist()) for name in dataset.splits]
    assert sorted(tape for of in tapes for tape in of) == [f"tape{i}" for i in range(5)]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (["filename,label", "a.wav,owl"], {"label_column": "class"}, "no column 'class'"),
        (["filename,label,split", "a.wav,owl,blue"], {}, "line 2: a.wav has the split 'blue'"),
        (["filename,label", "a.wav,owl", "a.wav,owl"], {}, "line 3: a.wav is listed twice"),
        (["filename,label", "a.wav,"], {}, "line 2: no filename or no label"),
        (["filename,label"], {}, "has no rows"),
        (
            [
                "filename,label,split,location",
                "a.wav,owl,train,here",
                "b.wav,owl,test,here",
            ],
            {"group_columns": ("location",)},
            "location 'here' is in two splits",
        ),
    ],
)
def test_tables_that_cannot_be_used(
    rows: list[str], options: dict[str, object], message: str, tmp_path: Path, make_audio: Make
) -> None:
    table = _table(tmp_path / "t.csv", make_audio, rows)
    with pytest.raises(UserError, match=message):
        make_plan(BuildOptions(kind="table", source=table, **options), 1)  # type: ignore[arg-type]


# MNIST


@pytest.mark.parametrize("packed", [False, True])
def test_mnist(packed: bool, tmp_path: Path, write_mnist: Callable[..., None]) -> None:
    rng = np.random.default_rng(0)
    images = {"train": rng.integers(0, 256, (600, 28, 28), dtype=np.uint8)}
    images["t10k"] = rng.integers(0, 256, (50, 28, 28), dtype=np.uint8)
    labels = {name: (np.arange(len(of)) % 10).astype(np.uint8) for name, of in images.items()}
    (tmp_path / "s").mkdir()
    for name in images:
        write_mnist(tmp_path / "s", name, images[name], labels[name], packed)
    build(tmp_path / "d", kind="mnist", source=tmp_path / "s", shard_size=130)
    dataset = open_dataset(tmp_path / "d")
    assert (dataset.kind, dataset.shape, dataset.dtype) == ("image", (1, 28, 28), np.uint8)
    assert dataset.splits == {"train": 500, "val": 100, "test": 50}
    order = torch.randperm(600, generator=torch.Generator().manual_seed(1)).tolist()
    for name, part, expected in (
        ("train", "train", order[:500]),
        ("val", "train", order[500:]),
        ("test", "t10k", range(50)),
    ):
        split = dataset.split(name)
        found = [int(key.removeprefix(f"{part}-")) for key in split.keys]
        assert sorted(found) == sorted(expected)
        assert (split.fetch(np.arange(len(split)))[:, 0] == images[part][found]).all()
        assert (split.labels == labels[part][found]).all()


def test_mnist_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither train-images-idx3-ubyte nor"):
        build(tmp_path / "d", kind="mnist", source=tmp_path)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"\x1f\x8b no gzip")
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz is damaged"):
        build(tmp_path / "d", kind="mnist", source=tmp_path)


# Splits


def test_every_class_is_in_every_split_when_it_has_enough() -> None:
    units = [f"{label}/{i}" for label in range(4) for i in range(label + 1)]
    labels = [int(unit[0]) for unit in units]
    splits = draw_splits(units, labels, [1] * len(units), (0.8, 0.1, 0.1), seed=0)
    of = {label: Counter(splits[u] for u in units if u[0] == str(label)) for label in range(4)}
    assert of[0] == {"train": 1}
    assert of[1] == {"train": 1, "test": 1}
    assert of[2] == {"train": 1, "val": 1, "test": 1}
    assert of[3] == {"train": 2, "val": 1, "test": 1}
    many = draw_splits([str(i) for i in range(100)], [0] * 100, [1] * 100, (0.7, 0.2, 0.1), seed=0)
    assert Counter(many.values()) == {"train": 70, "val": 20, "test": 10}
    assert many != draw_splits(
        [str(i) for i in range(100)], [0] * 100, [1] * 100, (0.7, 0.2, 0.1), seed=1
    )


def test_validation_takes_its_share_of_every_class_and_leaves_a_unit() -> None:
    units = [f"{label}/{i}" for label in range(3) for i in (range(50) if label else range(1))]
    labels = [int(unit[0]) for unit in units]
    taken = carve_validation(units, labels, [10] * len(units), 0.1, seed=0)
    assert Counter(unit[0] for unit in taken) == {"1": 5, "2": 5}
    shared = ["x", "y", "x", "y"]
    assert len(carve_validation(shared, [0, 0, 1, 1], [1] * 4, 0.5, seed=0)) == 1
