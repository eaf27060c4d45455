"""Names of an older version: they work, with one line that tells the new one."""

import shutil

import pytest
import torch

import cpprune
from cpprune.audio.config import IMAGE, PRESETS, FeaturesConfig
from cpprune.config import all_keys, build_parser, key_types, parse
from cpprune.report.run_folder import read_run
from cpprune.settings import renamed
from cpprune.settings.choices import choices_of

pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.fixture(autouse=True)
def nothing_was_warned(monkeypatch):
    monkeypatch.setattr(renamed, "_warned", set())


def test_the_table_leads_to_names_that_there_are():
    keys = set(all_keys())
    assert set(renamed.KEYS.values()) <= keys
    assert keys.isdisjoint(renamed.KEYS)
    assert set(renamed.VALUES["features.preset"].values()) <= PRESETS.keys()
    for key, values in renamed.VALUES.items():
        known = choices_of(key_types()[key]) or (*PRESETS, IMAGE)
        assert set(values.values()) <= set(known)
        assert set(values).isdisjoint(known)


@pytest.mark.parametrize(("old", "new"), renamed.VALUES["features.preset"].items())
def test_an_old_preset_is_the_new_one(old, new, caplog):
    assert cpprune.log_mel(old).spec == cpprune.log_mel(new).spec == PRESETS[new]
    assert FeaturesConfig(preset=old) == FeaturesConfig(preset=new)
    (line,) = caplog.messages
    assert f"features.preset={old} is now {new}" in line
    assert renamed.LAST_VERSION in line


OLD = (
    "data: {resident: host, split_fraction: 0.5}\nfeatures: {preset: seed128}\noptim: {lr: 1e-3}\n"
)
NEW = {"data.in_memory": "host", "data.train_fraction": 0.5, "features.preset": "passt_128"}


def parsed(*words):
    return parse(build_parser("x", "", {}), [str(word) for word in words], [])


def test_old_names_in_a_file_and_on_the_command_line_give_the_same_run(tmp_path, caplog):
    file = tmp_path / "old.yaml"
    file.write_text(OLD)
    from_file = parsed("--config", file)
    words = (
        "--data.resident=host --data.split_fraction 0.5 --features.preset seed128 --optim.lr 1e-3"
    )
    typed = parsed(*words.split())
    assert len(caplog.messages) == 3
    caplog.clear()
    new = parsed(*[f"--{key}={value}" for key, value in NEW.items()], "--optim.lr=1e-3")
    assert caplog.messages == []
    assert from_file == typed == new
    assert new.explicit == {*NEW, "optim.lr"}


def test_an_unknown_key_beside_old_ones(cli, tmp_path):
    (tmp_path / "old.yaml").write_text("data: {resident: host, workrs: 2}\n")
    outcome = cli("train", "--config", "old.yaml")
    assert outcome.status == 2
    assert (
        "old.yaml: unknown configuration key data.workrs: did you mean data.workers?" in outcome.err
    )


def test_importing_weights_with_an_old_preset(cli, tmp_path):
    torch.save(cpprune.build_model("cp_resnet", widths=[6, 8, 10]).state_dict(), "weights.pth")
    outcome = cli("import", "weights.pth", "--out", "model", "--preset", "seed128", "--rho", 4)
    assert outcome.status == 0, outcome.err
    assert len([line for line in outcome.err.splitlines() if "passt_128" in line]) == 1
    assert cpprune.load("model").features.spec == PRESETS["passt_128"]


def renames(text: str) -> str:
    for old, new in renamed.KEYS.items():
        text = text.replace(new.partition(".")[2], old.partition(".")[2])
    for old, new in renamed.VALUES["features.preset"].items():
        text = text.replace(new, old)
    return text


def test_a_report_of_a_run_with_old_names(cli, tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    config = run / "config.yaml"
    before = read_run(run).settings
    config.write_text(renames(config.read_text()))
    assert "split_fraction" in config.read_text()
    assert read_run(run).settings == before
