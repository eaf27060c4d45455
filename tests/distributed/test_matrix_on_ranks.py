"""Odd networks of every kind on two processes: cut alike, trained alike, and resumed through a cut.

Every checkpoint compares the weights of all ranks.
"""

import shutil

import pytest
import small_networks
import torch
from run_folder import assert_same_run, tensors

# By what is odd in each.
NETWORKS = {
    "grouped": "wirings:ResNeXt",
    "chunk": "blocks:Res2",
    "split": "wirings:SplitUnequally",
    "shuffle, depthwise": "blocks:ShuffleNet",
    "gated linear unit": "blocks:GLU",
    "recurrent": "zoo:CRNN",
    "recurrent, two directions": "zoo:Recurrent",
    "attention": "attentions:AST",
    "attention by products": "attentions:NonLocal",
    "attention of given sizes": "attentions:FixedHeads",
    "residual, depthwise, squeeze-excitation": "blocks:InvertedBottleneck",
    "BatchNorm1d": "zoo:OneRow",
    "gated, BatchNorm1d, recurrent": "attentions:Conformer",
    "concatenated": "wirings:CascadedConcat",
    "repeated": "blocks:Repeated",
}


@pytest.fixture
def command(digits):
    """A command that cuts a network by half and trains it."""

    def of(network, *more):
        words = ["prune", "--data.path", digits, "--features.preset", "image"]
        words += ["--optim.name", "sgd", "--optim.lr", 1e-2, "--optim.schedule", "constant"]
        words += ["--prune.ratio", 0.5, "--train.checkpoint_steps", 1]
        words += ["--train.keep_checkpoints", 9, "--trust", ",".join(small_networks.MODULES)]
        return [*words, "--model.factory", network, *more, "--run"]

    return of


def plans_of(run):
    return [path.read_bytes() for path in sorted((run / "plans").iterdir())]


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_a_cut_and_a_step_are_the_same_on_two_processes(cli, two, command, tmp_path, network):
    # 10 clips: one step of 5 and 5.
    more = ["--data.train_fraction", 0.2, "--train.batch_size", 10, "--train.epochs", 1]
    words = command(network, *more)
    outcome = cli(*words, tmp_path / "alone")
    assert outcome.status == 0, outcome.err
    two.cpprune(*words, tmp_path / "both")
    assert plans_of(tmp_path / "alone") == plans_of(tmp_path / "both")
    assert len(plans_of(tmp_path / "both")) == 1
    (name,) = [path.name for path in (tmp_path / "both/checkpoints").iterdir()]
    file = f"checkpoints/{name}/network.safetensors"
    one, other = (tensors(tmp_path / run / file) for run in ("alone", "both"))
    assert one.keys() == other.keys()
    for key, tensor in one.items():
        torch.testing.assert_close(other[key], tensor, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("network", ["attentions:FixedHeads", "zoo:Recurrent", "blocks:ShuffleNet"])
def test_a_run_is_resumed_through_a_cut_to_the_same_bits(two, command, tmp_path, network):
    # 20 clips: two steps, the cut, two steps.
    more = ["--data.train_fraction", 0.4, "--train.batch_size", 10, "--train.epochs", 2]
    words = command(network, *more, "--prune.start_epoch", 1)
    two.cpprune(*words, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    for path in sorted((tmp_path / "stopped/checkpoints").iterdir())[1:]:
        shutil.rmtree(path)
    shutil.rmtree(tmp_path / "stopped/plans")
    (tmp_path / "stopped/result.json").unlink()
    answers = two.cpprune(*words, tmp_path / "stopped")
    assert "goes on from step-00000001" in answers[0]["err"]
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")
    assert plans_of(tmp_path / "whole") == plans_of(tmp_path / "stopped")
