"""Residual blocks that can be removed whole: which there are, and how much each of them changes.

Shapes: N clips.
"""

from __future__ import annotations

import copy
import fnmatch
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from cpprune.models.changes import Removed, replace_block
from cpprune.models.intercept import AlwaysDouble
from cpprune.models.resize import LAYERS
from cpprune.pruning.config import PruneConfig
from cpprune.pruning.patterns import matching_layers
from cpprune.pruning.prunable import randomise
from shards.errors import UserError, one_line

# Part of the inputs that reach the outputs of a block past its layers: some do not pass its activation,
# but more than the half that units do which only change the other half.
PASSES = 0.6

MOST_NAMES = 12


@dataclass(frozen=True)
class RemovedBlock:
    """A block that a plan removes.

    Attributes:
        name: of the module.
        score: its block influence; see `influence`.
    """

    name: str
    score: float | None = None


def lowest_blocks(scores: Mapping[str, float], count: int) -> list[RemovedBlock]:
    """Return the blocks of the lowest scores, as many as `count`; of equal ones the first."""
    ranked = sorted(scores, key=lambda name: round(scores[name], 9))  # rounding decides nothing
    return [RemovedBlock(name, round(scores[name], 9)) for name in ranked[:count]]


@torch.no_grad()
def influence(network: nn.Module, names: Sequence[str], x_NCFT: Tensor) -> dict[str, float]:
    """Return the block influence of blocks: 1 − the mean cosine similarity of their input and output.

    Source: Men et al., "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect",
    2024; here the similarity is that of all values of a clip.

    Args:
        network: unwrapped module; it is not changed.
        names: of blocks, from `removable_blocks`.
        x_NCFT: features.

    Raises:
        UserError: an influence is not finite.
    """
    twin = copy.deepcopy(network).double().eval()
    similarities: dict[str, list[float]] = {name: [] for name in names}
    before: dict[str, Tensor] = {}

    def keep(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        before[name] = inputs[0].clone()  # the block may change it in place

    def compare(name: str, _: nn.Module, inputs: object, output: Tensor) -> None:
        pair = before.pop(name).flatten(), output.flatten()
        similarities[name].append(functional.cosine_similarity(*pair, dim=0).item())

    for name in names:
        block = twin.get_submodule(name)
        block.register_forward_pre_hook(partial(keep, name))
        block.register_forward_hook(partial(compare, name))
    with AlwaysDouble(), torch.autocast(x_NCFT.device.type, enabled=False):
        for x_1CFT in torch.split(x_NCFT.double(), 1):
            twin(x_1CFT)
    found = {name: 1 - sum(of) / len(of) for name, of in similarities.items()}
    if wrong := [name for name, score in found.items() if score - score != 0]:
        raise UserError(
            f"prune.blocks: the outputs of {wrong[0]} are not finite on the clips of calibration; start "
            "from another model, since the training of this one has diverged"
        )
    return found


def candidate_blocks(
    network: nn.Module, input_shape: Sequence[int], config: PruneConfig
) -> list[str]:
    """Return the blocks of which a pruning step may remove `prune.blocks`.

    Those of `prune.ignore` are not among them: neither blocks that a pattern matches, nor blocks with a
    layer that it matches.

    Args:
        network: unwrapped module; it is not changed.
        input_shape: shape of one input, without the batch.
        config: prune.blocks and prune.ignore.

    Raises:
        UserError: there are fewer than that, or a pattern matches nothing.
    """
    found = every = removable_blocks(network, input_shape)
    for pattern in config.ignore:
        if not fnmatch.filter(every, pattern):
            matching_layers(network, pattern, "prune.ignore")
        kept = fnmatch.filter((name for name, _ in network.named_modules()), pattern)
        found = [n for n in found if not any(f"{name}.".startswith(f"{n}.") for name in kept)]
    for pattern in config.ratios:
        matching_layers(network, pattern, "prune.ratios")
    if len(found) < config.blocks:
        more = f" and {len(found) - MOST_NAMES} more" if len(found) > MOST_NAMES else ""
        names = f": {', '.join(found[:MOST_NAMES])}{more}" if found else ""
        besides = " besides those of prune.ignore" if len(found) < len(every) else ""
        raise UserError(
            f"prune.blocks={config.blocks}: {len(found)} residual block(s) of this network can go"
            f"{besides}{names}; set prune.blocks to at most {len(found)}"
        )
    return found


def removable_blocks(network: nn.Module, input_shape: Sequence[int]) -> list[str]:
    """Return the names of the residual blocks that can be removed, in the network's order.

    No module is recognised by name or kind. A block can be removed if it

    - holds layers, but not all layers of the network but one, and shares none of its weights;
    - is called once, with one tensor, and returns a tensor of the same shape and dtype;
    - is residual: when all its layers return zeros, the output still depends on the input; and it is no
      gate, which only scales its input whatever its layers return;
    - can be replaced by the identity, and the network still gives logits.

    Of blocks inside one another, the inner ones count if most of the outer's weights are theirs.

    Args:
        network: unwrapped module; it is not changed.
        input_shape: shape of one input, without the batch.

    Raises:
        UserError: the network cannot be copied or run.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, *input_shape, generator=generator, dtype=torch.float64)
    try:
        twin = copy.deepcopy(network).cpu().double().eval()
        randomise(twin, generator)
        calls, logits = _calls(twin, x)
    except Exception as error:  # the network may be anyone's, and fail in any way
        raise UserError(
            f"prune.blocks: the network cannot be copied and run ({one_line(error, 160)}): set "
            "prune.blocks=0"
        ) from None
    found = [
        name
        for name in _owning_their_weights(twin)
        if name in calls
        and _is_residual(twin.get_submodule(name), *calls[name], generator)
        and _runs_without(twin, name, x, logits.shape)
    ]
    sizes = {n: sum(p.numel() for p in twin.get_submodule(n).parameters()) for n in found}
    chosen: set[str] = set()
    for name in sorted(found, key=lambda name: -name.count(".")):
        inside = {other for other in chosen if other.startswith(f"{name}.")}
        if 2 * sum(sizes[other] for other in inside) < sizes[name]:
            chosen = chosen - inside | {name}
    return [name for name in found if name in chosen]


Arguments = tuple[Sequence[object], Mapping[str, object]]


def _calls(network: nn.Module, x: Tensor) -> tuple[dict[str, Arguments], Tensor]:
    """Return the arguments of the modules that once map one tensor to one like it, and the logits."""
    seen: dict[str, list[Arguments | None]] = {}

    def record(
        name: str,
        _: nn.Module,
        args: Sequence[object],
        kwargs: Mapping[str, object],
        output: object,
    ) -> None:
        first, *others = [*args, *kwargs.values()] or [None]
        alike = (
            bool(args)
            and isinstance(first, Tensor)
            and isinstance(output, Tensor)
            and (first.shape, first.dtype) == (output.shape, output.dtype)
            and first.is_floating_point()
            and not any(isinstance(other, Tensor) for other in others)
        )
        seen.setdefault(name, []).append((args, kwargs) if alike else None)

    handles = [
        module.register_forward_hook(partial(record, name), with_kwargs=True)
        for name, module in network.named_modules()
    ]
    with torch.no_grad(), AlwaysDouble():
        logits: Tensor = network(x)
    for handle in handles:
        handle.remove()
    once = {name: of[0] for name, of in seen.items() if len(of) == 1 and of[0] is not None}
    return once, logits


def _owning_their_weights(network: nn.Module) -> list[str]:
    """Return the names of modules with layers, of which no part and no weight is used elsewhere."""
    every = [name for name, module in network.named_modules() if isinstance(module, LAYERS)]
    places = Counter(id(m) for _, m in network.named_modules(remove_duplicate=False))
    owners: dict[int, list[int]] = {}
    for module in network.modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(id(module))
    found = []
    for name, module in network.named_modules():
        inside = {id(part) for part in module.modules()}
        layers = sum(layer.startswith(f"{name}.") for layer in every)
        alone = all(inside.issuperset(owners[id(p)]) for p in module.parameters())
        if 0 < layers < len(every) - 1 and alone and all(places[part] == 1 for part in inside):
            found.append(name)
    return found


def _is_residual(
    block: nn.Module,
    args: Sequence[object],
    kwargs: Mapping[str, object],
    generator: torch.Generator,
) -> bool:
    """Return whether a block adds to its input; see `removable_blocks`."""
    (first, *others) = args
    assert isinstance(first, Tensor)
    x = 0.5 + torch.rand(first.shape, generator=generator, dtype=torch.float64)
    x.requires_grad_()
    weights = torch.randn(first.shape, generator=generator, dtype=torch.float64)
    try:
        with torch.enable_grad(), AlwaysDouble():
            with _layers_return(block, 0.0):
                still = block(x * 1, *others, **kwargs)
            if not still.requires_grad:
                return False
            (slope,) = torch.autograd.grad((still * weights).sum(), x, allow_unused=True)
            if slope is None or not torch.isfinite(still).all():
                return False
            with _layers_return(block, 1.0):
                once, twice = (block(x * factor, *others, **kwargs) for factor in (1, 2))
    except Exception:  # the network may be anyone's, and fail in any way
        return False
    passes = (slope != 0).double().mean().item() > PASSES
    return passes and not torch.allclose(twice, 2 * once)


@contextmanager
def _layers_return(block: nn.Module, value: float) -> Iterator[None]:
    """Let the layers of a block return this value everywhere."""

    def filled(output: object) -> object:
        if isinstance(output, tuple):
            return tuple(map(filled, output))
        return torch.full_like(output, value) if isinstance(output, Tensor) else output

    layers = [m for m in block.modules() if isinstance(m, (*LAYERS, nn.MultiheadAttention))]
    handles = [
        layer.register_forward_hook(lambda _, __, output: filled(output)) for layer in layers
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _runs_without(network: nn.Module, name: str, x: Tensor, shape: torch.Size) -> bool:
    """Return whether a network still maps inputs to logits of this shape without a block."""
    block = network.get_submodule(name)
    with torch.no_grad(), AlwaysDouble():
        replace_block(network, name, Removed())
        try:
            without = network(x)
        except Exception:  # the network may be anyone's, and fail in any way
            return False
        finally:
            replace_block(network, name, block)
    alike = isinstance(without, Tensor) and without.shape == shape
    return alike and bool(torch.isfinite(without).all())
