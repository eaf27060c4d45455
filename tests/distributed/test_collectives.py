"""What the ranks do together, each function on two and three real processes."""

import copy

import pytest
import torch
import torch.distributed as dist
from marks import slow
from networks import plan_for
from torch import nn

import cpprune
from cpprune.distributed import collectives, process_group
from cpprune.models.fingerprint import fingerprint
from cpprune.models.resize import layer_widths
from cpprune.pruning.pruner import prune_on_all_ranks
from cpprune.training.batch_norm import use_global_batch_norm
from shards.errors import UserError

CPU = torch.device("cpu")
SHAPE = (1, 64, 44)
ADVICE = "a process does not compute as the others do; the last checkpoint is whole"


# --- all_gather_rows, broadcast_json ------------------------------------------------------------------


def gathered(total):
    rank, world = dist.get_rank(), dist.get_world_size()
    whole = torch.arange(total * 2, dtype=torch.float32).view(total, 2)
    own = whole[total * rank // world : total * (rank + 1) // world]
    return collectives.all_gather_rows(own, total).tolist()


@pytest.mark.parametrize("total", [0, 1, 2, 7, 8])
def test_gather_rows_on_every_rank_in_rank_order(ranks, total):
    whole = torch.arange(total * 2, dtype=torch.float32).view(total, 2).tolist()
    assert ranks.call(gathered, total) == [whole] * ranks.world


def shared(value):
    own = value if dist.get_rank() == 0 else {"this is": dist.get_rank()}
    return collectives.broadcast_json(own, CPU)


@pytest.mark.parametrize("value", [None, {"keep": [1, 2], "name": "größer"}, "x" * 100_000, []])
def test_broadcast_json_is_what_rank_0_has(ranks, value):
    assert ranks.call(shared, value) == [value] * ranks.world


def shared_buffers():
    norm = nn.BatchNorm2d(2)
    norm.running_mean.fill_(dist.get_rank() + 1)
    norm.weight.data.fill_(dist.get_rank() + 1)
    collectives.broadcast_buffers(norm)
    return [norm.running_mean.tolist(), norm.weight.tolist()]


def test_broadcast_buffers_takes_those_of_rank_0_and_leaves_parameters(ranks):
    expected = [[[1, 1], [rank + 1, rank + 1]] for rank in range(ranks.world)]
    assert ranks.call(shared_buffers) == expected


def test_ranks_and_world(ranks):
    assert ranks.call(rank_and_world) == [[r, ranks.world] for r in range(ranks.world)]


def rank_and_world():
    return [process_group.rank(), process_group.world_size()]


# --- proof that all ranks hold the same network -------------------------------------------------------


def network():
    torch.manual_seed(0)
    return cpprune.build_model("cp_resnet", widths=[4, 6, 8])


def compared(rank, name):
    """Change one number of a tensor on one rank, by as little as can be."""
    own = network()
    if dist.get_rank() == rank:
        tensor = own.state_dict()[name].view(-1)
        tensor[-1] = torch.nextafter(tensor[-1], torch.tensor(9.0))
    try:
        return collectives.check_ranks_equal(own, CPU, "before pruning")
    except UserError as error:
        return str(error)


def test_equal_ranks_agree_on_one_fingerprint(ranks):
    prints = ranks.call(compared, -1, "")
    assert prints == [fingerprint(network())] * ranks.world


@pytest.mark.parametrize("name", ["stage2.block1.conv1.weight", "in_c.1.running_var"])
def test_a_rank_that_differs_is_named(ranks, name):
    last = ranks.world - 1
    message = f"before pruning: the network of rank {last} differs from rank 0's: {ADVICE}"
    assert ranks.call(compared, last, name) == [message] * ranks.world


@pytest.mark.slow
def test_all_ranks_that_differ_from_the_first_are_named(three):
    message = f"before pruning: the network of rank 1, 2 differs from rank 0's: {ADVICE}"
    assert three.call(compared, 0, "feed_forward.1.bias") == [message] * 3


def pruned(criterion, rank_to_change):
    own = network()
    with torch.no_grad():
        for parameter in own.parameters():
            if criterion == "magnitude":
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator()))
        if dist.get_rank() == rank_to_change:
            own.in_c[0].weight[0, 0, 0, 0] += 1
    before = copy.deepcopy(own.state_dict())

    def plan():
        assert dist.get_rank() == 0, "only rank 0 plans"
        return plan_for(own, SHAPE, criterion=criterion, ratio=0.5)

    try:
        cut = prune_on_all_ranks(own, SHAPE, plan, {}, CPU)
    except UserError as error:
        whole = all(torch.equal(t, before[name]) for name, t in own.state_dict().items())
        return [type(error).__name__, str(error), whole]
    return [cut.fingerprint, cut.plan.to_json(), layer_widths(own)]


