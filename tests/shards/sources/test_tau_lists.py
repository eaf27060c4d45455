"""The real lists of TAU 2022 Mobile, with audio of our own under the real names."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from shards import open_dataset
from shards.build.dataset import build_dataset
from shards.build.plan import BuildOptions

LISTS = Path(__file__).parents[4] / "shared/data/tau2022"


@pytest.mark.slow
@pytest.mark.skipif(not LISTS.is_dir(), reason="the lists of TAU 2022 Mobile are not here")
def test_the_five_percent_split(tmp_path: Path) -> None:
    source = tmp_path / "tau"
    (source / "audio").mkdir(parents=True)
    (source / "evaluation_setup").mkdir()
    rng = np.random.default_rng(0)
    stock = [tmp_path / f"{i}.wav" for i in range(8)]  # a tenth of a second each
    for path in stock:
        soundfile.write(path, rng.uniform(-0.5, 0.5, 4410), 44100, subtype="PCM_24")
    meta = ["filename\tscene_label\tidentifier\tsource_label"]
    train, test = (
        (LISTS / name).read_text().splitlines()[1:] for name in ("split5.csv", "test.csv")
    )
    assert (len(train), len(test)) == (6980, 29680)
    devices = Counter(line.partition(".wav")[0].rpartition("-")[2] for line in test)
    assert devices == {"a": 3300, "b": 3290, "c": 3290, **{f"s{i}": 3300 for i in range(1, 7)}}
    test = test[::7]
    heard: Counter[str] = Counter()
    for i, line in enumerate(train + test):
        name, scene = line.split("\t")
        _, city, place, _, _, device = Path(name).stem.split("-")
        heard[device] += i >= len(train)
        meta.append(f"{name}\t{scene}\t{city}-{place}\t{device}")
        # A file may have a limited number of hard links, so there are several.
        (source / name).hardlink_to(stock[i % len(stock)])
    (source / "meta.csv").write_text("\n".join(meta) + "\n")
    evaluate = source / "evaluation_setup/fold1_evaluate.csv"
    evaluate.write_text("\n".join(["filename\tscene_label", *test]) + "\n")

    options = BuildOptions(kind="tau2022", source=source, split_csv=LISTS / "split5.csv")
    build_dataset(options, tmp_path / "d")

    dataset = open_dataset(tmp_path / "d")
    assert dataset.splits["train"] + dataset.splits["val"] == 6980
    assert dataset.splits["test"] == len(test) == 4240
    assert 0.08 < dataset.splits["val"] / 6980 < 0.2
    assert Counter(dataset.split("test").column("device").tolist()) == heard
    assert heard.keys() == {"a", "b", "c", *(f"s{i}" for i in range(1, 7))}
    learned = {
        device
        for name in ("train", "val")
        for device in dataset.split(name).column("device").tolist()
    }
    assert learned == {"a", "b", "c", "s1", "s2", "s3"}
    places = {name: set(dataset.split(name).column("location")) for name in dataset.splits}
    assert not places["train"] & places["val"]
    for name in dataset.splits:
        assert set(dataset.split(name).labels.tolist()) == set(range(10))
