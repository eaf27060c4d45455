"""The pruning event: rank 0 makes a plan, all ranks apply it and prove that they are equal."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from cpprune.deps.torch import AnyBatchNorm
from cpprune.distributed.collectives import broadcast_json, check_ranks_equal, run_on_rank_0
from cpprune.distributed.process_group import rank
from cpprune.models.artifact import Model
from cpprune.models.example import example_input
from cpprune.pruning.config import PruneConfig
from cpprune.pruning.criteria import CRITERIA
from cpprune.pruning.importance import measure_saliency
from cpprune.pruning.plan import Plan, read_plan
from cpprune.pruning.planner import make_plan
from cpprune.pruning.prunable import randomise
from cpprune.pruning.regularizers import Penalty
from cpprune.pruning.schedule import Event, events
from cpprune.pruning.surgery import apply_plan, carry, kept_entries
from shards.errors import UserError, one_line
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
        train: the training split, for criteria that are measured on clips; None without data.
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
        return Penalty(network, shape, config, until)

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
            run_on_rank_0(partial(self._rehearse, original_widths), self.device)

    def _rehearse(self, original_widths: Mapping[str, int]) -> None:
        twin, shape = copy.deepcopy(self.model.network), self.model.input_shape
        randomise(twin, torch.Generator().manual_seed(0))
        needs_data = CRITERIA[self.config.criterion].needs_data
        saliency = dict(twin.named_parameters()) if needs_data else None
        plan = make_plan(
            twin, shape, self.config, original_widths=original_widths, saliency=saliency
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
        config, network, input_shape = self.config, self.model.network, self.model.input_shape
        if config.plan:
            file = Path(config.plan)
            return lambda: read_plan(file, network, input_shape)
        saliency = None
        if self.train is not None:
            saliency = measure_saliency(config, self.model, self.train, self.seed, self.device)
        return lambda: make_plan(
            network,
            input_shape,
            config,
            original_widths=original_widths,
            fraction=event.fraction,
            seed=self.seed,
            saliency=saliency,
        )

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
