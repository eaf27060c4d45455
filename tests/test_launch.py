"""The files in launch/accelerate/, used as their first comment says."""

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from run_folder import ids_of

REPOSITORY = Path(__file__).parents[1]
FILES = sorted((REPOSITORY / "launch/accelerate").glob("*.yaml"))


def commands(path):
    """Return the commands in the comment a file begins with, each as a list of words."""
    comment = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        comment.append(line.removeprefix("# "))
    text = re.sub(r"\\\n\s*", "", "\n".join(comment))
    return [
        shlex.split(line) for line in text.splitlines() if "accelerate launch --config_file" in line
    ]


def test_there_are_files():
    names = {path.stem for path in FILES}
    assert {"cpu", "single_gpu", "multi_gpu", "multi_node"} <= names


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_says_how_to_use_it_and_can_be_read(path, cli, tmp_path, monkeypatch):
    (command,) = commands(path)
    while "=" in command[0]:  # variables of the environment
        command.pop(0)
    assert command[:3] == ["accelerate", "launch", "--config_file"]
    assert REPOSITORY / command[3] == path
    script = next(word for word in command if word.startswith("launch/") and word.endswith(".py"))
    assert (REPOSITORY / script).is_file()
    ours = command[command.index(script) + 1 :]
    if "--config" in ours:
        monkeypatch.chdir(tmp_path)
        config = REPOSITORY / ours[ours.index("--config") + 1]
        assert cli("info", "--config", config).status == 0

    from accelerate.commands.config.config_args import ClusterConfig
    from accelerate.commands.launch import launch_command_parser

    known = launch_command_parser().parse_args(
        [re.sub(r"^[A-Z]+(\*[A-Z]+)?$", "2", word) for word in command[2:]]
    )
    assert known.training_script == script
    content = yaml.safe_load(path.read_text())
    # A key that Accelerate does not know would be refused or, worse, do nothing.
    config = ClusterConfig.from_yaml_file(yaml_file=str(path))
    for key, value in content.items():
        assert getattr(config, key) == value or str(getattr(config, key)).endswith(str(value))


def launched(path, free_port, *arguments):
    """Run the command of a file's comment, on a port of its own, with more arguments."""
    (command,) = commands(path)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    while "=" in command[0]:
        name, _, value = command.pop(0).partition("=")
        environment[name] = value
    command[:2] = [sys.executable, "-m", "accelerate.commands.launch"]
    at = command.index("--config_file") + 2
    command[at:at] = ["--main_process_port", str(free_port())]
    return subprocess.run(
        [*command, *map(str, arguments)],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.slow
def test_two_processes_on_the_cpu(free_port, scenes, tmp_path):
    settings = ["--data.path", scenes, "--run", tmp_path, "--data.record_ids", "true", "--json"]
    settings += ["--train.epochs", 1, "--train.batch_size", 8, "--data.train_fraction", 0.2]
    done = launched(REPOSITORY / "launch/accelerate/cpu.yaml", free_port, *settings)
    assert done.returncode == 0, done.stderr
    assert "2 process(es) on cpu" in done.stderr
    result = json.loads(done.stdout)
    assert result["parameters"] == 47_028
    parts = [ids_of(tmp_path, rank) for rank in (0, 1)]
    ids = [i for lines in parts for line in lines for i in line["ids"]]
    assert len(ids) == len(set(ids)) == 26, "each clip once, over both processes"
    assert [len(line["ids"]) for line in parts[0]] == [4, 4, 4, 1]


@pytest.mark.slow
def test_a_mistake_is_one_line_under_the_launcher(free_port, tmp_path):
    settings = ["--data.path", tmp_path / "nowhere", "--run", tmp_path / "run"]
    done = launched(REPOSITORY / "launch/accelerate/cpu.yaml", free_port, *settings)
    assert done.returncode != 0
    own = [line for line in done.stderr.splitlines() if line.startswith("cpprune: error: ")]
    assert len(own) == 1
    assert "nowhere" in own[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["train", "prune", "evaluate"])
def test_every_script_is_its_command(name, capfd, monkeypatch):
    script = str(REPOSITORY / f"launch/{name}.py")
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(script, run_name="__main__")
    assert end.value.code == 0
    assert capfd.readouterr().out.startswith(f"usage: cpprune {name}")
