"""A folder of a stranger names a module: no command imports it, unless the user names it, too."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

import cpprune
from cpprune.cli.main import main
from cpprune.models import artifact, trust
from shards.errors import UserError

MODULE = "strange_nets"
SOURCE = """
from pathlib import Path

from torch import nn

(Path(__file__).parent / "imported").touch()


def tiny(num_classes: int, width: int = 4) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, stride=4), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(width, num_classes),
    )
"""


@pytest.fixture
def strange(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The current folder: a run whose models name a module that lies here and leaves a trace."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv(trust.VARIABLE, raising=False)
    Path(f"{MODULE}.py").write_text(SOURCE)
    shutil.copytree(tiny_run, "run")
    for name in ("model", "model_last"):
        path = Path("run", name, "model.json")
        content = json.loads(path.read_text())
        content |= {"architecture": f"{MODULE}:tiny", "config": {"width": 4}}
        path.write_text(json.dumps(content))
    # What a stranger's run says of itself is no word of the user's.
    settings = yaml.safe_load(Path("run/config.yaml").read_text())
    settings["model"] |= {"factory": f"{MODULE}:tiny", "arguments": {"width": 4}}
    Path("run/config.yaml").write_text(yaml.safe_dump(settings))
    soundfile.write("sound.wav", np.zeros(32_000, np.int16), 32_000)
    yield tmp_path
    sys.modules.pop(MODULE, None)


COMMANDS = {
    "info": ["info", "run/model"],
    "predict": ["predict", "run/model", "sound.wav"],
    "evaluate": ["evaluate", "run/model", "--data", "DATA"],
    "sensitivity": ["sensitivity", "run/model", "--data", "DATA"],
    "info --init": ["info", "--init", "run/model"],
    "train": ["train", "--init", "run/model", "--data.path", "DATA", "--run", "new"],
    "prune": ["prune", "--init", "run/model", "--data.path", "DATA", "--prune.ratio", "0.3"],
    "prune --dry-run": ["prune", "--init", "run/model", "--prune.ratio", "0.3", "--dry-run"],
    "report": ["report", "run"],
    "compare": ["compare", "run"],
}


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_nothing_is_imported_that_only_a_folder_names(cli, scenes, strange, words):
    outcome = cli(*(str(scenes) if word == "DATA" else word for word in words))
    assert not Path("imported").exists()
    assert MODULE not in sys.modules
    assert outcome.status == 2
    assert "Traceback" not in outcome.err
    assert f"--trust {MODULE}" in outcome.err
    assert f"CPPRUNE_TRUST={MODULE}" in outcome.err
    assert outcome.err.count("\n") == 1, outcome.err


def test_nor_by_the_library_or_in_debug_mode(strange, scenes):
    with pytest.raises(UserError, match=r"trust=\['strange_nets'\]"):
        cpprune.load("run/model")
    with pytest.raises(UserError, match="--trust"):
        main(["train", "--init", "run/model", "--data.path", str(scenes), "--debug"])
    assert not Path("imported").exists()


@pytest.fixture
def own(cli, scenes, strange):
    """The model of a network made by that module, trained here."""
    given = ["--model.factory", f"{MODULE}:tiny", "--data.path", scenes, "--train.epochs", 1]
    given += ["--data.train_fraction", 0.1, "--run", "own"]
    outcome = cli("train", *given)
    assert outcome.status == 0
    assert "no report was made" not in outcome.err  # settings trust for the whole command
    sys.modules.pop(MODULE)
    Path("imported").unlink()


def test_it_is_loaded_where_the_user_names_its_module(cli, own, monkeypatch):
    assert cli("info", "own/model").status == 2  # the settings of the command before are forgotten
    assert not Path("imported").exists()
    for words in (
        ["--trust", MODULE],
        [f"--trust={MODULE}"],
        ["--trust", "a.b", "--trust", MODULE],
        ["--trust", f"a, {MODULE}"],
    ):
        assert cli("info", "own/model", *words).status == 0
        assert cli("info", *words, "own/model").status == 0
        assert cli("info", "own/model").status == 2
    given = ["--init", "own/model", "--model.factory", f"{MODULE}:tiny"]
    assert cli("info", *given).status == 0
    assert cpprune.load("own/model", trust=[MODULE]).family == f"{MODULE}:tiny"
    monkeypatch.setenv("CPPRUNE_TRUST", f"other,{MODULE}")
    for words in (["info", "own/model"], ["report", "own"], ["compare", "own"]):
        assert cli(*words).status == 0
    assert cli("info", "own/model", "--trust", "more").status == 0


@pytest.mark.slow
def test_started_processes_inherit_it(own):
    code = "import os; from cpprune.models import trust\n"
    code += (
        "with trust.trusting(['--trust', 'strange_nets']):\n    os.system(os.environ['COMMAND'])"
    )
    inner = f"{shlex.quote(sys.executable)} -m cpprune info own/model --json > found.json"
    subprocess.run([sys.executable, "-c", code], check=True, env={"COMMAND": inner, "PATH": ""})
    assert json.loads(Path("found.json").read_text())["architecture"] == f"{MODULE}:tiny"


def test_a_package_is_trusted_with_what_is_below_it(monkeypatch):
    monkeypatch.setenv("CPPRUNE_TRUST", "nets.audio")
    here = Path("model.json")
    for name in ("nets.audio:f", "nets.audio.small:f"):
        trust.require_trust(name, here)
    for name in ("nets:f", "nets.audiovisual:f", "nets.audio_more:f", "audio:f"):
        with pytest.raises(UserError, match="--trust"):
            trust.require_trust(name, here)
    trust.require_trust("single:f", here, trust.module_names("single", "x"))
    trust.require_trust("single:f", here, "single")
    with pytest.raises(UserError):
        trust.require_trust("s:f", here, "single")


@pytest.mark.parametrize(
    "text", ["", ",", "a,", "my nets", "my_nets:tiny", "../x", "a..b", ".a", "²"]
)
def test_what_is_no_name_of_a_module_is_refused(cli, strange, monkeypatch, text):
    outcome = cli("info", "run/model", "--trust", text)
    assert outcome.status == 2
    assert "--trust" in outcome.err
    assert outcome.err.count("\n") == 1
    monkeypatch.setenv("CPPRUNE_TRUST", text)
    outcome = cli("info", "run/model")
    assert outcome.status == 2
    assert "CPPRUNE_TRUST" in outcome.err
    assert not Path("imported").exists()


@pytest.mark.parametrize(
    "name",
    [
        "os:system",
        "subprocess:run",
        "timm:create_model",
        "torch.hub:load",
        "torch.nn:Linear",
        "torchvision.models:resnet18",
        "..strange_nets:tiny",
        "strange nets:tiny",
        "strange_nets:",
        ":f",
        "strange_nets:tiny:tiny",
        "strange_nets",
        "\u0000:f",
        "strange_nets:tiny\n",
    ],
)
def test_whatever_a_folder_names_nothing_is_imported(strange, name, monkeypatch):
    from cpprune.models import factory

    monkeypatch.setattr(factory, "import_module", lambda name: pytest.fail(f"imported {name}"))
    path = Path("run/model/model.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architecture": name}))
    with pytest.raises(UserError):
        artifact.load(Path("run/model"))
