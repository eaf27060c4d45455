"""`cpprune finetune`: from a general model, one fine-tuned model for each value of a column."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cpprune.cli.output import message, table
from cpprune.config import ParsedRun, RunConfig, build_parser, parse
from shards.errors import UserError
from shards.files.documents import to_json
from shards.launcher import process_rank

if TYPE_CHECKING:
    from cpprune.distributed.preemption import Preemption
    from shards.reader import Dataset

FLAGS = {
    "json": "print the result as one JSON object on standard output",
    "debug": "show tracebacks",
}
OPTIONS = {
    "per": "column of the dataset: a model is fine-tuned for each of its values (default: device)",
    "min-clips": "training clips that a value must have to get a model of its own (default: 100)",
}
DESCRIPTION = (
    "Fine-tune the model --init for each device (or another column, --per) on its clips alone. The runs "
    "lie in the folder --run, and the models together in its folder model, which evaluate, predict and "
    "info take: clips go to their device's model, those of other devices to --init. A fine-tuned model "
    "is kept if it is better than --init on the device's validation clips, by train.monitor."
)


@dataclass(frozen=True)
class FineTuned:
    """What became of the model of one value.

    Attributes:
        clips: training clips with this value.
        val_clips: validation clips with this value.
        before: train.monitor of the general model on these validation clips.
        after: that of the fine-tuned one; None if there is none.
        kept: whether the fine-tuned model serves this value.
    """

    clips: int
    val_clips: int
    before: float | None
    after: float | None
    kept: bool


def finetune(argv: list[str]) -> int:
    """Fine-tune the models, or resume where an earlier call stopped."""
    parser = build_parser("cpprune finetune", DESCRIPTION, FLAGS, OPTIONS)
    parsed = parse(parser, argv, list(FLAGS), list(OPTIONS))
    config, column = parsed.config, parsed.options["per"] or "device"
    if config.init is None:
        raise UserError("--init is missing: name the model to fine-tune, such as runs/NAME/model")
    if config.data.only is not None:
        raise UserError("data.only: leave it out, the command sets it for each model")
    if config.init_head == "new":
        raise UserError(
            f"init_head=new: {config.init} has to know the dataset's classes already, as it serves all "
            "other clips: train such a model first (cpprune train with init_head=new)"
        )
    if "=" in column:
        raise UserError(
            f"--per {column}: data.only could not name this column: rename it, without ="
        )
    least = _whole_number(parsed.options["min-clips"] or "100")

    import shards
    from cpprune.distributed.preemption import Preemption
    from cpprune.models import artifact
    from cpprune.models.routed import ROUTED, save_routed
    from cpprune.runs.divergence import is_better
    from cpprune.runs.records import StoppedRun
    from cpprune.training.loop import train
    from shards.files.ownership import claim

    folder = Path(config.run)
    models = folder / "model"
    claim(models, ROUTED)
    quantised = "quantization" in artifact.read_description(Path(config.init))
    _check_precision(config, quantised)
    dataset = shards.open_dataset(config.data.path, config.data.cache, config.data.cache_bytes)
    results = {
        value: FineTuned(clips, val_clips, None, None, kept=False)
        for value, (clips, val_clips) in _counts(dataset, config, column).items()
    }
    # An empty cell tells nothing: its clips go to the general model, as those of unknown values do.
    large = [v for v, own in results.items() if v and own.clips >= least and own.val_clips]
    if not large:
        raise UserError(
            f"no value of {column} has {least} training clips and a validation clip; lower --min-clips"
        )
    chosen: dict[str, Path] = {}
    with Preemption(folder, config.train.time_limit_minutes, signals=True) as stopping:
        if process_rank() == 0:
            stopping.remove_stop_file()
        for value in large:
            run = _configuration(config, column, value)
            finished = (Path(run.run) / "result.json").is_file()
            if process_rank() == 0:
                message(f"\n{column} {value}")
            trained = train(run, parsed.explicit, as_command=True, stopping=stopping)
            if isinstance(trained, StoppedRun):
                return _stopped(parsed, trained.stopped)
            model = Path(trained.model)
            before, after, asked = _compare(run, dataset, model, stopping)
            kept = is_better(after, before, config.train.monitor)
            results[value] = replace(results[value], before=before, after=after, kept=kept)
            if kept:
                chosen[value] = model
            # A call trains at least for a step, however short its time limit.
            if asked and not finished and value != large[-1]:
                if process_rank() == 0:
                    message(
                        f"stopped by {asked} after {column} {value}; everything is saved in {folder}: "
                        "the same command goes on from there"
                    )
                return _stopped(parsed, asked)
    if process_rank():
        return 0
    save_routed(models, column, Path(config.init), chosen)
    if parsed.switches["json"]:
        shown = {value: asdict(result) for value, result in results.items()}
        print(to_json({"model": str(models), "column": column, "models": shown}))
    else:
        print(_text(column, config.train.monitor, results))
        message(f"models: {models}")
    return 0


def _check_precision(config: RunConfig, quantised: bool) -> None:
    """Raise UserError if the fine-tuned models would not have the precision of the general one."""
    if quantised and config.quantize.start_epoch is None:
        raise UserError(
            f"--init {config.init}: is quantised (int8), and models fine-tuned from it would be "
            "float32: add --quantize.start_epoch 0, or fine-tune the model that it was trained from"
        )
    if not quantised and config.quantize.start_epoch is not None:
        raise UserError(
            f"quantize.start_epoch={config.quantize.start_epoch}: the models of a folder have one "
            f"precision, and {config.init} is float32: quantise it first (cpprune train --init)"
        )


def _counts(dataset: Dataset, config: RunConfig, column: str) -> Mapping[str, tuple[int, int]]:
    """Return the numbers of training and validation clips of each value that is trained on."""
    from cpprune.data.loader import training_split

    own, val = training_split(dataset, config.data), dataset.split("val")
    clips, val_clips = Counter(own.column(column).tolist()), Counter(val.column(column).tolist())
    return {value: (clips[value], val_clips[value]) for value in sorted(clips)}


def _configuration(config: RunConfig, column: str, value: str) -> RunConfig:
    """Return the configuration of the run of one value."""
    from cpprune.models.routed import folder_name

    name, cache = folder_name(column, value), config.distill.cache
    return replace(
        config,
        run=str(Path(config.run) / name),
        data=replace(config.data, only=f"{column}={value}"),
        distill=replace(config.distill, cache=None if cache is None else str(Path(cache) / name)),
    )


def _compare(
    run: RunConfig, dataset: Dataset, tuned: Path, stopping: Preemption
) -> tuple[float, float, str]:
    """Return train.monitor of --init and of a fine-tuned model, and why to stop if that was asked."""
    from cpprune.data.loader import selected_split
    from cpprune.distributed import process_group
    from cpprune.evaluation.predict import evaluate_model
    from cpprune.models import artifact

    with process_group.joined("no") as accelerator:
        device = accelerator.device
        split = selected_split(dataset, "val", run.data.only)
        assert run.init is not None
        before, after = (
            float(evaluate_model(artifact.load(path, device), split, device)[0][run.train.monitor])
            for path in (run.init, tuned)
        )
        return before, after, stopping.stop_reason(0, device)


def _stopped(parsed: ParsedRun, why: str) -> int:
    """Print that the command was asked to stop; return its exit status, as that of a stopped run."""
    if parsed.switches["json"] and process_rank() == 0:
        print(to_json({"run": parsed.config.run, "stopped": why}))
    return 0


def _whole_number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text[:9]) > 0):
        raise UserError(f"--min-clips {text}: must be a whole number above 0")
    return int(text[:9])


def _text(column: str, monitor: str, results: Mapping[str, FineTuned]) -> str:
    head = [column, "clips", "val clips", f"{monitor} of --init", "fine-tuned", "serves it"]
    rows = [
        [
            value or f"(no {column})",
            f"{result.clips:,}",
            f"{result.val_clips:,}",
            *("–" if v is None else f"{v:.4f}" for v in (result.before, result.after)),
            "fine-tuned" if result.kept else "--init",
        ]
        for value, result in results.items()
    ]
    return table(head, rows)
