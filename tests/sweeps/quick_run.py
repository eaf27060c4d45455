"""Stands for a training: a run folder after so many epochs, in no time. It goes on where it ended.

The loss is (x − 3)² + 1 / epochs trained. `started` in its folder has a line for each start.
"""

import json
import os
import sys
import time
from pathlib import Path

given = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
run = Path(given["run"])
x, pause, epochs = float(given["x"]), float(given.get("pause", 0)), int(given.get("epochs", 3))
(run / "checkpoints").mkdir(parents=True, exist_ok=True)
(run / "STOP").unlink(missing_ok=True)
with (run / "started").open("a") as file:
    file.write(f"{os.getpid()}\n")
impossible = Path(given.get("impossible", "none"))
if impossible.exists() and given["x"] in impossible.read_text().split():
    raise ValueError(f"x={x} cannot be had")
metrics = run / "metrics.jsonl"
done = len(metrics.read_text().splitlines()) if metrics.exists() else 0
for epoch in range(done, epochs):
    time.sleep(pause)
    if (run / "STOP").exists():
        sys.exit(0)
    loss = (x - 3) ** 2 + 1 / (1 + epoch)
    record = {"epoch": epoch, "val_log_loss": loss, "best": True, "parameters": 100}
    with metrics.open("a") as file:
        file.write(json.dumps(record) + "\n")
(run / "result.json").write_text(json.dumps({"epoch": epochs - 1, "parameters": 100, "macs": 7}))
