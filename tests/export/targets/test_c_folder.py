"""A model in C, compiled and run: torch's logits, the memory that is stated, and nothing of an OS."""

import copy
import ctypes
import json
import re
import subprocess

import numpy as np
import pytest
import torch
from export_jobs import clips_of, job_of
from export_models import KALDI, make_model
from networks import AlikeNames, randomised

from cpprune.evaluation.listening import Listener
from cpprune.export.c.host import CModel
from cpprune.export.c.source import simplify
from cpprune.export.onnx_session import open_session
from cpprune.export.quantize import quantize_int8
from cpprune.export.target import targets
from cpprune.models.quantized import calibrate, quantize

FLAGS = ("-std=c99", "-O1", "-Wall", "-Wextra", "-Werror")
TARGET = targets()["c"]
SOURCES = ("model.c", "network.c", "front_end.c")


@pytest.fixture(scope="module")
def make(exported):
    """Exports a model of MAKERS, whose network is already in ONNX: returns the job and the files."""

    def run(name, **options):
        made = exported(name)
        job = job_of(made.model, **options)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("cpprune.export.network.export_network", lambda *_: made.network)
            return job, TARGET.make(job).files

    return run


@pytest.fixture(scope="module")
def small(make):
    """The files of the small model. Tests must not change them."""
    return make("small")[1]