def test_every_rank_applies_the_plan_of_rank_0(ranks):
    answers = ranks.call(pruned, "magnitude", -1)
    assert answers == [answers[0]] * ranks.world
    fingerprint, plan, widths = answers[0]
    assert len(fingerprint) == 64
    assert all(len(group["keep"]) * 2 == group["width"] for group in plan["groups"])
    assert set(widths.values()) == {2, 3, 4}


def test_nothing_is_cut_when_a_rank_differs(ranks):
    for kind, message, whole in ranks.call(pruned, "magnitude", 1):
        assert kind == "UserError"
        assert "rank 1" in message
        assert "before pruning" in message
        assert whole


def test_what_rank_0_cannot_plan_is_an_error_on_every_rank(ranks):
    for kind, message, whole in ranks.call(pruned, "bn_scale", -1):
        assert kind == "UserError"
        assert message.startswith("prune.criterion=bn_scale")
        assert whole


# --- batch statistics over all ranks ------------------------------------------------------------------

CHANNELS = 3


def batch(rows, number):
    """The whole batch and the gradient that comes from above, in float64."""
    generator = torch.Generator().manual_seed(number)
    shape = (rows, CHANNELS, 4, 5)
    x = torch.randn(shape, generator=generator, dtype=torch.float64) * 3 + 7
    return x.float().double(), torch.randn(shape, generator=generator, dtype=torch.float64)


def prepare(norm):
    if not norm.affine:
        return norm
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, -2.0, 1.5]))
        norm.bias.copy_(torch.tensor([1.0, 0.0, -3.0]))
    return norm


USUAL = {"eps": 1e-3, "momentum": 0.2}


def normalised(parts, training, settings=USUAL, half=False):
    """Normalise this rank's rows of two batches one after the other."""
    net = nn.Sequential(prepare(nn.BatchNorm2d(CHANNELS, **settings)))
    use_global_batch_norm(net)
    net.train(training)
    dtype = torch.bfloat16 if half else torch.float32
    rank = dist.get_rank()
    start = sum(parts[:rank])
    rows = slice(start, start + parts[rank])
    outputs, gradients = [], []
    for number in range(2):
        x, above = batch(sum(parts), number)
        above = above + 5 if half else above
        own = x[rows].to(dtype, memory_format=torch.channels_last).requires_grad_()
        y = net(own)
        assert y.dtype == dtype
        y.backward(above[rows].to(dtype))
        outputs.append(y.tolist())
        gradients.append(own.grad.tolist())
    return {
        "kind": type(net[0]).__name__,
        "names": list(net.state_dict()),
        "outputs": outputs,
        "gradients": gradients,
        "weight": net[0].weight.grad.tolist() if net[0].affine else None,
        "bias": net[0].bias.grad.tolist() if net[0].affine else None,
        **{name: buffer.tolist() for name, buffer in net[0].named_buffers()},
    }


