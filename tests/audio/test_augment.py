"""Augmentation against closed forms in float64, and draws that depend on nothing but their names."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import cpprune
from cpprune.audio.augment import (
    NOTHING_SAMPLED,
    augmented,
    freq_mixstyle,
    mask_axis,
    mixup,
    roll_waves,
    sample,
)
from cpprune.audio.config import PRESETS, AugmentConfig
from cpprune.audio.frontend import ScaleImage
from shards.order import rank_slice

SPEC = PRESETS["passt_128"]
EVERYTHING = AugmentConfig(
    mixstyle_p=1.0, mixup_alpha=0.4, roll=10_000, freq_mask=48, time_mask=30, band_jitter=True
)


def all_arrays(draws: object) -> list[NDArray[Any]]:
    """Every array of some draws, in order; the tuples taken apart."""
    arrays: list[NDArray[Any]] = []
    for value in astuple(draws):  # type: ignore[call-overload]
        arrays += list(value) if isinstance(value, tuple) else [] if value is None else [value]
    return arrays


def on_ranks(world: int, work: Callable[[int, Callable[[Tensor], Tensor]], Tensor]) -> Tensor:
    """Run `work(rank, gather)` on threads that exchange rows as processes do; join the results."""
    barrier = threading.Barrier(world, timeout=600)
    rows: dict[int, Tensor] = {}

    def of_rank(rank: int) -> Tensor:
        def gather(own: Tensor) -> Tensor:
            rows[rank] = own
            barrier.wait()
            everything = torch.cat([rows[r] for r in range(world)])
            barrier.wait()
            return everything

        try:
            return work(rank, gather)
        except Exception:
            barrier.abort()
            raise

    with ThreadPoolExecutor(world) as pool:
        return torch.cat(list(pool.map(of_rank, range(world))))


def mixstyle_reference(
    x_BCFN: NDArray[np.float64], lam_B: NDArray[Any], partner_B: NDArray[Any]
) -> NDArray[np.float64]:
    """Freq-MixStyle, written out clip by clip and mel bin by mel bin."""
    out = np.empty_like(x_BCFN)
    for clip, (lam, partner) in enumerate(zip(lam_B.astype(np.float64), partner_B, strict=True)):
        for mel in range(x_BCFN.shape[2]):
            own, other = x_BCFN[clip, :, mel], x_BCFN[partner, :, mel]
            means = own.sum() / own.size, other.sum() / other.size
            deviations = [
                np.sqrt(((part - mean) ** 2).sum() / (part.size - 1) + 1e-6)
                for part, mean in zip((own, other), means, strict=True)
            ]
            mean = lam * means[0] + (1 - lam) * means[1]
            deviation = lam * deviations[0] + (1 - lam) * deviations[1]
            out[clip, :, mel] = (own - means[0]) / deviations[0] * deviation + mean
    return out


def batch(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Spectrograms [5, 2, 7, 9] of different levels and spreads, λ and partners."""
    rng = np.random.default_rng(seed)
    x = rng.normal(rng.normal(0, 2, (5, 1, 7, 1)), rng.uniform(0.1, 3, (5, 1, 7, 1)), (5, 2, 7, 9))
    x[2, :, 3] = 0.25  # a bin that stands still: eps decides
    partner = torch.tensor([3, 0, 1, 4, 2])
    return torch.from_numpy(x).float(), torch.from_numpy(rng.random(5)).float(), partner


def test_freq_mixstyle_is_its_formula() -> None:
    x, lam, partner = batch()
    expected = mixstyle_reference(x.double().numpy(), lam.numpy(), partner.numpy())
    actual = freq_mixstyle(x, lam, partner).numpy()
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
    # λ = 1 and a partner equal to oneself change nothing.
    torch.testing.assert_close(freq_mixstyle(x, torch.ones(5), partner), x)
    torch.testing.assert_close(freq_mixstyle(x, lam, torch.arange(5)), x)


def test_the_statistics_of_freq_mixstyle_have_no_gradient() -> None:
    x, lam, partner = (t.double() if t.is_floating_point() else t for t in batch())
    x.requires_grad_()
    weight = torch.from_numpy(np.random.default_rng(1).normal(size=x.shape))
    (freq_mixstyle(x, lam, partner) * weight).sum().backward()
    deviation = np.sqrt(x.detach().numpy().var(axis=(1, 3), ddof=1, keepdims=True) + 1e-6)
    share = lam.numpy().reshape(-1, 1, 1, 1)
    scale = (share * deviation + (1 - share) * deviation[partner.numpy()]) / deviation
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), scale * weight.numpy(), rtol=1e-10)


