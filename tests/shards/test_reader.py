import gc
import io
import pickle
import shutil
import tarfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import soundfile

from shards import UserError, open_dataset
from shards.build.dataset import build_dataset
from shards.build.plan import BuildOptions
from shards.split import Split


def test_what_a_dataset_says(tau_dataset: Path) -> None:
    dataset = open_dataset(str(tau_dataset))
    assert dataset.kind == "audio"
    assert dataset.sample_rate == 32000
    assert dataset.shape == (32000,)
    assert dataset.dtype == np.int16
    assert dataset.groups == ("device", "city", "location")
    assert len(dataset.classes) == 10
    assert list(dataset.splits) == ["train", "val", "test"]
    assert sum(dataset.splits.values()) == len(dataset) == 200
    ids = np.concatenate([dataset.split(name).ids for name in dataset.splits])
    assert ids.tolist() == list(range(200))
    split = dataset.split("test")
    assert len(split) == len(split.labels) == len(split.keys) == 50
    assert split.labels.dtype == split.ids.dtype == np.int64
    for key, label, device, city in zip(
        split.keys, split.labels, split.column("device"), split.column("city"), strict=True
    ):
        assert key.startswith(f"{dataset.classes[label]}-{city}-")
        assert key.endswith(f"-{device}")


# webdataset leaves its files to the garbage collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_clips_are_those_of_webdataset_and_soundfile(tau_dataset: Path) -> None:
    import webdataset

    dataset = open_dataset(tau_dataset)
    for name in dataset.splits:
        split = dataset.split(name)
        urls = [str(path) for path in sorted(tau_dataset.glob(f"{name}-*.tar"))]
        samples = list(webdataset.WebDataset(urls, shardshuffle=False))
        assert [sample["__key__"] for sample in samples] == split.keys
        waves = np.stack([soundfile.read(io.BytesIO(s["wav"]), dtype="int16")[0] for s in samples])
        assert (split.fetch(np.arange(len(split))) == waves).all()
        assert waves.any(axis=1).all()
    gc.collect()


def test_rows_come_in_the_order_asked_for(tau_dataset: Path) -> None:
    dataset = open_dataset(tau_dataset)
    everything = dataset.fetch(range(len(dataset)))
    ids = np.random.default_rng(0).integers(0, len(dataset), 500)
    assert (dataset.fetch(ids) == everything[ids]).all()
    split = dataset.split("val")
    assert (split.fetch([3, 0, 3]) == everything[split.ids[[3, 0, 3]]]).all()
    assert dataset.fetch([]).shape == (0, 32000)
    out = np.zeros((2, 32000), dtype=np.int16)
    assert split.fetch([1, 2], out) is out
    assert (out == everything[split.ids[[1, 2]]]).all()


def test_ids_out_of_range(tau_dataset: Path) -> None:
    dataset = open_dataset(tau_dataset)
    with pytest.raises(UserError, match="no row 200: rows go from 0 to 199"):
        dataset.fetch([0, 200])
    with pytest.raises(UserError, match="no position -1"):
        dataset.split("test").fetch([-1])
    with pytest.raises(UserError, match="no position 50"):
        dataset.split("test").fetch([50])
    with pytest.raises(UserError, match="no split 'dev'; it has train, val, test"):
        dataset.split("dev")
    with pytest.raises(UserError, match="no column 'weather'"):
        dataset.split("test").column("weather")


def _sum(split: Split) -> int:
    return int(split.fetch(np.arange(len(split))).astype(np.int64).sum())


def test_it_travels_to_other_processes(tau_dataset: Path) -> None:
    split = open_dataset(tau_dataset).split("val")
    expected = _sum(split)
    assert _sum(pickle.loads(pickle.dumps(split))) == expected
    for method in ("fork", "spawn"):
        with ProcessPoolExecutor(1, get_context(method)) as pool:
            assert pool.submit(_sum, split).result() == expected


@pytest.mark.parametrize("encoding", ["wav", "flac"])
def test_damage_is_found_at_the_first_touch(
    encoding: str, scenes_source: Path, tmp_path: Path
) -> None:
    options = BuildOptions(kind="tau2022", source=scenes_source, encoding=encoding)
    build_dataset(options, tmp_path / "d", workers=1)
    split = open_dataset(tmp_path / "d").split("val")
    shard = tmp_path / "d" / "val-000000.tar"
    with tarfile.open(shard) as tar:
        member = tar.getmember(f"{split.keys[2]}.{encoding}")
    data = bytearray(shard.read_bytes())
    data[member.offset_data + member.size - 9] ^= 1
    shard.write_bytes(data)
    split.fetch([0, 1, 3])
    with pytest.raises(UserError, match=rf"val-000000.tar: sample {split.keys[2]} is damaged"):
        split.fetch([0, 2, 3])


def test_flac_and_wav_hold_the_same(scenes_source: Path, tau_dataset: Path, tmp_path: Path) -> None:
    options = BuildOptions(kind="tau2022", source=scenes_source, encoding="flac")
    build_dataset(options, tmp_path / "d", workers=1)
    flac, wav = open_dataset(tmp_path / "d").split("val"), open_dataset(tau_dataset).split("val")
    assert flac.keys == wav.keys
    places = np.arange(len(wav))
    assert (flac.fetch(places) == wav.fetch(places)).all()


def test_a_cut_or_missing_shard(tau_dataset: Path, tmp_path: Path) -> None:
    copy = tmp_path / "d"
    shutil.copytree(tau_dataset, copy)
    split = open_dataset(copy).split("val")
    shard = copy / "val-000000.tar"
    shard.write_bytes(shard.read_bytes()[:-70000])
    with pytest.raises(UserError, match="the shard ends before it"):
        split.fetch(np.arange(len(split)))
    shard.unlink()
    with pytest.raises(UserError, match=r"val-000000\.tar cannot be read"):
        open_dataset(copy).split("val").fetch([0])


def test_folders_that_are_no_datasets(tau_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        open_dataset(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"has no dataset\.json"):
        open_dataset(tmp_path)
    copy = tmp_path / "d"
    shutil.copytree(tau_dataset, copy)
    index = bytearray((copy / "index.parquet").read_bytes())
    index[1000] ^= 4
    (copy / "index.parquet").write_bytes(index)
    with pytest.raises(UserError, match="sha256 differs"):
        open_dataset(copy)
    manifest = (copy / "dataset.json").read_text()
    (copy / "dataset.json").write_text(manifest.replace("shards/1", "shards/9"))
    with pytest.raises(UserError, match="format"):
        open_dataset(copy)


def test_some_of_a_split(tau_dataset: Path) -> None:
    split = open_dataset(tau_dataset).split("test")
    devices = split.column("device")
    some = split.where("device", "b")
    rows = np.flatnonzero(devices == "b")
    assert 0 < len(some) == len(rows) < len(split)
    assert some.keys == [split.keys[row] for row in rows]
    assert set(some.column("device")) == {"b"}
    assert np.array_equal(some.labels, split.labels[rows])
    assert np.array_equal(some.fetch([1, 0]), split.fetch(rows[[1, 0]]))
    turned = split.take([3, 0])
    assert turned.keys == [split.keys[3], split.keys[0]]
    assert len(split.where("device", "none")) == 0
    assert split.where("device", "none").keys == []
    with pytest.raises(UserError, match=f"positions go from 0 to {len(some) - 1}"):
        some.fetch([len(some)])
