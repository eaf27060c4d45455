"""`cpprune predict`: the scene of audio files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cpprune.cli.arguments import MODEL_HELP, PREDICTIONS_HELP, VALUE_HELP, OneLineParser
from cpprune.cli.output import message, quantised_text
from shards.errors import UserError
from shards.files.atomic import check_output
from shards.files.documents import to_json


def predict(argv: list[str]) -> int:
    """Name the scene of audio files; return 1 if bad ones were skipped, else 0."""
    parser = OneLineParser(
        "cpprune predict",
        description="Name the scene of audio files of any format, rate and length. Longer files are "
        "cut into clips, whose probabilities are averaged, weighted by the seconds of sound in each.",
    )
    parser.add_argument("model", type=Path, help=MODEL_HELP)
    parser.add_argument(
        "files", type=Path, nargs="+", metavar="FILE", help="audio files, or folders of them"
    )
    parser.add_argument("--predictions", type=Path, help=PREDICTIONS_HELP)
    parser.add_argument("--value", help=VALUE_HELP)
    parser.add_argument(
        "--on-error",
        choices=("stop", "skip"),
        default="stop",
        help="at a bad file: stop (default), or skip it, predict the others and exit with status 1",
    )
    arguments = parser.parse_args(argv)
    if arguments.predictions:
        check_output(arguments.predictions, "--predictions")

    import numpy as np

    from cpprune.evaluation.dcase import write_submission
    from cpprune.evaluation.predict import predict_file
    from cpprune.export.classifier import load_for_audio, precision
    from shards.audio.load import BadFile
    from shards.sources.names import printable

    model, _ = load_for_audio(arguments.model, arguments.value)
    form = precision(model)
    if text := quantised_text(form):
        message(f"{arguments.model}: {text}")
    results, rows = [], []
    bad: list[dict[str, str]] = []
    for path in _audio_files(arguments.files):
        name = printable(str(path))
        try:
            probabilities, clips = predict_file(model, path)
        except BadFile as reason:
            if arguments.on_error == "stop":
                more = len(arguments.files) > 1 or arguments.files[0].is_dir()
                remedy = "; use --on-error skip to predict the others" if more else ""
                raise UserError(f"{name}: {reason}{remedy}") from reason
            bad.append({"file": str(path), "reason": str(reason)})
            message(f"{name}: skipped: {reason}")
            continue
        rows.append(probabilities)
        ranking = probabilities.argsort()[::-1]
        results.append(
            {
                "file": str(path),
                "clips": clips,
                "prediction": model.classes[ranking[0]],
                "probabilities": {model.classes[k]: float(probabilities[k]) for k in ranking},
            }
        )
        if not arguments.json:
            top = ", ".join(f"{model.classes[k]} {probabilities[k]:.1%}" for k in ranking[:3])
            print(f"{name}: {top}")
    if bad:
        message(f"{len(bad):,} of {len(bad) + len(rows):,} files are bad")
    if arguments.predictions:
        names = [result["file"] for result in results]
        write_submission(arguments.predictions, names, model.classes, np.log(rows))
    if arguments.json:
        print(to_json({"precision": form, "predictions": results, "bad": bad}))
    return 1 if bad else 0


def _audio_files(paths: list[Path]) -> Iterator[Path]:
    """Yield the files, and those of the folders, in the order in which they were given."""
    from shards.audio.formats import INSTALL
    from shards.sources.folder import endings
    from shards.sources.walk import NEEDS_FFMPEG, walk

    for path in paths:
        if not path.is_dir():
            yield path
            continue
        found = walk(path, endings())
        for reason, count in found.aside.items():
            if reason.startswith(NEEDS_FFMPEG):
                message(f"{path}: {count:,} skipped: {reason}: {INSTALL}")
        if not found.files:
            raise UserError(f"{path} has no audio files")
        yield from found.files
