"""Runs that an older version began: they go on, and what is not the same is said."""

import shutil

import pytest
import yaml
from run_folder import change_state as change
from run_folder import epochs_of

SETTINGS = ["--data.train_fraction", "0.25", "--train.epochs", "2", "--train.micro_batch_size", "0"]


@pytest.fixture(scope="module")
def begun(call, tiny, scenes, tmp_path_factory):
    """The folder of a run that was stopped after its first step."""
    run = tmp_path_factory.mktemp("older") / "run"
    settings = [*tiny, *SETTINGS, "--data.path", scenes, "--run", run]
    assert call("train", *settings, "--train.time_limit_minutes", 1e-9) == 0
    assert len(list((run / "checkpoints").iterdir())) == 1
    return run


@pytest.fixture
def run(begun, tmp_path):
    return shutil.copytree(begun, tmp_path / "run")


@pytest.fixture
def goes_on(cli, tiny, scenes, run):
    def go(*more):
        return cli("train", *tiny, *SETTINGS, "--data.path", scenes, "--run", run, *more)

    return go


def change_config(run, key, value):
    """Change or take away a key of the run's config.yaml."""
    tree = yaml.safe_load((run / "config.yaml").read_text())
    component, name = key.split(".")
    tree[component].pop(name, None)
    if value is not None:
        tree[component][name] = value
    (run / "config.yaml").write_text(yaml.safe_dump(tree))


@pytest.mark.parametrize("key", ["augment.roll", "train.ema_decay", "train.micro_batch_size"])
def test_a_setting_that_came_later_had_its_default(run, goes_on, key):
    change(run, lambda state: state["identity"]["settings"].pop(key, None))
    change_config(run, key, None)
    outcome = goes_on()
    assert outcome.status == 0, outcome.err
    assert "goes on from" in outcome.err
    assert len(epochs_of(run)) == 2


@pytest.mark.parametrize("key", ["augment.roll", "train.micro_batch_size"])
def test_a_setting_that_came_later_is_no_other_than_its_default(run, goes_on, key):
    change(run, lambda state: state["identity"]["settings"].pop(key, None))
    change_config(run, key, None)
    outcome = goes_on(f"--{key}", 4)
    assert outcome.status == 2
    assert f"{key}: 0 then, 4 now" in outcome.err
    assert outcome.err.count("\n") == 1


def test_a_default_that_was_another_then(run, goes_on, monkeypatch):
    from cpprune.runs import identity

    monkeypatch.setitem(identity.DEFAULTS_THEN, "augment.roll", 7)
    change(run, lambda state: state["identity"]["settings"].pop("augment.roll"))
    change_config(run, "augment.roll", None)
    assert "augment.roll: 7 then, 0 now" in goes_on().err
    assert goes_on("--augment.roll", 7).status == 0


def test_micro_batches_of_a_run_whose_checkpoints_do_not_name_them(run, goes_on):
    """Older checkpoints leave them out; the run's config.yaml tells."""
    change(run, lambda state: state["identity"]["settings"].pop("train.micro_batch_size", None))
    change_config(run, "train.micro_batch_size", 4)
    assert "train.micro_batch_size: 4 then, 0 now" in goes_on().err
    assert goes_on("--train.micro_batch_size", 4).status == 0


def test_micro_batches_change_what_is_learned(run, goes_on):
    outcome = goes_on("--train.micro_batch_size", 4)
    assert outcome.status == 2
    assert "train.micro_batch_size: 0 then, 4 now" in outcome.err
    assert not (run / "metrics.jsonl").exists()


def test_a_setting_that_is_no_more(run, goes_on):
    change(run, lambda state: state["identity"]["settings"].update({"train.accumulation": 2}))
    outcome = goes_on()
    assert outcome.status == 0, outcome.err
    assert "train.accumulation=2 is no setting of this version and is left out" in outcome.err
    assert len(epochs_of(run)) == 2


def test_a_number_of_the_front_end_that_came_later(run, goes_on):
    change(run, lambda state: state["identity"]["features"].pop("periodic_window"))
    assert goes_on().status == 0


def test_another_front_end_is_refused(run, goes_on):
    change(run, lambda state: state["identity"]["features"].update(hop=1))
    assert "the front end of the model" in goes_on().err


def test_a_run_that_began_with_other_draws_goes_on_and_says_so(run, goes_on):
    change(run, lambda state: state["identity"].pop("draws", None))
    outcome = goes_on("--train.epochs", 2)
    assert outcome.status == 0, outcome.err
    (line,) = [line for line in outcome.err.splitlines() if "random numbers" in line]
    assert "does not end with the bits of a run in one piece" in line


def test_a_checkpoint_that_tells_no_time(run, goes_on):
    change(run, lambda state: state["progress"].pop("seconds", None))
    assert goes_on().status == 0


def test_a_run_with_settings_that_were_renamed(run, goes_on, cli, monkeypatch):
    from cpprune.settings import renamed

    monkeypatch.setattr(renamed, "_warned", set())
    config = run / "config.yaml"

    def older(state):
        settings = state["identity"]["settings"]
        settings["data.split_fraction"] = settings.pop("data.train_fraction")
        settings["features.preset"] = "seed256"

    change(run, older)
    text = config.read_text()
    for new, old in (
        ("train_fraction", "split_fraction"),
        ("in_memory", "resident"),
        ("cpjku22_256", "seed256"),
    ):
        assert new in text
        text = text.replace(new, old)
    config.write_text(text)
    assert "data.train_fraction: 0.25 then, 0.5 now" in goes_on("--data.train_fraction", 0.5).err
    outcome = cli("train", "--config", config, "--run", run, "--train.time_limit_minutes", 0)
    assert outcome.status == 0, outcome.err
    assert "goes on from" in outcome.err
    assert "no setting of this version" not in outcome.err
    for old in ("data.resident", "data.split_fraction", "features.preset=seed256"):
        assert outcome.err.count(f"{old} is now") == 1
    assert len(epochs_of(run)) == 2
    assert "train_fraction: 0.25" in config.read_text()
