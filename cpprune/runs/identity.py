"""The identity of a run: the settings, data and model that a resumed run must share with it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cpprune.audio.config import MelSpec
from cpprune.audio.frontend import spec_to_json
from cpprune.config import FILE_KEYS, FREE_KEYS, RunConfig, all_keys, flatten
from cpprune.models import artifact
from cpprune.models.artifact import Model
from cpprune.settings.renamed import current
from shards import random_stream
from shards.errors import UserError
from shards.files.documents import read_bytes, read_yaml
from shards.manifest import sha256_of
from shards.reader import Dataset

# What a key was that neither an older checkpoint nor its run's config.yaml names, where that is not what
# its default is today.
DEFAULTS_THEN: dict[str, Any] = {}


def identity(config: RunConfig, dataset: Dataset, model: Model) -> dict[str, Any]:
    """Return what a resumed run must share with the one that wrote its checkpoint.

    Raises:
        UserError: a file that the settings name cannot be read.
    """
    settings = {k: v for k, v in flatten(config.to_dict()).items() if k not in FREE_KEYS}
    # What files hold is pinned by its hash, wherever they lie.
    for key in FILE_KEYS:
        settings[key] = settings[key] and f"sha256 {sha256_of(read_bytes(Path(settings[key])))}"
    init = settings.pop("init")
    found = {
        "settings": settings,
        "init": init and artifact.read_description(Path(init))["weights"]["sha256"],
        "dataset": dataset.fingerprint,
        "features": spec_to_json(model.features.spec),
        "draws": random_stream.VERSION,
    }
    as_read: dict[str, Any] = json.loads(json.dumps(found))
    return as_read


def check_same(
    run: Path, saved: Mapping[str, Any], now: Mapping[str, Any], say: Callable[[str], None]
) -> None:
    """Check that a run may resume from a checkpoint, also from one of an older version.

    Args:
        run: its folder.
        saved: the `identity` in the checkpoint.
        now: that of the run that is to be resumed.
        say: reports differences between versions that are no reason to stop.

    Raises:
        UserError: it is another run; the message names what differs.
    """
    saved_settings = current(saved["settings"])
    then = settings_then(saved_settings, run, now["settings"])
    changed = [
        f"{key}: {then[key]} then, {now['settings'][key]} now"
        for key in sorted(then)
        if then[key] != now["settings"][key]
    ]
    if saved["dataset"] != now["dataset"]:
        changed.append("data.path: the dataset has other contents")
    if saved["init"] != now["init"]:
        changed.append("init: another model")
    if not _same_front_end(saved["features"], now["features"]):
        changed.append("the front end of the model")
    if changed:
        more = f"; and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise UserError(
            f"{run}: holds a run with other settings ({'; '.join(changed[:3])}{more}); give the same to "
            "resume it, choose another --run, or replace it with --resume never"
        )
    for key in sorted(saved_settings.keys() - set(all_keys())):
        say(f"{run}: {key}={saved_settings[key]} is no setting of this version and is left out")
    if saved.get("draws", 1) != now["draws"]:
        say(
            f"{run}: was begun by a version that drew other random numbers: from here on the "
            "augmentation is another, so it does not end with the bits of a run in one piece"
        )


def settings_then(
    saved: Mapping[str, Any], run: Path, keys: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Return the settings of a run that an older version, which lacked some of them, has written.

    Args:
        saved: the settings that were written.
        run: folder whose config.yaml may name more, as it was at the run's last start.
        keys: the settings to return.
    """
    try:
        told = current(flatten(read_yaml(run / "config.yaml", dict[str, Any])))
    except UserError:
        told = {}
    for key in FILE_KEYS:
        told.pop(key, None)  # a path; here it is of what the file holds
    known = {**flatten(RunConfig().to_dict()), **DEFAULTS_THEN, **told, **current(saved)}
    return {key: known[key] for key in keys}


def _same_front_end(saved: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> bool:
    if saved is None or now is None:
        return saved == now
    then = {**(spec_to_json(MelSpec()) or {}), **saved}
    return all(then[key] == value for key, value in now.items())
