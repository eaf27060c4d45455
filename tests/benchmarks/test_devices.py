"""benchmarks/devices.py: what is served, and the tables of made-up results."""

import importlib
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).parents[2]
AFTER = {"slow": [0.5, 0.62, 0.7], "fast": [0.4, 0.41, 0.52]}  # of device b, by seed


@pytest.fixture(scope="module")
def devices():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(REPOSITORY / "benchmarks")
        yield importlib.import_module("devices")


@pytest.fixture
def rows(devices):
    def row(setting, seed, device, clips, kept, tuned):
        before = (0.5, 1.5)
        return devices.Found("small", setting, seed, device, clips, kept, before, (tuned, 1.0))

    return [
        row(setting, seed, *rest)
        for setting, values in AFTER.items()
        for seed, value in enumerate(values)
        for rest in (("a", 900, False, 0.1), ("b", 100, True, value), ("s4", 0, False, 0.5))
    ]


def test_a_device_in_training_counts_by_what_serves_it(devices, rows):
    slow = [row for row in rows if row.setting == "slow"]
    after, before = devices.changes(slow, "after", 0)
    assert after == pytest.approx([(0.5 + value) / 2 for value in AFTER["slow"]])
    assert before == [0.5] * 3
    tuned, _ = devices.changes(slow, "tuned", 0)
    assert tuned == pytest.approx([(0.1 + value) / 2 for value in AFTER["slow"]])


def test_settings_are_compared_with_none_and_with_the_first(devices, rows, capsys):
    from scipy import stats

    devices.print_changes(rows, ["slow", "fast"])
    cells = {
        line.split(" | ")[0]: line.split(" | ")[1:3]
        for line in capsys.readouterr().out.splitlines()
        if "served" in line
    }
    slow, fast = (np.array(AFTER[name]) / 2 for name in ("slow", "fast"))
    change = 100 * (fast - slow)
    found = cells["| fast, served − slow"]
    assert found[0] == f"{change.mean():+.3f} ± {change.std(ddof=1):.3f}"
    tests = {
        "| slow, tuned": stats.ttest_1samp(slow + 0.05, 0.5),
        "| fast, tuned": stats.ttest_1samp(fast + 0.05, 0.5),
        "| fast, tuned − slow": stats.ttest_rel(fast, slow),
        "| slow, served": stats.ttest_1samp(slow + 0.25, 0.5),
        "| fast, served": stats.ttest_1samp(fast + 0.25, 0.5),
        "| fast, served − slow": stats.ttest_rel(fast, slow),
    }
    p = sorted(test.pvalue for test in tests.values())
    own = tests["| fast, served − slow"].pvalue
    corrected = max(min(1.0, (len(p) - rank) * one) for rank, one in enumerate(p) if one <= own)
    # Equal tests have equal p-values; both get the larger factor of the two.
    assert float(found[1]) == pytest.approx(corrected, abs=6e-4)


def test_the_table_has_a_row_for_each_device_and_for_the_unseen(devices, rows, capsys):
    devices.print_devices([row for row in rows if row.setting == "slow"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| a",
        "| b",
        "| s4",
        "| seen",
        "| unseen",
    ]
    mean = float(np.mean(AFTER["slow"]))
    assert (
        f"| b | 100 | 0.5000 | {mean:.4f} | {mean:.4f} | 1.5000 | 1.0000 | 1.0000 | 3 of 3 |"
        in lines
    )
    assert "| a | 900 | 0.5000 | 0.1000 | 0.5000 | 1.5000 | 1.0000 | 1.5000 | 0 of 3 |" in lines
