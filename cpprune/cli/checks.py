"""What `cpprune doctor` looks at. Each check returns findings and never raises."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from shards.errors import InputError
from shards.launcher import NAMES, read_launch

GIB = 2**30
# Seconds for all imports, and for a question to SLURM.
IMPORT_SECONDS = 120
SLURM_SECONDS = 2
PROBE = Path(__file__).with_name("import_probe.py")

# Packages whose module is called otherwise.
MODULES = {
    "torch-pruning": "torch_pruning",
    "pyyaml": "yaml",
    "nvidia-dali-cuda130": "nvidia.dali",
}
# Needed by other things than training.
NOT_IMPORTED = ("torchmetrics", "webdataset")
# What is wrong when these cannot be imported, and what helps.
REMEDIES = {
    "torchaudio": "torch and torchaudio have to be built for the same CUDA: pip install "
    "'torch>=2.11,<2.15' 'torchaudio>=2.11,<2.12', both from the same index",
    "torch_pruning": "it imports timm and torchvision where they are installed: they have to fit torch",
    "soundfile": "it needs libsndfile: apt install libsndfile1",
}
EXTRAS = {
    "dali": "DALI front end",
    "deepspeed": "DeepSpeed ZeRO",
    "wandb": "tracking with Weights & Biases",
    "tensorboard": "tracking with TensorBoard",
    "sweep": "sweeps with Optuna",
    "remote": "datasets behind s3://, gs:// and https://",
    "report": "plots and tests",
}


@dataclass(frozen=True)
class Finding:
    """One line: "ok", "warning" or "problem" (training would fail), about what, and what helps."""

    state: str
    about: str
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        """Return it as one line, without its state."""
        return f"{self.about}: {self.text}" + (f"; {self.remedy}" if self.remedy else "")


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
    own = {"extra": extra}
    return {
        r.name: str(r.specifier)
        for r in parsed
        if ("extra ==" in str(r.marker)) == bool(extra) and (not r.marker or r.marker.evaluate(own))
    }


def check_versions(packages: Mapping[str, str]) -> list[Finding]:
    """Compare what is installed with what is allowed (package → versions)."""
    from packaging.specifiers import SpecifierSet

    findings, fit = [], []
    if not packages:
        text = "cpprune itself is not installed, so that its needs are not known"
        return [Finding("warning", "packages", text, "make setup, or pip install -e .")]
    for package, allowed in packages.items():
        found = installed(package)
        remedy = f"pip install '{package}{allowed}'"
        if found is None:
            findings.append(Finding("problem", package, "is not installed", remedy))
        elif not SpecifierSet(allowed).contains(found, prereleases=True):
            text = f"{found} is installed, {allowed} is needed"
            findings.append(Finding("problem", package, text, remedy))
        else:
            fit.append(f"{package} {found}")
    return [Finding("ok", "packages", ", ".join(fit)), *findings]


def modules_of(packages: Iterable[str]) -> list[str]:
    """Return the modules of those packages that are installed, each once."""
    found = [MODULES.get(package, package) for package in packages if installed(package)]
    return list(dict.fromkeys(found))


def probe(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Import modules in another process; return name → error (or None) and found."""
    answers: dict[str, dict[str, Any]] = {}
    waiting = list(dict.fromkeys(names))
    while waiting:
        # -P: without the script's folder on the import path.
        command = [sys.executable, "-P", str(PROBE), *waiting]
        try:
            done = subprocess.run(command, capture_output=True, timeout=IMPORT_SECONDS, check=False)
            output, how = done.stdout, f"ends Python (status {done.returncode})"
        except subprocess.TimeoutExpired as error:
            output, how = error.stdout or b"", f"is not done after {IMPORT_SECONDS} s"
        for line in output.decode().splitlines():
            answer = json.loads(line)
            answers[answer["name"]] = answer
        left = [name for name in waiting if name not in answers]
        if left:
            answers[left[0]] = {"name": left[0], "error": how, "found": None}
        waiting = left[1:]
    return answers


def check_imports(answers: Mapping[str, Mapping[str, Any]], state: str) -> list[Finding]:
    """Name the modules that are installed and cannot be imported."""
    return [
        Finding(state, name, f"cannot be imported ({answer['error']})", _remedy(name))
        for name, answer in answers.items()
        if answer["error"]
    ]


def _remedy(module: str) -> str:
    again = f"pip install --force-reinstall {module.partition('.')[0]}"
    return REMEDIES.get(module, again)


