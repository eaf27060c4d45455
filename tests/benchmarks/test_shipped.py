"""benchmarks/shipped.py: which exports it makes of a network, and its table."""

import importlib
import json
from dataclasses import asdict
from pathlib import Path

import pytest

from shards.errors import UserError

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def shipped():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(REPOSITORY / "benchmarks")
        yield importlib.import_module("shipped")


@pytest.fixture
def bench(shipped, tmp_path, monkeypatch):
    """Makes the benchmark in a folder, without its dataset."""
    monkeypatch.setattr(shipped.demo, "build", lambda out, clips: out / "dataset")
    return lambda: shipped.Bench(tmp_path, 300, None)


def row(shipped, network, to, precision, lost=0.0):
    return shipped.Row(
        network=network,
        to=to,
        precision=precision,
        network_bytes=1000,
        stored=2000,
        ram=3000 if to == "c" else None,
        clips=300,
        same=0.99,
        difference=1e-6,
        accuracy=0.5 - lost,
        of_model=0.5,
        latency=0.5,
    )


def test_a_stopped_benchmark_goes_on_where_it_was(shipped, bench, tmp_path, monkeypatch):
    def refused(arguments):
        raise UserError(f"cannot export to {arguments.to}")

    finished = [row(shipped, "big", "onnx", "fp32"), row(shipped, "small", "c", "int8")]
    text = "".join(f"{json.dumps(asdict(one))}\n" for one in finished)
    (tmp_path / "rows.jsonl").write_text(text)
    monkeypatch.setattr(shipped, "write_export", refused)
    again = bench()
    for network, to, way in (("big", "onnx", "fp32"), ("small", "c", "int8"), ("big", "c", "fp32")):
        again.export(network, tmp_path / network, to, way)
    lines = list(again.lines())
    assert [line.split(" | ")[0] for line in lines[2:4]] == ["| small", "| big"]
    assert " | 3,000 | " in lines[2]
    assert lines[4:] == ["big, c, fp32: cannot export to c"]
    assert (tmp_path / "rows.jsonl").read_text() == text


@pytest.mark.parametrize(("lost", "more"), [(0.005, False), (0.006, True)])
def test_int8_that_loses_too_much_is_made_in_other_ways(shipped, bench, monkeypatch, lost, more):
    monkeypatch.setattr(shipped, "_trained", lambda config: Path(config.run) / "model")
    made = []

    def export(self, name, folder, to, way):
        made.append((to, way))
        found = row(shipped, name, to, way, lost if (to, way) == ("c", "int8") else 0.0)
        self.rows[found.key] = found

    monkeypatch.setattr(shipped.Bench, "export", export)
    one = bench()
    one.measure("small", one.configurations()["small"])
    static = {(to, p) for to, target in shipped.targets().items() for p in target.precisions}
    assert set(made[: len(static)]) == static
    others = [("c", shipped.MAX_DROP)]
    others += [(to, shipped.TRAINED) for to in ("c", "executorch", "onnx", "tflite")]
    assert made[len(static) :] == (others if more else [])
