"""Patterns of layers' names in settings: which layers they match, and what that means for groups."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from cpprune.models.resize import LAYERS
from cpprune.pruning.config import PruneConfig
from cpprune.pruning.groups import ChannelGroup, Graph, pruned_layers
from shards.errors import UserError
from shards.suggest import did_you_mean


def matching_layers(network: nn.Module, pattern: str, key: str) -> set[str]:
    """Return the names of the layers that a pattern matches, as in a shell: `stage1.*`.

    Args:
        network: unwrapped module.
        pattern: name or pattern of layers.
        key: of the configuration, for the message.

    Raises:
        UserError: it matches none; the message names the nearest.
    """
    layers = [name for name, module in network.named_modules() if isinstance(module, LAYERS)]
    found = fnmatch.filter(layers, pattern)
    if not found:
        folders = {
            f"{layer[:at]}.*" for layer in layers for at in range(len(layer)) if layer[at] == "."
        }
        near = did_you_mean(pattern, [*layers, *sorted(folders)])
        raise UserError(f"{key}: no layer is called {pattern}{near}; see `--dry-run` for the names")
    return set(found)


def known_patterns(network: nn.Module, config: PruneConfig) -> PruneConfig:
    """Return the settings without patterns that match no layer of a network that has lost blocks."""
    layers = [name for name, module in network.named_modules() if isinstance(module, LAYERS)]
    ratios = {p: ratio for p, ratio in config.ratios.items() if fnmatch.filter(layers, p)}
    ignore = [p for p in config.ignore if fnmatch.filter(layers, p)]
    return replace(config, ratios=ratios, ignore=ignore)


def own_ratios(
    graph: Graph, network: nn.Module, groups: Sequence[ChannelGroup], ratios: Mapping[str, float]
) -> dict[str, float]:
    """Return the ratios of the groups that have one of their own, by the layer that names the group.

    Args:
        graph: the network's, from `dependency_graph`.
        network: unwrapped module.
        groups: all that are prunable.
        ratios: by pattern; of several that match a layer, the last counts.

    Raises:
        UserError: a pattern matches no layer, or none that is pruned; or layers that are coupled, and so
            lose the same channels, are to have two ratios.
    """
    members = {
        group.layer: pruned_layers(graph, network, group, all_channels=False) for group in groups
    }
    prunable = {layer for layers in members.values() for layer in layers}
    by_layer: dict[str, float] = {}
    for pattern, ratio in ratios.items():
        matching = matching_layers(network, pattern, "prune.ratios")
        if prunable.isdisjoint(matching):
            raise UserError(
                f"prune.ratios: {pattern} matches no layer that can be pruned; `--dry-run` says why"
            )
        by_layer |= dict.fromkeys(matching, ratio)
    found: dict[str, float] = {}
    for group, layers in members.items():
        named = [layer for layer in layers if layer in by_layer]
        for layer in named:
            if by_layer[layer] != by_layer[named[0]]:
                raise UserError(
                    f"prune.ratios: {named[0]} ({by_layer[named[0]]}) and {layer} ({by_layer[layer]}) "
                    "lose the same channels; give both the same ratio"
                )
            found[group] = by_layer[layer]
    return found