def write(files, folder):
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def cc(folder, *arguments):
    command = ["cc", *FLAGS, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def run_test(folder, files):
    sources = [name for name in files if name.endswith(".c") and name != "listen.c"]
    cc(folder, "-o", "try", *sources, "-lm")
    return subprocess.run([folder / "try"], capture_output=True, text=True, check=False)


def c_model(files, job):
    sources = {name: data.decode() for name, data in files.items() if name.endswith((".c", ".h"))}
    del sources["test.c"]
    sources.pop("listen.c", None)
    return CModel(sources, job.model, job.input, {})


def check(job, files):
    """Compare a model in C with torch on clips that are not in its test program."""
    clips = clips_of(job.model, 3, seed=7)
    expected = job.model.logits(clips)
    assert expected.std() > 0.01
    found = c_model(files, job).logits(clips)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_logits_are_torchs(exported, small):
    check(job_of(exported("small").model), small)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pruned", "cp_mobile", "digits"])
def test_logits_of_other_networks(make, name):
    check(*make(name))


@pytest.mark.parametrize("kind", ["int16", "features"])
def test_every_kind_of_input(make, kind):
    check(*make("small", kind=kind))


@pytest.mark.slow
def test_a_network_of_timm():
    import timm

    network = timm.create_model("mobilenetv3_small_050", in_chans=1, num_classes=3)
    job = job_of(make_model(randomised(network), KALDI))
    check(job, TARGET.make(job).files)


def test_layers_whose_names_differ_in_dots_alone(tmp_path):
    """Their names become the same words in C, and so do those of their tensors without dots."""
    network = randomised(AlikeNames(), gain=1.4).eval()
    model = make_model(network, None)
    files = TARGET.make(job_of(model, "features")).files
    check(job_of(model, "features"), files)
    cc(write(files, tmp_path), "-c", "network.c", "model.c")


@pytest.mark.slow
def test_quantised_layers_whose_names_differ_in_dots_alone():
    network = randomised(AlikeNames(), gain=1.4).eval()
    model = make_model(network, None)
    quantize(network, model.input_shape, ())
    calibrate(network, [model.features(clips_of(model, 16))])
    job = job_of(model, "features", "int8", calibration=None)
    clips = clips_of(model, 3, seed=7)
    expected = model.logits(clips)
    found = c_model(TARGET.make(job).files, job).logits(clips)
    assert (found - expected).abs().max() < 0.05 * float(expected.abs().max())


def test_the_test_program(small, tmp_path):
    folder = write(small, tmp_path)
    found = run_test(folder, small)
    assert found.returncode == 0, found.stdout
    assert "allowed: 4" in found.stdout
    assert found.stdout.splitlines()[-1] == "passed"
    # One bias more by a tenth: other logits.
    network = (folder / "network.c").read_text()
    place = network.index("= {", network.index("_weight_bias["))
    number = re.compile(r"-?0x[0-9a-f.]+p[-+]\d+f").search(network, place)
    changed = f"({number[0]} + 0.1f)"
    (folder / "network.c").write_text(network[: number.start()] + changed + network[number.end() :])
    found = run_test(folder, small)
    assert found.returncode == 1
    assert "FAILED" in found.stdout


@pytest.mark.parametrize("kind", ["waveform", "int16"])
def test_the_program_that_listens_hears_what_the_model_does(make, tmp_path, kind):
    job, files = make("small", kind=kind)
    folder = write(files, tmp_path)
    hop = job.model.clip_shape[0] // 3
    cc(folder, f"-DHOP={hop}", "-DSMOOTHING=0.1f", "-o", "hear", *SOURCES, "listen.c", "-lm")
    wave = np.concatenate(clips_of(job.model, 3, seed=2).numpy())
    wave = (wave * np.repeat([0.2, 1.0, 0.5], len(wave) // 3)).astype("<i2")[:-7]
    found = subprocess.run([folder / "hear"], input=wave.tobytes(), capture_output=True, check=True)
    rate = job.model.sample_rate
    expected = []
    for moment in Listener(job.model, hop, 0.1).listen([wave]):
        best = int(moment.probabilities.argmax())
        seconds = int(round(moment.seconds * rate) * 100 // rate)
        percent = round(100 * moment.probabilities[best])
        expected.append(
            f"{seconds // 100}.{seconds % 100:02} s  {job.model.classes[best]} {percent}%"
        )
    assert len(expected) == 6
    assert found.stdout.decode().splitlines() == expected


def test_the_program_that_listens_by_default_has_no_gaps_between_short_clips(small, tmp_path):
    header = small["model.h"].replace(b"MODEL_INPUT 4000 ", b"MODEL_INPUT 3999 ")
    assert header != small["model.h"]
    cc(write({**small, "model.h": header}, tmp_path), "-c", "listen.c")


def test_memory_and_symbols(small, tmp_path):
    folder = write(small, tmp_path)
    cc(folder, "-c", *SOURCES)
    objects = [folder / name.replace(".c", ".o") for name in SOURCES]
    sizes = subprocess.run(["size", *objects], capture_output=True, text=True, check=True).stdout
    bss = sum(int(line.split()[2]) for line in sizes.splitlines()[1:])
    metadata = json.loads(small["metadata.json"])
    # Objects begin at multiples of 32 bytes.
    assert metadata["bytes"]["ram"] <= bss < metadata["bytes"]["ram"] + 5 * 32
    symbols = subprocess.run(["nm", *objects], capture_output=True, text=True, check=True).stdout
    symbols = [line.split()[-2:] for line in symbols.splitlines() if " " in line]
    theirs = {name for kind, name in symbols if kind.isupper() and kind != "U"}
    assert theirs == {"model_logits", "model_network", "model_front_end", "model_classes"}
    used = {name for kind, name in symbols if kind == "U"} - theirs
    assert used <= {"logf", "expf", "sqrtf", "fmaxf", "fminf", "memcpy", "memset", "memmove"}
    text = b"".join(small.values()).decode()
    assert not re.search(r"\b(malloc|calloc|free|alloca)\b", text)
    assert f"{metadata['bytes']['ram']:,} bytes" in small["model.h"].decode()


def test_metadata(exported, small):
    model = exported("small").model
    found = json.loads(small["metadata.json"])
    assert found["target"] == "c"
    assert found["classes"] == list(model.classes)
    assert (found["input"], found["clip_shape"], found["sample_rate"]) == ("waveform", [4000], 8000)
    numbers = sum(
        m.weight.numel() + m.out_channels
        for m in model.network.modules()
        if isinstance(m, torch.nn.Conv2d)
    )
    assert 4 * numbers <= found["bytes"]["network"] < 4 * numbers + 100
    assert found["compiled"]["flash"] > found["bytes"]["network"]
    assert TARGET.folder.parts == (*sorted(small, key=TARGET.folder.parts.index), "check.json")


@pytest.mark.slow
def test_the_same_model_is_the_same_files(make, small):
    assert make("small")[1] == small


@pytest.mark.slow
@pytest.mark.parametrize("name", ["small", "cp_mobile"])
def test_int8(exported, make, name, tmp_path):
    made = exported(name)
    job, files = make(name, precision="int8")
    assert b"int8_t" in files["network.c"]
    clips = clips_of(made.model, 3, seed=7)
    found = c_model(files, job).logits(clips)
    network = quantize_int8(made.network, job.calibration_features(), integer=True)
    session = open_session(simplify(network), as_written=True)
    with torch.no_grad():
        features = made.model.features(clips).numpy()
    expected = np.concatenate([session.run(None, {"features": x[None]})[0] for x in features])
    np.testing.assert_allclose(found, expected, atol=2e-2 * np.abs(expected).max())
    full = made.model.logits(clips)
    assert (found - full).abs().max() < 0.25 * float(full.max() - full.min())
    metadata = json.loads(files["metadata.json"])
    float_size = json.loads(make(name)[1]["metadata.json"])["bytes"]
    assert metadata["bytes"]["network"] < 0.7 * float_size["network"]
    assert run_test(write(files, tmp_path), files).returncode == 0


def test_odd_class_names(exported, tmp_path, monkeypatch):
    made = exported("small")
    model = copy.copy(made.model)
    model.classes = ('a "b" \\n', "Straße */ ??/", "%s")
    monkeypatch.setattr("cpprune.export.network.export_network", lambda *_: made.network)
    files = TARGET.make(job_of(model, "features")).files
    folder = write(files, tmp_path)
    cc(folder, "-shared", "-fPIC", "-o", "model.so", "model.c", "network.c", "-lm")
    names = (ctypes.c_char_p * 3).in_dll(ctypes.CDLL(str(folder / "model.so")), "model_classes")
    assert tuple(name.decode() for name in names) == model.classes


# --- the command --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command(cli, refused, tiny_run, scenes, tmp_path, hashes):
    out = tmp_path / "new" / "c"
    command = ("export", tiny_run / "model", "--to", "c", "--out", out)
    check = ("--check", "--check-clips", 20, "--data", scenes)
    found = cli(*command, "--input", "features", *check, "--json").json
    assert (found["check"]["agreement"], found["check"]["clips"]) == (1.0, 20)
    assert json.loads((out / "check.json").read_text()) == found["check"]
    assert found["check"]["largest_difference"] < 1e-4
    assert found["bytes"]["ram"] > 0
    assert found["bytes"]["flash"] > found["bytes"]["network"]
    assert (out / "test.c").is_file()
    before = hashes(out)
    refused(*command, names=["--out", "exists", "--force"])
    assert hashes(out) == before
    (out / "notes.txt").write_text("mine")
    assert "bytes of flash" in cli(*command, "--force").out
    assert (out / "front_end.c").is_file()
    assert not (out / "check.json").exists()  # it was measured on what is gone
    assert (out / "notes.txt").read_text() == "mine"
    assert [path.name for path in out.parent.iterdir()] == ["c"]


def test_mistakes(refused, tiny_run, tmp_path, scenes, monkeypatch, hashes):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "main.c").write_text("mine")
    (theirs / "metadata.json").write_text('{"target": "c"}')
    model = tiny_run / "model"
    command = ("export", model, "--to", "c", "--force", "--out")
    refused(*command, theirs, names=["is not a model in C", "main.c"])
    refused(*command, model, names=["is not a model in C"])
    refused(*command, tmp_path / "a", "--precision", "fp16", names=["fp16", "fp32 or int8"])
    monkeypatch.setenv("CC", "no-such-compiler")
    check = ("--check", "--data", scenes)
    refused(*command, tmp_path / "a", *check, names=["--check", "no C compiler", "CC"])
    real = targets()["c"].require.__globals__["find_spec"]
    gone = lambda name: None if name == "emx_onnx_cgen" else real(name)  # noqa: E731
    monkeypatch.setattr("cpprune.export.target.find_spec", gone)
    refused(*command, tmp_path / "a", names=["emx_onnx_cgen", "pip install 'cpprune[export-c]'"])
    assert sorted(hashes(tmp_path)) == ["theirs/main.c", "theirs/metadata.json"]


def test_without_a_compiler(exported, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    made = exported("small")
    monkeypatch.setattr("cpprune.export.network.export_network", lambda *_: made.network)
    product = TARGET.make(job_of(made.model, "features"))
    assert json.loads(product.files["metadata.json"])["compiled"] is None
    assert "flash" not in product.complexity["bytes"]
    assert "bytes of constants" in product.summary


def test_an_operator_that_cannot_be_exported(make, monkeypatch):
    from emx_onnx_cgen import Compiler, UnsupportedOpError

    from shards.errors import UserError

    def fails(*arguments):
        raise UnsupportedOpError("Unsupported op ai.onnx.Odd\nand more")

    monkeypatch.setattr(Compiler, "compile", fails)
    with pytest.raises(UserError, match=r"cannot be exported to C: Unsupported op .*Odd and more"):
        make("small")
