"""Small models of several kinds, to export."""

from collections.abc import Callable

from networks import PRUNED, keep_first
from torch import nn

import cpprune
from cpprune.audio.config import MelSpec
from cpprune.audio.frontend import build_features
from cpprune.models.artifact import Model

CLASSES = ("bus", "metro", "park")
SAMPLES = 4000
KALDI = MelSpec(
    sample_rate=8000, window=200, hop=80, n_fft=256, n_mels=40, fmin_jitter=3, fmax_jitter=500
)
HTK = MelSpec(
    sample_rate=8000,
    window=200,
    hop=77,
    n_fft=202,
    n_mels=33,
    fmin_jitter=0,
    fmax_jitter=0,
    pre_emphasis=0.0,
    mel="htk",
    periodic_window=True,
    normalise=False,
)


def make_model(network: nn.Module, spec: MelSpec | None = KALDI) -> Model:
    """Return a model of this network; its config is of no use."""
    return Model(
        network.eval(),
        build_features(spec),
        family="cp_resnet",
        config={},
        classes=CLASSES,
        clip_shape=(1, 28, 28) if spec is None else (SAMPLES,),
    )


def _pruned() -> nn.Module:
    network = cpprune.build_model("cp_resnet", num_classes=3, widths=PRUNED["widths"])
    keep_first(network, PRUNED["cut"])
    return network


MAKERS: dict[str, Callable[[], tuple[nn.Module, MelSpec | None]]] = {
    "small": lambda: (cpprune.build_model("cp_resnet", num_classes=3, widths=[6, 8, 10]), KALDI),
    "pruned": lambda: (_pruned(), HTK),
    "cp_mobile": lambda: (cpprune.build_model("cp_mobile", num_classes=3, base_channels=8), KALDI),
    "digits": lambda: (cpprune.build_model("cp_resnet", num_classes=3, widths=[4, 5, 6]), None),
}
