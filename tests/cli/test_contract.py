"""What each command prints, by the names and numbers that others rely on."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import yaml
import zoo

import cpprune
from cpprune.audio.config import PRESETS
from cpprune.cli.main import COMMANDS

REPOSITORY = Path(__file__).parents[2]
CONFIGS = sorted((REPOSITORY / "configs").glob("*.yaml"))
WIDTHS = {18: 32, 37: 64, 75: 128}  # after 0.41 of the channels are cut: before

PARAMETERS = {
    "big": 131_316,
    "control": 44_784,
    "cp_mobile": 61_148,
    "demo": 131_316,
    "mnist_big": 131_316,
    "mnist_prune": 131_316,
    "mnist_small": 47_028,
    "own": 131_316,
    "own_prune": 131_316,
    "progressive": 131_316,
    "prune": 131_316,
    "prune_plateau": 131_316,
    "quantize": 131_316,
    "scratch": 131_316,
    "small": 47_028,
}

pytestmark = pytest.mark.usefixtures("elsewhere")


# --- info ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters", "macs"),
    [("small", 47_028, 16_810_000), ("big", 131_316, 29_238_580), ("control", 44_784, 10_141_890)],
)
def test_info_of_a_configuration(cli, name, parameters, macs):
    shown = cli("info", "--config", REPOSITORY / f"configs/{name}.yaml", "--json").json
    assert shown["parameters"] == parameters
    assert shown["macs"] == pytest.approx(macs, rel=5e-4 if name == "small" else 0)
    assert shown["bytes"] == {"fp32": 4 * parameters, "fp16": 2 * parameters, "int8": parameters}
    assert shown["receptive_field"] == {"mel_bins": 91, "frames": 39}
    assert shown["input_shape"] == [1, 256, 44]
    assert shown["limits"]["macs"] == {"limit": 30_000_000, "ok": True}
    assert shown["limits"]["bytes"]["limit"] == 128_000
    assert shown["limits"]["bytes"]["ok"] == {
        "fp32": 4 * parameters <= 128_000,
        "fp16": 2 * parameters <= 128_000,
        "int8": parameters <= 128_000,
    }


def test_info_says_when_a_limit_is_broken(cli):
    config = REPOSITORY / "configs/big.yaml"
    shown = cli("info", "--config", config, "--features.preset", "passt_128", "--json").json
    assert shown["input_shape"] == [1, 128, 100]
    assert shown["macs"] == pytest.approx(33_460_000, rel=5e-4)
    assert shown["limits"]["macs"]["ok"] is False
    text = cli("info", "--config", config, "--features.preset", "passt_128").out
    assert "131,316" in text
    assert "over DCASE's limit of 30,000,000" in text
    assert "91 bins × 39 frames" in text


def test_info_of_a_model_folder(cli, tiny_run, scenes_source):
    shown = cli("info", tiny_run / "model", "--json").json
    description = json.loads((tiny_run / "model/model.json").read_text())
    rows = (scenes_source / "meta.csv").read_text().splitlines()[1:]
    assert shown["classes"] == sorted({row.split("\t")[1] for row in rows})
    assert shown["widths"] == description["widths"]
    assert shown["provenance"] == description["provenance"]
    assert shown["features"]["n_mels"] == 256
    assert {"parameters", "macs", "bytes", "receptive_field", "limits"} <= shown.keys()
    counted = sum(p.numel() for p in cpprune.load(tiny_run / "model").network.parameters())
    assert shown["parameters"] == counted


# --- prune --dry-run ----------------------------------------------------------------------------------


def test_dry_run_of_the_pruning_configuration(cli, tmp_path):
    config = REPOSITORY / "configs/prune.yaml"
    shown = cli("prune", "--config", config, "--dry-run", "--json").json
    assert shown.keys() == {"before", "after", "layers", "left_alone", "removed_blocks"}
    assert shown["removed_blocks"] == []
    assert shown["left_alone"] == {"feed_forward.0": "makes the outputs of the network"}
    assert shown["before"]["parameters"] == 131_316
    assert shown["after"]["parameters"] == 44_784
    assert (shown["before"]["macs"], shown["after"]["macs"]) == (29_238_580, 10_141_890)
    for side in (shown["before"], shown["after"]):
        assert side.keys() == {"parameters", "macs", "operations", "bytes"}
        assert side["bytes"]["fp16"] == 2 * side["parameters"]
    assert len(shown["layers"]) == 15
    assert all(WIDTHS[layer["after"]] == layer["before"] for layer in shown["layers"])
    assert not any(tmp_path.iterdir()), "a dry run writes nothing"


def test_dry_run_of_a_trained_model_is_what_pruning_it_gives(cli, tiny_run, scenes, tmp_path):
    plan = ["--init", tiny_run / "model", "--prune.ratio", 0.5, "--prune.steps", 2]
    plan += ["--train.epochs", 2, "--prune.criterion", "group_norm"]
    shown = cli("prune", *plan, "--dry-run", "--json").json
    settings = ["--data.path", scenes, "--data.train_fraction", 0.2, "--train.batch_size", 16]
    result = cli("prune", *plan, *settings, "--run", tmp_path / "run", "--json").json
    assert shown["after"]["parameters"] == result["parameters"]
    assert shown["after"]["macs"] == result["macs"]
    made = json.loads((tmp_path / "run/model/model.json").read_text())["widths"]
    assert {layer["name"]: layer["after"] for layer in shown["layers"]} == made
    first = shown["layers"][0]
    assert (first["name"], first["before"], first["after"]) == ("in_c.0", 6, 3)


def test_dry_run_as_text(cli):
    outcome = cli("prune", "--config", REPOSITORY / "configs/prune.yaml", "--dry-run")
    assert outcome.status == 0
    assert "131,316 → 44,784" in outcome.out
    assert "operations" not in outcome.out  # they agree with the MACs
    assert "stage3.block2.conv2" in outcome.out


def test_operations_are_shown_where_macs_leave_out_some(cli):
    hidden = ["--model.factory", "networks:hidden", "--data.path", "unused"]
    cost = cli("info", *hidden, "--json").json
    assert cost["operations"] > 2 * cost["macs"]
    line = next(x for x in cli("info", *hidden).out.splitlines() if x.startswith("operations"))
    assert line.split()[1] == f"{cost['operations']:,}"
    limit = cost["operations"] // 2
    pruning = ["prune", *hidden, "--prune.budget", f"operations<={limit}", "--dry-run"]
    shown = cli(*pruning, "--json").json
    assert shown["before"]["operations"] == cost["operations"]
    assert 0.9 * limit < shown["after"]["operations"] <= limit
    arrow = f"{cost['operations']:,} → {shown['after']['operations']:,}"
    assert arrow in cli(*pruning).out


# --- configurations -----------------------------------------------------------------------------------


def test_every_configuration_is_known_to_these_tests():
    assert [path.stem for path in CONFIGS] == sorted(PARAMETERS)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_can_be_used(cli, path):
    shown = cli("info", "--config", path, "--json").json
    assert shown["parameters"] == PARAMETERS[path.stem]
    preset = yaml.safe_load(path.read_text()).get("features", {}).get("preset", "cpjku22_256")
    shapes = {"image": [1, 28, 28], "cpjku22_256": [1, 256, 44], "dcase24": [1, 256, 65]}
    assert shown["input_shape"] == shapes[preset]


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [path for path in CONFIGS if "prune" in yaml.safe_load(path.read_text())],
    ids=lambda path: path.stem,
)
def test_every_pruning_configuration_ends_at_44784_parameters(cli, path):
    shown = cli("prune", "--config", path, "--dry-run", "--json").json
    assert shown["after"]["parameters"] == 44_784


def test_later_files_and_the_command_line_win(cli, tmp_path):
    (tmp_path / "one.yaml").write_text("model: {widths: [4, 4, 4]}\nseed: 3\n")
    (tmp_path / "two.yaml").write_text("model: {widths: [5, 5, 5]}\n")
    files = ["--config", tmp_path / "one.yaml", "--config", tmp_path / "two.yaml"]
    shown = cli("train", *files, "--print_config").out
    assert yaml.safe_load(shown)["seed"] == 3
    assert yaml.safe_load(shown)["model"]["widths"] == [5, 5, 5]
    assert cli("info", *files, "--json").json["widths"]["in_c.0"] == 5
    shown = cli("info", *files, "--model.widths=[7,7,7]", "--json").json
    assert shown["widths"]["in_c.0"] == 7


def test_the_resolved_configuration_of_a_run_can_be_given_again(cli, tiny_run):
    shown = cli("info", "--config", tiny_run / "config.yaml", "--json").json
    assert shown["widths"]["in_c.0"] == 6


# --- the process: standard output and standard error --------------------------------------------------


@pytest.mark.slow
def test_standard_output_of_a_process_is_one_json_object():
    config = str(REPOSITORY / "configs/prune.yaml")
    command = [sys.executable, "-m", "cpprune", "prune", "--config", config, "--dry-run"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["after"]["parameters"] == 44_784
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


def test_training_prints_its_result_and_nothing_else_on_standard_output(
    cli, tiny, scenes, tmp_path
):
    settings = [*tiny, "--data.path", scenes, "--data.train_fraction", 0.2, "--train.epochs", 1]
    outcome = cli("train", *settings, "--run", tmp_path / "run", "--json")
    assert outcome.json == json.loads((tmp_path / "run/result.json").read_text())
    assert outcome.json["model"] == str(tmp_path / "run/model")
    assert "epoch 1/1" in outcome.err
    assert cli("train", *settings, "--run", tmp_path / "other").out == ""


def test_console_script_gives_its_version_quickly_and_without_torch():
    code = "import sys; from cpprune.cli.main import main; main(sys.argv[1:]); "
    code += "print('torch' in sys.modules)"
    for argument in ("--version", "--help"):
        command = [sys.executable, "-c", code, argument]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.endswith("False\n")
    script = Path(sys.executable).with_name("cpprune")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"cpprune {version('cpprune')}\n"


WITHOUT_TORCH = """
import sys
from cpprune.cli.main import main
try:
    status = main(sys.argv[1:])
