"""DeepSpeed ZeRO-1 and ZeRO-2 on two real processes: train, cut, fine-tune, stop, go on."""

import atexit
import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from marks import slow
from run_folder import assert_same_run, epochs_of, events_of, tensors, weights_of

from cpprune.distributed import deepspeed
from shards.errors import UserError

REPOSITORY = Path(__file__).parents[2]

# 38 clips: four batches an epoch and a last one of 6; two cuts with training before and after each.
# From trained weights at a small learning rate, so that rounding does not grow into other steps.
SETTINGS = ["--data.train_fraction", 0.3, "--train.batch_size", 8]
SETTINGS += ["--optim.schedule", "constant", "--optim.lr", 1e-4, "--train.epochs", 3]
SETTINGS += ["--prune.ratio", 0.5, "--prune.steps", 2, "--prune.start_epoch", 1]
SETTINGS += ["--train.checkpoint_steps", 2, "--train.keep_checkpoints", 20]

STAGES = [slow(stage) for stage in (1, 2)]


@cache
def place_to_compile():
    """A folder for this process alone: a compiler that was killed leaves a lock that others wait for."""
    folder = Path(mkdtemp())
    atexit.register(shutil.rmtree, folder)
    (folder / "environment").symlink_to(sys.prefix)
    return folder


