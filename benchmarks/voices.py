"""Which voice speaks? Ways to a small network, on real recordings, heard through unseen devices too.

    python benchmarks/voices.py --voices 12 --seeds 3 --epochs 10

The recordings are spoken words of three Debian packages, which apt downloads (250 MB; nothing is
installed). No word is in two splits. Clips are heard through the devices of `cpprune shards synth`, with
noise in the background; s4 to s6 are in the test split alone. VARIANTS says what is trained, and for how
long: networks that are pruned after training begin with the big one of their seed, so that what they are
compared with is trained for twice the epochs. Everything is trained, exported and measured by cpprune's
commands. Finished results are kept in --out, so a stopped benchmark, or one of more seeds, goes on where
it was. Needs `pip install 'cpprune[report,onnx]'`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import voice_clips
from methods import cpprune

from cpprune.evaluation.statistics import holm, paired_test, spread

INT8 = ", int8"
# Parameters of small with the ten classes of TAU; it has more with more voices.
MOST = 47_028
SNR_DB = 5.0


@dataclass(frozen=True)
class Variant:
    """A way to a network.

    Attributes:
        small: whether it begins with small, or with big.
        times: how many times --epochs it is trained.
        pruned: after it was trained as big (and then for --epochs), or early: in three steps from a
            quarter of its one training on.
        taught: variant of big whose networks teach it.
        mode: what those see: the clips as they are, or as they are augmented.
        responses: whether impulse responses are an augmentation.
    """

    small: bool = False
    times: int = 1
    pruned: Literal["", "after", "early"] = ""
    taught: str = ""
    mode: Literal["clean", "on_the_fly"] = "clean"
    responses: bool = False


TEACHER, ROBUST = "big, as a teacher", "big, as a teacher + impulse responses"
VARIANTS = {
    "big": Variant(),
    TEACHER: Variant(times=2),
    ROBUST: Variant(times=4, responses=True),
    "small": Variant(small=True),
    "control": Variant(small=True, times=2),
    "control + impulse responses": Variant(small=True, times=2, responses=True),
    "control + teacher": Variant(small=True, times=2, taught=TEACHER),
    "pruned": Variant(pruned="after"),
    "pruned + impulse responses": Variant(pruned="after", responses=True),
    "pruned + teacher": Variant(pruned="after", taught=TEACHER),
    "pruned early": Variant(times=2, pruned="early"),
    "pruned early + impulse responses": Variant(times=2, pruned="early", responses=True),
    "pruned early + both": Variant(
        times=2, pruned="early", taught=ROBUST, mode="on_the_fly", responses=True
    ),
}
TEACHERS = {one.taught for one in VARIANTS.values() if one.taught}
PAIRS = [
    ("big", "small"),
    ("control", "small"),
    ("pruned", "small"),
    ("pruned", "control"),
    ("pruned + teacher", "pruned"),
    ("control + teacher", "control"),
    ("pruned + teacher", "control + teacher"),
    ("pruned + impulse responses", "pruned"),
    ("control + impulse responses", "control"),
    ("pruned early", "pruned"),
    ("pruned early", "control"),
    ("pruned early + impulse responses", "pruned early"),
    ("pruned early + both", "small"),
    ("pruned early + both", "control"),
    ("pruned early + both", "pruned early + impulse responses"),
    ("pruned early + both", "control + impulse responses"),
]
FIGURES = {"seen": "seen devices", "unseen": "unseen devices", "log_loss": "log loss"}


@dataclass(frozen=True)
class Result:
    """What a variant of one seed does on the test split; accuracies are macro accuracies.

    Attributes:
        val: on the validation split.
        seen: mean of the devices a to c and s1 to s3, as two groups.
        unseen: devices s4 to s6.
    """

    variant: str
    seed: int
    model: str
    parameters: int
    macs: int
    val: float
    accuracy: float
    log_loss: float
    seen: float
    unseen: float


@dataclass(frozen=True)
class Bench:
    """Where everything lies, and for how long is trained."""

    out: Path
    epochs: int
    teachers: int
    mels: int
    batch: int
    precision: str

    @property
    def dataset(self) -> Path:
        """The dataset's folder."""
        return self.out / "dataset"

    def run(self, variant: str, seed: int) -> Path:
        """The folder of a run."""
        name = re.sub(r"\W+", "-", variant)
        return self.out / f"{name}-{seed}"

    def model(self, variant: str, seed: int) -> Path:
        """The folder of a trained model."""
        return self.run(variant, seed) / "model"

    def settings(self, name: str, seed: int) -> list[object]:
        """Return what is said to `cpprune train` beside the common settings."""
        variant = VARIANTS[name]
        words: list[object] = ["--train.epochs", variant.times * self.epochs]
        if variant.small:
            words += ["--model.channels_multiplier", 1]
        if variant.pruned:
            words += ["--prune.budget", f"params<={MOST}"]
        if variant.pruned == "after":
            words += ["--init", self.model("big", seed), "--optim.lr", 2e-3]
            words += ["--optim.warmup_epochs", 0]
        elif variant.pruned == "early":
            words += ["--prune.start_epoch", self.epochs // 2, "--prune.steps", 3]
            words += ["--prune.every_epochs", max(self.epochs // 6, 1)]
        if variant.taught:
            teachers = [str(self.model(variant.taught, other)) for other in range(self.teachers)]
            words += ["--distill.teachers", json.dumps(teachers), "--distill.mode", variant.mode]
        if variant.mode == "on_the_fly":
            words += ["--distill.label_weight", 0.3, "--distill.temperature", 1]
        if variant.responses:
            words += ["--augment.impulse_responses", self.out / "responses"]
            words += ["--augment.impulse_response_devices", '["a"]']
        return words


def build(arguments: argparse.Namespace) -> None:
    """Make the dataset and the impulse responses, unless they are there."""
    out: Path = arguments.out
    names = ("voices", "most", "snr", "mels", "batch", "epochs", "teachers", "precision")
    about = {name: getattr(arguments, name) for name in names}
    mark = out / "settings.json"
    if mark.is_file() and json.loads(mark.read_text()) != about:
        sys.exit(f"{mark}: holds another benchmark, {mark.read_text().strip()}; give another --out")
    if (out / "dataset/dataset.json").is_file():
        return
    audio: Path = arguments.audio or out / "debian"
    if arguments.audio is None:
        voice_clips.download(audio)
    found = voice_clips.recordings(audio)
    print(f"{len(found)} voices with {voice_clips.FEWEST} recordings or more", file=sys.stderr)
    if len(found) < arguments.voices:
        sys.exit(f"--voices {arguments.voices}: {audio} has {len(found)}")
    mark.write_text(json.dumps(about) + "\n")
    chosen = voice_clips.choose(found, arguments.voices, arguments.most)
    table = voice_clips.write_clips(voice_clips.lay_out(chosen), out, arguments.snr)
    voice_clips.write_responses(out / "responses")
    words = ["--source", table, "--out", out / "dataset", "--keep-together", "word"]
    cpprune("shards", "build", "table", *words, "--group-columns", "device", "--overwrite")


def report_of(model: Path, dataset: Path, variant: str, seed: int, val: float) -> Result:
    """Measure a model on the test split."""
    report = cpprune("evaluate", model, "--data", dataset)
    group = {name: values["macro_accuracy"] for name, values in report["per_group"].items()}
    return Result(
        variant=variant,
        seed=seed,
        model=str(model),
        parameters=report["parameters"],
        macs=report["macs"],
        val=val,
        accuracy=report["macro_accuracy"],
        log_loss=report["log_loss"],
        seen=(group["real"] + group["seen"]) / 2,
        unseen=group["unseen"],
    )


def kept(bench: Bench, run: Path) -> Result | None:
    """Return the result of a run that was measured before."""
    file = bench.out / "results" / f"{run.name}.json"
    return Result(**json.loads(file.read_text())) if file.is_file() else None


def keep(bench: Bench, run: Path, result: Result) -> Result:
    """Keep the result of a run, and say it."""
    file = bench.out / "results" / f"{run.name}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(asdict(result), indent=2) + "\n")
    said = f"seen {result.seen:.4f}  unseen {result.unseen:.4f}"
    print(f"seed {result.seed}  {result.variant:<28} {said}", file=sys.stderr, flush=True)
    return result


def train(bench: Bench, variant: str, seed: int) -> Result:
    """Train a variant and measure it, unless that was done before."""
    run = bench.run(variant, seed)
    if found := kept(bench, run):
        return found
    settings: list[object] = ["--config", "configs/demo.yaml", "--data.path", bench.dataset]
    settings += ["--run", run, "--seed", seed, "--train.precision", bench.precision]
    settings += ["--features.n_mels", bench.mels, "--train.batch_size", bench.batch]
    trained = cpprune("train", *settings, *bench.settings(variant, seed))
    val = trained["val"]["macro_accuracy"]
    return keep(bench, run, report_of(run / "model", bench.dataset, variant, seed, val))


def export_int8(bench: Bench, trained: Result) -> Result:
    """Export a network in int8 and measure the file, unless that was done before."""
    run = Path(trained.model).parent
    run = run.with_name(f"{run.name}-int8")
    if found := kept(bench, run):
        return found
    file = run.with_suffix(".onnx")
    words = ["--to", "onnx", "--precision", "int8", "--data", bench.dataset, "--out", file]
    cpprune("export", trained.model, *words, "--force")
    result = report_of(file, bench.dataset, trained.variant + INT8, trained.seed, trained.val)
    return keep(bench, run, result)


def best_small(results: Sequence[Result]) -> str:
    """Return the variant with the best mean on the validation split, of those as small as small."""
    small = [name for name, variant in VARIANTS.items() if variant.small or variant.pruned]
    means = {name: np.mean([one.val for one in of(results, name)]) for name in small}
    return max(means, key=lambda name: float(means[name]))


def of(results: Sequence[Result], variant: str) -> list[Result]:
    """Return a variant's results in the order of seeds."""
    return sorted((one for one in results if one.variant == variant), key=lambda one: one.seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/voices"))
    parser.add_argument("--audio", type=Path, help="the unpacked packages (default: download them)")
    parser.add_argument("--voices", type=int, default=33, help="the richest ones")
    parser.add_argument("--most", type=int, default=200, help="recordings of a voice")
    parser.add_argument("--snr", type=float, default=SNR_DB, help="of speech against noise, dB")
    parser.add_argument("--mels", type=int, default=256, help="features.n_mels")
    parser.add_argument("--batch", type=int, default=32, help="train.batch_size")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--teachers", type=int, default=2, help="big networks in the ensemble")
    parser.add_argument("--precision", default="no", help="train.precision")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, one thread each")
    parser.add_argument("--only", nargs="*", help="variants to run, such as small (default: all)")
    arguments = parser.parse_args()

    arguments.out.mkdir(parents=True, exist_ok=True)
    build(arguments)
    names = ("out", "epochs", "teachers", "mels", "batch", "precision")
    bench = Bench(**{name: getattr(arguments, name) for name in names})
    results: list[Result] = []
    chosen = [name for name in VARIANTS if arguments.only is None or name in arguments.only]
    later = [name for name in chosen if VARIANTS[name].pruned == "after" or VARIANTS[name].taught]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for stage in ([name for name in chosen if name not in later], later):
            jobs = [
                (name, seed)
                for seed in range(max(arguments.seeds, arguments.teachers))
                for name in stage
                if seed < (arguments.teachers if name in TEACHERS else arguments.seeds)
            ]
            results += pool.map(lambda job: train(bench, *job), jobs)
        if arguments.only is None:
            best = of(results, best_small(results))
            results += pool.map(lambda one: export_int8(bench, one), best)
    print(f"{platform.machine()}, {os.cpu_count()} cores; {arguments.seeds} seeds, ", end="")
    print(
        f"{arguments.voices} voices, {arguments.epochs} epochs (times: see VARIANTS), ",
        end="",
    )
    print(f"{arguments.teachers} teachers, noise at {arguments.snr:g} dB\n")
    print_table(results)
    for name in sorted(TEACHERS.intersection(chosen)):
        print_ensemble(bench, name)
    if arguments.seeds > 1:
        print_pairs(results)


def print_table(results: Sequence[Result]) -> None:
    """Print mean and deviation of every variant."""
    print("| variant | parameters | MACs | macro accuracy | seen | unseen | log loss |")
    print("|---|---|---|---|---|---|---|")
    for variant in dict.fromkeys(one.variant for one in results):
        rows = of(results, variant)
        cells = [variant, f"{rows[0].parameters:,}", f"{rows[0].macs:,}"]
        for figure in ("accuracy", *FIGURES):
            found = spread([getattr(one, figure) for one in rows])
            deviation = "" if found.deviation is None else f" ± {found.deviation:.4f}"
            cells.append(f"{found.mean:.4f}{deviation}")
        print(f"| {' | '.join(cells)} |")


def print_ensemble(bench: Bench, teacher: str) -> None:
    """Print what the students' teachers are worth together."""
    models = [bench.model(teacher, seed) for seed in range(bench.teachers)]
    report = cpprune("ensemble", *models, "--data", bench.dataset)
    group = {name: values["macro_accuracy"] for name, values in report["per_group"].items()}
    seen = (group["real"] + group["seen"]) / 2
    print(f"\n{teacher}, together: macro accuracy {report['macro_accuracy']:.4f}, ", end="")
    print(f"seen {seen:.4f}, unseen {group['unseen']:.4f}, log loss {report['log_loss']:.4f}")


def print_pairs(results: Sequence[Result]) -> None:
    """Print differences of variants, paired by seed, in points and in log loss."""
    present = {one.variant for one in results}
    exported = [(name, name.removesuffix(INT8)) for name in present if name.endswith(INT8)]
    pairs = [pair for pair in [*PAIRS, *exported] if present >= set(pair)]
    columns = []
    for figure in FIGURES:
        scale = 1 if figure == "log_loss" else 100
        tests = [
            paired_test(*([scale * getattr(x, figure) for x in of(results, name)] for name in pair))
            for pair in pairs
        ]
        corrected = holm([test.p for test in tests])
        columns.append(
            [
                f"{test.difference:+.3f} ± {test.deviation:.3f} | {'–' if p is None else f'{p:.3f}'}"
                for test, p in zip(tests, corrected, strict=True)
            ]
        )
    print(f"\n| difference | {' | p | '.join(FIGURES.values())} | p |")
    print("|---" * (1 + 2 * len(FIGURES)) + "|")
    for (one, other), *cells in zip(pairs, *columns, strict=True):
        print(f"| {one} − {other} | {' | '.join(cells)} |")
    print(
        "\nAccuracies in points. p: two-sided paired t-test over the seeds, with Holm's correction"
    )
    print("for the differences of a column.")


if __name__ == "__main__":
    main()
