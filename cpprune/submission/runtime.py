"""What a submitted module does when the organisers call it.

The functions are those that the inference package of DCASE 2025, task 1, prescribes
(https://github.com/CPJKU/dcase2025_task1_inference).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cpprune.models import artifact
from cpprune.models.artifact import Model
from cpprune.models.routed import RoutedModel, is_routed, load_routed
from shards.audio.clips import cut
from shards.audio.load import BadFile, load
from shards.errors import UserError

# Clips per forward pass.
CHUNK = 256


class DeviceModels(nn.Module):
    """The networks of a system: a general one, and those of some devices.

    Args:
        routed: the models.
        half: whether parameters are rounded to float16, as they are counted.

    Attributes:
        routed: the models with their front end.
        model: all networks; its state dict is what is handed in.
    """

    def __init__(self, routed: RoutedModel, half: bool) -> None:
        super().__init__()
        self.routed = routed
        models = (routed.general, *routed.models.values())
        self.model = nn.ModuleList([model.network for model in models])
        if half:
            for parameter in self.model.parameters():
                parameter.data = parameter.data.half().float()


@dataclass(frozen=True)
class System:
    """The four functions of a submitted module.

    Attributes:
        folder: model folder, or one of routed models, as packaged.
        half: whether parameters count, and are rounded, as float16.
    """

    folder: Path
    half: bool

    def load_model(self, model_file_path: str | None = None) -> DeviceModels:
        """Return the networks of all devices, on the CPU.

        Args:
            model_file_path: folder to load instead of the packaged one.
        """
        folder = Path(model_file_path) if model_file_path else self.folder
        if is_routed(folder):
            return DeviceModels(load_routed(folder), self.half)
        return DeviceModels(RoutedModel("device", artifact.load(folder), {}), self.half)

    def load_inputs(
        self, file_paths: Sequence[str], device_ids: Sequence[str], model: DeviceModels
    ) -> list[Tensor]:
        """Return the network's input for each file, [1, 1, F, T].

        Args:
            file_paths: of audio files, which are read as `cpprune predict` reads them: their first clip.
            device_ids: of each; "unknown" or any other value without a model of its own is allowed.
            model: from `load_model`.
        """
        one = model.routed.general
        return [one.features(_clip(path, one).unsqueeze(0)) for path in file_paths]

    def get_model_for_device(self, model: DeviceModels, device_id: str) -> nn.Module:
        """Return the network that is used for a device, with parameters of the counted precision."""
        network = copy.deepcopy(model.routed.model_for(device_id).network)
        return network.half() if self.half else network

    def predict(
        self,
        file_paths: Sequence[str],
        device_ids: Sequence[str],
        model_file_path: str | None = None,
        use_cuda: bool = False,
    ) -> tuple[list[Tensor], list[str]]:
        """Return the logits of each file, [K], and the names of the classes in their order.

        Args:
            file_paths: see `load_inputs`.
            device_ids: of each.
            model_file_path: see `load_model`.
            use_cuda: whether to compute on the GPU.
        """
        if len(file_paths) != len(device_ids):
            raise UserError(f"{len(file_paths):,} files, but {len(device_ids):,} device ids")
        container = self.load_model(model_file_path)
        container.to("cuda" if use_cuda else "cpu").eval()
        routed = container.routed
        logits: list[Tensor] = [torch.empty(0)] * len(file_paths)
        chosen = [routed.model_for(str(device)) for device in device_ids]
        for model in (routed.general, *routed.models.values()):
            model.to("cuda" if use_cuda else "cpu")
            own = [place for place, its in enumerate(chosen) if its is model]
            for begin in range(0, len(own), CHUNK):
                places = own[begin : begin + CHUNK]
                clips = torch.stack([_clip(file_paths[place], model) for place in places])
                for place, row in zip(places, model.logits(clips).cpu(), strict=True):
                    logits[place] = row
        return logits, list(routed.classes)


def _clip(path: str, model: Model) -> Tensor:
    assert model.sample_rate is not None
    try:
        samples = load(Path(path), model.sample_rate).samples
    except BadFile as reason:
        raise UserError(f"{path}: {reason}; copy the recording again") from None
    return torch.from_numpy(np.ascontiguousarray(cut(samples, 0, model.clip_shape[0])))
