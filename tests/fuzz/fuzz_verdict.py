"""What is wrong with how a command ended, if anything is."""

import json
import re
import signal
from collections.abc import Sequence
from pathlib import Path

# Commands that say how far they are before they fail.
TALKING = {
    "train",
    "prune",
    "finetune",
    "sweep",
    "report",
    "shards",
    "demo",
    "compare",
    "sensitivity",
}


def judge(
    command: str, words: Sequence[str], status: int, hung: bool, out: bytes, err: bytes
) -> tuple[str, str]:
    """Return what is wrong with how an input ended, in a few words that are alike for a cause."""
    said = err.decode(errors="replace")
    text = f"{out.decode(errors='replace')[-500:]}\n{said[-4000:]}"
    if hung:
        return "hang", text
    if status < 0:
        return f"signal {signal.Signals(-status).name}", text
    if "Traceback (most recent call last)" in said or "cpprune: internal error" in said:
        return _place(said), text
    errors = re.findall(r"^cpprune: error", said, re.M)
    lines = [line for line in said.splitlines() if line.strip()]
    debug = any(word.startswith("--debug") for word in words)
    if warned := re.search(r"(\S+\.py):\d+: (\w*Warning): .*", said):
        return f"warning {Path(warned[1]).name} {warned[2]}", text
    if status == 2:
        if len(errors) != 1:
            return f"{len(errors)} error lines", text
        if command not in TALKING and len(lines) > 2:
            return "several lines", text
        if not lines[-1].startswith(("cpprune: error", "See `")):
            return "the error is not the last line", text
        if "--json" in words and out:
            return "output with status 2", text
        return "", ""
    if status == 1:
        negative = words[:2] == ["shards", "verify"] or command in ("doctor", "sweep") or debug
        if not negative:
            return "status 1", text
    elif status != 0:
        return f"status {status}", text
    if "--json" in words and "--help" not in words and status == 0:
        fault = _json_fault(out)
        if fault and "--print_config" not in words and "-h" not in words:
            return fault, text
    elif re.search(rb"\bnan\b", out) and not any("nan" in word for word in words):
        return "nan in the output", text
    return "", ""


def _json_fault(out: bytes) -> str:
    def refuse(name: str) -> None:
        raise ValueError(name)

    if not out and out == b"":
        return "no JSON"
    try:
        json.loads(out, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        return f"output is no JSON ({str(error)[:20]})"
    return ""


def _place(said: str) -> str:
    """Return the last place in our own code of a traceback, and the kind of the exception."""
    frames = re.findall(r'File "([^"]*?/(?:cpprune|shards)/[^"]*\.py)", line (\d+), in (\S+)', said)
    last = said.strip().splitlines()[-1]
    kind = re.search(r"internal error[^:]*: (\w+)", last) or re.match(r"([\w.]+)", last)
    where = (
        f"{'/'.join(Path(frames[-1][0]).parts[-2:])}:{frames[-1][1]} {frames[-1][2]}"
        if frames
        else "?"
    )
    return f"{kind[1] if kind else last[:40]} at {where}"
