"""The checks of `cpprune doctor`. Each returns findings and never raises."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from cpprune.cli.import_probe import Answer, Gpu
from cpprune.data.free_memory import available_memory
from shards.errors import UserError
from shards.files.documents import parse_json
from shards.launcher import NAMES, read_launch

GIB = 2**30
IMPORT_SECONDS = 120  # for all imports together
SLURM_SECONDS = 2
PROBE = Path(__file__).with_name("import_probe.py")

# Packages whose module has another name.
MODULES = {"torch-pruning": "torch_pruning", "pyyaml": "yaml", "nvidia-dali-cuda130": "nvidia.dali"}
# Packages that training does not need, and what does.
NEEDED_BY = {"webdataset": "cpprune shards build webdataset"}
# Remedies for modules that cannot be imported; others are installed again.
REMEDIES = {
    "torchaudio": "torch and torchaudio must be built for the same CUDA: pip install "
    "'torch>=2.11,<2.15' 'torchaudio>=2.11,<2.12', both from the same index",
    "torch_pruning": "it imports timm and torchvision if they are installed: they must fit torch",
    "soundfile": "it needs libsndfile: apt install libsndfile1",
}
EXTRAS = {
    "dali": "DALI front end",
    "deepspeed": "DeepSpeed ZeRO",
    "wandb": "tracking with Weights & Biases",
    "tensorboard": "tracking with TensorBoard",
    "sweep": "sweeps with Optuna",
    "remote": "datasets behind s3://, gs:// and https://",
    "report": "plots and statistical tests",
}


@dataclass(frozen=True)
class Finding:
    """A line of the doctor's answer.

    Attributes:
        state: "ok", "warning", or "problem": training would fail.
        about: what was checked.
        text: what was found.
        remedy: what to do, if anything.
    """

    state: str
    about: str
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        """Return it as one line, without its state."""
        return f"{self.about}: {self.text}" + (f"; {self.remedy}" if self.remedy else "")


ok, warning, problem = (partial(Finding, state) for state in ("ok", "warning", "problem"))

# --- packages -----------------------------------------------------------------------------------------


def installed(package: str) -> str | None:
    """Return a package's version, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def requirements(extra: str = "") -> dict[str, str]:
    """Return package → allowed versions, of cpprune or of one of its extras."""
    from packaging.requirements import Requirement

    try:
        parsed = [Requirement(line) for line in requires("cpprune") or []]
    except PackageNotFoundError:
        return {}
    return {
        r.name: str(r.specifier)
        for r in parsed
        if ("extra ==" in str(r.marker)) == bool(extra)
        and (not r.marker or r.marker.evaluate({"extra": extra}))
    }


def check_versions(packages: Mapping[str, str]) -> list[Finding]:
    """Compare installed versions with those allowed (package → versions)."""
    from packaging.specifiers import SpecifierSet

    if not packages:
        text = "cpprune is not installed, so that its requirements are not known"
        return [warning("packages", text, "make setup, or pip install -e .")]
    findings, fit = [], []
    for package, allowed in packages.items():
        found = installed(package)
        if found and SpecifierSet(allowed).contains(found, prereleases=True):
            fit.append(f"{package} {found}")
            continue
        text = f"{found} is installed, {allowed} is needed" if found else "is not installed"
        needed_by = NEEDED_BY.get(package)
        state, use = (warning, f" (by {needed_by})") if needed_by else (problem, "")
        findings.append(state(package, text + use, f"pip install '{package}{allowed}'"))
    return [ok("packages", ", ".join(fit)), *findings]


def modules_of(packages: Iterable[str]) -> list[str]:
    """Return the modules of those packages that are installed, each once."""
    found = [MODULES.get(package, package) for package in packages if installed(package)]
    return list(dict.fromkeys(found))


def probe(names: Sequence[str]) -> dict[str, Answer]:
    """Import modules in another process; return the answers by name."""
    answers: dict[str, Answer] = {}
    waiting = list(dict.fromkeys(names))
    while waiting:
        # -P: without the script's folder on the import path.
        command = [sys.executable, "-P", str(PROBE), *waiting]
        try:
            done = subprocess.run(command, capture_output=True, timeout=IMPORT_SECONDS, check=False)
            output, how = done.stdout, f"ends Python (status {done.returncode})"
        except subprocess.TimeoutExpired as error:
            output, how = error.stdout or b"", f"is not done after {IMPORT_SECONDS} s"
        for line in output.splitlines():
            answer = parse_json(line, Answer)
            answers[answer.name] = answer
        left = [name for name in waiting if name not in answers]
        if left:
            answers[left[0]] = Answer(left[0], how)
        waiting = left[1:]
    return answers


def check_imports(answers: Mapping[str, Answer], state: str) -> list[Finding]:
    """List the modules that are installed but cannot be imported."""
    return [
        Finding(
            state,
            name,
            f"cannot be imported ({answer.error})",
            REMEDIES.get(name, f"pip install --force-reinstall {name.partition('.')[0]}"),
        )
        for name, answer in answers.items()
        if answer.error
    ]


def check_extras(imported: Mapping[str, Answer]) -> list[Finding]:
    """List the extras, and the packages of each; `imported` are the modules that were tried."""
    findings = []
    for extra, purpose in EXTRAS.items():
        versions = {package: installed(package) for package in requirements(extra)}
        missing = [package for package, found in versions.items() if not found]
        title = f"[{extra}] {purpose}"
        if missing:
            text, remedy = f"without {', '.join(missing)}", f"pip install 'cpprune[{extra}]'"
            findings.append(ok(title, text, remedy))
        elif versions:  # else the metadata are of an older installation, which lacks this extra
            findings.append(ok(title, ", ".join(f"{p} {found}" for p, found in versions.items())))
    return findings + check_imports(imported, "warning")


