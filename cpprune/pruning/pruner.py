"""The pruning event: rank 0 makes a plan, all ranks apply it and prove that they are equal."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from cpprune.deps.torch import AnyBatchNorm
from cpprune.distributed.collectives import broadcast_json, check_ranks_equal, run_on_rank_0
from cpprune.distributed.process_group import rank
from cpprune.models.artifact import Model
from cpprune.models.example import example_input
from cpprune.pruning.blocks import RemovedBlock, candidate_blocks, influence, lowest_blocks
from cpprune.pruning.config import PruneConfig
from cpprune.pruning.criteria import CRITERIA
from cpprune.pruning.importance import calibration_rows, measure_saliency
from cpprune.pruning.patterns import known_patterns
from cpprune.pruning.plan import Plan, read_plan, with_blocks, without_blocks
from cpprune.pruning.planner import make_plan
from cpprune.pruning.prunable import randomise
from cpprune.pruning.regularizers import Penalty
from cpprune.pruning.schedule import Event, events
from cpprune.pruning.surgery import apply_plan, carry, kept_entries
from shards.errors import UserError, one_line
from shards.files.documents import typed
from shards.split import Split


@dataclass(frozen=True)
class Cut:
    """The outcome of a pruning event.

    Attributes:
        plan: what was removed.
        fingerprint: of the pruned network, the same on all ranks.
        optimizer_state: the optimizer's tensors of what was kept.
    """

    plan: Plan
    fingerprint: str
    optimizer_state: Mapping[str, Tensor]


class Pruner:
    """The pruning events of a run: when the network shrinks, and to what.

    Args:
        config: see `PruneConfig`.
        model: front end and network, unwrapped.
        train: the training split, for blocks and criteria that are measured on clips; None without data.
        seed: of the run.
        device: of the model.

    Attributes:
        events: all of them, in order.
    """

    def __init__(
        self,
        config: PruneConfig,
        model: Model,
        train: Split | None,
        seed: int,
        device: torch.device,
    ) -> None:
        self.config, self.model, self.train = config, model, train
        self.seed, self.device = seed, device
        self.events = events(config)

    def due(self, epoch: int, events_done: int) -> Event | None:
        """Return the event at the beginning of an epoch, if there is one that has not happened."""
        coming = self.events[events_done : events_done + 1]
        return next((event for event in coming if event.epoch == epoch), None)

    def regularizer(self, events_done: int) -> Penalty | None:
        """Return the sparsity regularizer of the network as it is now, until the last event."""
        config = self.config
        if config.sparsity == "none" or events_done == len(self.events):
            return None
        network, shape, until = self.model.network, self.model.input_shape, self.events[-1].epoch
        return Penalty(network, shape, self._settings(network), until)

    def _settings(self, network: nn.Module) -> PruneConfig:
        """Return the settings for the channels of a network that has lost blocks, or will."""
        return known_patterns(network, self.config) if self.config.blocks else self.config

    def rehearse(self, epoch: int, events_done: int, original_widths: Mapping[str, int]) -> None:
        """Prune a copy as far as the schedule goes: what cannot be done is refused before training.

        So is a regularizer that the network has nothing for. The copy's weights are random, since those
        that will be pruned are still to be trained. A collective operation.

        Args:
            epoch: that comes next; an event at its start needs no rehearsal if it is the last.
            events_done: events that have happened.
            original_widths: output channels by layer at the start of the run.

        Raises:
            UserError: on every rank: no such plan can be made.
        """
        self.regularizer(events_done)
        later = events_done < len(self.events) and self.events[-1].epoch > epoch
        if later:
            run_on_rank_0(partial(self._rehearse, events_done, original_widths), self.device)

    def _rehearse(self, events_done: int, original_widths: Mapping[str, int]) -> None:
        network, shape = self.model.network, self.model.input_shape
        blocks = []
        if self.config.blocks and not events_done:
            names = candidate_blocks(network, shape, self.config)
            blocks = lowest_blocks(dict.fromkeys(names, 0.0), self.config.blocks)
        twin = copy.deepcopy(without_blocks(network, blocks))
        randomise(twin, torch.Generator().manual_seed(0))
        needs_data = CRITERIA[self.config.criterion].needs_data
        saliency = dict(twin.named_parameters()) if needs_data else None
        if self.config.cuts_channels:
            config = self._settings(twin)
            plan = make_plan(
                twin, shape, config, original_widths=original_widths, saliency=saliency
            )
            apply_plan(twin, shape, plan)
        _check_trains(twin, example_input(twin, shape))

    def planner(self, event: Event, original_widths: Mapping[str, int]) -> Callable[[], Plan]:
        """Return a function that makes the plan of an event; every rank has to call this.

        Args:
            event: one of `events`.
            original_widths: output channels by layer at the start of the run.

        Raises:
            UserError: when the function is called: there is no such plan for this network.
        """
        network, input_shape = self.model.network, self.model.input_shape
        if self.config.plan:
            file = Path(self.config.plan)
            return lambda: read_plan(file, network, input_shape)
        blocks = self._choose_blocks() if event == self.events[0] and self.config.blocks else []
        if not self.config.cuts_channels:
            return lambda: with_blocks(network, blocks, None)
        left = without_blocks(network, blocks)
        config, seed, saliency = self._settings(left), self.seed, None
        if self.train is not None:
            saliency = measure_saliency(config, self.model, self.train, seed, self.device, left)

        def make() -> Plan:
            plan = make_plan(
                left,
                input_shape,
                config,
                original_widths=original_widths,
                fraction=event.fraction,
                seed=seed,
                saliency=saliency,
            )
            return with_blocks(network, blocks, plan)

        return make

    def _choose_blocks(self) -> list[RemovedBlock]:
        """Return the blocks that go, which rank 0 measures; every rank has to call it."""
        found: list[dict[str, object]] = []
        run_on_rank_0(lambda: found.extend(map(asdict, self._lowest_blocks())), self.device)
        return typed(broadcast_json(found, self.device), list[RemovedBlock])

    def _lowest_blocks(self) -> list[RemovedBlock]:
        config, model, train = self.config, self.model, self.train
        names = candidate_blocks(model.network, model.input_shape, config)
        assert train is not None
        clips = torch.from_numpy(train.fetch(calibration_rows(config, train, self.seed)))
        scores = influence(model.network, names, model.features(clips.to(self.device)))
        return lowest_blocks(scores, config.blocks)

    def prune(
        self,
        event: Event,
        original_widths: Mapping[str, int],
        optimizer_state: Mapping[str, Tensor],
    ) -> Cut:
        """Prune the network on all ranks; see `planner` and `prune_on_all_ranks`."""
        network, input_shape = self.model.network, self.model.input_shape
        make = self.planner(event, original_widths)
        return prune_on_all_ranks(network, input_shape, make, optimizer_state, self.device)


def prune_on_all_ranks(
    network: nn.Module,
    input_shape: Sequence[int],
    make: Callable[[], Plan],
    optimizer_state: Mapping[str, Tensor],
    device: torch.device,
) -> Cut:
    """Let rank 0 make a plan and all ranks apply it to the unwrapped network.

    Args:
        network: unwrapped module, cut in place.
        input_shape: shape of one input, without the batch.
        make: makes the plan; called on rank 0 only.
        optimizer_state: tensors by "parameter/key", to be pruned alike; may be empty.
        device: of this rank's tensors in collective calls.

    Raises:
        UserError: on every rank, when rank 0 cannot make a plan.
        UserError: naming the ranks whose network differs, before or after the cut.
    """
    check_ranks_equal(network, device, "before pruning")
    message: dict[str, object] = {}
    if rank() == 0:
        try:
            message = {"plan": make().to_json()}
        except UserError as error:
            message = {"error": str(error)}
    message = broadcast_json(message, device)
    if "error" in message:
        raise UserError(str(message["error"]))
    plan = Plan.from_json(message["plan"])
    if optimizer_state:
        optimizer_state = carry(optimizer_state, kept_entries(network, input_shape, plan))
    apply_plan(network, input_shape, plan)
    return Cut(plan, check_ranks_equal(network, device, "after pruning"), optimizer_state)


@torch.no_grad()
def _check_trains(network: nn.Module, x_BCFT: Tensor) -> None:
    """Raise UserError if a pruned network fails in training; channels are coupled as in evaluation."""
    network.train()
    for module in network.modules():
        if isinstance(module, AnyBatchNorm):
            module.eval()  # statistics may be those of all ranks
    try:
        network(x_BCFT)
    except Exception as error:  # the network may be anyone's, and fail in any way
        raise UserError(
            f"prune: once pruned, the network fails in training ({one_line(error)}), through what it "
            "computes only there: name the layers that this needs whole in prune.ignore"
        ) from error
