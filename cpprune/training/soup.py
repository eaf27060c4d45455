"""Model soups: one network whose weights are the average of several models'.

Source: Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy
without increasing inference time", ICML 2022.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

import cpprune
from cpprune.audio.frontend import spec_to_json
from cpprune.deps.torch import AnyBatchNorm
from cpprune.distributed import collectives
from cpprune.evaluation.predict import CHUNK, evaluate_model
from cpprune.models import artifact
from cpprune.models.artifact import Model
from cpprune.models.changes import changed_attributes, removed_blocks
from cpprune.models.quantized import is_quantized
from cpprune.models.resize import layer_widths
from cpprune.pruning.plan import Plan
from shards.errors import UserError
from shards.files.documents import read_json
from shards.order import permutation
from shards.reader import Dataset

CHANNELS = "channels left by pruning"
ABSENT = "absent"  # in messages
METRICS = ("macro_accuracy", "accuracy", "log_loss", "clips")


@dataclass(frozen=True)
class Ingredient:
    """A model that may be averaged.

    Attributes:
        path: its folder.
        model: loaded from there.
        weights: SHA-256 of its weights.
        val: its own validation metrics.
    """

    path: str
    model: Model
    weights: str
    val: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Soup:
    """The average of some of the ingredients.

    Attributes:
        model: with the averaged weights.
        ingredients: that it was made of.
        val: its validation metrics.
    """

    model: Model
    ingredients: Sequence[Ingredient]
    val: Mapping[str, float]


def load_ingredients(paths: Sequence[str], device: torch.device) -> list[Ingredient]:
    """Load model folders whose weights can be averaged.

    Raises:
        UserError: one cannot be loaded, is quantised, or has another network, other classes or another
            front end than the first, or was pruned by another plan.
    """
    found = []
    for path in paths:
        folder = Path(path)
        if folder.is_file():
            raise UserError(
                f"{path}: is a file, whose weights cannot be averaged; give model folders"
            )
        weights = artifact.read_description(folder)["weights"]["sha256"]
        model = artifact.load(folder, device)
        if is_quantized(model.network):
            raise UserError(
                f"{path}: is quantised (int8), so that the statistics of batch normalisation cannot be "
                "computed anew: average the models that it was trained from, then quantise the soup"
            )
        found.append(Ingredient(path, model, weights))
    for other in found[1:]:
        _check_fit(found[0], other)
    return found


def _check_fit(first: Ingredient, other: Ingredient) -> None:
    wanted, traits = _traits(first), _traits(other)
    for what, value in wanted.items():
        given = traits[what]
        if given == value or (what == CHANNELS and not (given and value)):
            continue  # `doubts` says where channels cannot be compared
        text = ""
        if isinstance(value, dict) and isinstance(given, dict):
            pairs = {key: (given.get(key, ABSENT), value.get(key, ABSENT)) for key in value | given}
            key = next(key for key, (its, wants) in pairs.items() if its != wants)
            text = f" ({key}: {pairs[key][0]}, not {pairs[key][1]})"
        elif isinstance(value, str | list):
            text = f" ({given}, not {value})"
        raise UserError(
            f"{other.path}: has other {what} than {first.path}{text}; average models of one network, "
            "pruned by the same plan"
        )


def _traits(one: Ingredient) -> dict[str, object]:
    """Return what has to be the same, by what it is called in messages."""
    model = one.model
    shapes: dict[str, object] = {
        name: f"{list(t.shape)} {t.dtype}" for name, t in model.network.state_dict().items()
    }
    return {
        "architecture": model.family,
        "settings of the network": model.config,
        "blocks removed by pruning": removed_blocks(model.network),
        "attributes changed by pruning": changed_attributes(model.network),
        "widths": layer_widths(model.network),
        "tensors": shapes,
        "classes": list(model.classes),
        "clips": list(model.clip_shape),
        "numbers in the front end": spec_to_json(model.features.spec),
        CHANNELS: _kept_channels(Path(one.path)),
    }


def _kept_channels(folder: Path) -> dict[str, object]:
    """Return the channels that the plans of a model's run keep, by pruning step and layer."""
    kept: dict[str, object] = {}
    for number, path in enumerate(sorted(folder.parent.glob("plans/epoch-*.json"))):
        for group in read_json(path, Plan).groups:
            kept[f"{group.layer} in pruning step {number + 1}"] = group.keep
    return kept


def doubts(ingredients: Sequence[Ingredient]) -> list[str]:
    """Return why averages of these models may be of no use, a line for each reason."""

    def start(one: Ingredient) -> object:
        origin = _provenance(one)
        return origin.get("init") or ("seed", origin.get("seed"))

    first, lines = ingredients[0], []
    for one in ingredients[1:]:
        tuned = first.weights == start(one) or one.weights == start(first)
        if start(one) != start(first) and not tuned:
            lines.append(
                f"{one.path} and {first.path} did not start from the same weights: the average of "
                "networks that were trained apart is rarely of use"
            )
        kept = [_kept_channels(Path(path)) for path in (one.path, first.path)]
        if any(kept) and not all(kept):
            lines.append(
                f"{one.path} and {first.path}: the plans that pruned them do not lie beside both, so "
                "nobody knows whether the same channels are left"
            )
    return lines


