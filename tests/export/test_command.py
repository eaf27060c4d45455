"""`cpprune export`, and what other commands make of its files."""

import json
import shutil
from statistics import NormalDist

import numpy as np
import onnx
import onnxruntime
import pytest
import soundfile
import torch

import cpprune
from cpprune.distill.config import EXPORTED_SUFFIXES
from cpprune.export.check import wilson
from cpprune.export.target import targets


@pytest.fixture
def exported_copy(exported_file, tmp_path):
    """A file that a test may change."""
    path = tmp_path / "model.onnx"
    shutil.copy(exported_file, path)
    return path


def test_evaluate_takes_the_file_as_it_takes_the_folder(cli, tiny_run, exported_file, scenes):
    of_folder = cli("evaluate", tiny_run / "model", "--data", scenes, "--json").json
    of_file = cli("evaluate", exported_file, "--data", scenes, "--json").json
    assert of_file.keys() == of_folder.keys()
    assert of_file["accuracy"] == of_folder["accuracy"]
    assert of_file["log_loss"] == pytest.approx(of_folder["log_loss"], abs=1e-5)
    assert of_file["confusion"] == of_folder["confusion"]
    assert of_file["bytes"]["file"] == exported_file.stat().st_size
    one = cli("evaluate", exported_file, "--data", scenes).out
    other = cli("evaluate", tiny_run / "model", "--data", scenes).out
    assert one.splitlines()[0] == other.splitlines()[0]


def test_predict_takes_the_file(cli, tiny_run, exported_file, tmp_path):
    wave = np.random.default_rng(0).normal(0, 0.1, 70_000)
    soundfile.write(tmp_path / "a.wav", wave, 32_000)
    found = cli("predict", exported_file, tmp_path / "a.wav", "--json").json["predictions"][0]
    other = cli("predict", tiny_run / "model", tmp_path / "a.wav", "--json").json["predictions"][0]
    assert (found["clips"], found["prediction"]) == (other["clips"], other["prediction"])
    assert found["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)


def test_info_describes_the_file(cli, tiny_run, exported_file):
    found = cli("info", exported_file, "--json", "--latency").json
    model = cli("info", tiny_run / "model", "--json").json
    assert found["classes"] == model["classes"]
    assert found["features"] == model["features"]
    assert found["input_shape"] == model["input_shape"]
    assert found["latency_ms"] > 0
    weights = json.loads((tiny_run / "model/model.json").read_text())["weights"]
    assert found["weights_sha256"] == weights["sha256"]
    text = cli("info", exported_file).out
    assert f"{exported_file.stat().st_size:,}" in text
    assert "cp_resnet, fp32: waveform of 32000" in text


@pytest.mark.parametrize(("options", "threads"), [([], 0), (["--latency"], 1)])
def test_latency_is_measured_on_one_thread(cli, exported_file, monkeypatch, options, threads):
    made = []
    real = onnxruntime.InferenceSession

    def session(data, given, **others):
        made.append(given.intra_op_num_threads)  # 0: as many as there are cores
        return real(data, given, **others)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    assert cli("info", exported_file, *options).status == 0
    assert made == [threads, 0]  # the second tells the shapes of values


@pytest.mark.slow
def test_check_measures_what_evaluate_measures(cli, tiny_run, scenes, tmp_path):
    out = tmp_path / "int8.onnx"
    options = ("--precision", "int8", "--calibration-clips", 32, "--check", "--data", scenes)
    found = cli("export", tiny_run / "model", "--out", out, *options, "--json").json
    check = found["check"]
    assert (check["split"], check["clips"]) == ("test", 50)
    assert check["accuracy"].keys() == check["latency_ms"].keys() == {"model", "exported"}
    for name, path in (("model", tiny_run / "model"), ("exported", out)):
        measured = cli("evaluate", path, "--data", scenes, "--json").json
        assert check["accuracy"][name]["accuracy"] == pytest.approx(measured["accuracy"])
        assert check["latency_ms"][name] > 0
    assert check["agreement"] >= 0.9
    assert 0 < check["largest_difference"] < 1
    before = out.read_bytes()
    text = cli("export", tiny_run / "model", "--out", out, *options, "--force").out
    assert "same class for" in text
    assert out.read_bytes() == before


def test_the_file_needs_nothing_of_cpprune(tiny_run, exported_file):
    session = onnxruntime.InferenceSession(exported_file, providers=["CPUExecutionProvider"])
    wave = np.random.default_rng(3).normal(0, 0.1, (2, 32_000)).astype(np.float32)
    (logits,) = session.run(["logits"], {"waveform": wave})
    expected = cpprune.load(tiny_run / "model").logits(torch.from_numpy(wave)).numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == list(cpprune.load(tiny_run / "model").classes)


def test_wilson_interval():
    # The ends are where a score test of the proportion just does not reject it.
    for right, trials in ((0, 10), (7, 10), (480, 1000), (1000, 1000)):
        rate = right / trials
        for end in wilson(right, trials):
            if 0 < end < 1:
                score = abs(rate - end) / (end * (1 - end) / trials) ** 0.5
                assert 2 * (1 - NormalDist().cdf(score)) == pytest.approx(0.05, abs=1e-6)
            else:
                assert end == rate


# --- mistakes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--out", "model.bin"], ["--out model.bin", "must end in .onnx"]),
        (["--out", "there.onnx"], ["there.onnx", "exists", "--force"]),
        (["--out", "a.onnx", "--precision", "int8"], ["--precision int8", "--data"]),
        (["--out", "a.onnx", "--check"], ["--check", "--data"]),
        (["--out", "a.onnx", "--check-clips", "3"], ["--check-clips is for --check"]),
        (["--out", "a.onnx", "--split", "val"], ["--split val", "for --check"]),
        (["--out", "a.onnx", "--keep-float", "in_c.0"], ["--keep-float", "int8"]),
        (["--out", "a.onnx", "--keep-float", ""], ["--keep-float", "int8"]),
        (["--out", "a.onnx", "--sensitivity"], ["--sensitivity is for --precision int8"]),
        (["--out", "a.onnx", "--max-drop", "0.1"], ["--max-drop is for --precision int8"]),
        (
            [*("--out", "a.onnx", "--precision", "int8", "--data", "d", "--max-drop", "-1")],
            ["--max-drop -1", "from 0"],
        ),
        (["--out", "a.onnx", "--calibration-clips", "0"], ["--calibration-clips"]),
        (["--out", "a.onnx", "--input", "image"], ["--input image", "takes audio"]),
        (["--out", "a.onnx", "--to", "tflite"], ["--out a.onnx", "must end in .tflite"]),
        (["--out", "a.onnx", "--to", "tensors"], ["--to", "tensors"]),
        ([], ["--out"]),
    ],
)
def test_options_that_do_not_fit(refused, tiny_run, tmp_path, monkeypatch, options, names):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.onnx").write_bytes(b"mine")
    refused("export", tiny_run / "model", *options, names=names)
    assert [path.name for path in tmp_path.iterdir()] == ["there.onnx"]
    assert (tmp_path / "there.onnx").read_bytes() == b"mine"


