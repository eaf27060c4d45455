"""Valid command lines, what they read, and the options and keys that each command knows."""

import argparse
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

import fuzz_values

# Large numbers here are much work, which is no fault.
MUCH_WORK = {
    "--clips",
    "--min-clips",
    "--calibration-clips",
    "--epochs",
    "--train.epochs",
    "--of",
    "--trials",
    "--part",
}
MUCH_WORK |= {"--model.widths", "--model.arguments", "--retry", "--workers"}


@dataclass(frozen=True)
class Line:
    """A command line that is valid in the world.

    Attributes:
        words: of it, without `cpprune`.
        reads: files and folders of the world that it reads.
        changes: those of them that it may change.
        weight: how often it is tried.
        configured: whether it takes the keys of a run.
    """

    words: tuple[str, ...]
    reads: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    weight: float = 1
    configured: bool = False

    @property
    def light(self) -> bool:
        """Whether the command does without torch."""
        return self.words[0] in ("shards", "summarise") and "mnist" not in self.words


def _line(words: str, *reads: str, weight: float = 1, changes: tuple[str, ...] = ()) -> Line:
    """Return a line; {tiny} and {model} in its words stand for what several have."""
    listed = words.format(model=MODEL, tiny=TINY).split()
    configured = listed[0] in ("train", "prune", "finetune") or listed[:2] == ["info", "--config"]
    return Line(tuple(listed), reads, changes, weight, configured)