def _provenance(one: Ingredient) -> Mapping[str, object]:
    origin = one.model.metadata.get("provenance")
    return origin if isinstance(origin, dict) else {}


def averaged(models: Sequence[Model]) -> Model:
    """Return a model with the average of these models' parameters and buffers, computed in float64.

    Integers, such as the number of batches that statistics are over, are those of the first.
    """
    states = [model.network.state_dict() for model in models]
    average: dict[str, Tensor] = {}
    for name, tensor in states[0].items():
        average[name] = tensor
        if tensor.is_floating_point():
            total = torch.stack([state[name].double() for state in states]).mean(0)
            average[name] = total.to(tensor.dtype)
    soup = copy.deepcopy(models[0])
    soup.network.load_state_dict(average)
    return soup


def recompute_statistics(
    model: Model, dataset: Dataset, clips: int | None, device: torch.device
) -> None:
    """Recompute the running statistics of batch normalisation, as `torch.optim.swa_utils` does.

    They are the mean over batches of training clips, without augmentation, in random order. A smaller
    last batch is left out. Nothing happens without batch normalisation.

    Args:
        model: whose network is changed.
        dataset: with the training clips.
        clips: number of them, or None for all.
        device: of the model.

    Raises:
        UserError: there is no training clip.
    """
    if not _has_statistics(model.network):
        return
    split = dataset.split("train")
    if not len(split):
        raise UserError(
            f"{dataset.path}: has no training clips, which the statistics of batch normalisation are "
            "computed from"
        )
    order = permutation(len(split), 0)[:clips]
    whole = len(order) - len(order) % CHUNK or len(order)
    dataset.prefetch(split.ids[order])
    torch.manual_seed(0)  # for dropout, which is on, too
    batches = (order[begin : begin + CHUNK] for begin in range(0, whole, CHUNK))
    inputs = (model.features(torch.from_numpy(split.fetch(own)).to(device)) for own in batches)
    update_bn(inputs, model.network)
    model.network.eval()
    collectives.broadcast_buffers(model.network)


def _has_statistics(network: nn.Module) -> bool:
    return any(isinstance(m, AnyBatchNorm) and m.track_running_stats for m in network.modules())


def make_soup(
    ingredients: Sequence[Ingredient],
    dataset: Dataset,
    device: torch.device,
    *,
    greedy: bool,
    clips: int | None,
    say: Callable[[str], None],
) -> tuple[Soup, list[Ingredient]]:
    """Average models: all, or those that do not make it worse.

    The greedy soup (the source's recipe 1) goes through the models by falling macro accuracy on the
    validation split, and keeps each with which the average is at least as accurate as without it.

    Args:
        ingredients: from `load_ingredients`.
        dataset: that fits them.
        device: of the models.
        greedy: whether to choose.
        clips: training clips for the statistics of batch normalisation, or None for all.
        say: reports what was tried.

    Returns:
        The soup, and all ingredients with their own validation metrics, in the order given.

    Raises:
        UserError: a model's output is not finite, or there is no validation clip.
    """
    if not len(dataset.split("val")):
        raise UserError(f"{dataset.path}: has no validation clips, by which models are compared")

    def measured(model: Model) -> Mapping[str, float]:
        report, _ = evaluate_model(model, dataset.split("val"), device)
        return {name: report[name] for name in METRICS}

    def mixed(of: Sequence[Ingredient]) -> Soup:
        model = averaged([one.model for one in of])
        recompute_statistics(model, dataset, clips, device)
        return Soup(model, of, measured(model))

    tasted = [replace(one, val=measured(one.model)) for one in ingredients]
    if not greedy:
        return mixed(tasted), tasted
    best, *others = sorted(tasted, key=accuracy, reverse=True)
    soup = Soup(best.model, [best], best.val or {})
    for one in others:
        tried = mixed([*soup.ingredients, one])
        taken = tried.val["macro_accuracy"] >= soup.val["macro_accuracy"]
        say(
            f"with {one.path}: macro accuracy {tried.val['macro_accuracy']:.4f} instead of "
            f"{soup.val['macro_accuracy']:.4f}: {'kept' if taken else 'left out'}"
        )
        if taken:
            soup = tried
    return soup, tasted


def accuracy(one: Ingredient) -> float:
    """Return a model's own macro accuracy on the validation split."""
    assert one.val is not None
    return one.val["macro_accuracy"]


def save_soup(soup: Soup, dataset: Dataset, folder: Path) -> None:
    """Write the model folder of a soup.

    Raises:
        UserError: the folder holds something other than a model, or cannot be written.
    """
    made_of = [
        {"run": _provenance(one).get("run"), "weights": one.weights} for one in soup.ingredients
    ]
    soup.model.metadata = {
        "provenance": {
            "cpprune": cpprune.__version__,
            "soup": made_of,
            "dataset": dataset.fingerprint,
        },
        "metrics": {"val": dict(soup.val)},
    }
    artifact.save(soup.model, folder)
