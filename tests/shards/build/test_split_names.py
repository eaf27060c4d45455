"""Splits as people call them, in folders and in tables; and what cannot be told for sure is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest

from shards import UserError
from shards.build.plan import BuildOptions, Plan, make_plan

Make = Callable[..., Path]


def plan(source: Path, **options: object) -> Plan:
    return make_plan(BuildOptions(source=source, sample_rate=8000, **options), 1)  # type: ignore[arg-type]


def totals(plan: Plan) -> dict[str, int]:
    return {split: sum(of.values()) for split, of in plan.counts().items()}


@pytest.fixture
def lay(tmp_path: Path, make_audio: Make) -> Callable[..., Path]:
    """Makes FOLDER/owl and FOLDER/wren with 1, 2, 3 … files for each folder named."""

    def make(*names: str) -> Path:
        for count, name in enumerate(names, start=1):
            for label in ("owl", "wren"):
                for number in range(count):
                    make_audio(tmp_path / "s" / name / label / f"{number}.wav")
        return tmp_path / "s"

    return make


@pytest.mark.parametrize(
    "names",
    [
        ("train", "valid", "test"),
        ("train", "validation", "test"),
        ("Train", "Val", "Test"),
        ("TRAINING", "DEV", "TESTING"),
        ("training", "development", "evaluation"),
        ("train", "val", "eval"),
    ],
)
def test_usual_names_in_any_case(names: tuple[str, ...], lay: Callable[..., Path]) -> None:
    made = plan(lay(*names), kind="folder")
    assert made.source.classes == ("owl", "wren")
    assert totals(made) == {"train": 2, "val": 4, "test": 6}


@pytest.mark.parametrize("names", [("dev", "eval"), ("development", "evaluation")])
def test_without_a_training_folder_development_is_training(
    names: tuple[str, ...], lay: Callable[..., Path]
) -> None:
    made = plan(lay(*names), kind="folder", val_fraction=0)
    assert totals(made) == {"train": 2, "test": 4}
    assert f"folders: {names[0]} → train, {names[1]} → test" in made.remarks.notes


def test_two_names_for_one_split(lay: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="'val' and 'valid' both mean the val split"):
        plan(lay("train", "val", "valid"), kind="folder")


def test_a_mixture_is_refused_and_an_option_settles_it(
    lay: Callable[..., Path], make_audio: Make
) -> None:
    root = lay("train", "val", "test", "extra")
    with pytest.raises(UserError, match=r"test, train, val, .*beside extra with audio.*--layout"):
        plan(root, kind="folder")
    assert totals(plan(root, kind="folder", layout="splits")) == {"train": 2, "val": 4, "test": 6}
    assert plan(root, kind="folder", layout="splits").source.aside == {"in no split folder": 8}
    assert plan(root, kind="folder", layout="classes").source.classes == (
        *("extra", "test", "train", "val"),
    )


def test_folders_without_audio_beside_splits(lay: Callable[..., Path]) -> None:
    root = lay("train", "test")
    (root / "docs").mkdir()
    (root / "docs" / "readme.txt").write_text("how it was recorded")
    made = plan(root, kind="folder", val_fraction=0)
    assert made.source.classes == ("owl", "wren")
    assert made.source.aside == {"not audio (.txt)": 1}


def test_a_train_is_a_vehicle_too(tmp_path: Path, make_audio: Make) -> None:
    for name in ("train", "tram", "bus"):
        for number in range(3):
            make_audio(tmp_path / name / f"{number}.wav")
    with pytest.raises(
        UserError, match=r"train, which may be splits, beside bus .*--layout classes"
    ):
        plan(tmp_path, kind="folder")
    assert plan(tmp_path, kind="folder", layout="classes").source.classes == (
        "bus",
        "train",
        "tram",
    )


def test_split_folders_that_hold_audio_and_no_classes(tmp_path: Path, make_audio: Make) -> None:
    for name in ("train", "test"):
        make_audio(tmp_path / name / "a.wav")
    with pytest.raises(UserError, match=r"has audio but no sub-folders.*--layout classes"):
        plan(tmp_path, kind="folder")


def test_splits_below_the_classes_are_told(tmp_path: Path, make_audio: Make) -> None:
    for name in ("owl/train", "owl/test", "wren/train", "wren/test"):
        for number in range(10):
            make_audio(tmp_path / name / f"{number}.wav")
    (line,) = plan(tmp_path, kind="folder").remarks.warnings
    assert line.startswith(
        "the classes have folders called test, train, which are not used as splits"
    )


def table(tmp_path: Path, make_audio: Make, column: str, cells: list[str]) -> Path:
    rows = []
    for number, cell in enumerate(cells):
        make_audio(tmp_path / f"{number}.wav")
        rows.append(f"{number}.wav,{'owl' if number % 2 else 'wren'},{cell}")
    (tmp_path / "t.csv").write_text("\n".join([f"filename,label,{column}", *rows]) + "\n")
    return tmp_path / "t.csv"


def test_usual_names_in_a_column(tmp_path: Path, make_audio: Make) -> None:
    cells = ["Train"] * 4 + ["train"] * 2 + ["validation"] * 2 + ["EVAL"] * 4
    made = plan(table(tmp_path, make_audio, "split", cells), kind="table")
    assert totals(made) == {"train": 6, "val": 2, "test": 4}
    path = table(tmp_path, make_audio, "split", [*cells, "valid"])
    with pytest.raises(UserError, match="'valid' and 'validation' both mean the val split"):
        plan(path, kind="table")


def test_a_column_of_folds(tmp_path: Path, make_audio: Make) -> None:
    path = table(tmp_path, make_audio, "fold", [str(1 + i // 4) for i in range(20)])
    with pytest.raises(UserError, match=r"0\.wav has the split '1'; .*--folds test=5"):
        plan(path, kind="table", split_column="fold")
    assert "the column fold is not used" in plan(path, kind="table").remarks.notes[0]
    made = plan(
        path, kind="table", split_column="fold", folds=(("test", "5"), ("val", "4")), val_fraction=0
    )
    assert totals(made) == {"train": 12, "val": 4, "test": 4}
    assert "column fold: 1 → train, 2 → train, 3 → train, 4 → val, 5 → test" in made.remarks.notes
    assert {clip.name for _, split, clips in made.shards for clip in clips if split == "test"} == {
        f"{number}.wav" for number in range(16, 20)
    }
    for folds, why in (
        ((("test", "6"),), "has no '6'; it has 1, 2, 3, 4, 5"),
        ((("test", "5"), ("val", "5")), "'5' is both test and val"),
        ((("test", "5"), ("train", "1")), "not what '2' is"),
    ):
        with pytest.raises(UserError, match=why):
            plan(path, kind="table", split_column="fold", folds=folds)
    with pytest.raises(UserError, match=r"--folds: .* has no column 'split'"):
        plan(path, kind="table", folds=(("test", "5"),))
