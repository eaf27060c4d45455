"""Debug mode: can this network learn at all from these clips?"""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import shards
from cpprune.config import RunConfig
from cpprune.data.loader import training_split
from cpprune.distill.config import UNCUT
from cpprune.distill.teaching import Teaching
from cpprune.distributed.device import default_device
from cpprune.evaluation.complexity import count_parameters
from cpprune.training.create_model import create_model
from shards.order import Ids
from shards.split import Split

CLIPS = 16
STEPS = 300
LR = 1e-2
NEAR_ZERO = 0.05


def overfit(config: RunConfig, explicit: frozenset[str]) -> int:
    """Overfit a few of the clips that are trained on, without augmentation, and say how it went.

    One process, no workers, anomaly detection, the shapes of all layers once. Teachers are asked about
    the clips but not learned from: a loss with them does not end at zero. Writes nothing.

    Returns:
        Exit status: 0 when the loss came near zero, 1 when it did not.
    """
    torch.manual_seed(config.seed)
    device = default_device()
    dataset = shards.open_dataset(config.data.path, config.data.cache, config.data.cache_bytes)
    model = create_model(config, dataset, explicit).to(device)
    split = training_split(dataset, config.data)
    positions = np.linspace(0, len(split) - 1, min(CLIPS, len(split))).round().astype(np.int64)
    clips = torch.from_numpy(split.fetch(positions)).to(device)
    labels = torch.from_numpy(split.labels[positions]).to(device)
    print(f"clips     {tuple(clips.shape)} {clips.dtype}, {len(set(labels.tolist()))} classes")
    if config.distill.teachers:
        print(f"teachers  {_teachers(config, split, positions, clips)}")
    x = model.features(clips)
    print(
        f"features  {tuple(x.shape)} {x.dtype}, mean {x.mean():.3f}, deviation {x.std():.3f}, from "
        f"{x.min():.3f} to {x.max():.3f}"
    )
    network = model.network.train()
    _print_shapes(network, x)
    # Weight decay off and a high rate: the question is whether it can learn, not how well.
    optimizer = torch.optim.Adam(network.parameters(), lr=LR)
    print(f"\noverfitting {len(clips)} clips with {count_parameters(network):,} parameters")
    losses: list[float] = []
    with torch.autograd.set_detect_anomaly(True, check_nan=True):
        for step in range(STEPS):
            loss = functional.cross_entropy(network(x), labels)
            losses.append(loss.item())
            if step % 20 == 0 or losses[-1] < NEAR_ZERO:
                print(f"step {step:>4}  loss {losses[-1]:.4f}")
            if losses[-1] < NEAR_ZERO:
                print(
                    f"the loss of one batch fell from {losses[0]:.3f} to near zero: the network can "
                    "learn"
                )
                return 0
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    print(
        f"the loss of one batch fell from {losses[0]:.3f} only to {losses[-1]:.3f} in {STEPS} "
        "steps: look at the labels and the features above",
        file=sys.stderr,
    )
    return 1


def _teachers(config: RunConfig, split: Split, positions: Ids, clips: Tensor) -> str:
    """Ask the teachers about the clips without augmentation; return what they say.

    Raises:
        UserError: a teacher cannot be loaded, does not fit the dataset, or is not finite.
    """
    clean = replace(config, distill=replace(config.distill, mode="clean", cache=None))
    teaching = Teaching(clean, split.dataset, split.ids[positions], clips.device)
    teaching.prepare(lambda: lambda places: clips[places], lambda: None)
    if teaching.stored is None:
        return f"{UNCUT} teaches after the first pruning step; only the labels are overfitted"
    right = teaching.stored[split.ids[positions]].argmax(1) == split.labels[positions]
    return f"right about {right.sum()} of {len(right)} clips; only the labels are overfitted"


def _print_shapes(network: nn.Module, x: Tensor) -> None:
    hooks = []

    def shower(name: str) -> object:
        def show(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
            before, after = (
                tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
                for x in (inputs[0] if inputs else None, output)
            )
            print(f"  {name:<32} {type(module).__name__:<18} {before} → {after}")

        return show

    for name, module in network.named_modules():
        if not list(module.children()):
            hooks.append(module.register_forward_hook(shower(name)))
    network(x)
    for hook in hooks:
        hook.remove()