MODEL = "runs/a/model"
TINY = "--model.widths=[6,8,10] --train.batch_size=4 --data.path=data --optim.schedule=constant"
SCOPE = "--prune.scope sensitivity --prune.sensitivity sensitivity/sensitivity.json"
LINES = (
    _line("info {model} --json", MODEL, weight=8),
    _line("info --config config.yaml --json", "config.yaml", weight=3),
    _line("info --config config.yaml", "config.yaml", weight=2),
    _line("evaluate {model} --data data --json", MODEL, "data", weight=6),
    _line("evaluate {model} --data data --predictions p.csv", MODEL, "data", weight=3),
    _line("ensemble {model} {model} --weights 2,1 --data data --json", MODEL, "data"),
    _line("logits {model} --data data --out l.npz --json", MODEL, "data"),
    _line("soup {model} runs/b/model --data data --out out --json", MODEL, "runs/b/model", "data"),
    _line("train {tiny} --train.epochs=1 --distill.teachers=[{model}] --run out", MODEL, "data"),
    _line("predict {model} sounds --json", MODEL, "sounds", weight=3),
    _line("predict {model} sounds/one.flac --predictions p.csv", MODEL, "sounds/one.flac"),
    _line("predict {model} sounds/one.wav", MODEL, "sounds/one.wav"),
    _line("predict {model} sounds/one.ogg --json", MODEL, "sounds/one.ogg"),
    _line("predict {model} sounds/one.mp3", MODEL, "sounds/one.mp3"),
    _line("listen {model} --file sounds/one.flac", MODEL, "sounds/one.flac"),
    _line("listen {model} --file sounds/one.mp3 --json", MODEL, "sounds/one.mp3"),
    _line("export {model} --out out.onnx --json", MODEL, weight=0.3),
    _line(
        "export {model} --out out.onnx --precision int8 --data data --check",
        MODEL,
        "data",
        weight=0.3,
    ),
    _line(
        "export {model} --out out.onnx --precision int8 --data data --sensitivity --max-drop 0.5",
        MODEL,
        "data",
        weight=0.3,
    ),
    _line("info model.onnx --json", "model.onnx", weight=2),
    _line("evaluate model.onnx --data data --json", "model.onnx", "data", weight=2),
    _line("predict model.onnx sounds/one.wav", "model.onnx", "sounds/one.wav"),
    _line("submit {model} --label Doe_LAB --data data --out out", MODEL, "data", weight=0.5),
    _line("summarise evaluation/a.json evaluation/b.json --json", "evaluation", weight=3),
    _line("summarise evaluation/a.json evaluation/b.json --out s.json", "evaluation", weight=2),
    _line("report runs/a --out r.html", "runs/a", "data", weight=3),
    _line("report runs/a --exports model.onnx --out r.html", "runs/a", "data", "model.onnx"),
    _line("report runs/stopped --out r.html --json", "runs/stopped", weight=2),
    _line("report runs/a runs/b", "runs", "data", changes=("runs",), weight=0.5),
    _line("compare runs/a runs/b --json", "runs", weight=4),
    _line("compare runs/a runs/b --split test", "runs", "data", weight=2),
    _line("compare runs/a runs/b --out c.html", "runs", "data"),
    _line("sensitivity {model} --data data --ratios 0.5 --clips 2 --out out --json", MODEL, "data"),
    _line(
        "sweep sweep.yaml --out swept --json",
        "sweep.yaml",
        "swept",
        "quick_run.py",
        changes=("swept",),
        weight=2,
    ),
    _line("sweep random.yaml --out out", "random.yaml", "quick_run.py"),
    _line("sweep bayes.yaml --out out", "bayes.yaml", "quick_run.py", weight=0.3),
    _line("import state.pth --out out --classes bus,metro", "state.pth", weight=4),
    _line("doctor --jsn", weight=0.2),
    _line("demo --clips 199 --out out", weight=0.5),
    _line("shards verify data --json", "data", weight=6),
    _line("shards verify digits", "digits", weight=2),
    _line("shards info data --json", "data", weight=5),
    _line("shards info digits", "digits", weight=2),
    _line("shards synth --out out --clips 199"),
    _line("shards download tau2022 --out out --mirror nowhere"),
    _line("shards build folder --source source --out out --workers 1", "source", weight=4),
    _line("shards build folder --source source --out out --dry-run", "source", weight=2),
    _line(
        "shards build table --source tabled/table.tsv --out out --workers 1 --json",
        "tabled",
        weight=4,
    ),
    _line("shards build mnist --source mnist --out out --workers 1", "mnist", weight=3),
    _line("shards build tau2022 --source tau --out out --workers 1", "tau", weight=4),
    _line("shards build tau2022 --source tau --out out --dry-run --json", "tau", weight=2),
    _line("train --config config.yaml --print_config", "config.yaml", weight=5),
    _line("train --config config.yaml --run out", "config.yaml", "data"),
    _line("train {tiny} --train.epochs=1 --run out --json", "data", weight=2),
    _line(
        "train {tiny} --train.epochs=2 --run runs/a --json",
        "runs/a",
        "data",
        changes=("runs/a",),
        weight=4,
    ),
    _line(
        "train {tiny} --train.epochs=2 --run runs/stopped",
        "runs/stopped",
        "data",
        changes=("runs/stopped",),
        weight=3,
    ),
    _line(
        "train --init {model} --data.path data --train.batch_size 4 --train.epochs 1 --run out",
        MODEL,
        "data",
    ),
    _line(
        "finetune --init {model} --data.path data --train.batch_size 4 --train.epochs 1 --run out "
        "--min-clips 1",
        MODEL,
        "data",
        weight=0.5,
    ),
    _line(
        "train {tiny} --train.epochs=1 --run out --distill.teachers=[logits.npz]",
        "logits.npz",
        "data",
        weight=2,
    ),
    _line(
        "train {tiny} --init state.pth --train.epochs=1 --run out", "state.pth", "data", weight=2
    ),
    _line("prune --init {model} --prune.ratio 0.5 --dry-run --json", MODEL, weight=3),
    _line("prune --init {model} --prune.budget params<=1500 --dry-run", MODEL, weight=2),
    _line("prune --init {model} --plan plan.json --dry-run", MODEL, "plan.json", weight=4),
    _line(
        "prune --init {model} --prune.blocks 1 --data.path data --dry-run", MODEL, "data", weight=2
    ),
    _line(
        f"prune --init {{model}} {SCOPE} --prune.ratio 0.4 --dry-run --json",
        MODEL,
        "sensitivity",
        weight=4,
    ),
    _line(
        "prune --init {model} --prune.ratio 0.5 --data.path data --train.epochs 1 "
        "--train.batch_size 4 --run out",
        MODEL,
        "data",
        weight=0.7,
    ),
)


