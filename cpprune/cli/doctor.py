"""`cpprune doctor`: what this machine has, what would fail on it, and what helps."""

from __future__ import annotations

import json
import os
import platform
import shutil
from dataclasses import asdict
from typing import Any

from cpprune.cli import checks
from cpprune.cli.arguments import OneLineParser
from cpprune.cli.checks import Finding


def doctor(argv: list[str]) -> int:
    """Print what there is; exit status 1 when something that training needs would fail."""
    parser = OneLineParser(
        "cpprune doctor",
        description="What this machine has, what would fail, and what helps. Exit status: 1 if "
        "something that training needs is broken (a problem), else 0.",
    )
    parser.add_argument(
        "--all", action="store_true", help="import the optional packages too (slow)"
    )
    arguments = parser.parse_args(argv)
    found = examine(optional=arguments.all)
    if arguments.json:
        print(json.dumps(found))
    else:
        print("\n".join(lines(found)))
    return 1 if found["problems"] else 0


def examine(*, optional: bool = False) -> dict[str, Any]:
    """Return machine, packages, extras, gpus, and the findings; `optional`: import the extras too."""
    needed = checks.requirements()
    names = [name for name in needed if name not in checks.NOT_IMPORTED]
    needed_modules = checks.modules_of(names)
    others = [name for extra in checks.EXTRAS for name in checks.requirements(extra)]
    optional_modules = checks.modules_of(others) if optional else []
    answers = checks.probe(["torch", "gpus", *needed_modules, *optional_modules])
    gpus = answers.pop("gpus")
    tried = {name: answers.pop(name) for name in optional_modules}
    findings = [
        *checks.check_machine(),
        *checks.check_versions(needed),
        *checks.check_imports(answers, "problem"),
        *([] if answers["torch"]["error"] else checks.check_gpus(gpus, os.environ)),
        *checks.check_launcher(os.environ),
        *checks.check_slurm(os.environ),
        *checks.check_compilers(),
        *checks.check_extras(tried),
    ]
    return _report(findings, gpus["found"], needed)


def _report(
    findings: list[Finding], torch: dict[str, Any] | None, needed: dict[str, str]
) -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": checks.cpu_cores(),
        "memory_bytes": checks.memory_bytes(),
        "free_disk_bytes": shutil.disk_usage(".").free,
        "cuda": torch["cuda"] if torch else None,
        "gpus": [gpu["name"] for gpu in torch["gpus"]] if torch else [],
        "packages": {name: checks.installed(name) for name in needed},
        "extras": {
            extra: all(checks.installed(name) for name in checks.requirements(extra))
            for extra in checks.EXTRAS
        },
        "findings": [asdict(finding) for finding in findings],
        "warnings": [str(finding) for finding in findings if finding.state == "warning"],
        "problems": [str(finding) for finding in findings if finding.state == "problem"],
    }


def lines(found: dict[str, Any]) -> list[str]:
    """Return the findings as lines, and what they come to."""
    findings = [Finding(**finding) for finding in found["findings"]]
    shown = [f"{finding.state:<8} {finding}" for finding in findings]
    problems, warnings = len(found["problems"]), len(found["warnings"])
    if problems:
        return [*shown, f"{problems} problem(s): training would fail here"]
    return [*shown, f"training works here ({warnings} warning(s))"]
