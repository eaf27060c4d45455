"""Files for phones, of TensorFlow Lite and ExecuTorch: torch's logits in their runtimes."""

import copy
import hashlib
import io
import json
import shutil
import zipfile
from functools import partial

import pytest
import soundfile
import torch
from export_jobs import SHA, clips_of, job_of
from export_models import KALDI, make_model
from marks import has_wheels
from torch import nn

from cpprune.export.complexity import onnx_complexity
from cpprune.export.target import targets
from cpprune.models.quantized import calibrate, quantize

# What translates a network, by target.
TRANSLATORS = {
    "tflite": "litert_torch.convert",
    "executorch": "executorch.exir.to_edge_transform_and_lower",
}
NAMES = ("small", "cp_mobile")


@pytest.fixture(scope="module", params=TRANSLATORS)
def target(request):
    return targets()[request.param]


@pytest.fixture
def make(target, product):
    return partial(product, target.name)


# --- files ------------------------------------------------------------------------------------------


@pytest.mark.slow
@has_wheels
@pytest.mark.parametrize(
    ("name", "kind"), [("small", "int16"), ("cp_mobile", None), ("digits", None)]
)
def test_logits_are_torchs(exported, make, name, kind):
    model = exported(name).model
    clips = clips_of(model, 50, seed=7)
    expected = model.logits(clips)
    assert expected.std() > 0.01
    found = make(name, kind).exported.logits(clips)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert (found.argmax(1) == expected.argmax(1)).all()


@pytest.mark.slow
@has_wheels
@pytest.mark.parametrize("name", NAMES)
def test_int8(exported, make, name):
    model = exported(name).model
    clips = clips_of(model, 20, seed=7)
    expected = model.logits(clips)
    product = make(name, "features", "int8")
    difference = (product.exported.logits(clips) - expected).abs().max()
    assert 0 < difference < 0.2 * float(expected.max() - expected.min())
    one, other = make(name).complexity, product.complexity
    assert (other["parameters"], other["macs"]) == (one["parameters"], one["macs"])
    # Weights are a quarter. Bias, scale and zero point of each channel are not: much in small layers.
    assert other["bytes"]["network"] < 0.75 * one["bytes"]["network"]
    assert other["bytes"]["front_end"] == 0 < one["bytes"]["front_end"]


@pytest.mark.slow
@has_wheels
@pytest.mark.parametrize("name", NAMES)
def test_complexity(exported, make, name):
    expected = onnx_complexity(exported(name).network, 0)
    found = make(name).complexity
    assert (found["parameters"], found["macs"]) == (expected["parameters"], expected["macs"])
    assert found["bytes"]["network"] == pytest.approx(4 * found["parameters"], rel=0.02)
    assert found["bytes"]["file"] == len(make(name).files[""])


@pytest.mark.slow
@has_wheels
def test_metadata(exported, make):
    data = make("small").files[""]
    text = zipfile.ZipFile(io.BytesIO(data)).read("cpprune.json")
    about = json.loads(text)
    assert about["classes"] == list(exported("small").model.classes)
    assert about["weights_sha256"] == SHA
    assert (about["sample_rate"], about["clip_shape"]) == (8000, [4000])
    assert about["features"]["n_mels"] == KALDI.n_mels
    sealed = data[: about["bytes"]] + text.replace(about["sha256"].encode(), b"0" * 64)
    assert hashlib.sha256(sealed).hexdigest() == about["sha256"]
    for text in (b"/home", b"/tmp", b"site-packages", b"stack_trace", b"WholeModel", b"torch."):
        assert text not in data


# --- files of networks that were trained to be quantised -------------------------------------------


class Parts(nn.Module):
    """Parts that are concatenated, and pooled; a sum that is read by a layer and by a pool."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.left, self.right = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.down, self.last = nn.Conv2d(8, 8, 3, 2, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.cat([torch.relu(self.left(x)), self.right(x)], 1)
        x = torch.relu(x + x)
        x = self.down(x) + nn.functional.avg_pool2d(x, 3, 2, 1)
        return self.last(torch.relu(x)).mean((2, 3))


class TwoLinear(nn.Module):
    """Linear layers whose outputs are not quantised: one before an activation, one at the end."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3)
        self.hidden, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = torch.relu(self.stem(x)).mean((2, 3))
        return self.head(nn.functional.gelu(self.hidden(x)))


def trained_so(network, spec=None):
    """Return a model that rounds as a network does that was trained to be quantised."""
    model = make_model(copy.deepcopy(network), spec)
    quantize(model.network, model.input_shape)
    calibrate(model.network, [model.features(clips_of(model, 64, seed=1))])
    return model


@pytest.mark.slow
@has_wheels
def test_a_model_trained_to_be_quantised(exported, target):
    """The file rounds to the same numbers as the network that was trained: no data is needed."""
    model = exported("small").model
    fake = trained_so(model.network, KALDI)
    program = target.make(job_of(fake, None, "int8", calibration=None, run=True)).exported
    clips = clips_of(model, 1000, seed=7)
    expected = fake.logits(clips)
    found = program.logits(clips)
    assert (found.argmax(1) == expected.argmax(1)).float().mean() >= 0.999
    assert (found - model.logits(clips)).abs().max() > (found - expected).abs().max()


