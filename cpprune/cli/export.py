"""`cpprune export`: a model folder becomes what other programs run."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cpprune.cli.arguments import OneLineParser
from cpprune.cli.output import table
from cpprune.export.target import CHECK, Job, Product, Target, targets
from shards.cli.arguments import number, whole_number
from shards.errors import UserError
from shards.files.atomic import check_output, write_bytes, write_output
from shards.files.documents import to_json
from shards.files.ownership import claim, replaced_folder

if TYPE_CHECKING:
    from torch import Tensor

    from cpprune.export.check import Check
    from cpprune.export.sensitivity import Kept, Sensitivity
    from cpprune.models.artifact import Model
    from shards.reader import Dataset
    from shards.split import Split

CALIBRATION_CLIPS = 256
CLIPS_TO_TRY = 3
SPLIT = "test"


def export(argv: list[str]) -> int:
    """Write a model folder in the form that a target takes; measure it with --check."""
    arguments = parse_arguments(argv)
    done = write_export(arguments)
    if arguments.json:
        parts = {"sensitivity": done.sensitivity, "kept": done.kept, "check": done.check}
        found = {name: asdict(part) for name, part in parts.items() if part is not None}
        print(to_json({"file": str(arguments.out), **done.product.complexity, **found}))
    else:
        print("\n\n".join(_texts(arguments.out, done)))
    return 0


@dataclass(frozen=True, kw_only=True)
class Done:
    """What was exported, how its layers take int8, which were kept in float32, and how it compares."""

    product: Product
    sensitivity: Sensitivity | None
    kept: Kept | None
    check: Check | None


def write_export(arguments: argparse.Namespace) -> Done:
    """Export a model and write it; return what was made, and what was measured.

    Args:
        arguments: from `parse_arguments`.

    Raises:
        UserError: the model cannot be exported like that; nothing was written.
    """
    target = targets()[arguments.to]
    target.require(f"cpprune export --to {target.name}")

    from cpprune.data.compatibility import open_for_model
    from cpprune.export.check import compare
    from cpprune.export.inputs import choose_input
    from cpprune.models import artifact
    from cpprune.models.quantized import is_quantized

    model = artifact.load(arguments.model)
    _check_quantized(arguments, target, is_quantized(model.network))
    kind = choose_input(model, arguments.input)
    dataset = open_for_model(arguments.data, model) if arguments.data else None
    split = (
        _part(dataset.split(arguments.split or SPLIT), arguments)
        if dataset and arguments.check
        else None
    )
    job = Job(
        model=model,
        input=kind,
        precision=arguments.precision,
        weights_sha256=artifact.read_description(arguments.model)["weights"]["sha256"],
        calibration=_calibration(model, dataset, arguments),
        keep_float=_kept(arguments),
        clips=_clips(model, dataset),
        run=split is not None,
    )
    sensitivity = kept = None
    try:
        if arguments.sensitivity or arguments.max_drop is not None:
            assert dataset is not None
            sensitivity, kept = _layers(job, target, dataset.split("val"), arguments.max_drop)
        if kept:
            job = replace(job, keep_float=tuple(kept.layers))
        product = target.make(job)
    except UserError as error:
        of_option = str(error).startswith("--")
        raise UserError(str(error) if of_option else f"{arguments.model}: {error}") from error
    check = None
    if split:
        assert product.exported is not None
        check = compare(model, product.exported, split)
    _write(arguments.out, product, check, target)
    return Done(product=product, sensitivity=sensitivity, kept=kept, check=check)


def _layers(
    job: Job, target: Target, split: Split, max_drop: float | None
) -> tuple[Sensitivity, Kept | None]:
    """Return what int8 costs layer by layer, and which layers to keep in float32 for --max-drop."""
    from cpprune.export.network import export_network
    from cpprune.export.sensitivity import Quantiser, keep_costliest, measure_sensitivity

    network = export_network(job.model.network, job.model.input_shape)
    inputs = job.calibration_features()
    with Quantiser(network, inputs, integer=target.int8 == "integer") as quantiser:
        found = measure_sensitivity(quantiser, job.keep_float, job.model, split)
        if max_drop is None:
            return found, None
        kept = keep_costliest(quantiser, job.keep_float, job.model, found, split, max_drop)
        return found, kept


def _write(out: Path, product: Product, check: Check | None, target: Target) -> None:
    """Write what was made: a file, or a folder whole or not at all, with how it was measured."""
    if target.folder is None:
        (data,) = product.files.values()
        write_output(out, data, "--out")
        return
    claim(out, target.folder, "--out")
    with replaced_folder(out, target.folder.parts) as folder:
        for name, data in product.files.items():
            write_bytes(folder / name, data)
        if check:
            write_bytes(folder / CHECK, f"{to_json(asdict(check), indent=2)}\n".encode())


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Return the checked arguments of the command.

    Raises:
        UserError: they do not fit together.
    """
    arguments = _parser().parse_args(argv)
    _check_arguments(arguments, targets()[arguments.to])
    return arguments