def close(found, expected):
    shape = expected.shape
    values = torch.as_tensor(found, dtype=torch.float64).view(shape)
    torch.testing.assert_close(values, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(
    ("ranks", "parts"),
    [
        *((2, parts) for parts in ([3, 3], [4, 3], [5, 0], [0, 1])),
        *(slow(3, parts) for parts in ([2, 3, 3], [1, 0, 4], [0, 0, 1])),
    ],
    indirect=["ranks"],
    ids=str,
)
def test_batch_statistics_are_those_of_the_whole_batch(ranks, parts, training):
    answers = ranks.call(normalised, parts, training)
    reference = prepare(nn.BatchNorm2d(CHANNELS, eps=1e-3, momentum=0.2)).double().train(training)
    for number in range(2):
        x, above = batch(sum(parts), number)
        x.requires_grad_()
        y = reference(x)
        y.backward(above)
        close([row for answer in answers for row in answer["outputs"][number]], y.detach())
        close([row for answer in answers for row in answer["gradients"][number]], x.grad)
    close(torch.tensor([answer["weight"] for answer in answers]).sum(0), reference.weight.grad)
    close(torch.tensor([answer["bias"] for answer in answers]).sum(0), reference.bias.grad)
    for answer in answers:
        assert answer["kind"] == "GlobalBatchNorm2d"
        assert answer["names"] == [f"0.{name}" for name in reference.state_dict()]
        close(answer["running_mean"], reference.running_mean)
        close(answer["running_var"], reference.running_var)
        assert answer["num_batches_tracked"] == (2 if training else 0)


@pytest.mark.parametrize(
    "settings", [{"affine": False}, {"momentum": None}, {"track_running_stats": False}], ids=str
)
def test_any_batch_norm_can_be_that_of_the_whole_batch(two, settings):
    answers = two.call(normalised, [3, 4], True, settings)
    reference = prepare(nn.BatchNorm2d(CHANNELS, **settings)).double()
    for number in range(2):
        x, above = batch(7, number)
        x.requires_grad_()
        y = reference(x)
        y.backward(above)
        close([row for answer in answers for row in answer["outputs"][number]], y.detach())
        close([row for answer in answers for row in answer["gradients"][number]], x.grad)
    for answer in answers:
        assert answer["kind"] == "GlobalBatchNorm2d"
        for name, buffer in reference.named_buffers():
            close(answer[name], buffer.double())


class Activated(nn.BatchNorm2d):
    def forward(self, x):
        return torch.tanh(super().forward(x)) * 2


SHAPES = {"BatchNorm1d": [(), (5,)], "BatchNorm2d": [(3, 2)], "BatchNorm3d": [(2, 3, 2)]}
SHAPES |= {"SyncBatchNorm": [(), (3, 2)], "BatchNormAct2d": [(3, 2)], "Activated": [(3, 2)]}


def kind_of(name):
    if name == "BatchNormAct2d":
        from timm.layers import BatchNormAct2d

        return BatchNormAct2d
    return Activated if name == "Activated" else getattr(nn, name)


def rows_of(shape):
    generator = torch.Generator().manual_seed(4)
    return torch.randn(7, CHANNELS, *shape, generator=generator, dtype=torch.float64)


def layer_on_ranks(name, shape):
    net = nn.Sequential(prepare(kind_of(name)(CHANNELS)))
    use_global_batch_norm(net)
    rank = dist.get_rank()
    own = rows_of(shape).float()[[slice(0, 3), slice(3, 7)][rank]].requires_grad_()
    y = copy.deepcopy(net).train()(own)
    y = net.train()(own)
    (y * own.detach().sin()).sum().backward()
    return {
        "y": y.tolist(),
        "gradient": own.grad.tolist(),
        "buffers": [buffer.tolist() for buffer in net.buffers()],
        "names": list(net.state_dict()),
    }


@pytest.mark.parametrize(
    ("name", "shape"), [(name, shape) for name in SHAPES for shape in SHAPES[name]], ids=str
)
def test_every_class_of_batch_norm(two, name, shape):
    answers = two.call(layer_on_ranks, name, list(shape))
    kind = nn.BatchNorm2d if name == "SyncBatchNorm" and shape else kind_of(name)
    kind = nn.BatchNorm1d if name == "SyncBatchNorm" and not shape else kind
    reference = nn.Sequential(prepare(kind(CHANNELS))).double()
    x = rows_of(shape).requires_grad_()
    y = reference(x)
    (y * x.detach().sin()).sum().backward()
    close([row for answer in answers for row in answer["y"]], y.detach())
    close([row for answer in answers for row in answer["gradient"]], x.grad)
    for answer in answers:
        assert answer["names"] == list(reference.state_dict())
        for found, expected in zip(answer["buffers"], reference.buffers(), strict=True):
            close(found, expected.double())


def test_half_precision_is_rounded_only_at_the_ends(two):
    """bfloat16 in and out; statistics and sums over the batch in float32, also of a common part."""
    exact = prepare(nn.BatchNorm2d(CHANNELS, **USUAL)).double()
    answers = two.call(normalised, [3, 4], True, USUAL, True)
    for number in range(2):
        x, above = batch(7, number)
        x, above = x.bfloat16().double().requires_grad_(), (above + 5).bfloat16().double()
        y = exact(x)
        y.backward(above)
        for key, expected in (("outputs", y.detach()), ("gradients", x.grad)):
            found = torch.tensor([row for answer in answers for row in answer[key][number]])
            difference = (found.double().view(y.shape) - expected).abs().max()
            assert difference < 2**-7 * expected.abs().max()
    for name, parameter in exact.named_parameters():
        close(torch.tensor([answer[name] for answer in answers]).sum(0), parameter.grad)
    for answer in answers:
        close(answer["running_mean"], exact.running_mean)
        close(answer["running_var"], exact.running_var)


def test_with_one_process_nothing_is_replaced():
    net = cpprune.build_model("cp_resnet", widths=[4, 6, 8])
    use_global_batch_norm(net)
    assert {type(m) for m in net.modules() if isinstance(m, nn.BatchNorm2d)} == {nn.BatchNorm2d}
