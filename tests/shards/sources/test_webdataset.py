import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import webdataset

from shards import UserError, open_dataset
from shards.audio.load import load
from shards.build.dataset import build_dataset
from shards.build.plan import BuildOptions, Plan, make_plan
from shards.manifest import Manifest
from shards.verify import verify

RATE = 8000
FORMATS = {"wav": "WAV", "flac": "FLAC", "mp3": "MP3", "ogg": "OGG", "opus": "OGG"}
Sample = dict[str, Any]


def audio(number: int, ending: str = "flac", seconds: float = 1.0) -> bytes:
    rate = 16000 if ending in ("mp3", "opus") else RATE
    wave = np.random.default_rng(number).uniform(-0.5, 0.5, round(seconds * rate))
    buffer = io.BytesIO()
    subtype = "OPUS" if ending == "opus" else None
    soundfile.write(buffer, wave, rate, format=FORMATS[ending], subtype=subtype)
    return buffer.getvalue()


def write(path: Path, *samples: Sample) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path), mtime=0) as writer:
        for sample in samples:
            writer.write(sample)
    return path


def options(source: Path, **more: object) -> BuildOptions:
    given = {"sample_rate": RATE, **more}
    return BuildOptions(kind="webdataset", source=source, **given)  # type: ignore[arg-type]


def plan(source: Path, **more: object) -> Plan:
    return make_plan(options(source, **more), 1)


def build(source: Path, out: Path, **more: object) -> Manifest:
    return build_dataset(options(source, **more), out, workers=1)


def scenes(first: int, count: int, ending: str = "flac", **more: object) -> list[Sample]:
    return [
        {
            "__key__": f"clip{number:04d}",
            ending: audio(number, ending),
            "json": {"scene": ("bus", "park")[number % 2], "device": "abc"[number % 3], **more},
        }
        for number in range(first, first + count)
    ]


def test_formats_and_bytes(tmp_path: Path) -> None:
    for number, ending in enumerate(FORMATS):
        write(tmp_path / "s" / f"x-{number:06d}.tar", *scenes(10 * number, 10, ending))
    pattern = tmp_path / "s" / "x-{000000..000004}.tar"
    manifest = build(pattern, tmp_path / "d", group_columns=("device",), shard_size=9)
    assert manifest.classes == ("bus", "park")
    assert manifest.groups == ("device",)
    assert manifest.index["rows"] == 50
    assert verify(tmp_path / "d") == []
    same = options(pattern.parent, group_columns=("device",), shard_size=9)
    again = build_dataset(same, tmp_path / "elsewhere" / "e", workers=2)
    assert again.sha256 == manifest.sha256
    dataset = open_dataset(tmp_path / "d")
    for name in dataset.splits:
        split = dataset.split(name)
        clips = split.fetch(range(len(split)))
        for place, key in enumerate(split.keys):
            tar, _, clip = key.partition("_tar_clip")
            ending = list(FORMATS)[int(tar[-1])]
            file = tmp_path / f"alone.{ending}"
            file.write_bytes(audio(int(clip), ending))
            assert (clips[place] == load(file, RATE).samples[:RATE]).all()
            assert dataset.classes[split.labels[place]] == ("bus", "park")[int(clip) % 2]
            assert split.column("device")[place] == "abc"[int(clip) % 3]


def test_our_own_shards_are_a_source(tau_dataset: Path, tmp_path: Path) -> None:
    groups = ("device", "city", "location", "recording")
    manifest = build(tau_dataset, tmp_path / "d", sample_rate=32000, group_columns=groups)
    before = open_dataset(tau_dataset)
    after = open_dataset(tmp_path / "d")
    # No file has all ten classes where there are few clips, so they are those that occur.
    assert set(manifest.classes) == set(before.classes)
    for name in before.splits:
        old, new = before.split(name), after.split(name)
        place = {key.rpartition("_tar_")[2]: row for row, key in enumerate(new.keys)}
        rows = [place[key] for key in old.keys]
        assert (new.fetch(rows) == old.fetch(range(len(old)))).all()
        for column in groups:
            assert (new.column(column)[rows] == old.column(column)).all()


@pytest.mark.parametrize(
    ("sample", "column", "label"),
    [
        ({"cls": 3, "json": {"label": 4}}, None, "3"),
        ({"cls": "bus\n"}, None, "bus"),
        ({"json": {"label": 4, "scene": "park"}}, None, "park"),
        ({"json": {"label": 4}}, None, "4"),
        ({"__key__": "tram/lyon/7"}, None, "tram"),
        ({"__key__": "tram-lyon-7"}, "__key__", "tram"),
        ({"__key__": "tram/lyon-7", "cls": 3}, "__key__", "tram"),
        ({"cls": "bus", "json": {"event": "bell"}}, "event", "bell"),
        ({"cls": "bus", "json": {"label": "bell"}}, "cls", "bus"),
        ({"json": {"loud": True}}, "loud", "true"),
    ],
)
def test_where_the_label_comes_from(
    tmp_path: Path, sample: Sample, column: str | None, label: str
) -> None:
    tar = write(tmp_path / "x.tar", {"__key__": "a", "wav": audio(1, "wav"), **sample})
    more = {} if column is None else {"label_column": column}
    assert plan(tar, **more).source.classes == (label,)


