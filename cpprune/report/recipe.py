"""The recipe of a run: its settings, including those of the run that trained its initial model.

That model is identified by the sha256 of its weights, which `model.json` records, since its path in the
settings is relative to the folder in which the run was started.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from cpprune.config import FREE_KEYS, RunConfig, flatten
from cpprune.models import artifact
from cpprune.report.run_folder import Run, read_mapping
from cpprune.runs.identity import DEFAULTS_THEN
from cpprune.settings.renamed import current
from shards.errors import UserError


def weights_of(model: Path) -> str | None:
    """Return the sha256 of the weights that a model folder records; None if it is not a model folder."""
    try:
        weights = artifact.read_description(model).get("weights")
    except UserError:
        return None
    return weights.get("sha256") if isinstance(weights, dict) else None


def recipe(run: Run, models: Mapping[str, Path], notes: list[str]) -> dict[str, object]:
    """Return everything that determined a run except the seed.

    Args:
        run: the run.
        models: sha256 of the weights → model folder.
        notes: receives a sentence if the initial model is not found.
    """
    init, dataset = (run.about.init, run.about.dataset) if run.about else (None, None)
    found = _shaped(run.settings, init, run.folder, models, [])
    if init and not isinstance(found["init"], dict):
        notes.append(
            f"{run.folder} started from a model that is not found ({run.settings.get('init')}): it is "
            "grouped only with runs that started from the same weights."
        )
    return found | {"dataset": dataset}


def _shaped(
    settings: Mapping[str, object],
    init: str | None,
    folder: Path,
    models: Mapping[str, Path],
    above: list[str],
) -> dict[str, object]:
    defaults = {**flatten(RunConfig().to_dict()), **DEFAULTS_THEN}
    if settings.get("init"):  # network and front end are those of the model
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
    """Yield the folders where the initial model of a run may be."""
    if known is not None:
        yield known
    yield Path(init)
    for above in folder.resolve().parents:
        yield above / init
    yield from sorted(folder.resolve().parent.glob("*/model"))
