"""Latency of exported networks; ways to compute the Fourier transform; ranges of int8 activations.

    python benchmarks/shipping.py [MODEL … [--data DATASET]]

With model folders, times the network of each in every runtime and precision, the first model in fp32
as 1. With a dataset, too, exports each in int8 with each choice of ranges instead, and compares it with
the model on the test split. Without a model, times the front end of each preset in onnxruntime for one
second of audio, with the Fourier transform in two steps of matrix products, as a product with the whole
matrix, and by the operator DFT. One thread; latencies are medians of the process's time on the CPU,
taken in turns. `benchmarks/shipped.py` measures what ships.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper
from onnxruntime.quantization import CalibrationMethod

from cpprune.audio.config import PRESETS, MelSpec
from cpprune.audio.frontend import LogMel
from cpprune.cli.export import CALIBRATION_CLIPS
from cpprune.data.compatibility import open_for_model
from cpprune.export import frontend, quantize
from cpprune.export.build import build_file
from cpprune.export.calibration import calibration_clips
from cpprune.export.check import compare, noise
from cpprune.export.graph import GraphBuilder
from cpprune.export.inputs import choose_input
from cpprune.export.network import export_network
from cpprune.export.onnx_model import OnnxModel
from cpprune.export.target import targets
from cpprune.export.timed import to_be_timed
from cpprune.models import artifact

SAMPLES = 32_000
ROUNDS = 50
WEIGHTS = "not recorded"


def whole_matrix(graph: GraphBuilder, spec: MelSpec, framed: str, frames: int) -> str:
    places, bins = np.arange(spec.n_fft), np.arange(spec.n_fft // 2 + 1)
    matrix = np.exp(-2j * np.pi * np.outer(places, bins) / spec.n_fft)
    flat = graph.constant("flat", np.array([0, frames, spec.n_fft]))
    x = graph.add("Reshape", "flattened", framed, flat)
    both = graph.constant("dft", np.concatenate([matrix.real, matrix.imag], 1))
    x = graph.add("MatMul", "spectrum", x, both)
    squares = graph.add("Mul", "squares", x, x)
    parts = graph.add_several("Split", "squared", 2, squares, axis=2, num_outputs=2)
    return graph.add("Add", "power", *parts)


def operator(graph: GraphBuilder, spec: MelSpec, framed: str, frames: int) -> str:
    flat = graph.constant("flat", np.array([0, frames, spec.n_fft, 1]))
    x = graph.add("Reshape", "flattened", framed, flat)
    axis = graph.constant("dft_axis", np.array(2))
    x = graph.add("DFT", "spectrum", x, "", axis, onesided=1)
    return graph.add(
        "ReduceSumSquare", "power", x, graph.constant("last_axis", np.array([3])), keepdims=0
    )


WAYS = {"two steps": frontend._power, "whole matrix": whole_matrix, "DFT": operator}


def front_end_session(spec: MelSpec) -> tuple[Any, int]:
    graph, output = frontend.log_mel_graph(spec, SAMPLES, "waveform", integer=False)
    made = helper.make_graph(
        graph.nodes,
        "front end",
        [helper.make_tensor_value_info("waveform", TensorProto.FLOAT, ["batch", SAMPLES])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        list(graph.constants.values()),
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    data = model.SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return session, len(data)


def fourier() -> None:
    print("| preset | n_fft | way | time, torch = 1 | bytes | largest difference |")
    print("|---|---|---|---|---|---|")
    rng = np.random.default_rng(0)
    wave = rng.normal(0, 0.1, (1, SAMPLES)).astype(np.float32)
    tensor = torch.from_numpy(wave)
    presets = {**PRESETS, "(n_fft 1000)": MelSpec(window=1000, hop=500, n_fft=1000, n_mels=128)}
    for name, spec in presets.items():
        features = LogMel(spec)
        expected = features(tensor).numpy()
        calls: dict[str, Callable[[], Any]] = {"torch": lambda f=features: f(tensor)}  # type: ignore[misc]
        sizes, errors = {}, {}
        for way, power in WAYS.items():
            frontend._power = power
            session, sizes[way] = front_end_session(spec)
            calls[way] = lambda s=session: s.run(None, {"waveform": wave})  # type: ignore[misc]
            errors[way] = np.abs(calls[way]()[0] - expected).max()
        frontend._power = WAYS["two steps"]
        times = in_turns(calls)
        for way in WAYS:
            ratio = times[way] / times["torch"]
            print(
                f"| {name} | {spec.n_fft} | {way} | {ratio:.2f} | {sizes[way]:,} | {errors[way]:.1e} |"
            )


def in_turns(calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(ROUNDS + 5):
        for name, call in calls.items():
            begin = time.process_time()
            call()
            if number >= 5:
                times[name].append(time.process_time() - begin)
    return {name: statistics.median(found) for name, found in times.items()}


def latency(folders: list[Path]) -> None:
    models = {str(folder): artifact.load(folder) for folder in folders}
    forms = [f"{to}-{way}" for to, own in targets().items() for way in own.precisions]
    print(f"| runtime | {' | '.join(models)} |")
    print("|---|" + "---|" * len(models))
    whole: dict[str, dict[str, float]] = {}
    for form in ("torch-fp32", *forms):
        calls: dict[str, Callable[[], Any]] = {}
        for name, model in models.items():
            if form == "torch-fp32":
                calls[name] = partial(model.network, torch.zeros(1, *model.input_shape))
            else:
                made = to_be_timed(model.network, model.input_shape, form)
                calls[name] = partial(made.logits, noise(made, 1))
        with torch.no_grad():
            whole[form] = in_turns(calls)
        first = whole[f"{form.rpartition('-')[0]}-fp32"][str(folders[0])]
        cells = [f"{took / first:.2f}" for took in whole[form].values()]
        print(f"| {form} | {' | '.join(cells)} |", flush=True)


def calibration(folders: list[Path], data: str) -> None:
    print("| model | ranges | same class | largest difference | seconds |\n|---|---|---|---|---|")
    logging.disable(logging.WARNING)
    ways: dict[str, tuple[CalibrationMethod, dict[str, float]]] = {
        "min–max": (CalibrationMethod.MinMax, {}),
        "99.99th percentile": (CalibrationMethod.Percentile, {"CalibPercentile": 99.99}),
        "99.999th percentile": (CalibrationMethod.Percentile, {"CalibPercentile": 99.999}),
        "entropy": (CalibrationMethod.Entropy, {}),
    }
    for folder in folders:
        model = artifact.load(folder)
        dataset = open_for_model(data, model)
        network = export_network(model.network, model.input_shape)
        clips = calibration_clips(dataset.split("train"), CALIBRATION_CLIPS)
        inputs = model.features(clips).numpy()
        for name, (method, extra) in ways.items():
            begin = time.perf_counter()
            made = quantised(network, inputs, method, extra)
            took = time.perf_counter() - begin
            kind = choose_input(model, None)
            data_of_file = build_file(model, made, kind, "int8", WEIGHTS)
            found = compare(model, OnnxModel(data_of_file, threads=1), dataset.split("test"))
            print(
                f"| {folder} | {name} | {found.agreement:.1%} "
                f"| {found.largest_difference:.2f} | {took:.1f} |",
                flush=True,
            )


def quantised(
    network: onnx.ModelProto, inputs: Any, method: CalibrationMethod, extra: dict[str, float]
) -> onnx.ModelProto:
    twin = onnx.ModelProto()
    twin.CopyFrom(network)
    with tempfile.TemporaryDirectory() as folder, quantize._quiet():
        target = Path(folder) / "model.onnx"
        quantize.quantize_static(
            twin,
            target,
            quantize._Batches(inputs),
            quant_format=quantize.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantize.QuantType.QInt8,
            weight_type=quantize.QuantType.QInt8,
            calibrate_method=method,
            extra_options=extra,
        )
        return onnx.load(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path, nargs="*")
    parser.add_argument("--data")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.models and not arguments.data:
        latency(arguments.models)
    elif arguments.models:
        calibration(arguments.models, arguments.data)
    else:
        fourier()


if __name__ == "__main__":
    main()