def test_numbers_are_sorted_as_numbers(tmp_path: Path) -> None:
    samples = [{"__key__": f"k{i}", "wav": audio(i, "wav"), "cls": i} for i in range(12)]
    assert plan(write(tmp_path / "x.tar", *samples)).source.classes == tuple(map(str, range(12)))


def of_split(made: Plan) -> dict[str, int]:
    return Counter(split for _, split, clips in made.shards for _ in clips)


def test_splits(tmp_path: Path) -> None:
    for place, (split, count) in enumerate({"train": 8, "valid": 4, "test": 2}.items()):
        write(tmp_path / "a" / split / "00.tar", *scenes(20 * place, count))
        write(tmp_path / "b" / f"{split}-00.tar", *scenes(20 * place, count))
        write(tmp_path / "c" / f"{place}.tar", *scenes(20 * place, count, split=split))
    expected = {"train": 8, "val": 4, "test": 2}
    assert of_split(plan(tmp_path / "a")) == expected
    assert of_split(plan(tmp_path / "b" / "{train,valid,test}-00.tar")) == expected
    assert of_split(plan(tmp_path / "c" / "{0..2}.tar")) == expected
    assert of_split(plan(Path(f"{tmp_path}/c/0.tar::{tmp_path}/c/1.tar"))) == {"train": 8, "val": 4}
    drawn = plan(tmp_path / "b" / "train-00.tar")
    assert any("were drawn" in note for note in drawn.remarks.notes)
    folds = plan(tmp_path / "c", split_column="device", folds=(("test", "c"), ("val", "b")))
    assert set(of_split(folds)) == {"train", "val", "test"}


def test_long_recordings_and_copies(tmp_path: Path) -> None:
    long = [
        {"__key__": f"{name}/{i}", "flac": audio(10 * i + k, seconds=2.6 + i)}
        for k, name in enumerate(("owl", "wren"))
        for i in range(6)
    ]
    twin = {"__key__": "wren/twin", "flac": long[0]["flac"]}
    tar = write(tmp_path / "x.tar", *long, twin)
    manifest = build(tar, tmp_path / "d")
    assert manifest.index["rows"] == 2 * sum((3, 4, 5, 6, 7, 8)) + 3
    assert manifest.source["audit"]["copies"] == 1
    assert verify(tmp_path / "d") == []


GOOD = {"__key__": "bus/good", "wav": audio(1, "wav")}


