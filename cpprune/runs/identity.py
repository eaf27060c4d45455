"""The identity of a run: the settings, data and model that a resumed run must share with it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cpprune.audio.config import IMAGE, MelSpec
from cpprune.audio.frontend import spec_to_json
from cpprune.audio.impulse_responses import KEY, contents_hash
from cpprune.config import FILE_KEYS, FREE_KEYS, RunConfig, all_keys, flatten
from cpprune.distill.cache import SETTINGS
from cpprune.distill.config import UNCUT
from cpprune.models import artifact
from cpprune.models.artifact import Model
from cpprune.settings.renamed import current
from shards import random_stream
from shards.errors import UserError
from shards.files.documents import read_bytes, read_yaml, typed
from shards.manifest import sha256_of
from shards.reader import Dataset

if TYPE_CHECKING:
    from cpprune.runs.checkpoint import Progress

# What a key was that neither an older checkpoint nor its run's config.yaml names, where that is not what
# its default is today.
DEFAULTS_THEN: dict[str, object] = {}


@dataclass(frozen=True)
class RunIdentity:
    """What a resumed run must share with the one that wrote its checkpoint.

    Attributes:
        settings: dotted key → value, without those of `FREE_KEYS`; for a file, its hash.
        init: sha256 of the weights that the run started from, or None.
        dataset: fingerprint of the dataset.
        features: the front end; None for images.
        draws: version of the random numbers.
    """

    settings: dict[str, object]
    init: str | None
    dataset: str
    features: dict[str, object] | None
    draws: int = 1


def identity(config: RunConfig, dataset: Dataset, model: Model) -> RunIdentity:
    """Return the identity of a run.

    Raises:
        UserError: a file that the settings name cannot be read.
    """
    settings = {k: v for k, v in flatten(config.to_dict()).items() if k not in FREE_KEYS}
    del settings["init"]
    # What files hold is pinned by its hash, wherever they lie.
    for key in FILE_KEYS:
        if isinstance(names := settings[key], list):
            settings[key] = [name if name == UNCUT else _contents(key, name) for name in names]
        elif names:
            settings[key] = _contents(key, str(names))
    found = RunIdentity(
        settings,
        config.init and _weights_hash(Path(config.init)),
        dataset.fingerprint,
        spec_to_json(model.features.spec),
        random_stream.VERSION,
    )
    return typed(json.loads(json.dumps(asdict(found))), RunIdentity)


def seen_by_teachers(run: RunIdentity) -> dict[str, object]:
    """Return what the logits of augmented clips depend on, by key, where it is not the default."""
    defaults = {**flatten(RunConfig().to_dict()), **DEFAULTS_THEN}
    settings = {
        key: value
        for key, value in run.settings.items()
        if key.startswith(SETTINGS) and value != defaults[key]
    }
    front_end: dict[str, object] = {"features.preset": IMAGE}
    if run.features is not None:
        usual = spec_to_json(MelSpec()) or {}
        front_end = {
            f"features.{key}": value for key, value in run.features.items() if value != usual[key]
        }
    return {**settings, **front_end, "data.path": run.dataset, "draws": run.draws}


def _weights_hash(init: Path) -> str:
    if init.is_dir():
        return str(artifact.read_description(init)["weights"]["sha256"])
    return sha256_of(read_bytes(init, artifact.MOST_WEIGHTS))


def _contents(key: str, name: str) -> str:
    """Return the hash of a file, of impulse responses, or of a model folder's description."""
    path = Path(name)
    if key == KEY:
        return f"sha256 {contents_hash(path)}"
    if not path.is_dir():
        return f"sha256 {sha256_of(read_bytes(path, artifact.MOST_WEIGHTS))}"
    artifact.read_description(path)  # which holds its weights' hash
    return f"sha256 {sha256_of(read_bytes(path / 'model.json'))}"