except SystemExit as end:
    status = end.code
print(status, "torch" in sys.modules)
"""


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["--help"], 0),
        (["--print_config"], 0),
        (["--optim.lrr", "1"], 2),
        (["--optim.lr", "fast"], 2),
        (["--optim.name", "adamm"], 2),
        (["--model.rho", "40"], 2),
        (["--prune.ratio", "2"], 2),
        (["--prune.budget", "params<=9,operations<=9", "--print_config"], 0),
        (["--prune.budget", "flops<=9"], 2),
    ],
    ids=str,
)
def test_help_and_mistakes_in_settings_need_no_torch(words, status):
    command = [sys.executable, "-c", WITHOUT_TORCH, "train", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"{status} False"


# --- help ---------------------------------------------------------------------------------------------


def test_help_lists_every_command(cli):
    outcome = cli("--help")
    assert outcome.status == 0
    assert outcome.out == cli().out
    for name in COMMANDS:
        assert f"\n  {name} " in outcome.out


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command(cli, name):
    outcome = cli(name, "--help")
    assert outcome.status == 0
    assert outcome.out.startswith(f"usage: cpprune {name}")
    assert outcome.err == ""


@pytest.mark.parametrize("name", ["synth", "build", "verify", "info"])
def test_help_of_the_commands_for_datasets(cli, name):
    outcome = cli("shards", name, "--help")
    assert outcome.status == 0
    assert outcome.out.startswith(f"usage: cpprune shards {name}")


def test_help_of_training_names_every_key_and_says_what_it_is(cli):
    from cpprune.config import all_keys

    text = cli("train", "--help").out
    missing = [key for key in all_keys() if f"--{key} " not in text]
    assert missing == []
    assert "fraction of the channels to remove" in text


# --- import -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "module."])
def test_import_of_a_state_dict(cli, tmp_path, prefix):
    torch.manual_seed(0)
    network = cpprune.build_model("cp_resnet", widths=[6, 8, 10]).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.1)
    tensors = {f"{prefix}{name}": t for name, t in network.state_dict().items()}
    torch.save(tensors, tmp_path / "seed.pth")
    outcome = cli("import", tmp_path / "seed.pth", "--out", tmp_path / "model", "--json")
    assert outcome.status == 0
    model = cpprune.load(tmp_path / "model")
    parameters = sum(p.numel() for p in network.parameters())
    about = {"parameters": parameters, "classes": list(model.classes)}
    assert outcome.json == {"model": str(tmp_path / "model"), **about}
    x = torch.randn(3, 1, 256, 44)
    assert torch.equal(model.network(x), network(x))
    assert model.classes[3] == "metro_station"
    assert cli("info", tmp_path / "model", "--json").json["widths"]["stage2.block1.conv2"] == 8


def test_import_of_a_network_that_is_described(cli, refused, tmp_path):
    torch.manual_seed(0)
    network = cpprune.build_model("cp_mobile", num_classes=3, base_channels=8).eval()
    state = {f"model.{name}": t for name, t in network.state_dict().items()}
    state["mel.window"] = torch.ones(5)
    file = tmp_path / "last.ckpt"
    torch.save({"state_dict": state, "epoch": 7}, file)
    keys = ["--model.name", "cp_mobile", "--model.base_channels", 8, "--features.preset", "dcase24"]
    out = tmp_path / "model"
    outcome = cli("import", file, "--out", out, "--classes", "x,y,z", *keys)
    assert outcome.status == 0, outcome.err
    assert "1 tensor(s) beside the network were not read" in outcome.err
    model = cpprune.load(out)
    assert model.classes == ("x", "y", "z")
    assert model.features.spec == PRESETS["dcase24"]
    assert model.metadata["provenance"] == {"imported": "last.ckpt"}
    wave = torch.randn(2, 32_000, generator=torch.Generator().manual_seed(1)) / 10
    with torch.no_grad():
        assert torch.equal(model(wave), network(cpprune.log_mel("dcase24")(wave)))
    words = ["import", file, "--out", tmp_path / "other"]
    refused(*words, *keys, names=["last.ckpt", "[10", "[3"])
    refused(*words, *keys, "--rho", 3, names=["--rho", "--model.rho"])
    refused(*words, "--model.names", "cp_mobile", names=["model.names", "model.name"])
    refused(*words[:1], *keys, *words[1:], names=["name the file first"])
    assert not (tmp_path / "other").exists()


def test_import_of_a_network_of_ones_own(cli, tmp_path):
    torch.manual_seed(0)
    network = zoo.CRNN(num_classes=10).eval()
    torch.save(network.state_dict(), tmp_path / "own.pth")
    outcome = cli(
        "import", tmp_path / "own.pth", "--out", tmp_path / "model", "--model.factory", "zoo:CRNN"
    )
    assert outcome.status == 0, outcome.err
    x = torch.randn(2, 1, 256, 44)
    with torch.no_grad():
        model = cpprune.load(tmp_path / "model", trust=["zoo"])
        assert torch.equal(model.eval().network(x), network(x))


def test_import_of_a_network_pruned_to_a_width_for_each_layer(cli, tiny_run, scenes, tmp_path):
    settings = ["--init", tiny_run / "model", "--prune.ratio", 0.3, "--train.epochs", 1]
    settings += ["--prune.scope", "global", "--data.path", scenes, "--data.train_fraction", 0.2]
    result = cli("prune", *settings, "--run", tmp_path / "run", "--json").json
    pruned = cpprune.load(result["model"])
    widths = json.loads((tmp_path / "run/model/model.json").read_text())["widths"]
    assert len({width for name, width in widths.items() if name.startswith("stage1.")}) > 1
    torch.save(pruned.network.state_dict(), tmp_path / "pruned.pth")
    assert cli("import", tmp_path / "pruned.pth", "--out", tmp_path / "model").status == 0
    wave = torch.randn(2, 32_000) / 10
    with torch.no_grad():
        assert torch.equal(cpprune.load(tmp_path / "model")(wave), pruned(wave))


def test_the_command_line_says_how_much_is_cut_whatever_a_file_says(cli, tmp_path):
    file = tmp_path / "prune.yaml"
    file.write_text("prune: {ratio: 0.41}\n")
    shown = cli("prune", "--config", file, "--prune.budget", "params<=47028", "--dry-run", "--json")
    assert shown.json["after"]["parameters"] == 47_028
    both = ["--prune.budget", "params<=47028", "--prune.ratio", 0.2]
    assert cli("prune", "--config", file, *both, "--dry-run").status == 2
