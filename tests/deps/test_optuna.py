"""Private interfaces of Optuna."""

import optuna

from cpprune.deps.optuna import live_trial


def test_a_recorded_trial_goes_on():
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study()
    drawn = study.ask().suggest_float("x", 0, 1)
    trial = live_trial(study, study.get_trials(deepcopy=False)[0])
    assert trial.number == 0
    assert trial.suggest_float("x", 0, 1) == drawn, "a new value was drawn"
    trial.report(1.0, step=1)
    trial.set_user_attr("error", "none")
    study.tell(trial, 2.0)
    (frozen,) = study.get_trials()
    assert (frozen.value, frozen.last_step, frozen.user_attrs) == (2.0, 1, {"error": "none"})
