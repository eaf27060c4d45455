"""Stands for a training: a run folder after so many epochs, in no time. It goes on where it ended.

Its loss falls from epoch to epoch; where it ends depends on --x. `started` in its folder has a line for
each start, `at_work` is there while it runs: another one at the same time fails.
"""

import json
import sys
import time
from pathlib import Path

given = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
run = Path(given["run"])
x, pause, epochs = float(given["x"]), float(given.get("pause", 0)), int(given.get("epochs", 3))
run.mkdir(parents=True, exist_ok=True)
(run / "checkpoints").mkdir(exist_ok=True)
(run / "STOP").unlink(missing_ok=True)
with (run / "started").open("a") as file:
    file.write(" ".join(sys.argv[1:]) + "\n")
if given.get("fail") == "True" or str(given.get("fail_at")) == given["x"]:
    raise ValueError(f"x={x} is not to be had")
metrics = run / "metrics.jsonl"
done = len(metrics.read_text().splitlines()) if metrics.exists() else 0
for epoch in range(done, epochs):
    time.sleep(pause)
    if (run / "STOP").exists():
        sys.exit(0)
    loss = (x - 3) ** 2 + 1 / (1 + epoch)
    record = {"epoch": epoch, "val_log_loss": loss, "val_macro_accuracy": -loss, "best": True}
    with metrics.open("a") as file:
        file.write(json.dumps(record | {"parameters": 100}) + "\n")
(run / "result.json").write_text(json.dumps({"epoch": epochs - 1, "parameters": 100, "macs": 7}))
