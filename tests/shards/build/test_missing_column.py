"""An index without one of its columns, or with one of another type, is named, whichever column it is."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cpprune.cli.main import main
from shards.manifest import INDEX_TYPES, canonical, sha256_of, sha256_of_file


@pytest.mark.parametrize("change", ["removed", "texts"])
@pytest.mark.parametrize("column", [*INDEX_TYPES, "location"])
def test_a_column_that_is_not_as_it_should_be(
    tau_dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    column: str,
    change: str,
) -> None:
    folder = tmp_path / "d"
    shutil.copytree(tau_dataset, folder)
    path = folder / "index.parquet"
    table = pq.read_table(path)
    place = table.schema.get_field_index(column)
    table = table.remove_column(place)
    if change == "texts":
        lists = pa.array([["text"]] * table.num_rows)
        table = table.add_column(place, column, lists)
    pq.write_table(table, path)
    document = json.loads((folder / "dataset.json").read_bytes())
    document["index"]["sha256"] = sha256_of_file(path)
    if "bytes" in document["index"]:
        document["index"]["bytes"] = path.stat().st_size
    del document["sha256"]
    document["sha256"] = sha256_of(canonical(document))
    (folder / "dataset.json").write_bytes(canonical(document))
    for command, status in (("info", 2), ("verify", 1)):
        capsys.readouterr()
        found = main(["shards", command, str(folder)])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        if found == 0:  # `info` does not read all columns
            assert command == "info"
        else:
            assert found == status
            assert column in out + err
