"""Sweeps as files: what is read, what is refused, and that wandb reads and runs them as we do."""

import json
import math
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import optuna
import pytest

from cpprune.sweeps.command import command_words
from cpprune.sweeps.definition import EarlyTermination, grid_cell, grid_size, read_sweep
from cpprune.sweeps.parameters import read_parameter

REPOSITORY = Path(__file__).parents[2]
FILES = sorted((REPOSITORY / "configs/sweeps").glob("*.yaml"))
names = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def drawn(parameter, count=200):
    """Return what is drawn of a parameter in so many trials of Optuna."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [parameter.suggest(study.ask()) for _ in range(count)]


# --- the files of configs/sweeps ----------------------------------------------------------------------


def every_value(sweep):
    """Return arguments of trials in which every value of every list comes up, and every bound."""
    choices = [p.values or (p.low, p.high) for p in sweep.parameters]
    rounds = max(map(len, choices))
    return [
        {p.name: found[k % len(found)] for p, found in zip(sweep.parameters, choices, strict=True)}
        for k in range(rounds)
    ]


@pytest.fixture(scope="module")
def of_wandb(by_wandb):
    """What wandb makes of each file, with trials in which every value comes up."""
    asked = [
        {"file": str(path), "arguments": arguments, "id": "r4nd0m"}
        for path in FILES
        for arguments in every_value(read_sweep(path))
    ]
    found = {path.stem: [] for path in FILES}
    for one, answer in zip(asked, by_wandb(*asked), strict=True):
        found[Path(one["file"]).stem].append((one["arguments"], answer))
    return found


@names
def test_wandb_takes_the_file_and_draws_as_we_do(path, of_wandb):
    sweep = read_sweep(path)
    _, answer = of_wandb[path.stem][0]
    assert answer["config"]["parameters"].keys() == {p.name for p in sweep.parameters}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    trial = optuna.create_study().ask()
    for parameter in sweep.parameters:
        parameter.suggest(trial)
        ours, theirs = trial.distributions[parameter.name], answer["space"][parameter.name]
        if parameter.distribution == "categorical":
            ours = optuna.distributions.CategoricalDistribution(parameter.values)
        if parameter.q:  # whose multiples we take afterwards
            assert f"high={parameter.high}, log=False, low={parameter.low}, step" in theirs
        else:
            assert repr(ours) == theirs


@names
def test_the_command_of_wandbs_agent_is_ours_and_our_command_line_takes_it(
    path, of_wandb, monkeypatch
):
    from cpprune.cli.train import FLAGS
    from cpprune.config import build_parser, flatten, parse

    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("WANDB_RUN_ID", "r4nd0m")
    sweep = read_sweep(path)
    for arguments, answer in of_wandb[path.stem]:
        words = answer["words"]
        assert command_words(sweep.command, sweep.program, arguments) == words
        assert words[:3] == ["/usr/bin/env", "accelerate", "launch"]
        ours = words[words.index("launch/prune.py") + 1 :]
        parsed = parse(build_parser("cpprune prune", "", FLAGS), ours, list(FLAGS)).config
        assert parsed.run == f"runs/sweeps/{path.stem}/r4nd0m"
        assert parsed.prune.prunes
        settings = flatten(parsed.to_dict())
        for name, value in arguments.items():
            assert settings[name] == value
            assert type(settings[name]) is type(value) or isinstance(settings[name], float)


@names
def test_the_first_comment_says_how_to_start_it(path):
    comment = [line for line in path.read_text().splitlines() if line.startswith("#")]
    commands = [line.partition(":")[2].partition(", then")[0] for line in comment]
    words = [shlex.split(command) for command in commands if command]
    assert ["cpprune", "sweep", str(path.relative_to(REPOSITORY))] in words
    assert ["wandb", "sweep", str(path.relative_to(REPOSITORY))] in words
    for command in words:
        if command[:2] == ["cpprune", "train"]:
            assert (REPOSITORY / command[3]).is_file()


def test_the_sweep_of_the_documentation(tmp_path):
    text = (REPOSITORY / "docs/sweeps.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "own.yaml").write_text(block)
    sweep = read_sweep(tmp_path / "own.yaml")
    assert [parameter.distribution for parameter in sweep.parameters] == [
        *("uniform", "log_uniform_values", "categorical")
    ]
    words = command_words(sweep.command, sweep.program, {"prune.ratio": 0.5})
    assert words[5:] == [
        *("--config=configs/prune.yaml", "--init=runs/big/model"),
        *("--run=runs/mine/$WANDB_RUN_ID", "--prune.ratio=0.5"),
    ]
    for path in re.findall(r"configs/\S+?\.yaml|launch/\S+?\.yaml", text):
        assert (REPOSITORY / path).is_file()


def test_a_run_that_names_a_variable_that_is_not_there(refused, tmp_path):
    refused("train", "--run", "runs/$NO_SUCH_THING", names=["run=runs/$NO_SUCH_THING", "variable"])


def test_there_are_a_grid_a_random_and_a_bayes():
    assert {read_sweep(path).method for path in FILES} == {"grid", "random", "bayes"}


# --- parameters ---------------------------------------------------------------------------------------


def test_kinds_of_parameters():
    whole = drawn(read_parameter(("n",), {"min": 2, "max": 4}))
    assert set(whole) == {2, 3, 4}
    real = drawn(read_parameter(("x",), {"min": 0.5, "max": 2.0}))
    assert all(0.5 <= value <= 2 for value in real)
    assert np.mean(real) == pytest.approx(1.25, abs=0.1)
    logs = np.log10(
        drawn(
            read_parameter(("x",), {"distribution": "log_uniform_values", "min": 1e-5, "max": 0.1})
        )
    )
    assert np.mean(logs) == pytest.approx(-3, abs=0.3)
    assert np.all((logs >= -5) & (logs <= -1))
    exponents = np.log(
        drawn(read_parameter(("x",), {"distribution": "log_uniform", "min": -6, "max": 1}))
    )
    assert np.mean(exponents) == pytest.approx(-2.5, abs=0.4)
    steps = drawn(
        read_parameter(("x",), {"distribution": "q_uniform", "min": 0, "max": 0.4, "q": 0.1})
    )
    assert set(steps) == {0, 0.1, 0.2, 0.3, 0.4}, "and not 0.30000000000000004"
    tens = read_parameter(
        ("x",), {"distribution": "q_log_uniform_values", "min": 8, "max": 96, "q": 8}
    )
    found = drawn(tens)
    assert set(found) <= set(range(8, 97, 8))
    assert all(isinstance(value, int) for value in found)
    assert np.median(found) == pytest.approx(math.sqrt(8 * 96), abs=8)
    widths = read_parameter(("w",), {"values": [[18, 37, 75], None, True]})
    assert sorted(map(str, {str(value) for value in drawn(widths)})) == [
        "None",
        "True",
        "[18, 37, 75]",
    ]
    assert drawn(read_parameter(("c",), {"value": "cosine"}), 3) == ["cosine"] * 3


def test_grid_has_every_cell_once(sweep_file):
    parameters = {
        "a": {"values": ["p", "q"]},
        "b": {"min": 1, "max": 3},
        "c": {"value": 5},
        "d": {"distribution": "q_uniform", "min": 0.1, "max": 0.35, "q": 0.1},
    }
    sweep = read_sweep(sweep_file(parameters=parameters))
    cells = [grid_cell(sweep, number) for number in range(grid_size(sweep))]
    values = [tuple(json.loads(text) for text in cell.values()) for cell in cells]
    expected = [(a, b, d) for a in "pq" for b in (1, 2, 3) for d in (0.1, 0.2, 0.3)]
    assert values == expected


def test_nested_parameters_are_given_as_wandb_gives_them(sweep_file, by_wandb):
    nested = {"optim": {"parameters": {"lr": {"value": 1e-05}, "name": {"value": "adam"}}}}
    path = sweep_file(parameters={**nested, "flag": {"value": True}, "nothing": {"value": None}})
    sweep = read_sweep(path)
    assert [p.name for p in sweep.parameters] == ["optim.lr", "optim.name", "flag", "nothing"]
    arguments = {"optim": {"lr": 1e-05, "name": "adam"}, "flag": True, "nothing": None}
    for command in (["${env}", "x-${envvar:HOME}", "${args}"], ["${program}", "${args_no_equals}"]):
        path = sweep_file(parameters=nested, command=command)
        (answer,) = by_wandb({"file": str(path), "arguments": arguments, "id": "a"})
        ours = command_words(read_sweep(path).command, sweep.program, arguments)
        assert ours == answer["words"]
    assert command_words(["${interpreter}"], "", {}) == [sys.executable]

    from cpprune.config import build_parser, parse

    config = parse(build_parser("x", "", {}), ["--optim={'lr': 1e-05, 'name': 'adamw'}"], []).config
    assert (config.optim.lr, config.optim.name, config.optim.hold_epochs) == (1e-05, "adamw", 20)


def test_early_termination(sweep_file):
    def early(**keys):
        return read_sweep(sweep_file(early_terminate={"type": "hyperband", **keys})).early

    assert read_sweep(sweep_file()).early is None
    assert early(min_iter=4) == EarlyTermination(4, 3)
    assert early(min_iter=1, eta=2) == EarlyTermination(1, 2)
    # wandb: the brackets are max_iter / eta, max_iter / eta², … s of them
    assert early(max_iter=27, s=2) == EarlyTermination(3, 3)
    assert early(max_iter=50, s=9, eta=2) == EarlyTermination(1, 2)


# --- mistakes -----------------------------------------------------------------------------------------

PARAMETERS = [
    ({"distribution": "normal", "mu": 0}, ["distribution=normal", "log_uniform_values"]),
    ({"distribution": "beta"}, ["distribution=beta"]),
    ({"values": [1, 2], "probabilities": [0.5, 0.5]}, ["probabilities"]),
    ({"values": [1, 2, 1]}, ["values", "1 is given twice"]),
    ({"values": []}, ["values=[]"]),
    ({"values": 3}, ["values=3"]),
    ({"min": 1, "max": 2.5}, ["`min` and `max`", "1.0e-4"]),
    ({"distribution": "log_uniform_values", "min": "1e-4", "max": 1}, ["min=1e-4", "text"]),
    ({"distribution": "log_uniform_values", "min": 0, "max": 1}, ["min=0", "above 0"]),
    ({"distribution": "int_uniform", "min": 1, "max": 2.5}, ["max=2.5", "whole number"]),
    ({"min": 3, "max": 1}, ["min=3", "max=1"]),
    ({"distribution": "uniform", "min": 3}, ["parameters.x.max"]),
    ({"distribution": "uniform", "min": 0, "max": 1, "q": 2}, ["parameters.x.q"]),
    ({"distribution": "q_uniform", "min": 0, "max": 1, "q": 0}, ["q=0"]),
    ({"min": 0.5, "max": 1.5}, ["uniform", "method=grid"]),
    ({"parameters": {"y": {"value": 1}}, "value": 3}, ["parameters.x", "only key"]),
    (5, ["parameters.x=5", "{value: 5}"]),
]
KEYS = [
    ({"method": "annealing"}, ["method=annealing", "grid, random, bayes"]),
    ({"metric": None}, ["metric"]),
    ({"metric": {"name": "acc"}}, ["metric.name=acc", "val_macro_accuracy"]),
    ({"metric": {"name": "val_log_loss", "goal": "min"}}, ["metric.goal=min", "minimize"]),
    ({"controller": {"type": "local"}}, ["controller", "not supported"]),
    ({"program": None}, ["program"]),
    ({"command": "python x"}, ["command", "list"]),
    ({"command": ["${args_json_file}"]}, ["${args_json_file}", "${args}"]),
    ({"run_cap": 0}, ["run_cap=0"]),
    ({"parameters": {}}, ["parameters"]),
    ({"parameters": {"run": {"value": "a"}}}, ["parameters.run", "folder"]),
    (
        {"parameters": {"a.b": {"value": 1}, "a": {"parameters": {"b": {"value": 2}}}}},
        ["parameters.a.b", "twice"],
    ),
    ({"early_terminate": {"type": "envelope"}}, ["early_terminate", "hyperband"]),
    ({"early_terminate": {"type": "hyperband"}}, ["min_iter", "max_iter"]),
    ({"early_terminate": {"type": "hyperband", "max_iter": 9}}, ["early_terminate.s"]),
    ({"early_terminate": {"type": "hyperband", "min_iter": 1, "eta": 2.5}}, ["eta=2.5"]),
    ({"early_terminate": {"type": "hyperband", "min_iter": 1, "strict": True}}, ["strict"]),
]


@pytest.mark.parametrize(
    ("keys", "said"),
    [*(({"parameters": {"x": p}}, said) for p, said in PARAMETERS), *KEYS],
    ids=str,
)
def test_a_mistake_in_the_file_is_one_line(refused, sweep_file, tmp_path, keys, said):
    path = sweep_file(**keys)
    refused("sweep", path, "--out", tmp_path / "out", names=[path, *said])
    assert not (tmp_path / "out").exists()


def test_other_mistakes(cli, refused, sweep_file, tmp_path):
    out = tmp_path / "out"
    refused("sweep", tmp_path / "none.yaml", names=["none.yaml", "cannot be read"])
    refused("sweep", sweep_file(method="random"), "--out", out, names=["--trials", "run_cap"])
    refused("sweep", sweep_file(), "--trials", 0, names=["--trials 0"])
    refused("sweep", sweep_file(program="no.py"), "--out", out, names=["no.py", "repository"])
    (tmp_path / "text.yaml").write_text("just text")
    refused("sweep", tmp_path / "text.yaml", names=["text.yaml", "configs/sweeps"])
    (tmp_path / "bad.yaml").write_text("a: [")
    refused("sweep", tmp_path / "bad.yaml", names=["not valid YAML"])
    (tmp_path / "file").touch()
    refused("sweep", sweep_file(), "--out", tmp_path / "file", names=["file", "--out"])
    nothing = cli("sweep", sweep_file(command=["no-such-program"]), "--out", out)
    assert nothing.status == 2
    assert "no-such-program cannot be started" in nothing.err.splitlines()[-1]


def test_a_folder_keeps_its_sweep(cli, refused, sweep_file, tmp_path):
    out = ["--out", tmp_path / "out"]
    assert cli("sweep", sweep_file(), *out, "--trials", 1).status == 0
    assert cli("sweep", sweep_file(name="other", run_cap=1), *out).status == 0
    refused("sweep", sweep_file(method="random", run_cap=1), *out, names=["out", "method differs"])
    refused("sweep", sweep_file(), *out, "--", "--epochs=2", names=["settings differs", "--out"])


def test_what_is_not_installed_is_named(refused, sweep_file, tmp_path, monkeypatch):
    monkeypatch.setattr("cpprune.sweeps.study.find_spec", lambda name: None)
    refused(
        "sweep", sweep_file(), "--out", tmp_path / "out", names=["pip install 'cpprune[sweep]'"]
    )
