from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def url(flaky: Any, tau_dataset: Path) -> str:
    return f"flaky://{tau_dataset}"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"
