"""A pruning plan: which blocks go, and which channels of each group stay. Data, and JSON on disk."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
from torch import nn

from cpprune.models.changes import remove_blocks
from cpprune.models.example import example_input
from cpprune.models.fingerprint import fingerprint, structure
from cpprune.pruning.blocks import RemovedBlock, removable_blocks
from cpprune.pruning.groups import ChannelGroup, dependency_graph
from cpprune.pruning.prunable import prunable_groups
from shards.errors import UserError
from shards.files.atomic import write_output
from shards.files.documents import read_json, to_json, typed


@dataclass(frozen=True)
class GroupPlan:
    """What is kept of one channel group.

    Attributes:
        layer: the group's name; see `ChannelGroup`.
        width: its channels before pruning.
        keep: the channels that stay, sorted.
        score_kept: lowest and highest score of what is kept.
        score_cut: lowest and highest score of what is removed; None if nothing is.
        criterion: that scored the channels, where it is not the plan's.
        attributes: of modules, as the cut changes them; see `ChannelGroup.attributes`.
    """

    layer: str
    width: int
    keep: list[int]
    score_kept: tuple[float, float] | None = None
    score_cut: tuple[float, float] | None = None
    criterion: str | None = None
    attributes: dict[str, int] = field(default_factory=dict)

    @property
    def removed(self) -> list[int]:
        """The channels that go, sorted."""
        return sorted(set(range(self.width)).difference(self.keep))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One pruning step of one network.

    Attributes:
        criterion: that scored the channels of every group that names no other.
        scope: that allocated the widths.
        structure: `structure` of the network that the plan was made for.
        weights: its `fingerprint`.
        groups: each group of what the blocks leave once; groups that are not listed stay whole.
        removed_blocks: that go before any channel does.
    """

    criterion: str | None = None
    scope: str | None = None
    structure: str
    weights: str
    groups: list[GroupPlan]
    removed_blocks: list[RemovedBlock] = field(default_factory=list)

    @property
    def attributes(self) -> dict[str, int]:
        """The attributes of modules that change."""
        return {name: value for group in self.groups for name, value in group.attributes.items()}

    def to_json(self) -> dict[str, object]:
        """Return the plan as JSON holds it."""
        plan: dict[str, object] = msgspec.to_builtins(self)
        return plan

    @classmethod
    def from_json(cls, document: object) -> Plan:
        """Return the plan that `to_json` gave.

        Raises:
            DocumentError: the document is no plan.
        """
        return typed(document, cls)


def without_blocks(network: nn.Module, blocks: Sequence[RemovedBlock]) -> nn.Module:
    """Return a copy of a network without blocks; the network itself if there are none to remove.

    Raises:
        ValueError: see `remove_blocks`.
    """
    if not blocks:
        return network
    left = copy.deepcopy(network)
    remove_blocks(left, [block.name for block in blocks])
    return left


def with_blocks(network: nn.Module, blocks: Sequence[RemovedBlock], plan: Plan | None) -> Plan:
    """Return a plan that removes blocks of a network, and then does what another does to what is left.

    Args:
        network: with the blocks.
        blocks: that go; the plan is returned as it is if there are none.
        plan: for `without_blocks`; None removes no channels.
    """
    if plan is not None and not blocks:
        return plan
    gone, whole, weights = list(blocks), structure(network), fingerprint(network)
    if plan is None:
        return Plan(structure=whole, weights=weights, groups=[], removed_blocks=gone)
    return replace(plan, structure=whole, weights=weights, removed_blocks=gone)


def blocks_removed(plan: Plan) -> list[str]:
    """Return a line for each block that a plan removes."""
    return [
        f"{block.name} is removed whole"
        + ("" if block.score is None else f" (block influence {block.score:.3g})")
        for block in plan.removed_blocks
    ]