@pytest.mark.slow
def test_no_such_layer(refused, tiny_run, scenes, tmp_path):
    options = ("--precision", "int8", "--data", scenes, "--calibration-clips", 4)
    out = tmp_path / "a.onnx"
    command = ("export", tiny_run / "model", "--out", out, *options, "--keep-float", "in_c.1")
    refused(*command, names=["--keep-float in_c.1", "did you mean in_c.0?"])
    assert not out.exists()


def test_a_missing_extra(refused, tiny_run, exported_file, scenes, tmp_path, monkeypatch):
    monkeypatch.setattr("cpprune.export.target.find_spec", lambda name: None)
    for command in (
        ("export", tiny_run / "model", "--out", tmp_path / "a.onnx"),
        ("evaluate", exported_file, "--data", scenes),
        ("info", exported_file),
    ):
        refused(*command, names=["onnx", "pip install 'cpprune[export]'"])
    assert not any(tmp_path.iterdir())


def test_a_network_that_cannot_be_exported(refused, tiny_run, tmp_path, monkeypatch):
    def fails(*arguments, **options):
        raise RuntimeError("no translation of aten::odd\nand much more")

    monkeypatch.setattr(torch.onnx, "export", fails)
    command = ("export", tiny_run / "model", "--out", tmp_path / "a.onnx")
    refused(*command, names=[tiny_run / "model", "cannot be exported", "no translation"])
    assert not any(tmp_path.iterdir())


def edited(data):
    model = onnx.load_model_from_string(data)
    model.graph.initializer[-1].raw_data = bytes(len(model.graph.initializer[-1].raw_data))
    return model.SerializeToString()


def stranger(data):
    model = onnx.load_model_from_string(data)
    del model.metadata_props[:]
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda data: data[: len(data) // 2], ["ONNX"]),
        (lambda data: b"", ["not an ONNX file of cpprune"]),
        (lambda data: b"not a model", ["not a whole ONNX file"]),
        (lambda data: data.replace(b'"bus"', b'"car"'), ["checksum"]),
        (edited, ["checksum"]),
        (stranger, ["not an ONNX file of cpprune"]),
    ],
)
def test_files_that_were_not_exported(refused, exported_copy, scenes, change, names):
    data = exported_copy.read_bytes()
    exported_copy.write_bytes(change(data))
    assert exported_copy.read_bytes() != data
    wave = exported_copy.with_name("a.wav")
    soundfile.write(wave, np.zeros(32_000), 32_000)
    names = [exported_copy, "export the model folder again", *names]
    refused("evaluate", exported_copy, "--data", scenes, names=names)
    refused("predict", exported_copy, wave, names=names)
    refused("info", exported_copy, names=names)


def test_a_file_that_is_not_there(refused, scenes, tmp_path):
    refused("evaluate", tmp_path / "a.onnx", "--data", scenes, names=["a.onnx", "cannot be read"])


def test_data_that_does_not_fit(refused, exported_file, call, noise_folder, tmp_path):
    source = noise_folder(tmp_path / "source", files=6)
    options = ("--source", source, "--out", tmp_path / "data", "--workers", 1)
    assert call("shards", "build", "folder", *options) == 0
    refused("evaluate", exported_file, "--data", tmp_path / "data", names=["other classes"])


def test_files_that_can_be_teachers_are_those_that_can_be_read_back():
    assert set(EXPORTED_SUFFIXES) == {t.suffix for t in targets().values() if t.load}
