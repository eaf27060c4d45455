"""What every command does with a model folder that was trained to be quantised."""

from pathlib import Path

import pytest

from cpprune.models import artifact
from cpprune.models.quantized import is_quantized


def test_the_precision_is_said(cli, quantised_run, tiny_run, scenes, scenes_source):
    folder = quantised_run / "model"
    wave = next((scenes_source / "audio").iterdir())
    for command, place in (
        (("info", folder), "out"),
        (("evaluate", folder, "--data", scenes), "out"),
        (("predict", folder, wave), "err"),
    ):
        assert "quantised (int8)" in getattr(cli(*command), place)
        assert cli(*command, "--json").json["precision"] == "int8"
        plain = [tiny_run / "model" if word == folder else word for word in command]
        outcome = cli(*plain)
        assert "quantised" not in outcome.out + outcome.err
        assert cli(*plain, "--json").json["precision"] == "fp32"


@pytest.fixture(scope="session")
def exported(call, quantised_run, tmp_path_factory) -> Path:
    """Its model as an ONNX file."""
    out = tmp_path_factory.mktemp("exported") / "a.onnx"
    assert call("export", quantised_run / "model", "--precision", "int8", "--out", out) == 0
    return out


@pytest.mark.slow
def test_an_exported_file_says_the_same(cli, exported, scenes):
    for command in (("info", exported), ("evaluate", exported, "--data", scenes)):
        assert cli(*command, "--json").json["precision"] == "int8"


def test_an_ensemble_names_both_precisions(cli, quantised_run, tiny_run, scenes):
    command = ("ensemble", quantised_run / "model", tiny_run / "model", "--data", scenes)
    assert cli(*command, "--json").json["precision"] == "fp32, int8"
    assert "quantised in part (fp32, int8)" in cli(*command).out


@pytest.mark.slow
def test_a_report_says_it(cli, quantised_run, exported, tmp_path):
    out = tmp_path / "page.html"
    command = ("report", quantised_run, "--out", out, "--mistakes", 0)
    assert cli(*command).status == 0
    page = out.read_text()
    assert "trained from scratch, quantised (int8)." in page
    assert f"--out {quantised_run / 'run.onnx'} --precision int8" in page
    assert cli(*command, "--exports", exported).status == 0
    assert "torch int8" in out.read_text()


@pytest.mark.parametrize(
    "option",
    [
        ("--calibration-clips", 5),
        ("--seed", 0),
        ("--keep-float", "none"),
        ("--sensitivity",),
        ("--max-drop", 0.1),
    ],
)
def test_options_of_calibration_are_refused(refused, quantised_run, tiny_run, tmp_path, option):
    out = tmp_path / "a.onnx"
    command = ("export", quantised_run / "model", "--precision", "int8", "--out", out, *option)
    refused(*command, names=[f"{option[0]}: ", quantised_run, "trained to be quantised"])
    command = ("export", tiny_run / "model", "--out", out, *option)
    refused(*command, names=[f"{option[0]} is for --precision int8"])
    assert not out.exists()


@pytest.mark.slow
def test_pruning_is_of_the_network_in_float32(cli, quantised_run, scenes, tiny, tmp_path):
    folder = quantised_run / "model"
    words = ["sensitivity", folder, "--data", scenes, "--ratios", "0.5", "--clips", 16]
    measured = cli(*words, "--out", tmp_path / "sensitivity")
    assert measured.status == 0
    assert f"{folder}: is quantised; what is pruned here is its network in float32" in measured.err
    run = ["--data.path", scenes, "--run", tmp_path / "run", "--train.epochs", 1]
    own = [word for word in tiny if word not in ("--model.widths", "[6, 8, 10]")]
    pruned = cli("prune", "--init", folder, "--prune.ratio", 0.3, *own, *run)
    assert pruned.status == 0
    assert "is quantised; what is trained is its network in float32" in pruned.err
    assert not is_quantized(artifact.load(tmp_path / "run" / "model").network)


def test_what_needs_float32_is_refused(refused, quantised_run, tiny_run, scenes, tmp_path):
    folder, out = quantised_run / "model", tmp_path / "out"
    both = (tiny_run / "model", folder)
    for models in (both, both[::-1], (folder, folder)):
        command = ("soup", *models, "--data", scenes, "--out", out)
        refused(*command, names=[f"{folder}: is quantised (int8)", "average the models"])
    command = ("submit", folder, "--label", "Doe_LAB", "--data", scenes, "--out", out)
    refused(*command, names=[f"{folder}: is quantised (int8)", "float16"])
    assert not out.exists()


@pytest.mark.slow
def test_fine_tuned_models_have_the_precision_of_the_general_one(
    refused, cli, quantised_run, tiny_run, tiny, scenes, tmp_path
):
    def command(init):
        own = [word for word in tiny if word not in ("--model.widths", "[6, 8, 10]")]
        words = [*own, "--data.path", scenes, "--train.epochs", 1, "--min-clips", 30]
        return ["finetune", "--init", init / "model", "--run", tmp_path / "run", *words]

    refused(*command(quantised_run), names=[f"--init {quantised_run}", "--quantize.start_epoch 0"])
    words = ("--quantize.start_epoch", 0)
    refused(*command(tiny_run), *words, names=["quantize.start_epoch=0", tiny_run])
    assert not (tmp_path / "run").exists()
    assert cli(*command(quantised_run), *words).status == 0
    assert is_quantized(artifact.load(tmp_path / "run" / "device-a" / "model").network)
    found = cli("info", tmp_path / "run" / "model", "--json").json
    assert {one["precision"] for one in (found["general"], *found["models"].values())} == {"int8"}
