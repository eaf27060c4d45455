"""What is compiled in a training step, on the CPU, where Inductor writes C++ instead of Triton."""

import os

import pytest
import torch
from networks import plan_for
from torch import nn

import cpprune
from cpprune.audio.config import PRESETS
from cpprune.audio.frontend import LogMel
from cpprune.deps.torch import inductor_cache
from cpprune.pruning.surgery import apply_plan
from cpprune.training.engine import Forward

pytestmark = pytest.mark.slow  # half a minute of a C++ compiler

SHAPE = (1, 64, 44)


@pytest.mark.parametrize("preset", ["cpjku22_256", "dcase24"])
def test_a_compiled_front_end_computes_the_same(preset):
    features = LogMel(PRESETS[preset])
    generator = torch.Generator().manual_seed(0)
    fused = features.compiled()
    for rows in (5, 2):
        clips = torch.randint(-8000, 8000, (rows, 32_000), generator=generator).to(torch.int16)
        for edges in (None, torch.tensor([3.0, 15_200.0])):
            torch.testing.assert_close(
                fused(clips, edges), features(clips, edges), rtol=0, atol=2e-5
            )
    assert features.windowed == LogMel.windowed.__get__(features), "the plain one stays plain"


def gradients(shell, x):
    shell.network.zero_grad()
    logits = shell(x)
    logits.square().sum().backward()
    return logits, {name: p.grad for name, p in shell.network.named_parameters()}


def test_a_compiled_network_computes_the_same_before_and_after_a_cut():
    torch.manual_seed(0)
    network = cpprune.build_model("cp_resnet", widths=[6, 8, 10]).eval()
    sizes = set()
    for _ in range(2):
        plain, compiled = (Forward(network, "no", compiled=how) for how in (False, True))
        for rows in (3, 2, 3):  # a full batch, the last one, and a full one again
            x = torch.randn(rows, *SHAPE).contiguous(memory_format=torch.channels_last)
            expected, expected_gradients = gradients(plain, x)
            found, found_gradients = gradients(compiled, x)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
            for name, gradient in expected_gradients.items():
                torch.testing.assert_close(found_gradients[name], gradient, rtol=1e-3, atol=1e-4)
        assert [name for name, _ in network.named_parameters()] == [*expected_gradients]
        sizes.add(sum(p.numel() for p in network.parameters()))
        plan = plan_for(network, SHAPE, scope="global", ratio=0.4)
        apply_plan(network, SHAPE, plan)
    assert len(sizes) == 2


def test_compiled_code_is_kept_in_a_folder_unless_told_otherwise(tmp_path, monkeypatch):
    x = torch.randn(2, *SHAPE).contiguous(memory_format=torch.channels_last)

    def compile_one(width):
        torch.compiler.reset()
        network = nn.Sequential(nn.Conv2d(1, width, 3), nn.ReLU())
        Forward(network, "no", compiled=True)(x)

    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    with inductor_cache(tmp_path / "run"):
        compile_one(4)
    assert str(tmp_path) not in os.environ["TORCHINDUCTOR_CACHE_DIR"]
    assert list((tmp_path / "run").rglob("*.so"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "mine"))
    with inductor_cache(tmp_path / "other"):
        compile_one(6)
    assert list((tmp_path / "mine").rglob("*.so"))
    assert not (tmp_path / "other").exists()
