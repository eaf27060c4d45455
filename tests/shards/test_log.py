"""The log: lines of commands, records of everybody else."""

import logging

import pytest

from shards.log import LOG, printed_log
from shards.progress import progress


def test_commands_print_it_line_by_line(capfd: pytest.CaptureFixture[str]) -> None:
    LOG.info("before")
    with printed_log():
        LOG.info("100 % done")
        LOG.warning("a disk is full")
    LOG.error("after")
    assert capfd.readouterr() == ("", "100 % done\ncpprune: warning: a disk is full\n")


def test_progress_is_shown_to_those_who_read_the_log(caplog: pytest.LogCaptureFixture) -> None:
    for level, lines in ((logging.WARNING, 0), (logging.INFO, 1)):
        caplog.set_level(level, "cpprune")
        with progress("Reading", 3) as advance:
            advance(3)
        assert len(caplog.messages) == lines
