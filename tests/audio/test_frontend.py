"""The front ends against a float64 reference made of numpy's FFT and torchaudio's filter banks."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torchaudio
from numpy.typing import NDArray

import cpprune
from cpprune.audio.augment import sample
from cpprune.audio.config import PRESETS, AugmentConfig, FeaturesConfig, MelSpec
from cpprune.audio.filterbank import bands, filter_bank, frequencies
from cpprune.audio.frontend import (
    LogMel,
    ScaleImage,
    build_features,
    spec_from_json,
    spec_to_json,
)

RATE = 32_000
# window, hop, n_fft, mel bins, frames a second, upper edge in Hz
NUMBERS = {
    "cpjku22_256": (2048, 744, 2048, 256, 44, 15_500.0),
    "passt_128": (800, 320, 1024, 128, 100, 15_500.0),
    "dcase24": (3072, 500, 4096, 256, 65, 16_000.0),
    "cpjku23": (3072, 500, 4096, 256, 64, 15_500.0),
}
KALDI = ["cpjku22_256", "passt_128", "cpjku23"]


def signals() -> NDArray[np.float64]:
    """Noise, tones in noise, silence: [3, 32000]."""
    rng = np.random.default_rng(0)
    noise = rng.uniform(-0.2, 0.2, RATE)
    return np.stack((noise, tones(0.1) + rng.uniform(-0.05, 0.05, RATE), np.zeros(RATE)))


def tones(amplitude: float) -> NDArray[np.float64]:
    seconds = np.arange(RATE) / RATE
    waves = [np.sin(2 * np.pi * hertz * seconds) for hertz in (97.0, 1000.0, 9876.5)]
    return amplitude * np.sum(waves, axis=0)


def mel_bank(preset: str, fmin: float = 0.0, fmax: float | None = None) -> NDArray[np.float64]:
    """Triangles over mel (Kaldi) or over Hz (HTK), in float64."""
    _, _, n_fft, n_mels, _, upper = NUMBERS[preset]
    low, high = (1127 * np.log(1 + hertz / 700) for hertz in (fmin, fmax or upper))
    corners = np.linspace(low, high, n_mels + 2)
    grid = np.arange(n_fft // 2 + 1) * RATE / n_fft
    if preset == "dcase24":
        corners = 700 * (np.exp(corners / 1127) - 1)
    else:
        grid = 1127 * np.log(1 + grid / 700)
    rows = [np.interp(grid, corners[i : i + 3], [0, 1, 0], 0, 0) for i in range(n_mels)]
    bank = np.stack(rows)
    if preset != "dcase24":
        bank[:, -1] = 0
    return bank


def torchaudio_bank(
    preset: str, fmin: float = 0.0, fmax: float | None = None
) -> NDArray[np.float64]:
    _, _, n_fft, n_mels, _, upper = NUMBERS[preset]
    fmax = fmax or upper
    if preset == "dcase24":
        with warnings.catch_warnings():  # 256 bins are more than the lowest frequencies can fill
            warnings.filterwarnings("ignore", "At least one mel filterbank has all zero values")
            bank = torchaudio.functional.melscale_fbanks(n_fft // 2 + 1, fmin, fmax, n_mels, RATE)
        return np.asarray(bank.T.double().numpy())
    bank, _ = torchaudio.compliance.kaldi.get_mel_banks(
        n_mels, n_fft, RATE, fmin, fmax, vtln_low=100.0, vtln_high=-500.0, vtln_warp_factor=1.0
    )
    return np.pad(bank.double().numpy(), ((0, 0), (0, 1)))


def reference(
    preset: str, wave_BT: NDArray[np.float64], bank_FK: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    window, hop, n_fft, *_ = NUMBERS[preset]
    wave = wave_BT
    if preset == "dcase24":
        hann = np.hanning(window + 1)[:-1]
    else:
        wave = wave[:, 1:] - 0.97 * wave[:, :-1]
        hann = np.hanning(window)
    left = (n_fft - window) // 2
    hann = np.pad(hann, (left, n_fft - window - left))
    padded = np.pad(wave, ((0, 0), (n_fft // 2, n_fft // 2)), mode="reflect")
    starts = range(0, padded.shape[1] - n_fft + 1, hop)
    frames = np.stack([padded[:, start : start + n_fft] * hann for start in starts], axis=1)
    power = np.abs(np.fft.rfft(frames)) ** 2
    if bank_FK is None:
        bank_FK = mel_bank(preset)
    log_mel = np.log(power @ bank_FK.T + 1e-5).swapaxes(1, 2)
    return log_mel if preset == "dcase24" else (log_mel + 4.5) / 5


@pytest.mark.parametrize("preset", NUMBERS)
def test_a_preset_is_the_reference(preset: str) -> None:
    _, _, _, mels, frames, _ = NUMBERS[preset]
    features = cpprune.log_mel(preset)
    x = features(torch.from_numpy(signals()).float())
    assert x.dtype == torch.float32
    assert x.shape == (3, 1, mels, frames)
    assert features.output_shape([RATE]) == (1, mels, frames)
    expected = reference(preset, signals().astype(np.float32).astype(np.float64))
    assert expected.shape == (3, mels, frames)
    np.testing.assert_allclose(x[:, 0].double().numpy(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("preset", NUMBERS)
def test_loud_tones_are_as_exact_as_torchs_own_transform(preset: str) -> None:
    # Far below a tone, float32 itself is off by more than 1e-4: no more than torch.stft is.
    window, hop, n_fft, *_ = NUMBERS[preset]
    faint = np.random.default_rng(5).uniform(-5e-4, 5e-4, RATE)
    wave = torch.from_numpy((tones(0.3) + faint)[None]).float()
    expected = reference(preset, wave.double().numpy())
    x = cpprune.log_mel(preset)(wave)[:, 0].numpy()

    emphasised = wave if preset == "dcase24" else wave[:, 1:] - 0.97 * wave[:, :-1]
    hann = torch.hann_window(window, periodic=preset == "dcase24")
    spectrum = torch.stft(emphasised, n_fft, hop, window, hann, return_complex=True)
    bank = torch.from_numpy(mel_bank(preset)).float()
    theirs = torch.log(bank @ (spectrum.real**2 + spectrum.imag**2) + 1e-5)
    theirs = theirs if preset == "dcase24" else (theirs + 4.5) / 5
    limit = np.abs(theirs.numpy() - expected).max()
    assert limit < 2e-3
    assert np.abs(x - expected).max() < 1.5 * limit


@pytest.mark.parametrize("preset", NUMBERS)
def test_silence_is_the_log_of_the_offset(preset: str) -> None:
    x = cpprune.log_mel(preset)(torch.zeros(1, RATE))
    value = np.log(1e-5) if preset == "dcase24" else (np.log(1e-5) + 4.5) / 5
    torch.testing.assert_close(x, torch.full_like(x, value), rtol=0, atol=1e-6)


def test_dcase24_is_torchaudios_mel_spectrogram() -> None:
    wave = torch.from_numpy(signals()).float()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "At least one mel filterbank has all zero values")
        theirs = torchaudio.transforms.MelSpectrogram(
            RATE, n_fft=4096, win_length=3072, hop_length=500, n_mels=256
        )
    expected = torch.log(theirs(wave) + 1e-5).unsqueeze(1)
    torch.testing.assert_close(cpprune.log_mel("dcase24")(wave), expected, rtol=0, atol=5e-4)


@pytest.mark.parametrize("preset", NUMBERS)
@pytest.mark.parametrize("samples", [12_345, 31_999, 32_001, 33_000])
def test_frames_of_other_lengths(preset: str, samples: int) -> None:
    features = cpprune.log_mel(preset)
    wave = torch.from_numpy(np.random.default_rng(samples).uniform(-0.2, 0.2, (1, samples)))
    x = features(wave.float())
    assert tuple(x.shape[1:]) == features.output_shape([samples])
    expected = reference(preset, wave.float().double().numpy())
    np.testing.assert_allclose(x[:, 0].numpy(), expected, rtol=0, atol=1e-4)


def test_no_clips_make_no_spectrograms() -> None:
    # A rank may have none of the last global batch of an epoch.
    for clips in (torch.zeros(0, RATE), torch.zeros(0, RATE, dtype=torch.int16)):
        assert cpprune.log_mel("cpjku22_256")(clips).shape == (0, 1, 256, 44)


@pytest.mark.parametrize("preset", NUMBERS)
def test_int16_is_a_fraction_of_full_scale(preset: str) -> None:
    clips = np.random.default_rng(1).integers(-6000, 6000, (2, RATE), dtype=np.int16)
    clips[0, 100:102] = (-(2**15), 2**15 - 1)
    features = cpprune.log_mel(preset)
    x = features(torch.from_numpy(clips))
    assert torch.equal(x, features(torch.from_numpy(clips / 32768.0).float()))
    np.testing.assert_allclose(x[:, 0].numpy(), reference(preset, clips / 32768.0), atol=1e-4)


@pytest.mark.parametrize("preset", NUMBERS)
def test_the_bank_of_evaluation_is_torchaudios(preset: str) -> None:
    bank = cpprune.log_mel(preset).eval_bank
    assert bank.dtype == torch.float32
    # torchaudio computes its banks in float32.
    np.testing.assert_allclose(bank.numpy(), torchaudio_bank(preset), rtol=0, atol=5e-5)
    np.testing.assert_allclose(bank.numpy(), mel_bank(preset), rtol=0, atol=1e-7)


@pytest.mark.parametrize("preset", KALDI)
def test_the_bank_at_any_edges_is_kaldis(preset: str) -> None:
    rng = np.random.default_rng(2)
    for _ in range(4):
        fmin, fmax = float(rng.integers(10)), float(rng.integers(15_001, 16_001))
        bank = filter_bank(
            PRESETS[preset], torch.tensor([fmin, fmax]), frequencies(PRESETS[preset])
        ).numpy()
        np.testing.assert_allclose(bank, torchaudio_bank(preset, fmin, fmax), rtol=0, atol=5e-5)
        np.testing.assert_allclose(bank, mel_bank(preset, fmin, fmax), rtol=0, atol=1e-7)


@pytest.mark.parametrize("preset", KALDI)
def test_band_edges_change_the_spectrogram_as_the_bank(preset: str) -> None:
    wave = signals().astype(np.float32)
    features = cpprune.log_mel(preset)
    x = features(torch.from_numpy(wave), torch.tensor([7.0, 15_123.0]))
    expected = reference(preset, wave.astype(np.float64), mel_bank(preset, 7.0, 15_123.0))
    np.testing.assert_allclose(x[:, 0].numpy(), expected, rtol=0, atol=1e-4)
    assert not torch.equal(x, features(torch.from_numpy(wave)))


def test_band_edges_are_drawn_from_the_whole_range() -> None:
    edges = []
    for batch in range(2000):
        drawn = sample(
            AugmentConfig(), PRESETS["cpjku22_256"], seed=0, epoch=0, batch=batch, size=1
        )
        assert drawn.band_edges is not None
        edges.append(drawn.band_edges)
    fmin, fmax = np.array(edges).T
    assert sorted(set(fmin.tolist())) == list(range(10))
    assert set(np.unique(fmax)) <= set(range(15_001, 16_001))
    assert fmax.min() < 15_010
    assert fmax.max() > 15_990
    assert abs(fmax.mean() - 15_500.5) < 30


@pytest.mark.parametrize(
    ("preset", "config"),
    [("dcase24", AugmentConfig()), ("cpjku22_256", AugmentConfig(band_jitter=False))],
)
def test_band_edges_stand_still(preset: str, config: AugmentConfig) -> None:
    assert sample(config, PRESETS[preset], seed=0, epoch=0, batch=0, size=1).band_edges is None


def test_autocast_changes_nothing() -> None:
    features = cpprune.log_mel("cpjku22_256")
    wave = torch.from_numpy(signals()).float()
    edges = torch.tensor([3.0, 15_900.0])
    plain = features(wave), features(wave, edges)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = features(wave), features(wave, edges)
    for x, y in zip(plain, mixed, strict=True):
        assert y.dtype == torch.float32
        assert torch.equal(x, y)


def test_a_front_end_adds_nothing_to_a_state_dict() -> None:
    features = LogMel(MelSpec())
    assert not features.state_dict()
    assert not list(features.parameters())


def test_images_are_scaled() -> None:
    features = build_features(None)
    assert isinstance(features, ScaleImage)
    image = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    expected = torch.arange(256, dtype=torch.float64).view(1, 1, 16, 16) / 255
    torch.testing.assert_close(features(image).double(), expected, rtol=0, atol=1e-7)
    assert torch.equal(features(features(image)), features(image))


@pytest.mark.parametrize("preset", NUMBERS)
def test_a_spec_survives_json(preset: str) -> None:
    assert spec_from_json(spec_to_json(PRESETS[preset])) == PRESETS[preset]
    assert spec_from_json(spec_to_json(None)) is None


def test_what_is_set_takes_the_place_of_the_presets_number() -> None:
    assert FeaturesConfig(preset="image").spec() is None
    for preset in NUMBERS:
        assert FeaturesConfig(preset=preset).spec() == PRESETS[preset]
    spec = FeaturesConfig(preset="passt_128", n_mels=64, fmax_jitter=0).spec()
    assert spec == MelSpec(window=800, hop=320, n_fft=1024, n_mels=64, fmax_jitter=0)
    assert spec.fmax == 16_000


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"preset": "seed"},
            "features.preset='seed': choose one of cpjku22_256, passt_128, dcase24",
        ),
        ({"hop": 0}, "features.hop=0: must be at least 1"),
        ({"n_mels": -1}, "features.n_mels=-1: must be at least 1"),
        ({"sample_rate": 0}, "features.sample_rate=0: must be at least 1"),
        ({"window": 4096}, "features.n_fft=2048: must be even and at least .*window=4096"),
        ({"n_fft": 2049}, "features.n_fft=2049: must be even"),
        ({"fmax_jitter": -1}, "features.fmax_jitter=-1: .*at least 0"),
        ({"fmax_jitter": RATE}, "features.fmax_jitter=32000: .*less than"),
        ({"fmin_jitter": -1}, "features.fmin_jitter=-1: .*at least 0"),
        # The upper edge would be drawn below 0 Hz, the lower one above the upper one.
        ({"fmax_jitter": 20_000}, "features.fmax_jitter=20000"),
        ({"fmin_jitter": 16_000}, "features.fmin_jitter=16000"),
    ],
)
def test_a_wrong_number_is_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeaturesConfig(**wrong)


def test_an_unknown_preset_is_named() -> None:
    with pytest.raises(ValueError, match="preset 'seed': choose one of cpjku22_256, passt_128"):
        cpprune.log_mel("seed")


@pytest.mark.parametrize(
    "spec",
    [
        *PRESETS.values(),
        MelSpec(n_mels=1, fmin_jitter=300, fmax_jitter=4000),
        MelSpec(n_mels=17, window=800, hop=320, n_fft=1024, fmin_jitter=0, fmax_jitter=1),
        MelSpec(mel="htk", fmin_jitter=500, fmax_jitter=8000, n_mels=40),
    ],
    ids=str,
)
def test_the_parts_of_a_bank_hold_all_of_it(spec):
    rng = np.random.default_rng(3)
    lows = [0, max(spec.fmin_jitter - 1, 0)]
    highs = [RATE / 2, RATE / 2 - max(spec.fmax_jitter - 1, 0)]
    ends = [(low, high) for low in lows for high in highs]
    ends += [(int(rng.integers(lows[1] + 1)), rng.uniform(highs[1], highs[0])) for _ in range(20)]
    for low, high in [*ends, (spec.fmin, spec.fmax)]:
        whole = filter_bank(spec, torch.tensor([float(low), float(high)]), frequencies(spec))
        rest = whole.clone()
        for f, k in bands(spec):
            rest[f, k] = 0
        assert not rest.any()
    rows = [i for f, _ in bands(spec) for i in range(spec.n_mels)[f]]
    assert rows == list(range(spec.n_mels))


def test_most_of_the_products_are_left_out():
    spec = PRESETS["cpjku22_256"]
    done = sum(len(range(256)[f]) * len(range(1025)[k]) for f, k in bands(spec))
    assert done < 256 * 1025 / 12


@pytest.mark.parametrize("preset", PRESETS)
def test_a_clip_has_at_least_so_many_samples(preset):
    features = cpprune.log_mel(preset)
    fewest = features.min_samples
    assert features(torch.zeros(1, fewest)).shape[1:] == features.output_shape([fewest])
    with pytest.raises(ValueError, match=f"must be .* at least {fewest} samples"):
        features(torch.zeros(1, fewest - 1))


def test_images_have_no_spec_and_keep_their_shape():
    features = ScaleImage()
    assert features.spec is features.sample_rate is None
    assert features.output_shape([1, 28, 30]) == (1, 28, 30)
    assert features.compiled() is features
