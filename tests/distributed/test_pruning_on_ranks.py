"""Every criterion gives the same plan on any number of processes, and penalties pull alike."""

import hashlib

import pytest
import torch
from marks import slow
from run_folder import tensors

from cpprune.data.compatibility import open_for_model
from cpprune.models import artifact
from cpprune.models.fingerprint import fingerprint
from cpprune.models.resize import layer_widths
from cpprune.pruning.config import PruneConfig
from cpprune.pruning.criteria import CRITERIA
from cpprune.pruning.importance import measure_saliency
from cpprune.pruning.plan import plan_bytes
from cpprune.pruning.planner import make_plan
from cpprune.pruning.pruner import prune_on_all_ranks

CPU = torch.device("cpu")


def plans(model_folder, dataset):
    """Return, for each criterion, the bytes of the plan and the network that it leaves, on this rank."""
    found = {}
    for criterion in CRITERIA:
        model = artifact.load(model_folder)
        train = open_for_model(dataset, model).split("train")
        config = PruneConfig(ratio=0.4, criterion=criterion, calibration_clips=13)
        saliency = measure_saliency(config, model, train, 7, CPU)
        network, shape = model.network, model.input_shape
        cut = prune_on_all_ranks(
            network,
            shape,
            lambda network=network, shape=shape, config=config, saliency=saliency: make_plan(
                network,
                shape,
                config,
                original_widths=layer_widths(network),
                seed=7,
                saliency=saliency,
            ),
            {},
            CPU,
        )
        text = plan_bytes(cut.plan)
        found[criterion] = [hashlib.sha256(text).hexdigest(), fingerprint(network)]
    return found


@pytest.fixture(scope="module")
def alone(tiny_run, scenes):
    return plans(str(tiny_run / "model"), str(scenes))


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4], indirect=True)
def test_every_criterion_gives_the_same_bytes(ranks, alone, tiny_run, scenes):
    for found in ranks.call(plans, str(tiny_run / "model"), str(scenes)):
        assert found == alone
    assert len({plan for plan, _ in alone.values()}) == len(CRITERIA) == 9


@pytest.mark.slow
@pytest.mark.parametrize("kind", [slow("slimming"), slow("group_norm"), "growing"])
def test_a_penalty_is_the_same_on_two_processes(cli, two, tiny_run, scenes, tmp_path, kind):
    settings = ["--init", tiny_run / "model", "--data.path", scenes, "--data.train_fraction", 0.2]
    settings += ["--train.batch_size", 9, "--train.epochs", 2]
    settings += ["--optim.name", "sgd", "--optim.lr", 1e-3, "--optim.schedule", "constant"]
    settings += ["--prune.ratio", 0.5, "--prune.start_epoch", 1, "--prune.sparsity", kind]
    settings += ["--train.checkpoint_steps", 1, "--train.keep_checkpoints", 9]
    words = ["prune", *settings, "--prune.sparsity_strength", 0.3, "--run"]
    assert cli(*words, tmp_path / "alone").status == 0
    two.cpprune(*words, tmp_path / "both")
    # After three steps with the penalty, before the cut.
    file = "checkpoints/step-00000003/network.safetensors"
    one, other = (tensors(tmp_path / name / file) for name in ("alone", "both"))
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-5)
