"""Whole blocks are the same on any number of processes, which remove them alike."""

import pytest
import torch
from run_folder import assert_close, events_of

from cpprune.data.compatibility import open_for_model
from cpprune.models import artifact
from cpprune.models.resize import layer_widths
from cpprune.pruning.config import PruneConfig
from cpprune.pruning.plan import plan_bytes
from cpprune.pruning.pruner import Pruner

CPU = torch.device("cpu")


def plans(model_folder, dataset):
    """Return plans that remove blocks, with channels and without, as text, on this rank."""
    found = []
    for settings in ({}, {"ratio": 0.4}, {"ratio": 0.4, "criterion": "taylor"}):
        model = artifact.load(model_folder)
        train = open_for_model(dataset, model).split("train")
        config = PruneConfig(blocks=2, calibration_clips=13, **settings)
        pruner = Pruner(config, model, train, 7, CPU)
        cut = pruner.prune(pruner.events[0], layer_widths(model.network), {})
        found.append([plan_bytes(cut.plan).decode(), cut.fingerprint])
    return found


def refusal(model_folder, dataset):
    """Return why no plan can be made, on this rank."""
    model = artifact.load(model_folder)
    train = open_for_model(dataset, model).split("train")
    pruner = Pruner(PruneConfig(blocks=9), model, train, 7, CPU)
    try:
        pruner.prune(pruner.events[0], layer_widths(model.network), {})
    except Exception as error:
        return str(error)
    return ""


@pytest.mark.slow
def test_plans_are_the_same_bytes(two, tiny_run, scenes):
    arguments = str(tiny_run / "model"), str(scenes)
    alone = plans(*arguments)
    assert len({text for text, _ in alone}) == 3
    assert two.call(plans, *arguments) == [alone, alone]


def test_every_rank_says_why_there_is_none(two, tiny_run, scenes):
    found = two.call(refusal, str(tiny_run / "model"), str(scenes))
    assert found[0] == found[1]
    assert found[0].startswith("prune.blocks=9: 4 residual block(s)")


@pytest.mark.slow
def test_a_run_loses_the_same_blocks(cli, two, tiny_run, scenes, tmp_path):
    words = ["prune", "--init", tiny_run / "model", "--data.path", scenes, "--train.epochs", 1]
    words += ["--data.train_fraction", 0.25, "--train.batch_size", 8, "--optim.name", "sgd"]
    words += ["--optim.lr", 1e-3, "--prune.blocks", 1, "--prune.ratio", 0.3, "--run"]
    assert cli(*words, tmp_path / "alone").status == 0
    two.cpprune(*words, tmp_path / "both")
    one, other = (events_of(tmp_path / name)[0] for name in ("alone", "both"))
    assert one["removed_blocks"] == other["removed_blocks"]
    assert one["fingerprint"] == other["fingerprint"]
    assert_close(tmp_path / "alone", tmp_path / "both", 1e-4)
