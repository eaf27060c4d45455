from typing import Any, Literal

import pytest

from cpprune.audio.config import IMAGE, PRESETS, FeaturesConfig
from cpprune.config import RunConfig, key_types
from cpprune.data.config import DataConfig
from cpprune.distill.config import DistillConfig
from cpprune.models.config import ModelConfig
from cpprune.pruning.config import PruneConfig
from cpprune.settings.choices import choices_of, hints
from cpprune.training.config import OptimConfig, TrainConfig

ROOMS = {
    "data": DataConfig,
    "distill": DistillConfig,
    "features": FeaturesConfig,
    "model": ModelConfig,
    "optim": OptimConfig,
    "train": TrainConfig,
    "prune": PruneConfig,
    "": RunConfig,
}
CHOICES = {key: choices_of(hint) for key, hint in key_types().items() if choices_of(hint)}


def test_choices_of_a_type():
    assert choices_of(Literal["a", "b"]) == ("a", "b")
    assert choices_of(Literal["a", "b"] | None) == ("a", "b")
    assert [choices_of(hint) for hint in (str, Any, int | None, list[int])] == [()] * 4


@pytest.mark.parametrize("key", CHOICES)
def test_a_value_that_is_none_of_the_choices(key):
    room, _, name = key.rpartition(".")
    near = CHOICES[key][0] + "x"
    with pytest.raises(ValueError, match=f"^{key}='{near}': choose one of ") as caught:
        ROOMS[room](**{name: near})
    assert ", ".join(CHOICES[key]) in str(caught.value)
    if type(None) not in getattr(hints(ROOMS[room])[name], "__args__", ()):
        with pytest.raises(ValueError, match=f"^{key}=None: choose one of "):
            ROOMS[room](**{name: None})


def test_choices_are_what_there_is():
    from cpprune.runs.tracking import PACKAGES

    assert set(CHOICES["track"]) == set(PACKAGES)
    # These come from the registries, which must have been filled.
    assert {"cp_mobile", "cp_resnet"} <= set(CHOICES["model.name"])
    known = {"magnitude", "magnitude_l2", "bn_scale", "group_norm", "lamp", "fpgm", "taylor"}
    assert known | {"hessian", "random"} <= set(CHOICES["prune.criterion"])


def test_every_preset_is_named_in_its_help():
    from docstring_parser import parse_from_object

    (text,) = [
        p.description for p in parse_from_object(FeaturesConfig).params if p.arg_name == "preset"
    ]
    assert [name for name in (*PRESETS, IMAGE) if name not in text] == []
