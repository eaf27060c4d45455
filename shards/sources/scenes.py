"""How the made-up scenes, cities, places and devices sound.

Envelopes are given in dB at `BANDS` frequencies, evenly spaced in octaves, and are straight lines
between them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

RATE = 44100
CITIES = (
    "barcelona",
    "helsinki",
    "lisbon",
    "london",
    "lyon",
    "milan",
    "paris",
    "prague",
    "stockholm",
    "vienna",
)
DEVICES = ("a", "b", "c", "s1", "s2", "s3", "s4", "s5", "s6")
BANDS = 24
EVENT_KINDS = 5

# How much the envelope of the noise varies, in dB. The scenes must stand out from the rest only
# a little: these four numbers and the two below decide how hard the dataset is.
SCENE_DB = 3.5
CITY_DB = 1.0
PLACE_DB = 2.7
CLIP_DB = 2.0
EVENT_DB = -6.0  # of an event against the noise in its surroundings
DEVICE_DB = (1.0, 2.0, 2.5, 3.0, 3.0, 3.0, 5.0, 6.0, 5.0)


@dataclass(frozen=True)
class Scene:
    """What one scene's clips have in common.

    Attributes:
        envelope: of the noise in each band, dB.
        modulation: slow modulation, Hz.
        depth: of the modulation, 0 to 1.
        rates: events of each kind a second.
        pitch: centre of each kind of event, octaves above 50 Hz.
    """

    envelope: NDArray[np.float64]
    modulation: float
    depth: float
    rates: NDArray[np.float64]
    pitch: NDArray[np.float64]


@dataclass(frozen=True)
class Device:
    """A microphone: its response at each frequency bin, its gain and its own noise (amplitude)."""

    response: Floats
    gain: float
    noise: float


@cache
def scene(number: int) -> Scene:
    """Returns one of the ten scenes."""
    rng = np.random.default_rng([1, number])
    return Scene(
        envelope=SCENE_DB * _smooth(rng, BANDS),
        modulation=float(rng.uniform(1.0, 9.0)),
        depth=float(rng.uniform(0.1, 0.6)),
        rates=rng.gamma(0.8, 1.2, EVENT_KINDS),
        pitch=rng.uniform(1.5, 6.5, EVENT_KINDS),
    )


@cache
def device(number: int) -> Device:
    """Returns one of the nine devices of `DEVICES`."""
    rng = np.random.default_rng([2, number])
    octaves_F = _octaves()
    curve_F = _interpolate(DEVICE_DB[number] * _smooth(rng, BANDS))
    low, high = (0.0, 8.6) if number == 0 else (rng.uniform(0.5, 2.0), rng.uniform(7.2, 8.4))
    # Band limits of 12 dB an octave.
    edges_F = 12 * (np.minimum(octaves_F - low, 0) - np.maximum(octaves_F - high, 0))
    return Device(
        response=_amplitude(curve_F + edges_F),
        gain=float(10 ** (rng.uniform(-6, 6) / 20)),
        noise=float(10 ** (rng.uniform(-75, -55) / 20)),
    )


def render(
    seed: int, scene_number: int, city: int, place: int, segment: int, devices: Sequence[int]
) -> Floats:
    """Returns the clips of one segment, one second each: float32 [len(devices), RATE].

    They depend on the arguments alone.
    """
    kind = scene(scene_number)
    of_city = np.random.default_rng([3, city])
    of_place = np.random.default_rng([4, seed, place])
    rng = np.random.default_rng([5, seed, segment])
    count = len(devices)
    envelope_B = kind.envelope + CITY_DB * _smooth(of_city, BANDS)
    envelope_B = envelope_B + PLACE_DB * _smooth(of_place, BANDS)
    speed = kind.modulation * 2 ** of_place.normal(0, 0.5)
    depth = np.clip(kind.depth + of_place.normal(0, 0.2), 0, 0.9)
    rates_K = kind.rates * of_place.gamma(2.0, 0.5, EVENT_KINDS)
    pitch_K = kind.pitch + of_place.normal(0, 0.7, EVENT_KINDS)

    gains_NF = np.stack(
        [_amplitude(_interpolate(envelope_B + CLIP_DB * _smooth(rng, BANDS))) for _ in devices]
    )
    noise_NT = _noise(rng, gains_NF)
    time_T = np.arange(RATE, dtype=np.float32) / np.float32(RATE)
    phase_N1 = rng.uniform(0, 2 * np.pi, (count, 1)).astype(np.float32)
    swing_NT = np.sin(np.float32(2 * np.pi * speed) * time_T + phase_N1)
    waves_NT = noise_NT * (1 + np.float32(depth) * swing_NT)
    for wave_T in waves_NT:
        level = np.sqrt(np.mean(wave_T * wave_T)) * 10 ** (EVENT_DB / 20)
        _add_events(wave_T, rng, rates_K, pitch_K, float(level))
    return record(waves_NT, devices, rng)


def record(waves_NT: Floats, devices: Sequence[int], rng: np.random.Generator) -> Floats:
    """Returns sounds of one second as devices hear them: filtered, at some level, with their own noise.

    Args:
        waves_NT: [len(devices), RATE], at any level, not silent.
        devices: the number of each sound's device in `DEVICES`.
        rng: draws loudness and noise.
    """
    responses_NF = np.stack([device(number).response for number in devices])
    heard_NT = np.fft.irfft(np.fft.rfft(waves_NT) * responses_NF, RATE)
    level_N1 = np.sqrt(np.mean(heard_NT * heard_NT, axis=1, keepdims=True))
    loudness_N1 = 10 ** (rng.normal(-30, 3, (len(devices), 1)) / 20)
    gain_N1 = np.array([[device(number).gain] for number in devices])
    hiss_N1 = np.array([[device(number).noise] for number in devices])
    heard_NT = heard_NT * (loudness_N1 * gain_N1 / level_N1).astype(np.float32)
    hiss_NT = rng.standard_normal(heard_NT.shape, dtype=np.float32)
    result: Floats = heard_NT + hiss_NT * hiss_N1.astype(np.float32)
    return result


def _noise(rng: np.random.Generator, gains_NF: Floats) -> Floats:
    """Returns Gaussian noise of the given amplitude spectra."""
    parts = rng.standard_normal((*gains_NF.shape, 2), dtype=np.float32)
    spectra_NF = parts.view(np.complex64)[..., 0] * gains_NF
    waves_NT: Floats = np.fft.irfft(spectra_NF, RATE).astype(np.float32, copy=False)
    return waves_NT


def _add_events(
    wave_T: Floats,
    rng: np.random.Generator,
    rates_K: NDArray[np.float64],
    pitch_K: NDArray[np.float64],
    level: float,
) -> None:
    for kind, count in enumerate(np.minimum(rng.poisson(rates_K), 4).tolist()):
        for _ in range(count):
            length = int(RATE * rng.uniform(0.05, 0.5))
            start = int(rng.integers(0, RATE - length))
            hertz = 50 * 2 ** (pitch_K[kind] + rng.normal(0, 0.5))
            loud = level * 10 ** (rng.normal(0, 4) / 20)
            sound = _event(kind, length, float(hertz), rng)
            wave_T[start : start + length] += np.float32(loud) * sound


def _event(kind: int, length: int, hertz: float, rng: np.random.Generator) -> Floats:
    """Returns one event of the kind hum, chord, click, burst or sweep, with an RMS of about 1."""
    time = np.arange(length, dtype=np.float32) / np.float32(RATE)
    radians = np.float32(2 * np.pi * min(hertz, 15000.0)) * time
    rise = np.sin(np.float32(np.pi / length) * np.arange(length, dtype=np.float32))
    if kind == 0:
        tones = sum(np.sin(n * radians / 4) / np.float32(n) for n in (1, 2, 3, 4))
        return np.asarray(tones * rise, dtype=np.float32)
    if kind == 1:
        ratios = rng.choice([1.0, 1.2, 1.25, 1.5, 1.78, 2.0], 3, replace=False)
        chord = sum(np.sin(np.float32(ratio) * radians) for ratio in ratios)
        return np.asarray(chord * rise, dtype=np.float32)
    if kind == 2:
        fade = np.exp(time * np.float32(-rng.uniform(40, 200)))
        return np.asarray(4 * np.sin(radians) * fade, dtype=np.float32)
    if kind == 3:
        # Noise times a tone is noise around that tone.
        steps = rng.standard_normal(length // 32 + 2, dtype=np.float32)
        slow = np.repeat(steps, 32)[:length]
        return np.asarray(1.5 * slow * np.sin(radians) * rise, dtype=np.float32)
    bend = np.float32(rng.uniform(-0.4, 0.4) * RATE / length)
    return np.asarray(1.5 * np.sin(radians * (1 + bend * time)) * rise, dtype=np.float32)


def _smooth(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """Returns a smooth random curve of standard deviation 1."""
    steps = rng.standard_normal(count + 2)
    curve: NDArray[np.float64] = (steps[:-2] + 2 * steps[1:-1] + steps[2:]) / np.sqrt(6)
    return curve


@cache
def _octaves() -> NDArray[np.float64]:
    """Returns how many octaves each frequency bin is above 50 Hz; at least 0."""
    hertz_F = np.fft.rfftfreq(RATE, 1 / RATE)
    octaves_F: NDArray[np.float64] = np.log2(np.maximum(hertz_F, 50) / 50)
    return octaves_F


@cache
def _weights() -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    place_F = _octaves() / _octaves()[-1] * (BANDS - 1)
    lower_F = np.minimum(place_F.astype(np.intp), BANDS - 2)
    return lower_F, place_F - lower_F


def _interpolate(decibels_B: NDArray[np.float64]) -> NDArray[np.float64]:
    lower_F, rest_F = _weights()
    # Nature falls by about 4 dB an octave.
    curve = decibels_B - 4.0 * _octaves()[-1] * np.arange(BANDS) / (BANDS - 1)
    result: NDArray[np.float64] = curve[lower_F] * (1 - rest_F) + curve[lower_F + 1] * rest_F
    return result


def _amplitude(decibels_F: NDArray[np.float64]) -> Floats:
    amplitude_F: Floats = np.exp(decibels_F.astype(np.float32) * np.float32(np.log(10) / 20))
    return amplitude_F
