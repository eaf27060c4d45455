"""What is used of Optuna beyond its documented interface."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial


def live_trial(study: Study, frozen: FrozenTrial) -> Trial:
    """Return the trial that goes on where a recorded one stands: it draws, reports and sets attributes.

    `Study.ask` only begins new trials; one whose process was killed has to be built from its number in
    the storage, which is private. Without it, an unfinished trial would be enqueued as a new one.
    """
    from optuna.trial import Trial

    return Trial(study, frozen._trial_id)
