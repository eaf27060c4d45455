"""Networks of others, by way of benchmarks/architectures.py: cut, saved, loaded and trained."""

import copy
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from marks import slow
from networks import plan_for

import cpprune
from cpprune.pruning.surgery import apply_plan, kept_entries
from shards.errors import UserError

SCRIPT = Path(__file__).parents[2] / "benchmarks/architectures.py"

# What cannot lose channels besides the classifier, by what it is called in the network.
LEFT_ALONE = {
    "xcit_nano_12_p16_224": "attn",
    "efficientvit_b0": "context_module",
    # Torch-Pruning does not know a GroupNorm without a bias.
    "poolformerv2_s12": "mlp.fc2",
    # To the graph, the tokens of a mixer are channels: what is added to them is not cut.
    "mixer_s32_224": "",
    "resmlp_12_224": "",
    # Splits and reshapes into numbers of channels that the code knows.
    "inception_next_atto": "",
    "edgenext_xx_small": "",
}


# Built as another one here or in SMALL is; benchmarks/architectures.py prunes them too.
ALIKE = {"resnet14t", "mobileone_s0", "mobilenetv2_050", "tinynet_e", "regnetx_002"}
ALIKE |= {"densenet121", "convnext_atto", "vit_tiny_patch16_224", "resmlp_12_224"}


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("architectures", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


ARCHITECTURES = load_script()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:FutureWarning")
@pytest.mark.parametrize(
    "name",
    [
        *ARCHITECTURES.SMALL,
        *(slow(name) for name in ARCHITECTURES.WHOLE if name not in ALIKE),
    ],
)
def test_it_is_pruned_and_comes_back_and_trains(name: str, tmp_path: Path) -> None:
    entry = {**ARCHITECTURES.SMALL, **ARCHITECTURES.WHOLE}[name]
    row = ARCHITECTURES.prune_and_load(entry, tmp_path / "model")
    assert row.difference == 0
    assert row.trains
    assert row.parameters[1] < 0.9 * row.parameters[0]
    assert row.macs[1] < 0.9 * row.macs[0]
    (head,) = [k for k, v in row.not_prunable.items() if v == "makes the outputs of the network"]
    others = [layer for layer in row.not_prunable if layer != head]
    assert bool(others) == (name in LEFT_ALONE)
    reasons = row.not_prunable
    roots = [layer for layer in others if not reasons[layer].startswith("is coupled with")]
    assert all(LEFT_ALONE.get(name, "") in layer for layer in roots)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:FutureWarning")
@pytest.mark.parametrize("name", ARCHITECTURES.REFUSED)
def test_what_cannot_be_pruned_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be copied once it was run") as caught:
        ARCHITECTURES.prune_and_load(ARCHITECTURES.REFUSED[name], tmp_path / "model")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["resnet of 4 blocks", "densenet of 2 + 2 layers", "lcnet_035"])
def test_what_is_kept_is_wired_as_before(name: str) -> None:
    """The cut network says what the whole one says with all entries that were cut silent."""
    size, family, arguments = ARCHITECTURES.SMALL[name]
    shape = (3, size, size)
    torch.manual_seed(0)
    network = cpprune.build_model(family, **arguments).double().eval()
    for tensor in network.state_dict().values():
        if tensor.is_floating_point() and tensor.ndim == 1:
            tensor.uniform_(0.5, 1.5)
    plan = plan_for(network.float(), shape, ratio=0.4)
    kept = kept_entries(network, shape, plan)
    silent = copy.deepcopy(network).double()
    for key, parameter in silent.named_parameters():
        mask = torch.zeros(parameter.numel(), dtype=torch.float64)
        mask[kept[key].flatten()] = 1
        parameter.data *= mask.view_as(parameter)
    apply_plan(network, shape, plan)
    x = torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = silent(x)
    assert expected.std() > 0
    torch.testing.assert_close(network.double()(x), expected, rtol=1e-6, atol=0)


PAGE = (SCRIPT.parents[1] / "docs/networks.md").read_text()


def test_the_page_has_all_networks() -> None:
    rows = [line.split(" | ")[0].removeprefix("| ") for line in PAGE.splitlines() if "| " in line]
    assert rows[1:] == list(ARCHITECTURES.small_networks())


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@pytest.mark.parametrize(
    "name",
    [
        *("NonLocal", "FixedSplit", "Tied", "Multiplied"),
        *map(slow, list(ARCHITECTURES.small_networks())[::6]),
    ],
)
def test_the_page_is_what_the_script_prints(name: str) -> None:
    assert ARCHITECTURES.table_row(name) in PAGE.splitlines()
