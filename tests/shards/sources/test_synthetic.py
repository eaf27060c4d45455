from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from shards import UserError
from shards.sources.synthetic import lay_out, synthesise
from shards.sources.tau2022 import LABELS

Hashes = Callable[[Path], dict[str, str]]


def _rows(path: Path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text().splitlines()]


def test_the_layout_is_that_of_tau(scenes_source: Path) -> None:
    meta = _rows(scenes_source / "meta.csv")
    setup = scenes_source / "evaluation_setup"
    train, test = _rows(setup / "fold1_train.csv"), _rows(setup / "fold1_evaluate.csv")
    assert meta[0] == ["filename", "scene_label", "identifier", "source_label"]
    assert train[0] == test[0] == ["filename", "scene_label"]
    assert _rows(setup / "fold1_test.csv") == [[row[0]] for row in test]
    assert sorted(row[:2] for row in meta[1:]) == sorted(train[1:] + test[1:])
    assert {row[0] for row in meta[1:]} == {
        f"audio/{p.name}" for p in scenes_source.glob("audio/*")
    }
    for name, scene, identifier, device in meta[1:]:
        parts = Path(name).stem.split("-")
        assert len(parts) == 6
        assert (parts[0], "-".join(parts[1:3]), parts[5]) == (scene, identifier, device)
        assert parts[4] in "0123456789"


def test_files_are_those_of_tau(scenes_source: Path) -> None:
    waves = []
    for path in sorted(scenes_source.glob("audio/*"))[::10]:
        assert path.stat().st_size == 132344
        info = soundfile.info(path)
        assert (info.frames, info.samplerate, info.channels) == (44100, 44100, 1)
        assert info.subtype == "PCM_24"
        waves.append(soundfile.read(path)[0])
    levels = np.sqrt(np.mean(np.square(waves), axis=1))
    assert levels.min() > 0.001
    assert levels.max() < 0.3
    assert np.abs(np.corrcoef(waves) - np.eye(len(waves))).max() < 0.5


@pytest.mark.parametrize("clips", [200, 201, 347, 3000, 100_000])
def test_what_is_where(clips: int) -> None:
    segments = lay_out(clips)
    names = [name for segment in segments for name in segment.names()]
    assert len(names) == len(set(names)) == clips
    scenes = Counter[int]()
    devices: dict[str, Counter[int]] = defaultdict(Counter)
    places: dict[str, set[str]] = defaultdict(set)
    scenes_of_place: dict[str, set[int]] = defaultdict(set)
    for segment in segments:
        assert 1 <= len(segment.devices) <= 10
        scenes[segment.scene] += len(segment.devices)
        devices[segment.split].update(segment.devices)
        places[segment.split].add(segment.identifier)
        scenes_of_place[segment.identifier].add(segment.scene)
    assert max(scenes.values()) - min(scenes.values()) <= 1
    assert len(scenes) == len(LABELS)
    assert not places["train"] & places["test"]
    assert all(len(of) == 1 for of in scenes_of_place.values())
    assert set(devices["train"]) == set(range(6))
    assert set(devices["test"]) == set(range(9))
    assert sum(devices["train"].values()) == pytest.approx(0.75 * clips, rel=0.02)
    assert 0.6 < devices["train"][0] / sum(devices["train"].values()) < 0.85
    assert max(devices["test"].values()) < 1.5 * min(devices["test"].values())


def test_workers_change_nothing_and_the_seed_does(
    scenes_source: Path, hashes: Hashes, tmp_path: Path
) -> None:
    synthesise(tmp_path / "a", 200, seed=5, workers=3)
    assert hashes(tmp_path / "a") == hashes(scenes_source)
    synthesise(tmp_path / "b", 200, seed=4, workers=1)
    first, second = hashes(tmp_path / "a"), hashes(tmp_path / "b")
    assert first.keys() == second.keys()
    assert all((first[name] == second[name]) == name.endswith(".csv") for name in first)


def test_what_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--clips is 199; use 200 or more"):
        synthesise(tmp_path / "a", 199)
    with pytest.raises(UserError, match="--seed is -1"):
        synthesise(tmp_path / "a", 200, seed=-1)
    (tmp_path / "b").write_text("")
    with pytest.raises(UserError, match="is not a new folder and not empty"):
        synthesise(tmp_path, 200)