def _members(path: Path, *members: tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


WAV = audio(1, "wav")


@pytest.mark.parametrize(
    ("members", "name", "reason"),
    [
        ([("a.wav", WAV)], "x.tar/a", "it has no label: no .cls"),
        ([("a.wav", WAV), ("a.cls", b"\xff")], "x.tar/a", "its .cls is not UTF-8 text"),
        ([("a.wav", WAV), ("a.json", b"{")], "x.tar/a", "its .json is not valid JSON"),
        ([("a.wav", WAV), ("a.json", b"[" * 10**5)], "x.tar/a", "its .json is nested"),
        ([("a.wav", WAV), ("a.json", b"[1]")], "x.tar/a", "its .json expected"),
        ([("a.wav", WAV), ("a.json", b'{"class": [1]}')], "x.tar/a", "'class' in its .json"),
        ([("a.wav", WAV), ("a.json", bytes(1 << 21))], "x.tar/a", "its .json has 2,097,152 bytes"),
        ([("b/a.wav", WAV), ("b/a.flac", WAV)], "x.tar/b/a", "several audio files: flac, wav"),
        ([("b/a.wav", WAV), ("b/a.wav", WAV)], "x.tar/b/a.wav", "occurs twice in the sample"),
        (
            [("b/a.wav", WAV), ("b/c.wav", audio(2, "wav")), ("b/a.wav", WAV)],
            "x.tar/b/a",
            "its key occurs twice in the tar",
        ),
        ([("b/a.wav", WAV[:4000])], "x.tar/b/a.wav", "cut short"),
        ([("b/a.flac", b"fLaC no audio")], "x.tar/b/a.flac", "not readable as audio"),
        ([("b/a.wav", b"")], "x.tar/b/a.wav", "the file is empty"),
    ],
)
def test_bad_samples(
    tmp_path: Path, members: list[tuple[str, bytes]], name: str, reason: str
) -> None:
    tar = _members(tmp_path / "x.tar", ("bus/good.wav", audio(9, "wav")), *members)
    with pytest.raises(UserError) as caught:
        plan(tar)
    assert f"{name} in {tar} is bad: " in str(caught.value)
    assert reason in str(caught.value)
    manifest = build(tar, tmp_path / "d", on_error="skip")
    rejected = (tmp_path / "d" / "rejected.csv").read_text()
    assert f"{name}," in rejected
    assert reason.partition(",")[0] in rejected
    assert manifest.rejected is not None
    audit = manifest.source["audit"]
    assert audit["found"] - audit["used"] == sum(audit["left_aside"].values()) == 1
    assert verify(tmp_path / "d") == []


def test_what_is_not_audio_is_counted(tmp_path: Path) -> None:
    tar = _members(
        tmp_path / "x.tar",
        *(("bus/a.wav", WAV), ("bus/a.png", b"p"), ("bus/a.m4a", b"m"), ("bus/b.txt", b"t")),
        *(("README", b"r"), ("__meta__/x.wav", WAV), ("bus/c.cls", b"3")),
    )
    aside = plan(tar).source.aside
    assert aside == {
        "not audio (.png)": 1,
        "not read from tars (.m4a)": 1,
        "not audio (.txt)": 1,
        "samples without audio": 2,
        "without a key and an ending in a tar": 1,
    }


def _flipped(data: bytes) -> bytes:
    # The header of the second member: behind the first header and 16,044 bytes in blocks of 512.
    at = 512 + -(-len(WAV) // 512) * 512
    return data[: at + 5] + b"\xff" + data[at + 6 :]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: data[:-10240], "no header and no end of the archive"),
        (lambda data: data[: len(data) // 2], "cut short|no header|unexpected end"),
        (_flipped, "no header and no end of the archive"),
        (lambda data: b"\x1f\x8b" + data, "it is compressed; unpack it"),
        (lambda data: b"", "damaged"),
        (lambda data: b"no tar" * 1000, "damaged"),
    ],
)
def test_damaged_tars(tmp_path: Path, damage: Callable[[bytes], bytes], reason: str) -> None:
    samples = [{"__key__": f"bus/{i}", "wav": WAV if i == 0 else audio(i, "wav")} for i in range(9)]
    tar = write(tmp_path / "bad.tar", *samples)
    data = tar.read_bytes().rstrip(b"\0")
    tar.write_bytes(damage(data + bytes(-len(data) % 512 + 10240)))
    write(tmp_path / "good.tar", GOOD)
    with pytest.raises(UserError, match=rf"bad\.tar in .* is bad: .*({reason})"):
        plan(tmp_path / "{bad,good}.tar")
    left = plan(tmp_path / "{bad,good}.tar", on_error="skip")
    assert [bad.filename for bad in left.bad] == ["bad.tar"]


@pytest.mark.parametrize("size", ["-1", "99999999999", str(1 << 45)])
def test_forged_sizes_fill_no_memory(tmp_path: Path, size: str) -> None:
    tar = tmp_path / "x.tar"
    with tarfile.open(tar, "w", format=tarfile.PAX_FORMAT) as file:
        info = tarfile.TarInfo("bus/a.wav")
        info.pax_headers = {"size": size}
        file.addfile(info, io.BytesIO())
    with pytest.raises(UserError, match=r"x\.tar: damaged"):
        plan(tar)


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
def test_a_huge_header_is_not_read(tmp_path: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, 1 << 36
    tar = tmp_path / "x.tar"
    with tar.open("wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate(1 << 37)
    with pytest.raises(UserError, match=r"x\.tar: damaged: a header of \d+ bytes"):
        plan(tar)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("x-{0..2}.tar", r"x-0\.tar does not exist"),
        ("x-{0..999999999999}.tar", "names more than 100,000 tars"),
        ("x-{0..999}{0..999}.tar", "names more than 100,000 tars"),
        ("x-{0..2.tar", "braces cannot be expanded"),
        (".", r"has no \.tar files"),
    ],
)
def test_patterns(tmp_path: Path, pattern: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan(tmp_path / pattern)


def test_columns_that_are_missing(tmp_path: Path) -> None:
    tar = write(tmp_path / "x.tar", *scenes(0, 4))
    with pytest.raises(UserError, match="no sample has 'city' in its JSON"):
        plan(tar, group_columns=("city",))
    with pytest.raises(UserError, match="'event' is missing or blank"):
        plan(tar, label_column="event")
    with pytest.raises(UserError, match=r"--group-columns: 'key' is a name"):
        plan(tar, group_columns=("key",))
    with pytest.raises(UserError, match="--layout is for folder, not for webdataset"):
        plan(tar, layout="classes")


def test_a_clip_that_changes_its_label_changes_the_dataset(tmp_path: Path) -> None:
    tar = write(tmp_path / "x.tar", *scenes(0, 4))
    before = plan(tar).sha256
    samples = scenes(0, 4)
    samples[0]["json"] = json.loads(json.dumps({**samples[0]["json"], "scene": "park"}))
    write(tar, *samples)
    assert plan(tar).sha256 != before
