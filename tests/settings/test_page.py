from pathlib import Path

from cpprune.config import all_keys
from cpprune.settings.page import render

PAGE = Path(__file__).parents[2] / "docs/configuration.md"


def test_the_page_of_all_keys_is_current():
    assert PAGE.read_text() == render(), "make docs brings it up to date"


def test_every_key_has_a_row_with_a_text():
    rows = [line.split(" | ") for line in render().splitlines() if line.startswith("| `")]
    texts = {cells[0].strip("| †").strip("`"): cells[-1].rstrip(" |") for cells in rows}
    assert [key for key in all_keys() if not texts.get(key)] == []
