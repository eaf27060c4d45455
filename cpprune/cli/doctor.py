"""`cpprune doctor`: what this machine has, what would fail on it, and the remedies."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import asdict

from cpprune.cli import checks
from cpprune.cli.arguments import OneLineParser
from cpprune.cli.checks import Finding
from cpprune.data.free_memory import available_memory
from shards.files.documents import to_json


def doctor(argv: list[str]) -> int:
    """Print the findings; exit status 1 if training would fail."""
    parser = OneLineParser(
        "cpprune doctor",
        description="Check Python, packages, cores, memory, disk, GPUs, launcher variables, SLURM and "
        "compilers; print what would fail and the remedy. Exit status: 1 if training would fail (a "
        "problem), else 0.",
    )
    parser.add_argument("--all", action="store_true", help="also import optional packages (slow)")
    arguments = parser.parse_args(argv)
    found, findings = examine(optional=arguments.all)
    print(to_json(found) if arguments.json else _text(findings))
    return 1 if any(finding.state == "problem" for finding in findings) else 0


def examine(*, optional: bool = False) -> tuple[dict[str, object], list[Finding]]:
    """Return the machine, packages, extras, GPUs and findings; `optional`: import the extras too."""
    needed = checks.requirements()
    modules = checks.modules_of(name for name in needed if name not in checks.NEEDED_BY)
    extras = {extra: checks.requirements(extra) for extra in checks.EXTRAS}
    others = checks.modules_of(n for names in extras.values() for n in names) if optional else []
    answers = checks.probe(["torch", "gpus", *modules, *others])
    gpus = answers.pop("gpus")
    imported = {name: answers.pop(name) for name in others}
    findings = [
        *checks.check_machine(),
        *checks.check_versions(needed),
        *checks.check_imports(answers, "problem"),
        *([] if answers["torch"].error else checks.check_gpus(gpus, os.environ)),
        *checks.check_launcher(os.environ),
        *checks.check_slurm(os.environ),
        *checks.check_compilers(),
        *checks.check_extras(imported),
    ]
    torch = gpus.found
    found = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": checks.cpu_cores(),
        "memory_bytes": available_memory(),
        "free_disk_bytes": shutil.disk_usage(".").free,
        "cuda": torch.cuda if torch else None,
        "gpus": [gpu.name for gpu in torch.gpus] if torch else [],
        "packages": {name: checks.installed(name) for name in needed},
        "extras": {extra: all(map(checks.installed, names)) for extra, names in extras.items()},
        "findings": [asdict(finding) for finding in findings],
        "warnings": [str(finding) for finding in findings if finding.state == "warning"],
        "problems": [str(finding) for finding in findings if finding.state == "problem"],
    }
    return found, findings


def _text(findings: list[Finding]) -> str:
    states = [finding.state for finding in findings]
    verdict = f"training works here ({states.count('warning')} warning(s))"
    if problems := states.count("problem"):
        verdict = f"{problems} problem(s): training would fail here"
    return "\n".join([*(f"{finding.state:<8} {finding}" for finding in findings), verdict])