@dataclass(frozen=True)
class Option:
    """An option of a command: its name, whether it takes a value, words of its help."""

    name: str
    valued: bool
    words: tuple[str, ...]


class _Seen(BaseException):
    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


def options(line: Line) -> tuple[Option, ...]:
    """Return the options that the command of a line knows, from its own parser."""
    from cpprune.cli.main import command

    if line.configured:
        from cpprune.config import all_keys, build_parser

        flags = ("json", "debug", "dry-run", "latency")[: 3 if line.words[0] == "prune" else 1]
        helps = {
            name: action.help or ""
            for action in build_parser("x", "x", {})._actions
            for name in action.option_strings
        }
        found = [Option(f"--{k}", True, _words(helps.get(f"--{k}", ""))) for k in all_keys()]
        groups = dict.fromkeys(key.split(".")[0] for key in all_keys() if "." in key)
        found += [
            Option(f"--{name}", True, ()) for name in (*groups, "config", "model.arguments.x")
        ]
        return (*found, *(Option(f"--{name}", False, ()) for name in flags if name != "debug"))
    real = argparse.ArgumentParser.parse_known_args  # which parse_args calls

    def seen(self: argparse.ArgumentParser, *_: object, **__: object) -> None:
        raise _Seen(self)

    argparse.ArgumentParser.parse_known_args = seen  # type: ignore[method-assign,assignment]
    try:
        command(line.words[0])(list(line.words[1:]))
        raise AssertionError(f"{line.words}: no parser was asked")
    except _Seen as caught:
        parser = caught.parser
    finally:
        argparse.ArgumentParser.parse_known_args = real  # type: ignore[method-assign]
    if line.words[0] == "shards":
        below = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
        parser = below.choices[line.words[1]]
    return tuple(
        Option(action.option_strings[-1], action.nargs != 0, _words(action.help or ""))
        for action in parser._actions
        if action.option_strings and action.dest not in ("help", "debug")
    )


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"[\w.<=]+", text))


def spoil_words(
    rng: random.Random, words: Sequence[str], known: tuple[Option, ...]
) -> tuple[str, list[str]]:
    """Return what was done to the words of a command line, and the new ones."""
    new = list(words)
    begin = 2 if words[0] == "shards" else 1
    roll = rng.random()
    if roll < 0.5 and known:
        option = rng.choice(known)
        if not option.valued:
            return f"{option.name} added", [*new, option.name]
        wrong = fuzz_values.word(rng, "", option.words)
        if option.name in MUCH_WORK and _is_large(wrong):
            wrong = "2"
        return f"{option.name} added", [*new, *_given(rng, option.name, wrong)]
    at = rng.randrange(begin, len(new)) if len(new) > begin else 0
    if roll < 0.8:
        before = new[at - 1].partition("=")[0]
        if new[at].startswith("--"):
            name, equals, near = new[at].partition("=")
            new[at] = f"{name}={fuzz_values.word(rng, near)}" if equals else _renamed(rng, name)
            if name in MUCH_WORK:
                new[at] = f"{name}=2"
        else:
            wrong = fuzz_values.word(rng, new[at])
            new[at] = "2" if before in MUCH_WORK and _is_large(wrong) else wrong
        return f"word {at} changed", new
    if roll < 0.88:
        del new[at]
        return f"word {at} removed", new
    if roll < 0.94:
        new.insert(at, new[at])
        return f"word {at} twice", new
    new.insert(rng.randrange(len(new) + 1), fuzz_values.word(rng))
    return "a word added", new


def _is_large(word: str) -> bool:
    return len(word) > 2 or word in ("all", "inf")


def _given(rng: random.Random, name: str, word: str) -> list[str]:
    roll = rng.random()
    if roll < 0.6:
        return [f"{name}={word}"]
    return [_renamed(rng, name) if roll > 0.95 else name, word]


def _renamed(rng: random.Random, name: str) -> str:
    return rng.choice(
        (name[:-1], f"{name}s", name.upper(), name[1:], f"{name}=", name.replace("-", "_"))
    )