def _parser() -> OneLineParser:
    parser = OneLineParser(
        "cpprune export",
        description="Write a trained model for other programs, with the front end inside: waveform in, "
        "logits out. --check measures it against the model folder.",
    )
    parser.add_argument("model", type=Path, help="model folder, such as runs/NAME/model")
    kinds = "; ".join(f"{name}: {target.help}" for name, target in targets().items())
    parser.add_argument(
        "--to", choices=tuple(targets()), default="onnx", help=f"{kinds} (default: onnx)"
    )
    parser.add_argument("--out", type=Path, required=True, help="file or folder to write")
    parser.add_argument(
        "--precision",
        choices=("fp32", "fp16", "int8"),
        default="fp32",
        help="of the weights (default: fp32); fp16 is computed in float32; int8 needs --data, unless "
        "the model was trained to be quantised (quantize.start_epoch)",
    )
    parser.add_argument(
        "--input",
        choices=("waveform", "int16", "image", "features"),
        help="what the file takes: waveform (float32 from -1 to 1; default), int16 samples, image "
        "(uint8; default of models of images), or features (the front end is left out)",
    )
    parser.add_argument("--data", help="dataset folder or URL, for --precision int8 and --check")
    parser.add_argument(
        "--calibration-clips",
        type=whole_number,
        help="int8: training clips that set the ranges of activations, at most "
        f"(default: {CALIBRATION_CLIPS})",
    )
    parser.add_argument(
        "--seed", type=whole_number, help="int8: of the choice of these clips (default: 0)"
    )
    parser.add_argument(
        "--keep-float",
        metavar="LAYERS",
        help="int8: layers that stay in float32, with commas between; also first, last and none "
        "(default: first; --to tflite keeps none)",
    )
    parser.add_argument(
        "--sensitivity",
        action="store_true",
        help="int8: also print what each layer costs if it alone is quantised, on clips of the "
        "validation split",
    )
    parser.add_argument(
        "--max-drop",
        type=number,
        metavar="ACCURACY",
        help="int8: keep layers in float32, the costliest first, until the accuracy on the validation "
        "split is lower than the model's by at most this, such as 0.005",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="compare the file with the model on a split of --data: outputs, accuracy, latency",
    )
    parser.add_argument("--split", help=f"of --check: train, val or test (default: {SPLIT})")
    parser.add_argument(
        "--check-clips",
        type=whole_number,
        help="of --check: at most how many clips, always the same ones (default: all)",
    )
    parser.add_argument("--force", action="store_true", help="replace what an earlier export wrote")
    return parser


def _check_arguments(arguments: argparse.Namespace, target: Target) -> None:
    """Raise UserError for options that do not fit together, before any work."""
    out = arguments.out
    if arguments.precision not in target.precisions:
        allowed = " or ".join(target.precisions)
        raise UserError(f"--precision {arguments.precision}: --to {target.name} takes {allowed}")
    if target.folder is not None:
        claim(out, target.folder, "--out")
    elif out.suffix != target.suffix:
        raise UserError(f"--out {out}: must end in {target.suffix}")
    else:
        check_output(out, "--out")
    if (out.is_file() or (out.is_dir() and any(out.iterdir()))) and not arguments.force:
        raise UserError(f"--out {out}: exists; add --force to replace it")
    if arguments.check and not arguments.data:
        raise UserError("--check needs a dataset: add --data FOLDER")
    for option, given in _of_calibration(arguments).items():
        if given and arguments.precision != "int8":
            raise UserError(f"{option} is for --precision int8")
    if arguments.keep_float is not None and not target.keeps_float:
        raise UserError(f"--keep-float is not for --to {target.name}: all layers become int8")
    for option, given in (
        ("--sensitivity", arguments.sensitivity),
        ("--max-drop", arguments.max_drop is not None),
    ):
        if given and target.int8 is None:
            raise UserError(f"{option} is not for --to {target.name}")
    if arguments.max_drop is not None and not 0 <= arguments.max_drop < 1:
        raise UserError(f"--max-drop {arguments.max_drop:g}: must be from 0 to below 1")
    if arguments.split is not None and not arguments.check:
        raise UserError(f"--split {arguments.split}: is for --check")
    if arguments.check_clips is not None and (arguments.check_clips < 1 or not arguments.check):
        raise UserError("--check-clips is for --check, and must be at least 1")
    if arguments.calibration_clips is not None and arguments.calibration_clips < 1:
        raise UserError(f"--calibration-clips {arguments.calibration_clips}: must be at least 1")
    if arguments.seed is not None and arguments.seed < 0:
        raise UserError(f"--seed {arguments.seed}: must be at least 0")


def _of_calibration(arguments: argparse.Namespace) -> dict[str, bool]:
    """Return the options of quantisation after training, and whether each was given."""
    return {
        "--keep-float": arguments.keep_float is not None,
        "--calibration-clips": arguments.calibration_clips is not None,
        "--seed": arguments.seed is not None,
        "--sensitivity": arguments.sensitivity,
        "--max-drop": arguments.max_drop is not None,
    }


