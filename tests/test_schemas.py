"""The tables of docs/files.md list the keys of real files: all of them, and no others."""

import json
import re
from pathlib import Path

import pyarrow.parquet
import pytest
from networks import save_attentive

from cpprune.models.routed import save_routed

PAGE = Path(__file__).parents[1] / "docs/files.md"


def tables():
    """Keys of every table, by the heading above it."""
    found = {}
    for section in PAGE.read_text().split("\n## ")[1:]:
        heading, _, rest = section.partition("\n")
        for number, table in enumerate(re.split(r"\n\| key .*\n\|[-|]+\n", rest)[1:]):
            rows = table.split("\n\n")[0]
            name = heading if number == 0 else f"{heading} {number}"
            found[name] = re.findall(r"^\| `([^`]+)` \|", rows, re.MULTILINE)
            assert len(set(found[name])) == len(found[name])
    return found


def keys_of(value, listed, path=""):
    """Keys of a document in the page's notation; what the page calls `a.*` is not looked into."""
    if f"{path}.*" in listed:
        return {f"{path}.*"}
    if isinstance(value, dict):
        prefix = f"{path}." if path else ""
        parts = [keys_of(inner, listed, f"{prefix}{key}") for key, inner in value.items()]
        return set().union(*parts)
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return set().union(*(keys_of(inner, listed, f"{path}[]") for inner in value))
    return {path}


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def runs(tiny, tiny_run, scenes, call, tmp_path_factory):
    """A finished run, one that prunes, records ids and caches logits, one that diverges, one in int8."""
    folder = tmp_path_factory.mktemp("schemas")
    short = ["--data.path", scenes, "--train.epochs", 1, "--train.batch_size", 16]
    pruned, failed = folder / "pruned", folder / "failed"
    prune = [
        "prune",
        "--init",
        tiny_run / "model",
        "--prune.ratio",
        0.3,
        "--prune.blocks",
        1,
        *short,
    ]
    teachers = ["--distill.teachers", f"[{tiny_run / 'model'}]", "--distill.mode", "on_the_fly"]
    prune += [*teachers, "--distill.cache", folder / "cache"]
    assert call(*prune, "--data.record_ids", "true", "--run", pruned) == 0
    diverging = ["--optim.name", "sgd", "--optim.lr", "1e30", "--optim.weight_decay", "3e-3"]
    diverging += ["--train.max_skipped", 100]
    assert call("train", *tiny, *short, *diverging, "--run", failed) == 2
    quantized = folder / "quantised"
    train = ["train", "--init", tiny_run / "model", "--quantize.start_epoch", 0, *short]
    assert call(*train, "--run", quantized) == 0
    return [tiny_run, pruned, failed, quantized]


@pytest.fixture(scope="module")
def documents(runs, scenes, call):
    """Real documents of every kind, by their heading on the page."""
    logged = [line for run in runs for line in lines_of(run / "metrics.jsonl")]
    finished = runs[:2]
    states = [path for run in finished for path in run.glob("checkpoints/*/state.json")]

    def read(paths):
        return [json.loads(path.read_text()) for path in paths]

    soup = runs[1].parent / "soup"
    assert call("soup", runs[0] / "model", "--data", scenes, "--out", soup) == 0
    models = read(
        [*(run / "model/model.json" for run in (*finished, runs[3])), soup / "model.json"]
    )
    save_attentive(runs[1].parent / "attentive")
    models += read([runs[1].parent / "attentive/model.json"])
    routed = runs[1].parent / "routed"
    save_routed(routed, "device", runs[0] / "model", {"a": runs[1] / "model"})
    return {
        "metrics.jsonl: epochs": [line for line in logged if "event" not in line],
        "metrics.jsonl: pruning steps": [x for x in logged if x.get("event") == "prune"],
        "metrics.jsonl: quantisation": [x for x in logged if x.get("event") == "quantize"],
        "metrics.jsonl: skipped steps": [x for x in logged if x.get("event") == "skipped"],
        "result.json": read(run / "result.json" for run in runs),
        "environment.json": read(run / "environment.json" for run in runs),
        "model.json": models,
        "model.json 1": [model["features"] for model in models if model["features"]],
        "routes.json": read([routed / "routes.json"]),
        "plans/*.json and --prune.save_plan": read(runs[1].glob("plans/*.json")),
        "checkpoints/step-N/state.json": read(states),
        "ids/rank-N.jsonl": lines_of(runs[1] / "ids/rank-0.jsonl"),
        "logits.json of distill.cache": read([runs[1].parent / "cache/logits.json"]),
        "dataset.json": read([scenes / "dataset.json"]),
    }


def test_every_key_of_every_file_is_on_the_page_and_no_other(documents):
    listed = tables()
    assert documents.keys() == listed.keys() - {"index.parquet", "cpprune evaluate --json"}
    for heading, of_this_kind in documents.items():
        assert of_this_kind, heading
        found = set().union(*(keys_of(document, listed[heading]) for document in of_this_kind))
        # null for a model that was not there, and nothing else
        found -= {key for key in found if any(other.startswith(f"{key}.") for other in found)}
        assert found == set(listed[heading]), heading


def test_the_columns_of_the_index_are_on_the_page(scenes):
    schema = pyarrow.parquet.read_schema(scenes / "index.parquet")
    groups = json.loads((scenes / "dataset.json").read_text())["groups"]
    section = PAGE.read_text().split("\n## index.parquet\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", section, re.MULTILINE)
    assert rows == [(field.name, str(field.type)) for field in schema if field.name not in groups]


def test_the_keys_of_evaluate_are_on_the_page(cli, tiny_run, scenes):
    listed = tables()["cpprune evaluate --json"]
    found = cli("evaluate", tiny_run / "model", "--data", scenes, "--json").json
    assert keys_of(found, listed) == set(listed)