def test_mixup_is_its_formula() -> None:
    x, lam, partner = batch()
    for clip in range(5):
        share = float(lam[clip])
        expected = share * x[clip].double() + (1 - share) * x[partner[clip]].double()
        torch.testing.assert_close(mixup(x, lam, partner)[clip].double(), expected)


def test_roll_is_numpys() -> None:
    wave = np.random.default_rng(0).normal(size=(6, 1000)).astype(np.float32)
    shift = np.array([0, 1, -1, 999, -640, 2345])
    rolled = roll_waves(torch.from_numpy(wave), torch.from_numpy(shift)).numpy()
    for row, own, by in zip(rolled, wave, shift, strict=True):
        assert (row == np.roll(own, by)).all()
    clips = torch.arange(12, dtype=torch.int16).view(2, 6)
    assert roll_waves(clips, torch.tensor([2, -1])).dtype == torch.int16


@pytest.mark.parametrize(
    ("uniform", "widest", "masked"),
    [
        ((0.5, 0.5), 8, range(6, 10)),  # 4 wide, from 0.5 · (16 − 4)
        ((0.5, 0.0), 8, range(4)),
        ((0.0, 0.5), 8, range(0)),
        ((0.75, 0.25), 8, range(2, 8)),  # 6 wide, from 2.5
        ((0.5, 0.5), 64, range(4, 12)),  # never wider than the axis
    ],
)
def test_a_mask_is_one_stretch(uniform: tuple[float, float], widest: int, masked: range) -> None:
    rng = np.random.default_rng(0)
    for dim, shape in ((-2, (2, 1, 16, 5)), (-1, (2, 1, 5, 16))):
        x = torch.from_numpy(rng.normal(size=shape)).float()
        rows = torch.tensor([uniform, (0.0, 0.0)])  # the second clip is not masked
        expected = x.clone()
        for place in masked:
            expected[0].select(dim, place).fill_(-7.0)
        assert torch.equal(mask_axis(x, rows, widest, dim, -7.0), expected)


def test_masks_are_no_wider_than_asked_and_reach_everywhere() -> None:
    uniform = torch.from_numpy(np.random.default_rng(0).random((2000, 2))).float()
    masked = mask_axis(torch.zeros(2000, 1, 20, 1), uniform, 6, -2, 1.0)[:, 0, :, 0]
    assert masked.sum(1).max() == 6
    assert (masked.sum(0) > 0)[:-1].all()  # rounded down, as torchaudio's: never the last
    steps = masked.diff(prepend=torch.zeros(2000, 1), append=torch.zeros(2000, 1)).abs().sum(1)
    assert set(steps.tolist()) == {0.0, 2.0}


def test_draws_depend_on_seed_epoch_and_batch_alone() -> None:
    def of(seed: int, epoch: int, number: int) -> list[NDArray[Any]]:
        return all_arrays(sample(EVERYTHING, SPEC, seed, epoch, number, 16))

    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    first = of(3, 4, 5)
    np.random.seed(2)  # noqa: NPY002
    torch.manual_seed(2)
    of(0, 0, 0)
    assert len(first) == 8
    for a, b in zip(first, of(3, 4, 5), strict=True):
        assert (a == b).all()
    for other in (of(4, 4, 5), of(3, 5, 5), of(3, 4, 6), of(5, 4, 3), of(3, 5, 4)):
        for a, b in zip(first, other, strict=True):
            assert not (a == b).all()


def test_the_draws_of_a_batch_stay_what_they_are() -> None:
    """Where this fails, it needs a new `random_stream.VERSION`: runs that go on draw otherwise."""
    drawn = sample(EVERYTHING, SPEC, 7, 1, 2, 3)
    assert drawn.band_edges is not None
    assert drawn.roll is not None
    assert drawn.band_edges.tolist() == pytest.approx([2.0, 15404.0])
    assert drawn.roll.tolist() == [3598, -6862, -8336]
    for mixed, lam in (
        (drawn.mixstyle, [0.63055456, 0.30302408, 0.12828186]),
        (drawn.mixup, [0.9883005, 0.12239892, 0.495701]),
    ):
        assert mixed is not None
        assert mixed[0].tolist() == pytest.approx(lam, rel=1e-6)
        assert mixed[1].tolist() == [1, 0, 2]
    for mask, first in (
        (drawn.freq_mask, [0.8782561, 0.9740408]),
        (drawn.time_mask, [0.4886378, 0.9101101]),
    ):
        assert mask is not None
        assert mask[0].tolist() == pytest.approx(first, rel=1e-6)


