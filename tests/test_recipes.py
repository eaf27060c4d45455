"""Every recipe can be run by the commands in its comments, and is what it says it is."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from cpprune.config import ParsedRun, build_parser, flatten, parse

REPOSITORY = Path(__file__).parents[1]
RECIPES = sorted((REPOSITORY / "configs/recipes").glob("*.yaml"))


def commands(recipe: Path) -> list[str]:
    """Return the commands in a recipe's comments."""
    return re.findall(
        r"^#   (cpprune (?:train|prune|finetune) .*)$", recipe.read_text(), re.MULTILINE
    )


def parsed(command: str) -> ParsedRun:
    _, name, *words = shlex.split(command)
    return parse(build_parser(f"cpprune {name}", "", {}), words, [])


@pytest.fixture(autouse=True)
def at_the_repository(monkeypatch):
    monkeypatch.chdir(REPOSITORY)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_the_commands_of_a_recipe_are_those_of_its_settings(recipe):
    assert commands(recipe)
    own = flatten(yaml.safe_load(recipe.read_text()))
    for command in commands(recipe):
        run = parsed(command)
        assert f"configs/recipes/{recipe.name}" in command
        assert set(own) <= run.explicit
        typed = {word.removeprefix("--") for word in command.split() if word.startswith("--")}
        values = flatten(run.config.to_dict())
        for key in set(own) - typed:
            expected = float(own[key]) if isinstance(values[key], float) else own[key]
            assert values[key] == expected
        assert (
            command.startswith("cpprune prune") == run.config.prune.prunes or "control" in command
        )


def test_the_baseline_of_dcase_2024_is_its_code():
    """Defaults of its run_training.py, with a roll of 0.1 s at 32 kHz."""
    config = parsed(commands(REPOSITORY / "configs/recipes/dcase24_baseline.yaml")[0]).config
    spec = config.features.spec()
    assert spec is not None
    assert (spec.sample_rate, spec.window, spec.hop, spec.n_fft, spec.n_mels) == (
        32_000,
        3072,
        500,
        4096,
        256,
    )
    assert config.augment.roll == 0.1 * spec.sample_rate
    assert (config.optim.name, config.optim.lr, config.optim.weight_decay) == ("adamw", 5e-3, 1e-4)
    assert (config.train.precision, config.train.drop_last, config.train.ema_decay) == (
        "no",
        False,
        0,
    )


def test_a_control_is_as_wide_as_what_was_pruned(cli):
    control = commands(REPOSITORY / "configs/recipes/practical_work_scratch.yaml")[1]
    words = shlex.split(control)[2:]
    assert cli("info", *words, "--json").json["parameters"] == 44_784
