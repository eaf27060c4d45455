"""The initial model of a run: freshly initialised, or a trained one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from cpprune.audio.config import IMAGE, PRESETS
from cpprune.audio.dali import on_dali
from cpprune.audio.frontend import build_features, spec_to_json
from cpprune.config import RunConfig, flatten
from cpprune.data.compatibility import check_compatible
from cpprune.models import artifact
from cpprune.models.artifact import Model
from cpprune.models.factory import is_factory
from cpprune.models.head import head_axes, with_new_head
from cpprune.models.quantized import dequantize, is_quantized
from cpprune.models.registry import build_model, can_be_fused, check_logits
from cpprune.models.trust import trust_factory
from cpprune.models.weights import load_weights
from shards.errors import UserError
from shards.reader import Dataset

# Clip shapes where no dataset is opened: one second of audio as in TAU Urban Acoustic Scenes
# 2022 Mobile, or a digit of MNIST.
DIGIT = (1, 28, 28)
TEN_CLASSES = tuple(str(k) for k in range(10))


def create_model(config: RunConfig, dataset: Dataset, explicit: frozenset[str]) -> Model:
    """Return the model that a run starts from: that of `init`, or a fresh one for this dataset.

    Raises:
        UserError: a setting that was set explicitly contradicts the model of `init`, or the network of
            `model.factory` does not fit this dataset.
    """
    model = _start(config, explicit, dataset.classes, dataset.shape)
    check_compatible(dataset, model)
    _check_own_network(model)
    if config.features.backend == "dali":
        model.features = on_dali(model.features)
    return model


def planned_model(
    config: RunConfig, explicit: frozenset[str], classes: Sequence[str] = TEN_CLASSES
) -> Model:
    """Return the model of `init`, or of the configuration alone, without opening a dataset.

    Args:
        config: of a run.
        explicit: keys that were set on the command line or in a file.
        classes: names, if the model is not that of a folder.
    """
    spec = config.features.spec()
    clip_shape = DIGIT if spec is None else (spec.sample_rate,)
    model = artifact.deployed(_start(config, explicit, classes, clip_shape))
    _check_own_network(model)
    return model


def _start(
    config: RunConfig, explicit: frozenset[str], classes: Sequence[str], clip_shape: Sequence[int]
) -> Model:
    if config.model.factory is not None:
        trust_factory(config.model.factory)
    if config.init is not None and Path(config.init).is_dir():
        model = artifact.load(config.init)
        _refuse_contradictions(config, config.init, model, explicit)
        notes = []
        if is_quantized(model.network):
            dequantize(model.network)
            notes = [f"{config.init}: is quantised; what is trained is its network in float32"]
        if config.init_head == "new":
            torch.manual_seed(config.seed)
            model = with_new_head(model, classes)
        model.notes += notes
        return model
    torch.manual_seed(config.seed)
    network_config, family = config.model.network_config(), config.model.family
    fresh: frozenset[str] = frozenset()
    try:
        if config.init is not None and config.init_head == "new":
            fresh = frozenset(head_axes(family, network_config, len(classes)))
            torch.manual_seed(config.seed)
        network = build_model(family, num_classes=len(classes), **network_config)
    except ValueError as error:
        raise UserError(str(error)) from None
    notes = []
    if config.prune.prunes and can_be_fused(network):
        raise UserError(
            f"model.name={family}: is pruned once it is fused, as it is when it is saved: train it, "
            "then prune with --init RUN/model"
        )
    if config.init is not None:
        beside = load_weights(network, Path(config.init), fresh)
        if beside:
            notes.append(f"{config.init}: {beside} tensor(s) beside the network were not read")
    model = Model(
        network,
        build_features(config.features.spec()),
        family=family,
        config=network_config,
        classes=classes,
        clip_shape=clip_shape,
        fresh=fresh,
        notes=notes,
    )
    wanted = config.model.input_shape
    if wanted is not None and tuple(wanted) != tuple(model.input_shape):
        raise UserError(
            f"model.input_shape={wanted}: the front end gives {list(model.input_shape)}; leave it out, "
            "or change features.*"
        )
    return model


def _check_own_network(model: Model) -> None:
    if is_factory(model.family):
        try:
            check_logits(model.network, model.input_shape, len(model.classes))
        except ValueError as error:
            raise UserError(f"model.factory={model.family}: {error}") from None


def _refuse_contradictions(
    config: RunConfig, init: str, model: Model, explicit: frozenset[str]
) -> None:
    spec = artifact.read_description(Path(init))["features"]
    wanted = flatten(
        {
            "model": {
                "name": config.model.name,
                "factory": config.model.factory,
                **_settings(config.model.family, config.model.network_config()),
            },
            "features": asdict(config.features),
        }
    )
    carried = flatten(
        {
            "model": {
                "name": model.family,
                "factory": model.family,
                **_settings(model.family, model.config),
            },
            "features": spec or {},
        }
    )
    own = IMAGE if spec is None else "its own"
    names = (name for name, preset in PRESETS.items() if spec_to_json(preset) == spec)
    carried["features.preset"] = next(names, own)
    for key in sorted(explicit & set(wanted)):
        if key in carried and wanted[key] != carried[key]:
            raise UserError(
                f"{key}={wanted[key]} was given, but {init} was made with {carried[key]}: leave it "
                "out, since a model carries its network and front end with it"
            )


def _settings(family: str, config: dict[str, object]) -> dict[str, object]:
    return {"arguments": config} if is_factory(family) else config
