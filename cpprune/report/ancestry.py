"""What a run was made with, down to the run whose model it began with.

That model is known by the sha256 of its weights, which `model.json` tells. Its path in the settings is
one of the folder in which the run was started, which may be another than this.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cpprune.config import FREE_KEYS, RunConfig, flatten
from cpprune.models import artifact
from cpprune.report.runs import Run, read_mapping
from cpprune.runs.identity import DEFAULTS_THEN
from cpprune.settings.renamed import current
from shards.errors import InputError


def weights_of(model: Path) -> str | None:
    """Return the sha256 of a model folder's weights, as it tells it; None if it is no model folder."""
    try:
        weights = artifact.read_description(model).get("weights")
    except InputError:
        return None
    return weights.get("sha256") if isinstance(weights, dict) else None


def made_with(run: Run, models: Mapping[str, Path], notes: list[str]) -> dict[str, Any]:
    """Return all that shaped a run but the seed.

    Args:
        run: the run.
        models: model folders by the sha256 of their weights.
        notes: gets a sentence if the model that it began with is not found.
    """
    found = _shaped(run.settings, run.about.get("init"), run.folder, models, [])
    if run.about.get("init") and not isinstance(found["init"], dict):
        notes.append(
            f"{run.folder} began with a model that is not found ({run.settings.get('init')}): it is one "
            "thing with runs that began with the same weights, whatever their seed."
        )
    return found | {"dataset": run.about.get("dataset")}


def _shaped(
    settings: Mapping[str, Any],
    init: str | None,
    folder: Path,
    models: Mapping[str, Path],
    above: list[str],
) -> dict[str, Any]:
    defaults = {**flatten(RunConfig().to_dict()), **DEFAULTS_THEN}
    if settings.get("init"):  # the network and the front end are those of that model
        defaults = {k: v for k, v in defaults.items() if not k.startswith(("model.", "features."))}
    every = {**defaults, **settings}
    kept = {k: v for k, v in every.items() if k not in FREE_KEYS and k != "seed"}
    if not init:
        return kept
    kept["init"] = f"sha256 {init}"
    for model in _places(str(settings.get("init") or ""), folder, models.get(init)):
        config = model.parent / "config.yaml"
        if init in above or weights_of(model) != init or not config.is_file():
            continue
        tree = current(flatten(read_mapping(config, [])))
        if not tree:
            continue
        origin = artifact.read_description(model).get("provenance")
        earlier = origin.get("init") if isinstance(origin, dict) else None
        kept["init"] = _shaped(tree, earlier, model.parent, models, [*above, init])
        break
    return kept


def _places(init: str, folder: Path, known: Path | None) -> Iterator[Path]:
    """Yield where the model may lie that a run began with."""
    if known is not None:
        yield known
    yield Path(init)
    for above in folder.resolve().parents:
        yield above / init
    yield from sorted(folder.resolve().parent.glob("*/model"))
