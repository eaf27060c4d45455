"""Budgets: what they say."""

import subprocess
import sys

import pytest

from cpprune.export.target import targets
from cpprune.pruning.budget import QUANTITIES, Limit, parse_budget

EXPORTS = [f"{name}-{p}" for name, target in targets().items() for p in target.precisions]


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("params<=47028", [("params", 47_028)]),
        ("macs<=10e6", [("macs", 10_000_000)]),
        ("operations<=8e5,macs<=3", [("operations", 800_000), ("macs", 3)]),
        ("bytes<=128000@fp16", [("params", 64_000)]),
        ("bytes<=128001@fp32", [("params", 32_000)]),
        ("exported<=6e4@int8", [("exported@int8", 60_000)]),
        ("exported<=6e4@fp16", [("exported@fp16", 60_000)]),
        ("ram<=2e5@int8,ram<=1e6@fp32", [("ram@int8", 200_000), ("ram@fp32", 1_000_000)]),
        ("flash<=60000@int8,flash<=9@fp32", [("flash@int8", 60_000), ("flash@fp32", 9)]),
        ("latency<=3ms@onnx-int8", [("latency@onnx-int8", 3)]),
        ("latency <= 0.5 s@c-fp32,latency<=3ms", [("latency@c-fp32", 500), ("latency", 3)]),
        (" params <= 5e4 , bytes<=30000@int8", [("params", 50_000), ("params", 30_000)]),
    ],
)
def test_limits(text: str, limits: list[tuple[str, float]]) -> None:
    found = parse_budget(text)
    assert [(limit.quantity, limit.bound) for limit in found] == limits
    assert all(isinstance(limit, Limit) and limit.text in text for limit in found)


def test_kind_and_form() -> None:
    (one,) = parse_budget("latency<=3ms@onnx-int8")
    assert (one.kind, one.form, one.measured, one.exported) == ("latency", "onnx-int8", True, None)
    (other,) = parse_budget("exported<=3@fp16")
    assert (other.kind, other.exported, other.measured) == ("exported", "fp16", False)
    assert [limit.form for limit in parse_budget("params<=3,latency<=3ms")] == ["", ""]


def test_every_export_has_a_latency() -> None:
    assert {"onnx-fp32", "onnx-fp16", "onnx-int8", "c-int8", "tflite-int8"} <= set(EXPORTS)
    for form in EXPORTS:
        assert parse_budget(f"latency<=3ms@{form}")[0].quantity == f"latency@{form}"


def test_every_example_is_a_limit() -> None:
    for quantity in QUANTITIES.values():
        for example in quantity.examples:
            assert parse_budget(example)[0].text == example


def test_texts_of_values() -> None:
    texts = [limit.text_of(1234.5) for limit in parse_budget("macs<=3,flash<=3@int8,ram<=3@fp32")]
    assert texts == ["1,234 macs", "1,234 bytes", "1,234 bytes"]
    assert parse_budget("latency<=3ms@c-int8")[0].text_of(1.23456) == "1.23ms here"


UNKNOWN = "write params<=47028, macs<=10e6, .*flash<=60000@int8, .*, separated by commas"
BYTES = r"write bytes<=128000@fp16 \(after @: fp32, fp16, int8\)$"
EXPORTED = r"write exported<=60000@int8 \(after @: fp32, fp16, int8\)$"
FLASH = r"write flash<=60000@int8 \(after @: fp32, int8\)$"
LATENCY = (
    r"write latency<=3ms, latency<=3ms@onnx-int8 \(units: us, ms, s; after @: c-fp32, c-int8, .*"
)


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("", UNKNOWN),
        ("47028", UNKNOWN),
        ("flops<=3", UNKNOWN),
        ("params<=3,,macs<=3", UNKNOWN),
        ("params", "write params<=47028$"),
        ("params<47028", "write params<=47028$"),
        ("params>=3", "write params<=47028$"),
        ("params<=", "write params<=47028$"),
        ("params<=-5", "write params<=47028$"),
        ("params<=0", "write params<=47028$"),
        ("params<=many", "write params<=47028$"),
        ("params<=1e999e", "write params<=47028$"),
        ("params<=5@fp16", "write params<=47028$"),
        ("macs<=1.2.3", "write macs<=10e6$"),
        ("bytes<=128000", BYTES),
        ("bytes<=128000@fp8", BYTES),
        ("exported<=60000", EXPORTED),
        ("exported<=60000@int4", EXPORTED),
        ("exported<=0@int8", EXPORTED),
        ("exported<=60000@onnx-int8", EXPORTED),
        ("flash<=60000", FLASH),
        ("flash<=60000@fp16", FLASH),
        ("flash<=0.5@int8", FLASH),
        ("flash<=60000ms@int8", FLASH),
        ("ram<=200000@", r"write ram<=200000@int8 \(after @: fp32, int8\)$"),
        ("latency<=3ms@int8", LATENCY),
        ("latency<=3ms@onnx", LATENCY),
        ("latency<=3ms@onnx-int4", LATENCY),
        ("latency<=3ms@c-fp16", LATENCY),
        ("latency<=3@onnx-int8", LATENCY),
        ("latency<=3@onnx-int8ms", LATENCY),
        ("latency<=0ms@onnx-int8", LATENCY),
    ],
)
def test_what_is_no_limit_is_named(text: str, remedy: str) -> None:
    with pytest.raises(ValueError, match=rf"^prune.budget: '.*' is no limit; {remedy}"):
        parse_budget(text)


def test_parsing_needs_no_heavy_package() -> None:
    heavy = "{'torch', 'onnx', 'onnxruntime', 'emx_onnx_cgen', 'executorch', 'litert_torch'}"
    code = (
        "import sys; from cpprune.pruning.budget import parse_budget; "
        "parse_budget('latency<=3ms@onnx-int8,flash<=60000@int8'); "
        f"sys.exit(str({heavy} & set(sys.modules)) if {heavy} & set(sys.modules) else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