def launch(stage, free_port, *arguments, **environment):
    """Run `launch/prune.py` on two processes under a file of launch/accelerate/."""
    # Through a link, as torch compiles nothing from a path with a space.
    place = place_to_compile()
    python = place / "environment" / Path(sys.executable).relative_to(sys.prefix)
    words = [str(python), "-m", "accelerate.commands.launch", "--num_processes", "2"]
    words += ["--config_file", f"launch/accelerate/deepspeed_zero{stage}.yaml"]
    words += ["--main_process_port", str(free_port()), "launch/prune.py", *map(str, arguments)]
    own = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    own["TORCH_EXTENSIONS_DIR"] = str(place / "compiled")
    return subprocess.run(
        words,
        cwd=REPOSITORY,
        env={**os.environ, **own, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def begin(tiny_run, scenes):
    """The settings, with the model and the data that the runs start from."""
    return [*SETTINGS, "--init", tiny_run / "model", "--data.path", scenes]


@pytest.fixture(scope="module", params=STAGES, ids=lambda stage: f"zero{stage}")
def whole(request, begin, free_port, tmp_path_factory):
    """A finished run under DeepSpeed: its stage, its folder, what it printed."""
    run = tmp_path_factory.mktemp("deepspeed") / "run"
    done = launch(request.param, free_port, *begin, "--run", run, "--json")
    assert done.returncode == 0, done.stderr
    return request.param, run, done


def checkpoints(run):
    return sorted((run / "checkpoints").iterdir())


@pytest.mark.deepspeed
def test_it_trains_and_prunes_like_two_plain_processes(whole, two, begin, tmp_path):
    _, run, done = whole
    assert json.loads(done.stdout) == json.loads((run / "result.json").read_text())
    two.cpprune("prune", *begin, "--run", tmp_path / "plain")
    plain = tmp_path / "plain"
    assert [e["parameters"] for e in events_of(run)] == [e["parameters"] for e in events_of(plain)]
    assert len(events_of(run)) == 2
    for one, other in zip(epochs_of(run), epochs_of(plain), strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-3)
    for event in range(2):
        name = f"plans/epoch-{event + 1:04d}.json"
        kept = [
            [g["keep"] for g in json.loads((r / name).read_text())["groups"]] for r in (run, plain)
        ]
        assert kept[0] == kept[1]
    # Checkpoints say the same of the optimizer, whoever wrote them.
    last, other = (tensors(checkpoints(r)[-1] / "optimizer.safetensors") for r in (run, plain))
    assert {k: t.shape for k, t in last.items()} == {k: t.shape for k, t in other.items()}
    assert last["in_c.0.weight/step"] == other["in_c.0.weight/step"] == 15


@pytest.mark.deepspeed
def test_every_parameter_still_trains_after_the_cuts(whole):
    _, run, _ = whole
    steps = [int(path.name.removeprefix("step-")) for path in checkpoints(run)]
    begin, end = (checkpoints(run)[steps.index(step)] for step in (12, 15))
    before, after = (tensors(path / "network.safetensors") for path in (begin, end))
    trained = {name for name in before if name.endswith((".weight", ".bias"))}
    assert [name for name in sorted(trained) if (before[name] == after[name]).all()] == []
    moments = tensors(end / "optimizer.safetensors")
    for name in trained:
        assert moments[f"{name}/exp_avg"].shape == after[name].shape
        assert moments[f"{name}/exp_avg_sq"].min() >= 0
        assert moments[f"{name}/exp_avg_sq"].max() > 0


@pytest.mark.deepspeed
def test_moments_survive_the_cut(whole):
    """Under AdamW a step from carried moments differs from one that begins with none."""
    _, run, _ = whole
    by_step = {int(p.name.removeprefix("step-")): p for p in checkpoints(run)}
    # The first cut comes after step 5. Second moments decay by 0.999 a step, so after one more step
    # those of the channels that stayed are at least 0.999 of what they were.
    before = tensors(by_step[5] / "optimizer.safetensors")
    after = tensors(by_step[6] / "optimizer.safetensors")
    (plan,) = [json.loads((run / "plans/epoch-0001.json").read_text())]
    keep = next(g["keep"] for g in plan["groups"] if g["layer"] == "stage2.block1.conv1")
    old = before["stage2.block1.bn1.weight/exp_avg_sq"][keep]
    new = after["stage2.block1.bn1.weight/exp_avg_sq"]
    assert len(new) < len(before["stage2.block1.bn1.weight/exp_avg_sq"])
    assert (new >= 0.999 * old * (1 - 1e-5)).all()
    assert after["stage2.block1.bn1.weight/step"] == 6


@pytest.mark.deepspeed
def test_it_goes_on_to_the_same_bits(whole, free_port, begin, tmp_path):
    stage, run, _ = whole
    stop = 8 if stage == 1 else 12  # between the cuts, and after them
    again = tmp_path / "run"
    shutil.copytree(run, again)
    for path in checkpoints(again):
        if int(path.name.removeprefix("step-")) > stop:
            shutil.rmtree(path)
    for name in ("result.json", "model/model.json", "model_last/model.json"):
        (again / name).unlink()
    done = launch(stage, free_port, *begin, "--run", again)
    assert done.returncode == 0, done.stderr
    assert f"goes on from step-{stop:08d}" in done.stderr
    assert_same_run(run, again)


@pytest.mark.deepspeed
def test_one_plain_process_goes_on_from_it(whole, cli, begin, tmp_path):
    _, run, _ = whole
    again = tmp_path / "run"
    shutil.copytree(run, again)
    for path in checkpoints(again)[-3:]:
        shutil.rmtree(path)
    (again / "result.json").unlink()
    outcome = cli("prune", *begin, "--run", again)
    assert outcome.status == 0, outcome.err
    assert "goes on from step-" in outcome.err
    one, other = (epochs_of(r)[-1]["train_loss"] for r in (run, again))
    assert other == pytest.approx(one, rel=1e-3)
    assert weights_of(run).keys() == weights_of(again).keys()


@pytest.mark.deepspeed
@pytest.mark.slow
def test_bf16_average_accumulation_and_clipping(free_port, begin, tmp_path):
    more = ["--train.precision", "bf16", "--train.ema_decay", 0.9]
    more += ["--train.micro_batch_size", 4]
    more += ["--train.clip_norm", 1, "--run", tmp_path / "run"]
    done = launch(2, free_port, *begin, *more, "--json")
    assert done.returncode == 0, done.stderr
    weights = weights_of(tmp_path / "run")
    assert all(t.dtype.itemsize >= 4 for t in weights.values()), "weights stay in float32"
    assert json.loads(done.stdout)["val"]["log_loss"] < 3


@pytest.mark.deepspeed
@pytest.mark.slow
def test_teachers_teach_what_they_do_without_it(two, free_port, begin, tiny_run, tmp_path):
    more = [*begin, "--distill.teachers", f"[{tiny_run / 'model_last'}]"]
    more += ["--distill.mode", "on_the_fly", "--distill.label_weight", 0.5]
    done = launch(2, free_port, *more, "--run", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    two.cpprune("prune", *more, "--run", tmp_path / "plain")
    found, plain = (epochs_of(tmp_path / name) for name in ("run", "plain"))
    assert len(found) == 3
    for one, other in zip(found, plain, strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-3)


# --- what is refused ----------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch):
    """Sets the variables of the environment that a launcher would."""

    def ask(**variables):
        monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
        for name, value in variables.items():
            monkeypatch.setenv(f"ACCELERATE_DEEPSPEED_{name}", str(value))

    return ask


@pytest.mark.parametrize("stage", [0, 3, "three", "²"])
def test_other_stages_are_refused(asked, refused, scenes, tmp_path, stage):
    asked(ZERO_STAGE=stage)
    names = [f"DeepSpeed ZeRO stage {stage}: use 1 or 2"]
    refused("train", "--data.path", scenes, "--run", tmp_path / "run", names=names)
    assert not (tmp_path / "run").exists()


def test_fsdp_is_refused(refused, monkeypatch, scenes, tmp_path):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    names = ["FSDP shards each weight over the processes"]
    refused("train", "--data.path", scenes, "--run", tmp_path / "run", names=names)


def test_fp16_and_offloading_are_refused(asked):
    asked(ZERO_STAGE=1)
    with pytest.raises(UserError, match="fp16 is not for DeepSpeed: use bf16 or no"):
        deepspeed.make_plugin("fp16", 0)
    asked(OFFLOAD_OPTIMIZER_DEVICE="cpu")
    with pytest.raises(UserError, match="offloading is not supported"):
        deepspeed.make_plugin("no", 0)


def test_a_path_that_torch_cannot_compile_from_is_refused(asked, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "__file__", "/home/a user/torch/__init__.py")
    asked()
    with pytest.raises(UserError, match="no path with a space, such as /home/a user/torch"):
        deepspeed.make_plugin("no", 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read .*; give a DeepSpeed configuration"),
        ("{", "is not valid JSON .*; give a DeepSpeed configuration"),
        ("[1]", "expected object, got array; give a DeepSpeed configuration"),
        ('{"zero_optimization": 2}', "must be an object such as"),
        ('{"zero_optimization": {"stage": 3}}', "ZeRO stage 3: use 1 or 2"),
        ('{"bf16": {"enabled": true}}', "leave out 'bf16'"),
    ],
)
def test_a_wrong_configuration_file(asked, tmp_path, text, message):
    file = tmp_path / "deepspeed.json"
    if text is not None:
        file.write_text(text)
    asked(CONFIG_FILE=file)
    with pytest.raises(UserError, match=message):
        deepspeed.make_plugin("no", 0)


@pytest.mark.deepspeed
@pytest.mark.slow
def test_recurrent_layers_are_cut_like_on_two_plain_processes(two, digits, free_port, tmp_path):
    # 10 clips: a step, the cut, a step.
    words = ["--data.path", digits, "--features.preset", "image", "--data.train_fraction", 0.2]
    words += ["--model.factory", "zoo:CRNN", "--train.batch_size", 10, "--train.epochs", 2]
    words += ["--prune.ratio", 0.5, "--prune.start_epoch", 1, "--optim.schedule", "constant"]
    words += ["--optim.lr", 1e-4, "--run"]
    run, plain = tmp_path / "deepspeed", tmp_path / "plain"
    path = os.pathsep.join([str(REPOSITORY / "tests"), os.environ.get("PYTHONPATH", "")])
    done = launch(2, free_port, *words, run, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    two.cpprune("prune", *words, plain)
    assert events_of(run)[0]["widths"] == events_of(plain)[0]["widths"]
    for one, other in zip(epochs_of(run), epochs_of(plain), strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-3)
