"""Files may be called by anything but a slash and a NUL: no name is lost, or ends a build."""

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile

from shards import UserError, open_dataset
from shards.build.dataset import build_dataset
from shards.build.plan import BuildOptions, make_plan
from shards.sources.names import printable
from shards.verify import verify

Make = Callable[..., Path]

STRANGE = [
    b"caf\xe9.wav",  # Latin-1, out of an old archive
    "café.wav".encode(),
    rb"caf\xe9.wav",  # what the first is shown as
    b"two\nlines.wav",
    b"tab\tbell\x07.wav",
    "para\u2029graph.wav".encode(),
    b"\xff\xfe.wav",
    b"back\\slash.wav",
    b"%s{}%d.wav",
    b"-rf.wav",
    b"'quotes\".wav",
    "夜の鳥.wav".encode(),
    b"n" * 251 + b".wav",
    b"\xe9" * 251 + b".wav",
]


def test_names_are_one_line_of_unicode_and_never_become_one() -> None:
    names = [os.fsdecode(name) for name in STRANGE]
    shown = [printable(name) for name in names]
    assert len(set(shown)) == len(names)
    assert all(name.encode() and len(name.splitlines()) == 1 for name in shown)
    assert shown[:2] == [r"caf\xe9.wav", "café.wav"]
    assert printable("night/夜 1.wav") == "night/夜 1.wav"


@pytest.fixture
def strange(tmp_path: Path, make_audio: Make) -> Path:
    folder = tmp_path / "s" / os.fsdecode(b"ow\xe9l")
    folder.mkdir(parents=True)
    for number, name in enumerate(STRANGE):
        plain = make_audio(tmp_path / "plain" / f"{number}.wav", seconds=1 + number % 2)
        (tmp_path / "s" / "wren").mkdir(exist_ok=True)
        make_audio(tmp_path / "s" / "wren" / f"{number}.wav")
        plain.rename(folder / os.fsdecode(name))
    return tmp_path / "s"


def test_a_dataset_of_strange_names(strange: Path, tmp_path: Path) -> None:
    options = BuildOptions(kind="folder", source=strange, sample_rate=8000)
    out = tmp_path / "d"
    manifest = build_dataset(options, out, workers=2)
    assert manifest.classes == (r"ow\xe9l", "wren")
    assert verify(out) == []
    dataset = open_dataset(out)
    recordings = {
        str(name) for split in dataset.splits for name in dataset.split(split).column("recording")
    }
    shown = {rf"ow\xe9l/{printable(os.fsdecode(name))}" for name in STRANGE}
    assert {name for name in recordings if not name.startswith("wren")} == shown
    for shard in manifest.shards:
        with tarfile.open(out / shard.name) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    data = tar.extractfile(member)
                    assert data is not None
                    assert json.loads(data.read().decode())["class"] in manifest.classes
    # Each name brought its own samples.
    split = dataset.split("train")
    waves = split.fetch(range(len(split)))
    for recording, key, wave in zip(split.column("recording"), split.keys, waves, strict=True):
        name = {f"ow\\xe9l/{printable(os.fsdecode(n))}": n for n in STRANGE}.get(str(recording))
        if name is not None:
            raw = Path(os.fsdecode(os.fsencode(strange) + b"/ow\xe9l/" + name)).read_bytes()
            whole = soundfile.read(io.BytesIO(raw), dtype="int16")[0]
            start = 8000 * int(key[-1]) if len(whole) > 8000 else 0
            assert (wave == whole[start : start + 8000]).all()


def test_bad_files_of_strange_names(strange: Path, tmp_path: Path) -> None:
    folder = os.fsencode(strange) + b"/ow\xe9l/"
    for name in (b"br\xf6ken.wav", b"br\noken.wav"):
        Path(os.fsdecode(folder + name)).write_text("no audio")
    options = BuildOptions(kind="folder", source=strange, sample_rate=8000)
    with pytest.raises(UserError, match=r"ow\\xe9l/br\\x0aoken\.wav in .* is bad") as caught:
        make_plan(options, 1)
    assert len(str(caught.value).splitlines()) == 1
    skipping = BuildOptions(kind="folder", source=strange, sample_rate=8000, on_error="skip")
    build_dataset(skipping, tmp_path / "d", workers=1)
    lines = (tmp_path / "d" / "rejected.csv").read_text().splitlines()
    assert [line.partition(",")[0] for line in lines] == [
        "filename",
        r"ow\xe9l/br\x0aoken.wav",
        r"ow\xe9l/br\xf6ken.wav",
    ]