@pytest.mark.slow
@has_wheels
@pytest.mark.parametrize(("network", "tolerance"), [(Parts, 0.03), (TwoLinear, 1e-3)])
def test_whatever_it_computes(target, network, tolerance):
    torch.manual_seed(0)
    model = trained_so(network())
    made = target.make(job_of(model, None, "int8", calibration=None, run=True))
    clips = clips_of(model, 64, seed=1)
    expected = model.logits(clips)
    torch.testing.assert_close(
        made.exported.logits(clips), expected, atol=tolerance * float(expected.std()), rtol=0
    )


# --- commands ---------------------------------------------------------------------------------------


@pytest.fixture
def out(target, tmp_path):
    """Where a command writes its file."""
    return tmp_path / f"a{target.suffix}"


@pytest.fixture
def command(target, out, tiny_run):
    return ("export", tiny_run / "model", "--to", target.name, "--out", out)


@pytest.mark.slow
@has_wheels
def test_the_commands(cli, command, out, tiny_run, scenes, tmp_path):
    exported = cli(*command, "--data", scenes, "--check", "--json")
    assert exported.err == ""
    assert exported.json["check"]["agreement"] == 1.0
    assert exported.json["check"]["largest_difference"] < 1e-4
    of_folder = cli("evaluate", tiny_run / "model", "--data", scenes, "--json").json
    evaluated = cli("evaluate", out, "--data", scenes, "--json")
    of_file = evaluated.json
    assert evaluated.err == ""
    assert of_file.keys() == of_folder.keys()
    assert of_file["confusion"] == of_folder["confusion"]
    assert of_file["log_loss"] == pytest.approx(of_folder["log_loss"], abs=1e-5)
    assert of_file["bytes"]["file"] == out.stat().st_size
    described = cli("info", out, "--latency")
    assert "cp_resnet, fp32: waveform of 32000" in described.out
    assert described.err == ""
    soundfile.write(tmp_path / "a.wav", torch.randn(70_000).mul(0.1).numpy(), 32_000)
    found = cli("predict", out, tmp_path / "a.wav", "--json").json["predictions"][0]
    other = cli("predict", tiny_run / "model", tmp_path / "a.wav", "--json").json["predictions"][0]
    assert found["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)


@pytest.mark.slow
@has_wheels
def test_check_of_int8(cli, command, out, scenes):
    command += ("--precision", "int8", "--data", scenes, "--calibration-clips", 32)
    check = cli(*command, "--check", "--json").json["check"]
    assert check["agreement"] >= 0.8
    assert 0 < check["largest_difference"] < 1
    measured = cli("evaluate", out, "--data", scenes, "--json").json
    assert check["accuracy"]["exported"]["accuracy"] == pytest.approx(measured["accuracy"])
    before = out.read_bytes()
    assert cli(*command, "--force").status == 0
    assert out.read_bytes() == before


@pytest.mark.slow
@has_wheels
def test_damaged_make(refused, make, out, scenes, tmp_path):
    data = make("small").files[""]
    wave = tmp_path / "a.wav"
    soundfile.write(wave, torch.zeros(4000).numpy(), 8000)
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        text = archive.read("cpprune.json")
    whole = data[: json.loads(text)["bytes"]]
    renamed = io.BytesIO(whole)
    with zipfile.ZipFile(renamed, "a") as archive:
        archive.writestr("cpprune.json", text.replace(b'"bus"', b'"car"'))
    for changed, name in (
        (b"", "not a whole file of cpprune export"),
        (data[: len(data) // 2], "not a whole file of cpprune export"),
        (whole, "not a whole file of cpprune export"),
        (b"no model" * 100, "not a whole file of cpprune export"),
        (bytes(flipped), "checksum"),
        (renamed.getvalue(), "checksum"),
    ):
        out.write_bytes(changed)
        names = [out, "export the model folder again", name]
        refused("evaluate", out, "--data", scenes, names=names)
        refused("predict", out, wave, names=names)
        refused("info", out, names=names)


@pytest.mark.slow
@has_wheels
@pytest.mark.filterwarnings("ignore:\\w+_text is deprecated")  # as ExecuTorch is imported
def test_a_network_that_cannot_be_exported(refused, target, command, tiny_run, out, monkeypatch):
    def fails(*arguments, **options):
        raise RuntimeError("no translation of aten::odd\nand much more")

    monkeypatch.setattr(TRANSLATORS[target.name], fails)
    refused(*command, names=[tiny_run / "model", "cannot be exported", "no translation"])
    assert not any(out.parent.iterdir())


@has_wheels
def test_somebody_elses_file(refused, tiny_run, out):
    shutil.copy(tiny_run / "model/model.json", out)
    refused("info", out, names=["not a whole file of cpprune export"])


def test_mistakes(refused, target, command, out):
    refused(*command[:-1], out.with_suffix(".onnx"), names=[f"must end in {out.suffix}"])
    refused(*command, "--precision", "fp16", names=["fp32 or int8"])
    assert not any(out.parent.iterdir())


def test_a_missing_extra(refused, target, command, tiny_run, scenes, out, monkeypatch):
    shutil.copy(tiny_run / "model/model.json", out)
    monkeypatch.setattr("cpprune.export.target.find_spec", lambda name: None)
    names = [target.needs[0], f"pip install 'cpprune[{target.extra}]'"]
    refused(*command, "--force", names=names)
    refused("evaluate", out, "--data", scenes, names=names)
    refused("info", out, names=names)
