"""What is used of wandb beyond its documented interface."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import wandb


def run_settings(monitored_pid: int, seconds: float) -> wandb.Settings:
    """Return settings for a run that is logged from another process than the one that trains.

    `x_stats_pid`, which makes wandb measure the training process, is experimental: without it, system
    metrics would be the tracker's. `finish_timeout` bounds the upload at the end, and
    `finish_timeout_raises` lets the run hear of it.

    Args:
        monitored_pid: process whose system metrics are recorded.
        seconds: how long the upload at the end may take.
    """
    import wandb

    return wandb.Settings(
        console="off",
        x_stats_pid=monitored_pid,
        finish_timeout=seconds,
        finish_timeout_raises=True,
    )


def sync_folder(run: wandb.Run) -> str:
    """Return the folder that `wandb sync` takes to send a run; the setting is not documented."""
    return str(run.settings.sync_dir)


def server_url() -> str:
    """Return the URL of the server that runs are sent to: WANDB_BASE_URL or that of wandb's own files.

    Only the settings of wandb's global state know both.
    """
    import wandb

    return str(wandb.setup().settings.base_url)