def _check_quantized(arguments: argparse.Namespace, target: Target, quantized: bool) -> None:
    """Raise UserError for options that do not fit a model, which is fake-quantised or not."""
    if not quantized:
        if arguments.precision == "int8" and not arguments.data:
            raise UserError("--precision int8 needs a dataset: add --data FOLDER")
        return
    if arguments.precision != "int8":
        raise UserError(
            f"--precision {arguments.precision}: {arguments.model} was trained to be quantised, and "
            "how good it is otherwise was never measured: add --precision int8"
        )
    if not target.as_trained:
        others = ", ".join(name for name, other in targets().items() if other.as_trained)
        raise UserError(
            f"--to {target.name}: {arguments.model} was trained to be quantised, and {target.name} "
            f"rounds otherwise: choose of {others}"
        )
    for option, given in _of_calibration(arguments).items():
        if given:
            raise UserError(
                f"{option}: {arguments.model} was trained to be quantised, which settled the ranges of "
                "activations and the layers in float32: leave the option out"
            )


def _calibration(
    model: Model, dataset: Dataset | None, arguments: argparse.Namespace
) -> Tensor | None:
    """Return clips to calibrate int8 with, or None."""
    from cpprune.models.quantized import is_quantized

    if arguments.precision != "int8" or is_quantized(model.network):
        return None
    assert dataset is not None
    from cpprune.export.calibration import calibration_clips

    clips, seed = arguments.calibration_clips or CALIBRATION_CLIPS, arguments.seed or 0
    return calibration_clips(dataset.split("train"), clips, seed)


def _kept(arguments: argparse.Namespace) -> tuple[str, ...]:
    """Return the names of layers that stay in float32."""
    kept = "first" if arguments.keep_float is None else arguments.keep_float
    return () if kept == "none" else tuple(kept.split(","))


def _clips(model: Model, dataset: Dataset | None) -> Tensor:
    """Return a few clips to try the exported model with: of the test split, or noise."""
    import numpy as np
    import torch

    from cpprune.export.check import noise

    split = dataset.split("test") if dataset else None
    if not split:
        return noise(model, CLIPS_TO_TRY)
    places = np.linspace(0, len(split) - 1, CLIPS_TO_TRY).astype(np.int64)
    return torch.from_numpy(split.fetch(np.unique(places)))


def _part(split: Split, arguments: argparse.Namespace) -> Split:
    """Return the clips of a split that --check looks at."""
    import numpy as np

    from shards.order import permutation

    if not len(split):
        raise UserError(
            f"--split {split.name}: {split.dataset.path} has no such clips to check with"
        )
    if arguments.check_clips is None:
        return split
    return split.take(np.sort(permutation(len(split), 0)[: arguments.check_clips]))


def _texts(out: Path, done: Done) -> list[str]:
    cost, check = done.product.complexity, done.check
    lines = [
        f"{out}: {done.product.summary}; {cost['parameters']:,} parameters, {cost['macs']:,} MACs"
    ]
    if done.sensitivity:
        lines += _sensitivity_texts(done.sensitivity)
    if done.kept:
        lines.append(_kept_text(done.kept))
    if check is None:
        return lines
    rows = [
        [
            name,
            f"{found.accuracy:.4f}",
            f"{found.low:.4f} to {found.high:.4f}",
            f"{milliseconds:.3f}",
        ]
        for name, found, milliseconds in (
            ("model", check.accuracy.model, check.latency_ms.model),
            ("exported", check.accuracy.exported, check.latency_ms.exported),
        )
    ]
    lines.append(table(["", "accuracy", "95 % interval", "ms for one clip"], rows))
    lines.append(
        f"{check.clips:,} clips of {check.split}: same class for {check.agreement:.2%}, "
        f"largest difference of logits {check.largest_difference:.2g}; on one thread of the CPU"
    )
    return lines


def _sensitivity_texts(found: Sensitivity) -> list[str]:
    rows = [
        [
            cost.layer,
            f"{cost.divergence:.2e}",
            f"{cost.accuracy_drop:+z.4f}",
            f"{cost.log_loss_rise:+z.4f}",
        ]
        for cost in found.layers
    ]
    return [
        table(["layer alone in int8", "divergence", "accuracy lost", "log loss added"], rows),
        f"In float32: accuracy {found.accuracy:.4f}, log loss {found.log_loss:.4f} on {found.clips:,} "
        f"clips of {found.split}. Divergence: Kullback–Leibler, float32 from int8, mean in nats.",
    ]


def _kept_text(kept: Kept) -> str:
    return (
        f"In float32: {', '.join(kept.layers) or 'no layer'}. Accuracy on the {kept.clips:,} clips of "
        f"{kept.split}: {kept.accuracy_int8:.4f}, the model's {kept.accuracy_float:.4f}."
    )
