"""How long a network takes: measured as it is said to be, and shown where it is asked for."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from cpprune.evaluation.complexity import latency

CPU = torch.device("cpu")


class Sleeper(nn.Module):
    """Takes 2 ms, and every fourth time 20."""

    calls: ClassVar[list[dict[str, Any]]] = []

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(0.02 if len(self.calls) % 4 == 3 else 0.002)
        self.calls.append(
            {
                "training": self.norm.training,
                "shape": tuple(x.shape),
                "layout": x.is_contiguous(memory_format=torch.channels_last),
                "dtypes": {x.dtype, self.norm.weight.dtype},
                "gradients": torch.is_grad_enabled(),
                "autocast": torch.is_autocast_enabled("cpu"),
            }
        )
        return x


def test_what_is_measured() -> None:
    Sleeper.calls.clear()
    network = Sleeper().bfloat16()
    before = [parameter.clone() for parameter in network.parameters()]
    with torch.autocast("cpu"):
        milliseconds = latency(network, (3, 8, 5), CPU)
    # The slow runs are few, so they do not count.
    assert 2 <= milliseconds < 15
    assert Sleeper.calls[0] == {
        "training": False,
        "shape": (1, 3, 8, 5),
        "layout": True,
        "dtypes": {torch.float32},
        "gradients": False,
        "autocast": False,
    }
    assert all(call == Sleeper.calls[0] for call in Sleeper.calls)
    assert len(Sleeper.calls) > 50
    assert network.training
    for parameter, old in zip(network.parameters(), before, strict=True):
        assert parameter.dtype == torch.bfloat16
        assert torch.equal(parameter, old)


def test_info_measures_when_asked(
    monkeypatch: pytest.MonkeyPatch, tiny_run: Path, cli: Callable[..., Any]
) -> None:
    asked = []

    def made_up(network: nn.Module, input_shape: tuple[int, ...], device: torch.device) -> float:
        asked.append((sum(p.numel() for p in network.parameters()), tuple(input_shape)))
        return 1.2345

    monkeypatch.setattr("cpprune.evaluation.complexity.latency", made_up)
    found = cli("info", tiny_run / "model", "--latency", "--json").json
    assert found["latency_ms"] == 1.2345
    assert asked == [(found["parameters"], (1, 256, 44))]
    shown = cli("info", "--latency", "--model.widths", "[6, 8, 10]")
    assert shown.status == 0
    assert re.search(r"\nlatency +1.23[45]", shown.out)
    assert len(asked) == 2
    assert "latency_ms" not in cli("info", tiny_run / "model", "--json").json
    assert "latency" not in cli("info", "--model.widths", "[6, 8, 10]").out
    assert len(asked) == 2


@pytest.mark.slow
def test_a_dry_run_shows_the_latency_that_was_limited(
    tiny_run: Path, cli: Callable[..., Any]
) -> None:
    settings = ["prune", "--dry-run", "--init", tiny_run / "model", "--prune.budget"]
    found = cli(*settings, "latency<=10s,params<=2000", "--json").json
    assert found["after"]["parameters"] <= 2000
    assert 0 < found["after"]["latency_ms"] < 10_000
    assert 0 < found["before"]["latency_ms"] < 10_000
    shown = cli(*settings, "latency<=10s")
    assert shown.status == 0
    assert "\nlatency in ms " in shown.out
    assert "latency" not in cli(*settings, "params<=2000").out
    refused = cli(*settings, "latency<=1e-9s", "--prune.min_width", 10)
    assert refused.status == 2
    least = r"cpprune: error: prune\.budget: latency<=1e-9s \(at least [\d.]+m?s here\) cannot .*\n"
    assert re.fullmatch(least, refused.err)
