"""Several models in one folder, each for the clips of one device, site or subject.

The folder holds `routes.json`, the model folder `general`, and one for each value of a column of the
dataset that has a model of its own. Clips of any other value go to the general model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import torch
from torch import Tensor

from cpprune.models import artifact
from cpprune.models.artifact import Model
from shards.errors import UserError
from shards.files.atomic import write_bytes
from shards.files.documents import read_bytes, read_json, to_json
from shards.files.ownership import Kind, claim, read_mark, replaced_folder

FORMAT = 1
ROUTES = "routes.json"
GENERAL = "general"
FILES = (ROUTES, *(f"*/{name}" for name in artifact.FILES))


def _is_routed(folder: Path) -> bool:
    return {"format", "column", "general", "models"} <= read_mark(folder / ROUTES).keys()


ROUTED = Kind(name="a folder of routed models", parts=(ROUTES,), made=_is_routed, replaced=True)


@dataclass(frozen=True)
class Routes:
    """What `routes.json` holds.

    Attributes:
        format: of this file.
        column: column of the dataset that decides which model a clip goes to.
        general: folder of the model of all other values.
        models: value → folder of its model.
    """

    format: int
    column: str
    general: str
    models: dict[str, str]


@dataclass(frozen=True)
class RoutedModel:
    """A general model, and models for some values of a column.

    Attributes:
        column: column of the dataset, such as "device".
        general: model of all other values.
        models: value → its model.
    """

    column: str
    general: Model
    models: Mapping[str, Model]

    def model_for(self, value: str) -> Model:
        """Return the model of clips with this value of the column."""
        return self.models.get(value, self.general)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the K classes, in the order of the logits."""
        return self.general.classes

    @property
    def clip_shape(self) -> tuple[int, ...]:
        """Shape of one clip, as of every model."""
        return self.general.clip_shape

    @property
    def sample_rate(self) -> int | None:
        """Samples per second of the waveforms; None for images."""
        return self.general.sample_rate

    def logits(self, clips: Tensor) -> Tensor:
        """Return the general model's logits [B, K] of clips whose value is not known."""
        return self.general.logits(clips)


def is_routed(folder: Path) -> bool:
    """Whether a folder holds routed models."""
    return (folder / ROUTES).is_file()


def load_routed(folder: Path, device: str | torch.device = "cpu") -> RoutedModel:
    """Load a folder of routed models.

    Raises:
        UserError: a model cannot be loaded, or differs from the general one in classes, clips or front
            end.
    """
    file = folder / ROUTES
    routes = read_json(file, Routes, remedy="copy the folder again from where it was made")
    if routes.format != FORMAT:
        raise UserError(f"{file}: of format {routes.format}, which this version does not know")
    for name in (routes.general, *routes.models.values()):
        if name != Path(name).name or name in ("", ".", ".."):
            raise UserError(f"{file}: {name!r} is not the name of a folder beside it")
    general = artifact.load(folder / routes.general, device)
    models = {}
    for value, name in routes.models.items():
        models[value] = model = artifact.load(folder / name, device)
        if _interface(model) != _interface(general):
            raise UserError(
                f"{folder / name}: differs from {folder / routes.general} in classes, clips or front "
                "end; fine-tune all models from the same one"
            )
    return RoutedModel(routes.column, general, models)


def save_routed(
    folder: Path, column: str, general: Path, models: Mapping[str, Path], *, claimed: bool = False
) -> None:
    """Write a folder of routed models, whole or not at all; an older one there is replaced.

    Args:
        folder: destination.
        column: column of the dataset that decides which model a clip goes to.
        general: folder of the general model.
        models: value → folder of its model.
        claimed: whether the caller has claimed a folder above it.

    Raises:
        UserError: the folder holds something else.
    """
    if not claimed:
        claim(folder, ROUTED)
    places = {value: folder_name(column, value) for value in models}
    routes = {"format": FORMAT, "column": column, "general": GENERAL, "models": places}
    with replaced_folder(folder, FILES) as new:
        for name, source in ((GENERAL, general), *((places[v], models[v]) for v in models)):
            (new / name).mkdir()
            for file in artifact.FILES:
                write_bytes(new / name / file, read_bytes(source / file, artifact.MOST_WEIGHTS))
        write_bytes(new / ROUTES, f"{to_json(routes, indent=2)}\n".encode())


def folder_name(column: str, value: str) -> str:
    """Return a name for the folder of a value, unlike that of any other value."""
    return f"{quote(column, safe='')}-{quote(value, safe='')}"


def _interface(model: Model) -> tuple[object, ...]:
    return model.classes, model.clip_shape, model.features.spec