def scored_otherwise(plan: Plan) -> str:
    """Return a line that names the layers which a second criterion has scored; "" without any."""
    layers = [group.layer for group in plan.groups if group.criterion]
    if not layers:
        return ""
    by = " and ".join(sorted({group.criterion for group in plan.groups if group.criterion}))
    more = f" and {len(layers) - 3} more" if len(layers) > 3 else ""
    return (
        f"scored by {by}, since {plan.criterion} finds nothing there: {', '.join(layers[:3])}{more}"
    )


def collapsed(plan: Plan, original_widths: Mapping[str, int]) -> str:
    """Return a line that names the layers with less than a tenth of their channels; "" without any."""
    narrow = [
        f"{group.layer} ({original_widths[group.layer]} → {len(group.keep)})"
        for group in plan.groups
        if 10 * len(group.keep) < original_widths[group.layer]
    ]
    more = f" and {len(narrow) - 3} more" if len(narrow) > 3 else ""
    text = f"less than a tenth is left of {', '.join(narrow[:3])}{more}; see prune.max_ratio"
    return text if narrow else ""


def remarks(plan: Plan, original_widths: Mapping[str, int]) -> list[str]:
    """Return what should be said of the channels of a plan, a line each."""
    lines = [scored_otherwise(plan), collapsed(plan, original_widths)]
    return [line for line in lines if line]


def plan_bytes(plan: Plan) -> bytes:
    """Return the content of a plan's file."""
    return (to_json(plan.to_json(), indent=2) + "\n").encode()


def write_plan(path: Path, plan: Plan) -> None:
    """Write a plan for `read_plan`.

    Raises:
        UserError: the file cannot be written.
    """
    write_output(path, plan_bytes(plan), "--prune.save_plan")


def read_plan(path: Path, network: nn.Module, input_shape: Sequence[int]) -> Plan:
    """Read a plan that `cpprune prune --dry-run --prune.save_plan` wrote for exactly this network.

    Raises:
        UserError: no such file, no plan, one for another network, or one that cannot be applied.
    """
    remedy = "make a pruning plan with `cpprune prune --dry-run --prune.save_plan`"
    plan = read_json(path, Plan, remedy=remedy)
    if (plan.structure, plan.weights) != (structure(network), fingerprint(network)):
        raise UserError(
            f"{path}: was made for another network than this one (or was applied to it already): give "
            "the --init that it was made with, or make a new plan"
        )
    blocks = [block.name for block in plan.removed_blocks]
    removable = removable_blocks(network, input_shape) if blocks else []
    if len(set(blocks)) != len(blocks) or not set(blocks) <= set(removable):
        raise UserError(
            f"{path}: its removed_blocks must be some of {', '.join(removable) or 'none'}, each once; "
            "make a new plan"
        )
    if not plan.groups:
        return plan
    left = without_blocks(network, plan.removed_blocks)
    with dependency_graph(left, example_input(left, input_shape)) as graph:
        groups = {group.layer: group for group in prunable_groups(graph, left)}
    layers = [entry.layer for entry in plan.groups]
    if len(set(layers)) != len(layers) or not groups.keys() >= set(layers):
        raise UserError(
            f"{path}: its groups must be some of {', '.join(groups)}, each once; make a new plan"
        )
    for entry in plan.groups:
        group = groups[entry.layer]
        if not _fits(entry, group):
            raise UserError(
                f"{path}: {group.layer} has {group.width} channels in {group.blocks} block(s): keep "
                "must list those that stay, sorted, as many in each block; make a new plan"
            )
        attributes = attributes_after(group, entry.keep)
        if entry.attributes != attributes:
            raise UserError(
                f"{path}: the attributes of {group.layer} must be {attributes}; make a new plan"
            )
    return plan


def attributes_after(group: ChannelGroup, keep: Sequence[int]) -> dict[str, int]:
    """Return the attributes of modules that change when these channels of a group are kept."""
    return group.attributes_of(len(keep) // group.blocks) if len(keep) < group.width else {}


def _fits(entry: GroupPlan, group: ChannelGroup) -> bool:
    units = sorted({group.unit(channel) for channel in entry.keep if 0 <= channel < group.width})
    return entry.width == group.width and bool(units) and entry.keep == group.channels(units)
