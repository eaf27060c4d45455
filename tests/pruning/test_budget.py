"""Budgets: what they say."""

import pytest

from cpprune.pruning.budget import Limit, parse_budget


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("params<=47028", [("params", 47_028)]),
        ("macs<=10e6", [("macs", 10_000_000)]),
        ("operations<=8e5,macs<=3", [("operations", 800_000), ("macs", 3)]),
        ("bytes<=128000@fp16", [("params", 64_000)]),
        ("bytes<=128001@fp32", [("params", 32_000)]),
        ("exported<=6e4@int8", [("exported@int8", 60_000)]),
        (" params <= 5e4 , bytes<=30000@int8", [("params", 50_000), ("params", 30_000)]),
    ],
)
def test_limits(text: str, limits: list[tuple[str, float]]) -> None:
    found = parse_budget(text)
    assert [(limit.quantity, limit.bound) for limit in found] == limits
    assert all(isinstance(limit, Limit) and limit.text in text for limit in found)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "47028",
        "params",
        "params<47028",
        "params>=3",
        "params<=",
        "params<=-5",
        "params<=0",
        "params<=many",
        "params<=1e999e",
        "params<=5@fp16",
        "bytes<=128000",
        "bytes<=128000@fp8",
        "exported<=60000",
        "exported<=60000@int4",
        "exported<=0@int8",
        "flops<=3",
        "params<=3,,macs<=3",
    ],
)
def test_what_is_no_limit_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"prune.budget: '.*' is no limit; write params<=47028"):
        parse_budget(text)
