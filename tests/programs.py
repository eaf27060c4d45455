"""Programs of the system that some tests need."""

import os
import shutil

import pytest


def required(program: str, package: str) -> str:
    """Skip the test, or in CI fail it, where a program is not installed."""
    path = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin")
    if path is None:
        text = f"{program} is not installed: apt-get install {package}"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(text)
    assert path is not None
    return path