# --- the machine --------------------------------------------------------------------------------------


def check_machine() -> list[Finding]:
    """Check Python, cores, memory, shared memory, and the free space of the current folder's disk."""
    memory, disk = available_memory(), shutil.disk_usage(".").free
    findings = [
        ok("Python", f"{platform.python_version()} on {platform.platform()}"),
        ok("CPU", f"{cpu_cores():g} cores"),
        _at_least(2 * GIB, memory, warning("memory", "", "training may be killed")),
        _at_least(GIB, disk, problem("free disk here", "", "make room")),
    ]
    shared = Path("/dev/shm")  # noqa: S108
    if shared.is_dir():
        remedy = "with data.workers above 0, give a container more: --shm-size 1g"
        free = shutil.disk_usage(shared).free
        findings.append(_at_least(GIB // 4, free, warning("shared memory", "", remedy)))
    return findings


def _at_least(needed: int, free: int, otherwise: Finding) -> Finding:
    about, text = otherwise.about, f"{free / GIB:.1f} GiB"
    if free >= needed:
        return ok(about, text)
    return Finding(otherwise.state, about, text, otherwise.remedy)


def cpu_cores() -> float:
    """Return the cores that this process may use; within a container, its share."""
    cores = float(len(os.sched_getaffinity(0)))
    try:
        quota, _, period = Path("/sys/fs/cgroup/cpu.max").read_text().strip().partition(" ")
    except OSError:
        return cores
    return min(cores, int(quota) / int(period)) if quota.isdigit() else cores


def check_gpus(answer: Answer, environment: Mapping[str, str]) -> list[Finding]:
    """Judge the GPUs that torch sees, or why it sees none."""
    found = answer.found
    if found is None:
        return [problem("GPUs", f"cannot be listed ({answer.error})")]
    if found.gpus:
        return [_check_gpu(number, gpu) for number, gpu in enumerate(found.gpus)]
    if not (shutil.which("nvidia-smi") or Path("/proc/driver/nvidia").exists()):
        return [ok("GPUs", "none; training runs on the CPU")]
    hidden = environment.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and hidden.strip() in ("", "-1"):
        text = f"hidden by CUDA_VISIBLE_DEVICES={hidden!r}; training runs on the CPU"
        return [warning("GPUs", text)]
    text = "there is a driver, but torch sees no GPU"
    if not found.cuda:
        return [problem("GPUs", text, "torch is built for CPUs: install one built for CUDA")]
    remedy = f"nvidia-smi must work, with a driver new enough for CUDA {found.cuda}"
    return [problem("GPUs", f"{text} ({found.reason})", remedy)]


def _check_gpu(number: int, gpu: Gpu) -> Finding:
    (major, minor), memory = gpu.capability, f"{gpu.memory_bytes / GIB:.0f} GiB"
    about, text = f"GPU {number}", f"{gpu.name}, {memory}, compute capability {major}.{minor}"
    if gpu.error:
        remedy = "install a torch that is built for it, or leave it out of CUDA_VISIBLE_DEVICES"
        return problem(about, f"{text}: fails ({gpu.error})", remedy)
    if major < 8:
        return warning(about, f"{text}: no bf16", "use --train.precision fp16 or no")
    return ok(about, text)


# --- several processes --------------------------------------------------------------------------------


def check_launcher(environment: Mapping[str, str]) -> list[Finding]:
    """Check the variables that launchers set; a leftover of one would let training hang."""
    try:
        note = read_launch(environment).note
    except UserError as error:
        return [problem("launcher", str(error))]
    if note:
        return [warning("launcher", note)]
    names = [name for name in NAMES if name in environment]
    names += [name for name in environment if name.startswith("ACCELERATE_")]
    variables = ", ".join(f"{name}={environment[name]}" for name in names)
    return [ok("launcher", variables or "one process")]


def check_slurm(environment: Mapping[str, str]) -> list[Finding]:
    """Ask SLURM, where it is installed, for its partitions."""
    if not shutil.which("sbatch"):
        return [ok("SLURM", "not on this machine")]
    if job := environment.get("SLURM_JOB_ID"):
        return [ok("SLURM", f"in job {job} on {environment.get('SLURM_JOB_NODELIST', '?')}")]
    command = ["sinfo", "--noheader", "--format=%P %D × %c cores %G"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=SLURM_SECONDS, check=False
        )
        answer, error = done.stdout.strip(), done.stderr.strip()
    except (OSError, subprocess.TimeoutExpired) as raised:
        answer, error = "", str(raised)
    if answer:
        return [ok("SLURM", "; ".join(answer.splitlines()))]
    text = f"sinfo does not answer ({(error or 'no partitions').splitlines()[0]})"
    return [warning("SLURM", text, "jobs cannot be submitted from here")]


def check_compilers() -> list[Finding]:
    """Check that DeepSpeed, if it is installed, can compile its operators."""
    if not installed("deepspeed"):
        return []
    missing = [tool for tool in ("g++", "ninja") if not _has(tool)]
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        missing.append("Python.h")
    about = "DeepSpeed's compilers"
    if missing:
        remedy = "apt install g++ ninja-build python3-dev"
        return [warning(about, f"no {', '.join(missing)}", remedy)]
    return [ok(about, f"g++, ninja, Python.h, {'with' if _has('nvcc') else 'without'} nvcc")]


def _has(tool: str) -> bool:
    return Path(sys.executable).with_name(tool).exists() or shutil.which(tool) is not None