def test_draws_have_the_size_of_the_batch_and_their_ranges() -> None:
    for number in range(50):
        drawn = sample(EVERYTHING, SPEC, 0, 0, number, 33)
        assert drawn.roll is not None
        assert drawn.roll.shape == (33,)
        assert abs(drawn.roll).max() <= 10_000
        for mixed in (drawn.mixstyle, drawn.mixup):
            assert mixed is not None
            assert ((mixed[0] >= 0) & (mixed[0] <= 1)).all()
            assert sorted(mixed[1].tolist()) == list(range(33))
        for mask in (drawn.freq_mask, drawn.time_mask):
            assert mask is not None
            assert mask.shape == (33, 2)
            assert ((mask >= 0) & (mask < 1)).all()
    shifts = sample(replace(EVERYTHING, roll=2), SPEC, 0, 0, 0, 500).roll
    assert shifts is not None
    assert set(shifts.tolist()) == {-2, -1, 0, 1, 2}


@pytest.mark.parametrize(
    "off",
    [
        {"mixup_alpha": 0.0},
        {"mixstyle_p": 0.0},
        {"roll": 0},
        {"freq_mask": 0},
        {"time_mask": 0},
        {"band_jitter": False},
    ],
)
def test_switching_one_off_leaves_the_others_alone(off: dict[str, Any]) -> None:
    gone = {"mixup_alpha": "mixup", "mixstyle_p": "mixstyle", "band_jitter": "band_edges"}
    (key,) = off
    for number in range(5):
        full = sample(EVERYTHING, SPEC, 1, 2, number, 8)
        less = sample(replace(EVERYTHING, **off), SPEC, 1, 2, number, 8)
        assert getattr(less, gone.get(key, key)) is None
        expected = all_arrays(replace(full, **{gone.get(key, key): None}))
        for a, b in zip(all_arrays(less), expected, strict=True):
            assert (a == b).all()


def test_mixstyle_comes_with_its_probability_and_beta() -> None:
    config = AugmentConfig(mixstyle_p=0.3, mixstyle_alpha=0.3)
    mixed = [sample(config, None, 0, 0, number, 64).mixstyle for number in range(1500)]
    some = [m for m in mixed if m is not None]
    assert abs(len(some) / 1500 - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 1500)
    lam = np.concatenate([m[0] for m in some]).astype(np.float64)
    # Beta(α, α): mean 1/2, variance 1/(4·(2α + 1)).
    assert abs(lam.mean() - 0.5) < 0.02
    assert abs(lam.var() - 1 / (4 * (2 * 0.3 + 1))) < 0.005
    assert sample(AugmentConfig(mixstyle_p=0), None, 0, 0, 0, 4) == NOTHING_SAMPLED


@pytest.mark.parametrize("world", [2, 3])
def test_slices_of_a_batch_are_mixed_as_the_whole(world: int) -> None:
    x, lam, partner = batch()
    for mix in (freq_mixstyle, mixup):

        def of_rank(rank: int, gather: Callable[[Tensor], Tensor], mix: Any = mix) -> Tensor:
            own = torch.from_numpy(rank_slice(np.arange(5), rank, world))
            mixed: Tensor = mix(x[own], lam[own], partner[own], gather)
            return mixed

        torch.testing.assert_close(on_ranks(world, of_rank), mix(x, lam, partner), rtol=0, atol=0)


