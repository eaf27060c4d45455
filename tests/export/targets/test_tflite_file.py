"""What is true of TensorFlow Lite files alone; TFLite Micro runs them too."""

import numpy as np
import pytest
import torch
from export_jobs import clips_of
from export_models import HTK, KALDI
from marks import has_wheels

from cpprune.audio.frontend import LogMel

NAMES = ("small", "cp_mobile")


@pytest.mark.parametrize("spec", [KALDI, HTK])
def test_the_front_end(spec):
    from cpprune.export.real_frontend import RealLogMel

    waves = 0.2 * torch.randn(2, 3001, generator=torch.Generator().manual_seed(0))
    found = torch.cat([RealLogMel(spec, 3001)(wave[None]) for wave in waves])
    torch.testing.assert_close(found, LogMel(spec)(waves), atol=1e-4, rtol=0)


@pytest.mark.slow
@has_wheels
@pytest.mark.parametrize("name", NAMES)
def test_all_of_int8_is_int8(product, name):
    """Weights, activations, input and output, as BioDCASE-Tiny asks for; biases have 32 bits."""
    from ai_edge_litert import schema_py_generated as schema

    from cpprune.export.sealed_archive import split_metadata
    from cpprune.export.tflite.graph import read

    graph = read(split_metadata(product("tflite", name, "features", "int8").files[""])[0])
    (subgraph,) = graph.subgraphs
    numbers = {*subgraph.inputs, *subgraph.outputs}
    for operator in subgraph.operators:
        numbers |= {*operator.outputs, *operator.inputs[:2]}
    dtypes = {schema.TensorType.INT8, schema.TensorType.INT32}
    assert {subgraph.tensors[number].type for number in numbers} <= dtypes
    assert subgraph.tensors[subgraph.inputs[0]].type == schema.TensorType.INT8
    assert subgraph.tensors[subgraph.outputs[0]].type == schema.TensorType.INT8


@pytest.mark.slow
@has_wheels
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("kind", "precision"), [("features", "int8"), (None, "fp32")])
def test_tensorflow_lite_micro(exported, product, name, kind, precision):
    """The interpreter of microcontrollers runs the file as it is, its metadata included."""
    from tflite_micro.python.tflite_micro import runtime

    from cpprune.export.inputs import model_input
    from cpprune.export.tflite.runtime import dequantized, quantized

    file = product("tflite", name, kind, precision)
    interpreter = runtime.Interpreter.from_bytes(file.files[""], arena_size=1 << 22)

    def details(found):
        of = found["quantization_parameters"]
        scale, zero = (*of["scales"], 0.0)[0], (*of["zero_points"], 0)[0]
        return {"quantization": (float(scale), int(zero))}

    given = details(interpreter.get_input_details(0))
    made = details(interpreter.get_output_details(0))
    model = exported(name).model
    clips = clips_of(model, 5, seed=7)
    for clip, expected in zip(clips, file.exported.logits(clips).numpy(), strict=True):
        inputs = model_input(clip[None], kind or "waveform", model.features)
        interpreter.set_input(quantized(inputs, given), 0)
        interpreter.invoke()
        found = dequantized(interpreter.get_output(0), made)[0]
        # Two sets of kernels round some products of int8 otherwise: few steps of the output's scale.
        tolerance = 4 * made["quantization"][0] or 1e-4
        np.testing.assert_allclose(found, expected, atol=tolerance, rtol=0)


@pytest.mark.slow
@has_wheels
def test_the_file_needs_nothing_of_cpprune(exported, product):
    from ai_edge_litert.interpreter import Interpreter

    model = exported("small").model
    clips = clips_of(model, 1, seed=3)
    run = Interpreter(model_content=product("tflite", "small").files[""]).get_signature_runner()
    logits = run(waveform=clips.numpy().astype(np.float32) / 32768)["logits"]
    np.testing.assert_allclose(logits, model.logits(clips), atol=1e-4)


def test_no_layer_stays_in_float32(refused, tiny_run, scenes, tmp_path):
    command = ("export", tiny_run / "model", "--to", "tflite", "--out", tmp_path / "a.tflite")
    options = ("--precision", "int8", "--data", scenes, "--keep-float", "first")
    refused(*command, *options, names=["--keep-float", "tflite"])
    assert not any(tmp_path.iterdir())
