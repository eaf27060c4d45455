"""What int8 costs layer by layer, and which layers to keep in float32 for a limit of accuracy lost.

Shapes: N clips, K classes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from cpprune.evaluation import metrics
from cpprune.evaluation.metrics import Floats
from cpprune.evaluation.predict import CHUNK, DIVERGED, predict_clips
from cpprune.export.onnx_session import open_session
from cpprune.export.quantize import int8_layers, layers_kept, quantize_int8
from cpprune.models.artifact import Model
from shards.errors import UserError
from shards.order import permutation
from shards.progress import progress
from shards.split import Split

CLIPS = 1000  # that the layers are compared on, at most


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """What it costs to quantise one layer alone: its input, weights and output.

    Attributes:
        layer: its name.
        divergence: mean over clips of KL(float32 ‖ int8), the Kullback–Leibler divergence of the
            predicted distributions in nats. It is never negative, and differs where accuracy does not.
        accuracy_drop: accuracy in float32 minus that in int8.
        log_loss_rise: log loss in int8 minus that in float32, in nats.
    """

    layer: str
    divergence: float
    accuracy_drop: float
    log_loss_rise: float


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """What int8 costs on clips of a split.

    Attributes:
        split: name of the split.
        clips: how many of its clips.
        accuracy: in float32.
        log_loss: in float32, in nats.
        layers: the largest divergence first.
    """

    split: str
    clips: int
    accuracy: float
    log_loss: float
    layers: list[LayerCost]


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Which layers stay in float32, and what is lost with them.

    Attributes:
        layers: names of layers, in the order in which they were kept.
        split: that accuracy was measured on.
        clips: of it.
        accuracy_float: in float32.
        accuracy_int8: with these layers in float32 and all others in int8.
    """

    layers: list[str]
    split: str
    clips: int
    accuracy_float: float
    accuracy_int8: float


class Quantiser(AbstractContextManager["Quantiser"]):
    """Quantises a network in several ways with the same ranges of activations.

    Args:
        network: features → logits, float32, batch normalisation folded.
        inputs: of the network, to calibrate with.
        integer: see `quantize_int8`.
    """

    def __init__(
        self, network: onnx.ModelProto, inputs: NDArray[np.float32], *, integer: bool = False
    ) -> None:
        self.network = network
        self._inputs, self._integer = inputs, integer
        self._folder = tempfile.TemporaryDirectory()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the ranges."""
        self._folder.cleanup()

    def quantised(self, keep_float: Sequence[str] = (), only: str | None = None) -> onnx.ModelProto:
        """Return the network in int8, but for some layers, or one layer of it alone."""
        return quantize_int8(
            self.network,
            self._inputs,
            keep_float,
            integer=self._integer,
            only=only,
            ranges=Path(self._folder.name) / "ranges.json",
        )

    def layers(self, keep_float: Sequence[str]) -> list[str]:
        """Return the names of the layers that are quantised, in the network's order."""
        kept = layers_kept(self.network, keep_float)
        return [name for name in int8_layers(self.network) if name not in kept]


def measure_sensitivity(
    quantiser: Quantiser, keep_float: Sequence[str], model: Model, split: Split
) -> Sensitivity:
    """Quantise each layer alone and compare the outputs with those in float32.

    The clips depend on their number alone, and all is computed on one thread, so that the result does
    not depend on the machine's cores.

    Args:
        quantiser: of the model's network.
        keep_float: layers that are left out.
        model: whose front end is used, on the CPU.
        split: of clips that the model was not trained on.

    Raises:
        UserError: the split is empty, or the model's output is not finite.
    """
    _require_clips(split)
    positions = np.sort(permutation(len(split), 0)[:CLIPS])
    x, labels = _features(model, split, positions), split.labels[positions]
    expected = _log_prob(quantiser.network, x)
    before = metrics.summary(expected, labels)
    if before["log_loss"] is None:
        raise UserError(f"the model's output is not finite; {DIVERGED}")
    names = quantiser.layers(keep_float)
    costs = []
    with progress("layers", len(names)) as advance:
        for name in names:
            found = _log_prob(quantiser.quantised(only=name), x)
            after = metrics.summary(found, labels)
            costs.append(
                LayerCost(
                    layer=name,
                    divergence=divergence(expected, found),
                    accuracy_drop=before["accuracy"] - after["accuracy"],
                    log_loss_rise=after["log_loss"] - before["log_loss"],
                )
            )
            advance(1)
    return Sensitivity(
        split=split.name,
        clips=len(positions),
        accuracy=before["accuracy"],
        log_loss=before["log_loss"],
        layers=sorted(costs, key=lambda cost: -cost.divergence),  # ties: in the network's order
    )


