from pathlib import Path

import pytest

from shards import UserError, open_dataset
from shards.suggest import did_you_mean


def test_the_nearest_name_is_suggested() -> None:
    assert did_you_mean("trian", ["val", "train", "test"]) == "; did you mean train?"
    assert did_you_mean("trian", {"val": 1}) == ""
    assert did_you_mean("trian", []) == ""


def test_splits_and_columns_are_suggested(tau_dataset: Path) -> None:
    dataset = open_dataset(tau_dataset)
    with pytest.raises(
        UserError, match=r"no split 'tst'; it has train, val, test; did you mean test\?$"
    ):
        dataset.split("tst")
    with pytest.raises(UserError, match=r"no column 'devices'; .*; did you mean device\?$"):
        dataset.texts("devices")
    with pytest.raises(UserError, match=r"no column 'zzz'; it has key, [a-z, ]*location$"):
        dataset.texts("zzz")
