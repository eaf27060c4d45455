"""Shares of the splits are counted in clips, and nothing that belongs together is parted."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from shards import UserError
from shards.audio.clips import wav_header
from shards.build.plan import BuildOptions, Plan, make_plan
from shards.build.splits import carve_validation, draw_splits

Make = Callable[..., Path]
ASKED = {"train": 0.8, "val": 0.1, "test": 0.1}


def plan(source: Path, **options: object) -> Plan:
    return make_plan(BuildOptions(source=source, sample_rate=8000, **options), 1)  # type: ignore[arg-type]


def shares(plan: Plan) -> dict[str, float]:
    counts = {split: sum(of.values()) for split, of in plan.counts().items()}
    return {split: count / sum(counts.values()) for split, count in counts.items()}


def split_of(plan: Plan) -> dict[str, str]:
    return {clip.name: split for _, split, clips in plan.shards for clip in clips}


def drawn(weights: Sequence[int], seed: int) -> dict[str, float]:
    units = [str(number) for number in range(len(weights))]
    splits = draw_splits(units, [0] * len(units), weights, tuple(ASKED.values()), seed)
    have = Counter[str]()
    for unit, weight in zip(units, weights, strict=True):
        have[splits[unit]] += weight
    return {split: have[split] / sum(weights) for split in ASKED}


@pytest.mark.parametrize("seed", range(5))
def test_shares_of_recordings_of_any_length(seed: int) -> None:
    rng = random.Random(seed)
    got = drawn([rng.randint(1, 100) for _ in range(40)], seed)
    assert got == pytest.approx(ASKED, abs=0.02)


@pytest.mark.parametrize("seed", range(5))
def test_one_long_recording_is_for_training(seed: int) -> None:
    assert drawn([200] + [10] * 30, seed) == pytest.approx(ASKED, abs=0.001)


def test_one_long_file_does_not_turn_the_shares(tmp_path: Path, make_audio: Make) -> None:
    for name in ("owl", "wren"):
        for number in range(10):
            make_audio(tmp_path / name / f"{number}.wav", seconds=5)
    make_audio(tmp_path / "owl" / "night.wav", seconds=60)
    for seed in range(5):
        assert shares(plan(tmp_path, kind="folder", seed=seed)) == pytest.approx(ASKED, abs=0.04)


def test_what_a_single_file_makes_impossible_is_said(tmp_path: Path, make_audio: Make) -> None:
    for number in range(3):
        make_audio(tmp_path / "owl" / f"{number}.wav", seconds=1)
    make_audio(tmp_path / "owl" / "night.wav", seconds=37)
    warnings = plan(tmp_path, kind="folder", fractions=(0.5, 0.25, 0.25)).remarks.warnings
    assert any("not 50/25/25, for owl/night.wav alone has 92%" in line for line in warnings), (
        warnings
    )


def test_validation_is_not_one_long_recording() -> None:
    units = [str(number) for number in range(20)]
    for seed in range(10):
        taken = carve_validation(units, [0] * 20, [100] + [10] * 19, 0.1, seed)
        assert 20 <= sum(100 if unit == "0" else 10 for unit in taken) <= 40


@pytest.fixture
def pieces(tmp_path: Path, make_audio: Make) -> Path:
    for name in ("owl", "wren"):
        for recording in range(10):
            for piece in range(4):
                make_audio(tmp_path / "s" / name / f"rec{recording:02}_{piece}.wav")
    return tmp_path / "s"


def test_pieces_of_recordings(pieces: Path) -> None:
    loose = plan(pieces, kind="folder")
    assert any("look like pieces of recordings" in line for line in loose.remarks.warnings)
    kept = plan(pieces, kind="folder", keep_together=r"(.+)_\d+\.wav")
    assert not kept.remarks.warnings
    for made, parted in ((loose, True), (kept, False)):
        where: dict[str, set[str]] = {}
        for name, split in split_of(made).items():
            where.setdefault(name.rpartition("_")[0], set()).add(split)
        assert (max(map(len, where.values())) > 1) is parted
    assert shares(kept) == pytest.approx(ASKED)
    # The whole match, where there is no group: now an owl and a wren of one number belong together.
    assert len({split_of(plan(pieces, kind="folder", keep_together=r"rec\d+"))[n] for n in (
        "owl/rec03_0.wav", "wren/rec03_1.wav")}) == 1  # fmt: skip
    for pattern, why in (
        ("(", "is no regular expression"),
        ("tape", "finds nothing in any path, as owl/rec00_0.wav"),
        ("", "finds nothing"),
        ("(x)?rec", "finds nothing"),
    ):
        with pytest.raises(UserError, match=f"--keep-together '.*' {why}"):
            plan(pieces, kind="folder", keep_together=pattern)


def test_pieces_in_given_splits(tmp_path: Path, make_audio: Make) -> None:
    for name in ("train/owl/rec0_0.wav", "test/owl/rec0_1.wav"):
        make_audio(tmp_path / name)
    with pytest.raises(UserError, match=r"'rec0' is in two splits \(test and train\)"):
        plan(tmp_path, kind="folder", keep_together=r"rec\d+")


def make_table(tmp_path: Path, make_audio: Make, header: str, rows: list[str]) -> Path:
    for row in rows:
        make_audio(tmp_path / row.split(",")[0])
    (tmp_path / "t.csv").write_text("\n".join([header, *rows]) + "\n")
    return tmp_path / "t.csv"


def test_any_column_keeps_rows_together(tmp_path: Path, make_audio: Make) -> None:
    rows = [f"{i}.wav,{'owl' if i % 2 else 'wren'},p{i // 4}" for i in range(80)]
    path = make_table(tmp_path, make_audio, "filename,label,person", rows)
    made = plan(path, kind="table", keep_together="person")
    where: dict[str, set[str]] = {}
    for name, split in split_of(made).items():
        where.setdefault(f"p{int(name[:-4]) // 4}", set()).add(split)
    assert {len(splits) for splits in where.values()} == {1}
    assert made.source.unit == "person"
    with pytest.raises(UserError, match="no column 'tape'"):
        plan(path, kind="table", keep_together="tape")


@pytest.mark.parametrize("column", ["location", "recording"])
def test_a_blank_cell_is_not_a_place(column: str, tmp_path: Path, make_audio: Make) -> None:
    cells = ["" if i % 2 else f"here{i // 10}" for i in range(40)]
    rows = [f"{i}.wav,owl,{cell}" for i, cell in enumerate(cells)]
    path = make_table(tmp_path, make_audio, f"filename,label,{column}", rows)
    made = plan(path, kind="table", group_columns=(column,))
    splits = split_of(made)
    assert len({splits[f"{i}.wav"] for i in range(1, 40, 2)}) == 3
    assert f"20 files have no {column}; each of them is on its own" in made.remarks.notes
    # Nor are they refused where they are in several splits.
    rows = [f"{i}.wav,owl,,{'train' if i < 8 else 'test'}" for i in range(10)]
    path = make_table(tmp_path, make_audio, f"filename,label,{column},split", rows)
    assert plan(path, kind="table", group_columns=(column,)).counts()["test"] == {"owl": 2}


@pytest.mark.parametrize("name", ["class", "label", "split", "key", "crc32"])
def test_a_group_column_that_a_dataset_has_itself(
    name: str, tmp_path: Path, make_audio: Make
) -> None:
    header = f"filename,label,{name}" if name != "label" else "filename,label"
    path = make_table(tmp_path, make_audio, header, ["a.wav,owl,train", "b.wav,owl,train"])
    with pytest.raises(
        UserError, match=f"--group-columns: '{name}' is a name that a dataset needs"
    ):
        plan(path, kind="table", group_columns=(name,))


# Of the first version, before shares were counted in clips.
TAU_PLAN = "844af933fba67e6f318cddf720d7efd63e93f0d9e6c501d5f05f5e002163407a"
FOLDER_PLAN = "34b1322948e1888099b30df5ddcbcc9e0b3603afb84a7efaf3425b8f4e5cab2c"


@pytest.mark.parametrize("weight", [1, 12])
def test_recordings_of_one_length_are_drawn_as_ever(weight: int) -> None:
    units = [str(number) for number in range(45)]
    splits = draw_splits(units, [0] * 45, [weight] * 45, (0.8, 0.12, 0.08), 7)
    assert {unit for unit in units if splits[unit] == "test"} == {"6", "8", "27", "42"}
    assert {unit for unit in units if splits[unit] == "val"} == {"1", "13", "23", "24", "39"}


def test_datasets_of_the_first_version_are_known_again(scenes_source: Path, tmp_path: Path) -> None:
    """The same command on a finished dataset says that it is complete."""
    assert make_plan(BuildOptions(kind="tau2022", source=scenes_source), 1).sha256 == TAU_PLAN
    for name in ("owl", "wren"):
        (tmp_path / name).mkdir()
        for number in range(12):
            samples = (f"{name}{number:04}".encode() * 8000)[:48000]
            (tmp_path / name / f"{number}.wav").write_bytes(wav_header(24000, 8000) + samples)
    assert plan(tmp_path, kind="folder").sha256 == FOLDER_PLAN
