"""Schedules against closed forms and PyTorch, optimizers against their update rules in float64."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cpprune.training.config import OptimConfig
from cpprune.training.optim import (
    Span,
    build_optimizer,
    cosine_factor,
    lambda_factor,
    lr_factor,
    plateau_factor,
    warmup,
)

Floats = NDArray[np.float64]


@pytest.mark.parametrize("width", [1, 6, 10])
def test_warmup_is_exponential(width: int) -> None:
    for epoch in range(width + 5):
        phase = np.clip(epoch, 0.5, width) / width
        expected = np.exp(-5 * (1 - phase) ** 2)
        assert warmup(epoch, width) == pytest.approx(expected, rel=1e-12)
    assert warmup(0, 0) == 1


@pytest.mark.parametrize("last", [1e-3, 1e-2])
def test_lambda_schedule(last: float) -> None:
    config = OptimConfig(schedule="lambda", last_factor=last)
    for epoch in range(60):
        if epoch < 6:
            expected = np.exp(-5 * (1 - np.clip(epoch, 0.5, 6) / 6) ** 2)
        else:
            expected = np.interp(epoch, [20, 30], [1.0, last])
        assert lambda_factor(config, epoch) == pytest.approx(expected, rel=1e-12)
        assert lr_factor(config, Span(0, 60, 9), epoch, 3, []) == lambda_factor(config, epoch)
    assert [lambda_factor(config, e) for e in (6, 20, 30, 59)] == [1.0, 1.0, last, last]
    assert lambda_factor(config, 25) == pytest.approx((1 + last) / 2, rel=1e-12)


def test_lambda_schedule_without_some_of_its_parts() -> None:
    step = OptimConfig(warmup_epochs=0, hold_epochs=3, rampdown_epochs=0, last_factor=0.1)
    assert [lambda_factor(step, epoch) for epoch in range(6)] == [1, 1, 1, 1, 0.1, 0.1]
    fall = OptimConfig(warmup_epochs=0, hold_epochs=0, rampdown_epochs=4, last_factor=0.0)
    expected = [1, 0.75, 0.5, 0.25, 0, 0]
    assert [lambda_factor(fall, epoch) for epoch in range(6)] == pytest.approx(expected)


@pytest.mark.parametrize(("warm", "epochs"), [(0, 10), (6, 50), (3, 5)])
def test_cosine_schedule(warm: int, epochs: int) -> None:
    config = OptimConfig(schedule="cosine", warmup_epochs=warm, last_factor=0.01)
    for epoch in range(epochs):
        if epoch < warm:
            expected = np.exp(-5 * (1 - max(epoch, 0.5) / warm) ** 2)
        else:
            angle = np.pi * (epoch - warm) / (epochs - 1 - warm)
            expected = 0.01 + 0.99 * np.cos(angle / 2) ** 2
        assert cosine_factor(config, epoch, epochs) == pytest.approx(expected, rel=1e-9)
        assert lr_factor(config, Span(2, epochs + 2, 9), epoch + 2, 3, []) == cosine_factor(
            config, epoch, epochs
        )
    assert cosine_factor(config, warm, epochs) == 1
    assert cosine_factor(config, epochs - 1, epochs) == pytest.approx(0.01)


def test_cosine_schedule_of_one_epoch() -> None:
    assert cosine_factor(OptimConfig(warmup_epochs=0), 0, 1) == 1


def test_constant_schedule() -> None:
    config = OptimConfig(schedule="constant")
    span = Span(0, 50, 9)
    assert {lr_factor(config, span, epoch, 3, [1.0] * epoch) for epoch in range(50)} == {1.0}


def transformers_cosine(step: int, warm: int, steps: int) -> float:
    """transformers.get_cosine_schedule_with_warmup, as its documentation has it."""
    if step < warm:
        return step / max(1, warm)
    return max(0.0, 0.5 * (1 + np.cos(np.pi * (step - warm) / max(1, steps - warm))))


@pytest.mark.parametrize(("warm", "first"), [(0, 0), (1, 0), (7, 0), (23, 4), (70, 0)])
def test_cosine_schedule_by_step_is_that_of_transformers(warm: int, first: int) -> None:
    config = OptimConfig(schedule="cosine", warmup_steps=warm, last_factor=0, warmup_epochs=3)
    span = Span(first, first + 6, 10)
    for step in range(60):
        actual = lr_factor(config, span, first + step // 10, step % 10, [])
        assert actual == pytest.approx(transformers_cosine(step, warm, 60), abs=1e-12)


def test_the_other_schedules_by_step() -> None:
    """A linear rise to 1 in five steps, times the schedule at a fraction of an epoch."""
    numbers = {"warmup_steps": 5, "hold_epochs": 2, "rampdown_epochs": 3, "last_factor": 0.1}
    for schedule in ("lambda", "reduce_on_plateau", "constant", "cosine"):
        config = OptimConfig(schedule=schedule, plateau_patience=0, **numbers)
        losses = [9.0, 2.0, 1.0, 1.0, 1.0, 1.0]  # the first is of an earlier span
        for step in range(40):
            epoch = step // 8
            body = {
                "lambda": np.interp(step / 8, [2, 5], [1, 0.1]),
                "reduce_on_plateau": 0.1 ** max(0, epoch - 2),
                "constant": 1.0,
                "cosine": 0.1 + 0.9 * np.cos(np.pi / 2 * max(0, step - 5) / 35) ** 2,
            }[schedule]
            actual = lr_factor(config, Span(1, 6, 8), 1 + epoch, step % 8, losses[: 1 + epoch])
            assert actual == pytest.approx(min(1, step / 5) * body, rel=1e-9), (schedule, step)


@pytest.mark.parametrize(("patience", "factor"), [(10, 0.1), (0, 0.5), (3, 0.3)])
def test_plateau_is_pytorchs(patience: int, factor: float) -> None:
    config = OptimConfig(
        schedule="reduce_on_plateau", plateau_patience=patience, plateau_factor=factor
    )
    rng = np.random.default_rng(0)
    falls = 0
    for _ in range(20):
        # Small steps, so that some gains are below the threshold; now and then no number at all.
        losses = 1.4 + np.cumsum(rng.choice([-1e-3, -5e-5, 0.0, 5e-5, 1e-3], 60))
        losses[rng.random(60) < 0.03] = np.nan
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=factor, patience=patience, eps=0
        )
        for epoch, loss in enumerate(losses, 1):
            scheduler.step(loss)
            history = losses[:epoch].tolist()
            expected = optimizer.param_groups[0]["lr"]
            assert plateau_factor(config, history) == pytest.approx(expected, rel=1e-9)
            span = Span(2, 62, 9)
            assert lr_factor(config, span, epoch + 2, 3, [0.5, 0.5, *history]) == plateau_factor(
                config, history
            )
        falls += expected < 1
    assert falls > 5
    assert plateau_factor(config, []) == 1


def adam(
    start: Floats, gradients: list[Floats], lr: float, decay: float, *, coupled: bool
) -> Floats:
    value, first, second = start.copy(), np.zeros_like(start), np.zeros_like(start)
    for step, gradient in enumerate(gradients, 1):
        if coupled:
            gradient = gradient + decay * value
        else:
            value = value * (1 - lr * decay)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        corrected = np.sqrt(second / (1 - 0.999**step)) + 1e-8
        value = value - lr * first / (1 - 0.9**step) / corrected
    return value


def sgd(start: Floats, gradients: list[Floats], lr: float, decay: float) -> Floats:
    value, velocity = start.copy(), np.zeros_like(start)
    for gradient in gradients:
        velocity = 0.9 * velocity + gradient + decay * value
        value = value - lr * velocity
    return value


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_optimizers(name: str) -> None:
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=50), list(rng.normal(size=(5, 50)))
    expected = {
        "adam": adam(start, gradients, 0.01, 0.3, coupled=True),
        "adamw": adam(start, gradients, 0.01, 0.3, coupled=False),
        "sgd": sgd(start, gradients, 0.01, 0.3),
    }
    parameter = torch.nn.Parameter(torch.from_numpy(start.copy()))
    config = OptimConfig(name=name, lr=0.01, weight_decay=0.3)
    optimizer = build_optimizer(config, [parameter])
    for gradient in gradients:
        parameter.grad = torch.from_numpy(gradient)
        optimizer.step()
    np.testing.assert_allclose(parameter.detach().numpy(), expected[name], rtol=1e-9)
    others = [value for key, value in expected.items() if key != name]
    assert all(abs(value - expected[name]).max() > 1e-3 for value in others)


@pytest.mark.parametrize("name", ["adam", "sgd"])
@pytest.mark.parametrize("fused", [True, False])
def test_what_is_kept_has_its_own_factor(name: str, fused: bool) -> None:
    """The second of three parameters steps by a quarter; their order in the network stays."""
    rng = np.random.default_rng(0)
    starts, gradients = rng.normal(size=(3, 20)), rng.normal(size=(4, 3, 20))
    parameters = [torch.nn.Parameter(torch.from_numpy(start.copy())) for start in starts]
    config = OptimConfig(name=name, lr=0.01, weight_decay=0.3, kept_lr_factor=0.25)
    optimizer = build_optimizer(config, parameters, fused=fused, kept=parameters[1:2])
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 1]
    for gradient in gradients:
        for parameter, own in zip(parameters, gradient, strict=True):
            parameter.grad = torch.from_numpy(own.copy())
        optimizer.step()
    for number, parameter in enumerate(parameters):
        lr, own = 0.01 * (0.25 if number == 1 else 1), list(gradients[:, number])
        expected = (
            adam(starts[number], own, lr, 0.3, coupled=True)
            if name == "adam"
            else sgd(starts[number], own, lr, 0.3)
        )
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "adagrad"}, "optim.name='adagrad': choose one of adam, adamw, sgd"),
        ({"schedule": "step"}, "optim.schedule='step': choose one of lambda, reduce_on_plateau"),
        ({"lr": 0.0}, "optim.lr=0.0: must be above 0"),
        ({"lr": float("nan")}, "optim.lr=nan: must be above 0"),
        ({"lr": float("inf")}, "optim.lr=inf: must be above 0"),
        ({"weight_decay": -1.0}, "optim.weight_decay=-1.0: must not be negative"),
        ({"warmup_steps": -1}, "optim.warmup_steps=-1: must not be negative"),
        ({"warmup_epochs": -1}, "optim.warmup_epochs=-1: must not be negative"),
        ({"hold_epochs": -1}, "optim.hold_epochs=-1: must not be negative"),
        ({"rampdown_epochs": -1}, "optim.rampdown_epochs=-1: must not be negative"),
        ({"plateau_patience": -1}, "optim.plateau_patience=-1: must not be negative"),
        ({"plateau_factor": 1.0}, "optim.plateau_factor=1.0: must be in"),
        ({"plateau_factor": 0.0}, "optim.plateau_factor=0.0: must be in"),
        ({"last_factor": -0.5}, "optim.last_factor=-0.5"),
    ],
)
def test_a_wrong_number_is_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimConfig(**wrong)