def divergence(expected_NK: Floats, found_NK: Floats) -> float:
    """Return the mean over clips of KL(p ‖ q) in nats, from the logarithms of p and q.

    Source: Kullback and Leibler, "On Information and Sufficiency", Annals of Mathematical Statistics
    22, 1951.
    """
    return float((np.exp(expected_NK) * (expected_NK - found_NK)).sum(1).mean())


def keep_costliest(
    quantiser: Quantiser,
    keep_float: Sequence[str],
    model: Model,
    sensitivity: Sensitivity,
    split: Split,
    max_drop: float,
) -> Kept:
    """Keep layers in float32, the costliest first, until int8 loses no more accuracy than allowed.

    Args:
        quantiser: of the model's network.
        keep_float: layers that stay in float32 anyway.
        model: whose front end is used, on the CPU.
        sensitivity: of its layers.
        split: all of whose clips are looked at.
        max_drop: how much lower the accuracy may be than in float32.

    Raises:
        UserError: more is lost even if only one layer is in int8.
    """
    names = [cost.layer for cost in sensitivity.layers]
    if not names:
        raise UserError("--keep-float: keeps all layers, so that none is left for int8")
    _require_clips(split)
    right = _right(quantiser.network, model, split)
    own = sorted(layers_kept(quantiser.network, keep_float))
    lost = 0.0
    for number in range(len(names)):
        kept = [*own, *names[:number]]
        found = _right(quantiser.quantised(kept), model, split)
        lost = (right - found) / len(split)
        if lost <= max_drop:
            return Kept(
                layers=kept,
                split=split.name,
                clips=len(split),
                accuracy_float=right / len(split),
                accuracy_int8=found / len(split),
            )
    raise UserError(
        f"--max-drop {max_drop:g}: with {names[-1]} alone in int8, {lost:.4f} of the accuracy on the "
        f"{len(split):,} clips of {split.name} is lost: allow as much, or export in fp16 or fp32"
    )


def _require_clips(split: Split) -> None:
    if not len(split):
        raise UserError(
            f"{split.dataset.path}: split {split.name} has no clips to measure the loss by int8 on"
        )


def _features(model: Model, split: Split, positions: NDArray[np.int64]) -> NDArray[np.float32]:
    parts = []
    for begin in range(0, len(positions), CHUNK):
        clips = torch.from_numpy(split.fetch(positions[begin : begin + CHUNK]))
        with torch.no_grad():
            parts.append(model.features(clips).numpy())
    return np.concatenate(parts)


def _log_prob(network: onnx.ModelProto, x: NDArray[np.float32]) -> Floats:
    run = _runner(network)
    parts = [run(x[begin : begin + CHUNK]) for begin in range(0, len(x), CHUNK)]
    return metrics.log_softmax(np.concatenate(parts))


def _right(network: onnx.ModelProto, model: Model, split: Split) -> int:
    """Return how many clips of a split are classified correctly."""
    run = _runner(network)

    def logits(clips: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.from_numpy(run(model.features(clips).numpy()))

    return int((predict_clips(logits, split).argmax(1) == split.labels).sum())


def _runner(network: onnx.ModelProto) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Return features → logits, computed by onnxruntime on one thread."""
    # onnxruntime cannot rewrite operators that take integers so that their products do not saturate.
    integer = any(node.op_type.startswith(("QLinear", "QGemm")) for node in network.graph.node)
    session = open_session(network, threads=1, as_written=integer)

    def run(x: NDArray[np.float32]) -> NDArray[np.float32]:
        (logits,) = session.run(None, {"features": x})
        return np.asarray(logits, np.float32)

    return run
