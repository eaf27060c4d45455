"""A new head: the tensors of a network that depend on the number of classes, made anew for others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from cpprune.models.artifact import Model
from cpprune.models.changes import changes
from cpprune.models.registry import build_model, rebuild_model
from shards.errors import UserError

Axes = dict[str, list[bool]]


def head_axes(family: str, config: Mapping[str, object], classes: int) -> Axes:
    """Return the tensors whose shape depends on the number of classes, and which of their axes do.

    Networks are built to find out, so that it holds for any: a classifier, and what follows it.

    Args:
        family: what `build_model` takes as the name.
        config: and its settings.
        classes: any number of them.

    Raises:
        UserError: there is none.
    """
    one, other = (
        build_model(family, num_classes=number, **config).state_dict()
        for number in (classes, classes + 1)
    )
    found = {
        name: [a != b for a, b in zip(tensor.shape, other[name].shape, strict=True)]
        for name, tensor in one.items()
        if tensor.shape != other[name].shape
    }
    if not found:
        raise UserError(
            f"init_head=new: no tensor of {family} depends on the number of classes, so it has no head"
        )
    return found


def with_new_head(model: Model, classes: Sequence[str]) -> Model:
    """Return a model with the same body and a freshly initialised head for other classes.

    In a pruned network, the head takes the fresh weights of as many channels as are left.

    Args:
        model: trained, pruned or not; its network is not changed.
        classes: names of the new classes.
    """
    axes = head_axes(model.family, model.config, len(classes))
    fresh = build_model(model.family, num_classes=len(classes), **model.config).state_dict()
    tensors: dict[str, Tensor] = dict(model.network.state_dict())
    for name, of_classes in axes.items():
        sizes = zip(of_classes, fresh[name].shape, tensors[name].shape, strict=True)
        kept = tuple(slice(new if by_class else old) for by_class, new, old in sizes)
        tensors[name] = fresh[name][kept].clone()
    network = rebuild_model(
        model.family,
        len(classes),
        model.config,
        tensors,
        model.input_shape,
        **changes(model.network),
    )
    return Model(
        network,
        model.features,
        family=model.family,
        config=model.config,
        classes=classes,
        clip_shape=model.clip_shape,
        fresh=frozenset(axes),
    )
