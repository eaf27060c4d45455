"""When the network shrinks, and to what."""

from typing import Any

import pytest

from cpprune.pruning.allocation import uniform
from cpprune.pruning.config import PruneConfig
from cpprune.pruning.schedule import Event, events, lr_span


def test_without_a_ratio_or_a_budget_nothing_is_pruned() -> None:
    assert events(PruneConfig()) == []
    assert not PruneConfig().prunes


@pytest.mark.parametrize("how_much", [{"ratio": 0.41}, {"budget": "params<=47028"}])
def test_one_event(how_much: dict[str, Any]) -> None:
    assert PruneConfig(**how_much).prunes
    assert events(PruneConfig(**how_much)) == [Event(epoch=0, fraction=1.0)]
    assert events(PruneConfig(**how_much, start_epoch=7)) == [Event(epoch=7, fraction=1.0)]


def test_the_fraction_grows_linearly() -> None:
    schedule = events(PruneConfig(ratio=0.6, steps=4, start_epoch=2, every_epochs=3))
    assert [event.epoch for event in schedule] == [2, 5, 8, 11]
    assert [event.fraction for event in schedule] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert schedule[-1].fraction == 1


def test_the_learning_rate_continues_or_begins_anew() -> None:
    settings: dict[str, Any] = {"ratio": 0.3, "steps": 2, "start_epoch": 4, "every_epochs": 3}
    whole = PruneConfig(**settings)
    assert {lr_span(whole, epoch, 12) for epoch in range(12)} == {(0, 12)}
    anew = PruneConfig(**settings, learning_rate="rewind")
    spans = [lr_span(anew, epoch, 12) for epoch in range(12)]
    assert spans == [(0, 4)] * 4 + [(4, 7)] * 3 + [(7, 12)] * 5


@pytest.mark.parametrize("width", [1, 2, 3, 10, 18, 32, 37, 64, 75, 100, 128, 1000])
def test_widths_are_rounded_down(width: int) -> None:
    # In whole numbers, so that 10 channels less 30 % are 7 and not 6.999….
    for thousandths in range(1, 1000):
        expected = width * (1000 - thousandths) // 1000
        assert uniform([width], thousandths / 1000).tolist() == [expected]


def test_widths_of_the_recipe() -> None:
    for ratio in (0.407, 0.41, 0.414):
        assert uniform([32, 64, 128], ratio).tolist() == [18, 37, 75]
    assert uniform([32], 0.406).tolist() == [19]
    assert uniform([128], 0.4141).tolist() == [74]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"ratio": 0.0}, "prune.ratio=0.0: must be above 0 and below 1"),
        ({"ratio": 1.0}, "prune.ratio=1.0: must be above 0 and below 1"),
        ({"ratio": 41.0}, "prune.ratio=41.0: must be above 0 and below 1"),
        ({"ratio": float("nan")}, "prune.ratio=nan: must be above 0 and below 1"),
        (
            {"criterion": "l1"},
            "prune.criterion='l1': choose one of magnitude, .*bn_scale, group_norm",
        ),
        ({"ratio": 0.4, "budget": "params<=9"}, "prune.ratio and prune.budget: give one"),
        ({"min_width": 0}, "prune.min_width=0.*at least 1"),
        ({"round_to": 0}, "prune.round_to=0.*at least 1"),
        ({"calibration_clips": 0}, "prune.calibration_clips=0: must be at least 1"),
        ({"scope": "layer"}, "prune.scope='layer': choose one of local, global"),
        ({"ramp": "cubik"}, "prune.ramp='cubik': choose one of widths, linear"),
        ({"reduction": "median"}, "prune.reduction='median': choose one of mean, sum, max, prod"),
        ({"normaliser": "l2"}, "prune.normaliser='l2': choose one of mean, max, sum, none"),
        ({"criterion": "random", "reduction": "max"}, "random has no prune.reduction"),
        ({"criterion": "lamp", "normaliser": "max"}, "lamp has no prune.normaliser"),
        ({"learning_rate": "hold"}, "prune.learning_rate='hold': choose one of continue, rewind"),
        ({"sparsity": "l1"}, "prune.sparsity='l1': choose one of none, slimming"),
        ({"sparsity_strength": 0.0}, "prune.sparsity_strength=0.0: must be above 0"),
        ({"ratio": 0.4, "sparsity": "slimming"}, "prune.sparsity=slimming acts before the cut"),
        ({"steps": 0}, "prune.steps=0.*at least 1"),
        ({"every_epochs": 0}, "prune.every_epochs=0.*at least 1"),
        ({"start_epoch": -1}, "prune.start_epoch=-1.*at least 0"),
    ],
)
def test_a_wrong_number_is_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PruneConfig(**wrong)
