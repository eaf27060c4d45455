"""benchmarks/voices.py on made-up recordings: its dataset, noise, settings and tables."""

import importlib
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

import shards
from cpprune.cli.main import main
from cpprune.config import build_parser, parse

REPOSITORY = Path(__file__).parents[2]
RATE = 44100
WORDS = [first + second for first in "abcdefgh" for second in "abcdefgh"]


@pytest.fixture(scope="module")
def scripts():
    """The modules voice_clips and voices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(REPOSITORY / "benchmarks")
        yield importlib.import_module("voice_clips"), importlib.import_module("voices")


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    """Packages: two voices with enough words, one with too few, and what is no spoken word."""
    folder = tmp_path_factory.mktemp("audio")
    rng = np.random.default_rng(0)

    def write(name, seconds=0.05):
        path = folder / "usr/share" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, 0.1 * rng.standard_normal(int(8000 * seconds)), 8000)

    for number in range(64):
        write(f"tuxpaint/stamps/animals/the_{WORDS[number]}_{number}_desc_xx.ogg")
        write(f"klettres/yy/syllab/The{WORDS[number].capitalize()}.wav")
    for number in range(10):
        write(f"ktuberling/sounds/zz/word{number}.ogg")
    stamps = folder / "usr/share/tuxpaint/stamps"
    write("tuxpaint/stamps/animals/the_aa.ogg")  # the animal's own sound
    write(
        "tuxpaint/stamps/zoo/twin_desc_yy.ogg"
    )  # of too small a voice, but it says what is the same
    for twin in ("zoo/twin_desc_xx.ogg", "zoo/twin_desc_yy.ogg"):
        shutil.copy(stamps / "animals/the_ab_1_desc_xx.ogg", stamps / twin)
    shutil.copy(stamps / "animals/the_ab_1_desc_xx.ogg", stamps / "zoo/the_ac_desc_xx.ogg")
    return folder


def test_a_voice_is_a_language_of_a_package_with_enough_recordings(scripts, audio):
    clips, _ = scripts
    found = clips.recordings(audio)
    assert {voice: len(of) for voice, of in found.items()} == {"klettres-yy": 64, "tuxpaint-xx": 64}
    # "ab" and "ac" are one word: the same file has both names.
    expected = {f"the{word}" for word in WORDS} - {"theac"}
    assert {one.word for one in found["tuxpaint-xx"]} == expected
    assert {one.word for one in found["klettres-yy"]} == expected
    assert {one.path.name for one in found["tuxpaint-xx"] if one.word == "theab"} == {
        "the_ab_1_desc_xx.ogg",
        "the_ac_2_desc_xx.ogg",
    }


def test_numbers_belong_to_a_word_only_where_there_is_nothing_else(scripts):
    clips, _ = scripts
    assert clips._word("Tow-Truck_02") == "towtruck"
    assert clips._word("7") == "7"


def test_the_same_words_are_chosen_of_every_voice(scripts, audio):
    clips, _ = scripts
    chosen = clips.choose(clips.recordings(audio), 2, 20)
    words = {
        voice: {one.word for one in chosen if one.voice == voice}
        for voice in ("klettres-yy", "tuxpaint-xx")
    }
    assert len(words["klettres-yy"]) == 20
    assert words["klettres-yy"] == words["tuxpaint-xx"]
    assert len({clips.split_of(word) for word in words["klettres-yy"]}) == 3


def test_the_loudest_second_is_heard(scripts):
    clips, _ = scripts
    wave = np.zeros(3 * RATE, np.float32)
    wave[RATE // 2 : RATE] = 0.1
    wave[2 * RATE - 100 : 3 * RATE - 100] = 1.0
    assert (clips.loudest_second(wave) == 1).all()
    short = clips.loudest_second(np.ones(10, np.float32))
    assert len(short) == RATE
    assert short.sum() == 10


@pytest.mark.parametrize("snr_db", [-3.0, 12.0])
def test_noise_has_its_level_and_falls_by_four_decibels_an_octave(scripts, snr_db):
    clips, _ = scripts
    wave = np.sin(np.arange(RATE) * 0.1).astype(np.float32)
    noise = clips.add_noise(wave, snr_db, np.random.default_rng(1)).astype(np.float64) - wave
    ratio = np.mean(wave.astype(np.float64) ** 2) / np.mean(noise**2)
    assert 10 * np.log10(ratio) == pytest.approx(snr_db, abs=1e-3)
    power = np.abs(np.fft.rfft(noise)) ** 2
    low, high = power[1000:2000].mean(), power[8000:16000].mean()  # three octaves apart
    assert 10 * np.log10(low / high) == pytest.approx(12, abs=1)


@pytest.fixture(scope="module")
def bench(scripts, audio, tmp_path_factory):
    """The script's folder with its dataset, after a call that trains nothing."""
    _, voices = scripts
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "sys.argv",
            ["voices.py", "--out", str(folder), "--audio", str(audio), "--voices", "2", "--only"],
        )
        patch.setattr(voices, "cpprune", command)
        voices.main()
    return folder