def check_extras(imported: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    """Say which extras are there; `imported` are those that were tried."""
    findings = []
    for extra, purpose in EXTRAS.items():
        versions = {package: installed(package) for package in requirements(extra)}
        missing = [package for package, found in versions.items() if found is None]
        if not versions:
            continue  # the metadata of an older installation does not know it
        title = f"[{extra}] {purpose}"
        if missing:
            remedy = f"pip install 'cpprune[{extra}]'"
            findings.append(Finding("ok", title, f"without {', '.join(missing)}", remedy))
        else:
            listed = ", ".join(f"{package} {found}" for package, found in versions.items())
            findings.append(Finding("ok", title, listed))
    return findings + check_imports(imported, "warning")


# --- the machine --------------------------------------------------------------------------------------


def check_machine() -> list[Finding]:
    """Look at Python, cores, memory, shared memory and the disk under the current folder."""
    where = f"{platform.python_version()} on {platform.platform()}"
    cores, memory = cpu_cores(), memory_bytes()
    findings = [
        Finding("ok", "Python", where),
        Finding("ok", "CPU", f"{cores:g} cores"),
        _at_least(memory, 2 * GIB, "warning", "memory", "training may be killed"),
        _at_least(shutil.disk_usage(".").free, GIB, "problem", "free disk here", "make room"),
    ]
    if Path("/dev/shm").is_dir():  # noqa: S108
        remedy = "with data.workers above 0, give a container more: --shm-size 1g"
        free = shutil.disk_usage("/dev/shm").free  # noqa: S108
        findings.append(_at_least(free, GIB // 4, "warning", "shared memory", remedy))
    return findings


def _at_least(found: int, needed: int, state: str, about: str, remedy: str) -> Finding:
    text = f"{found / GIB:.1f} GiB"
    return Finding("ok", about, text) if found >= needed else Finding(state, about, text, remedy)


def cpu_cores() -> float:
    """Return the cores that this process may use, a container's share included."""
    cores = float(len(os.sched_getaffinity(0)))
    quota, _, period = _cgroup("cpu.max").partition(" ")
    return min(cores, int(quota) / int(period)) if quota.isdigit() else cores


def memory_bytes() -> int:
    """Return the memory of the machine, or of the container if that is less."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _cgroup("memory.max")
    return min(physical, int(limit)) if limit.isdigit() else physical


def _cgroup(name: str) -> str:
    try:
        return Path("/sys/fs/cgroup", name).read_text().strip()
    except OSError:
        return ""


def check_gpus(answer: Mapping[str, Any], environment: Mapping[str, str]) -> list[Finding]:
    """Judge what torch says of the GPUs."""
    if answer["error"]:
        return [Finding("problem", "GPUs", f"cannot be asked for ({answer['error']})")]
    found = answer["found"]
    if found["gpus"]:
        return [_judge_gpu(number, gpu) for number, gpu in enumerate(found["gpus"])]
    driver = shutil.which("nvidia-smi") or Path("/proc/driver/nvidia").exists()
    if not driver:
        return [Finding("ok", "GPUs", "none; training runs on the CPU")]
    text = "there is a driver, but torch sees no GPU"
    hidden = environment.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and hidden.strip() in ("", "-1"):
        text = f"hidden by CUDA_VISIBLE_DEVICES={hidden!r}; training runs on the CPU"
        return [Finding("warning", "GPUs", text)]
    if not found["cuda"]:
        return [Finding("problem", "GPUs", text, "torch is built for CPUs: install one with CUDA")]
    remedy = f"nvidia-smi has to work, with a driver new enough for CUDA {found['cuda']}"
    return [Finding("problem", "GPUs", f"{text} ({found['reason']})", remedy)]


def _judge_gpu(number: int, gpu: Mapping[str, Any]) -> Finding:
    major, minor = gpu["capability"]
    memory = f"{gpu['memory_bytes'] / GIB:.0f} GiB"
    text = f"{gpu['name']}, {memory}, compute capability {major}.{minor}"
    if gpu["error"]:
        remedy = "install a torch that is built for it, or set CUDA_VISIBLE_DEVICES without it"
        return Finding("problem", f"GPU {number}", f"{text}: fails ({gpu['error']})", remedy)
    if major < 8:
        remedy = "use --train.precision fp16 or no"
        return Finding("warning", f"GPU {number}", f"{text}: no bf16", remedy)
    return Finding("ok", f"GPU {number}", text)


# --- several processes --------------------------------------------------------------------------------


def check_launcher(environment: Mapping[str, str]) -> list[Finding]:
    """Look for what launchers set, and for leftovers of it, which a training would wait for."""
    given = {name: environment[name] for name in NAMES if name in environment}
    given |= {name: environment[name] for name in environment if name.startswith("ACCELERATE_")}
    try:
        note = read_launch(environment).note
    except InputError as error:
        return [Finding("problem", "launcher", str(error))]
    if note:
        return [Finding("warning", "launcher", note)]
    listed = ", ".join(f"{name}={value}" for name, value in given.items())
    return [Finding("ok", "launcher", listed or "one process")]


def check_slurm(environment: Mapping[str, str]) -> list[Finding]:
    """Ask SLURM, where it is installed, for its partitions."""
    if not shutil.which("sbatch"):
        return [Finding("ok", "SLURM", "not on this machine")]
    if job := environment.get("SLURM_JOB_ID"):
        nodes = environment.get("SLURM_JOB_NODELIST", "?")
        return [Finding("ok", "SLURM", f"in job {job} on {nodes}")]
    command = ["sinfo", "--noheader", "--format=%P %D × %c cores %G"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=SLURM_SECONDS, check=False
        )
        answer, said = done.stdout.strip(), done.stderr.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        answer, said = "", str(error)
    if answer:
        return [Finding("ok", "SLURM", "; ".join(answer.splitlines()))]
    why = (said or "no partitions").splitlines()[0]
    remedy = "jobs cannot be submitted from here"
    return [Finding("warning", "SLURM", f"sinfo does not answer ({why})", remedy)]


def check_compilers() -> list[Finding]:
    """Look for what DeepSpeed compiles its operators with, if it is installed."""
    if installed("deepspeed") is None:
        return []
    missing = [tool for tool in ("g++", "ninja") if not _has(tool)]
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        missing.append("Python.h")
    if missing:
        remedy = "apt install g++ ninja-build python3-dev"
        return [Finding("warning", "DeepSpeed's compilers", f"no {', '.join(missing)}", remedy)]
    nvcc = "with nvcc" if _has("nvcc") else "without nvcc"
    return [Finding("ok", "DeepSpeed's compilers", f"g++, ninja, Python.h, {nvcc}")]


def _has(tool: str) -> bool:
    beside = Path(sys.executable).with_name(tool)
    return beside.exists() or shutil.which(tool) is not None
