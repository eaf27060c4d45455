"""The front end as ONNX operators: waveforms → log-mel spectrograms, images → [0, 1].

Shapes: B batch, T samples, N frames, F mel bins, K = n_fft/2 + 1 frequencies; n_fft = P·Q.

The Fourier transform takes two steps of matrix products (Cooley and Tukey, "An Algorithm for the Machine
Calculation of Complex Fourier Series", Mathematics of Computation 19, 1965): with sample Q·p + q and
frequency k = k1 + P·k2, first P-point transforms over p, then a rotation by −2π·q·k1/n_fft, then Q-point
transforms over q. Every runtime has these operators, the constants take some tens of kilobytes, and
onnxruntime computes them faster than its DFT or a product with the whole matrix: benchmarks/shipping.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from cpprune.audio.config import MelSpec
from cpprune.audio.frontend import LOG_OFFSET, LogMel
from cpprune.export.graph import GraphBuilder
from cpprune.export.real_frontend import factors

FILTERS = 8  # of a block of the bank: fewer take fewer bytes, and more operators
PREFIX = "front_end/"  # begins the names of its operators and constants


def log_mel_graph(
    spec: MelSpec, samples: int, source: str, integer: bool
) -> tuple[GraphBuilder, str]:
    """Return the operators of `LogMel` in evaluation, and the name of their output [B, 1, F, N].

    Args:
        spec: the front end's numbers.
        samples: T, the length of a waveform.
        source: name of the input [B, T].
        integer: whether that is int16, and not float32 in [−1, 1].
    """
    graph = GraphBuilder(PREFIX)
    wave = source
    if integer:
        wave = graph.add("Cast", "as_float", wave, to=1)
        wave = graph.add("Div", "scaled", wave, graph.constant("full_scale", np.array(32768.0)))
    if spec.pre_emphasis:
        axis, zero = (
            graph.constant("time_axis", np.array([1])),
            graph.constant("begin", np.array([0])),
        )
        one, last = (
            graph.constant("second", np.array([1])),
            graph.constant("last", np.array([samples - 1])),
        )
        end = graph.constant("end", np.array([samples]))
        later = graph.add("Slice", "later", wave, one, end, axis)
        earlier = graph.add("Slice", "earlier", wave, zero, last, axis)
        part = graph.constant("pre_emphasis", np.array(spec.pre_emphasis))
        wave = graph.add("Sub", "emphasised", later, graph.add("Mul", "part", earlier, part))
    half = spec.n_fft // 2
    sides = graph.constant("sides", np.array([0, half, 0, half]))
    wave = graph.add("Pad", "padded", wave, sides, mode="reflect")
    frames = spec.frames(samples)
    x = _log_mel(graph, spec, _gathered(graph, spec, wave, frames), frames)
    x = graph.add("Transpose", "log_mel", x, perm=[0, 2, 1])
    channel = graph.constant("channel_axis", np.array([1]))
    return graph, graph.add("Unsqueeze", "features", x, channel)


def frame_graph(spec: MelSpec, source: str) -> tuple[GraphBuilder, str]:
    """Return the operators of one frame, and the name of their output [1, 1, F].

    Args:
        spec: the front end's numbers.
        source: name of the input [1, n_fft]: samples under the window, after pre-emphasis and padding.
    """
    graph = GraphBuilder(PREFIX)
    return graph, _log_mel(graph, spec, source, 1)


def _log_mel(graph: GraphBuilder, spec: MelSpec, frames: str, number: int) -> str:
    """Samples of N frames → normalised log-mel spectrogram [B, N, F]."""
    mel = _mel(graph, spec, _power(graph, spec, _windowed(graph, spec, frames, number), number))
    offset = graph.constant("log_offset", np.array(LOG_OFFSET))
    x = graph.add("Log", "log", graph.add("Add", "above_zero", mel, offset))
    if spec.normalise:
        x = graph.add("Add", "shifted", x, graph.constant("shift", np.array(4.5)))
        x = graph.add("Div", "normalised", x, graph.constant("scale", np.array(5.0)))
    return x


def _gathered(graph: GraphBuilder, spec: MelSpec, wave: str, frames: int) -> str:
    """[B, T] → the samples of all frames, gathered in rows as long as hop and n_fft allow."""
    row = math.gcd(spec.hop, spec.n_fft)
    used = (frames - 1) * spec.hop + spec.n_fft
    bounds = [graph.constant(f"used_{k}", np.array([v])) for k, v in enumerate((0, used, 1))]
    wave = graph.add("Slice", "used", wave, *bounds)
    rows = graph.add("Reshape", "rows", wave, graph.constant("row", np.array([0, -1, row])))
    first = graph.constant("first_row", (np.arange(frames) * (spec.hop // row))[:, None])
    within = graph.constant("row_of_frame", np.arange(spec.n_fft // row)[None])
    places = graph.add("Add", "row_places", first, within)
    return graph.add("Gather", "frames", rows, places, axis=1)


def _windowed(graph: GraphBuilder, spec: MelSpec, frames: str, number: int) -> str:
    """Samples of N frames → frames under the window [B, N, P, Q]."""
    p, q = factors(spec.n_fft)
    shape = graph.constant("frame_shape", np.array([0, number, p, q]))
    framed = graph.add("Reshape", "folded", frames, shape)
    window = LogMel(spec).hann.double().numpy().reshape(p, q)
    return graph.add("Mul", "windowed", framed, graph.constant("window", window))


def _power(graph: GraphBuilder, spec: MelSpec, framed: str, frames: int) -> str:
    """[B, N, P, Q] → power [B, N, at least K]."""
    p, q = factors(spec.n_fft)
    columns = q // 2 + 1  # values of k2 that frequencies up to n_fft/2 need
    short = np.exp(-2j * np.pi * np.outer(np.arange(p), np.arange(p)) / p)
    turn = np.exp(-2j * np.pi * np.outer(np.arange(p), np.arange(q)) / spec.n_fft)
    long = np.exp(-2j * np.pi * np.outer(np.arange(q), np.arange(columns)) / q)
    # Real and imaginary parts lie one after the other; `turned` holds them for a product with i.
    straight = graph.constant("dft_p", np.concatenate([short.real, short.imag]))
    turned = graph.constant("dft_p_times_i", np.concatenate([-short.imag, short.real]))
    parts = graph.constant("parts", np.array([0, frames, 2, p, q]))
    sums = []
    for name, matrix, rotation in (("real", straight, turn.real), ("imaginary", turned, turn.imag)):
        product = graph.add("MatMul", f"short_{name}", matrix, framed)
        product = graph.add("Reshape", f"parts_{name}", product, parts)
        turn_part = graph.constant(f"turn_{name}", rotation)
        sums.append(graph.add("Mul", f"turned_{name}", product, turn_part))
    x = graph.add("Add", "turned", *sums)
    x = graph.add("Transpose", "by_k1", x, perm=[0, 1, 3, 2, 4])
    x = graph.add("Reshape", "joined", x, graph.constant("join", np.array([0, frames, p, 2 * q])))
    blocks = np.block([[long.real, long.imag], [-long.imag, long.real]])
    x = graph.add("MatMul", "spectrum", x, graph.constant("dft_q", blocks))
    squared = graph.add("Mul", "squares", x, x)
    x = graph.add(
        "Add", "power", *graph.add_several("Split", "squared", 2, squared, axis=3, num_outputs=2)
    )
    x = graph.add("Transpose", "by_k", x, perm=[0, 1, 3, 2])
    return graph.add(
        "Reshape", "power_spectrum", x, graph.constant("flat", np.array([0, frames, -1]))
    )


def _mel(graph: GraphBuilder, spec: MelSpec, power: str) -> str:
    """[B, N, at least K] → mel spectrogram [B, N, F], through the non-zero blocks of the bank."""
    bank = LogMel(spec).eval_bank.numpy()
    axis = graph.constant("frequency_axis", np.array([2]))
    parts = []
    for number, first in enumerate(range(0, spec.n_mels, FILTERS)):
        rows = bank[first : first + FILTERS]
        used = np.flatnonzero(rows.any(0))
        low, high = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)
        ends = [
            graph.constant(f"band_{number}_{k}", np.array([v])) for k, v in enumerate((low, high))
        ]
        band = graph.add("Slice", f"band_{number}", power, *ends, axis)
        filters = graph.constant(f"filters_{number}", rows[:, low:high].T)
        parts.append(graph.add("MatMul", f"mel_{number}", band, filters))
    return graph.add("Concat", "mel", *parts, axis=2)


def image_graph(source: str) -> tuple[GraphBuilder, str]:
    """Return the operators of `ScaleImage` on uint8 images, and the name of their output."""
    graph = GraphBuilder(PREFIX)
    x = graph.add("Cast", "as_float", source, to=1)
    return graph, graph.add("Div", "features", x, graph.constant("white", np.array(255.0)))


def front_end(
    spec: MelSpec | None, clip_shape: Sequence[int], source: str, integer: bool
) -> tuple[GraphBuilder, str]:
    """Return the operators of a model's front end, and the name of their output [B, 1, F, N].

    Args:
        spec: the front end's numbers; None for uint8 images.
        clip_shape: of one clip.
        source: name of the input.
        integer: whether waveforms are int16.
    """
    if spec is None:
        return image_graph(source)
    return log_mel_graph(spec, clip_shape[0], source, integer)