@pytest.mark.parametrize("world", [2, 3, 7])
def test_slices_of_a_batch_are_augmented_as_the_whole(world: int) -> None:
    features = cpprune.log_mel("passt_128")
    clips = torch.from_numpy(
        np.random.default_rng(0).integers(-9000, 9000, (5, 8000), dtype=np.int16)
    )
    draws = sample(EVERYTHING, SPEC, 7, 1, 2, 5, responses=2)
    responses = torch.from_numpy(np.random.default_rng(1).normal(0, 0.1, (2, 300))).float()
    everything = draws.of_rows(slice(0, 5))
    assert (everything["response"] >= 0).sum() == 3
    whole = augmented(features, clips, everything, EVERYTHING, responses_RN=responses)

    def of_rank(rank: int, gather: Callable[[Tensor], Tensor]) -> Tensor:
        own = slice(5 * rank // world, 5 * (rank + 1) // world)
        return augmented(features, clips[own], draws.of_rows(own), EVERYTHING, gather, responses)

    # How MKL's transforms round depends on the number of rows, and on the processor.
    torch.testing.assert_close(on_ranks(world, of_rank), whole, rtol=0, atol=5e-5)
    assert not whole.requires_grad


@pytest.mark.parametrize("mask_first", [False, True])
def test_augmented_is_its_steps_in_order(mask_first: bool) -> None:
    features = cpprune.log_mel("passt_128")
    wave = np.random.default_rng(0).uniform(-0.3, 0.3, (4, 8000)).astype(np.float32)
    drawn = sample(EVERYTHING, SPEC, 0, 0, 0, 4)
    assert drawn.roll is not None
    assert drawn.mixstyle is not None
    assert drawn.mixup is not None
    rolled = np.stack([np.roll(w, by) for w, by in zip(wave, drawn.roll, strict=True)])
    x = features(torch.from_numpy(rolled), torch.from_numpy(drawn.band_edges)).double().numpy()
    fill = (np.log(1e-5) + 4.5) / 5

    def mask(x: NDArray[np.float64]) -> None:
        assert drawn.freq_mask is not None
        assert drawn.time_mask is not None
        for uniform, axis, widest in ((drawn.freq_mask, 2, 48), (drawn.time_mask, 3, 30)):
            for clip, (width, place) in enumerate(uniform.astype(np.float64)):
                width *= min(widest, x.shape[axis])
                start = place * (x.shape[axis] - width)
                stretch = slice(int(start), int(start + width))
                x[(clip, slice(None), stretch) if axis == 2 else (clip, ..., stretch)] = fill

    if mask_first:
        mask(x)
    x = mixstyle_reference(x, *drawn.mixstyle)
    lam = drawn.mixup[0].astype(np.float64).reshape(-1, 1, 1, 1)
    x = lam * x + (1 - lam) * x[drawn.mixup[1]]
    if not mask_first:
        mask(x)
    config = replace(EVERYTHING, mask_first=mask_first)
    actual = augmented(features, torch.from_numpy(wave), drawn.of_rows(slice(0, 4)), config)
    np.testing.assert_allclose(actual.numpy(), x, rtol=0, atol=1e-4)


def test_without_draws_nothing_is_augmented() -> None:
    features = cpprune.log_mel("passt_128")
    wave = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (2, 8000))).float()
    x = augmented(features, wave, NOTHING_SAMPLED.of_rows(slice(0, 2)), AugmentConfig())
    assert torch.equal(x, features(wave))


def test_images_are_not_rolled_and_masked_with_black() -> None:
    images = torch.randint(1, 256, (3, 1, 28, 28), generator=torch.Generator().manual_seed(0))
    images = images.to(torch.uint8)
    config = AugmentConfig(mixstyle_p=0, roll=5)
    drawn = sample(config, None, 0, 0, 0, 3)
    x = augmented(ScaleImage(), images, drawn.of_rows(slice(0, 3)), config)
    assert torch.equal(x, images / 255)
    config = AugmentConfig(mixstyle_p=0, time_mask=20)
    drawn = sample(config, None, 0, 0, 0, 3)
    x = augmented(ScaleImage(), images, drawn.of_rows(slice(0, 3)), config)
    assert (x == 0).any()
    assert torch.equal(x[x > 0], (images / 255)[x > 0])


@pytest.mark.parametrize("preset", PRESETS)
def test_silence_is_what_the_front_end_makes_of_it(preset: str) -> None:
    features = cpprune.log_mel(preset)
    value = torch.tensor(features.silence).double()
    expected = np.log(1e-5) if preset == "dcase24" else (np.log(1e-5) + 4.5) / 5
    assert float(value) == pytest.approx(expected, abs=1e-6)
    assert ScaleImage().silence == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mixstyle_p": 1.5}, "augment.mixstyle_p=1.5: must be from 0 to 1"),
        ({"mixstyle_p": -0.1}, "augment.mixstyle_p=-0.1: must be from 0 to 1"),
        ({"mixstyle_alpha": 0.0}, "augment.mixstyle_alpha=0.0: must be above 0"),
        ({"mixup_alpha": -1.0}, "augment.mixup_alpha=-1.0: must not be negative"),
        ({"roll": -1}, "augment.roll=-1: must not be negative"),
        ({"freq_mask": -1}, "augment.freq_mask=-1: must not be negative"),
        ({"time_mask": -1}, "augment.time_mask=-1: must not be negative"),
        ({"mixstyle_p": float("nan")}, "augment.mixstyle_p=nan: must be from 0 to 1"),
    ],
)
def test_a_wrong_number_is_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**wrong)