@pytest.mark.parametrize("settings", [{"LC_ALL": "C"}, {"PYTHONIOENCODING": "ascii"}])
def test_names_on_terminals_that_show_ascii_alone(
    settings: dict[str, str], strange: Path, tmp_path: Path
) -> None:
    environment = {**os.environ, **settings}
    command = [sys.executable, "-m", "shards"]
    for arguments in (
        ["build", "folder", "--source", strange, "--out", tmp_path / "d", "--workers", "1"],
        ["info", tmp_path / "d"],
        ["build", "folder", "--source", strange, "--out", tmp_path / "e", "--dry-run"],
    ):
        done = subprocess.run(
            [*command, *arguments], env=environment, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["a\0b.wav", "x" * 5000 + ".wav", "..", "s"])
def test_names_in_a_table_that_name_no_file(name: str, tmp_path: Path, make_audio: Make) -> None:
    make_audio(tmp_path / "a.wav")
    (tmp_path / "s").mkdir()
    (tmp_path / "t.csv").write_text(f"filename,label\na.wav,owl\n{name},owl\n")
    options = BuildOptions(kind="table", source=tmp_path / "t.csv", sample_rate=8000)
    with pytest.raises(UserError, match=r"no such file|is no file name|not a regular file"):
        make_plan(options, 1)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('filename,label\n"a.wav,owl\nb.wav,owl\n', "line 3: unexpected end of data"),
        ("filename,label\na, b.wav,owl\n", r"line 2: 3 cells, but the header names 2.*quotes"),
        ("filename,label,label\na.wav,owl,wren\n", "several columns 'label'"),
        ("", "is empty"),
        ("filename,label\n" + "x" * 200_000 + ",owl\n", "line 2: field larger than"),
    ],
)
def test_tables_that_cannot_be_read(text: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UserError, match=why):
        make_plan(BuildOptions(kind="table", source=tmp_path / "t.csv"), 1)


def test_a_quoted_name_may_hold_anything(tmp_path: Path, make_audio: Make) -> None:
    for name in ("a, b.wav", "two\nlines.wav", "next\x85line.wav"):
        make_audio(tmp_path / name)
    (tmp_path / "t.csv").write_text(
        'filename,label\n"a, b.wav",owl\n"two\nlines.wav",owl\nnext\x85line.wav,owl\n'
    )
    made = make_plan(BuildOptions(kind="table", source=tmp_path / "t.csv", sample_rate=8000), 1)
    names = {clip.name for _, _, clips in made.shards for clip in clips}
    assert names == {"a, b.wav", r"two\x0alines.wav", r"next\u0085line.wav"}


def test_what_no_dataset_can_hold_is_refused_before_the_work(make_audio, tmp_path):
    make_audio(tmp_path / "s/owl/a.wav")
    (tmp_path / "t.csv").write_text(f"filename,label,caption\ns/owl/a.wav,owl,{'x' * 5000}\n")
    table = BuildOptions(
        kind="table", source=tmp_path / "t.csv", group_columns=("caption",), sample_rate=8000
    )
    with pytest.raises(UserError, match=r"line 2: caption has more than 4,096 letters"):
        build_dataset(table, tmp_path / "out")
    with pytest.raises(UserError, match=r"--seconds 3000 at --sample-rate 32000"):
        BuildOptions(kind="folder", source=tmp_path / "s", seconds=3000)
    inside = BuildOptions(kind="folder", source=tmp_path / "s", sample_rate=8000)
    with pytest.raises(UserError, match=r"lies in --source"):
        build_dataset(inside, tmp_path / "s/data")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "s/data").exists()