def command(*words):
    """Run a command in this process; the script starts one of its own."""
    assert not main([*map(str, words), "--json"])


@pytest.mark.slow
def test_no_word_is_in_two_splits_and_s4_to_s6_are_in_the_test_split_alone(bench):
    rows = [line.split("\t") for line in (bench / "clips.tsv").read_text().splitlines()[1:]]
    splits = {word: {row[2] for row in rows if row[4] == word} for word in {row[4] for row in rows}}
    assert all(len(found) == 1 for found in splits.values())
    assert {row[2] for row in rows if row[3] in ("s4", "s5", "s6")} == {"test"}
    dataset = shards.open_dataset(bench / "dataset")
    assert dataset.classes == ("klettres-yy", "tuxpaint-xx")
    assert {name: len(dataset.split(name)) for name in dataset.splits} == Counter(
        r[2] for r in rows
    )
    test = dataset.split("test").column("device")
    assert np.isin(test, ["s4", "s5", "s6"]).mean() == 0.5


def test_a_device_filters_its_impulse_response_from_what_a_hears(bench):
    from shards.sources.scenes import device

    response, rate = soundfile.read(bench / "responses/s2.wav")
    assert rate == RATE
    found = np.abs(np.fft.rfft(response, RATE))[200:12000]
    expected = (device(4).response / device(0).response)[200:12000]
    assert np.abs(20 * np.log10(found / expected)).max() < 1.5


def test_another_benchmark_in_the_same_folder_is_refused(scripts, bench, audio, monkeypatch):
    _, voices = scripts
    words = [
        "voices.py",
        "--out",
        str(bench),
        "--audio",
        str(audio),
        "--voices",
        "2",
        "--snr",
        "20",
    ]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit, match="give another --out"):
        voices.main()


def result(voices, variant, seed, **figures):
    common = {"model": "m", "parameters": 1000, "macs": 2000, "val": 0.5, "accuracy": 0.5}
    common |= {"log_loss": 1.0, "seen": 0.5, "unseen": 0.4}
    return voices.Result(variant=variant, seed=seed, **{**common, **figures})


def test_differences_are_paired_by_seed_and_corrected_in_their_column(scripts, capsys):
    from scipy import stats

    _, voices = scripts
    seen = {"small": [0.5, 0.55, 0.6], "big": [0.7, 0.72, 0.81], "control": [0.52, 0.56, 0.66]}
    results = [
        result(voices, name, seed, seen=value)
        for name, values in seen.items()
        for seed, value in reversed(list(enumerate(values)))
    ]
    voices.print_pairs(results)
    lines = {
        line.split(" | ")[0]: line.split(" | ")[1:3]
        for line in capsys.readouterr().out.splitlines()
    }
    p = sorted(stats.ttest_rel(seen[name], seen["small"]).pvalue for name in ("big", "control"))
    assert lines["| big − small"] == ["+19.333 ± 2.082", f"{2 * p[0]:.3f}"]
    assert lines["| control − small"] == ["+3.000 ± 2.646", f"{max(2 * p[0], p[1]):.3f}"]


def test_the_best_is_chosen_by_validation_among_the_small(scripts):
    _, voices = scripts
    results = [result(voices, name, seed, val=0.5) for name in voices.VARIANTS for seed in range(2)]
    results += [result(voices, "big", 2, val=0.99, parameters=9000)]
    results += [result(voices, "pruned", 2, val=0.6), result(voices, "control", 2, accuracy=0.99)]
    assert voices.best_small(results) == "pruned"


def test_kept_results_are_not_measured_again(scripts, tmp_path, monkeypatch):
    _, voices = scripts
    bench = voices.Bench(out=tmp_path, epochs=3, teachers=2, mels=64, batch=8, precision="no")
    first = result(voices, "control + teacher", 1, accuracy=0.25)
    assert voices.keep(bench, bench.run("control + teacher", 1), first) == first
    monkeypatch.setattr(voices, "cpprune", None)
    assert voices.train(bench, "control + teacher", 1) == first
    words = bench.settings("control + teacher", 1)
    assert words[words.index("--train.epochs") + 1] == 6
    teachers = json.loads(words[words.index("--distill.teachers") + 1])
    assert teachers == [str(tmp_path / f"big-as-a-teacher-{seed}/model") for seed in range(2)]


def test_the_settings_of_every_variant_are_those_of_cpprune_train(scripts, tmp_path):
    _, voices = scripts
    bench = voices.Bench(out=tmp_path, epochs=12, teachers=2, mels=64, batch=8, precision="no")
    for name, variant in voices.VARIANTS.items():
        words = ["--run", "r", "--data.path", "d", *map(str, bench.settings(name, 1))]
        config = parse(build_parser("cpprune train", "", {}), words, []).config
        assert config.train.epochs == 12 * variant.times
        assert (config.model.channels_multiplier == 1) == variant.small
        assert config.prune.prunes == bool(variant.pruned)
        assert (config.prune.start_epoch > 0) == (variant.pruned == "early")
        assert len(config.distill.teachers) == 2 * bool(variant.taught)
        assert (config.augment.impulse_responses is not None) == variant.responses
