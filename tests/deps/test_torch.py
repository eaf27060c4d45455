"""Private interfaces of torch: a test fails when torch changes what `cpprune.deps.torch` uses."""

import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cpprune.deps import torch as private
from shards.cli.command import explain


def test_stores_are_those_that_torch_documents():
    for name in ("Store", "TCPStore", "PrefixStore"):
        assert getattr(private, name) is getattr(dist, name)


def test_base_classes_cover_the_public_layers():
    convolutions = [getattr(nn, f"Conv{n}d") for n in (1, 2, 3)]
    convolutions += [getattr(nn, f"ConvTranspose{n}d") for n in (1, 2, 3)]
    batch_norms = [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm]
    instance_norms = [nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d]
    assert all(issubclass(layer, private.AnyConv) for layer in convolutions)
    assert all(issubclass(layer, private.AnyBatchNorm) for layer in batch_norms)
    assert all(issubclass(layer, private.AnyNorm) for layer in batch_norms + instance_norms)
    assert not issubclass(nn.Linear, private.AnyConv)
    assert not issubclass(nn.LayerNorm, private.AnyNorm)
    assert not any(issubclass(layer, private.AnyBatchNorm) for layer in instance_norms)


def test_operators_are_seen_in_parts():
    found = []
    layer, x = nn.Linear(3, 2), torch.ones(4, 5, 3)
    for context in (torch.no_grad(), torch.inference_mode(), torch.enable_grad()):
        with context, private.Operators(lambda name, args, result: found.append((name, result))):
            expected = layer(x)
        names = [name for name, _ in found]
        assert names.count("addmm") == 1
        assert "linear" not in names
        result = dict(found)["addmm"]
        assert torch.equal(result.view(4, 5, 2), expected)
        found.clear()


def test_copy_each():
    targets = [torch.zeros(2, 3), torch.zeros(4, dtype=torch.int64)]
    sources = [torch.rand(2, 3), torch.arange(4)]
    views = list(targets)
    private.copy_each_(targets, sources)
    for view, source in zip(views, sources, strict=True):
        assert torch.equal(view, source)


def test_lerp_each_gives_the_bits_of_a_loop():
    targets, sources = [torch.rand(5), torch.rand(2, 3)], [torch.rand(5), torch.rand(2, 3)]
    weight = torch.tensor(0.3)
    expected = [t + (s - t) * weight for t, s in zip(targets, sources, strict=True)]
    private.lerp_each_(targets, sources, weight)
    for target, value in zip(targets, expected, strict=True):
        assert torch.equal(target, value)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
@pytest.mark.parametrize("skips", [True, False])
def test_a_fused_optimizer_skips_the_step(kind, skips):
    weight = nn.Parameter(torch.ones(3))
    optimizer = kind([weight], lr=0.1, fused=True)
    weight.grad = torch.ones(3)
    private.skip_next_step_if(optimizer, torch.tensor(skips))
    optimizer.step()
    assert torch.equal(weight, torch.ones(3)) == skips, f"{kind.__name__} does not read found_inf"


def test_no_buffers_are_broadcast_in_forward():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(nn.BatchNorm1d(2))
        assert wrapped.will_sync_module_buffers()
        private.stop_buffer_broadcast(wrapped)
        assert not wrapped.will_sync_module_buffers(), "the attribute is not read any more"
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(("variable", "expected"), [(None, True), ("1", True), ("0", False)])
def test_inductor_can_be_made_deterministic(monkeypatch, variable, expected):
    from torch._inductor import config

    assert hasattr(config, "deterministic"), "Inductor's setting has another name"
    monkeypatch.delenv("TORCHINDUCTOR_DETERMINISTIC", raising=False)
    if variable is not None:
        monkeypatch.setenv("TORCHINDUCTOR_DETERMINISTIC", variable)
    with config.patch(deterministic=not expected):
        private.make_inductor_deterministic()
        assert config.deterministic is expected


def test_hyper_parameters_are_in_the_event_file(tmp_path):
    event_file_loader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_file_loader"
    )
    from tensorboard.plugins.hparams import metadata
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(tmp_path)
    private.write_hparams(writer, {"lr": 0.1, "widths": [1, 2]}, ["loss"])
    writer.close()
    (file,) = tmp_path.iterdir()  # and no other run beside it
    found = {}
    for event in event_file_loader.EventFileLoader(str(file)).Load():
        for value in event.summary.value:
            if value.tag == metadata.SESSION_START_INFO_TAG:
                content = value.metadata.plugin_data.content
                found = metadata.parse_session_start_info_plugin_data(content).hparams
    assert (found["lr"].number_value, found["widths"].string_value) == (0.1, "[1, 2]")


RANK_OF_TWO = """
import os, sys
from datetime import timedelta
import torch, torch.distributed as dist
from cpprune.deps.torch import is_lost_peer
rank, file = int(sys.argv[1]), sys.argv[2]
store = dist.FileStore(file, 2)
dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
dist.barrier()
if rank == 1:
    os._exit(0)
try:
    while True:
        dist.all_reduce(torch.ones(3))
except RuntimeError as error:
    print(is_lost_peer(error), error)
os._exit(0)
"""


@pytest.mark.slow
def test_a_peer_that_has_ended_is_recognised(tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK_OF_TWO, str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said, _ = [process.communicate(timeout=300)[0] for process in processes]
    assert said.startswith("True "), f"add what gloo says to LOST_PEER: {said}"
    assert not private.is_lost_peer(RuntimeError("shapes cannot be multiplied"))


# --- texts that shards.cli.command turns into one line ------------------------------------------------


def test_memory_that_cannot_be_had_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50, dtype=torch.uint8)
    assert str(explain(caught.value)).startswith("out of memory: "), caught.value


class Killed(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, _):
        import os

        os.kill(os.getpid(), 9)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_killed_worker_is_recognised():
    loader = torch.utils.data.DataLoader(
        Killed(), num_workers=1, multiprocessing_context="forkserver"
    )
    with pytest.raises(RuntimeError) as caught:
        next(iter(loader))
    assert "set data.workers=0" in str(explain(caught.value)), caught.value


def test_a_strided_convolution_of_one_entry_is_not_trained_in_channels_last(monkeypatch):
    """Without this, pruned ResNets end in a corrupted heap on CPUs with AVX2."""
    strided, plain = (
        nn.Conv2d(6, 10, 1, 2),
        nn.Sequential(nn.Conv2d(6, 10, 1), nn.Conv2d(4, 4, 3, 2)),
    )
    for capability, expected in (("AVX2", True), ("AVX512", False)):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda c=capability: c)
        assert private.channels_last_corrupts(nn.Sequential(strided)) == expected
        assert not private.channels_last_corrupts(plain)
