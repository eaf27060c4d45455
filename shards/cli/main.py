"""The commands `cpprune shards download|synth|build|verify|info`."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from shards.cli.arguments import OneLineParser, number, text, whole_number
from shards.credentials import without_credentials
from shards.errors import UserError
from shards.sources.registry import source_kinds

if TYPE_CHECKING:
    from shards.build.plan import BuildOptions


def main(argv: Sequence[str]) -> int:
    """Runs one command.

    Args:
        argv: the arguments after `cpprune shards`.

    Returns:
        The exit status: 0, or 1 if `verify` found something.

    Raises:
        UserError: for what the user can mend; the caller prints it and exits with 2.
        SystemExit: for `--help`.
    """
    arguments = _parser().parse_args(argv)
    commands = {
        "download": _download,
        "synth": _synth,
        "build": _build,
        "verify": _verify,
        "info": _info,
    }
    return commands[arguments.command](arguments)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="cpprune shards", description="Datasets on disk.", allow_abbrev=False
    )
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=OneLineParser
    )
    _add_download(commands.add_parser("download", help="fetch a public dataset"))
    _add_synth(commands.add_parser("synth", help="make up a small dataset in TAU's own layout"))
    _add_build(commands.add_parser("build", help="build a dataset from a source"))
    verify = commands.add_parser("verify", help="find every damaged byte of a dataset")
    info = commands.add_parser("info", help="say what is in a dataset")
    for command in (verify, info):
        command.add_argument("dataset", help="the dataset's folder, or its URL")
        _add_json(command)
    return parser


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    _add_debug(parser)


def _add_debug(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--debug", action="store_true", help="show tracebacks")


def _add_download(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "kind",
        choices=("tau2022",),
        metavar="KIND",
        help="tau2022: TAU Urban Acoustic Scenes 2022 Mobile, development dataset, from Zenodo",
    )
    add("--out", type=Path, required=True, help="the folder to unpack to")
    add(
        "--splits",
        type=_percents,
        default=(),
        metavar="A,B",
        help="also the training subsets of DCASE 2024, in percent: 5,10,25,50,100",
    )
    add("--mirror", metavar="URL", help="a folder that has the files, instead of Zenodo and GitHub")
    _add_json(parser)


def _percents(text: str) -> tuple[int, ...]:
    try:
        return tuple(whole_number(part) for part in text.split(",") if part)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list such as 5,10") from None


def _add_synth(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", type=Path, required=True, help="a new or empty folder")
    add("--clips", type=whole_number, required=True, help="one-second clips in all, 200 or more")
    add("--seed", type=whole_number, default=0, help="another seed, other clips (default 0)")
    add("--workers", type=whole_number, help="processes (default: one for each CPU)")
    _add_debug(parser)


def _add_build(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "kind",
        choices=tuple(source_kinds()),
        metavar="KIND",
        help="; ".join(f"{kind.name}: {kind.help}" for kind in source_kinds().values()),
    )
    add("--source", type=Path, required=True, help="the folder, table or pattern of tars")
    add("--out", type=Path, required=True, help="the dataset's folder")
    add("--split-csv", type=Path, help="tau2022: a training subset such as split5.csv")
    add(
        "--fractions",
        type=_numbers,
        default=(0.8, 0.1, 0.1),
        metavar="TRAIN,VAL,TEST",
        help="where the source has no splits (default 0.8,0.1,0.1)",
    )
    add(
        "--val-fraction",
        type=number,
        default=0.1,
        help="of training, where the source has no val split (default 0.1)",
    )
    add("--seconds", type=number, default=1.0, help="length of a clip (default 1)")
    add("--sample-rate", type=whole_number, default=32000, help="Hz (default 32000)")
    add("--encoding", choices=("wav", "flac"), default="wav", help="default wav")
    add("--short", choices=("pad", "drop"), default="pad", help="what is shorter than a clip")
    add(
        "--min-sound",
        type=number,
        default=0.5,
        metavar="FRACTION",
        help="with --short pad: drop the rest of a longer recording if it fills less of a clip "
        "(default 0.5)",
    )
    add("--shard-size", type=whole_number, default=4096, help="clips a shard, about (default 4096)")
    add("--seed", type=whole_number, default=0, help="of the splits and the shuffle (default 0)")
    add("--workers", type=whole_number, help="processes (default: one for each CPU)")
    add(
        "--on-error",
        choices=("stop", "skip"),
        default="stop",
        help="at a bad file: stop, or leave it out and list it in rejected.csv",
    )
    add("--part", type=whole_number, metavar="I", help="do only this part of the build, from 1 …")
    add(
        "--of",
        type=whole_number,
        metavar="N",
        help="… of so many; the same without --part joins them",
    )
    add("--overwrite", action="store_true", help="delete the dataset or unfinished build in --out")
    add("--dry-run", action="store_true", help="print the plan, write nothing")
    add(
        "--keep-together",
        metavar="WHAT",
        help="what else than the clips of one file is never parted: a column of a table, or, for a "
        "folder, a regular expression over the path of a file in it: files for which its first group, "
        "or else its match, is the same",
    )
    add(
        "--layout",
        choices=("auto", "classes", "splits"),
        default="auto",
        help="folder: whether the sub-folders are classes or splits, where their names leave it open",
    )
    table = parser.add_argument_group("tables")
    table.add_argument("--filename-column", type=text, default="filename", help="default filename")
    table.add_argument("--label-column", type=text, default="label", help="default label")
    table.add_argument("--split-column", type=text, help="default split, if there is such a column")
    table.add_argument(
        "--folds",
        type=_folds,
        default=(),
        metavar="test=5,val=4",
        help="which values of the split column are which split; the others are train",
    )
    table.add_argument(
        "--group-columns",
        type=lambda text: tuple(name for name in text.split(",") if name),
        default=(),
        metavar="A,B",
        help="columns to keep; clips of one `location` (or else `recording`) never part",
    )
    table.add_argument("--audio-root", type=Path, help="default: the table's folder")
    _add_json(parser)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(number(part) for part in text.split(","))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list such as 0.8,0.1,0.1") from None


def _folds(text: str) -> tuple[tuple[str, str], ...]:
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(split in ("train", "val", "test") and value for split, _, value in pairs):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list such as test=5,val=4")
    return tuple((split, value) for split, _, value in pairs)


def _workers(given: int | None) -> int | None:
    if given is not None and given < 1:
        raise UserError(f"--workers is {given}; use 1 or more")
    return given


def _say(text: str) -> None:
    print(text)


def _download(arguments: argparse.Namespace) -> int:
    from shards.remote.download import DATASETS, download

    dataset, out = DATASETS[arguments.kind], arguments.out
    files = dataset.files(arguments.splits, arguments.mirror)
    print(f"{dataset.title}; {dataset.licence}", file=sys.stderr)
    fetched = download(dataset, files, out)
    if arguments.json:
        _say(json.dumps({"out": str(out), "fetched": fetched}))
    else:
        _say(
            f"{len(fetched)} of {len(files)} files were fetched, the others were there; next: "
            f"cpprune shards build {arguments.kind} --source {quote(str(out))} --out DATASET"
        )
    return 0


def _synth(arguments: argparse.Namespace) -> int:
    from shards.sources.synthetic import synthesise

    workers = _workers(arguments.workers)
    synthesise(arguments.out, arguments.clips, arguments.seed, workers)
    _say(
        f"{arguments.clips:,} clips in {arguments.out}; next: "
        f"cpprune shards build tau2022 --source {quote(str(arguments.out))} --out DATASET"
    )
    return 0


def _build(arguments: argparse.Namespace) -> int:
    from shards.build.dataset import build_dataset
    from shards.build.output_folder import claim_dataset
    from shards.build.plan import BuildOptions, make_plan
    from shards.build.summary import audit_of, plan_lines, plan_summary
    from shards.workers import cpu_count

    workers = _workers(arguments.workers)
    names = BuildOptions.__dataclass_fields__
    options = BuildOptions(**{name: getattr(arguments, name) for name in names})
    if arguments.dry_run:
        claim_dataset(arguments.out.absolute())
        plan = make_plan(options, workers or cpu_count())
        _say(json.dumps(plan_summary(plan)) if arguments.json else "\n".join(plan_lines(plan)))
        return 0
    if arguments.part is not None or arguments.of is not None:
        return _build_part(arguments, options, workers)
    manifest = build_dataset(options, arguments.out, workers=workers, overwrite=arguments.overwrite)
    counts = {name: split["count"] for name, split in manifest.splits.items()}
    if arguments.json:
        per_class = {name: split["classes"] for name, split in manifest.splits.items()}
        document = {"out": str(arguments.out), "splits": counts, "sha256": manifest.sha256}
        audit = audit_of(manifest)
        _say(json.dumps({**document, "per_class": per_class, "audit": audit and asdict(audit)}))
    else:
        listed = ", ".join(f"{count:,} {name}" for name, count in counts.items())
        _say(f"{arguments.out} is complete: {listed}")
    return 0


def _build_part(arguments: argparse.Namespace, options: "BuildOptions", workers: int | None) -> int:
    from shards.build.dataset import build_part

    number, of = arguments.part, arguments.of
    if number is None or of is None:
        raise UserError("--part and --of go together: --part 1 --of 4")
    if arguments.overwrite:
        raise UserError(f"--part with --overwrite: delete {arguments.out} before the parts begin")
    finished = build_part(options, arguments.out, number, of, workers=workers)
    if arguments.json:
        _say(json.dumps({"out": str(arguments.out), "part": number, "finished": finished}))
    elif finished:
        _say(f"{arguments.out} is complete already")
    else:
        _say(f"part {number} of {of} is done; after all parts, the same without --part joins them")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from shards.verify import verify

    most_lines = 50
    problems = verify(arguments.dataset)
    shown = without_credentials(arguments.dataset)
    if arguments.json:
        found = [{"file": p.file, "key": p.key, "what": p.what} for p in problems]
        _say(json.dumps({"whole": not problems, "count": len(problems), "problems": found}))
    elif problems:
        for problem in problems[:most_lines]:
            _say(str(problem))
        more = len(problems) - most_lines
        if more > 0:
            _say(f"… and {more:,} more")
        _say(f"{shown}: {len(problems):,} problem{'s' if len(problems) > 1 else ''}")
    else:
        _say(f"{shown} is whole")
    return 1 if problems else 0


def _info(arguments: argparse.Namespace) -> int:
    from shards.build.summary import info_lines, summarise
    from shards.reader import open_dataset

    dataset = open_dataset(arguments.dataset)
    _say(json.dumps(summarise(dataset)) if arguments.json else "\n".join(info_lines(dataset)))
    return 0
