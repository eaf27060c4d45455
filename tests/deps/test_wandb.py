"""Private interfaces of wandb."""

import os
from pathlib import Path

import pytest

from cpprune.deps.wandb import run_settings, server_url, sync_folder

wandb = pytest.importorskip("wandb")


@pytest.fixture(autouse=True)
def no_account(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("NETRC", "/nowhere")


def test_settings_are_known():
    settings = run_settings(os.getpid(), 7.0)
    assert settings.x_stats_pid == os.getpid()
    assert settings.finish_timeout == 7
    assert settings.finish_timeout_raises is True


def test_an_offline_run_has_a_folder_to_sync(tmp_path):
    run = wandb.init(mode="offline", dir=tmp_path, settings=run_settings(os.getpid(), 60.0))
    folder = sync_folder(run)
    run.finish()
    assert list(Path(folder).glob("run-*.wandb")), folder


def test_the_server_is_that_of_the_environment(monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    wandb.teardown()
    try:
        assert server_url() == "http://127.0.0.1:9"
    finally:
        wandb.teardown()
