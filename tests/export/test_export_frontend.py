"""The front end in ONNX against a float64 computation with NumPy's Fourier transform."""

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
from export_models import HTK, KALDI
from onnx import TensorProto, helper

from cpprune.audio.config import PRESETS, MelSpec
from cpprune.audio.frontend import LogMel
from cpprune.export.frontend import factors, front_end


def run(spec, clip_shape, integer, clips):
    kind = {True: TensorProto.INT16, False: TensorProto.FLOAT}[integer]
    if spec is None:
        kind = TensorProto.UINT8
    graph, output = front_end(spec, clip_shape, "clips", integer)
    shape = ["batch", *clip_shape]
    made = helper.make_graph(
        graph.nodes,
        "front end",
        [helper.make_tensor_value_info("clips", kind, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        list(graph.constants.values()),
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"clips": clips})[0]


def reference(spec, waves):
    """Log-mel by the definition, in float64; the filter bank is tested with the front end in torch."""
    waves = waves.astype(np.float64)
    if spec.pre_emphasis:
        waves = waves[:, 1:] - spec.pre_emphasis * waves[:, :-1]
    half = spec.n_fft // 2
    padded = np.pad(waves, ((0, 0), (half, half)), mode="reflect")
    places = np.arange(spec.window)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * places / (spec.window - 1 + spec.periodic_window))
    margin = spec.n_fft - spec.window
    hann = np.pad(hann, (margin // 2, margin - margin // 2))
    starts = range(0, padded.shape[1] - spec.n_fft + 1, spec.hop)
    frames = np.stack([padded[:, s : s + spec.n_fft] * hann for s in starts], 1)
    power = np.abs(np.fft.rfft(frames)) ** 2
    bank = LogMel(spec).eval_bank.double().numpy()
    log_mel = np.log(power @ bank.T + 1e-5)
    if spec.normalise:
        log_mel = (log_mel + 4.5) / 5
    return log_mel.transpose(0, 2, 1)[:, None]


PRIME = MelSpec(
    sample_rate=8000, window=60, hop=25, n_fft=2 * 37, n_mels=11, fmin_jitter=0, fmax_jitter=500
)


@pytest.mark.parametrize("spec", [KALDI, HTK, PRIME, replace(KALDI, n_fft=200, hop=30)])
def test_spectrograms(spec):
    waves = np.random.default_rng(0).normal(0, 0.2, (3, 3001)).astype(np.float32)
    found = run(spec, (3001,), False, waves)
    expected = reference(spec, waves)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=2e-4)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets(preset):
    spec = PRESETS[preset]
    time = np.arange(32_000) / 32_000
    rng = np.random.default_rng(1)
    waves = np.stack([0.5 * np.sin(2 * np.pi * 440 * time), np.zeros_like(time)])
    waves += [[0.01], [0]] * rng.normal(size=waves.shape)
    waves = waves.astype(np.float32)
    np.testing.assert_allclose(
        run(spec, (32_000,), False, waves), reference(spec, waves), atol=1e-3
    )


def test_int16_is_a_fraction_of_full_scale():
    waves = np.random.default_rng(2).integers(-32768, 32768, (2, 2000), np.int16)
    found = run(KALDI, (2000,), True, waves)
    np.testing.assert_allclose(found, reference(KALDI, waves / 32768), atol=2e-4)


def test_images():
    images = np.arange(256, dtype=np.uint8).reshape(2, 1, 16, 8)
    np.testing.assert_allclose(run(None, (1, 16, 8), False, images), images / 255, rtol=1e-6)


@pytest.mark.parametrize("n_fft", [2, 74, 200, 1000, 1024, 2048, 4096])
def test_factors(n_fft):
    p, q = factors(n_fft)
    assert p * q == n_fft
    assert all(
        4 * p + 2 * q <= 4 * a + 2 * (n_fft // a) for a in range(1, n_fft + 1) if n_fft % a == 0
    )
