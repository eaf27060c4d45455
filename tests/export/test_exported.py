"""Exported models as they lie on disk."""

import json

import pytest

from cpprune.export.exported import is_exported, read_exported, storage
from shards.errors import UserError


def test_storage_is_what_is_known_best():
    constants = {"network": 5, "front_end": 3}
    assert storage(constants) == 8
    assert storage({**constants, "flash": 20, "ram": 99}) == 20
    assert storage({**constants, "file": 12}) == 12


def test_a_file_is_read_back(exported_file, tiny_run):
    assert is_exported(exported_file)
    found = read_exported(exported_file)
    weights = json.loads((tiny_run / "model/model.json").read_text())["weights"]
    assert (found.target, found.precision) == ("onnx", "fp32")
    assert found.weights_sha256 == weights["sha256"]
    assert found.bytes["file"] == exported_file.stat().st_size
    assert found.check is None
    assert found.model is not None


def test_what_was_not_exported(tiny_run, tmp_path):
    (tmp_path / "a.txt").touch()
    (tmp_path / "a.onnx").mkdir()
    for path in (tiny_run / "model", tmp_path / "a.txt", tmp_path / "a.onnx", tmp_path / "no"):
        assert not is_exported(path)
        with pytest.raises(UserError, match="name what cpprune export wrote") as caught:
            read_exported(path)
        assert ("no such file" in str(caught.value)) == (path.name == "no")