def check_same(
    run: Path,
    saved: RunIdentity,
    progress: Progress,
    now: RunIdentity,
    say: Callable[[str], None],
) -> None:
    """Check that a run may resume from a checkpoint, also from one of an older version.

    The number of epochs may be another that is not past, and settings of pruning may be others as long
    as none of them has acted.

    Args:
        run: its folder.
        saved: the `identity` in the checkpoint.
        progress: of the run when it was written.
        now: that of the run that is to be resumed.
        say: reports differences between versions that are no reason to stop.

    Raises:
        UserError: it is another run, or longer than it is to become; the message names what differs.
    """
    saved_settings = current(saved.settings)
    then = settings_then(saved_settings, run, now.settings)
    texts = {
        key: f"{key}: {then[key]} then, {now.settings[key]} now"
        for key in sorted(then)
        if then[key] != now.settings[key]
    }
    to_come = _pruning_is_to_come(then, now.settings, progress)
    free = [key for key in texts if to_come and key.startswith("prune.")]
    may_change = {*free, "train.epochs"}
    changed = [text for key, text in texts.items() if key not in may_change]
    if saved.dataset != now.dataset:
        changed.append("data.path: the dataset has other contents")
    if saved.init != now.init:
        changed.append("init: another model")
    if not _same_front_end(saved.features, now.features):
        changed.append("the front end of the model")
    if changed:
        more = f"; and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise UserError(
            f"{run}: holds a run with other settings ({'; '.join(changed[:3])}{more}); give the same to "
            "resume it, choose another --run, or replace it with --resume never"
        )
    if "train.epochs" in texts:
        say(_other_epochs(run, then, now.settings, progress))
    for key in free:
        say(f"{run}: {texts[key]}: pruning has not begun, so the new value holds")
    for key in sorted(saved_settings.keys() - set(all_keys())):
        say(f"{run}: {key}={saved_settings[key]} is no setting of this version and is left out")
    if saved.draws != now.draws:
        say(
            f"{run}: was begun by a version that drew other random numbers: from here on the "
            "augmentation is another, so it does not end with the bits of a run in one piece"
        )


def _other_epochs(
    run: Path, then: Mapping[str, object], now: Mapping[str, object], progress: Progress
) -> str:
    """Return what is said of a run that goes on to another number of epochs.

    Raises:
        UserError: more epochs than that have begun.
    """
    before, epochs = then["train.epochs"], now["train.epochs"]
    begun = progress.epoch + (progress.batch > 0)
    assert isinstance(epochs, int)
    if epochs < begun:
        raise UserError(
            f"{run}: train.epochs={epochs}: {begun} epochs were trained already; set at least as many, "
            "or choose another --run"
        )
    text = f"{run}: goes on to {epochs} epochs instead of {before}"
    if now["optim.schedule"] == "cosine":
        text += (
            f"; from epoch {progress.epoch + 1} on, the learning rate is that of a cosine over {epochs} "
            f"epochs, and before it was that of one over {before}"
        )
    return text


def _pruning_is_to_come(
    then: Mapping[str, object], now: Mapping[str, object], progress: Progress
) -> bool:
    """Return whether no setting of pruning has acted, and none would have under the new settings."""
    first = now["prune.start_epoch"]
    assert isinstance(first, int)
    regularized = any(settings["prune.sparsity"] != "none" for settings in (then, now))
    begun = progress.events_done or regularized
    return not begun and (first, 0) >= (progress.epoch, progress.batch)


def settings_then(
    saved: Mapping[str, object], run: Path, keys: Mapping[str, object]
) -> Mapping[str, object]:
    """Return the settings of a run that an older version, which lacked some of them, has written.

    Args:
        saved: the settings that were written.
        run: folder whose config.yaml may name more, as it was at the run's last start.
        keys: the settings to return.
    """
    try:
        told = current(flatten(read_yaml(run / "config.yaml", dict[str, object])))
    except UserError:
        told = {}
    for key in FILE_KEYS:
        told.pop(key, None)  # a path; here it is of what the file holds
    known = {**flatten(RunConfig().to_dict()), **DEFAULTS_THEN, **told, **current(saved)}
    return {key: known[key] for key in keys}


def _same_front_end(saved: Mapping[str, object] | None, now: Mapping[str, object] | None) -> bool:
    if saved is None or now is None:
        return saved == now
    then = {**(spec_to_json(MelSpec()) or {}), **saved}
    return all(then[key] == value for key, value in now.items())
